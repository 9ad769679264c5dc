#!/bin/sh
# Runs a command, and twice more where it fails: one that fetches from registries, of which
# one may be away for a moment.
#
#	sh tools/again.sh COMMAND...
set -u

for pause in 5 30; do
	"$@" && exit 0
	echo "failed, and is tried again in $pause s: $*" >&2
	sleep "$pause"
done
exec "$@"

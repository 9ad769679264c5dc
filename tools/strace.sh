#!/bin/sh
# Sees to it that strace is there, which the fault tests need (Linux only). Run by
# "make faults". Where it may, it installs Debian's package; else it says what to
# do.
set -eu
command -v strace >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq && apt-get install -y -qq --no-install-recommends strace >&2 && exit 0
fi
echo "make faults: strace is missing: install it (apt-get install strace) and run this again" >&2
exit 1

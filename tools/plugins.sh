#!/bin/sh
# Builds the sample plugins with chandler and the compilers of .tools/authors, and says how
# large they are: plugins/NAME/NAME.wasm. Run by "make plugins", in the repository's folder:
#
#	sh tools/plugins.sh [NAME...]   all of them without names
set -eu

PATH=$(pwd -P)/.tools/authors/bin:$PATH
export PATH

[ $# -gt 0 ] || set -- $(ls plugins/*/chandler.test.yaml | cut -d/ -f2)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for name in "$@"; do
	bin/chandler build "plugins/$name" -o json >"$work/$name.json"
	printf '%-12s %4s kB, about %s ms in Envoy\n' "$name" $((($(wc -c <"plugins/$name/$name.wasm") + 500) / 1000)) \
		"$(sed -n 's/.*"loadMilliseconds": \([0-9]*\).*/\1/p' "$work/$name.json")"
done

#!/bin/sh
# Builds promtool from its Go module to .tools/promtool, for the tests of the alert
# rules. Run by "make tools-promtool", in the repository's folder.
#
# The version is that of tools/promtool/go.mod. A second run finds the stamp, which is
# over that file and this one, and is done.
set -eu

digest=$(cat tools/promtool/go.mod tools/promtool/go.sum tools/promtool.sh | cksum)
stamp=.tools/promtool.stamp
[ -x .tools/promtool ] && [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ] && exit 0

version=$(go -C tools/promtool list -m -f '{{.Version}}' github.com/prometheus/prometheus)
echo "Building promtool $version, once" >&2
mkdir -p .tools
work=$(mktemp -d "$(pwd -P)/.tools/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# remove_all_sd leaves the service discovery of every cloud out.
CGO_ENABLED=0 go -C tools/promtool build -trimpath -buildvcs=false -tags remove_all_sd -ldflags '-s -w' \
	-o "$work/promtool" github.com/prometheus/prometheus/cmd/promtool
mv -f "$work/promtool" .tools/promtool
printf '%s\n' "$digest" >"$stamp"

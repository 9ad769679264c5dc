#!/bin/sh
# Builds Envoy Gateway from its Go module to .tools/envoy-gateway, for the tests that
# stand an agent under a real control plane of somebody else's. Run by "make
# tools-gateway", in the repository's folder.
#
# The version is that of tools/gateway/go.mod. A second run finds the stamp, which is
# over that file and this one, and is done.
set -eu

digest=$(cat tools/gateway/go.mod tools/gateway/go.sum tools/gateway.sh | cksum)
stamp=.tools/gateway.stamp
[ -x .tools/envoy-gateway ] && [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ] && exit 0

version=$(go -C tools/gateway list -m -f '{{.Version}}' github.com/envoyproxy/gateway)
echo "Building Envoy Gateway $version; this takes some minutes, once" >&2
mkdir -p .tools
work=$(mktemp -d "$(pwd -P)/.tools/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

CGO_ENABLED=0 go -C tools/gateway build -trimpath -buildvcs=false -ldflags '-s -w' \
	-o "$work/envoy-gateway" github.com/envoyproxy/gateway/cmd/envoy-gateway
mv -f "$work/envoy-gateway" .tools/envoy-gateway
printf '%s\n' "$digest" >"$stamp"

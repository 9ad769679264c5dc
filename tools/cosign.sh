#!/bin/sh
# Builds cosign from its Go module to .tools/cosign, for the tests of signatures.
# Run by "make tools-cosign", in the repository's folder.
#
# The version is that of tools/cosign/go.mod. A second run finds the stamp, which is
# over that file and this one, and is done.
set -eu

digest=$(cat tools/cosign/go.mod tools/cosign/go.sum tools/cosign.sh | cksum)
stamp=.tools/cosign.stamp
[ -x .tools/cosign ] && [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ] && exit 0

version=$(go -C tools/cosign list -m -f '{{.Version}}' github.com/sigstore/cosign/v3)
echo "Building cosign $version, once" >&2
mkdir -p .tools
work=$(mktemp -d "$(pwd -P)/.tools/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

CGO_ENABLED=0 go -C tools/cosign build -trimpath -buildvcs=false -ldflags "-s -w -X sigs.k8s.io/release-utils/version.gitVersion=$version" \
	-o "$work/cosign" github.com/sigstore/cosign/v3/cmd/cosign
mv -f "$work/cosign" .tools/cosign
printf '%s\n' "$digest" >"$stamp"

#!/bin/sh
# Builds Helm from its Go module to .tools/helm, for the tests behind the build tag
# "kube" that install the chart with it. Run by "make tools-kube", in the repository's
# folder.
#
# The version is that of tools/helm/go.mod. A second run finds the stamp, which is
# over that file and this one, and is done.
set -eu

digest=$(cat tools/helm/go.mod tools/helm/go.sum tools/helm.sh | cksum)
stamp=.tools/helm.stamp
[ -x .tools/helm ] && [ "$(cat "$stamp" 2>/dev/null)" = "$digest" ] && exit 0

version=$(go -C tools/helm list -m -f '{{.Version}}' helm.sh/helm/v3)
minor=$(go -C tools/helm list -m -f '{{.Version}}' k8s.io/client-go | cut -d. -f2)
echo "Building helm $version, once" >&2
mkdir -p .tools
work=$(mktemp -d "$(pwd -P)/.tools/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Without them "helm lint" and "helm template" take the cluster for one of 1.20.
flags="-s -w -X helm.sh/helm/v3/internal/version.version=$version"
for package in chartutil lint/rules; do
	flags="$flags -X helm.sh/helm/v3/pkg/$package.k8sVersionMajor=1 -X helm.sh/helm/v3/pkg/$package.k8sVersionMinor=$minor"
done
CGO_ENABLED=0 go -C tools/helm build -trimpath -buildvcs=false -ldflags "$flags" -o "$work/helm" helm.sh/helm/v3/cmd/helm
mv -f "$work/helm" .tools/helm
printf '%s\n' "$digest" >"$stamp"

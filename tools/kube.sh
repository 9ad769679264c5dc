#!/bin/sh
# Builds a real Kubernetes API server, its store and kubectl from their Go modules
# to .tools/kube-apiserver, .tools/etcd and .tools/kubectl, for the tests behind
# the build tag "kube". Run by "make tools-kube", in the repository's folder.
#
# The versions are those of tools/kube/go.mod. A second run finds the stamp, which
# is over that file and this one, and is done. Whatever is in place stays until
# the new one takes its place by a rename.
set -eu

digest=$(cat tools/kube/go.mod tools/kube/go.sum tools/kube.sh | cksum)
stamp=.tools/kube.stamp
[ -x .tools/kube-apiserver ] && [ -x .tools/etcd ] && [ -x .tools/kubectl ] &&
	[ "$(cat "$stamp" 2>/dev/null)" = "$digest" ] && exit 0

version=$(go -C tools/kube list -m -f '{{.Version}}' k8s.io/kubernetes)
echo "Building kube-apiserver and kubectl $version, and etcd; this takes some minutes, once" >&2
mkdir -p .tools
work=$(mktemp -d "$(pwd -P)/.tools/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Without the version the server says v0.0.0-master, which kubectl refuses.
version_package=k8s.io/component-base/version
flags="-s -w -X $version_package.gitVersion=$version -X $version_package.gitMajor=1 -X $version_package.gitMinor=$(echo "$version" | cut -d. -f2)"
for package in ./etcd k8s.io/kubernetes/cmd/kube-apiserver k8s.io/kubernetes/cmd/kubectl; do
	CGO_ENABLED=0 go -C tools/kube build -trimpath -buildvcs=false -ldflags "$flags" -o "$work/" "$package"
	mv -f "$work/${package##*/}" ".tools/${package##*/}"
	echo "built .tools/${package##*/}" >&2
done
printf '%s\n' "$digest" >"$stamp"

#!/bin/sh
# Builds both programs of every release in tools/releases.txt from this repository's
# history to .tools/releases/TAG, for the tests of upgrades. Run by "make tools-releases",
# in the repository's folder.
#
# A second run finds the stamp, which has the commit, and is done.
set -eu

grep -v '^#' tools/releases.txt | while read -r tag listed; do
	commit=$(git rev-parse --quiet --verify "refs/tags/$tag^{commit}") || commit=$listed
	out=.tools/releases/$tag
	[ -x "$out/chandler" ] && [ -x "$out/chandler-agent" ] && [ "$(cat "$out/commit" 2>/dev/null)" = "$commit" ] && continue

	if ! git cat-file -e "$commit^{commit}" 2>/dev/null; then
		echo "the commit of $tag, $commit, is not in this clone; if it is a shallow one: git fetch --unshallow" >&2
		exit 1
	fi
	echo "Building $tag, once" >&2
	mkdir -p .tools/releases
	work=$(mktemp -d "$(pwd -P)/.tools/tmp.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	trap 'exit 130' INT
	trap 'exit 143' TERM

	mkdir "$work/source" "$work/built"
	git archive --output "$work/source.tar" "$commit"
	tar -xf "$work/source.tar" -C "$work/source"
	CGO_ENABLED=0 go -C "$work/source" build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$tag" \
		-o "$work/built/" ./cmd/chandler ./cmd/chandler-agent
	printf '%s\n' "$commit" >"$work/built/commit"
	rm -rf "$out"
	mv "$work/built" "$out"
	rm -rf "$work"
done

#!/bin/sh
# Builds both programs twice, from copies of the source in two folders, and compares
# them. The second time the agent is compiled into an empty cache, with all that it is
# made of; chandler, of which that takes minutes, only with REPRODUCIBLE=full.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
dir=$(mktemp -d)
trap 'chmod -R u+w "$dir"; rm -rf "$dir"' EXIT
warm=$(go env GOCACHE)
cold=$dir/cache

# build FOLDER CACHE PROGRAM: as "make build" does.
build() {
	(cd "$1" && GOCACHE=$2 CGO_ENABLED=0 go build -tags "$TAGS" -trimpath -buildvcs=false \
		-ldflags "-X main.version=${VERSION:-reproducible}" -o bin/ "./cmd/$3")
}

for copy in "$dir/one" "$dir/two/deeper"; do
	mkdir -p "$copy"
	(cd "$root" && git ls-files -z | tar --null --ignore-failed-read -T - -cf -) | tar -C "$copy" -xf -
done
build "$dir/one" "$warm" chandler-agent
build "$dir/one" "$warm" chandler
build "$dir/two/deeper" "$cold" chandler-agent
if [ "${REPRODUCIBLE:-}" = full ]; then warm=$cold; fi
build "$dir/two/deeper" "$warm" chandler

for program in chandler chandler-agent; do
	cmp "$dir/one/bin/$program" "$dir/two/deeper/bin/$program"
	if grep -aqF "$dir" "$dir/one/bin/$program"; then
		echo "$program has the name of the folder in it where it was built" >&2
		exit 1
	fi
done
(cd "$dir/one/bin" && sha256sum chandler chandler-agent)

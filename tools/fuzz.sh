#!/bin/sh
# Fuzzes every target there is, for a while each and two at a time:
#
#	sh tools/fuzz.sh [20s [TARGET]]
#
# It finds the targets by itself, in all modules. A target that fails leaves its
# input in testdata/fuzz beside it, to be committed with what mends it; what only
# proved interesting is kept in Go's cache, as go test -fuzz does.
set -eu

# one TARGET DIR: fuzzes one target, and says in a line how that went.
one() {
	log=$work/$(echo "$1 $2" | tr ' /' __).log
	if (cd "$2" && GOMAXPROCS=1 "$work/$(echo "$2" | tr / _).test" -test.run '^$' -test.fuzz "^$1\$" -test.fuzztime "$long" \
		-test.fuzzminimizetime 2s -test.parallel 1 -test.timeout 30m -test.fuzzcachedir "$cache/$2") >"$log" 2>&1 || late "$log"; then
		printf '%-26s %-24s ok, %s inputs\n' "$1" "$2" "$(sed -n 's/.*execs: \([0-9]*\).*/\1/p' "$log" | tail -n 1)"
	else
		printf '%-26s %-24s FAILED\n' "$1" "$2"
		tail -n 60 "$log" >&2
		return 1
	fi
}

# late LOG: nothing is wrong but that the time was up while a worker was busy, which
# go test calls a failure (https://go.dev/issue/75804).
late() { grep -q '^ *context deadline exceeded$' "$1" && ! grep -q 'Failing input' "$1"; }

if [ "${1:-}" = one ]; then
	one "$2" "$3"
	exit
fi

cd "$(dirname "$0")/.."
long=${1:-20s}
only=${2:-.}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' INT TERM
cache=$(go env GOCACHE)/fuzz/chandler
export work long cache

grep -r --include='*_test.go' --exclude-dir='.[!.]*' '^func Fuzz[A-Za-z0-9_]*(f \*testing\.F)' . |
	sed 's|^\./||; s|^\([^/]*\):func|./\1:func|; s|^\(.*\)/[^/]*:func \(Fuzz[A-Za-z0-9_]*\)(.*|\2 \1|' | grep "$only" | sort >"$work/targets"
if [ ! -s "$work/targets" ]; then
	echo "no target is called $only" >&2
	exit 1
fi
# Each package is built once, not once a target. Fuzzing goes by the paths that are
# taken through our own packages: with -fuzz the go command would have all others
# built anew for it, the Kubernetes clients among them, which takes minutes.
cut -d' ' -f2 "$work/targets" | sort -u | while read -r dir; do
	go -C "$dir" test -c -gcflags='chandler.dev/...=-d=libfuzzer' -o "$work/$(echo "$dir" | tr / _).test" .
done
# xargs goes on to the other targets when one fails, and fails at the end.
xargs -n 2 -P 2 sh tools/fuzz.sh one <"$work/targets"
printf '%s targets held for %s each\n' "$(wc -l <"$work/targets")" "$long"

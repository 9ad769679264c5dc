package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/agent"
	"chandler.dev/chandler/internal/proxywasm"
	"chandler.dev/chandler/internal/store"
)

const storeUsage = `chandler-agent store looks after the modules that an agent keeps on disk.

Usage:
  chandler-agent store ls                        list them
  chandler-agent store verify                    hash them all; corrupt ones go into quarantine
  chandler-agent store trim                      drop those neither in use nor in the last good set
  chandler-agent store import FILE|DIR|- ...     put modules in before the agent starts, "-" is standard input

While an agent runs on the directory, verify and trim ask it to do the work at
its --admin address, and import is refused.

Flags:
`

// storeFlags are those of the commands on a store.
type storeFlags struct {
	data, admin, output string
	most                size
	dry                 bool
}

// runStore is chandler-agent store.
func runStore(c console, args []string) int {
	if len(args) == 0 {
		fmt.Fprint(c.stderr, "chandler-agent: store ls, verify, trim or import?\nTry \"chandler-agent store --help\".\n")
		return exitUsage
	}
	var f storeFlags
	flags := c.flags("chandler-agent store", &f.data, &f.admin)
	flags.StringVar(&f.output, "o", "table", "output: table or json")
	flags.Var(&f.most, "max-bytes", "trim: how much may stay, for example 500MiB; 0 drops all that nobody needs")
	flags.BoolVar(&f.dry, "dry-run", false, "trim: only tell what would be dropped")
	commands := map[string]func(console, storeFlags, []string) (int, error){
		"ls": storeList, "verify": storeVerify, "trim": storeTrim, "import": storeImport,
	}
	run, name := commands[args[0]], args[0]
	if run != nil {
		args = args[1:]
	} else if !strings.HasPrefix(name, "-") {
		fmt.Fprintf(c.stderr, "chandler-agent: store has no command %s; it has ls, verify, trim and import\n", chandler.Quote(name))
		return exitUsage
	}
	rest, code, ok := c.parse(flags, args, storeUsage)
	if !ok {
		return code
	}
	if run == nil || f.output != "table" && f.output != "json" || name != "import" && len(rest) > 0 || name == "import" && len(rest) == 0 {
		fmt.Fprint(c.stderr, "chandler-agent: give ls, verify, trim or import, what to import, and -o table or json\nTry \"chandler-agent store --help\".\n")
		return exitUsage
	}
	code, err := run(c, f, rest)
	if err != nil {
		fmt.Fprintf(c.stderr, "chandler-agent: %v\n", err)
	}
	return code
}

func storeList(c console, f storeFlags, _ []string) (int, error) {
	list, err := agent.ListStore(f.data)
	if err != nil {
		return exitFailed, err
	}
	if f.output == "json" {
		return c.json(list)
	}
	w := tabwriter.NewWriter(c.stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "MODULE\tSIZE\tLAST USED\tLAST GOOD FOR")
	for _, m := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", m.Digest, size(m.Size), ago(m.Used), cmp.Or(strings.Join(m.Plugins, ", "), "-"))
	}
	return 0, w.Flush()
}

func storeVerify(c console, f storeFlags, _ []string) (int, error) {
	report, err := f.do(c, "/store/verify", nil, func(s *store.Store) (agent.StoreReport, error) {
		return agent.VerifyStore(context.Background(), s), nil
	})
	if err != nil {
		return exitFailed, err
	}
	if code, err := c.report(f, report, "corrupt, put into quarantine"); err != nil {
		return code, err
	}
	fmt.Fprintf(c.stderr, "%s checked, %d corrupt\n", modules(report.Checked), len(report.Modules))
	switch {
	case len(report.Modules) > 0:
		return exitFound, nil
	case len(report.Errors) > 0:
		return exitFailed, nil
	}
	return 0, nil
}

func storeTrim(c console, f storeFlags, _ []string) (int, error) {
	query := url.Values{"max_bytes": {strconv.FormatInt(int64(f.most), 10)}, "dry_run": {strconv.FormatBool(f.dry)}}
	report, err := f.do(c, "/store/trim", query, func(s *store.Store) (agent.StoreReport, error) {
		return agent.TrimStore(f.data, s, int64(f.most), f.dry)
	})
	if err != nil {
		return exitFailed, err
	}
	what := "dropped"
	if f.dry {
		what = "would be dropped"
	}
	if code, err := c.report(f, report, what); err != nil {
		return code, err
	}
	fmt.Fprintf(c.stderr, "%s of %s %s, %s stay\n", modules(len(report.Modules)), size(report.Bytes), what, size(report.Left))
	return 0, nil
}

func modules(n int) string { return chandler.Count(n, "module", "modules") }

// do works on the store itself, or lets the agent that has it do so.
func (f storeFlags) do(c console, path string, query url.Values, here func(*store.Store) (agent.StoreReport, error)) (agent.StoreReport, error) {
	var report agent.StoreReport
	if _, err := os.Stat(f.data); err != nil {
		return report, err // not made by looking at it
	}
	s, closed, err := agent.OpenStore(f.data, 0)
	var problem *chandler.Problem
	if errors.As(err, &problem) && problem.Code == chandler.CodeCacheLocked {
		askErr := c.look(f.data, f.admin, &agent.Status{})
		if askErr == nil {
			askErr = c.ask(http.MethodPost, f.admin, path+"?"+query.Encode(), &report)
		}
		if askErr != nil {
			return report, fmt.Errorf("an agent runs on this directory (%w), and it cannot be asked: %w; give its address with --admin, or stop it first", err, askErr)
		}
		return report, nil
	}
	if err != nil {
		return report, err
	}
	defer closed()
	return here(s)
}

// report prints what a command did, a line a module.
func (c console) report(f storeFlags, r agent.StoreReport, what string) (int, error) {
	if f.output == "json" {
		return c.json(r)
	}
	for _, m := range r.Modules {
		if _, err := fmt.Fprintf(c.stdout, "%s\t%s\t%s\n", m.Digest, size(m.Size), what); err != nil {
			return exitFailed, err
		}
	}
	for _, text := range r.Errors {
		fmt.Fprintf(c.stderr, "chandler-agent: %s\n", text)
	}
	return 0, nil
}

// storeImport puts modules in that are fit, and tells why others are not.
func storeImport(c console, f storeFlags, args []string) (int, error) {
	files, err := modulesIn(args)
	if err != nil {
		return exitFailed, err
	}
	if len(files) == 0 {
		return exitFailed, errors.New("there is no .wasm file")
	}
	s, closed, err := agent.OpenStore(f.data, 0)
	var problem *chandler.Problem
	if errors.As(err, &problem) && problem.Code == chandler.CodeCacheLocked {
		return exitFailed, fmt.Errorf("an agent runs on this directory (%w): stop it, import, and start it again; it takes over an Envoy that it left with --leave-envoy", err)
	}
	if err != nil {
		return exitFailed, err
	}
	defer closed()
	failed := 0
	for _, file := range files {
		digest, n, err := c.take(s, file)
		if err != nil {
			fmt.Fprintf(c.stderr, "chandler-agent: %s: %v\n", chandler.Quote(file), err)
			failed++
			continue
		}
		fmt.Fprintf(c.stdout, "%s\t%s\t%s\n", digest, size(n), chandler.Printable(file, 512))
	}
	if failed > 0 {
		return exitFound, fmt.Errorf("not imported: %d of %s", failed, modules(len(files)))
	}
	return 0, nil
}

// modulesIn gives the files that are named, and the .wasm files of directories.
func modulesIn(args []string) ([]string, error) {
	var files []string
	for _, arg := range args {
		if arg == "-" {
			files = append(files, arg)
			continue
		}
		st, err := os.Stat(arg)
		if err != nil {
			return nil, err
		}
		if !st.IsDir() {
			files = append(files, arg)
			continue
		}
		err = filepath.WalkDir(arg, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && filepath.Ext(path) == ".wasm" {
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return files, nil
}

// take checks one module and puts it into the store.
func (c console) take(s *store.Store, file string) (chandler.ModuleDigest, int64, error) {
	f, err := c.open(file)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	if st.Size() > s.MaxModule {
		return "", 0, fmt.Errorf("it has %d bytes; a module may have %d", st.Size(), s.MaxModule)
	}
	m, err := proxywasm.Inspect(f, st.Size())
	if err != nil {
		return "", 0, err
	}
	for _, w := range m.Warnings {
		fmt.Fprintf(c.stderr, "chandler-agent: %s: warning: %v\n", chandler.Quote(file), &w)
	}
	return s.Ingest(io.NewSectionReader(f, 0, st.Size()), "")
}

// open opens a file, or copies standard input into one without a name.
func (c console) open(file string) (*os.File, error) {
	if file != "-" {
		return os.Open(file)
	}
	f, err := os.CreateTemp("", "chandler-import-")
	if err != nil {
		return nil, err
	}
	_ = os.Remove(f.Name())
	if _, err := io.Copy(f, io.LimitReader(c.stdin, store.DefaultMaxModule+1)); err != nil {
		f.Close()
		return nil, fmt.Errorf("standard input: %w", err)
	}
	return f, nil
}

// size is a number of bytes as people write it.
type size = store.Size

// ago tells how long ago something was.
func ago(t time.Time) string {
	switch d := time.Since(t); {
	case t.IsZero():
		return "-"
	case d < time.Minute:
		return "just now"
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	default:
		return chandler.Count(int(d.Hours()/24), "day ago", "days ago")
	}
}

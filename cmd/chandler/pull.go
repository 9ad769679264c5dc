package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/spf13/cobra"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/airgap"
	"chandler.dev/chandler/internal/author/inspect"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/fetch"
)

func pullCommand(e *env) *cobra.Command {
	var registry registryFlags
	var output string
	cmd := &cobra.Command{
		Use:   "pull REF",
		Short: "Fetch a module into a file",
		Long: `Fetch a module into a file: from a registry, in whatever layout it is there, or from
a web server. Its bytes are held against the digests on the way; a file that was there
is replaced by a whole module or not at all. The file's name and the module's digest
are printed.`,
		Example: `  chandler pull registry.example/team/hello:v1
  chandler pull https://host.example/hello.wasm.gz -o hello.wasm`,
		Args: withArgs(1, 1, "a reference"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return e.pull(cmd.Context(), args[0], output, &registry)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "file; - for standard output (default: the last part of the name, with .wasm, in the current folder)")
	registry.add(cmd)
	return cmd
}

// remote reads a reference to a registry or a web server.
func remote(text string) (chandler.Reference, error) {
	ref, p := chandler.ParseReference(text)
	switch {
	case p != nil:
		return ref, usagef("%s: %v", chandler.Quote(text), p)
	case ref.Scheme == chandler.SchemeFile:
		return ref, usagef("%s: write the file's name without file://", chandler.Quote(text))
	}
	return ref, nil
}

func (e *env) pull(ctx context.Context, text, output string, registry *registryFlags) error {
	ref, err := remote(text)
	if err != nil {
		return err
	}
	client, err := registry.client(e)
	if err != nil {
		return err
	}
	defer client.Close()
	if output == "" {
		urlPath, _, _ := strings.Cut(ref.Path, "?")
		name := path.Base(cmp.Or(ref.Repository, urlPath, "module"))
		output = strings.TrimLeft(strings.TrimSuffix(name, ".wasm"), ".") + ".wasm"
	}
	to := &fileSink{path: output}
	defer to.abort()
	a, err := client.Pull(ctx, fetch.Request{Reference: ref}, to)
	registry.meter.clear()
	if err != nil {
		return e.registryError(err)
	}
	if output == "-" {
		return to.copyTo(e.exact)
	}
	if err := to.file.Commit(); err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%s %s\n", output, a.Module)
	return err
}

// fileSink writes a module beside the file that it will be, or for standard output
// keeps it until it is whole. It implements fetch.Sink.
type fileSink struct {
	path   string
	file   *durable.Pending
	memory bytes.Buffer
}

func (s *fileSink) Ingest(r io.Reader, _ chandler.ModuleDigest) (chandler.ModuleDigest, int64, error) {
	s.abort()
	if s.path == "-" {
		s.memory.Reset()
		return fetch.Copy(&s.memory, r) // bounded by the client
	}
	var err error
	if s.file, err = durable.Create(durable.OS(), s.path); err != nil {
		return "", 0, err
	}
	return fetch.Copy(s.file, r)
}

func (s *fileSink) abort() {
	if s.file != nil {
		s.file.Abort()
	}
}

func (s *fileSink) copyTo(w io.Writer) error {
	_, err := w.Write(s.memory.Bytes())
	return err
}

// inspectFlags are the flags of "chandler inspect".
type inspectFlags struct {
	registry registryFlags
	output   string
	key      string
}

func inspectCommand(e *env) *cobra.Command {
	var f inspectFlags
	cmd := &cobra.Command{
		Use:   "inspect REF|FILE|TAR|DIR",
		Short: "Tell what a module is: layout, digests, ABI, imports, schema, signatures",
		Long: `Tell what a module is: an artifact of a registry, a module of a web server, a .wasm
file, or all artifacts of an archive that "chandler save" or another tool wrote, or of
a folder, whose name begins with / or ., that "chandler load" put some into.

What cannot be read is told with what was found in its place and what could be read;
the exit code is then 3. With --key one of its signatures must be of that key.`,
		Example: `  chandler inspect registry.example/team/hello:v1
  chandler inspect hello.wasm -o json`,
		Args: withArgs(1, 1, "a reference, a file, an archive or a folder"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if f.output != "text" && f.output != "json" {
				return usagef("-o %s: one of text, json", f.output)
			}
			return e.inspect(cmd.Context(), args[0], &f)
		},
	}
	cmd.Flags().StringVarP(&f.output, "output", "o", "text", "text or json")
	cmd.Flags().StringVar(&f.key, "key", "", "file of public keys in PEM, one of which must have signed")
	f.registry.add(cmd)
	return cmd
}

func (e *env) inspect(ctx context.Context, name string, f *inspectFlags) error {
	var opts inspect.Options
	if f.key != "" {
		keys, err := readKeys(f.key)
		if err != nil {
			return err
		}
		opts.Keys = keys
	}
	reports, err := e.reports(ctx, name, opts, f)
	f.registry.meter.clear()
	if err != nil {
		return e.registryError(err)
	}
	if err := e.tell(reports, f.output); err != nil {
		return err
	}
	for _, r := range reports {
		if len(r.Problems) > 0 {
			return &exitError{code: exitUnhealthy}
		}
	}
	return nil
}

// reports looks at what is named: a file, if there is one.
func (e *env) reports(ctx context.Context, name string, opts inspect.Options, f *inspectFlags) ([]inspect.Report, error) {
	if info, err := os.Stat(name); err == nil && info.Mode().IsRegular() {
		return e.inspectFile(ctx, name, info.Size(), opts)
	}
	if isFolder(name) {
		folder := airgap.NewFolder(name)
		found, err := folder.Found()
		if err != nil {
			return nil, err
		}
		return e.inspectAll(ctx, found, folder.Client(fetch.Config{}), opts)
	}
	ref, err := remote(name)
	if err != nil {
		return nil, err
	}
	client, err := f.registry.client(e)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	r, err := inspect.Artifact(ctx, client, name, fetch.Request{Reference: ref}, opts)
	return []inspect.Report{r}, err
}

// inspectFile looks at a file: a module if it begins as one, or does not end in .tar,
// and else an archive.
func (e *env) inspectFile(ctx context.Context, name string, size int64, opts inspect.Options) ([]inspect.Report, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	head := make([]byte, 512)
	n, err := file.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if !isArchive(name, head[:n]) {
		r, err := inspect.File(name, file)
		return []inspect.Report{r}, err
	}
	archive, err := airgap.Open(file, size)
	if err != nil {
		return nil, err
	}
	return e.inspectAll(ctx, archive.Found(), archive.Client(fetch.Config{}), opts)
}

// inspectAll looks at artifacts by a client that is for nothing else.
func (e *env) inspectAll(ctx context.Context, all []airgap.Found, client *fetch.Client, opts inspect.Options) ([]inspect.Report, error) {
	defer client.Close()
	var reports []inspect.Report
	for _, found := range all {
		r, err := inspect.Artifact(ctx, client, cmp.Or(found.Name, found.Reference.String()), fetch.Request{Reference: found.Reference}, opts)
		if err != nil {
			return nil, err
		}
		if !found.Complete {
			r.Reference = "" // nobody else knows it by that
		}
		reports = append(reports, r)
	}
	return reports, nil
}

// isArchive tells an archive from a module.
func isArchive(name string, head []byte) bool {
	if strings.HasPrefix(string(head), "\x00asm") {
		return false
	}
	return len(head) > 262 && string(head[257:262]) == "ustar" || strings.HasSuffix(name, ".tar") || strings.HasSuffix(name, ".tar.gz") || strings.HasSuffix(name, ".tgz")
}

// tell writes reports.
func (e *env) tell(reports []inspect.Report, output string) error {
	if output == "json" {
		enc := json.NewEncoder(e.stdout)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		if len(reports) == 1 {
			return enc.Encode(reports[0])
		}
		return enc.Encode(reports)
	}
	for i := range reports {
		if i > 0 {
			fmt.Fprintln(e.stdout)
		}
		if err := reports[i].Write(e.stdout); err != nil {
			return err
		}
	}
	return nil
}

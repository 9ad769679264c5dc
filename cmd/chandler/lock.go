package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/wire"
)

// lockFlags are the flags of "chandler lock".
type lockFlags struct {
	files  []string
	output string
	check  bool
	fetch  fetchFlags
}

func lockCommand(e *env) *cobra.Command {
	var f lockFlags
	cmd := &cobra.Command{
		Use:   "lock -f FOLDER|FILE",
		Short: "Write down which digests the references of resources mean",
		Long: `Ask what every oci, http and https reference in resources means now, and write the
digests to a file to commit beside them. "chandler serve --plugins FOLDER" goes by
the chandler.lock in the folder: what it names is that digest, wherever the tag is
moved to and whatever imagePullPolicy says, until the file says otherwise. What it
does not name is resolved as always.

References that name a digest, and files, mean the same always and are left out. What
is different is written to standard output; with --check nothing is written to the
file, and the exit code is 3 when it is out of date. Credentials are those of docker's
configuration (DOCKER_CONFIG), and the pull secrets beside the resources.`,
		Example: `  chandler lock -f plugins/
  chandler lock -f plugins/ --check`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path, err := f.path()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), e.timeout)
			defer cancel()
			return e.lock(ctx, f, path)
		},
	}
	cmd.Flags().StringArrayVarP(&f.files, "filename", "f", nil, "folder, file, or - for standard input; may be given several times")
	cmd.Flags().StringVarP(&f.output, "output", "o", "", "the lock file (default "+source.LockName+" in the folder, or beside the file)")
	cmd.Flags().BoolVar(&f.check, "check", false, "write nothing; exit code 3 when the lock file is out of date")
	cmd.Flags().StringVarP(&e.namespace, "namespace", "n", "", "namespace of documents that name none (default \"default\")")
	cmd.Flags().DurationVar(&e.timeout, "timeout", 5*time.Minute, "how long it may take in all")
	f.fetch.add(cmd.Flags())
	return cmd
}

// path is where the lock file is.
func (f *lockFlags) path() (string, error) {
	switch {
	case len(f.files) == 0:
		return "", usagef("lock needs -f FOLDER or -f FILE")
	case f.output != "":
		return f.output, nil
	case len(f.files) > 1 || f.files[0] == "-":
		return "", usagef("lock needs -o FILE where -f is not one folder or file")
	}
	if f.whole() {
		return filepath.Join(f.files[0], source.LockName), nil
	}
	return filepath.Join(filepath.Dir(f.files[0]), source.LockName), nil
}

// whole tells whether what is locked are folders: what is not in them is then locked no
// more.
func (f *lockFlags) whole() bool {
	return !slices.ContainsFunc(f.files, func(name string) bool {
		stat, err := os.Stat(name)
		return err != nil || !stat.IsDir()
	})
}

func (e *env) lock(ctx context.Context, f lockFlags, path string) error {
	manifest, err := e.read(f.files)
	if err != nil {
		return err
	}
	before, err := e.readLock(path)
	if err != nil {
		return err
	}
	asked, err := e.lockable(source.Decode(manifest, e.namespace))
	if err != nil {
		return err
	}
	client, err := f.fetch.open(slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer client.Close()
	found, err := e.resolveAll(ctx, client, asked)
	if err != nil {
		return err
	}
	next, changes := before.Update(found, time.Now(), f.whole())
	e.printLock(changes)
	switch {
	case f.check && len(changes) > 0:
		return &exitError{code: exitUnhealthy, text: path + " is out of date; chandler lock writes it anew"}
	case f.check:
		return nil
	}
	if _, err := os.Stat(path); err == nil && len(changes) == 0 {
		fmt.Fprintf(e.stderr, "%s is up to date: %s\n", path, references(len(found)))
		return nil
	}
	if err := replaceFile(path, next.Text()); err != nil {
		return err
	}
	fmt.Fprintf(e.stderr, "%s is written: %s, %d changed\n", path, references(len(found)), len(changes))
	return nil
}

// readLock reads the file as it is; one that is not there is empty.
func (e *env) readLock(path string) (source.Lock, error) {
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return source.Lock{}, nil
	}
	if err != nil {
		return source.Lock{}, err
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, maxManifest))
	if err != nil {
		return source.Lock{}, err
	}
	l, problems := source.ParseLock(text)
	if len(problems) > 0 {
		fmt.Fprintf(e.stderr, "%s is no lock file:\n", path)
		for _, p := range wire.ProblemsToProto(problems) {
			e.printProblem("", p)
		}
		return source.Lock{}, &exitError{code: exitUnhealthy, text: "correct it, or remove it to have it written anew"}
	}
	return l, nil
}

// replaceFile writes a file for everybody to read, whole or not at all.
func replaceFile(path string, text []byte) error {
	temp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name())
	_, err = temp.Write(text)
	err = errors.Join(err, temp.Chmod(0o644), temp.Close())
	if err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}

func (e *env) printLock(changes []source.LockChange) {
	w := tabwriter.NewWriter(e.stdout, 0, 4, 2, ' ', 0)
	defer w.Flush()
	for _, c := range changes {
		switch {
		case c.Before == "":
			fmt.Fprintf(w, "%s\tadded\t%s\n", c.Reference, c.After)
		case c.After == "":
			fmt.Fprintf(w, "%s\tremoved\t%s\n", c.Reference, c.Before)
		default:
			fmt.Fprintf(w, "%s\tchanged\t%s\tfrom %s\n", c.Reference, c.After, c.Before)
		}
	}
}

// wanted is a reference to be locked, with the credentials of those that have it.
type wanted struct {
	chandler.Reference
	credentials []*fetch.Credentials
}

// lockable gives the references of resources that mean something else at another time.
// The error is that of a resource that is wrong.
func (e *env) lockable(docs []source.Document) ([]wanted, error) {
	secrets := map[source.SecretName]*source.Secret{}
	wrong := 0
	for i := range docs {
		d := &docs[i]
		if d.Secret != nil {
			secrets[d.Secret.SecretName] = d.Secret
		}
		if len(d.Problems) == 0 || d.Foreign() {
			continue
		}
		wrong++
		fmt.Fprintf(e.stderr, "%s %s, document at line %d:\n", cmp.Or(strings.ToLower(d.Kind), "something"), chandler.Quote(d.Name), d.Line)
		for _, p := range wire.ProblemsToProto(d.Problems) {
			e.printProblem("", p)
		}
	}
	if wrong > 0 {
		return nil, &exitError{code: exitUnhealthy, text: fmt.Sprintf("%d of %s cannot be read; nothing is locked", wrong, chandler.Count(len(docs), "resource", "resources"))}
	}
	byName := map[string]*wanted{}
	for i := range docs {
		p := docs[i].Plugin
		if p == nil || !source.Lockable(p.Wasm) {
			continue
		}
		name := p.Wasm.Reference.String()
		if byName[name] == nil {
			byName[name] = &wanted{Reference: p.Wasm.Reference}
		}
		c, err := pullSecret(p, secrets)
		if err != nil {
			return nil, err
		}
		if all := byName[name].credentials; !slices.Contains(all, c) {
			byName[name].credentials = append(all, c)
		}
	}
	var all []wanted
	for _, w := range byName {
		all = append(all, *w)
	}
	slices.SortFunc(all, func(a, b wanted) int { return strings.Compare(a.String(), b.String()) })
	return all, nil
}

// pullSecret gives what the pull secret that a plugin names has for its registry; nil
// when that is not among the resources: docker's configuration may do.
func pullSecret(p *chandler.Plugin, secrets map[source.SecretName]*source.Secret) (*fetch.Credentials, error) {
	s := secrets[source.SecretName{Namespace: p.Namespace, Name: p.Wasm.PullSecret}]
	if p.Wasm.PullSecret == "" || s == nil || s.DockerConfigJSON == nil {
		return nil, nil
	}
	parsed, _, err := fetch.ParseSecret(s.DockerConfigJSON)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s, err)
	}
	return parsed.For(p.Wasm.Reference), nil
}

// resolveAll asks what references mean, several at a time. All failures are told.
func (e *env) resolveAll(ctx context.Context, client *fetch.Client, all []wanted) ([]source.Resolved, error) {
	const atATime = 8
	found, failed := make([]source.Resolved, len(all)), make([]error, len(all))
	var g errgroup.Group
	g.SetLimit(atATime)
	for i, w := range all {
		g.Go(func() error {
			for _, c := range w.credentials {
				found[i].Reference = w.Reference
				if found[i].Digest, failed[i] = meaning(ctx, client, w.Reference, c); failed[i] == nil {
					break
				}
			}
			return nil
		})
	}
	_ = g.Wait() // each keeps its own error
	n := 0
	for i, err := range failed {
		if err != nil {
			n++
			fmt.Fprintf(e.stderr, "%s: %v\n", all[i].Redacted(), e.registryError(err))
		}
	}
	switch {
	case n > 0 && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, &exitError{code: exitTimeout, text: fmt.Sprintf("no answer in %s; nothing is locked", e.timeout)}
	case n > 0:
		return nil, &exitError{code: exitFailed, text: fmt.Sprintf("%d of %s cannot be resolved; nothing is locked", n, references(len(all)))}
	}
	return found, nil
}

// meaning gives the digest that a reference means: of the manifest where there is one,
// else of the module, which has to be fetched for that.
func meaning(ctx context.Context, client *fetch.Client, ref chandler.Reference, c *fetch.Credentials) (string, error) {
	req := fetch.Request{Reference: ref, Credentials: c}
	if ref.Scheme == chandler.SchemeOCI {
		got, err := client.Resolve(ctx, req)
		return string(got.Digest), err
	}
	got, err := client.Pull(ctx, req, nobody{})
	return string(got.Module), err
}

// nobody takes modules and keeps none.
type nobody struct{}

func (nobody) Ingest(r io.Reader, _ chandler.ModuleDigest) (chandler.ModuleDigest, int64, error) {
	return fetch.Copy(io.Discard, r)
}

func references(n int) string { return chandler.Count(n, "reference", "references") }

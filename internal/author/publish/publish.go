// Package publish gathers what is published of a plugin: its module, checked as
// proxies would, what travels with it, and annotations that say where it is from.
// Gathered twice from the same folder, it is the same.
//
// It does not build, and pushes nothing itself: package fetch does.
package publish

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/proxywasm"
	"chandler.dev/chandler/internal/schema"
)

// Files that lie beside a module.
const (
	SchemaFile = "config.schema.json"
	ReadmeFile = "README.md"
)

// None, for a file or an annotation, leaves it out.
const None = "-"

// Annotations that say what a module is, beside those of the OCI.
const (
	AnnotationABI    = "dev.chandler.abi"
	AnnotationModule = "dev.chandler.module" // the module's digest

	ociTitle    = "org.opencontainers.image.title"
	ociVersion  = "org.opencontainers.image.version"
	ociSource   = "org.opencontainers.image.source"
	ociRevision = "org.opencontainers.image.revision"
)

const maxModule = 64 << 20

// Options say what is published; the zero value is what lies in the folder.
type Options struct {
	// Path is a module, or the folder of a plugin, which has NAME.wasm as chandler
	// build writes it; empty is the current folder.
	Path string
	// Reference is what it will be: its tag is the version.
	Reference chandler.Reference
	// Schema and Readme are files; empty is those beside the module, if they are
	// there.
	Schema, Readme string
	// Source is where the code is, and Revision which of it; empty is what git says
	// of the folder.
	Source, Revision string
	// Annotations add to the others, and win.
	Annotations map[string]string
}

// Plugin is what is published.
type Plugin struct {
	// Path is the module's file.
	Path   string
	Module []byte
	// Checked is the static check's, and Problem why it failed.
	Checked proxywasm.Module
	Problem *chandler.Problem
	// SchemaProblem is why no control plane can judge by the schema.
	SchemaProblem *chandler.Problem

	Documents   fetch.Documents
	Annotations map[string]string
}

// Gather reads what opts say.
func Gather(ctx context.Context, opts Options) (Plugin, error) {
	file, err := find(cmp.Or(opts.Path, "."))
	if err != nil {
		return Plugin{}, err
	}
	p := Plugin{Path: file}
	if p.Module, err = readFile(file, maxModule); err != nil {
		return Plugin{}, err
	}
	if p.Checked, err = proxywasm.Inspect(bytes.NewReader(p.Module), int64(len(p.Module))); err != nil && !errors.As(err, &p.Problem) {
		return Plugin{}, fmt.Errorf("%s: %w", file, err)
	}
	folder := filepath.Dir(file)
	if p.Documents.Schema, err = document(opts.Schema, folder, SchemaFile); err != nil {
		return Plugin{}, err
	}
	if p.Documents.Readme, err = document(opts.Readme, folder, ReadmeFile); err != nil {
		return Plugin{}, err
	}
	if len(bytes.TrimSpace(p.Documents.Schema)) > 0 {
		if _, problem := schema.Compile(p.Documents.Schema); problem != nil {
			p.SchemaProblem = chandler.Problemf(problem.Code, "", cmp.Or(problem.Hint, "correct the schema"), "the schema cannot be judged by: %s", problem.Message)
		}
	}
	p.Annotations = annotations(ctx, opts, &p, folder)
	return p, nil
}

// find gives the module's file.
func find(at string) (string, error) {
	info, err := os.Stat(at)
	if err != nil {
		return "", err
	}
	if !info.IsDir() {
		return at, nil
	}
	whole, err := filepath.Abs(at)
	if err != nil {
		return "", err
	}
	built := filepath.Join(at, filepath.Base(whole)+".wasm")
	if _, err := os.Stat(built); err == nil {
		return built, nil
	}
	others, err := filepath.Glob(filepath.Join(globSafe(at), "*.wasm"))
	switch {
	case err != nil:
		return "", err
	case len(others) == 1:
		return others[0], nil
	case len(others) == 0:
		return "", fmt.Errorf("%s has no module; build it with chandler build, which writes %s", at, built)
	}
	return "", fmt.Errorf("%s has %d modules and no %s; name one", at, len(others), filepath.Base(built))
}

// globSafe keeps a folder's name from being a pattern.
func globSafe(dir string) string {
	return strings.NewReplacer(`*`, `\*`, `?`, `\?`, `[`, `\[`, `\`, `\\`).Replace(dir)
}

// document reads what travels with the module.
func document(named, folder, name string) ([]byte, error) {
	switch named {
	case None:
		return nil, nil
	case "":
		b, err := readFile(filepath.Join(folder, name), fetch.MaxDocument)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return b, err
	}
	return readFile(named, fetch.MaxDocument)
}

func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if int64(len(b)) > limit {
		return nil, fmt.Errorf("%s is over %d bytes", name, limit)
	}
	return b, nil
}

// annotations says where the module is from. When it was made it does not say, so
// that the same module is the same artifact.
func annotations(ctx context.Context, opts Options, p *Plugin, folder string) map[string]string {
	all := map[string]string{
		ociTitle:         path.Base(opts.Reference.Repository),
		ociVersion:       opts.Reference.Tag,
		ociSource:        opts.Source,
		ociRevision:      opts.Revision,
		AnnotationABI:    p.Checked.ABI,
		AnnotationModule: string(chandler.Digest[chandler.ModuleDigest](p.Module)),
	}
	if all[ociVersion] == "latest" {
		all[ociVersion] = ""
	}
	if opts.Source == "" || opts.Revision == "" {
		source, revision := checkout(ctx, folder)
		all[ociSource] = cmp.Or(opts.Source, source)
		all[ociRevision] = cmp.Or(opts.Revision, revision)
	}
	maps.Copy(all, opts.Annotations)
	maps.DeleteFunc(all, func(_, v string) bool { return v == "" || v == None })
	return all
}

// Package inspect tells what a module is, wherever it lies: an artifact of a registry
// or of an archive, or a file. It says what it found also of what cannot be read, and
// what could be.
//
// It judges nothing but what it reads: whether a module may run is the matter of
// packages vet and policy.
package inspect

import (
	"cmp"
	"context"
	"errors"
	"io"
	"os"
	"slices"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/proxywasm"
	"chandler.dev/chandler/internal/schema"
	"chandler.dev/chandler/internal/trust"
)

// Report is what is found of one module. What is nil or empty is not there, or could
// not be read.
type Report struct {
	// Name is what was asked for.
	Name string `json:"name"`
	// Reference is the canonical URL, with the digest.
	Reference string            `json:"reference,omitempty"`
	Layout    string            `json:"layout,omitempty"`
	Artifact  *fetch.Descriptor `json:"artifact,omitempty"`
	// Entries are those of an index, and Manifest the one that is meant.
	Entries     []fetch.Part      `json:"entries,omitempty"`
	Manifest    *fetch.Descriptor `json:"manifest,omitempty"`
	Config      *fetch.Part       `json:"config,omitempty"`
	Layers      []fetch.Part      `json:"layers,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Blob        *Sum              `json:"blob,omitempty"`
	Module      *Module           `json:"module,omitempty"`
	Schema      *Schema           `json:"schema,omitempty"`
	Readme      *Readme           `json:"readme,omitempty"`
	Signatures  *Signatures       `json:"signatures,omitempty"`
	// Problems are why something cannot be read, or is not as it has to be.
	Problems []Problem `json:"problems,omitempty"`
}

// Sum is a digest and what it is over.
type Sum struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
}

// Module is what is in a .wasm file.
type Module struct {
	Sum
	ABI string `json:"abi,omitempty"`
	// Imports and Callbacks are functions: what it calls of the proxy, and what the
	// proxy calls of it.
	Imports   []string `json:"imports,omitempty"`
	Callbacks []string `json:"callbacks,omitempty"`
	CodeBytes int64    `json:"codeBytes,omitempty"`
	// LoadMillis is how long an Envoy is predicted to compile it.
	LoadMillis int64    `json:"loadMillis,omitempty"`
	Warnings   []string `json:"warnings,omitempty"`
}

// Schema is the JSON Schema of a plugin's configuration.
type Schema struct {
	Size       int        `json:"size"`
	Title      string     `json:"title,omitempty"`
	Properties []Property `json:"properties,omitempty"`
	// More: these are not all of its properties.
	More bool `json:"more,omitempty"`
}

// Property is one of a schema; its path is such as rules[].prefix.
type Property struct {
	Path      string `json:"path"`
	Type      string `json:"type,omitempty"`
	Required  bool   `json:"required,omitempty"`
	WriteOnly bool   `json:"writeOnly,omitempty"`
}

// Readme is the text that travels with a module.
type Readme struct {
	Size      int    `json:"size"`
	FirstLine string `json:"firstLine"`
}

// Signatures are those of the artifact.
type Signatures struct {
	Found []Signature `json:"found"`
	// By is who signed, of the keys that were given; By is empty without keys.
	By []string `json:"by,omitempty"`
}

// Signature is one that is there; by itself that says nothing.
type Signature struct {
	Where     string `json:"where"`
	MediaType string `json:"mediaType"`
}

// Problem is a chandler.Problem in JSON.
type Problem struct {
	Code    chandler.Code `json:"code"`
	Message string        `json:"message"`
	Hint    string        `json:"hint,omitempty"`
}

func (r *Report) add(p *chandler.Problem) {
	r.Problems = append(r.Problems, Problem{p.Code, p.Message, p.Hint})
}

// Options say what more is wanted.
type Options struct {
	// Keys is public keys in PEM, one of which must have signed; empty asks for none.
	Keys string
	// Dir holds temporary files; empty is the system's own place.
	Dir string
}

// Artifact tells of what req means. The error is that nothing can be told.
func Artifact(ctx context.Context, c *fetch.Client, name string, req fetch.Request, opts Options) (Report, error) {
	r := Report{Name: name}
	if req.Reference.Scheme == chandler.SchemeOCI {
		seen, err := c.Look(ctx, req)
		if err != nil {
			return r, err
		}
		r.saw(seen)
		req.Reference.Digest, req.SHA256 = chandler.ArtifactDigest(seen.Artifact.Digest), ""
		if err := r.signatures(ctx, c, req, opts.Keys); err != nil {
			return r, err
		}
		if seen.Problem != nil {
			return r, nil
		}
	}
	return r, r.pull(ctx, c, req, opts.Dir)
}

// saw takes over what was seen of an artifact.
func (r *Report) saw(seen fetch.Sight) {
	r.Reference, r.Layout, r.Artifact = seen.Reference, seen.Layout, &seen.Artifact
	r.Entries, r.Config, r.Layers, r.Annotations, r.Labels = seen.Entries, seen.Config, seen.Layers, seen.Annotations, seen.Labels
	if len(seen.Entries) > 0 && seen.Manifest.Digest != seen.Artifact.Digest {
		r.Manifest = &seen.Manifest
	}
	if text := seen.Documents.Schema; text != nil {
		var problem *chandler.Problem
		if r.Schema, problem = schemaOf(text); problem != nil {
			r.add(problem)
		}
	}
	if text := seen.Documents.Readme; text != nil {
		r.Readme = &Readme{len(text), firstLine(text)}
	}
	if seen.Problem != nil {
		r.add(seen.Problem)
	}
}

// pull fetches the module and looks into it.
func (r *Report) pull(ctx context.Context, c *fetch.Client, req fetch.Request, dir string) error {
	f, err := spool(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	a, err := c.Pull(ctx, req, sink{f})
	var known *fetch.Error
	switch {
	case errors.As(err, &known) && !known.Temporary && r.Artifact != nil:
		r.add(&known.Problem)
		return nil
	case err != nil:
		return err
	}
	if r.Reference == "" {
		r.Reference = req.Reference.Redacted()
	}
	r.Blob = &Sum{string(a.Blob), a.BlobSize}
	return r.look(f, a.Size, a.Module)
}

// File tells of a .wasm file.
func File(name string, f *os.File) (Report, error) {
	r := Report{Name: name, Layout: "file"}
	h, err := digestOf(f)
	if err != nil {
		return r, err
	}
	return r, r.look(f, h.Size, chandler.ModuleDigest(h.Digest))
}

// look reads a module.
func (r *Report) look(f io.ReaderAt, size int64, digest chandler.ModuleDigest) error {
	r.Module = &Module{Sum: Sum{string(digest), size}}
	m, err := proxywasm.Inspect(f, size)
	var problem *chandler.Problem
	switch {
	case errors.As(err, &problem):
		r.add(problem)
		return nil
	case err != nil:
		return err
	}
	r.Module.ABI, r.Module.CodeBytes, r.Module.LoadMillis = m.ABI, m.CodeBytes, proxywasm.PredictLoad(m.CodeBytes).Milliseconds()
	for _, i := range m.Imports {
		if i.Kind == proxywasm.KindFunction {
			r.Module.Imports = append(r.Module.Imports, i.Module+"."+i.Name)
		}
	}
	for _, e := range m.Exports {
		if e.Kind == proxywasm.KindFunction && strings.HasPrefix(e.Name, "proxy_on_") {
			r.Module.Callbacks = append(r.Module.Callbacks, e.Name)
		}
	}
	slices.Sort(r.Module.Imports)
	r.Module.Imports = slices.Compact(r.Module.Imports) // one may be imported twice
	slices.Sort(r.Module.Callbacks)
	for _, w := range m.Warnings {
		r.Module.Warnings = append(r.Module.Warnings, w.Error())
	}
	return nil
}

// signatures tells which there are and, with keys, whether one of them counts.
func (r *Report) signatures(ctx context.Context, c *fetch.Client, req fetch.Request, keys string) error {
	artifact := req.Reference.Digest
	found, err := c.Signatures(ctx, req.Reference, artifact, req.Credentials)
	if err != nil {
		return err
	}
	r.Signatures = &Signatures{Found: []Signature{}}
	for _, s := range found.Found {
		r.Signatures.Found = append(r.Signatures.Found, Signature{s.Where, chandler.Printable(s.MediaType, 128)})
	}
	for i := range found.Faults {
		r.add(&found.Faults[i])
	}
	if keys == "" {
		return nil
	}
	said, err := trust.New(trust.Config{Registry: c}).Verify(ctx, trust.Request{
		Reference: req.Reference, Artifact: artifact, Credentials: req.Credentials, VerificationKey: keys,
	})
	var problem *chandler.Problem
	switch {
	case errors.As(err, new(*fetch.Error)):
		return err
	case errors.As(err, &problem):
		r.add(problem)
	case err != nil:
		return err
	}
	r.Signatures.By = said.By
	return nil
}

// schemaOf reads what a schema says, or why nobody can judge by it.
func schemaOf(text []byte) (*Schema, *chandler.Problem) {
	s := &Schema{Size: len(text)}
	read, problem := schema.Compile(text)
	if problem != nil {
		return s, chandler.Problemf(problem.Code, "", cmp.Or(problem.Hint, "push the artifact again with a JSON Schema"), "the artifact's schema cannot be judged by: %s", problem.Message)
	}
	s.Title = read.Title
	outline, more := read.Outline()
	s.More = more
	for _, p := range outline {
		s.Properties = append(s.Properties, Property{p.Path, p.Type, p.Required, p.WriteOnly})
	}
	return s, nil
}

// firstLine is the first line of a text that says something, without Markdown's
// sign for a title.
func firstLine(text []byte) string {
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(strings.TrimLeft(strings.TrimSpace(line), "#")); line != "" {
			return chandler.Printable(line, 200)
		}
	}
	return ""
}

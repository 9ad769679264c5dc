package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/author/build"
	"chandler.dev/chandler/internal/author/inspect"
)

// buildCommand makes a module of a plugin's source.
func buildCommand(e *env) *cobra.Command {
	var outputs []string
	var lang string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "build [DIR]",
		Short: "Build a plugin, and check the module",
		Long: `Build the plugin whose source is in DIR, or here: find out which language it is in
and where the compiler is, compile it for a proxy, and look at the module as the control
plane will. The same source and compiler give the same bytes, wherever the folder is.

It tells what the module needs of a proxy, and how long an Envoy will take to compile it.
The exit code is 3 if the module is not fit for a proxy; then none is written.`,
		Example: `  chandler build
  chandler build plugins/basicauth -o bin/basicauth.wasm
  chandler build -o json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("build takes one folder")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg := build.Config{Environ: os.Environ(), Talk: e.stderr, Time: timeout}
			if len(args) > 0 {
				cfg.Dir = args[0]
			}
			format := "text"
			for _, o := range outputs {
				switch {
				case o == "json":
					format = o
				case cfg.Output != "" || o == "":
					return usagef("-o takes one file, and json")
				default:
					cfg.Output = o
				}
			}
			if lang != "" {
				l, err := build.ParseLanguage(lang)
				if err != nil {
					return usagef("--lang: %v", err)
				}
				cfg.Language = l
			}
			r, err := build.Build(cmd.Context(), cfg)
			if err != nil {
				return e.notBuilt(err, format)
			}
			return e.built(r, format)
		},
	}
	cmd.Flags().StringArrayVarP(&outputs, "output", "o", nil, "file to write the module to (default: in DIR, NAME.wasm with the folder's name); and json: tell what was built as JSON")
	cmd.Flags().StringVar(&lang, "lang", "", "language, where it cannot be found out: go, rust, c, cpp, assemblyscript")
	cmd.Flags().DurationVar(&timeout, "timeout", build.DefaultTime, "how long it may take")
	return cmd
}

// problemObject is a problem for machines.
type problemObject struct {
	Code    chandler.Code `json:"code"`
	Field   string        `json:"field,omitempty"`
	Message string        `json:"message"`
	Hint    string        `json:"hint,omitempty"`
}

func newProblemObject(p *chandler.Problem) problemObject {
	return problemObject{p.Code, p.Field, p.Message, p.Hint}
}

// sayProblem tells people of a problem.
func (e *env) sayProblem(prefix string, p *chandler.Problem) {
	field := ""
	if p.Field != "" {
		field = p.Field + ": "
	}
	fmt.Fprintf(e.stderr, "%s%s%s (%s)\n", prefix, field, p.Message, p.Code)
	if p.Hint != "" {
		fmt.Fprintf(e.stderr, "  %s\n", p.Hint)
	}
}

// indented writes an object to standard output.
func (e *env) indented(object any) error {
	enc := json.NewEncoder(e.stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(object)
}

// notBuilt tells why there is no module. One that is not fit for a proxy is what checks
// found; anything else is a failure.
func (e *env) notBuilt(err error, format string) error {
	var p *chandler.Problem
	if !errors.As(err, &p) {
		return err
	}
	code := exitUnhealthy
	switch p.Code {
	case chandler.CodeToolchain, chandler.CodeBuild, chandler.CodeSourceFolder, chandler.CodeSourceLanguage:
		code = exitFailed
	}
	if format == "json" {
		if err := e.indented(map[string]any{"problem": newProblemObject(p)}); err != nil {
			return err
		}
		return &exitError{code: code}
	}
	e.sayProblem("chandler: ", p)
	return &exitError{code: code}
}

// builtObject is what was built, for machines.
type builtObject struct {
	File             string                `json:"file"`
	Language         build.Language        `json:"language"`
	Toolchain        string                `json:"toolchain"`
	Digest           chandler.ModuleDigest `json:"digest"`
	Size             int64                 `json:"size"`
	CompressedSize   int64                 `json:"compressedSize"`
	CodeSize         int64                 `json:"codeSize"`
	ABI              string                `json:"abi"`
	LoadMilliseconds int64                 `json:"loadMilliseconds"`
	Callbacks        []string              `json:"callbacks"`
	Imports          []string              `json:"imports"`
	Warnings         []problemObject       `json:"warnings,omitempty"`
	Advice           []string              `json:"advice,omitempty"`
}

// built tells what was built.
func (e *env) built(r *build.Result, format string) error {
	m := &r.Module
	if format == "json" {
		o := builtObject{
			r.File, r.Language, r.Toolchain, r.Digest, m.Size, r.Packed, m.CodeBytes, m.ABI, r.Load.Milliseconds(),
			r.Callbacks(), r.Imports(), nil, r.Advice,
		}
		for i := range m.Warnings {
			o.Warnings = append(o.Warnings, newProblemObject(&m.Warnings[i]))
		}
		return e.indented(o)
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "module\t%s\n", shortPath(r.File))
	fmt.Fprintf(w, "digest\t%s\n", r.Digest)
	fmt.Fprintf(w, "size\t%s, %s compressed\n", inspect.SizeText(m.Size), inspect.SizeText(r.Packed))
	fmt.Fprintf(w, "language\t%s (%s), ABI %s\n", r.Language, r.Toolchain, m.ABI)
	fmt.Fprintf(w, "load\tabout %s in Envoy\n", inspect.LoadText(r.Load))
	fmt.Fprintf(w, "callbacks\t%s\n", folded(r.Callbacks()))
	fmt.Fprintf(w, "imports\t%s\n", folded(r.Imports()))
	if err := w.Flush(); err != nil {
		return err
	}
	for i := range m.Warnings {
		e.sayProblem("warning: ", &m.Warnings[i])
	}
	for _, a := range r.Advice {
		fmt.Fprintf(e.stderr, "note: %s\n", a)
	}
	return nil
}

// folded writes names on lines of a table, without what most of them begin with.
func folded(names []string) string {
	const width = 90
	if len(names) == 0 {
		return "none"
	}
	short := strings.NewReplacer("proxy_", "", "wasi_snapshot_preview1.", "wasi.", "wasi_unstable.", "wasi.")
	var b strings.Builder
	line := 0
	for i, name := range names {
		name = short.Replace(name)
		switch {
		case i == 0:
		case line+len(name) > width:
			b.WriteString(",\n\t")
			line = 0
		default:
			b.WriteString(", ")
		}
		b.WriteString(name)
		line += len(name) + 2
	}
	return b.String()
}

// shortPath is a path as seen from here, if that is shorter.
func shortPath(path string) string {
	here, err := os.Getwd()
	if err != nil {
		return path
	}
	if rel, err := filepath.Rel(here, path); err == nil && len(rel) < len(path) {
		return rel
	}
	return path
}

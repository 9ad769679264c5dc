package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/author/inspect"
	"chandler.dev/chandler/internal/author/publish"
	"chandler.dev/chandler/internal/fetch"
)

// registryFlags are those of commands that speak to registries, and how they show
// that they do.
type registryFlags struct {
	fetchFlags
	meter *meter
}

func (f *registryFlags) add(cmd *cobra.Command) { f.fetchFlags.add(cmd.Flags()) }

// client speaks to registries. Mirrors that fail are told of on standard error.
func (f *registryFlags) client(e *env) (*fetch.Client, error) {
	cfg, err := f.config(slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err != nil {
		return nil, err
	}
	f.meter = newMeter(e.tty, time.Now)
	cfg.Progress = f.meter.tell
	return fetch.New(cfg), nil
}

// image reads a reference to a registry.
func image(text string) (chandler.Reference, error) {
	ref, p := chandler.ParseReference(text)
	switch {
	case p != nil:
		return ref, usagef("%s: %v", chandler.Quote(text), p)
	case ref.Scheme != chandler.SchemeOCI:
		return ref, usagef("%s: only registries have artifacts; write registry/repository:tag", chandler.Quote(text))
	}
	return ref, nil
}

// withArgs wants so many arguments.
func withArgs(least, most int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || most >= 0 && len(args) > most {
			return usagef("%s needs %s", cmd.Name(), what)
		}
		return nil
	}
}

// pushFlags are the flags of "chandler push".
type pushFlags struct {
	registry registryFlags
	options  publish.Options
	format   string
	noVet    bool
	extra    []string
}

func pushCommand(e *env) *cobra.Command {
	var f pushFlags
	cmd := &cobra.Command{
		Use:   "push REF [FILE|DIR]",
		Short: "Publish a module in a registry",
		Long: `Publish a module in a registry, and print its reference with the digest.

DIR is the folder of a plugin, by default the current one, with NAME.wasm as
"chandler build" writes it. Its config.schema.json and README.md travel with the
module. Annotations say its version (the tag), its ABI, and where its code is, as git
knows it; when it was made they do not, so that pushing the same again gives the same
digest. A module that no Envoy would load, and a schema that nobody can judge by, are
not pushed.

--format cncf is the artifact of the CNCF; compat is an image with plugin.wasm, which
Istio and Envoy Gateway read, too. Credentials are those of docker's configuration.`,
		Example: `  chandler push registry.example/team/hello:v1
  chandler push registry.example/team/hello:v1 hello.wasm --format compat`,
		Args: withArgs(1, 2, "a reference, and may have a file or folder"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 2 {
				f.options.Path = args[1]
			}
			return e.push(cmd.Context(), args[0], &f)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.format, "format", string(fetch.LayoutCNCF), "cncf, or compat for Istio and Envoy Gateway")
	flags.StringArrayVar(&f.extra, "annotation", nil, "KEY=VALUE of the manifest; wins over what is written by itself, and an empty value leaves that out; may be given several times")
	flags.StringVar(&f.options.Source, "source", "", "URL of the code (default: git's remote origin)")
	flags.StringVar(&f.options.Revision, "revision", "", "revision of the code (default: git's HEAD)")
	flags.StringVar(&f.options.Schema, "schema", "", "JSON Schema of the plugin's configuration (default: config.schema.json beside the module); - for none")
	flags.StringVar(&f.options.Readme, "readme", "", "text that travels with the module (default: README.md beside it); - for none")
	flags.BoolVar(&f.noVet, "no-vet", false, "push what the check refuses, too")
	f.registry.add(cmd)
	return cmd
}

func (e *env) push(ctx context.Context, text string, f *pushFlags) error {
	ref, err := image(text)
	if err != nil {
		return err
	}
	layout := fetch.Layout(f.format)
	if layout != fetch.LayoutCNCF && layout != fetch.LayoutCompat {
		return usagef("--format %s: one of %s, %s", f.format, fetch.LayoutCNCF, fetch.LayoutCompat)
	}
	f.options.Reference, f.options.Annotations = ref, map[string]string{}
	for _, a := range f.extra {
		key, value, ok := strings.Cut(a, "=")
		if !ok || key == "" {
			return usagef("--annotation %s: write KEY=VALUE", chandler.Quote(a))
		}
		f.options.Annotations[key] = value
	}
	client, err := f.registry.client(e)
	if err != nil {
		return err
	}
	defer client.Close()
	plugin, err := publish.Gather(ctx, f.options)
	if err != nil {
		return err
	}
	for _, w := range plugin.Checked.Warnings {
		fmt.Fprintf(e.stderr, "warning: %s\n", w.Error())
	}
	for _, p := range []*chandler.Problem{plugin.Problem, plugin.SchemaProblem} {
		if p == nil {
			continue
		}
		if !f.noVet {
			return &exitError{code: exitUnhealthy, text: fmt.Sprintf("%s is not pushed: %s: %s (--no-vet pushes it all the same)", plugin.Path, p.Code, p.Error())}
		}
		fmt.Fprintf(e.stderr, "warning: %s: %s\n", p.Code, p.Error())
	}
	digest, err := client.Push(ctx, text, plugin.Module, fetch.PushOptions{Layout: layout, Annotations: plugin.Annotations, Documents: plugin.Documents})
	f.registry.meter.clear()
	if err != nil {
		return e.registryError(err)
	}
	fmt.Fprintf(e.stderr, "pushed %s: %s, ABI %s, %s; %s\n", plugin.Path, inspect.SizeText(int64(len(plugin.Module))), cmp.Or(plugin.Checked.ABI, "unknown"), layout, carried(plugin.Documents))
	ref.Tag = cmp.Or(ref.Tag, "latest")
	ref.Digest = digest
	_, err = fmt.Fprintln(e.stdout, ref)
	return err
}

// carried tells which documents travel with a module.
func carried(d fetch.Documents) string {
	var with []string
	if d.Schema != nil {
		with = append(with, "schema")
	}
	if d.Readme != nil {
		with = append(with, "readme")
	}
	if len(with) == 0 {
		return "no schema, no readme"
	}
	return "with " + strings.Join(with, " and ")
}

// registryError is the error of a registry as a command's: with the code, by which
// scripts tell one from another, and without the promise that only a control plane or an
// agent keeps.
func (e *env) registryError(err error) error {
	var p *chandler.Problem
	if errors.As(err, &p) {
		p.Hint = strings.Replace(p.Hint, fetch.HintRetry, "try again", 1)
		return fmt.Errorf("%s: %w", p.Code, err)
	}
	return err
}

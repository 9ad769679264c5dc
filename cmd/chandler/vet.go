package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/author/build"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/proxywasm"
	"chandler.dev/chandler/internal/vet"
)

// vetCommandFlags are those of "chandler vet".
type vetCommandFlags struct {
	vetFlags
	fetchFlags
	config, rootID, kind, format string
	environment                  []string
}

// vetCommand is the control plane's preflight on the author's machine.
func vetCommand(e *env) *cobra.Command {
	f := &vetCommandFlags{}
	cmd := &cobra.Command{
		Use:   "vet FILE|DIR|REFERENCE",
		Short: "Check a module as the control plane does before any proxy gets it",
		Long: `Check a module as the control plane does before any proxy gets it: a file, what
"chandler build" made of a folder, or what is in a registry. Its bytes are looked at, and
then it is started and given its configuration, in a child that is shut off and bounded.

It is started in each Envoy that --envoy names; without one in the Envoy that is in PATH
or in a folder .tools here or above, and where there is none in a Proxy-Wasm host of
chandler's own. The exit code is 3 if there is something against the module.`,
		Example: `  chandler vet . --config '{"value": "world"}'
  chandler vet hello.wasm --config config.json --envoy /usr/bin/envoy -o json
  chandler vet registry.example/team/hello:v1`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("vet needs one file, folder or reference")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return e.vet(cmd.Context(), args[0], f) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.config, "config", "", "configuration of the plugin: JSON, or a file with it; without it there is none")
	flags.StringVar(&f.rootID, "root-id", "", "root id, for plugins that ask for one (pluginName of a WasmPlugin)")
	flags.StringVar(&f.kind, "type", string(chandler.HTTP), "type of filter: HTTP or NETWORK")
	flags.StringArrayVar(&f.environment, "env", nil, "NAME=VALUE: environment variable of the VM; may be given several times")
	flags.StringVarP(&f.format, "output", "o", "text", "text or json")
	f.vetFlags.add(flags)
	f.fetchFlags.add(flags)
	// It is for one look, and to look is what it is for.
	for _, name := range []string{"no-vet", "vet-warm"} {
		_ = flags.MarkHidden(name)
	}
	return cmd
}

// vetted is what was looked at, and what was found, for machines.
type vetted struct {
	Module   string                `json:"module"`
	Digest   chandler.ModuleDigest `json:"digest,omitempty"`
	ABI      string                `json:"abi,omitempty"`
	Checks   []vettedBy            `json:"checks"`
	Warnings []problemObject       `json:"warnings,omitempty"`
	Problem  *problemObject        `json:"problem,omitempty"`

	problem *chandler.Problem
}

// vettedBy is one check that found nothing.
type vettedBy struct {
	By           string `json:"by"`
	EnvoyVersion string `json:"envoyVersion,omitempty"`
}

func (e *env) vet(ctx context.Context, target string, f *vetCommandFlags) error {
	release, err := f.release()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "chandler-vet-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path, err := e.moduleToVet(ctx, target, dir, f)
	if err != nil {
		return err
	}
	v := &vetted{Module: target, Checks: []vettedBy{}}
	if err := e.examine(ctx, v, release, path, filepath.Join(dir, "trials"), f); err != nil {
		return err
	}
	return e.sayVetted(v, f.format)
}

// release is what the control plane would make of a plugin with these flags.
func (f *vetCommandFlags) release() (*chandler.Release, error) {
	r := &chandler.Release{Key: chandler.Key{Namespace: "default", Name: "plugin"}}
	r.Type, r.RootID = chandler.FilterType(f.kind), f.rootID
	if r.Type != chandler.HTTP && r.Type != chandler.Network {
		return nil, usagef("--type %s: one of HTTP, NETWORK", f.kind)
	}
	if f.format != "text" && f.format != "json" {
		return nil, usagef("-o %s: one of text, json", f.format)
	}
	for _, kv := range f.environment {
		name, value, ok := strings.Cut(kv, "=")
		if !ok || name == "" {
			return nil, usagef("--env %s: write NAME=VALUE", kv)
		}
		r.Env = append(r.Env, chandler.EnvVar{Name: name, Value: value})
	}
	if f.config == "" {
		return r, nil
	}
	text := []byte(f.config)
	if !strings.HasPrefix(strings.TrimSpace(f.config), "{") {
		var err error
		if text, err = readBounded(f.config, maxConfig); err != nil {
			return nil, usagef("--config: %v", err)
		}
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, text); err != nil {
		return nil, usagef("--config: not JSON: %v", err)
	}
	if compact.Bytes()[0] != '{' {
		return nil, usagef("--config: a configuration is a JSON object")
	}
	r.Config = compact.Bytes()
	return r, nil
}

// maxConfig bounds a configuration; a resource cannot hold more.
const maxConfig = 1 << 20

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return b, err
}

// moduleToVet is the path of the module that is meant: a file, that which a folder is
// built to, or else what a reference names, fetched into dir.
func (e *env) moduleToVet(ctx context.Context, target, dir string, f *vetCommandFlags) (string, error) {
	info, err := os.Stat(target)
	switch {
	case err == nil && info.IsDir():
		path, err := build.OutputOf(target)
		if err != nil {
			return "", err
		}
		if _, err := os.Stat(path); err != nil {
			return "", &exitError{code: exitFailed, text: fmt.Sprintf("there is no module in %s yet: chandler build %s", target, target)}
		}
		return path, nil
	case err == nil:
		return target, nil
	case !errors.Is(err, os.ErrNotExist):
		return "", err
	}
	ref, p := chandler.ParseReference(target)
	if p != nil || ref.Scheme == chandler.SchemeFile || strings.HasSuffix(target, ".wasm") && !strings.Contains(target, "/") {
		return "", usagef("there is no file %s, and it is no reference to a registry either", chandler.Quote(target))
	}
	client, err := f.fetchFlags.open(slog.New(slog.DiscardHandler))
	if err != nil {
		return "", err
	}
	defer client.Close()
	sink := &fileSink{path: filepath.Join(dir, "plugin.wasm")}
	defer sink.abort()
	if _, err := client.Pull(ctx, fetch.Request{Reference: ref}, sink); err != nil {
		return "", e.registryError(err)
	}
	return sink.path, sink.file.Commit()
}

// examine looks at a module's bytes, and has it started.
func (e *env) examine(ctx context.Context, v *vetted, release *chandler.Release, path, trials string, f *vetCommandFlags) error {
	m, digest, err := inspectFile(path)
	if !errors.As(err, &v.problem) && err != nil {
		return err
	}
	v.Digest, v.ABI = digest, m.ABI
	for i := range m.Warnings {
		v.Warnings = append(v.Warnings, newProblemObject(&m.Warnings[i]))
	}
	if v.problem != nil {
		return nil
	}
	v.Checks = append(v.Checks, vettedBy{By: chandler.JudgeStatic, EnvoyVersion: proxywasm.EnvoyVersion})
	release.Program.Module = &chandler.Module{Digest: digest, Size: m.Size}
	if path, err = filepath.Abs(path); err != nil {
		return err
	}
	if len(f.envoys) == 0 {
		if envoy := nearEnvoy(filepath.Dir(path)); envoy != "" {
			f.envoys = []string{envoy}
		}
	}
	f.warm = 0 // one look each
	vetter, err := f.vetFlags.open(ctx, trials, prometheus.NewRegistry(), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer vetter.Close()
	verdicts, err := vetter.Vet(ctx, vet.Request{Release: release, Path: path})
	if !errors.As(err, &v.problem) && err != nil {
		return err
	}
	for _, said := range verdicts {
		v.Checks = append(v.Checks, vettedBy{By: said.Judge, EnvoyVersion: said.EnvoyVersion})
	}
	return nil
}

// inspectFile is the static check of a file. The digest is there whatever it says.
func inspectFile(path string) (m proxywasm.Module, digest chandler.ModuleDigest, err error) {
	f, err := os.Open(path)
	if err != nil {
		return m, "", err
	}
	defer f.Close()
	digest, size, err := fetch.Copy(io.Discard, f)
	if err != nil {
		return m, "", err
	}
	m, err = proxywasm.Inspect(f, size)
	return m, digest, err
}

// nearEnvoy is the Envoy in PATH, or in a folder .tools of dir, or of here, or above;
// empty: there is none.
func nearEnvoy(dir string) string {
	if path, err := exec.LookPath("envoy"); err == nil {
		if abs, err := filepath.Abs(path); err == nil {
			return abs
		}
	}
	for _, from := range []string{dir, "."} {
		at, err := filepath.Abs(from)
		for ; err == nil; at = filepath.Dir(at) {
			path := filepath.Join(at, ".tools", "envoy")
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
				return path
			}
			if at == filepath.Dir(at) {
				break
			}
		}
	}
	return ""
}

// sayVetted tells what was found.
func (e *env) sayVetted(v *vetted, format string) error {
	var end error
	if v.problem != nil {
		object := newProblemObject(v.problem)
		v.Problem, end = &object, &exitError{code: exitUnhealthy}
	}
	if format == "json" {
		return cmp.Or(e.indented(v), end)
	}
	for _, c := range v.Checks {
		switch c.By {
		case chandler.JudgeStatic:
			fmt.Fprintf(e.stdout, "static check  ok: ABI %s, what it calls is there in Envoy %s\n", v.ABI, c.EnvoyVersion)
		case chandler.JudgeHost:
			fmt.Fprintf(e.stdout, "started       ok in a Proxy-Wasm host; there is no Envoy here, see --envoy\n")
		default:
			fmt.Fprintf(e.stdout, "started       ok in Envoy %s\n", c.EnvoyVersion)
		}
	}
	for _, w := range v.Warnings {
		e.sayProblem("warning: ", &chandler.Problem{Code: w.Code, Field: w.Field, Message: w.Message, Hint: w.Hint})
	}
	if v.problem != nil {
		e.sayProblem(v.Module+": ", v.problem)
	}
	return end
}

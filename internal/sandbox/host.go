package sandbox

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/wasmhost"
)

// What a host takes without a plugin, and to compile one, by the size of the module.
// Measured: 8 MiB beside its program, and 19 bytes a byte for a module of the Go compiler.
const (
	hostMemory        = 48 << 20
	hostCompileMemory = 32
)

// Host judges plugins where there is no Envoy: it starts them in a Proxy-Wasm host. It
// is safe for concurrent use.
type Host struct {
	cfg  Config
	jail jail
	args []string
}

// OpenHost gives a host that runs as a child: program with args, which has to call
// wasmhost.Serve with the one argument that follows those, or with none. Of cfg all
// but Envoy counts.
func OpenHost(ctx context.Context, cfg Config, program string, args ...string) (*Host, error) {
	cfg.Time, cfg.Memory = cmp.Or(cfg.Time, DefaultTime), cmp.Or(cfg.Memory, DefaultMemory)
	h := &Host{cfg: cfg, jail: jail{program: program, dir: cfg.Dir}, args: args}
	ctx, cancel := context.WithTimeout(ctx, versionTime)
	defer cancel()
	return h, h.jail.settle(ctx, func() error {
		return h.jail.within(func(dir string) error {
			out, end, err := h.jail.run(ctx, dir, hostMemory, args...)
			if err != nil || end == nil && json.Valid(out) {
				return err
			}
			return fmt.Errorf("the host does not start: %w: %s", cmp.Or(end, errSilent), chandler.Printable(string(last(out)), 512))
		})
	})
}

// Name is that of the judge.
func (h *Host) Name() string { return chandler.JudgeHost }

// Version is empty: it is no Envoy of any.
func (h *Host) Version() string { return "" }

// Weak says what children could not be denied here; empty: nothing.
func (h *Host) Weak() string { return h.jail.weak }

const hostTitle = "the Proxy-Wasm host"

// Judge tells what there is against a plugin that is a module; nil: nothing. The
// error says that nothing is known of it. Probes are not asked: there is no stream.
func (h *Host) Judge(ctx context.Context, c Case) (problem *chandler.Problem, err error) {
	err = h.jail.within(func(dir string) (err error) { problem, err = h.try(ctx, c, dir); return err })
	return problem, err
}

func (h *Host) try(ctx context.Context, c Case, dir string) (*chandler.Problem, error) {
	a := c.Attachment
	key := a.Key.String()
	trial := wasmhost.Trial{
		Plugin: wasmhost.Plugin{Name: key, RootID: a.RootID, VMID: key, Config: a.Config},
		Module: c.ModulePath, Env: map[string]string{}, Memory: h.cfg.Memory,
	}
	for _, v := range a.Env {
		if !v.Host {
			trial.Env[v.Name] = v.Value
		}
	}
	b, err := json.Marshal(trial)
	if err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	file := filepath.Join(dir, "trial.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, h.cfg.Time)
	defer cancel()
	out, end, err := h.jail.run(limited, dir, hostMemory+hostCompileMemory*c.size()+h.cfg.Memory, append(h.args[:len(h.args):len(h.args)], file)...)
	var said wasmhost.Verdict
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("sandbox: %w", err)
	case errors.Is(end, errMemory):
		return h.cfg.tooLarge(hostTitle), nil
	case limited.Err() != nil:
		return h.cfg.tooLong(hostTitle), nil
	case end == nil && json.Unmarshal(out, &said) == nil && said.Judged:
		return said.Problem, nil
	case crashed(end):
		return crash(hostTitle, end), nil
	}
	return nil, fmt.Errorf("sandbox: %s gave no verdict: %w: %s", hostTitle, cmp.Or(end, errSilent), chandler.Printable(string(last(out)), 512))
}

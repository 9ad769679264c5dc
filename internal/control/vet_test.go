package control_test

import (
	"context"
	"sync/atomic"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/sandbox"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/vet"
)

// judge is an Envoy of a version.
type judge struct {
	version string
	says    func(context.Context, sandbox.Case) (*chandler.Problem, error)
}

func (judge) Name() string      { return chandler.JudgeEnvoy }
func (j judge) Version() string { return j.version }
func (judge) Weak() string      { return "" }

func (j judge) Judge(ctx context.Context, c sandbox.Case) (*chandler.Problem, error) {
	if j.says == nil {
		return nil, nil
	}
	return j.says(ctx, c)
}

// Where the operator asks for it, a release is kept from proxies in whose version of
// Envoy nobody tried it, and the status says so; they keep what they have.
func TestEnvoyVersionsRequired(t *testing.T) {
	t.Parallel()
	var required atomic.Bool
	r := &rig{t: t, registry: &registry{mods: map[string][]byte{}}, dir: t.TempDir(), records: record.NewMemory(), objects: map[string]source.Object{}}
	r.settle = func(cfg *control.Config) {
		cfg.Vetter = vet.New(vet.Config{Judges: []vet.Judge{judge{version: "1.40.0"}}})
		cfg.RequireEnvoyVersions = required.Load
	}
	r.start()
	one, two := module.Append(), module.Deny(401)
	r.set("auth:v1", one)
	r.set("auth:v2", two)
	young, old := gateway, gateway
	young.Name, young.EnvoyVersion = "young", "1.40.0"
	old.Name, old.EnvoyVersion = "old", "1.36.4"
	a, b := r.join(young), r.join(old)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	a.has("auth", runs(one))
	b.has("auth", runs(one))
	warned := func() string {
		for _, w := range r.status("auth").Warnings {
			if w.Code == chandler.CodeEnvoyUntried {
				return w.Message
			}
		}
		return ""
	}
	const shown = "tried in Envoy 1.40.0; not in 1.36.4, which 1 proxy runs"
	eventually(t, func() bool { return warned() == shown }, warned)

	required.Store(true)
	r.Reconsider()
	r.apply("auth", "oci://reg.example/auth:v2", nil)
	a.has("auth", runs(two))
	eventually(t, func() bool { return warned() == shown+"; they keep what they have" }, warned)
	b.has("auth", runs(one))

	required.Store(false)
	r.Reconsider()
	b.has("auth", runs(two))
}

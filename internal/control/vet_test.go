package control_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

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

var floodFor = flag.Duration("flood", 10*time.Second, "how long the flood of bad plugins lasts; a minute is what is promised")

// floodDeadline is how long a trial may take.
const floodDeadline = 20 * time.Second

// flooder is an Envoy as hostile plugins have it: by their configuration they come to
// no end and take the whole deadline, are refused, or crash it. What is good takes as
// long as a small module does.
func flooder(ctx context.Context, c sandbox.Case) (*chandler.Problem, error) {
	const small = 100 * time.Millisecond
	what, _, _ := strings.Cut(string(c.Attachment.Config), " ")
	takes := small
	if what == "loops" {
		takes = floodDeadline
	}
	select {
	case <-time.After(takes):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	switch what {
	case "loops":
		return chandler.Problemf(chandler.CodeWasmTimeout, "", "", "no end"), nil
	case "refused":
		return chandler.Problemf(chandler.CodeWasmConfigure, "", "", "no"), nil
	case "crashes":
		return chandler.Problemf(chandler.CodeWasmCrash, "", "", "SIGSEGV"), nil
	case "fails":
		return nil, errors.New("no verdict")
	}
	return nil, nil
}

// Whoever floods the control plane with bad plugins, a hundred a second, waits for
// himself: others' plugins, new ones and changed ones, have their release within two
// seconds all the time, and so has a change of what the flooder had in force before. That
// is held in a bubble of time, and for a minute on a machine that does nothing else.
func TestFloodOfBadPlugins(t *testing.T) {
	t.Parallel()
	if *floodFor >= time.Minute {
		floodOfBadPlugins(t)
		return
	}
	synctest.Test(t, floodOfBadPlugins)
}

func floodOfBadPlugins(t *testing.T) {
	r := &rig{t: t, registry: &registry{mods: map[string][]byte{}}, dir: t.TempDir(), records: record.NewMemory(), objects: map[string]source.Object{}}
	r.settle = func(cfg *control.Config) {
		cfg.Vetter = vet.New(vet.Config{Judges: []vet.Judge{judge{version: "1.40.0", says: flooder}}, Trials: 2})
	}
	r.start()
	r.set("bad:v1", module.Append())
	r.set("good:v1", module.Append())
	var slowest time.Duration
	good := func(namespace, name string, generation int) {
		began := time.Now()
		r.putIn(namespace, name, "oci://reg.example/good:v1", fmt.Sprint("good ", name, generation))
		r.deliver()
		want := r.objects[name].Generation
		for {
			if s := r.status(name); s.Release != nil && s.Release.Generation == want {
				break
			}
			if time.Since(began) > time.Minute {
				t.Fatalf("%s has no release after a minute: %+v", name, r.status(name).Conditions)
			}
			time.Sleep(50 * time.Millisecond) // between looks at a condition
		}
		slowest = max(slowest, time.Since(began))
	}
	good("flood", "before", 1)
	slowest = 0
	bad := []string{"loops", "loops", "loops", "refused", "crashes", "fails"}
	n := 0
	for i := range int(*floodFor / (500 * time.Millisecond)) {
		for range 50 { // those of half a second
			what := bad[n%len(bad)]
			r.putIn(fmt.Sprint("flood", []string{"", "2"}[n%2]), fmt.Sprint("bad-", n), "oci://reg.example/bad:v1", fmt.Sprint(what, " ", n))
			n++
		}
		r.deliver()
		began := time.Now()
		switch i % 3 {
		case 0:
			good("shop", fmt.Sprint("new-", i), 1)
		case 1:
			good("shop", "changed", i)
		case 2:
			good("flood", "before", i)
		}
		time.Sleep(500*time.Millisecond - time.Since(began)%(500*time.Millisecond))
	}
	t.Logf("%d bad plugins; the slowest good one took %s", n, slowest)
	if limit := 2 * time.Second; slowest > limit {
		t.Errorf("a good plugin took %s, limit %s", slowest, limit)
	}
}

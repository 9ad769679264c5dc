package agent

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/fetch/hosts"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/deltaclient"
	"chandler.dev/chandler/internal/xds/envoyads"
)

func TestNewRefuses(t *testing.T) {
	t.Parallel()
	good := Config{Node: chandler.Node{Name: "n", Namespace: "ns"}, Data: "/nowhere", EnvoyArgs: []string{"-c", "a.yaml"}}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for why, change := range map[string]func(*Config){
		"a name and a namespace":  func(c *Config) { c.Node.Namespace = "" },
		"directory of its own":    func(c *Config) { c.Data = "" },
		"name no configuration":   func(c *Config) { c.EnvoyArgs = nil },
		`"mirror" or "origin"`:    func(c *Config) { c.FetchFrom = "the moon" },
		"which needs one":         func(c *Config) { c.FetchFrom = FromMirror },
		"a folder of mirrors":     func(c *Config) { c.Hosts = &hosts.Directory{} },
		"hot restart":             func(c *Config) { c.EnvoyArgs = []string{"-c", "a.yaml", "--restart-epoch", "1"} },
		"there is no group":       func(c *Config) { c.DataGroup = "no-such-group" },
		"is not to end with it":   func(c *Config) { c.NoChild, c.LeaveEnvoy = true, true },
		"it is not its parent":    func(c *Config) { c.NoChild, c.Restart = true, RestartOnFailure },
		"no address":              func(c *Config) { c.NoChild, c.EnvoyAdmin = true, "nonsense" },
		"lacks its value":         func(c *Config) { c.EnvoyArgs = []string{"-c"} },
		"reads YAML and JSON, no": func(c *Config) { c.EnvoyArgs = []string{"-c", "a.pb"} },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("error %v, want one that says %q", err, why)
		}
	}
	if _, err := os.Stat("/nowhere"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("New has written something")
	}
}

// Two agents do not share a directory, and what a crash left is swept.
func TestAgentDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	a := &Agent{cfg: Config{Data: dir}, log: slog.New(slog.DiscardHandler)}
	lock, err := a.openDirectory()
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, error %v", st.Mode(), err)
	}
	var problem *chandler.Problem
	if _, err := a.openDirectory(); !errors.As(err, &problem) || problem.Code != chandler.CodeCacheLocked {
		t.Errorf("a second agent gets %v", err)
	}
	for _, where := range []string{dir, a.envoyDir()} {
		left, err := durable.Create(durable.OS(), filepath.Join(where, "lastgood"))
		if err != nil {
			t.Fatal(err)
		}
		_ = left // never ended
	}
	if err := lock.Unlock(); err != nil {
		t.Fatal(err)
	}
	if lock, err = a.openDirectory(); err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	for _, where := range []string{dir, a.envoyDir()} {
		entries, err := os.ReadDir(where)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if durable.IsTemp(e.Name()) {
				t.Errorf("%s stays in %s", e.Name(), where)
			}
		}
	}
}

// openStore gives a store of modules, of which none must be leased in the end.
func openStore(t *testing.T, cfg store.Config) *store.Store {
	t.Helper()
	cfg.Dir = t.TempDir()
	modules, err := store.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, e := range modules.List() {
			if e.Leased {
				t.Errorf("%s is leased still", e.Digest)
			}
		}
		_ = modules.Close()
	})
	return modules
}

// bareAgent is an agent without an Envoy and without services.
func bareAgent(t *testing.T) *Agent {
	t.Helper()
	modules := openStore(t, store.Config{})
	log := slog.New(slog.DiscardHandler)
	a := &Agent{
		cfg: Config{Data: t.TempDir(), Metrics: prometheus.NewRegistry(), Log: log}, log: log, store: modules,
		inbox: make(chan message, 16), reporter: newReporter(chandler.Node{}), attaching: map[chandler.Key]attaching{}, failures: failures{},
		leases: map[chandler.ModuleDigest]*store.Lease{}, assignedAt: map[chandler.Key]time.Time{},
		envoyLog: &envoyLog{path: filepath.Join(t.TempDir(), "envoy.log")},
		state:    NewState(newProxy(nil).s.set),
	}
	a.metrics = newMetrics(a.cfg.Metrics, modules)
	a.ads = envoyads.New(envoyads.Config{Events: func(envoyads.Event) {}})
	a.loader = newLoader(modules, a.cfg, a.metrics)
	t.Cleanup(a.loader.close)
	a.loader.done = func(ev Loaded, lease *store.Lease) { a.inbox <- message{event: ev, lease: lease} }
	return a
}

// ingested gives a module that is in the store.
func ingested(t *testing.T, a *Agent) chandler.ModuleDigest {
	t.Helper()
	digest, _, err := a.store.Ingest(bytes.NewReader(bigModule()), "")
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

// A last good set that a full disk refuses is written when there is room.
func TestLastGoodIsTriedAgain(t *testing.T) {
	a := bareAgent(t)
	missing := filepath.Join(a.cfg.Data, "missing")
	a.cfg.Data = missing
	synctest.Test(t, func(t *testing.T) {
		a.save(SaveLastGood{Envoy: "older"}, time.Now())
		a.save(SaveLastGood{Envoy: "newest"}, time.Now())
		if wait := a.untilWake(); wait > saveRetry {
			t.Errorf("the next try is in %v", wait)
		}
		if err := os.Mkdir(missing, 0o700); err != nil {
			t.Fatal(err)
		}
		a.step(t.Context(), message{event: Tick{}})
		if _, ok, _ := loadLastGood(durable.OS(), missing); ok {
			t.Error("it was tried again too soon")
		}
		time.Sleep(saveRetry) // of the bubble's clock
		a.step(t.Context(), message{event: Tick{}})
		if got, ok, err := loadLastGood(durable.OS(), missing); !ok || err != nil || got.Envoy != "newest" {
			t.Errorf("written: %+v, %v, %v", got, ok, err)
		}
		if wait := a.untilWake(); wait != time.Hour {
			t.Errorf("it would wake in %v", wait)
		}
	})
}

// An assignment is loaded, pushed and shown; leases last as long as they are
// needed, and no longer.
func TestAgentStep(t *testing.T) {
	leaks.Check(t)
	a, v := bareAgent(t), version("a")
	v.Program.Module.Digest = ingested(t, a)
	ctx := t.Context()
	a.step(ctx, message{event: EnvoyStarted{Envoy: "e"}})
	a.step(ctx, message{event: Assigned{Changed: []Version{v}}})
	a.step(ctx, <-a.inbox)
	if len(a.leases) != 1 || len(a.assignedAt) != 1 {
		t.Errorf("%d leases, %d plugins not pushed", len(a.leases), len(a.assignedAt))
	}
	a.step(ctx, message{event: Subscribed{Slot: authn}})
	if got := a.view.Load(); len(got.report) != 1 || got.report[0].State != chandler.StateReady || !got.pushing || len(got.unready) == 0 {
		t.Errorf("shown: %+v", got)
	}
	if (*a.known.Load())[v.Key.String()] != "a" {
		t.Errorf("known: %v", *a.known.Load())
	}
	a.step(ctx, message{event: Assigned{Removed: []chandler.Key{v.Key}}})
	if len(a.leases) != 0 || len(a.assignedAt) != 0 {
		t.Errorf("after the removal: %d leases, %d plugins not pushed", len(a.leases), len(a.assignedAt))
	}

	// What comes when nobody reads any more is released too.
	a.step(ctx, message{event: Assigned{Changed: []Version{v}}})
	a.loader.wait()
	a.releaseAll()
}

func TestConversionsAreCounted(t *testing.T) {
	a, v := bareAgent(t), version("a")
	want := func(n float64, result string) {
		t.Helper()
		if got := counted(t, a.cfg.Metrics, "istio_agent_wasm_config_conversion_count", result); got != n {
			t.Errorf("%v conversions with %s, want %v", got, result, n)
		}
	}
	a.observe(Assigned{Changed: []Version{v}}, time.Unix(0, 0))
	a.observe(Loaded{Err: &LoadError{}}, time.Unix(1, 0))
	want(1, "fetch_failure")
	push := Push{Slot: authn, Config: newProxy(t).s.compose(&slot{Slot: authnSlot}, nil).config, Wasm: []chandler.Key{v.Key}}
	a.push(push, time.Unix(2, 0))
	a.push(push, time.Unix(3, 0)) // once more, as after a NACK
	want(1, "success")
	a.run1(t.Context(), Load{Source: Source{Path: "/nowhere", Version: "1"}, Attempt: 1}, time.Unix(4, 0))
	a.run1(t.Context(), Load{Source: Source{Path: "/nowhere", Version: "2"}, Attempt: 2}, time.Unix(5, 0))
	a.loader.wait()
	if got := counted(t, a.cfg.Metrics, "chandler_agent_fetch_retries_total"); got != 1 {
		t.Errorf("%v retries are counted", got)
	}
}

// What cannot be read of an update is refused by name, and the rest is taken.
func TestAssignedTakesWhatItCan(t *testing.T) {
	a, v := bareAgent(t), version("a")
	v.Release = chandler.ReleaseID(digestOf("a").Hex())
	body, xds, err := wire.MarshalAttachment(&v.Attachment)
	if err != nil {
		t.Fatal(err)
	}
	err = a.assigned(t.Context(), deltaclient.Update{
		Changed: []deltaclient.Resource{{Name: "WasmPlugin/ns/bad", Version: "1", Body: []byte("\xff")}, {Name: v.Key.String(), Version: xds, Body: body.Value}},
		Removed: []string{"WasmPlugin/ns/gone", "no key"},
	})
	if err == nil || !strings.Contains(err.Error(), "WasmPlugin/ns/bad") {
		t.Errorf("refused with %v", err)
	}
	ev := (<-a.inbox).event.(Assigned)
	if len(ev.Changed) != 1 || ev.Changed[0].Key != v.Key || ev.Changed[0].Version != xds || len(ev.Removed) != 1 || ev.Removed[0].Name != "gone" {
		t.Errorf("taken: %+v, refused with %v", ev, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a.inbox = nil // full for ever
	if err := a.assigned(ctx, deltaclient.Update{}); !errors.Is(err, context.Canceled) {
		t.Errorf("at the end: %v", err)
	}
}

// The reason of a refusal is what Envoy logged since the push, not before it.
func TestRefusalsReasonIsOfThePush(t *testing.T) {
	a, v := bareAgent(t), version("a")
	log := logFile{t, a.envoyLog.path}
	log.write(wasmError("wasm log " + v.Key.String() + ": of a request"))
	v.Program.Module.Digest = ingested(t, a)
	a.step(t.Context(), message{event: EnvoyStarted{Envoy: "e", Open: true}})
	a.step(t.Context(), message{event: Assigned{Changed: []Version{v}}})
	a.step(t.Context(), <-a.inbox)
	a.step(t.Context(), message{event: Subscribed{Slot: authn}})
	log.write(wasmError("wasm log "+v.Key.String()+": of the push") + rejectedLine)
	sent := a.state.slot(authn).sent
	a.envoyEvent(t.Context(), envoyads.Nacked{Slot: authn, Version: sent.version, Message: "Unable to create Wasm plugin " + v.Key.String()})
	a.step(t.Context(), <-a.inbox)
	if st := a.view.Load().report[0]; st.State != chandler.StateRejected || st.Message != "of the push" {
		t.Errorf("reported: %s %q", st.State, st.Message)
	}
	if got := counted(t, a.cfg.Metrics, "chandler_agent_nack_total", "AUTHN"); got != 1 {
		t.Errorf("%v refusals are counted", got)
	}
	a.loader.wait()
	a.releaseAll()
}

// A log path that cannot be read again is not used: reading it could take the
// agent's own output away.
func TestEnvoyLogPath(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	mine := filepath.Join(dir, "mine.log")
	writeFile(t, mine, []byte("before\n"))
	for given, want := range map[string]string{"/dev/null": filepath.Join(dir, "envoy", "envoy.log"), "": filepath.Join(dir, "envoy", "envoy.log"), mine: mine} {
		a := &Agent{cfg: Config{Data: dir}, log: slog.New(slog.DiscardHandler), envoyArgs: envoyArgs{logPath: given}}
		l := a.openEnvoyLog()
		if l.path != want || l.own != (want != mine) || l.own != (a.envoyArgs.logPath == "") {
			t.Errorf("with %q Envoy logs to %s (own: %v, argument %q)", given, l.path, l.own, a.envoyArgs.logPath)
		}
		if l.path == mine && len(l.since(0)) != 0 {
			t.Errorf("what was there before is copied on: %q", l.since(0))
		}
	}
}

package main

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chandler.dev/chandler/internal/sandbox"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/catalogue"
	"chandler.dev/chandler/internal/testenv/module"
)

var update = flag.Bool("update", false, "write docs/metrics.md anew")

// lua is a plugin that needs no registry, with a plan.
const lua = `apiVersion: extensions.istio.io/v1alpha1
kind: TrafficExtension
metadata: {name: p, namespace: edge, annotations: {chandler.dev/rollout: "50%"}}
spec: {lua: {inlineCode: "function envoy_on_request(handle) end"}}
`

// Everything that is switched on, the metrics of "chandler serve" follow the conventions,
// and docs/metrics.md has them all.
func TestMetrics(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	file("plugins/p.yaml", lua)
	ca := authority.New(t)
	own := ca.Issue(authority.Leaf{})
	f := serveFlags{
		plugins: filepath.Join(dir, "plugins"), listen: "127.0.0.1:0", config: file("chandler.yaml", "strict: false\n"),
		fetch: fetchFlags{own: &listeners{}}, tls: tlsFlags{cert: own.Cert, key: own.Key, clientCA: ca.File}, vet: vetFlags{envoys: []string{module.Envoy(t)}, timeout: time.Minute, memory: sandbox.DefaultMemory},
	}
	reg, log := prometheus.NewRegistry(), slog.New(slog.DiscardHandler)
	op, err := openOperator(f.config, reg, log)
	if err != nil {
		t.Fatal(err)
	}
	modules, err := store.Open(store.Config{Dir: filepath.Join(dir, "modules")})
	if err != nil {
		t.Fatal(err)
	}
	defer modules.Close()
	vetter, err := f.vet.open(t.Context(), filepath.Join(dir, "vet"), reg, log)
	if err != nil {
		t.Fatal(err)
	}
	defer vetter.Close()
	traces, end, err := openTraces("http://127.0.0.1:1", reg, log)
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	plane, _, _, err := newControl(f, dir, op, modules, vetter, traces, reg, log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- plane.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for deadline := time.Now().Add(time.Minute); ; {
		views, err := plane.Objects(ctx)
		if err == nil && len(views) == 1 && views[0].Status.Release != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the plugin has no release: %v %+v", err, views)
		}
		select {
		case <-plane.Changed():
		case <-time.After(100 * time.Millisecond):
		}
	}
	foreign := func(name string) bool { return name == "pilot_total_xds_rejects" } // Istio's
	catalogue.Hold(t, "../../docs/metrics.md", "chandler serve", catalogue.Of(t, reg, foreign), *update)
}

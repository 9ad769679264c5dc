//go:build upgrade

package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// A fleet of the last release becomes one of what is built here, as docs/upgrades.md
// has it: the control plane, then one agent after the other; and it goes back the other
// way round. Under 500 requests a second, on connections of HTTP/1.1 and HTTP/2, streams
// and a WebSocket that are held open all the while: no request fails, no connection ends,
// each Envoy is taken over and sent nothing again, the registry is asked nothing, nothing
// is assigned anew, and at every station a change takes effect.
func TestUpgradeUnderLoad(t *testing.T) {
	older, newer := last(t), current()
	w := controlled(t, older)
	w.upstream.Close()
	w.upstream = httptest.NewServer(http.HandlerFunc(steadyUpstream))
	t.Cleanup(w.upstream.Close)
	port := freePort(t)
	a := w.skewed(t, "a", older, w.gateway(listener{port: port, name: "in", upgrades: "[{upgrade_type: websocket}]"}))
	b := w.skewed(t, "b", older, w.gateway(listener{port: freePort(t), name: "in"}))
	url := w.push("append:v1", module.Append())
	w.apply(plugin("basic", w.push("basic:v1", sample(t)), "phase: AUTHN", "pluginConfig: "+realmConfig(0)) + "---\n" +
		plugin("p", url, tag("n0")))
	guard := &guard{}
	s := startSteady(t, port, ask{begin: guard.begin, right: guard.denied},
		ask{header: http.Header{"Authorization": {"Basic b2s6dGVzdA=="}}, begin: guard.begin, right: guard.passed})
	before := proxyStats(t, a.proxy)

	for i, station := range []struct {
		what    string
		replace func()
	}{
		{"the newer control plane", func() { w.replaceControl(newer) }},
		{"the newer agent a", func() { a.become(newer) }},
		{"the newer agent b", func() { b.become(newer) }},
		{"the older agent a", func() { a.become(older) }},
		{"the older agent b", func() { b.become(older) }},
		{"the older control plane", func() { w.replaceControl(older) }},
	} {
		w.unmoved(station.what, station.replace, a, b)
		guard.last.Add(1)
		w.apply(plugin("p", url, tag(fmt.Sprint("n", i+1))))
		guard.settled.Add(1)
		saw := s.answers.Load()
		eventually(t, 60*time.Second, "four seconds' worth of requests see the change", func() (bool, string) {
			return s.answers.Load() > saw+4*int64(steadyRate), "the load stands still"
		})
	}
	after := proxyStats(t, a.proxy)
	s.end(t)
	if before.harm != after.harm {
		t.Errorf("listeners or connections were touched: before %+v, after %+v", before.harm, after.harm)
	}
	t.Logf("%d requests, %d exchanges", s.answers.Load(), s.exchanged.Load())
}

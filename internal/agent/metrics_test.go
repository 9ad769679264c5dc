package agent

import (
	"flag"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/testenv/catalogue"
)

var update = flag.Bool("update", false, "write docs/metrics.md anew")

// The agent's metrics follow the conventions, and docs/metrics.md has them all.
func TestMetrics(t *testing.T) {
	t.Parallel()
	modules, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer modules.Close()
	reg := prometheus.NewRegistry()
	m := newMetrics(reg, modules)
	registerUpstreams(reg, func() []UpstreamStatus { return nil })
	key := chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "edge", Name: "p"}
	m.states(map[chandler.Key]chandler.AttachmentState{key: {Key: key, VMTraps: 1}}) // has series when there are any
	foreign := func(name string) bool { return strings.HasPrefix(name, "istio_agent_wasm_") }
	catalogue.Hold(t, "../../docs/metrics.md", "chandler-agent", catalogue.Of(t, reg, foreign), *update)
}

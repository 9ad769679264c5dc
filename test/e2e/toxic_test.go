package e2e

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"

	"chandler.dev/chandler/internal/testenv/module"
)

// toxics are what a network does to a connection; all but the first two let
// nothing large through while they last.
var toxics = []struct{ kind, attributes string }{
	{"latency", `"latency": 400, "jitter": 300`},
	{"slicer", `"average_size": 256, "size_variation": 100, "delay": 2000`},
	{"bandwidth", `"rate": 1`},
	{"timeout", `"timeout": 0`},
	{"timeout", `"timeout": 300`},
	{"reset_peer", `"timeout": 0`},
	{"reset_peer", `"timeout": 100`},
	{"limit_data", `"bytes": 3000`},
}

// toxicProxy is a proxy on loopback that can be told to be a bad network.
func toxicProxy(t *testing.T, upstream string) *toxiproxy.Proxy {
	t.Helper()
	zerolog.SetGlobalLevel(zerolog.Disabled) // toxics log with a logger of their own
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := toxiproxy.NewProxy(server, t.Name(), loopback(0), upstream)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p
}

// poison lets a toxic act in both directions, until the function it gives is called.
func poison(t *testing.T, p *toxiproxy.Proxy, kind, attributes string) (cure func()) {
	t.Helper()
	var names []string
	for _, stream := range []string{"upstream", "downstream"} {
		if kind == "limit_data" && stream == "upstream" {
			continue // bodies come downstream
		}
		toxic, err := p.Toxics.AddToxicJson(strings.NewReader(
			fmt.Sprintf(`{"type": %q, "stream": %q, "attributes": {%s}}`, kind, stream, attributes)))
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, toxic.Name)
	}
	return func() {
		for _, name := range names {
			if err := p.Toxics.RemoveToxic(t.Context(), name); err != nil {
				t.Error(err)
			}
		}
	}
}

// inMinutes is the size of what takes four minutes at a kilobyte a second.
const inMinutes = 256 << 10

// bulky is a module of its own, of that size and a little more.
func bulky(n, size int) []byte {
	random := rand.New(rand.NewPCG(uint64(n), 0))
	ballast := make([]byte, size)
	for i := range ballast {
		ballast[i] = byte(random.Uint32())
	}
	return module.Append(module.WithSection("ballast", ballast))
}

// sick edits a plugin to a new module under every toxic in turn: what is in force
// stays, nothing older comes back, and once the network is well the edit is in
// force, by itself.
func sick(t *testing.T, w *world, port int, p *toxiproxy.Proxy, url func(n int) string) {
	t.Helper()
	w.apply(plugin("p", url(0), tag("n0")))
	sees(t, port, "n0")
	o := watchOrder(port)
	for i, toxic := range toxics {
		n := i + 1
		next := url(n)
		cure := poison(t, p, toxic.kind, toxic.attributes)
		w.submit(plugin("p", next, tag(fmt.Sprintf("n%d", n))))
		passed := o.answers.Load() + 500
		eventually(t, 20*time.Second, "requests pass meanwhile", func() (bool, string) {
			now := o.answers.Load()
			return now >= passed, fmt.Sprintf("%d of %d", now, passed)
		})
		if i >= 2 {
			has(t, port, fmt.Sprintf("n%d", n-1))
		}
		cure()
		heals(t, port, fmt.Sprintf("n%d", n))
	}
	o.check(t)
}

// The network between the control plane and the registry is bad in many ways.
func TestFault_F27_F28_F29_BadNetworkToTheRegistry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	p := toxicProxy(t, w.registry.Addr)
	sick(t, w, port, p, func(n int) string {
		return strings.Replace(w.push(fmt.Sprintf("append:v%d", n), bulky(n, inMinutes)), w.registry.Addr, p.Listen, 1)
	})
}

// The network between the agent and the control plane is bad in many ways: the
// stream of assignments and the modules both go over it.
func TestFault_F27_F28_F29_BadNetworkToTheControlPlane(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := toxicProxy(t, w.listen)
	w.agent(node{name: "a", flags: []string{"--control", p.Listen}}, w.gateway(listener{port: port, name: "in"}))
	sick(t, w, port, p, func(n int) string {
		return w.push(fmt.Sprintf("append:v%d", n), bulky(n, inMinutes))
	})
}

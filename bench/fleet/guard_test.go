package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/testenv/fed"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/testenv/module"
)

func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == swarmCommand {
		if err := beSwarm(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	leaks.Main(m)
}

// here is a control plane in this process.
type here struct {
	source  fed.Source
	target  string
	metrics *prometheus.Registry
}

func startHere(t *testing.T) *here {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	h := &here{source: make(fed.Source), target: l.Addr().String(), metrics: prometheus.NewRegistry()}
	c, err := control.New(control.Config{
		Source: h.source, Records: record.NewMemory(), Store: s, Listener: l, Registerer: h.metrics,
		Resolver: resolve.New(resolve.Config{Fetcher: fed.Module(module.Append()), Store: s}),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		s.Close()
	})
	return h
}

// apply has both plugins be at a change, the second one at another.
func (h *here) apply(all, few int64) {
	h.source <- source.Snapshot{Objects: []source.Object{object(pluginAll, all, nil), object(pluginFew, few, map[string]string{"few": "yes"})}}
}

func object(name string, change int64, selector map[string]string) source.Object {
	key := chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "istio-system", Name: name}
	ref, _ := chandler.ParseReference("oci://reg.example/append:1")
	o := source.Object{Key: key, UID: "uid-" + name, Created: time.Unix(1000, 0), Generation: change}
	o.Plugin = &chandler.Plugin{
		Key: key, UID: o.UID, Generation: change, Created: o.Created, Type: chandler.HTTP, Phase: chandler.PhaseAuthn, Selector: selector,
		Wasm: &chandler.Wasm{URL: "oci://reg.example/append:1", Reference: ref, FailStrategy: chandler.FailClose, Config: fmt.Appendf(nil, `{"change":%d}`, change)},
	}
	return o
}

// sent is how many bytes of resources agents were sent.
func (h *here) sent(t *testing.T) float64 {
	t.Helper()
	families, err := h.metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == bytesSent {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatal("there is no metric " + bytesSent)
	return 0
}

// holds is what this process cannot do without, and its goroutines.
func holds() (bytes, goroutines int) {
	for range 3 { // what pools keep is gone after the second
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse), runtime.NumGoroutine()
}

// What an agent costs its control plane as long as nothing is said, and how many messages
// a change is: these must not grow unnoticed. With TLS and the garbage of a process that
// works the benchmark measures about twice as much memory.
func TestAnAgentCosts(t *testing.T) {
	const agents = 300
	h := startHere(t)
	h.apply(1, 1)
	before, goroutines := holds()
	c, err := startCrowd(muster{Target: h.target, Agents: agents})
	if err != nil {
		t.Fatal(err)
	}
	defer c.leave()
	know := func(plugin string, change int64, n int) {
		t.Helper()
		if err := c.know(t.Context(), plugin, change, n, time.Minute); err != nil {
			t.Fatal(err)
		}
	}
	know(pluginAll, 1, agents)
	know(pluginFew, 1, agents/fewEvery)

	const goroutinesEach = 1  // reads
	const mostEach = 24 << 10 // of which its stack is 8 KiB
	deadline := time.Now().Add(time.Minute)
	for {
		after, now := holds()
		each := (after - before) / agents
		if each <= mostEach && now-goroutines <= goroutinesEach*agents+20 && now-goroutines >= goroutinesEach*agents {
			t.Logf("an agent takes %d bytes and %.2f goroutines", each, float64(now-goroutines)/agents)
			break
		}
		if time.Now().After(deadline) { // reports were not taken in yet, at first
			t.Fatalf("an agent takes %d bytes and %.2f goroutines, at most %d and %d are to be", each, float64(now-goroutines)/agents, mostEach, goroutinesEach)
		}
		<-time.After(200 * time.Millisecond)
	}

	messages := func() int64 {
		t.Helper()
		n, err := c.messages()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	told, sent := messages(), h.sent(t)
	h.apply(2, 1)
	know(pluginAll, 2, agents)
	one := (h.sent(t) - sent) / agents
	if n := messages() - told; n != agents || one != float64(int(one)) {
		t.Errorf("a change for %d agents was %d messages, of %v bytes each", agents, n, one)
	}
	told, sent = messages(), h.sent(t)
	h.apply(2, 2)
	know(pluginFew, 2, agents/fewEvery)
	if n, bytes := messages()-told, h.sent(t)-sent; n != agents/fewEvery || bytes > 2*one*agents/fewEvery {
		t.Errorf("a change for %d agents was %d messages and %v bytes", agents/fewEvery, n, bytes)
	}
}

// A plugin that changes all the time leaves nothing behind but the releases and events that
// are kept: what a control plane holds does not grow with the number of changes.
func TestAChangeLeavesNothing(t *testing.T) {
	const changes = 2000 // more than there are events kept
	const mostEach = 128 // bytes
	h := startHere(t)
	var last int64
	storm := func() {
		for range changes {
			last++
			h.apply(last, 1)
		}
	}
	storm()
	<-time.After(settle)
	before, _ := holds()
	storm()
	deadline := time.Now().Add(time.Minute)
	for {
		after, _ := holds()
		each := (after - before) / changes
		if each <= mostEach {
			t.Logf("a change leaves %d bytes", each)
			return
		}
		if time.Now().After(deadline) { // the last are being found out, at first
			t.Fatalf("a change leaves %d bytes, at most %d are to be", each, mostEach)
		}
		<-time.After(200 * time.Millisecond)
	}
}

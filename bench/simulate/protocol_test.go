package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/testenv/fed"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/registry"
	"chandler.dev/chandler/internal/testenv/swarm"
)

// heard counts what agents say and are told, by the calls of the real protocol: "out" and
// "in" behind the method's name.
type heard struct {
	mu     sync.Mutex
	counts map[string]count
}

func (h *heard) message(method string, sent bool, bytes int) {
	method = method[strings.LastIndex(method, "/")+1:] + map[bool]string{true: " out", false: " in"}[sent]
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.counts[method]
	h.counts[method] = count{c.Messages + 1, c.Bytes + int64(bytes)}
}

// since gives what was counted, and begins anew if it is asked to.
func (h *heard) since(anew bool) map[string]count {
	h.mu.Lock()
	defer h.mu.Unlock()
	counts := map[string]count{}
	for k, v := range h.counts {
		counts[k] = v
	}
	if anew {
		clear(h.counts)
	}
	return counts
}

// byCall is a simulated tally as the real protocol's calls have it.
func byCall(t *tally) map[string]count {
	calls := map[string]count{}
	for k, name := range map[kind]string{
		subscribe: "DeltaAggregatedResources out", ack: "DeltaAggregatedResources out", push: "DeltaAggregatedResources in",
		report: "Report out", taken: "Report in", ask: "Read out", piece: "Read in",
	} {
		if c := calls[name]; t[k].Messages > 0 {
			calls[name] = count{c.Messages + t[k].Messages, c.Bytes + t[k].Bytes}
		}
	}
	return calls
}

// fleet is a real control plane with a swarm of agents, in this process.
type fleet struct {
	*heard
	*swarm.Swarm
	plane    *control.Control
	registry *registry.Registry
	source   fed.Source
	agents   int
	t        *testing.T
	change   [pluginN]int
	url      string
}

// startFleet gives one whose agents have their plugins, and have made one report each.
func startFleet(t *testing.T, agents int, fetches bool) *fleet {
	t.Helper()
	reg, err := registry.Start(registry.Config{})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	modules, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	client := fetch.New(fetch.Config{Dir: t.TempDir()})
	f := &fleet{heard: &heard{counts: map[string]count{}}, registry: reg, source: make(fed.Source), agents: agents, t: t}
	c, err := control.New(control.Config{
		Source: f.source, Records: record.NewMemory(), Store: modules, Listener: l,
		Resolver: resolve.New(resolve.Config{Fetcher: client, Store: modules}),
	})
	if err != nil {
		t.Fatal(err)
	}
	f.Swarm = swarm.New(swarm.Config{
		Target: l.Addr().String(), Agents: agents, Fetch: fetches, Message: f.message,
		Node: func(i int) chandler.Node {
			n := chandler.Node{
				Namespace: "default", Name: fmt.Sprintf("agent-%06d", i), AgentVersion: "bench", EnvoyVersion: "1.40.0",
				Labels: map[string]string{"app": "bench", "version": "v1"},
			}
			if i%fewEvery == 0 {
				n.Labels["few"] = "yes"
			}
			return n
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for _, run := range []func(context.Context) error{c.Run, f.Swarm.Run} {
		running.Go(func() {
			if err := run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
		client.Close()
		modules.Close()
		reg.Close()
	})
	f.plane = c
	f.push(1000)
	f.change[few]++
	f.apply(everyone)
	f.eventually("is it in force where it is to be", f.inForce)
	f.leave() // one or two reports were made, as it came
	f.back()
	f.says(Measured(), Restart)
	return f
}

// inForce tells whether the control plane has heard that all agents have their plugins.
func (f *fleet) inForce() bool {
	views, _ := f.plane.Objects(f.t.Context())
	want := map[chandler.Key]int{pluginOf(everyone).Key: f.agents, pluginOf(few).Key: f.agents / fewEvery}
	return len(views) == len(want) && !slices.ContainsFunc(views, func(v control.ObjectView) bool { return v.Status.InForce != want[v.Key] })
}

// leave has all agents go, of which the control plane then hears. Nobody says anything any
// more.
func (f *fleet) leave() {
	f.t.Helper()
	for _, a := range f.Agents() {
		a.Away(true)
	}
	f.eventually("have all gone", func() bool {
		return f.Connected() == 0 && !slices.ContainsFunc(f.plane.Proxies(), func(p control.ProxyView) bool { return p.Connected })
	})
	f.since(true)
}

func (f *fleet) back() {
	for _, a := range f.Agents() {
		a.Away(false)
	}
}

// push puts a module into the registry, for the next change.
func (f *fleet) push(size int) {
	f.t.Helper()
	client := fetch.New(fetch.Config{Dir: f.t.TempDir()})
	defer client.Close()
	ref := fmt.Sprintf("%s/bench/append:%d", f.registry.Addr, size)
	rest := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(rest) // which no compression makes less of
	mod := module.Append(module.WithSection("rest", rest))
	if _, err := client.Push(context.Background(), ref, mod, fetch.PushOptions{}); err != nil {
		f.t.Fatal(err)
	}
	f.url = "oci://" + ref
}

// apply changes one plugin.
func (f *fleet) apply(plugin int) {
	f.change[plugin]++
	var objects []source.Object
	ref, problem := chandler.ParseReference(f.url)
	if problem != nil {
		f.t.Fatal(problem)
	}
	for i, n := range f.change {
		p := pluginOf(i)
		p.Generation = int64(n)
		a := attachment(p, n, 0, false)
		p.Wasm = &chandler.Wasm{URL: f.url, Reference: ref, FailStrategy: a.FailStrategy, Config: a.Config}
		objects = append(objects, source.Object{Key: p.Key, UID: p.UID, Created: p.Created, Generation: p.Generation, Plugin: p})
	}
	f.source <- source.Snapshot{Objects: objects}
}

// eventually waits for something, which then stays so for a moment.
func (f *fleet) eventually(what string, ok func() bool) {
	f.t.Helper()
	for deadline, held := time.Now().Add(time.Minute), 0; held < 5; {
		if held++; !ok() {
			held = 0
		}
		if time.Now().After(deadline) {
			f.t.Fatalf("never %s", what)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// says waits until the real fleet has said as often what the simulated one says, and gives
// what both did.
func (f *fleet) says(in Inputs, s Scenario) (o Outcome, got, want map[string]count) {
	f.t.Helper()
	o, err := Simulate(in, Shape{Proxies: f.agents, Clusters: 1, Replicas: 1}, s, 1)
	if err != nil {
		f.t.Fatal(err)
	}
	want = byCall(&o.Sent)
	defer func() {
		if f.t.Failed() {
			f.t.Logf("%s: %v, simulated %v", s, got, want)
		}
	}()
	f.eventually("are the messages the simulated ones", func() bool {
		got = f.since(false)
		for name := range want {
			if got[name].Messages != want[name].Messages {
				return false
			}
		}
		return len(got) == len(want)
	})
	f.since(true)
	return o, got, want
}

// agrees does so and holds the bytes against each other, too.
func (f *fleet) agrees(in Inputs, s Scenario) Outcome {
	f.t.Helper()
	o, got, want := f.says(in, s)
	for name, g := range got {
		if w := want[name].Bytes; g.Bytes < w*95/100 || g.Bytes > w*105/100 {
			f.t.Errorf("%s: %s has %d bytes, simulated %d", s, name, g.Bytes, w)
		}
	}
	return o
}

// A simulated fleet says as much, message for message, as real agents do to a real control
// plane, and asks as much of a registry.
func TestAgreesWithTheProtocol(t *testing.T) {
	in := Measured()
	in.Load, in.Configure = 0, 0 // the swarm's Envoys take what comes at once
	t.Run("changes", func(t *testing.T) {
		f, in := startFleet(t, 100, false), in
		for in.Said = 1; in.Said <= answerEvery; in.Said++ { // the last one is answered
			f.apply(everyone)
			o := f.agrees(in, OneChange)
			if n := o.Sent[taken].Messages; (n > 0) != (in.Said == answerEvery) {
				t.Errorf("%d answers after %d reports", n, in.Said)
			}
		}
		f.apply(few)
		f.agrees(in, FewChange)
		f.leave()
		f.back()
		f.agrees(in, Restart)
	})
	// So many are told to spread their reports.
	t.Run("spread", func(t *testing.T) {
		f, in := startFleet(t, 500, false), in
		for in.Said = 1; in.Said <= answerEvery; in.Said++ {
			f.apply(everyone)
			f.agrees(in, OneChange)
		}
	})
	t.Run("module", func(t *testing.T) {
		f, in := startFleet(t, 100, true), in
		in.Said, in.Module, in.Sent, in.Piece = 1, 300_000, 300_000, 256<<10
		f.push(300_000)
		before := f.registry.Counts()
		f.apply(everyone)
		o := f.agrees(in, NewModule)
		after := f.registry.Counts()
		requests := func(c registry.Counts) int { return c.ManifestHead + c.ManifestGet + c.BlobGet + c.Token + c.Other }
		if n := requests(after) - requests(before); int64(n) != o.Registry.Messages {
			t.Errorf("the registry was asked %d times, simulated %d: before %+v, after %+v", n, o.Registry.Messages, before, after)
		}
	})
}

package agent

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/registry"
	"chandler.dev/chandler/internal/wire"
)

// artifactFlag names an artifact that others pull too, so that they can be compared.
var artifactFlag = flag.String("artifact", "", "artifact to pull in benchmarks, HOST/REPOSITORY:TAG; without it a registry is started")

// BenchmarkConvert is the way from what the control plane sent to what Envoy is sent.
// cached: one attachment is read, and made into the bytes of a slot, with the path of
// its module on disk. step: all that the agent does when a configuration changes, until
// Envoy has acknowledged it, conversion included. one and ten: so many plugins of one
// module, of 2.6 MB, which is fetched from the registry, with an agent and a store that
// are new.
func BenchmarkConvert(b *testing.B) {
	origin, digest := artifact(b)
	b.Run("cached", func(b *testing.B) {
		sent, path := bodies(b, origin, digest, 1, 0)[0], "/modules/"+digest.Hex()+".wasm"
		var slot *anypb.Any
		b.ReportAllocs()
		for b.Loop() {
			a, err := wire.UnmarshalAttachment(sent.body)
			if err != nil {
				b.Fatal(err)
			}
			slot = attach.Body(attach.Compose(benchSlot, []attach.Member{{Attachment: &a, ModulePath: path}}))
		}
		if !bytes.Contains(slot.GetValue(), []byte(path)) {
			b.Error("the module's path is not in the slot")
		}
	})
	b.Run("step", func(b *testing.B) {
		c := newConverter(b)
		defer c.end(b)
		c.convert(b, bodies(b, origin, digest, 1, 0))
		// Two configurations in turn: the same again would be no change.
		changes := [2][]resource{bodies(b, origin, digest, 1, 1), bodies(b, origin, digest, 1, 2)}
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			c.convert(b, changes[i%2])
		}
	})
	for _, cold := range []struct {
		name    string
		plugins int
	}{{"one", 1}, {"ten", 10}} {
		b.Run(cold.name, func(b *testing.B) {
			sent := bodies(b, origin, digest, cold.plugins, 0)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				c := newConverter(b)
				b.StartTimer()
				c.convert(b, sent)
				b.StopTimer()
				c.end(b)
				b.StartTimer()
			}
		})
	}
}

var benchSlot = attach.Slot{Phase: chandler.PhaseAuthn, Mode: chandler.ModeServer, Port: 8080}

// artifact gives where to pull a module by digest, and the module's own digest.
func artifact(b *testing.B) (origin string, digest chandler.ModuleDigest) {
	b.Helper()
	client := fetch.New(fetch.Config{Dir: b.TempDir()})
	defer client.Close()
	name := *artifactFlag
	if name == "" {
		reg, err := registry.Start(registry.Config{})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(reg.Close)
		name = reg.Addr + "/bench/module:v1"
		if _, err := client.Push(b.Context(), name, large(), fetch.PushOptions{Layout: fetch.LayoutCompat}); err != nil {
			b.Fatal(err)
		}
	}
	ref, problem := chandler.ParseReference(name)
	if problem != nil {
		b.Fatal(problem)
	}
	got, err := client.Pull(b.Context(), fetch.Request{Reference: ref}, hashed{})
	if err != nil {
		b.Fatal(err)
	}
	return got.Reference, got.Module
}

// large is a module of 2.6 MB that compresses about as one in Go does.
func large() []byte {
	words := make([]byte, 2_600_000)
	r := rand.NewChaCha8([32]byte{})
	for i := range words {
		words[i] = "the words of a module repeat themselves"[r.Uint64()%39]
	}
	return module.Append(module.WithSection("words", words))
}

// hashed keeps nothing of a module but its digest.
type hashed struct{}

func (hashed) Ingest(r io.Reader, _ chandler.ModuleDigest) (chandler.ModuleDigest, int64, error) {
	b, err := io.ReadAll(r)
	return chandler.Digest[chandler.ModuleDigest](b), int64(len(b)), err
}

// resource is an attachment as it comes from the control plane.
type resource struct {
	body    []byte
	version string
}

// bodies are attachments of plugins. n tells configurations apart.
func bodies(b *testing.B, origin string, digest chandler.ModuleDigest, plugins, n int) []resource {
	b.Helper()
	var all []resource
	for i := range plugins {
		a := chandler.Attachment{
			Key: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "edge", Name: fmt.Sprint("plugin-", i)}, UID: fmt.Sprint("uid-", i), Sequence: 1,
			Program:   chandler.Program{Module: &chandler.Module{Digest: digest, Size: 2_600_000, Origins: []string{origin}}},
			Behaviour: chandler.Behaviour{Type: chandler.HTTP, Phase: chandler.PhaseAuthn, FailStrategy: chandler.FailClose, Config: fmt.Appendf(nil, `{"n":%d}`, n)},
		}
		body, version, err := wire.MarshalAttachment(&a)
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, resource{body.GetValue(), version})
	}
	return all
}

// converter is an agent's state with its loader and its store, between a control plane
// and an Envoy that are not there.
type converter struct {
	state  *State
	store  *store.Store
	loader *loader
	loaded chan Loaded
	leases []*store.Lease
	cancel context.CancelFunc
	ctx    context.Context
	inSlot int        // plugins in what Envoy was sent last
	slot   *anypb.Any // that, as it is sent
}

func newConverter(b *testing.B) *converter {
	b.Helper()
	modules, err := store.Open(store.Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	c := &converter{store: modules, loaded: make(chan Loaded, 1)}
	c.state = NewState(Settings{Slots: []attach.Slot{benchSlot}, Features: []string{chandler.FeatureHTTP}})
	c.loader = newLoader(modules, Config{FetchFrom: FromOrigin, Data: b.TempDir(), Log: slog.New(slog.DiscardHandler)}, newMetrics(prometheus.NewRegistry(), modules))
	c.loader.done = func(ev Loaded, lease *store.Lease) {
		if lease != nil {
			c.leases = append(c.leases, lease)
		}
		c.loaded <- ev
	}
	c.ctx, c.cancel = context.WithCancel(b.Context())
	for _, ev := range []Event{EnvoyStarted{Envoy: "envoy", Open: true}, ListenersOpen{}, Subscribed{Slot: benchSlot.Name()}} {
		c.state.Step(ev, time.Now())
	}
	return c
}

func (c *converter) end(b *testing.B) {
	b.Helper()
	c.cancel()
	c.loader.wait()
	c.loader.close()
	for _, lease := range c.leases {
		lease.Release()
	}
	if err := c.store.Close(); err != nil {
		b.Fatal(err)
	}
}

// convert takes attachments in until all of them stand in what Envoy is sent, and has
// Envoy acknowledge it.
func (c *converter) convert(b *testing.B, sent []resource) {
	var ev Assigned
	for _, r := range sent {
		a, err := wire.UnmarshalAttachment(r.body)
		if err != nil {
			b.Fatal(err)
		}
		ev.Changed = append(ev.Changed, Version{Attachment: a, Version: r.version})
	}
	c.inSlot = 0
	c.run(c.state.Step(ev, time.Now()))
	for c.inSlot < len(sent) {
		loaded := <-c.loaded
		if loaded.Err != nil {
			b.Fatal(loaded.Err.Problem)
		}
		c.run(c.state.Step(loaded, time.Now()))
	}
}

// run has effects come about.
func (c *converter) run(effects []Effect) {
	for _, effect := range effects {
		switch e := effect.(type) {
		case Load:
			c.loader.start(c.ctx, e.Source, e.Origins)
		case Push:
			c.slot, c.inSlot = attach.Body(e.Config), len(e.Wasm)
			c.run(c.state.Step(Acked{Slot: e.Slot, Version: e.Version}, time.Now()))
		}
	}
}

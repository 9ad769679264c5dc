package control

import (
	"context"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/testenv/clock"
)

// away is a registry that does not answer.
type away struct{}

func (away) Resolve(context.Context, fetch.Request) (fetch.Resolved, error) {
	return fetch.Resolved{}, &fetch.Error{Problem: chandler.Problem{Code: chandler.CodeFetchFailed}, Temporary: true, HostWide: true}
}

func (a away) Pull(ctx context.Context, req fetch.Request, _ fetch.Sink) (fetch.Artifact, error) {
	_, err := a.Resolve(ctx, req)
	return fetch.Artifact{}, err
}

// All that the loop and the fleet wait for goes by a clock that never jumps, even
// with records that a wrong clock dated: a clock that is set neither forgets nodes
// nor puts a try off.
func TestFault_F43_LoopKeepsMonotonicTime(t *testing.T) {
	ahead := time.Now().Add(365 * 24 * time.Hour).UTC()
	records := record.NewMemory()
	ref := chandler.Reference{Scheme: chandler.SchemeOCI, Host: "reg.example", Repository: "p", Tag: "v1"}
	plugin := func(name string) source.Object {
		key := chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: name}
		p := &chandler.Plugin{Key: key, UID: name, Generation: 1, Created: ahead, Wasm: &chandler.Wasm{Reference: ref, PullPolicy: chandler.PullAlways}}
		return source.Object{Key: key, UID: name, Generation: 1, Created: ahead, Plugin: p}
	}
	lost := chandler.Release{
		Key: plugin("lost").Key, UID: "lost", Generation: 1, ResolvedAt: ahead, Reference: ref.String() + "@sha256:" + digestHex,
		Program: chandler.Program{Module: &chandler.Module{Digest: "sha256:" + digestHex, Size: 1}},
	}.WithID()
	if err := records.PutRelease(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	if _, err := records.SwapRollout(t.Context(), nil, record.Rollout{UID: "lost", Key: lost.Key, Sequence: 1, Release: lost.ID, Generation: 1, UpdatedAt: ahead}); err != nil {
		t.Fatal(err)
	}
	modules, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer modules.Close()
	c, err := New(Config{
		Records: records, Store: modules, Policy: resolve.Policy{Interval: time.Hour},
		Resolver: resolve.New(resolve.Config{Fetcher: away{}, Store: modules}),
	})
	if err != nil {
		t.Fatal(err)
	}
	c.office.set(Leader{Self: true}, c.cfg.Now())
	l, err := c.load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer l.end()
	l.taken(source.Snapshot{Objects: []source.Object{plugin("a"), plugin("b"), plugin("lost")}})
	node := chandler.Node{Namespace: "ns", Name: "gw"}
	c.fleet.connected(node, true)
	c.fleet.connected(node, false)
	for len(l.hosts) == 0 || len(l.restores) == 0 || l.attempts["lost"].Failed == 0 {
		l.publishPaced()
		if next := l.start(t.Context()); next > time.Minute && len(l.jobs) == 0 {
			t.Fatalf("the next try is in %s", next)
		}
		select {
		case o := <-l.c.outcomes:
			l.finished(o)
		case <-time.After(50 * time.Millisecond): // until the host may be asked again
		}
	}
	for what, v := range map[string]any{
		"attempts": l.attempts, "hosts": l.hosts, "restores": l.restores, "quiet": l.quiet, "collect": l.collectNext,
		"office": &c.office, "members": c.fleet.members, "swept": c.fleet.swept,
	} {
		if err := clock.Kept(v, "Created", "Since", "NextTry"); err != nil { // those two are an agent's word, and shown
			t.Errorf("%s: %v", what, err)
		}
	}
}

const digestHex = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

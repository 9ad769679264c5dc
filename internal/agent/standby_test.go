package agent

import (
	"testing"
	"time"

	"chandler.dev/chandler"
)

// standing makes a version carry the modules of others for later.
func standing(names ...string) func(*Version) {
	return func(v *Version) {
		for _, n := range names {
			v.Standby = append(v.Standby, chandler.Module{Digest: digestOf(n), Size: 1, Origins: []string{"oci://r.example/" + n}})
		}
	}
}

func (p *proxy) wantLoads(names ...string) {
	p.t.Helper()
	if len(p.loads) != len(names) {
		p.t.Errorf("these load: %v, want %v", p.loads, names)
	}
	for _, n := range names {
		if _, ok := p.loads[Source{Digest: digestOf(n)}]; !ok {
			p.t.Errorf("%s does not load", n)
		}
	}
}

// Standby modules come one after the other when nothing that is needed is on its
// way, make way for what is, and stay while they are listed.
func TestContract_StandbyComesLast(t *testing.T) {
	p, a1, b1 := serving(t), version("a1", standing("x", "y")), version("b1")
	p.assign(a1)
	p.wantLoads("a1")
	p.loaded(a1)
	p.ackAll()
	if len(p.loads) != 1 {
		t.Fatalf("these load: %v, want one of the standby", p.loads)
	}
	p.assign(b1)
	p.wantLoads("b1")
	p.loaded(b1)
	for range 2 {
		if len(p.loads) != 1 {
			t.Fatalf("these load: %v, want one of the standby", p.loads)
		}
		for src, l := range p.loads {
			if len(l.Origins) != 1 {
				t.Errorf("%v has origins %v", src, l.Origins)
			}
			delete(p.loads, src)
			p.step(Loaded{Source: src, Digest: src.Digest, Path: "/store/" + src.Digest.Hex()})
		}
	}
	p.wantLoads()
	p.ackAll()
	p.want(authn, "a1", "b1")
	if kept := p.s.Modules(); len(kept) != 4 || !kept[digestOf("x")] || !kept[digestOf("y")] {
		t.Errorf("these are kept: %v", kept)
	}

	// The next step finds its module there, and what is on standby no more goes.
	a2 := version("a2", standing("a1"), func(v *Version) { v.Program.Module.Digest = digestOf("x") })
	p.assign(a2)
	p.wantLoads()
	p.ackAll()
	p.want(authn, "a2", "b1")
	if kept := p.s.Modules(); len(kept) != 3 || !kept[digestOf("x")] || !kept[digestOf("a1")] {
		t.Errorf("these are kept: %v", kept)
	}
}

// What cannot be had for later is nobody's trouble, until it is needed: then it is
// fetched at once and as if for the first time.
func TestContract_StandbyFailsInSilence(t *testing.T) {
	p, a1, x := serving(t), version("a1", standing("x1")), version("x1")
	p.assign(a1)
	p.loaded(a1)
	p.ackAll()
	p.loadFails(x, chandler.CodeFetchFailed, true)
	p.wantLoads()
	p.wantState(a1, chandler.StateInForce, "release-a1", chandler.StandInNone, "")
	p.wantReady(true)
	if at := p.s.Wake(); at.Sub(p.now) < minPermanent/2 {
		t.Errorf("it is tried again after %v", at.Sub(p.now))
	}
	p.assign(x)
	p.wantLoads("x1")
	if l := p.loads[source(&x)]; l.Attempt != 1 {
		t.Errorf("the load is %+v", l)
	}
	p.loadFails(x, chandler.CodeFetchFailed, true)
	p.pass(maxBackoff)
	p.wantLoads("x1")
}

// While something that is needed loads, a standby module that is due does not keep
// the agent awake.
func TestContract_StandbyWaitsAsleep(t *testing.T) {
	p, a1, b1, x := serving(t), version("a1", standing("x1")), version("b1"), version("x1")
	p.assign(a1)
	p.loaded(a1)
	p.ackAll()
	p.loadFails(x, chandler.CodeFetchFailed, true)
	p.assign(b1)
	p.pass(time.Minute)
	p.wantLoads("b1")
	if at := p.s.Wake(); !at.IsZero() && !at.After(p.now) {
		t.Errorf("it wants to be woken %v ago", p.now.Sub(at))
	}
}

// In a store that is full what is needed comes before what is on standby.
func TestContract_StandbyMakesRoom(t *testing.T) {
	p, a1, b1, x := serving(t), version("a1", standing("x1")), version("b1"), version("x1")
	p.assign(a1)
	p.loaded(a1)
	p.ackAll()
	p.loaded(x)
	p.assign(b1)
	p.loadFails(b1, chandler.CodeCacheFull, true)
	if kept := p.s.Modules(); len(kept) != 1 || !kept[digestOf("a1")] {
		t.Errorf("these are kept: %v", kept)
	}
	p.pass(maxBackoff)
	p.loaded(b1)
	p.ackAll()
	p.want(authn, "a1", "b1")
	p.wantLoads("x1")
	p.loadFails(x, chandler.CodeCacheFull, true)
	p.wantLoads()
	p.want(authn, "a1", "b1")
}

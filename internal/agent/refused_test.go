package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
)

// The file of a module that runs is gone, which shows when a neighbour changes. It
// is brought again, and what runs goes on meanwhile. When it cannot be had within
// the deadline, or Envoy misses it all the same, it does not hold its neighbours up
// any longer, and is not left out in silence.
func TestContract_LostFile(t *testing.T) {
	a, b := version("a"), version("b")
	missing := "Invalid path: /store/" + a.Program.Module.Digest.Hex()
	lost := func(t *testing.T) *proxy {
		p := serving(t)
		p.assign(a)
		p.loaded(a)
		p.ackAll()
		p.assign(b)
		p.loaded(b)
		p.wantSent(authn, "a", "b")
		push := p.sent()
		p.pushes = nil
		p.step(Nacked{Slot: push.Slot, Version: push.Version, Message: missing})
		p.wantQuiet()
		p.wantState(a, chandler.StateInForce, "release-a", chandler.StandInNone, "")
		p.wantReady(true)
		return p
	}
	t.Run("fetched", func(t *testing.T) {
		p := lost(t)
		p.loadFails(a, chandler.CodeControlUnreachable, true)
		p.pass(time.Second)
		p.loaded(a)
		p.wantSent(authn, "a") // what was in force first, as after every refusal
		p.ack()
		p.wantSent(authn, "a", "b")
		p.ackAll()
		p.want(authn, "a", "b")
	})
	t.Run("missed again", func(t *testing.T) {
		p := lost(t)
		p.loaded(a)
		p.wantSent(authn, "a")
		push := p.sent()
		p.pushes = nil
		p.step(Nacked{Slot: push.Slot, Version: push.Version, Message: missing})
		p.ackAll()
		p.want(authn, "deny a", "b")
		p.wantState(a, chandler.StateRejected, "", chandler.StandInDeny, chandler.CodeRejected)
		p.pass(rejectedInterval)
		p.ackAll()
		p.want(authn, "a", "b")
	})
	t.Run("not to be had", func(t *testing.T) {
		p := lost(t)
		p.loadFails(a, chandler.CodeControlUnreachable, true)
		if at := p.s.Wake(); at.After(p.now.Add(DefaultFetchDeadline)) {
			t.Errorf("it wants to be woken at %v", at)
		}
		p.pass(DefaultFetchDeadline - time.Second)
		p.wantQuiet()
		p.pass(time.Second)
		p.ackAll()
		p.want(authn, "deny a", "b")
	})
	t.Run("an update is there", func(t *testing.T) {
		p, a2 := lost(t), version("a2")
		p.assign(a2)
		p.wantQuiet()
		p.loaded(a2)
		p.ackAll()
		p.want(authn, "a2", "b")
	})
}

// A scrub finds that the file of a module that runs is gone or corrupt: it is
// brought again and Envoy is not disturbed, however long that takes.
func TestContract_LostAndNobodyElseChanges(t *testing.T) {
	p, a := serving(t), version("a")
	p.assign(a)
	p.loaded(a)
	p.ackAll()
	p.step(Lost{Digest: a.Program.Module.Digest})
	p.loadFails(a, chandler.CodeControlUnreachable, true)
	for range 100 {
		p.pass(maxBackoff)
		p.wantQuiet()
		if _, ok := p.loads[source(&a)]; ok {
			p.loadFails(a, chandler.CodeControlUnreachable, true)
		}
	}
	p.wantState(a, chandler.StateInForce, "release-a", chandler.StandInNone, "")
	p.pass(maxBackoff)
	p.loaded(a)
	p.wantQuiet()
	b := version("b")
	p.assign(b)
	p.loaded(b)
	p.ackAll()
	p.want(authn, "a", "b")
}

// An Envoy that was left behind refuses a composition and does not say for which
// plugin: what was good is in force all the time, and the culprit is found.
func TestContract_UnknownCulpritLeftBehind(t *testing.T) {
	p := serving(t)
	for _, name := range []string{"a1", "b1", "c1"} {
		p.assign(version(name))
		p.loaded(version(name))
		p.ackAll()
	}
	q := p.restarted()
	q.start("envoy-1", true)
	q.assign(version("a2"), version("b2"), version("d"))
	for _, name := range []string{"a2", "b2", "d", "b1", "c1"} {
		v := version(name)
		l := q.s.loads[source(&v)]
		l.path, l.ready, l.running = "/store/"+name, true, false // all in one moment
	}
	q.loaded(version("a1"))
	for range 20 {
		if len(q.pushes) == 0 {
			break
		}
		held := held(t, q.sent())
		for _, plugin := range held {
			if strings.HasPrefix(plugin, "deny") && plugin != "deny d" {
				t.Fatalf("it was sent %v", held)
			}
		}
		if slices.Contains(held, "b2") {
			q.nack("script load error", "")
		} else {
			q.ack()
		}
	}
	q.want(authn, "a2", "b1", "c1", "d")
	q.wantState(version("b2"), chandler.StateRejected, "release-b1", chandler.StandInNone, chandler.CodeRejected)
}

// What was left out stays so when the plugin is edited, up to a deadline of its
// own: an edit refuses no request by itself.
func TestContract_EditDoesNotCloseWhatWasLeftOut(t *testing.T) {
	for name, leaveOut := range map[string]func(p *proxy, a1 Version){
		"overdue":  func(p *proxy, a1 Version) { p.pass(DefaultFetchDeadline) },
		"rejected": func(p *proxy, a1 Version) { p.loaded(a1); p.nack("no", "") },
	} {
		t.Run(name, func(t *testing.T) {
			p, a1, a2 := serving(t), version("a1", strategy(chandler.FailOpen)), version("a2")
			p.assign(a1)
			leaveOut(p, a1)
			p.ackAll()
			p.want(authn)
			p.assign(a2)
			p.pass(DefaultFetchDeadline - time.Second)
			p.ackAll()
			p.want(authn)
			p.pass(time.Second)
			p.ackAll()
			p.want(authn, "deny a")
		})
	}
}

// A plugin whose configuration holds secrets: what Envoy says of it is not repeated,
// and no version is a hash of it.
func TestSecretConfigIsKeptBack(t *testing.T) {
	const secret = `{"password":"hunter2"}`
	p := serving(t)
	a := version("a", func(v *Version) { v.Config, v.SecretConfig = []byte(secret), true })
	p.assign(a)
	p.loaded(a)
	if !p.s.Discreet() {
		t.Error("nobody knows that its configuration is secret")
	}
	push := p.sent()
	p.pushes = nil
	p.step(Nacked{Slot: push.Slot, Version: push.Version, Message: "Unable to create Wasm plugin " + a.Key.String() + secret, Reason: "cannot read " + secret})
	st := p.s.Report()[a.Key]
	if st.State != chandler.StateRejected || st.Message != keptBack {
		t.Errorf("%+v", st)
	}
	slot := p.s.slot(push.Slot)
	composed := func(config, release string) *composition {
		v := a
		v.Config, v.Release = []byte(config), chandler.ReleaseID(release)
		return p.s.compose(slot, map[chandler.Key]member{v.Key: {version: &v}})
	}
	one, two, three := composed(secret, "r1"), composed("{}", "r1"), composed(secret, "r2")
	if one.version != two.version || one.version == three.version {
		t.Errorf("versions %s %s %s", one.version, two.version, three.version)
	}
	if !strings.Contains(one.config.String(), "hunter2") {
		t.Error("the configuration is not in the slot")
	}
	p.step(Assigned{Removed: []chandler.Key{a.Key}})
	p.ackAll()
	if p.s.Discreet() {
		t.Error("it is still thought to be there")
	}
}

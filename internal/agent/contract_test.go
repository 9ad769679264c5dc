package agent

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	filterchainv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/filter_chain/v3"
	wasmfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// The tests of this file are the table of BEHAVIOUR 7, as far as it is the
// agent's: what a proxy does while a plugin cannot run.

var (
	authnSlot = attach.Slot{Phase: chandler.PhaseAuthn, Mode: chandler.ModeClient, Port: 8080}
	statsSlot = attach.Slot{Phase: chandler.PhaseStats, Mode: chandler.ModeClient, Port: 8080}
	authn     = authnSlot.Name()
	stats     = statsSlot.Name()
)

// proxy is a State whose Envoy and disk do what the test says.
type proxy struct {
	t       *testing.T
	s       *State
	now     time.Time
	loads   map[Source]Load
	pushes  []Push // awaiting an answer, in order
	inForce map[string]Push
	saved   *SaveLastGood
}

func newProxy(t *testing.T) *proxy {
	return &proxy{
		t: t, now: time.Unix(1_700_000_000, 0), loads: map[Source]Load{}, inForce: map[string]Push{},
		s: NewState(Settings{Slots: []attach.Slot{authnSlot, statsSlot}, Features: []string{chandler.FeatureHTTP}}),
	}
}

// serving is a proxy whose listeners are open, without plugins.
func serving(t *testing.T) *proxy {
	p := newProxy(t)
	p.step(Assigned{})
	p.start("envoy-1", false)
	p.ackAll()
	p.step(ListenersOpen{})
	return p
}

func (p *proxy) step(ev Event) {
	p.t.Helper()
	for _, effect := range p.s.Step(ev, p.now) {
		switch e := effect.(type) {
		case Load:
			p.loads[e.Source] = e
		case CancelLoad:
			delete(p.loads, e.Source)
		case Push:
			p.pushes = append(p.pushes, e)
		case SaveLastGood:
			p.saved = &e
		}
	}
}

func (p *proxy) start(binary string, open bool) {
	p.pushes, p.inForce = nil, map[string]Push{}
	p.step(EnvoyStarted{Envoy: binary, Open: open})
	for _, sl := range p.s.set.Slots {
		p.step(Subscribed{Slot: sl.Name()})
	}
}

// restarted is another agent that begins with what this one saved.
func (p *proxy) restarted() *proxy {
	next := newProxy(p.t)
	next.now = p.now
	next.step(Restored(*p.saved))
	return next
}

func (p *proxy) assign(versions ...Version) { p.t.Helper(); p.step(Assigned{Changed: versions}) }

func (p *proxy) pass(d time.Duration) { p.t.Helper(); p.now = p.now.Add(d); p.step(Tick{}) }

func (p *proxy) loaded(v Version) {
	p.t.Helper()
	src := source(&v)
	if _, ok := p.loads[src]; !ok {
		p.t.Fatalf("nothing loads %s; loads: %v", v.Version, p.loads)
	}
	delete(p.loads, src)
	digest := src.Digest
	if digest == "" {
		digest = digestOf(v.Version)
	}
	p.step(Loaded{Source: src, Digest: digest, Path: "/store/" + digest.Hex()})
}

func (p *proxy) loadFails(v Version, code chandler.Code, temporary bool) {
	p.t.Helper()
	if _, ok := p.loads[source(&v)]; !ok {
		p.t.Fatalf("nothing loads %s", v.Version)
	}
	delete(p.loads, source(&v))
	p.step(Loaded{Source: source(&v), Err: &LoadError{Problem: chandler.Problem{Code: code, Message: "it cannot be had"}, Temporary: temporary}})
}

// sent gives the oldest push that awaits an answer.
func (p *proxy) sent() Push {
	p.t.Helper()
	if len(p.pushes) == 0 {
		p.t.Fatal("nothing was pushed")
	}
	return p.pushes[0]
}

func (p *proxy) ack() {
	p.t.Helper()
	push := p.sent()
	p.pushes = p.pushes[1:]
	p.inForce[push.Slot] = push
	p.step(Acked{Slot: push.Slot, Version: push.Version})
}

func (p *proxy) ackAll() {
	p.t.Helper()
	for range 100 {
		if len(p.pushes) == 0 {
			return
		}
		p.ack()
	}
	p.t.Fatal("it never comes to rest")
}

// nack refuses the oldest push, and acknowledges what goes out again for it.
func (p *proxy) nack(message, reason string) {
	p.t.Helper()
	push := p.sent()
	p.pushes = p.pushes[1:]
	p.step(Nacked{Slot: push.Slot, Version: push.Version, Message: message, Reason: reason})
	if before, ok := p.inForce[push.Slot]; ok && (len(p.pushes) == 0 || p.pushes[len(p.pushes)-1].Version != before.Version) {
		p.t.Fatalf("after a NACK %v was not sent again first", held(p.t, before))
	}
}

func (p *proxy) want(slot string, plugins ...string) {
	p.t.Helper()
	if got := held(p.t, p.inForce[slot]); !slices.Equal(got, plugins) {
		p.t.Errorf("%s runs %v, want %v", slot, got, plugins)
	}
}

func (p *proxy) wantSent(slot string, plugins ...string) {
	p.t.Helper()
	if push := p.sent(); push.Slot != slot || !slices.Equal(held(p.t, push), plugins) {
		p.t.Errorf("%s was sent %v, want %s to be sent %v", push.Slot, held(p.t, push), slot, plugins)
	}
}

func (p *proxy) wantQuiet() {
	p.t.Helper()
	for _, push := range p.pushes {
		p.t.Errorf("%s was sent %v, want nothing to be sent", push.Slot, held(p.t, push))
	}
}

func (p *proxy) wantState(v Version, state chandler.State, inForce string, standIn chandler.StandIn, reason chandler.Code) chandler.AttachmentState {
	p.t.Helper()
	st, ok := p.s.Report()[v.Key]
	if !ok {
		p.t.Fatalf("nothing is reported of %v", v.Key)
	}
	if st.State != state || string(st.InForce) != inForce || st.StandIn != standIn || st.Reason != reason {
		p.t.Errorf("%v is %s (in force %q, stand-in %q, reason %q), want %s (%q, %q, %q)",
			v.Key, st.State, st.InForce, st.StandIn, st.Reason, state, inForce, standIn, reason)
	}
	return st
}

func (p *proxy) wantReady(ready bool) {
	p.t.Helper()
	if why := p.s.Readiness(); (len(why) == 0) != ready {
		p.t.Errorf("unready for %q, want ready: %v", why, ready)
	}
}

// held tells what a push holds: the root ID of a plugin, which is its version
// here, or a denial.
func held(t *testing.T, push Push) []string {
	t.Helper()
	if push.Config == nil {
		return nil
	}
	chain := &filterchainv3.FilterChainConfig{}
	if err := push.Config.TypedConfig.UnmarshalTo(chain); err != nil {
		t.Fatal(err)
	}
	var plugins []string
	for _, f := range chain.GetDefaultFilterChain().GetFilters() {
		wasm := &wasmfilterv3.Wasm{}
		switch {
		case f.TypedConfig.MessageIs(wasm):
			if err := f.TypedConfig.UnmarshalTo(wasm); err != nil {
				t.Fatal(err)
			}
			if path := wasm.Config.GetVmConfig().GetCode().GetLocal().GetFilename(); !strings.HasPrefix(path, "/store/") {
				t.Errorf("%s was sent with the module %q", f.Name, path)
			}
			plugins = append(plugins, wasm.Config.RootId)
		case strings.HasSuffix(f.TypedConfig.TypeUrl, ".RBAC"):
			plugins = append(plugins, "deny "+f.Name[strings.LastIndex(f.Name, "/")+1:])
		default:
			plugins = append(plugins, f.TypedConfig.TypeUrl)
		}
	}
	return plugins
}

// version is a version of a plugin: "a1" is the first of plugin a.
func version(name string, changes ...func(*Version)) Version {
	n := strings.TrimRight(name, "0123456789")
	sequence := uint64(1)
	_, _ = fmt.Sscan(name[len(n):], &sequence)
	v := Version{Version: name, Attachment: chandler.Attachment{
		Key: chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: n},
		UID: "uid-" + n, Generation: int64(sequence), Sequence: sequence, Release: chandler.ReleaseID("release-" + name),
		Program:   chandler.Program{Module: &chandler.Module{Digest: digestOf(name), Size: 1}},
		Behaviour: chandler.Behaviour{Type: chandler.HTTP, Phase: chandler.PhaseAuthn, RootID: name, FailStrategy: chandler.FailClose},
		Requires:  []string{chandler.FeatureHTTP},
	}}
	for _, change := range changes {
		change(&v)
	}
	return v
}

func strategy(s chandler.FailStrategy) func(*Version) {
	return func(v *Version) { v.FailStrategy = s }
}

func firstAttachDeny(v *Version) { v.FirstAttach = chandler.FirstAttachDeny }

// strategies gives each failStrategy with what it makes of a plugin "a" that
// cannot run.
func strategies(t *testing.T, test func(t *testing.T, s chandler.FailStrategy, standIn chandler.StandIn, holds []string)) {
	for s, standIn := range map[chandler.FailStrategy]chandler.StandIn{
		chandler.FailOpen: chandler.StandInPass, chandler.FailClose: chandler.StandInDeny, chandler.FailReload: chandler.StandInDeny,
	} {
		var holds []string
		if standIn == chandler.StandInDeny {
			holds = []string{"deny a"}
		}
		t.Run(string(s), func(t *testing.T) { test(t, s, standIn, holds) })
	}
}

func TestContract_FirstAttachHolds(t *testing.T) {
	strategies(t, func(t *testing.T, s chandler.FailStrategy, _ chandler.StandIn, _ []string) {
		p, a := serving(t), version("a", strategy(s))
		p.assign(a)
		p.pass(29 * time.Second)
		p.wantQuiet()
		p.wantState(a, chandler.StateFetching, "", chandler.StandInNone, "")
		p.wantReady(true) // traffic goes on as before
		p.loaded(a)
		p.wantState(a, chandler.StateReady, "", chandler.StandInNone, "")
		p.ack()
		p.want(authn, "a")
		p.wantState(a, chandler.StateInForce, "release-a", chandler.StandInNone, "")
		if p.saved == nil || len(p.saved.Versions) != 1 || p.saved.Envoy != "envoy-1" {
			t.Errorf("the last good set is %+v", p.saved)
		}
	})
}

func TestContract_FirstAttachDenies(t *testing.T) {
	strategies(t, func(t *testing.T, s chandler.FailStrategy, _ chandler.StandIn, _ []string) {
		p, a := serving(t), version("a", strategy(s), firstAttachDeny)
		p.assign(a)
		p.ack()
		p.want(authn, "deny a")
		p.wantState(a, chandler.StateFetching, "", chandler.StandInDeny, "")
		p.loaded(a)
		p.ack()
		p.want(authn, "a")
	})
}

func TestContract_FetchDeadlinePassed(t *testing.T) {
	strategies(t, func(t *testing.T, s chandler.FailStrategy, standIn chandler.StandIn, holds []string) {
		p, a := serving(t), version("a", strategy(s))
		p.assign(a)
		p.loadFails(a, chandler.CodeFetchFailed, true)
		p.wantState(a, chandler.StateFailed, "", chandler.StandInNone, chandler.CodeFetchFailed)
		p.pass(30 * time.Second)
		p.ackAll()
		p.want(authn, holds...)
		p.wantState(a, chandler.StateFailed, "", standIn, chandler.CodeFetchFailed)
		p.wantReady(standIn == chandler.StandInPass)

		p.loaded(a) // it was being tried again all the time
		p.ackAll()
		p.want(authn, "a")
		p.wantReady(true)
	})
}

// Envoy opens its listeners before its answer to what they waited for is here: the
// denial that they opened with counts.
func TestContract_OpensBeforeItsAnswerIsHere(t *testing.T) {
	p, a := newProxy(t), version("a")
	p.start("envoy-1", false)
	p.assign(a)
	p.loaded(a)
	p.wantSent(authn, "deny a")
	p.step(ListenersOpen{})
	p.wantReady(false)
	p.ackAll()
	p.want(authn, "a")
	p.wantReady(true)
}

func TestContract_FetchThatHangsIsTold(t *testing.T) {
	p, a := serving(t), version("a", func(v *Version) { v.FetchDeadline = time.Second })
	p.assign(a)
	p.pass(time.Second)
	p.ackAll()
	p.want(authn, "deny a")
	p.wantState(a, chandler.StateFailed, "", chandler.StandInDeny, chandler.CodeDeadlinePassed)
}

func TestContract_EnvoyRefusesFirst(t *testing.T) {
	strategies(t, func(t *testing.T, s chandler.FailStrategy, standIn chandler.StandIn, holds []string) {
		p, a := serving(t), version("a", strategy(s))
		p.assign(a)
		p.loaded(a)
		p.nack("Unable to create Wasm plugin "+a.Key.String(), "its author says why")
		p.ackAll()
		p.want(authn, holds...)
		st := p.wantState(a, chandler.StateRejected, "", standIn, chandler.CodeRejected)
		if st.Message != "its author says why" || st.Rejections != 1 || !st.NextTry.After(p.now) {
			t.Errorf("reported as %+v", st)
		}
		p.pass(rejectedInterval)
		p.wantSent(authn, "a")
		p.nack("Unable to create Wasm plugin "+a.Key.String(), "") // Envoy gives its reason once
		p.ackAll()
		if st := p.s.Report()[a.Key]; st.Message != "its author says why" || st.Attempt != 2 {
			t.Errorf("reported as %+v", st)
		}
		p.pass(rejectedInterval)
		p.wantSent(authn, "a")
		p.ackAll()
		p.wantState(a, chandler.StateInForce, "release-a", chandler.StandInNone, "")
	})
}

// What was denied stays so when the plugin is edited: an edit is no way in.
func TestContract_EditDoesNotOpenWhatWasDenied(t *testing.T) {
	denied := map[string]func(p *proxy){
		"overdue":  func(p *proxy) { p.assign(version("a1")); p.pass(DefaultFetchDeadline); p.ackAll() },
		"rejected": func(p *proxy) { p.assign(version("a1")); p.loaded(version("a1")); p.nack("no", ""); p.ackAll() },
		"unresolved": func(p *proxy) {
			p.assign(version("a1", func(v *Version) { v.Program = chandler.Program{Deny: true} }))
			p.ackAll()
		},
	}
	for name, deny := range denied {
		t.Run(name, func(t *testing.T) {
			p, a2 := serving(t), version("a2")
			deny(p)
			p.want(authn, "deny a")
			p.assign(a2)
			p.wantQuiet()
			p.loaded(a2)
			p.ackAll()
			p.want(authn, "a2")
		})
	}
}

func TestContract_UpdateKeepsLastGood(t *testing.T) {
	strategies(t, func(t *testing.T, s chandler.FailStrategy, _ chandler.StandIn, _ []string) {
		p, a1, a2 := serving(t), version("a1", strategy(s)), version("a2", strategy(s), firstAttachDeny)
		p.assign(a1)
		p.loaded(a1)
		p.ack()

		p.assign(a2)
		p.wantQuiet()
		p.wantState(a2, chandler.StateFetching, "release-a1", chandler.StandInNone, "")
		p.loadFails(a2, chandler.CodeNotFound, false)
		p.pass(10 * time.Minute)
		p.wantQuiet()
		p.wantState(a2, chandler.StateFailed, "release-a1", chandler.StandInNone, chandler.CodeNotFound)

		p.loaded(a2)
		p.wantSent(authn, "a2")
		p.nack("Unable to create Wasm plugin "+a2.Key.String(), "no")
		p.ackAll()
		p.want(authn, "a1")
		p.wantState(a2, chandler.StateRejected, "release-a1", chandler.StandInNone, chandler.CodeRejected)
		p.wantReady(true)
		if len(p.saved.Versions) != 1 || p.saved.Versions[0].Version != "a1" {
			t.Errorf("the last good set is %+v", p.saved)
		}
	})
}

func TestContract_StartingWithoutLastGood(t *testing.T) {
	strategies(t, func(t *testing.T, s chandler.FailStrategy, standIn chandler.StandIn, holds []string) {
		p, a := newProxy(t), version("a", strategy(s))
		p.start("envoy-1", false)
		p.wantQuiet() // neither a set nor a control plane: listeners stay shut
		p.assign(a)
		p.loaded(a) // on disk, and yet not sent while a NACK would end the warming
		p.ackAll()
		p.want(authn, holds...)
		p.wantReady(false)
		p.step(ListenersOpen{})
		p.wantSent(authn, "a")
		p.wantReady(standIn == chandler.StandInPass)
		p.ackAll()
		p.want(authn, "a")
		p.wantReady(true)
	})
}

// "deny" means from the first moment, also where failStrategy is FAIL_OPEN.
func TestContract_StartingUnderDeny(t *testing.T) {
	for name, change := range map[string]func(*Version){
		"first attach": firstAttachDeny,
		"unresolved":   func(v *Version) { v.Program = chandler.Program{Deny: true} },
	} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t)
			p.start("envoy-1", false)
			p.assign(version("a", strategy(chandler.FailOpen), change))
			p.ackAll()
			p.want(authn, "deny a")
		})
	}
}

func TestContract_StartingWithLastGood(t *testing.T) {
	p, a := serving(t), version("a")
	p.assign(a)
	p.loaded(a)
	p.ackAll()

	t.Run("the same Envoy", func(t *testing.T) {
		q := p.restarted()
		q.start("envoy-1", false)
		q.wantQuiet() // the module is being read from disk
		q.loaded(a)
		q.ackAll()
		q.want(authn, "a")
		q.step(ListenersOpen{})
		q.wantQuiet()
		q.wantReady(true)
		q.wantState(a, chandler.StateInForce, "release-a", chandler.StandInNone, "")
	})
	t.Run("another Envoy", func(t *testing.T) {
		q := p.restarted()
		q.start("envoy-2", false)
		q.loaded(a)
		q.ackAll()
		q.want(authn, "deny a")
		q.step(ListenersOpen{})
		q.ackAll()
		q.want(authn, "a")
		if q.saved.Envoy != "envoy-2" {
			t.Errorf("the last good set is of %s", q.saved.Envoy)
		}
	})
	t.Run("another Envoy that refuses it", func(t *testing.T) {
		q := p.restarted()
		q.start("envoy-2", false)
		q.loaded(a)
		q.ackAll()
		q.step(ListenersOpen{})
		q.nack("Unable to create Wasm plugin "+a.Key.String(), "")
		q.ackAll()
		q.want(authn, "deny a")
		if len(q.saved.Versions) != 0 || len(q.saved.Denied) != 1 {
			t.Errorf("the last good set is %+v", q.saved)
		}
	})
	t.Run("its module is lost", func(t *testing.T) {
		q := p.restarted()
		q.start("envoy-1", false)
		q.loadFails(a, chandler.CodeControlUnreachable, true)
		q.ackAll()
		q.want(authn, "deny a")
		q.step(ListenersOpen{})
		q.pass(time.Hour)
		q.wantQuiet()
		q.loaded(a)
		q.ackAll()
		q.want(authn, "a")
	})
	t.Run("its module takes long", func(t *testing.T) {
		q := p.restarted()
		q.start("envoy-1", false)
		if wake := q.s.Wake(); !wake.Equal(q.now.Add(goodPatience)) {
			t.Errorf("it wakes at %v", wake)
		}
		q.pass(goodPatience)
		q.ackAll()
		q.want(authn, "deny a")
	})
	t.Run("another Envoy that refuses it, FAIL_OPEN", func(t *testing.T) {
		b := version("b", strategy(chandler.FailOpen))
		q := newProxy(t)
		q.step(Restored{Envoy: "envoy-1", Versions: []Version{b}})
		q.start("envoy-2", false)
		q.loaded(b)
		q.ackAll()
		q.step(ListenersOpen{})
		q.nack("Unable to create Wasm plugin "+b.Key.String(), "")
		q.ackAll()
		q.want(authn)
		if q.saved == nil || len(q.saved.Versions) != 0 {
			t.Errorf("the last good set is %+v", q.saved)
		}
	})
	t.Run("an Envoy that was left behind, its module is lost", func(t *testing.T) {
		q := p.restarted()
		q.start("envoy-1", true)
		q.loadFails(a, chandler.CodeControlUnreachable, true)
		q.ackAll()
		q.want(authn) // nothing was sent: it runs what it ran
		q.step(Assigned{})
		q.pass(DefaultFetchDeadline)
		q.ackAll()
		q.want(authn, "deny a")
	})
	t.Run("an Envoy that was left behind", func(t *testing.T) {
		q := p.restarted()
		q.start("envoy-1", true)
		q.wantQuiet()
		q.loaded(a)
		q.wantSent(authn, "a")
	})
}

// An agent that was killed must not take a plugin that it denied for a new one.
func TestContract_DenialOutlivesTheAgent(t *testing.T) {
	p, a := serving(t), version("a")
	p.assign(a)
	p.pass(DefaultFetchDeadline)
	p.ackAll()
	p.want(authn, "deny a")
	for _, open := range []bool{true, false} {
		q := p.restarted()
		q.start("envoy-1", open)
		q.ackAll()
		q.want(authn, "deny a")
		if q.s.Known()[a.Key.String()] != "a" {
			t.Error("the control plane would be asked for it again")
		}
		q.loaded(a)
		q.step(ListenersOpen{})
		q.ackAll()
		q.want(authn, "a")
		if len(q.saved.Denied) != 0 || len(q.saved.Versions) != 1 {
			t.Errorf("the last good set is %+v", q.saved)
		}
	}
}

// A plugin that moves is in force in the slot it gains before it leaves the other.
func TestContract_MoveBetweenPhases(t *testing.T) {
	p, a1 := serving(t), version("a1")
	a2 := version("a2", func(v *Version) { v.Phase = chandler.PhaseStats })
	p.assign(a1)
	p.loaded(a1)
	p.ackAll()
	p.assign(a2)
	p.wantQuiet()
	p.loaded(a2)
	p.wantSent(stats, "a2")
	if len(p.pushes) != 1 {
		t.Fatal("the slot that it leaves was changed too early")
	}
	p.ack()
	p.wantSent(authn)
	p.ackAll()
	p.want(stats, "a2")
	p.want(authn)

	t.Run("refused", func(t *testing.T) {
		a3 := version("a3") // back to authn
		p.assign(a3)
		p.loaded(a3)
		p.wantSent(authn, "a3")
		p.nack("Unable to create Wasm plugin "+a3.Key.String(), "")
		p.ackAll()
		p.want(stats, "a2")
		p.want(authn)
	})
}

func TestContract_UnresolvedUnderDeny(t *testing.T) {
	p := serving(t)
	a1 := version("a1", strategy(chandler.FailOpen), func(v *Version) { v.Program = chandler.Program{Deny: true} })
	p.assign(a1)
	p.ackAll()
	p.want(authn, "deny a")
	p.wantState(a1, chandler.StatePending, "", chandler.StandInDeny, "")
	p.wantReady(true) // FAIL_OPEN concerns no readiness
	a2 := version("a2", strategy(chandler.FailOpen), firstAttachDeny)
	p.assign(a2)
	p.wantQuiet()
	p.loaded(a2)
	p.ackAll()
	p.want(authn, "a2")
}

// When Envoy does not say which plugin it refuses, they are tried one by one, and
// those that are good are in force in the end.
func TestContract_UnknownCulprit(t *testing.T) {
	run := func(p *proxy, bad string) {
		for range 50 {
			if len(p.pushes) == 0 {
				return
			}
			if slices.Contains(held(p.t, p.sent()), bad) {
				p.nack("script load error", "")
			} else {
				p.ack()
			}
		}
		p.t.Fatal("it never comes to rest")
	}
	t.Run("serving", func(t *testing.T) {
		p := serving(t)
		versions := []Version{version("a"), version("b"), version("c"), version("d")}
		p.assign(version("z"))
		p.loaded(version("z"))
		p.ack()
		p.assign(append(versions, version("y"))...)
		for _, v := range versions {
			p.s.loads[source(&v)].path = "/store/x"
			p.s.loads[source(&v)].ready = true // all in one moment
		}
		p.loaded(version("y"))
		run(p, "c")
		p.want(authn, "a", "b", "deny c", "d", "y", "z")
		p.wantState(version("c"), chandler.StateRejected, "", chandler.StandInDeny, chandler.CodeRejected)
		p.wantState(version("d"), chandler.StateInForce, "release-d", chandler.StandInNone, "")
	})
	t.Run("starting", func(t *testing.T) {
		// The slot holds nothing yet: meanwhile nothing may be left out.
		p := serving(t)
		for _, name := range []string{"a", "b", "c"} {
			p.assign(version(name))
			p.loaded(version(name))
			p.ackAll()
		}
		q := p.restarted()
		q.start("envoy-1", false)
		for _, name := range []string{"a", "b", "c"} {
			q.loaded(version(name))
		}
		q.wantSent(authn, "a", "b", "c")
		q.pushes[0], q.pushes[1] = q.pushes[1], q.pushes[0] // the other slot opens
		q.ack()
		q.nack("script load error", "")
		q.wantSent(authn, "deny a", "deny b", "deny c")
		q.step(ListenersOpen{})
		run(q, "b")
		q.want(authn, "a", "deny b", "c")
	})
}

func TestContract_UnknownFeature(t *testing.T) {
	strategies(t, func(t *testing.T, s chandler.FailStrategy, standIn chandler.StandIn, holds []string) {
		p, a := serving(t), version("a", strategy(s), func(v *Version) { v.Requires = []string{"telepathy"} })
		p.assign(a)
		st := p.wantState(a, chandler.StateFailed, "", chandler.StandInNone, chandler.CodeFeatureNotSupported)
		if !strings.Contains(st.Message, "telepathy") || len(p.loads) != 0 {
			t.Errorf("reported as %q, loads %v", st.Message, p.loads)
		}
		p.pass(DefaultFetchDeadline)
		p.ackAll()
		p.want(authn, holds...)
		p.wantState(a, chandler.StateFailed, "", standIn, chandler.CodeFeatureNotSupported)
	})
}

func TestContract_Unmatched(t *testing.T) {
	p := serving(t)
	a := version("a", firstAttachDeny, func(v *Version) { v.Match = []chandler.Match{{Ports: []uint32{9}}} })
	p.assign(a)
	p.pass(time.Hour)
	p.wantQuiet()
	p.wantState(a, chandler.StateUnmatched, "", chandler.StandInNone, chandler.CodeNoListener)
	p.wantReady(true)
	if len(p.loads) != 0 {
		t.Error("its module is fetched, and nobody needs it")
	}
	t.Run("after an edit", func(t *testing.T) {
		b1, b2 := version("b1"), version("b2", func(v *Version) { v.Match = []chandler.Match{{Mode: chandler.ModeServer}} })
		p.assign(b1)
		p.loaded(b1)
		p.ackAll()
		p.assign(b2)
		p.ackAll()
		p.want(authn)
		if len(p.saved.Versions) != 0 {
			t.Errorf("the last good set is %+v", p.saved)
		}
	})
}

// One bad plugin does not hold up the others of its slot.
func TestContract_BadNeighbour(t *testing.T) {
	p, a, b := serving(t), version("a"), version("b")
	p.assign(a, b)
	p.loaded(a)
	p.loaded(b) // waits for the answer to a
	p.nack("Unable to create Wasm plugin "+a.Key.String(), "")
	p.ackAll()
	p.want(authn, "deny a", "b")
}

// A new version that makes no difference to Envoy is in force without a push.
func TestContract_EqualBytes(t *testing.T) {
	p, a1 := serving(t), version("a1")
	a2 := version("a2", func(v *Version) { v.Program, v.RootID = a1.Program, a1.RootID })
	p.assign(a1)
	p.loaded(a1)
	p.ackAll()
	p.assign(a2)
	p.wantQuiet()
	p.wantState(a2, chandler.StateInForce, "release-a2", chandler.StandInNone, "")
	if p.saved.Versions[0].Version != "a2" {
		t.Errorf("the last good set is %+v", p.saved)
	}
}

func TestContract_Removal(t *testing.T) {
	p, a := serving(t), version("a")
	p.assign(a)
	p.loaded(a)
	p.ackAll()
	p.step(Assigned{Removed: []chandler.Key{a.Key}})
	if len(p.saved.Versions) != 0 {
		t.Errorf("the last good set is %+v", p.saved)
	}
	p.ackAll()
	p.want(authn)
	if len(p.s.plugins)+len(p.s.loads)+len(p.s.Report())+len(p.s.Modules()) != 0 {
		t.Error("something of it is remembered")
	}
}

// A load that nobody wants any more is cancelled.
func TestContract_NewerGenerationCancelsTheFetch(t *testing.T) {
	p, a1, a2 := serving(t), version("a1"), version("a2")
	p.assign(a1)
	p.assign(a2)
	if _, old := p.loads[source(&a1)]; old || len(p.loads) != 1 {
		t.Errorf("these load: %v", p.loads)
	}
}

// A file's content is pinned when it is in force, also over a restart.
func TestContract_FileIsPinned(t *testing.T) {
	p := serving(t)
	a := version("a", func(v *Version) { v.Program = chandler.Program{File: &chandler.LocalFile{Path: "/opt/a.wasm"}} })
	p.assign(a)
	p.loaded(a)
	p.ackAll()
	q := p.restarted()
	want := Source{Path: "/opt/a.wasm", Version: "a", Pinned: digestOf("a")}
	if _, ok := q.loads[want]; !ok {
		t.Errorf("these load: %v, want %v", q.loads, want)
	}
	q.assign(a) // as the control plane sends it
	if len(q.loads) != 1 {
		t.Errorf("these load: %v", q.loads)
	}
}

func TestContract_OriginsComeWithTheLoad(t *testing.T) {
	p, a := serving(t), version("a", func(v *Version) { v.Program.Module.Origins = []string{"oci://r.example/a"} })
	p.assign(a)
	if l := p.loads[source(&a)]; !slices.Equal(l.Origins, a.Program.Module.Origins) || l.Attempt != 1 {
		t.Errorf("the load is %+v", l)
	}
	p.loadFails(a, chandler.CodeFetchFailed, true)
	p.pass(maxBackoff)
	if l := p.loads[source(&a)]; l.Attempt != 2 {
		t.Errorf("the second load is %+v", l)
	}
}

func TestContract_Intervals(t *testing.T) {
	for _, c := range []struct {
		temporary bool
		most      time.Duration
	}{{true, maxBackoff}, {false, maxPermanent}} {
		p, a := serving(t), version("a")
		p.assign(a)
		var last time.Duration
		for range 20 {
			p.loadFails(a, chandler.CodeFetchFailed, c.temporary)
			wait := p.s.loads[source(&a)].nextTry.Sub(p.now)
			if wait < last || wait > c.most {
				t.Fatalf("temporary %v: %v after %v", c.temporary, wait, last)
			}
			last = wait
			p.pass(wait)
		}
		if last != c.most {
			t.Errorf("temporary %v: it ends at %v, want %v", c.temporary, last, c.most)
		}
		p.step(Loaded{Source: source(&a), Err: &LoadError{Temporary: true, RetryAfter: time.Hour}})
		if wait := p.s.loads[source(&a)].nextTry.Sub(p.now); wait != time.Hour {
			t.Errorf("asked to wait an hour, it waits %v", wait)
		}
	}
}

func TestContract_TrapsAreReported(t *testing.T) {
	p, a := serving(t), version("a", strategy(chandler.FailReload))
	p.assign(a)
	if p.s.Counted() {
		t.Error("Envoy would be asked about a plugin that is not in force")
	}
	p.loaded(a)
	p.ackAll()
	if !p.s.Counted() {
		t.Error("Envoy would not be asked")
	}
	p.step(Trapped{Counts: map[chandler.Key]VMFaults{a.Key: {Reloads: 2}}})
	st := p.wantState(a, chandler.StateInForce, "release-a", chandler.StandInNone, chandler.CodeVMTrap)
	if st.VMTraps != 2 {
		t.Errorf("%d traps are reported", st.VMTraps)
	}
	if wake := p.s.Wake(); !wake.Equal(p.now.Add(trapMemory)) {
		t.Errorf("it wakes at %v", wake)
	}
	p.pass(trapMemory)
	p.step(Trapped{Counts: map[chandler.Key]VMFaults{a.Key: {Reloads: 2}}})
	p.wantState(a, chandler.StateInForce, "release-a", chandler.StandInNone, "")
}

// An edit that comes while a plugin is on its way into Envoy takes nothing out: what comes
// into force stays until the edit can run, and is what is good meanwhile.
func TestContract_EditOnTheWay(t *testing.T) {
	for name, order := range map[string]func(p *proxy, edit func()){
		"before the acknowledgement": func(p *proxy, edit func()) { edit(); p.ack() },
		"after it":                   func(p *proxy, edit func()) { p.ack(); edit() },
	} {
		t.Run(name, func(t *testing.T) {
			strategies(t, func(t *testing.T, s chandler.FailStrategy, _ chandler.StandIn, _ []string) {
				p := serving(t)
				a1, a2, a3 := version("a1", strategy(s)), version("a2", strategy(s)), version("a3", strategy(s))
				p.assign(a1)
				p.loaded(a1)
				p.wantSent(authn, "a1")
				order(p, func() { p.assign(a2); p.assign(a3) })
				p.want(authn, "a1")
				p.wantQuiet()
				p.pass(2 * DefaultFetchDeadline)
				p.wantQuiet()
				p.wantState(a3, chandler.StateFetching, "release-a1", chandler.StandInNone, "")
				if got := versionsOf(p.saved.Versions); !slices.Equal(got, []string{"a1"}) {
					t.Errorf("saved as good is %v", got)
				}
				p.loaded(a3)
				p.ackAll()
				p.want(authn, "a3")
			})
		})
	}
}

// What was on its way is no better than what is refused, nor than what is taken away.
func TestContract_EditOfWhatIsRefused(t *testing.T) {
	p := serving(t)
	a1, a2, a3 := version("a1"), version("a2"), version("a3")
	p.assign(a1)
	p.loaded(a1)
	p.ackAll()
	p.assign(a2)
	p.loaded(a2)
	p.wantSent(authn, "a2")
	p.assign(a3)
	p.nack("no", "no")
	p.ackAll()
	p.want(authn, "a1")
	p.loaded(a3)
	p.wantSent(authn, "a3")
	p.assign(version("a4"))
	p.step(Assigned{Removed: []chandler.Key{a1.Key}})
	p.ackAll()
	p.want(authn)
	p.assign(version("a5"))
	p.ackAll()
	p.want(authn)

	// Nor than what is meant for other traffic for a while.
	p = serving(t)
	p.assign(a1)
	p.loaded(a1)
	elsewhere := version("a2", func(v *Version) { v.Match = []chandler.Match{{Mode: chandler.ModeServer}} })
	p.assign(elsewhere)
	p.ackAll()
	p.want(authn)
	p.assign(a3)
	p.ackAll()
	p.want(authn)
	if _, ok := p.loads[source(&a1)]; ok {
		t.Error("what was on its way once is loaded again")
	}
}

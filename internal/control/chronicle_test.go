package control_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/wire"
)

// happened gives the events of a kind.
func (r *rig) happened(reason chandler.EventReason) []chandler.Event {
	all, _ := r.Events(0)
	var found []chandler.Event
	for _, e := range all {
		if e.Reason == reason {
			found = append(found, e)
		}
	}
	return found
}

// happens waits for the nth event of a kind, and gives it. There are no more.
func (r *rig) happens(reason chandler.EventReason, n int) chandler.Event {
	r.t.Helper()
	eventually(r.t, func() bool { return len(r.happened(reason)) >= n }, func() string { all, _ := r.Events(0); return fmt.Sprintf("%s: %+v", reason, all) })
	found := r.happened(reason)
	if len(found) != n {
		r.t.Fatalf("%d events %s, want %d: %+v", len(found), reason, n, found)
	}
	return found[n-1]
}

// says checks an event.
func says(t *testing.T, e chandler.Event, by, node string, warning bool, texts ...string) {
	t.Helper()
	if e.By != by || e.Node != node || e.Warning != warning || e.At.IsZero() {
		t.Errorf("by %q, node %q, warning %t: %+v", by, node, warning, e)
	}
	for _, s := range texts {
		if !strings.Contains(e.Message, s) {
			t.Errorf("it lacks %q: %+v", s, e)
		}
	}
}

// What happens to a plugin is told once a turn: from its coming over what every proxy
// makes of it to its end, and by whom.
func TestEvents(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	r.deliver() // what is there at the start is no news
	other := chandler.Node{Namespace: "edge", Name: "n2"}
	a, b := r.join(gateway), r.join(other)

	key := chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "istio-system", Name: "auth"}
	earlier := r.Acting("ann", []chandler.Key{key})
	over := r.Acting("jane", []chandler.Key{key})
	earlier() // which takes nothing from who came after
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	att := a.has("auth", runs(mod))
	over()
	says(t, r.happens(chandler.EventApplied, 1), "jane", "", false, "created, generation 1")
	says(t, r.happens(chandler.EventResolved, 1), "", "", false, "release "+att.Release.Short(), "oci://reg.example/auth")

	// Two proxies refuse it, and say so again and again.
	left, right := a.report(), b.report()
	for i := uint64(1); i <= 3; i++ {
		refused := wire.Report{Node: &gateway, Sequence: i, Full: true, States: []chandler.AttachmentState{stateOf(att, chandler.StateRejected, i)}}
		if err := say(t, left, refused); err != nil {
			t.Fatal(err)
		}
		refused.Node = &other
		if err := say(t, right, refused); err != nil {
			t.Fatal(err)
		}
	}
	r.await("auth", chandler.ConditionReady, "False Rejected")
	e := r.happens(chandler.EventRejected, 1)
	says(t, e, "", e.Node, true, e.Node+" refuses release "+att.Release.Short(), "Unable to create Wasm plugin")

	// In force everywhere, with a VM that ends on one.
	if err := say(t, right, wire.Report{Sequence: 4, Full: true, States: []chandler.AttachmentState{stateOf(att, chandler.StateInForce, 3)}}); err != nil {
		t.Fatal(err)
	}
	trapped := stateOf(att, chandler.StateInForce, 3)
	trapped.Reason, trapped.Message, trapped.VMTraps = chandler.CodeVMTrap, "the VM ended", 1
	if err := say(t, left, wire.Report{Sequence: 4, Full: true, States: []chandler.AttachmentState{trapped}}); err != nil {
		t.Fatal(err)
	}
	says(t, r.happens(chandler.EventInForce, 1), "", "", false, "in force on all 2 proxies")
	says(t, r.happens(chandler.EventTrapped, 1), "", "istio-system/gw", true, "the VM ended", att.Release.Short())

	// The next version cannot be had, however often it is tried.
	r.apply("auth", "oci://reg.example/auth:v2", nil)
	says(t, r.happens(chandler.EventApplied, 2), "", "", false, "changed, generation 2")
	says(t, r.happens(chandler.EventNotResolved, 1), "", "", true, "generation 2 cannot be resolved: NotFound", "no such tag")
	eventually(t, func() bool { return r.status("auth").Attempt >= 2 }, func() string { return "tried once" })
	r.happens(chandler.EventNotResolved, 1)

	b.stop()
	says(t, r.happens(chandler.EventDisconnected, 1), "", "edge/n2", true, "disconnected")
	if len(r.happened(chandler.EventConnected)) != 2 {
		t.Errorf("came: %+v", r.happened(chandler.EventConnected))
	}

	o := r.objects["auth"]
	o.Generation, o.Problems = 3, []chandler.Problem{{Code: chandler.CodeSpecEnum, Field: "spec.phase", Message: "phase is unknown"}}
	r.objects["auth"] = o
	r.deliver()
	says(t, r.happens(chandler.EventApplied, 3), "", "", true, "generation 3 is not valid: spec.phase: phase is unknown")
	delete(r.objects, "auth")
	r.deliver()
	says(t, r.happens(chandler.EventDeleted, 1), "", "", false, "generation 3 was the last")
}

// After a restart nothing is told of what was in force before.
func TestEventsOfARestart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	a := r.join(gateway)
	att := a.has("auth", runs(mod))
	if err := say(t, a.report(), wire.Report{Node: &gateway, Sequence: 1, Full: true, States: []chandler.AttachmentState{stateOf(att, chandler.StateInForce, 0)}}); err != nil {
		t.Fatal(err)
	}
	r.happens(chandler.EventInForce, 1)
	a.stop()
	r.restart()
	r.deliver()
	a.connect(r)
	if err := say(t, a.report(), wire.Report{Node: &gateway, Sequence: 1, Full: true, States: []chandler.AttachmentState{stateOf(att, chandler.StateInForce, 0)}}); err != nil {
		t.Fatal(err)
	}
	r.await("auth", chandler.ConditionReady, "True Ready")
	r.happens(chandler.EventConnected, 1) // a look has taken place
	for _, reason := range []chandler.EventReason{chandler.EventApplied, chandler.EventResolved, chandler.EventInForce} {
		if got := r.happened(reason); len(got) > 0 {
			t.Errorf("told anew: %+v", got)
		}
	}
}

// Many proxies that come at once are a few events.
func TestEventsOfManyProxies(t *testing.T) {
	t.Parallel()
	synctest.Test(t, eventsOfManyProxies)
}

func eventsOfManyProxies(t *testing.T) {
	r := newRig(t)
	r.deliver()
	const many = 60
	for i := range many {
		r.join(chandler.Node{Namespace: "edge", Name: fmt.Sprintf("n%02d", i)})
	}
	eventually(t, func() bool { return len(r.Proxies()) == many }, func() string { return fmt.Sprint(len(r.Proxies())) })
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	r.happens(chandler.EventNotResolved, 1)
	seen := 0
	eventually(t, func() bool {
		seen = 0
		for _, e := range r.happened(chandler.EventConnected) {
			n := 1
			if e.Node == "" {
				fmt.Sscanf(e.Message, "%d proxies connected", &n)
			}
			seen += n
		}
		return seen == many
	}, func() string { return fmt.Sprint(seen) })
	if n := len(r.happened(chandler.EventConnected)); n > many/2 {
		t.Errorf("%d events of %d proxies", n, many)
	}
}

// Another policy is told, and what it has against a plugin, once.
func TestEventsOfAPolicy(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.deliver()
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	r.happens(chandler.EventNotResolved, 1)
	r.Govern(t.Context(), &gate{hash: "strict", deny: map[string]chandler.Code{"auth": chandler.CodePolicyDenied}})
	says(t, r.happens(chandler.EventPolicy, 1), "", "", false, "1 plugin is")
	says(t, r.happens(chandler.EventNotResolved, 2), "", "", true, "against the operator's policy")
	r.deliver()
	r.happens(chandler.EventNotResolved, 2)
}

// A plugin that is taken out on a machine, and put back, is told once each.
func TestEventsOfABypass(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.deliver()
	str := r.join(gateway).report()
	key := chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "istio-system", Name: "auth"}
	facts := func(sequence uint64, bypassed ...chandler.Bypass) {
		t.Helper()
		if err := say(t, str, wire.Report{Node: &gateway, Sequence: sequence, Full: sequence == 1, Facts: &chandler.Facts{Bypassed: bypassed}}); err != nil {
			t.Fatal(err)
		}
	}
	facts(1)
	facts(2, chandler.Bypass{Key: key, Reason: "it hangs"})
	says(t, r.happens(chandler.EventBypassed, 1), "", "istio-system/gw", true, "taken out on the machine itself: it hangs")
	facts(3, chandler.Bypass{Key: key, Reason: "it hangs"})
	facts(4)
	says(t, r.happens(chandler.EventBypassed, 2), "", "istio-system/gw", false, "put back")
}

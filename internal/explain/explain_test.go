package explain_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/explain"
)

var (
	key   = chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "edge", Name: "auth"}
	since = time.Date(2026, 11, 28, 9, 0, 0, 0, time.UTC)
)

const (
	newest = chandler.ReleaseID("aaaaaaaaaaaaaaaaaaaaaaaa")
	before = chandler.ReleaseID("bbbbbbbbbbbbbbbbbbbbbbbb")
)

// good is a plugin in force on a proxy, as everything would have it.
func good() explain.Input {
	release := &chandler.Release{ID: newest, Key: key, UID: "u", Generation: 2, Behaviour: chandler.Behaviour{Type: chandler.HTTP, Phase: chandler.PhaseAuthn}}
	return explain.Input{
		Key: key, Node: "edge/n1", Root: "istio-system",
		Object: &explain.Object{
			Generation: 2, Release: release, History: []*chandler.Release{{ID: before, Key: key, UID: "u", Generation: 1, Behaviour: release.Behaviour}},
			Plugin:   &chandler.Plugin{Key: key, UID: "u", Generation: 2, Type: chandler.HTTP, Phase: chandler.PhaseAuthn, Selector: map[string]string{"app": "edge"}},
			Resolved: chandler.Condition{Status: chandler.True, Reason: chandler.CodeResolved, Message: "oci://r/x is module sha256:1"},
		},
		Proxy: &explain.Proxy{
			Node: chandler.Node{Namespace: "edge", Name: "n1", Labels: map[string]string{"app": "edge"}, AgentVersion: "v1", EnvoyVersion: "1.40.0", Features: []string{chandler.FeatureHTTP}}, Connected: true, Since: since,
			Facts: &chandler.Facts{Slots: true, Listeners: []chandler.Listener{
				{Name: "in", Mode: chandler.ModeClient, Port: 8080, Slots: []chandler.Slot{{Type: chandler.HTTP}}},
				{Name: "tcp", Mode: chandler.ModeClient, Port: 9000},
			}},
			State: &chandler.AttachmentState{Key: key, UID: "u", Release: newest, InForce: newest, State: chandler.StateInForce, Since: since},
		},
	}
}

// What decides is told to the first thing that does not hold, in words that say what
// is to be done about it.
func TestExplain(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		spoil  func(*explain.Input)
		last   string // check
		holds  bool
		wanted bool
		says   []string // in the verdict
	}{
		{"in force", func(*explain.Input) {}, "in force", true, true, []string{"WasmPlugin edge/auth is in force (release aaaaaaaaaaaa) on edge/n1: since 2026-11-28T09:00:00Z"}},
		{"no plugin", func(in *explain.Input) { in.Object = nil }, "exists", false, false, []string{"there is no such plugin"}},
		{"not valid", func(in *explain.Input) {
			in.Object.Generation, in.Object.Problems = 3, []chandler.Problem{{Field: "spec.phase", Message: "phase is unknown"}}
		}, "accepted", false, false, []string{"is in force (release aaaaaaaaaaaa)", "generation 3 is not valid, so generation 2 counts: spec.phase: phase is unknown"}},
		{"never valid", func(in *explain.Input) {
			in.Object.Plugin, in.Object.Problems, in.Proxy.State = nil, []chandler.Problem{{Message: "no"}}, nil
		}, "accepted", false, false, []string{"is not on edge/n1", "none was before"}},
		{"no proxy", func(in *explain.Input) { in.Proxy = nil }, "known", false, false, []string{"no proxy of that name is known"}},
		{"another namespace", func(in *explain.Input) { in.Proxy.Namespace, in.Proxy.State = "shop", nil }, "namespace", false, true, []string{"a plugin of namespace edge", "only those of istio-system are for all"}},
		{"another namespace without a root", func(in *explain.Input) { in.Proxy.Namespace, in.Proxy.State, in.Root = "shop", nil, "" }, "namespace", false, true, []string{"there is no root namespace"}},
		{"in force where it is not meant to be", func(in *explain.Input) { in.Proxy.Namespace = "shop" }, "namespace", false, false, []string{"is in force"}},
		{"label missing", func(in *explain.Input) { in.Proxy.Labels, in.Proxy.State = nil, nil }, "selector", false, true, []string{`no label app, which has to be "edge"`}},
		{"label differs", func(in *explain.Input) { in.Proxy.Labels, in.Proxy.State = map[string]string{"app": "web"}, nil }, "selector", false, true, []string{`label app is "web", and has to be "edge"`}},
		{"another gateway", func(in *explain.Input) {
			in.Object.Plugin.Selector, in.Object.Plugin.TargetRefs = nil, []chandler.TargetRef{{Group: "gateway.networking.k8s.io", Kind: "Gateway", Name: "g"}}
			in.Proxy.Labels, in.Proxy.State = map[string]string{"gateway.networking.k8s.io/gateway-name": "h"}, nil
		}, "targetRefs", false, true, []string{"none of Gateway g", "it declares gateway.networking.k8s.io/gateway-name=h"}},
		{"a waypoint", func(in *explain.Input) {
			in.Proxy.Labels, in.Proxy.State = map[string]string{"app": "edge", "gateway.networking.k8s.io/gateway-class-name": "istio-waypoint"}, nil
		}, "supported", false, false, []string{"is not on", "UnsupportedTarget", "waypoint"}},
		{"a waypoint that is not meant", func(in *explain.Input) {
			in.Proxy.Labels, in.Proxy.State = map[string]string{"gateway.networking.k8s.io/gateway-class-name": "istio-waypoint"}, nil
		}, "selector", false, true, []string{"no label app"}},
		{"against the policy", func(in *explain.Input) {
			in.Object.Against = []chandler.Problem{{Field: "spec.url", Message: "not from there"}}
		}, "policy", false, false, []string{"against the operator's policy: spec.url: not from there"}},
		{"taken out by the policy", func(in *explain.Input) {
			in.Object.Detached, in.Proxy.State = map[chandler.ReleaseID]string{in.Object.Release.ID: "nobody signed it"}, nil
		}, "policy", false, false, []string{"is not on", "taken out: nobody signed it"}},
		{"not resolved", func(in *explain.Input) {
			in.Object.Resolved = chandler.Condition{Status: chandler.False, Reason: chandler.CodeNotFound, Message: "no such tag"}
		}, "resolved", false, false, []string{"is in force", "NotFound: no such tag; release aaaaaaaaaaaa of generation 2 stays"}},
		{"disabled here", func(in *explain.Input) {
			in.Rollout, in.Chosen = &chandler.Rollout{To: newest, State: chandler.RolloutHealthy, Disabled: []chandler.Disablement{{Node: "edge/n1", By: "jane", Reason: "fire", At: since}}}, true
			in.Proxy.State = nil
		}, "disabled", false, false, []string{"disabled by jane", "fire"}},
		{"disabled elsewhere", func(in *explain.Input) {
			in.Rollout, in.Chosen = &chandler.Rollout{To: newest, State: chandler.RolloutHealthy, Disabled: []chandler.Disablement{{Node: "edge/n2"}}}, true
		}, "in force", true, true, nil},
		{"its turn is to come", func(in *explain.Input) {
			in.Rollout = &chandler.Rollout{From: before, To: newest, State: chandler.RolloutProgressing, Plan: &chandler.RolloutPlan{Steps: []chandler.RolloutStep{{Percent: 10}, {Percent: 100}}}}
			in.Proxy.State.Release, in.Proxy.State.InForce = before, before
		}, "rollout", false, true, []string{"is in force (release bbbbbbbbbbbb)", "step 1 of 2 to release aaaaaaaaaaaa has not come to this proxy; it keeps release bbbbbbbbbbbb"}},
		{"paused before its turn", func(in *explain.Input) {
			in.Rollout = &chandler.Rollout{From: before, To: newest, State: chandler.RolloutPaused, Message: "too few requests"}
		}, "rollout", false, false, []string{"paused", "too few requests"}},
		{"taken back", func(in *explain.Input) {
			in.Rollout, in.Chosen = &chandler.Rollout{From: before, To: before, State: chandler.RolloutDegraded, Message: "VMs ended"}, true
			in.Proxy.State.Release, in.Proxy.State.InForce = before, before
		}, "rollout", false, false, []string{"taken back: VMs ended; the proxy has release bbbbbbbbbbbb"}},
		{"pinned", func(in *explain.Input) {
			in.Rollout, in.Chosen = &chandler.Rollout{From: newest, To: before, State: chandler.RolloutHealthy, Pinned: true}, true
			in.Proxy.State.Release, in.Proxy.State.InForce = before, before
		}, "in force", true, false, []string{"pinned"}},
		{"not tried", func(in *explain.Input) { in.Withhold = true }, "envoy version", false, false, []string{"nobody tried it in Envoy 1.40.0"}},
		{"away", func(in *explain.Input) { in.Proxy.Connected = false }, "connected", false, false, []string{"not connected since 2026-11-28T09:00:00Z"}},
		{"bypassed", func(in *explain.Input) {
			in.Proxy.Facts.Bypassed = []chandler.Bypass{{Key: key, Reason: "at night", At: since}}
			in.Proxy.State = nil
		}, "bypassed", false, false, []string{"on the machine itself", "at night"}},
		{"an older agent", func(in *explain.Input) { in.Object.Release.Type = chandler.Network }, "features", false, false, []string{`(v1) cannot do "network"`}},
		{"another port", func(in *explain.Input) {
			in.Object.Release.Match, in.Proxy.State = []chandler.Match{{Ports: []uint32{9090}}}, nil
		}, "match", false, true, []string{"it matches no listener; in (CLIENT, port 8080): its match entries want another mode or port"}},
		{"no HTTP listener", func(in *explain.Input) {
			in.Object.Release.Match, in.Proxy.State = []chandler.Match{{Ports: []uint32{9000}}}, nil
		}, "match", false, true, []string{"tcp (CLIENT, port 9000): it has no HTTP connection manager"}},
		{"nothing said", func(in *explain.Input) { in.Proxy.State = nil }, "told", false, false, []string{"has said nothing of it yet"}},
		{"said of another of the name", func(in *explain.Input) { in.Proxy.State.UID = "other" }, "told", false, false, []string{"has said nothing of it yet"}},
		{"a step behind", func(in *explain.Input) { in.Proxy.State.Release = before }, "told", false, false, []string{"still at release bbbbbbbbbbbb"}},
		{"fetching", func(in *explain.Input) { in.Proxy.State.State, in.Proxy.State.InForce = chandler.StateFetching, "" }, "fetched", false, false, []string{"is not on", "being fetched"}},
		{"waiting", func(in *explain.Input) { in.Proxy.State.State, in.Proxy.State.Attempt = chandler.StatePending, 2 }, "fetched", false, false, []string{"waits for its turn: (attempt 2)"}},
		{"sent", func(in *explain.Input) { in.Proxy.State.State = chandler.StateReady }, "acknowledged", false, false, []string{"has not answered yet"}},
		{"cannot be had", func(in *explain.Input) {
			*in.Proxy.State = chandler.AttachmentState{UID: "u", Release: newest, State: chandler.StateFailed, StandIn: chandler.StandInDeny, Reason: chandler.CodeFetchFailed, Message: "connection refused", Attempt: 3, NextTry: since}
		}, "fetched", false, false, []string{"has requests refused in its place on", "FetchFailed: connection refused (attempt 3, next at 2026-11-28T09:00:00Z)"}},
		{"refused", func(in *explain.Input) {
			in.Proxy.State.State, in.Proxy.State.InForce, in.Proxy.State.Reason, in.Proxy.State.Message = chandler.StateRejected, before, chandler.CodeRejected, "Unable to create Wasm plugin"
		}, "acknowledged", false, false, []string{"is in force (release bbbbbbbbbbbb)", "Envoy refuses it: Rejected: Unable to create Wasm plugin"}},
		{"Envoy is down", func(in *explain.Input) {
			in.Proxy.State.Reason, in.Proxy.State.Message = chandler.CodeEnvoyDown, "Envoy is not running"
		}, "in force", false, false, []string{"Envoy is not running"}},
	} {
		in := good()
		c.spoil(&in)
		a := explain.Explain(in)
		last := a.Checks[len(a.Checks)-1]
		if last.Name != c.last || last.Holds != c.holds || a.AsWanted != c.wanted {
			t.Errorf("%s: it ends with %+v, as wanted %t (%s)", c.name, last, a.AsWanted, a.Verdict)
		}
		for _, s := range c.says {
			if !strings.Contains(a.Verdict, s) {
				t.Errorf("%s: the verdict lacks %q: %s", c.name, s, a.Verdict)
			}
		}
		if i := slices.IndexFunc(a.Checks, func(c explain.Check) bool { return !c.Holds }); i >= 0 && i != len(a.Checks)-1 {
			t.Errorf("%s: it goes on behind what does not hold: %+v", c.name, a.Checks)
		}
		for _, check := range a.Checks {
			if check.Message == "" || strings.TrimRight(check.Message, " :") != check.Message {
				t.Errorf("%s: check %s says nothing, or half a sentence: %q", c.name, check.Name, check.Message)
			}
		}
	}
}

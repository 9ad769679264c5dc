package dashboard

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/schema"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/testenv/leaks"
)

func TestMain(m *testing.M) { leaks.Main(m) }

var noon = time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)

// fakeFleet is a fleet that tests change.
type fakeFleet struct {
	mu       sync.Mutex
	objects  []control.ObjectView
	proxies  []control.ProxyView
	rollouts []control.RolloutView
	events   []chandler.Event
	broken   []source.Broken
	partial  string
	err      error
	changed  chan struct{}
	more     chan struct{}
	joins    int // how often objects were asked for

	orders   []control.Steering
	disabled []chandler.Disablement
	enabled  []chandler.Disablement
	refuse   error
}

func (f *fakeFleet) Objects(context.Context) ([]control.ObjectView, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.joins++
	return append([]control.ObjectView(nil), f.objects...), f.err
}

func (f *fakeFleet) Proxies() []control.ProxyView {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]control.ProxyView(nil), f.proxies...)
}

func (f *fakeFleet) RootNamespace() string { return "istio-system" }

func (f *fakeFleet) Broken() []source.Broken { return f.broken }

func (f *fakeFleet) Partial() string { return f.partial }

func (f *fakeFleet) Events(uint64) ([]chandler.Event, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.more == nil {
		f.more = make(chan struct{})
	}
	return f.events[:len(f.events):len(f.events)], f.more
}

func (f *fakeFleet) Changed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.changed == nil {
		f.changed = make(chan struct{})
	}
	return f.changed
}

func (f *fakeFleet) Rollouts(context.Context) ([]control.RolloutView, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]control.RolloutView(nil), f.rollouts...), nil
}

func (f *fakeFleet) Steer(_ context.Context, o control.Steering) (control.RolloutView, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.orders = append(f.orders, o)
	return control.RolloutView{}, f.refuse
}

func (f *fakeFleet) Disable(_ context.Context, _ chandler.Key, d chandler.Disablement) (control.RolloutView, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.disabled = append(f.disabled, d)
	return control.RolloutView{}, f.refuse
}

func (f *fakeFleet) Enable(_ context.Context, _ chandler.Key, d chandler.Disablement) (control.RolloutView, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.enabled = append(f.enabled, d)
	return control.RolloutView{}, f.refuse
}

// change changes the fleet, and says so.
func (f *fakeFleet) change(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
	if f.changed != nil {
		close(f.changed)
		f.changed = nil
	}
}

// set has a proxy say that a plugin is in another state.
func (f *fakeFleet) set(plugin, proxy int, state chandler.State, reason chandler.Code, message string) {
	f.change(func() {
		o := &f.objects[plugin]
		o.Status.Proxies = append([]chandler.ProxyStatus(nil), o.Status.Proxies...)
		line := &o.Status.Proxies[proxy]
		if line.State == chandler.StateInForce {
			o.Status.InForce--
		}
		line.State, line.Reason, line.Message = state, reason, message
		if state == chandler.StateInForce {
			line.InForce = line.Release
			o.Status.InForce++
		}
	})
}

func (f *fakeFleet) emit(e chandler.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e.ID = uint64(len(f.events) + 1)
	f.events = append(f.events, e)
	if f.more != nil {
		close(f.more)
		f.more = nil
	}
}

// fakeViewer may do verbs, in one namespace or everywhere.
type fakeViewer struct {
	name  string
	known bool
	verbs []access.Verb
	only  string // the namespace; empty: everywhere
	err   error
}

func (v fakeViewer) Name() string { return v.name }
func (v fakeViewer) Known() bool  { return v.known }
func (v fakeViewer) From() string { return "127.0.0.1:5" }

func (v fakeViewer) has(verb access.Verb) bool {
	for _, one := range v.verbs {
		if one == verb {
			return true
		}
	}
	return false
}

func (v fakeViewer) Somewhere(verb access.Verb) bool { return v.has(verb) }

func (v fakeViewer) Allowed(_ context.Context, verb access.Verb, namespace string) (bool, error) {
	return v.err == nil && v.has(verb) && (v.only == "" || v.only == namespace), v.err
}

var (
	admin  = fakeViewer{name: "ada", known: true, verbs: []access.Verb{access.List, access.Read, access.Steer}}
	looker = fakeViewer{name: "nobody", verbs: []access.Verb{access.List}}
)

// as has a request come from somebody.
func as(v Viewer) func(context.Context) Viewer { return func(context.Context) Viewer { return v } }

type fakeSignIn struct{}

func (fakeSignIn) SignIn(_ *http.Request, token string) (*http.Cookie, error) {
	if token != "right" {
		return nil, errors.New("the token is nobody's")
	}
	return &http.Cookie{Name: "c", Value: "sealed", Path: Root}, nil
}

func (fakeSignIn) SignOut(*http.Request) *http.Cookie {
	return &http.Cookie{Name: "c", Path: Root, MaxAge: -1}
}

func digestOf(s string) chandler.ModuleDigest {
	return chandler.Digest[chandler.ModuleDigest]([]byte(s))
}

// releaseOf makes a release of a plugin; the number makes it another.
func releaseOf(k chandler.Key, n int, config string) *chandler.Release {
	r := chandler.Release{
		Key: k, UID: "uid-" + k.Name, Generation: int64(n), Asked: fmt.Sprintf("oci://registry.example/%s:1.%d", k.Name, n),
		Reference: fmt.Sprintf("oci://registry.example/%s:1.%d", k.Name, n),
		Artifact:  chandler.Digest[chandler.ArtifactDigest](fmt.Append(nil, "a", k, n)), Blob: chandler.Digest[chandler.BlobDigest](fmt.Append(nil, "b", k, n)), BlobSize: 900_000,
		ABI: "0.2.1", Program: chandler.Program{Module: &chandler.Module{Digest: digestOf(fmt.Sprint(k, n)), Size: 2_621_440}},
		Behaviour: chandler.Behaviour{Type: chandler.HTTP, Phase: chandler.PhaseAuthn, FailStrategy: chandler.FailClose, Config: []byte(config), Env: []chandler.EnvVar{{Name: "MODE", Value: "env-value"}}},
	}.WithID()
	r.ResolvedAt = noon.Add(-time.Duration(10-n) * time.Hour)
	r.CodeSize = 1_400_000
	r.Verdicts = []chandler.Verdict{
		{Judge: chandler.JudgeStatic, At: r.ResolvedAt},
		{Judge: chandler.JudgeEnvoy, EnvoyVersion: "1.40.0", At: r.ResolvedAt, Probed: true},
		{Judge: chandler.JudgePolicy, PolicyHash: "5f0c1d2e3a4b5c6d", At: r.ResolvedAt, SignedBy: []string{"release@registry.example"}},
	}
	return &r
}

// scene is a fleet of some namespaces with proxies, and plugins for all or for one of
// them.
func scene(proxies, plugins int) *fakeFleet {
	f := &fakeFleet{}
	names := []string{"edge", "shop", "pay"}
	for i := range proxies {
		namespace := names[0]
		if i >= proxies*6/10 {
			namespace = names[1]
		}
		if i >= proxies*9/10 {
			namespace = names[2]
		}
		n := chandler.Node{
			Name: fmt.Sprintf("proxy-%04d", i), Namespace: namespace, Labels: map[string]string{"zone": fmt.Sprintf("z%d", i%3)},
			AgentVersion: "0.8.0", EnvoyVersion: []string{"1.40.0", "1.40.0", "1.39.2"}[i%3], Features: []string{chandler.FeatureHTTP, chandler.FeatureSlots},
		}
		f.proxies = append(f.proxies, control.ProxyView{Node: n, Connected: true, Since: noon.Add(-3 * time.Hour), States: map[chandler.Key]chandler.AttachmentState{}})
	}
	for i := range plugins {
		k := chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "istio-system", Name: []string{"auth", "rate-limit", "headers", "audit", "geo", "rewrite"}[i%6] + strings.Repeat("-x", i/6)}
		if i%7 == 5 {
			k.Namespace = "shop"
		}
		f.objects = append(f.objects, f.object(k))
	}
	return f
}

// object is a plugin that is in force everywhere it is for.
func (f *fakeFleet) object(k chandler.Key) control.ObjectView {
	r := releaseOf(k, 3, `{"rules":[{"prefix":"/admin","credentials":["a:b"]}],"realm":"staff"}`)
	v := control.ObjectView{
		Object: source.Object{
			Key: k, UID: r.UID, Generation: 3, Created: noon.Add(-24 * time.Hour), Manifest: []byte("kind: WasmPlugin\n"),
			Plugin: &chandler.Plugin{Key: k, UID: r.UID, Generation: 3, Phase: chandler.PhaseAuthn, Wasm: &chandler.Wasm{}},
		},
		Status: chandler.Status{ObservedGeneration: 3, Release: r},
	}
	for _, p := range f.proxies {
		if k.Namespace != "istio-system" && k.Namespace != p.Namespace {
			continue
		}
		state := chandler.AttachmentState{
			Key: k, UID: r.UID, Generation: 3, Release: r.ID, Sequence: 3, State: chandler.StateInForce, InForce: r.ID, Since: noon.Add(-time.Hour),
		}
		v.Status.Proxies = append(v.Status.Proxies, chandler.ProxyStatus{
			Node: p.Name, Namespace: p.Namespace, Connected: true, AgentVersion: p.AgentVersion, EnvoyVersion: p.EnvoyVersion, AttachmentState: state,
		})
		p.States[k] = state
		v.Status.Desired++
		v.Status.InForce++
	}
	for _, t := range []chandler.ConditionType{chandler.ConditionAccepted, chandler.ConditionResolvedRefs, chandler.ConditionProgrammed, chandler.ConditionReady} {
		v.Status.Conditions = append(v.Status.Conditions, chandler.Condition{Type: t, Status: chandler.True, Reason: chandler.Code(t), ObservedGeneration: 3, LastTransition: noon.Add(-time.Hour)})
	}
	return v
}

// told gives a fleet with something to tell: a rollout that is under way, one that was
// taken back, a plugin that is disabled, one that Envoys refuse, and a proxy that is away.
func told(t testing.TB, proxies, plugins int) *fakeFleet {
	f := scene(proxies, plugins)
	ready := func(o *control.ObjectView, status chandler.ConditionStatus, reason chandler.Code, message string) {
		c := &o.Status.Conditions[3]
		c.Status, c.Reason, c.Message = status, reason, message
	}
	// auth: a canary that goes well.
	auth := &f.objects[0]
	before, middle := releaseOf(auth.Key, 2, `{"rules":[{"prefix":"/admin","credentials":["a:old"]}],"realm":"staff"}`), releaseOf(auth.Key, 1, `{"rules":[],"realm":"guests"}`)
	chosen := max(len(auth.Status.Proxies)/10, 1)
	for i := range auth.Status.Proxies {
		if i%10 != 3 {
			l := &auth.Status.Proxies[i]
			l.Release, l.InForce = before.ID, before.ID
		}
	}
	auth.Status.InForce = chosen
	ready(auth, chandler.Unknown, "Progressing", "1 of 3 steps is done")
	s, problem := schema.Compile([]byte(`{"type":"object","properties":{"realm":{"type":"string","description":"What a browser shows when it asks."},"rules":{"type":"array","items":{"type":"object","required":["prefix"],"properties":{"prefix":{"type":"string"},"credentials":{"type":"array","writeOnly":true,"items":{"type":"string"}}}}}}}`))
	if problem != nil {
		t.Fatal(problem)
	}
	auth.Schema, auth.Hidden = s, s.Hidden
	f.rollouts = append(f.rollouts, control.RolloutView{
		Releases: []*chandler.Release{before, middle},
		Rollout: chandler.Rollout{
			Key: auth.Key, UID: auth.UID, Generation: 3, State: chandler.RolloutProgressing, From: before.ID, To: auth.Status.Release.ID,
			Plan:    &chandler.RolloutPlan{Steps: []chandler.RolloutStep{{Percent: 10}, {Percent: 50}, {Percent: 100}}, Interval: 5 * time.Minute, OnFailure: chandler.OnFailureRollback},
			Message: "the interval is not over", Since: noon.Add(-2 * time.Minute), Next: noon.Add(3 * time.Minute),
			Proxies: len(auth.Status.Proxies), Chosen: chosen, Updated: chosen,
			Gates: []chandler.Measure{
				{Gate: chandler.GateInForce, Result: chandler.GateHolds, Chosen: float64(chosen), Limit: float64(chosen)},
				{Gate: chandler.GateRejections, Result: chandler.GateHolds},
				{Gate: chandler.GateTraps, Result: chandler.GateHolds},
				{Gate: chandler.GateSuccess, Result: chandler.GateHolds, Chosen: .9812, Others: .9834, Before: .9830, HasOthers: true, HasBefore: true, Limit: .95},
				{Gate: chandler.GateClientError, Result: chandler.GateHolds, Chosen: .0121, Others: .0118, Before: .012, HasOthers: true, HasBefore: true, Limit: .03},
				{Gate: chandler.GateServerError, Result: chandler.GateInconclusive, Chosen: .0, Limit: .01, Message: "84 requests of 100"},
				{Gate: chandler.GateLatency, Result: chandler.GateWaiting, Chosen: .048, Others: .043, HasOthers: true, Limit: .086, Message: "until 12:03"},
			},
			History: []chandler.HistoricRelease{
				{Release: auth.Status.Release.ID, Generation: 3, Sequence: 3, At: noon.Add(-2 * time.Minute), Outcome: "InForce"},
				{Release: before.ID, Generation: 2, Sequence: 2, At: noon.Add(-26 * time.Hour), Outcome: "Superseded"},
				{Release: middle.ID, Generation: 1, Sequence: 1, At: noon.Add(-50 * time.Hour), Outcome: "RolledBack", Why: "403 for 98 % of requests"},
				{Release: chandler.ReleaseID(strings.Repeat("ab", 32)), Generation: 1, At: noon.Add(-80 * time.Hour), Outcome: "Undone", By: "joe", Why: "wrong list"},
			},
		},
	})
	healthy := func(i int, change func(*chandler.Rollout)) {
		if i >= len(f.objects) {
			return
		}
		o := &f.objects[i]
		r := chandler.Rollout{
			Key: o.Key, UID: o.UID, Generation: 3, State: chandler.RolloutHealthy, From: o.Status.Release.ID, To: o.Status.Release.ID, Since: noon.Add(-time.Hour),
			Proxies: o.Status.Desired, Chosen: o.Status.Desired, Updated: o.Status.InForce,
			History: []chandler.HistoricRelease{{Release: o.Status.Release.ID, Generation: 3, At: noon.Add(-time.Hour), Outcome: "InForce"}},
		}
		change(&r)
		f.rollouts = append(f.rollouts, control.RolloutView{Rollout: r})
	}
	healthy(1, func(r *chandler.Rollout) {
		r.State, r.Reason, r.Message = chandler.RolloutDegraded, "GateFailed", "2xx 41.20 % on the chosen proxies, 98.31 % on the others, at least 93.31 %"
		r.Plan, r.Step = f.rollouts[0].Plan, 0
		r.Gates = []chandler.Measure{{Gate: chandler.GateSuccess, Result: chandler.GateFailed, Chosen: .412, Others: .9831, Before: .982, HasOthers: true, HasBefore: true, Limit: .9331, Message: "41.20 % on the chosen proxies"}}
	})
	healthy(2, func(r *chandler.Rollout) {
		r.Disabled = []chandler.Disablement{{Reason: "adds a header that breaks the shop", By: "ada", At: noon.Add(-10 * time.Minute)}}
	})
	if len(f.objects) > 2 { // what is taken out is spoken of no more, but by one proxy
		headers := &f.objects[2]
		headers.Status.Proxies = headers.Status.Proxies[:1]
		headers.Status.InForce, headers.Status.Desired = 0, 0
	}
	healthy(3, func(*chandler.Rollout) {})
	if len(f.objects) > 4 {
		geo := &f.objects[4]
		for i := range geo.Status.Proxies {
			if i%9 == 4 {
				l := &geo.Status.Proxies[i]
				l.State, l.Reason, l.Attempt, l.NextTry = chandler.StateRejected, "EnvoyRejected", 2, noon.Add(5*time.Minute)
				l.Message = "Wasm VM failed Failed to initialize Wasm code: plugin_start: cannot read the database of places"
				l.InForce, l.Release = releaseOf(geo.Key, 2, `{}`).ID, geo.Status.Release.ID
				geo.Status.InForce--
				geo.Status.Failed++
			}
		}
		ready(geo, chandler.False, "EnvoyRejected", chandler.Count(geo.Status.Failed, "proxy refuses", "proxies refuse")+" it")
	}
	f.leave(len(f.proxies) - 1)
	f.facts(0)
	for i, e := range []chandler.Event{
		{Key: auth.Key, Reason: chandler.EventApplied, Message: "generation 3", By: "ada"},
		{Key: auth.Key, Reason: chandler.EventResolved, Message: "oci://registry.example/auth:1.3"},
		{Key: auth.Key, Reason: chandler.EventRolloutStarted, Message: "10%, 50%, 100%"},
		{Node: f.proxies[len(f.proxies)-1].ID(), Reason: chandler.EventDisconnected, Warning: true, Message: "the stream ended"},
		{Key: f.objects[min(1, len(f.objects)-1)].Key, Reason: chandler.EventRolledBack, Warning: true, Message: "2xx 41.20 % on the chosen proxies"},
		{Key: f.objects[min(2, len(f.objects)-1)].Key, Reason: chandler.EventDisabled, Warning: true, Message: "adds a header that breaks the shop", By: "ada"},
		{Key: f.objects[min(4, len(f.objects)-1)].Key, Node: f.proxies[0].ID(), Reason: chandler.EventRejected, Warning: true, Message: "cannot read the database of places"},
	} {
		e.At = noon.Add(time.Duration(i-20) * time.Minute)
		f.emit(e)
	}
	return f
}

// leave has a proxy's agent go away.
func (f *fakeFleet) leave(i int) {
	p := &f.proxies[i]
	p.Connected, p.Since = false, noon.Add(-17*time.Minute)
	for o := range f.objects {
		for n := range f.objects[o].Status.Proxies {
			if l := &f.objects[o].Status.Proxies[n]; l.Node == p.Name && l.Namespace == p.Namespace {
				l.Connected = false
			}
		}
	}
}

// facts has a proxy's agent tell its facts.
func (f *fakeFleet) facts(i int) {
	p := &f.proxies[i]
	var members []chandler.SlotMember
	for _, o := range f.objects {
		if _, has := p.States[o.Key]; has && len(members) < 4 {
			members = append(members, chandler.SlotMember{Key: o.Key, Release: o.Status.Release.ID})
		}
	}
	members[len(members)-1].Release, members[len(members)-1].StandIn = "", chandler.StandInDeny
	slot := func(p chandler.Phase, m []chandler.SlotMember) chandler.Slot {
		return chandler.Slot{Name: "chandler/" + string(p) + "/SERVER/8080", Type: chandler.HTTP, Phase: p, Members: m}
	}
	p.Facts = &chandler.Facts{
		Slots: true, Store: chandler.StoreUse{Modules: 7, Bytes: 31 << 20, Limit: 1 << 30},
		Listeners: []chandler.Listener{{
			Name: "ingress", Address: "0.0.0.0:8080", Port: 8080, Mode: chandler.ModeServer,
			Slots: []chandler.Slot{slot(chandler.PhaseAuthn, members), slot(chandler.PhaseAuthz, nil), slot(chandler.PhaseStats, nil), slot(chandler.PhaseUnspecified, nil)},
		}},
		Bypassed: []chandler.Bypass{{Key: f.objects[len(f.objects)-1].Key, Reason: "the pager rang", At: noon.Add(-5 * time.Minute)}},
	}
}

func imports(chandler.ModuleDigest) ([]string, bool) {
	return []string{"env.proxy_log", "env.proxy_get_header_map_value", "env.proxy_send_local_response"}, true
}

func configOf(f *fakeFleet, v Viewer) Config {
	return Config{Fleet: f, Rollouts: f, Imports: imports, Viewer: as(v), SignIn: fakeSignIn{}}
}

func jsonOf(s any) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

package web

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/source"
)

// inForce is a plugin that is in force on proxies.
func inForce(namespace, name string, on ...chandler.Node) control.ObjectView {
	key := chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: namespace, Name: name}
	release := &chandler.Release{ID: chandler.ReleaseID("r-" + name), Key: key, UID: "u-" + name, Generation: 1, Program: chandler.Program{Module: &chandler.Module{Digest: "sha256:new-" + chandler.ModuleDigest(name)}}}
	release.Behaviour = chandler.Behaviour{Type: chandler.HTTP, FailStrategy: chandler.FailClose, Config: []byte(`{"key":"canary"}`)}
	old := &chandler.Release{ID: "old", Key: key, Program: chandler.Program{Module: &chandler.Module{Digest: "sha256:old"}}}
	v := configured(namespace, name)
	v.Key, v.UID, v.Generation, v.History = key, "u-"+name, 1, []*chandler.Release{old, release}
	v.Manifest = []byte("apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: " + name + ", namespace: " + namespace + "}\nspec: {url: 'oci://r/p:v1', pluginConfig: {key: canary}}\n")
	docs := source.Decode(v.Manifest, namespace)
	v.Plugin = docs[0].Plugin
	v.Plugin.UID, v.Plugin.Generation = v.UID, 1
	v.Status = chandler.Status{Release: release, Conditions: []chandler.Condition{{Type: chandler.ConditionResolvedRefs, Status: chandler.True, Message: "fine"}}}
	for _, n := range on {
		v.Status.Proxies = append(v.Status.Proxies, chandler.ProxyStatus{Node: n.Name, Namespace: n.Namespace, Connected: true, Wanted: release.ID, AttachmentState: stateIn(key, release.ID)})
	}
	return v
}

func stateIn(key chandler.Key, id chandler.ReleaseID) chandler.AttachmentState {
	return chandler.AttachmentState{Key: key, UID: "u-" + key.Name, Release: id, InForce: id, State: chandler.StateInForce}
}

// aFleet is two proxies in two namespaces, with a plugin of each namespace and one of the
// root namespace on both.
func aFleet() fakeControl {
	f := fakeControl{journal: &journal{}}
	edge, shop := chandler.Node{Namespace: "edge", Name: "n1", Labels: map[string]string{"app": "edge"}}, chandler.Node{Namespace: "shop", Name: "n2"}
	f.views = []control.ObjectView{inForce("edge", "a", edge), inForce("istio-system", "all", edge, shop), inForce("shop", "b", shop)}
	for i, n := range []chandler.Node{edge, shop} {
		own, all := f.views[2*i].Key, f.views[1].Key
		f.proxies = append(f.proxies, control.ProxyView{
			Node: n, Connected: true, Since: time.Unix(1_700_000_000, 0),
			States: map[chandler.Key]chandler.AttachmentState{own: stateIn(own, chandler.ReleaseID("r-"+own.Name)), all: stateIn(all, "r-all")},
			Facts: &chandler.Facts{Slots: true, Store: chandler.StoreUse{Modules: 2, Bytes: 10, Limit: 100}, Listeners: []chandler.Listener{{
				Name: "in", Mode: chandler.ModeClient, Port: 8080, Slots: []chandler.Slot{{
					Name: "chandler/unspecified/client/8080", Type: chandler.HTTP, Members: []chandler.SlotMember{{Key: own, Release: "r"}, {Key: all, Release: "r"}},
				}},
			}}, Bypassed: []chandler.Bypass{{Key: all, Reason: "night"}}},
		})
	}
	for _, e := range []chandler.Event{
		{Key: f.views[0].Key, Reason: chandler.EventApplied, Message: "edge's"}, {Key: f.views[2].Key, Reason: chandler.EventApplied, Message: "shop's", By: "jane"},
		{Node: "edge/n1", Reason: chandler.EventConnected, Message: "edge's proxy"}, {Node: "shop/n2", Reason: chandler.EventConnected, Message: "shop's proxy"},
		{Reason: chandler.EventPolicy, Message: "for all"},
	} {
		f.Emit(e)
	}
	return f
}

// fleetAs asks as somebody who shows a token; as nobody from this machine when empty.
func (s *served) fleetAs(who, method, body string) (int, string) {
	s.t.Helper()
	headers := map[string]string{}
	if who != "" {
		headers = showing(who)
	}
	return s.with(&http.Transport{DisableKeepAlives: true}, "http://"+s.addr+"/chandler.v1.Fleet/"+method, body, headers)
}

// get asks and reads the answer.
func (s *served) get(who, method, body string, m proto.Message) {
	s.t.Helper()
	code, text := s.fleetAs(who, method, body)
	if code != http.StatusOK {
		s.t.Fatalf("%s asks %s: %d %s", who, method, code, text)
	}
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		s.t.Fatal(err)
	}
	if strings.Contains(text, "canary") {
		s.t.Errorf("%s sees a value of a configuration: %s", who, text)
	}
}

func everybody() access.Grants {
	return access.Grants{tokenOf("viewer", access.Viewer, "edge"), tokenOf("owner", access.Admin, "edge"), tokenOf("root", access.Admin, "*"), tokenOf("none", access.Viewer, "other")}
}

func fleetOf(t *testing.T, f fakeControl) *served {
	return serve(t, Config{UID: os.Getuid(), Control: f, Grants: granted(everybody()...)})
}

// afar asks as somebody on another machine: on this one everybody may look.
func afar[Req, Res any](t *testing.T, who, procedure string, ask func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), req *Req) (*Res, error) {
	t.Helper()
	c := &caller{name: who, known: true, grants: everybody().Token(who + "'s token")}
	ctx := context.WithValue(t.Context(), callerKey{}, c)
	if _, err := permit(ctx, c, procedure, req); err != nil {
		return nil, err
	}
	res, err := ask(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	return res.Msg, nil
}

// Of the fleet everybody sees the proxies and plugins of namespaces that are theirs, and
// no trace of others'.
func TestListProxies(t *testing.T) {
	t.Parallel()
	s := fleetOf(t, aFleet())
	var all chandlerv1.ListProxiesResponse
	s.get("root", "ListProxies", `{"details": true}`, &all)
	if len(all.Proxies) != 2 {
		t.Fatalf("%v", &all)
	}
	p := all.Proxies[0]
	if p.Name != "n1" || p.Desired != 2 || p.InForce != 2 || p.Failed != 0 || !p.Connected || p.Since.GetSeconds() != 1_700_000_000 || len(p.Plugins) != 2 || p.Plugins[0].Status.Digest != "sha256:new-a" {
		t.Errorf("%v", p)
	}
	if slot := p.Facts.GetListeners()[0].Slots[0]; len(slot.Members) != 2 || p.Facts.StoreBytes != 10 || !p.Facts.Slots {
		t.Errorf("%v", p.Facts)
	}
	for body, want := range map[string]int{`{}`: 2, `{"namespace": "shop"}`: 1, `{"name": "n1"}`: 1, `{"labels": {"app": "edge"}}`: 1, `{"labels": {"app": "x"}}`: 0} {
		var some chandlerv1.ListProxiesResponse
		if s.get("root", "ListProxies", body, &some); len(some.Proxies) != want {
			t.Errorf("%s: %d proxies", body, len(some.Proxies))
		}
		for _, p := range some.Proxies {
			if len(p.Plugins) > 0 || len(p.Facts.GetListeners()) > 0 || p.Desired != 2 {
				t.Errorf("without being asked for details it gives %v", p)
			}
		}
	}
	service := &fleet{Config{Control: aFleet()}}
	own, err := afar(t, "viewer", chandlerv1connect.FleetListProxiesProcedure, service.ListProxies, &chandlerv1.ListProxiesRequest{Details: true})
	if err != nil || len(own.Proxies) != 1 || own.Proxies[0].Name != "n1" || own.Proxies[0].Desired != 1 || strings.Contains(own.String(), "istio-system") {
		t.Errorf("a viewer of edge sees %v (%v)", own, err)
	}
	none, err := afar(t, "none", chandlerv1connect.FleetListProxiesProcedure, service.ListProxies, &chandlerv1.ListProxiesRequest{})
	if err != nil || len(none.Proxies) != 0 {
		t.Errorf("who may see another namespace sees %v (%v)", none, err)
	}
	if _, err := afar(t, "nobody", chandlerv1connect.FleetListProxiesProcedure, service.ListProxies, &chandlerv1.ListProxiesRequest{}); err == nil {
		t.Error("who may see nothing may ask")
	}
}

func TestExplainIsForThoseWhoSeeBoth(t *testing.T) {
	t.Parallel()
	service := &fleet{Config{Control: aFleet()}}
	why := func(who, namespace, name, node string) (*chandlerv1.ExplainResponse, error) {
		return afar(t, who, chandlerv1connect.FleetExplainProcedure, service.Explain, &chandlerv1.ExplainRequest{Ref: &chandlerv1.ObjectRef{Namespace: namespace, Name: name}, Node: node})
	}
	if a, err := why("viewer", "edge", "a", "edge/n1"); err != nil || !a.AsWanted || !strings.Contains(a.Verdict, "WasmPlugin edge/a is in force") || len(a.Checks) < 8 {
		t.Errorf("%v (%v)", a, err)
	}
	for _, c := range [][3]string{{"edge", "a", "shop/n2"}, {"shop", "b", "edge/n1"}, {"edge", "a", ""}, {"", "a", "edge/n1"}, {"istio-system", "all", "edge/n1"}, {}} {
		if a, err := why("viewer", c[0], c[1], c[2]); connect.CodeOf(err) != connect.CodePermissionDenied {
			t.Errorf("%v: %v (%v)", c, a, err)
		}
	}
	if a, err := why("root", "shop", "b", "edge/n1"); err != nil || !a.AsWanted || !strings.Contains(a.Verdict, "is for proxies of that namespace") {
		t.Errorf("%v (%v)", a, err)
	}
}

// steps is a rollout that has come to one proxy.
type steps struct {
	unasked
	to string
}

// unasked is what nobody asks a fake.
type unasked interface{ Rollouts }

func (s steps) Rollout(_ chandler.Key, n chandler.Node) (chandler.Rollout, bool, bool) {
	return chandler.Rollout{From: "old", To: "r-all", State: chandler.RolloutProgressing}, n.ID() == s.to, true
}

func TestExplainKnowsRollouts(t *testing.T) {
	t.Parallel()
	f := aFleet()
	f.proxies[1].Facts.Bypassed = nil
	s := serve(t, Config{UID: os.Getuid(), Control: f, Rollouts: steps{to: "shop/n2"}, Grants: granted(tokenOf("root", access.Admin, "*"))})
	var why chandlerv1.ExplainResponse
	s.get("root", "Explain", `{"ref": {"namespace": "istio-system", "name": "all"}, "node": "edge/n1"}`, &why)
	if last := why.Checks[len(why.Checks)-1]; last.Name != "rollout" || last.Holds || !strings.Contains(why.Verdict, "it keeps release old") {
		t.Errorf("%v", &why)
	}
	s.get("root", "Explain", `{"ref": {"namespace": "istio-system", "name": "all"}, "node": "shop/n2"}`, &why)
	if last := why.Checks[len(why.Checks)-1]; last.Name != "in force" || !last.Holds {
		t.Errorf("%v", &why)
	}
}

func TestPreview(t *testing.T) {
	t.Parallel()
	const changed = "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a, namespace: edge}\nspec: {url: 'oci://r/p:v2', phase: AUTHN, pluginConfig: {key: other}}\n"
	f := aFleet()
	s := serve(t, Config{UID: os.Getuid(), Control: f, ReadOnly: "use kubectl", Grants: granted(tokenOf("owner", access.Admin, "edge"), tokenOf("root", access.Admin, "*"), tokenOf("viewer", access.Viewer, "edge"))})
	code, text := s.fleetAs("root", "Preview", manifest(changed+"---\nkind: Pod\n"))
	var res chandlerv1.PreviewResponse
	if err := protojson.Unmarshal([]byte(text), &res); code != http.StatusOK || err != nil || len(res.Objects) != 2 {
		t.Fatalf("%d %s", code, text)
	}
	o := res.Objects[0]
	if o.Result.Action != chandlerv1.Action_ACTION_CONFIGURED || o.Result.Generation != 2 || !strings.Contains(o.Diff, "-        key: canary\n") || !strings.Contains(o.Diff, "+        key: other\n") || !strings.Contains(o.Diff, "+    phase: AUTHN") {
		t.Errorf("%v\n%s", o.Result, o.Diff)
	}
	if len(o.Proxies) != 1 || o.Proxies[0].Node != "edge/n1" || o.Proxies[0].Change != "move" || len(o.Proxies[0].Slots) != 2 || len(o.Proxies[0].Slots[0].Before) != 2 || len(o.Proxies[0].Slots[0].After) != 1 {
		t.Errorf("%v", o.Proxies)
	}
	if res.Objects[1].Result.Action != chandlerv1.Action_ACTION_REFUSED || res.Objects[1].Diff != "" {
		t.Errorf("%v", res.Objects[1])
	}
	// Whom something does not concern learns nothing of it.
	service := &fleet{Config{Control: f, Now: time.Now}}
	preview := func(who, text string) (*chandlerv1.PreviewResponse, error) {
		return afar(t, who, chandlerv1connect.FleetPreviewProcedure, service.Preview, &chandlerv1.PreviewRequest{Manifest: []byte(text)})
	}
	if own, err := preview("owner", changed); err != nil || strings.Contains(own.String(), "istio-system") || own.Objects[0].Proxies[0].Node != "edge/n1" {
		t.Errorf("the owner of edge: %v (%v)", own, err)
	}
	if _, err := preview("owner", changed+inShop); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("of another's namespace: %v", err)
	}
	if _, err := preview("viewer", changed); connect.CodeOf(err) != connect.CodePermissionDenied {
		t.Errorf("a viewer could try values out: %v", err)
	}
	// Nothing was changed, so nothing is told.
	if strings.Contains(s.log.String(), "msg=changed") || len(f.journal.acting) > 0 {
		t.Errorf("%s %v", s.log, f.journal.acting)
	}
}

// stage1 is a first stage of twelve proxies, one of them another's.
type stage1 struct {
	unasked
	undecided bool
}

func (s stage1) FirstStage(*chandler.Plugin) (control.FirstStage, bool) {
	f := control.FirstStage{Step: chandler.RolloutStep{Percent: 10}, Selected: 120, Undecided: s.undecided, Chosen: []chandler.Node{{Namespace: "shop", Name: "n"}}}
	for i := range 11 {
		f.Chosen = append(f.Chosen, chandler.Node{Namespace: "edge", Name: fmt.Sprintf("n%02d", 10-i)})
	}
	return f, true
}

// A preview says whom a change comes to first: how many, and some by name, of those that
// the caller may see.
func TestPreviewOfTheFirstStage(t *testing.T) {
	t.Parallel()
	const text = "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a, namespace: edge}\nspec: {url: 'oci://r/p:v2', phase: AUTHN}\n"
	preview := func(undecided bool, text string) *chandlerv1.FirstStage {
		service := &fleet{Config{Control: aFleet(), Rollouts: stage1{undecided: undecided}, Now: time.Now}}
		res, err := afar(t, "owner", chandlerv1connect.FleetPreviewProcedure, service.Preview, &chandlerv1.PreviewRequest{Manifest: []byte(text)})
		if err != nil {
			t.Fatal(err)
		}
		return res.Objects[0].First
	}
	f := preview(false, text)
	if f == nil || f.Step != "10%" || f.Proxies != 12 || f.Selected != 120 || f.Undecided || len(f.Nodes) != maxFirst || f.Nodes[0] != "edge/n00" || slices.Contains(f.Nodes, "shop/n") {
		t.Errorf("%v", f)
	}
	if f := preview(true, text); f == nil || f.Proxies != 12 || len(f.Nodes) > 0 || !f.Undecided {
		t.Errorf("%v", f)
	}
	if f := preview(false, string(aFleet().views[0].Manifest)); f != nil {
		t.Errorf("of what changes nothing: %v", f)
	}
}

// What may not be read, and what nobody may read, is in no difference.
func TestPreviewHides(t *testing.T) {
	t.Parallel()
	f := aFleet()
	f.views[0].Hidden = func([]byte) [][]string { return [][]string{{"key"}} }
	s := serve(t, Config{UID: os.Getuid(), Control: f, Grants: granted(tokenOf("root", access.Admin, "*"))})
	code, text := s.fleetAs("root", "Preview", manifest("apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a, namespace: edge}\nspec: {url: 'oci://r/p:v1', pluginConfig: {key: other-canary, more: 1}}\n"))
	if code != http.StatusOK || strings.Contains(text, "canary") || !strings.Contains(text, "more: 1") {
		t.Errorf("%d %s", code, text)
	}
}

// A plugin that the policy is against would get no farther than that.
func TestPreviewKnowsThePolicy(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{UID: os.Getuid(), Control: aFleet(), Grants: granted(tokenOf("root", access.Admin, "*")), Admit: func(p *chandler.Plugin) []chandler.Problem {
		return []chandler.Problem{{Code: chandler.CodePolicyDenied, Field: "spec.url", Message: "not from there"}}
	}})
	var res chandlerv1.PreviewResponse
	s.get("root", "Preview", manifest("apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: new, namespace: edge}\nspec: {url: 'oci://r/p:v2'}\n"), &res)
	if o := res.Objects[0]; len(o.Proxies) != 0 || len(o.Result.Warnings) != 1 || o.Result.Warnings[0].Code != "PolicyDenied" {
		t.Errorf("%v", o)
	}
}

func TestListEvents(t *testing.T) {
	t.Parallel()
	service := &fleet{Config{Control: aFleet()}}
	list := func(who, body string) []string {
		req := &chandlerv1.ListEventsRequest{}
		if err := protojson.Unmarshal([]byte(body), req); err != nil {
			t.Fatal(err)
		}
		res, err := afar(t, who, chandlerv1connect.FleetListEventsProcedure, service.ListEvents, req)
		if err != nil {
			t.Fatal(err)
		}
		var texts []string
		for _, e := range res.Events {
			texts = append(texts, e.Message)
		}
		return texts
	}
	for _, c := range []struct {
		who, body string
		want      []string
	}{
		{"root", `{}`, []string{"edge's", "shop's", "edge's proxy", "shop's proxy", "for all"}},
		{"root", `{"after": 3}`, []string{"shop's proxy", "for all"}},
		{"root", `{"limit": 2}`, []string{"shop's proxy", "for all"}},
		{"root", `{"name": "b"}`, []string{"shop's"}},
		{"root", `{"namespace": "edge"}`, []string{"edge's", "edge's proxy"}},
		{"root", `{"node": "shop/n2"}`, []string{"shop's proxy"}},
		{"root", `{"kind": "TrafficExtension"}`, nil},
		{"viewer", `{}`, []string{"edge's", "edge's proxy"}},
		{"viewer", `{"namespace": "shop"}`, nil},
		{"none", `{}`, nil},
	} {
		if got := list(c.who, c.body); strings.Join(got, "|") != strings.Join(c.want, "|") {
			t.Errorf("%s %s: %q, want %q", c.who, c.body, got, c.want)
		}
	}
}

// What somebody did, and what was refused, is told with who it was; nothing else is.
func TestAuditEvents(t *testing.T) {
	t.Parallel()
	f := fakeControl{journal: &journal{}}
	i := &interceptor{log: slog.New(slog.DiscardHandler), now: time.Now, emit: f.Emit}
	jane := &caller{name: "jane", from: "socket"}
	for action, want := range map[chandlerv1.Action]chandler.EventReason{
		chandlerv1.Action_ACTION_CREATED: chandler.EventApplied, chandlerv1.Action_ACTION_CONFIGURED: chandler.EventApplied, chandlerv1.Action_ACTION_DELETED: chandler.EventDeleted,
		chandlerv1.Action_ACTION_UNCHANGED: "", chandlerv1.Action_ACTION_REFUSED: "",
	} {
		f.journal.events = nil
		i.tellSecret(jane, &chandlerv1.ObjectResult{Ref: &chandlerv1.ObjectRef{Kind: source.KindSecret, Namespace: "edge", Name: "s"}, Action: action})
		switch {
		case want == "" && len(f.journal.events) == 0:
		case len(f.journal.events) != 1 || f.journal.events[0].Reason != want || f.journal.events[0].By != "jane":
			t.Errorf("%s: %+v", action, f.journal.events)
		}
	}
	f.journal.events = nil
	i.tell(jane, &chandlerv1.CreateNodeTokenRequest{Namespace: "edge"}, &chandlerv1.CreateNodeTokenResponse{Id: "t1", Token: "canary"})
	i.tell(jane, &chandlerv1.RevokeNodeRequest{Namespace: "edge", Name: "n1"}, &chandlerv1.RevokeNodeResponse{})
	if e := f.journal.events; len(e) != 2 || e[0].Reason != chandler.EventTokenMade || !strings.Contains(e[0].Message, "t1") || strings.Contains(e[0].Message, "canary") || e[1].Reason != chandler.EventRevoked || e[1].Node != "edge/n1" || e[1].By != "jane" {
		t.Errorf("%+v", e)
	}
}

// Who applies is known while it is done, and who is refused afterwards.
func TestWhoActs(t *testing.T) {
	t.Parallel()
	f := fakeControl{journal: &journal{}}
	s := serve(t, Config{UID: os.Getuid(), Control: f, Editor: &fakeEditor{}, Grants: granted(tokenOf("jane", access.Admin, "edge"))})
	if code, text := s.strange("Apply", manifest(inEdge), showing("jane")); code != http.StatusOK {
		t.Fatalf("%d %s", code, text)
	}
	if code, text := s.strange("Delete", `{"refs": [{"kind": "WasmPlugin", "namespace": "edge", "name": "a"}]}`, showing("jane")); code != http.StatusOK {
		t.Fatalf("%d %s", code, text)
	}
	if got := strings.Join(f.journal.acting, "|"); got != "jane WasmPlugin/edge/a|jane WasmPlugin/edge/a" {
		t.Error(got)
	}
	if code, _ := s.strange("Apply", manifest(inShop), showing("jane")); code != http.StatusForbidden {
		t.Fatal(code)
	}
	if e := f.journal.events; len(e) != 1 || e[0].Reason != chandler.EventDenied || e[0].By != "jane" || !e[0].Warning {
		t.Errorf("%+v", e)
	}
}

// How the control plane was set up is for those who may look into it.
func TestSetup(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{UID: os.Getuid(), Control: aFleet(), Grants: granted(tokenOf("root", access.Admin, "*"), tokenOf("owner", access.Admin, "edge")), Setup: func() *chandlerv1.GetSetupResponse {
		return &chandlerv1.GetSetupResponse{Version: "v9"}
	}})
	var res chandlerv1.GetSetupResponse
	if s.get("root", "GetSetup", `{}`, &res); res.Version != "v9" {
		t.Error(&res)
	}
	for _, who := range []string{"owner", ""} {
		if code, text := s.fleetAs(who, "GetSetup", `{}`); code == http.StatusOK {
			t.Errorf("%q: %d %s", who, code, text)
		}
	}
}

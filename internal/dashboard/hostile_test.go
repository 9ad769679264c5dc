package dashboard

import (
	"bytes"
	"context"
	"net/http"
	"strings"
	"testing"

	"golang.org/x/net/html"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/source"
)

// evil is text that breaks out of whatever does not escape it.
const evil = `"'><img src=x onerror=stolen=1><script>stolen=1</script></title></textarea></svg>{{.}}` + "`${stolen=1}`"

// spread puts a text into every field of a fleet that is anybody's.
func spread(t testing.TB, text string) *fakeFleet {
	f := told(t, 4, 5)
	// A slash cannot be in a name: what names something is joined by slashes.
	name := strings.ReplaceAll(text, "/", "|")
	key := chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: name, Name: name}
	node := chandler.Node{Name: name, Namespace: name, Labels: map[string]string{text: text}, AgentVersion: text, EnvoyVersion: text, Features: []string{text}}
	f.proxies = append(f.proxies, control.ProxyView{Node: node, Connected: true, Since: noon, States: map[chandler.Key]chandler.AttachmentState{}})
	state := chandler.AttachmentState{Key: key, State: chandler.StateRejected, Reason: chandler.Code(text), Message: text, Release: chandler.ReleaseID(text), InForce: chandler.ReleaseID(text), StandIn: chandler.StandIn(text)}
	problem := chandler.Problem{Code: chandler.Code(text), Field: text, Message: text, Hint: text}
	release := releaseOf(key, 3, `{}`)
	release.Reference, release.ABI, release.Capabilities = text, text, []string{text}
	release.Artifact, release.Blob, release.Program.Module.Digest = chandler.ArtifactDigest(text), chandler.BlobDigest(text), chandler.ModuleDigest(text)
	release.Config, release.Env, release.RootID = []byte(`{"a":`+jsonOf(text)+`}`), []chandler.EnvVar{{Name: text, Value: text}}, text
	release.Verdicts = []chandler.Verdict{{Judge: text, EnvoyVersion: text, PolicyHash: text, SignedBy: []string{text}, Unusable: text}, {Judge: chandler.JudgeEnvoy, EnvoyVersion: text}}
	older := *release
	older.ID, older.Config, older.Reference, older.RootID = "older", []byte(`{"a":1}`), "", ""
	f.objects = append(f.objects, control.ObjectView{
		Object: source.Object{Key: key, Plugin: &chandler.Plugin{Key: key, Phase: chandler.Phase(text)}},
		Status: chandler.Status{
			Release: release, Desired: 1, Failed: 1, Problems: []chandler.Problem{problem}, Warnings: []chandler.Problem{problem},
			Conditions: []chandler.Condition{{Type: chandler.ConditionReady, Status: chandler.False, Reason: chandler.Code(text), Message: text}},
			Proxies:    []chandler.ProxyStatus{{Node: name, Namespace: name, Connected: true, EnvoyVersion: text, AttachmentState: state}},
		},
	})
	f.proxies[len(f.proxies)-1].States[key] = state
	f.proxies[len(f.proxies)-1].Facts = &chandler.Facts{
		Listeners: []chandler.Listener{{Name: text, Address: text, Mode: chandler.Mode(text), Slots: []chandler.Slot{{Name: text, Type: chandler.FilterType(text), Phase: chandler.Phase(text),
			Members: []chandler.SlotMember{{Key: key, Release: chandler.ReleaseID(text)}, {Key: key, StandIn: chandler.StandIn(text)}}}}}},
		Bypassed: []chandler.Bypass{{Key: chandler.Key{Kind: text, Namespace: name, Name: text}, Reason: text}},
	}
	f.rollouts = append(f.rollouts, control.RolloutView{Releases: []*chandler.Release{&older}, Rollout: chandler.Rollout{
		Key: key, State: chandler.RolloutProgressing, Reason: chandler.Code(text), Message: text, From: chandler.ReleaseID(text), To: release.ID,
		Plan:     &chandler.RolloutPlan{Steps: []chandler.RolloutStep{{Labels: map[string]string{text: text}}, {Percent: 100}}, OnFailure: chandler.OnFailure(text)},
		Gates:    []chandler.Measure{{Gate: chandler.Gate(text), Result: chandler.GateResult(text), Message: text}},
		Disabled: []chandler.Disablement{{Node: name + "/" + name, Reason: text, By: text}, {Labels: map[string]string{text: text}}},
		History: []chandler.HistoricRelease{
			{Release: release.ID, Outcome: text, By: text, Why: text}, {Release: "older", Outcome: text, By: text, Why: text}, {Release: chandler.ReleaseID(text)},
		},
	}})
	f.events = nil
	f.emit(chandler.Event{Key: key, Node: name + "/" + name, Reason: chandler.EventReason(text), Message: text, By: text, Warning: true, At: noon})
	f.broken = []source.Broken{{Path: text, Problems: []chandler.Problem{problem}}}
	return f
}

func hostile(t testing.TB) *fakeFleet { return spread(t, evil) }

// hostilePages are those that show what spread put somewhere.
func hostilePages(f *fakeFleet) []string {
	key, node := f.objects[len(f.objects)-1].Key, f.proxies[len(f.proxies)-1].ID()
	query := "?plugin=" + "%22%3E%3Cscript%3Estolen%3D1%3C%2Fscript%3E"
	return []string{
		Root, Root + "matrix", Root + "matrix?view=map", Root + "matrix?state=r", Root + "matrix" + query, Root + "proxies", Root + "rollouts", Root + "events", Root + "events" + query,
		pluginPath(key), rolloutPath(key), proxyPath(node), rolloutPath(key) + "/disable", rolloutPath(key) + "/abort", Root + "sign-in?next=%22%3E%3Cscript%3E",
	}
}

// elements are those that a page may be made of, and the attributes that lead
// somewhere may lead to.
func checkMarkup(t *testing.T, path, text string) {
	t.Helper()
	z := html.NewTokenizer(bytes.NewReader([]byte(text)))
	for {
		switch z.Next() {
		case html.ErrorToken:
			return
		case html.StartTagToken, html.SelfClosingTagToken:
			tok := z.Token()
			switch tok.Data {
			case "img", "iframe", "object", "embed", "base", "style":
				t.Errorf("%s: <%s> of a stranger: %s", path, tok.Data, tok)
			case "script":
				if len(tok.Attr) != 2 || tok.Attr[0].Val != Root+"dashboard.js" {
					t.Errorf("%s: a script of a stranger: %s", path, tok)
				}
			}
			for _, a := range tok.Attr {
				if strings.HasPrefix(a.Key, "on") || a.Key == "style" {
					t.Errorf("%s: an attribute of a stranger: %s", path, tok)
				}
				if (a.Key == "href" || a.Key == "action" || a.Key == "src") && !strings.HasPrefix(a.Val, Root) && !strings.HasPrefix(a.Val, "#") {
					t.Errorf("%s: leads elsewhere: %s", path, tok)
				}
			}
		}
	}
}

// TestHostileWords: text of strangers is text, wherever it stands.
func TestHostileWords(t *testing.T) {
	t.Parallel()
	f := hostile(t)
	cfg := configOf(f, admin)
	cfg.Log = logOf(t)
	cfg.Imports = func(chandler.ModuleDigest) ([]string, bool) { return []string{evil}, true }
	h := New(cfg)
	for _, path := range hostilePages(f) {
		code, text := get(t, h, path)
		if code != http.StatusOK {
			t.Errorf("%s: %d", path, code)
		}
		checkMarkup(t, path, text)
	}
	// The text is there: nothing was left out to be safe.
	for _, path := range []string{pluginPath(f.objects[5].Key), rolloutPath(f.objects[5].Key), proxyPath(f.proxies[4].ID()), Root + "events"} {
		if _, text := get(t, h, path); strings.Count(text, "onerror=stolen") < 3 {
			t.Errorf("%s does not say what it is to say", path)
		}
	}
}

// FuzzHostile: whatever text there is, pages stay pages of this server.
func FuzzHostile(f *testing.F) {
	for _, s := range []string{evil, "", "javascript:stolen=1", "//evil.example/", "../..", "a\x00b", "\u202e", "<!--", "]]>", "&lt;", "\xff\xfe"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 1000 {
			return
		}
		fleet := spread(t, s)
		h := New(configOf(fleet, admin))
		for _, path := range hostilePages(fleet) {
			if code, text := get(t, h, path); code == http.StatusOK {
				checkMarkup(t, path, text)
			} else if code >= 500 {
				t.Errorf("%s: %d", path, code)
			}
		}
	})
}

// TestWhoSeesWhat: configuration is for those who may read it, and what is write-only for
// nobody.
func TestWhoSeesWhat(t *testing.T) {
	t.Parallel()
	f := told(t, 12, 6)
	values := []string{"/admin", "staff", "env-value"}
	page := pluginPath(f.objects[0].Key)
	diff := comparison(f.objects[0].Key, f.rollouts[0].Releases[1].ID, f.objects[0].Status.Release.ID)
	diff, _, _ = strings.Cut(diff, "#")
	for _, c := range []struct {
		who   fakeViewer
		reads bool
	}{{admin, true}, {looker, false}, {fakeViewer{name: "joe", known: true, verbs: []access.Verb{access.List, access.Steer}}, false}} {
		h := New(configOf(f, c.who))
		for _, path := range []string{page, diff} {
			_, text := get(t, h, path)
			for _, v := range values {
				if strings.Contains(text, v) != c.reads {
					t.Errorf("%s on %s: %q is seen: %t", c.who.name, path, v, !c.reads)
				}
			}
			if compared := strings.Contains(text, "<del>") && strings.Contains(text, "guests"); compared != (c.reads && path == diff) {
				t.Errorf("%s on %s: what changed is seen: %t", c.who.name, path, compared)
			}
			for _, v := range []string{"a:b", "a:old"} {
				if strings.Contains(text, v) {
					t.Errorf("%s on %s: the write-only value %q is seen", c.who.name, path, v)
				}
			}
		}
	}
}

// TestNamespaces: who may list one namespace sees nothing of another.
func TestNamespaces(t *testing.T) {
	t.Parallel()
	f := told(t, 12, 6)
	f.emit(chandler.Event{Node: "edge/proxy-0000", Reason: chandler.EventConnected, Message: "edge-event"})
	f.emit(chandler.Event{Reason: chandler.EventPolicy, Message: "global-event"})
	f.emit(chandler.Event{Node: "shop/proxy-0008", Reason: chandler.EventConnected, Message: "shop-event"})
	f.broken = []source.Broken{{Path: "/broken-file"}}
	h := New(configOf(f, fakeViewer{name: "sue", known: true, verbs: []access.Verb{access.List, access.Read, access.Steer}, only: "shop"}))
	for _, path := range []string{"", "matrix", "matrix?view=map", "proxies", "rollouts", "events"} {
		code, text := get(t, h, Root+path)
		if code != http.StatusOK {
			t.Errorf("%s: %d", path, code)
		}
		for _, s := range []string{"istio-system", "edge/", ">edge<", ">pay<", "global-event", "/broken-file"} {
			if strings.Contains(text, s) {
				t.Errorf("%s: %s is seen", path, s)
			}
		}
		if path != "rollouts" && !strings.Contains(text, "shop") {
			t.Errorf("%s: shop is not seen", path)
		}
	}
	for path, want := range map[string]int{
		"plugins/WasmPlugin/istio-system/auth": 404, "plugins/WasmPlugin/shop/rewrite": 200, "proxies/edge/proxy-0000": 404, "proxies/shop/proxy-0008": 200,
		"rollouts/WasmPlugin/istio-system/auth": 404, "rollouts/WasmPlugin/istio-system/auth/abort": 404, "rollouts/WasmPlugin/shop/rewrite/disable": 200,
	} {
		if code, _ := get(t, h, Root+path); code != want {
			t.Errorf("%s: %d, want %d", path, code, want)
		}
	}
	// A proxy that is seen tells no name of a plugin that is not.
	f.change(func() { f.facts(8) })
	_, text := get(t, New(configOf(f, fakeViewer{name: "sue", known: true, verbs: []access.Verb{access.List}, only: "shop"})), Root+"proxies/shop/proxy-0008")
	if strings.Contains(text, "rate-limit") || strings.Contains(text, "istio-system") || !strings.Contains(text, "a plugin that you may not see") {
		t.Error("slots name plugins of another namespace")
	}
}

// TestTurnedAway: who may see nothing sees nothing, and is told where to go.
func TestTurnedAway(t *testing.T) {
	t.Parallel()
	f := told(t, 12, 6)
	var refused int
	cfg := configOf(f, fakeViewer{name: "nobody"})
	cfg.Refused = func(*http.Request, access.Verb, error) { refused++ }
	pages := []string{"", "matrix", "proxies", "rollouts", "events", "plugins/WasmPlugin/istio-system/auth", "rollouts/WasmPlugin/istio-system/auth/abort"}
	for _, path := range pages {
		if code, text := get(t, New(cfg), Root+path); code != http.StatusSeeOther || strings.Contains(text, "auth<") {
			t.Errorf("%s: %d", path, code)
		}
	}
	if code, _ := get(t, New(cfg), Root+"live"); code != http.StatusUnauthorized {
		t.Errorf("live: %d", code)
	}
	cfg.Viewer = as(fakeViewer{name: "joe", known: true})
	for _, path := range pages {
		if code, text := get(t, New(cfg), Root+path); code != http.StatusForbidden || !strings.Contains(text, "joe may not see") {
			t.Errorf("%s: %d", path, code)
		}
	}
	if refused != len(pages) {
		t.Errorf("%d refusals were told", refused)
	}
	cfg.Viewer = as(fakeViewer{name: "joe", known: true, verbs: []access.Verb{access.List}, err: context.DeadlineExceeded})
	if code, text := get(t, New(cfg), Root); code != http.StatusServiceUnavailable || strings.Contains(text, "auth<") {
		t.Errorf("what joe may do cannot be found out: %d", code)
	}
}

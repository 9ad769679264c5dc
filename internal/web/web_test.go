package web

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/source"
)

type fakeControl struct {
	views  []control.ObjectView
	broken []source.Broken
	err    error

	partial string
	proxies []control.ProxyView
	journal *journal
}

func (f fakeControl) Objects(context.Context) ([]control.ObjectView, error) { return f.views, f.err }
func (f fakeControl) Broken() []source.Broken                               { return f.broken }
func (f fakeControl) Ready() error                                          { return f.err }
func (f fakeControl) Partial() string                                       { return f.partial }

func (f fakeControl) Changed() <-chan struct{}     { return nil }
func (f fakeControl) Proxies() []control.ProxyView { return f.proxies }
func (f fakeControl) RootNamespace() string        { return "istio-system" }
func (f fakeControl) Withholds() bool              { return false }

// journal is what was emitted, and who was acting.
type journal struct {
	mu     sync.Mutex
	events []chandler.Event
	acting []string
}

func (f fakeControl) Events(after uint64) ([]chandler.Event, <-chan struct{}) {
	f.journal.mu.Lock()
	defer f.journal.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.journal.events), func(e chandler.Event) bool { return e.ID <= after }), nil
}

func (f fakeControl) Emit(e chandler.Event) {
	if f.journal == nil {
		return
	}
	f.journal.mu.Lock()
	defer f.journal.mu.Unlock()
	e.ID = uint64(len(f.journal.events) + 1)
	f.journal.events = append(f.journal.events, e)
}

func (f fakeControl) Acting(who string, keys []chandler.Key) func() {
	if f.journal != nil {
		f.journal.mu.Lock()
		defer f.journal.mu.Unlock()
		for _, key := range keys {
			f.journal.acting = append(f.journal.acting, who+" "+key.String())
		}
	}
	return func() {}
}

func view(kind, namespace, name string) control.ObjectView {
	return control.ObjectView{
		Object: source.Object{
			Key: chandler.Key{Kind: kind, Namespace: namespace, Name: name}, UID: "u-" + name, Generation: 3,
			Created: time.Unix(1_700_000_000, 0), Labels: map[string]string{"team": name},
			Plugin: &chandler.Plugin{Phase: chandler.PhaseAuthn, Wasm: &chandler.Wasm{Reference: chandler.Reference{
				Scheme: chandler.SchemeHTTPS, Host: "h.example", Path: "/p.wasm?token=secret",
			}}},
		},
		Status: chandler.Status{Desired: 2, InForce: 1},
	}
}

// ask calls a method of the API as curl would, in JSON, as the control plane's own
// user.
func ask(t *testing.T, cfg Config, method, body string) (int, string) {
	t.Helper()
	cfg.UID = os.Getuid()
	return serve(t, cfg).own(method, body)
}

func TestListSelects(t *testing.T) {
	cfg := Config{Control: fakeControl{views: []control.ObjectView{
		view(chandler.KindWasmPlugin, "ns", "a"), view(chandler.KindTrafficExtension, "ns", "a"), view(chandler.KindWasmPlugin, "other", "b"),
	}}}
	for body, want := range map[string]int{
		`{}`:                                 3,
		`{"kind": "WasmPlugin"}`:             2,
		`{"namespace": "ns"}`:                2,
		`{"name": "b"}`:                      1,
		`{"labels": {"team": "a"}}`:          2,
		`{"labels": {"team": "x"}}`:          0,
		`{"kind": "WasmPlugin","name": "a"}`: 1,
	} {
		code, text := ask(t, cfg, "List", body)
		if got := strings.Count(text, `"uid"`); code != 200 || got != want {
			t.Errorf("%s: %d, %d objects, want %d: %s", body, code, got, want, text)
		}
		if strings.Contains(text, "secret") {
			t.Errorf("%s: a query value is shown: %s", body, text)
		}
	}
}

func TestListTellsOfBrokenFiles(t *testing.T) {
	cfg := Config{Control: fakeControl{broken: []source.Broken{{Path: "/p/x.yaml", Problems: []chandler.Problem{{Code: chandler.CodeSpecParse, Message: "3:1: no"}}}}}}
	if _, text := ask(t, cfg, "List", `{}`); !strings.Contains(text, "/p/x.yaml") || !strings.Contains(text, "SpecParse") {
		t.Errorf("the file is not named: %s", text)
	}
}

// Answers of a replica that does not lead come with a warning; orders, which any replica
// takes, do not.
func TestWarnsOfPartialAnswers(t *testing.T) {
	t.Parallel()
	const said = `another "leads"`
	s := serve(t, Config{UID: os.Getuid(), Control: fakeControl{partial: said, journal: &journal{}}, Editor: &fakeEditor{}})
	way := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return DialSocket(ctx, s.socket) }}
	for method, want := range map[string]string{"List": `299 chandler "another \"leads\""`, "Apply": ""} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://localhost/chandler.v1.Admin/"+method, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := way.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := resp.Header.Get("Warning"); got != want || resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %s, %q, want %q", method, resp.Status, got, want)
		}
	}
}

func TestNotReady(t *testing.T) {
	cfg := Config{Control: fakeControl{err: errors.New("the resources have not been read yet")}, Metrics: prometheus.NewRegistry()}
	if code, text := ask(t, cfg, "List", `{}`); code != http.StatusServiceUnavailable {
		t.Errorf("List before the first snapshot: %d %s", code, text)
	}
	w := httptest.NewRecorder()
	Handler(cfg).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost/healthz/ready", nil))
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "not been read") {
		t.Errorf("ready: %d %s", w.Code, w.Body)
	}
	w = httptest.NewRecorder()
	Handler(cfg).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://localhost/healthz/live", nil))
	if w.Code != http.StatusOK {
		t.Errorf("live: %d", w.Code)
	}
}

type fakeEditor struct{ applied source.ApplyRequest }

func (f *fakeEditor) Apply(_ context.Context, r source.ApplyRequest) ([]source.Result, error) {
	f.applied = r
	return []source.Result{{
		Key: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: "a"}, Action: source.Refused,
		Problems: []chandler.Problem{{Code: chandler.CodeSpecEnum, Field: "spec.phase", Message: "no", Hint: "yes"}},
	}}, nil
}

func (f *fakeEditor) Delete(_ context.Context, keys []chandler.Key) ([]source.Result, error) {
	return []source.Result{{Key: keys[0], Action: source.NotFound}}, nil
}

func TestEdits(t *testing.T) {
	editor := &fakeEditor{}
	cfg := Config{Control: fakeControl{}, Editor: editor}
	code, text := ask(t, cfg, "Apply", `{"manifest": "eHl6", "dryRun": true, "namespace": "ns"}`)
	if code != 200 || !strings.Contains(text, "ACTION_REFUSED") || !strings.Contains(text, "spec.phase") {
		t.Errorf("Apply: %d %s", code, text)
	}
	if string(editor.applied.Manifest) != "xyz" || !editor.applied.DryRun || editor.applied.Namespace != "ns" {
		t.Errorf("the editor was asked %+v", editor.applied)
	}
	if code, text := ask(t, cfg, "Delete", `{"refs": [{"kind": "WasmPlugin", "namespace": "ns", "name": "a"}]}`); code != 200 || !strings.Contains(text, "ACTION_NOT_FOUND") {
		t.Errorf("Delete: %d %s", code, text)
	}
	cfg = Config{Control: fakeControl{}, ReadOnly: "use kubectl"}
	if code, text := ask(t, cfg, "Apply", `{}`); code != http.StatusBadRequest || !strings.Contains(text, "use kubectl") {
		t.Errorf("Apply without an editor: %d %s", code, text)
	}
}

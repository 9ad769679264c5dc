package dashboard

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/control"
)

var hidden = regexp.MustCompile(`<input type="hidden" name="([a-z]+)" value="([^"]*)">`)

// formOf gets a confirmation, and gives what its form has in it.
func formOf(t *testing.T, h http.Handler, path string) url.Values {
	t.Helper()
	code, text := get(t, h, path)
	if code != http.StatusOK {
		t.Fatalf("%s: %d", path, code)
	}
	form := url.Values{}
	for _, m := range hidden.FindAllStringSubmatch(text, -1) {
		form.Set(m[1], m[2])
	}
	return form
}

// send sends a form as a browser does.
func send(h http.Handler, path string, form url.Values, headers map[string]string) (int, string) {
	r := httptest.NewRequest(http.MethodPost, "http://127.0.0.1:9911"+path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", "http://127.0.0.1:9911")
	for k, v := range headers {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Code, w.Body.String() + w.Header().Get("Location")
}

// TestSteer: every verb comes to where it is done, with who and why.
func TestSteer(t *testing.T) {
	t.Parallel()
	f := told(t, 12, 6)
	var log bytes.Buffer
	cfg := configOf(f, admin)
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	h := New(cfg)
	page := rolloutPath(f.objects[0].Key)
	for _, verb := range []string{"promote", "promote-full", "pause", "abort"} {
		form := formOf(t, h, page+"/"+verb)
		form.Set("why", "because")
		if code, text := send(h, page+"/"+verb, form, nil); code != http.StatusSeeOther || text != page {
			t.Errorf("%s: %d %s", verb, code, text)
		}
	}
	var verbs []control.Verb
	for _, o := range f.orders {
		verbs = append(verbs, o.Verb)
		if o.Key != f.objects[0].Key || o.By != "ada" || o.Why != "because" {
			t.Errorf("%+v", o)
		}
	}
	if !slices.Equal(verbs, []control.Verb{control.Promote, control.PromoteFull, control.Pause, control.Abort}) {
		t.Errorf("%v", verbs)
	}
	if !strings.Contains(log.String(), `msg=changed who=ada from=127.0.0.1:5 does=abort object="WasmPlugin istio-system/auth" why=because verb=steer`) {
		t.Errorf("the log does not say who did what: %s", &log)
	}

	form := formOf(t, h, page+"/disable")
	form.Set("why", "it is broken")
	form.Set("labels", "zone=z1, canary=true")
	if code, _ := send(h, page+"/disable", form, nil); code != http.StatusSeeOther {
		t.Errorf("disable: %d", code)
	}
	d := f.disabled[0]
	if d.Reason != "it is broken" || d.By != "ada" || d.Labels["zone"] != "z1" || d.Labels["canary"] != "true" || d.At.IsZero() || d.Node != "" {
		t.Errorf("%+v", d)
	}
	for name, value := range map[string]string{
		"labels": "zone", "node": "gw-1", "labels ": strings.Repeat("a=b,", 16) + "x" + strings.Repeat("x", 400) + "=1", "node ": "a/" + strings.Repeat("b", 600),
	} {
		form := formOf(t, h, page+"/disable")
		form.Set("why", "it is broken")
		form.Set(strings.TrimSpace(name), value)
		if code, _ := send(h, page+"/disable", form, nil); code != http.StatusConflict || len(f.disabled) != 1 {
			t.Errorf("disable where %s is %.20s: %d", name, value, code)
		}
	}
	off := rolloutPath(f.objects[2].Key)
	if code, _ := send(h, off+"/enable", formOf(t, h, off+"/enable"), nil); code != http.StatusSeeOther || len(f.enabled) != 1 {
		t.Errorf("enable: %d", code)
	}
	bad := rolloutPath(f.objects[1].Key)
	if code, _ := send(h, bad+"/retry", formOf(t, h, bad+"/retry"), nil); code != http.StatusSeeOther || f.orders[len(f.orders)-1].Verb != control.Retry {
		t.Errorf("retry: %d", code)
	}
}

// TestSteerPins: an undo goes back to a release that was chosen, and can be lifted.
func TestSteerPins(t *testing.T) {
	t.Parallel()
	f := told(t, 12, 6)
	r := &f.rollouts[0].Rollout
	r.State = chandler.RolloutHealthy
	h := New(configOf(f, admin))
	page := rolloutPath(f.objects[0].Key)
	if _, text := get(t, h, page+"/undo"); strings.Contains(text, `value="`+string(r.History[0].Release)) || !strings.Contains(text, `value="`+string(r.History[2].Release)) {
		t.Error("there is to be a choice of all releases but the present one")
	}
	form := formOf(t, h, page+"/undo")
	form.Set("release", string(r.History[2].Release))
	form.Set("why", "the old list was right")
	if code, _ := send(h, page+"/undo", form, nil); code != http.StatusSeeOther || f.orders[0].Release != string(r.History[2].Release) {
		t.Errorf("undo: %d %+v", code, f.orders)
	}
	f.change(func() { r.State, r.Pinned = chandler.RolloutPaused, true })
	h = New(configOf(f, admin))
	if _, text := get(t, h, page); !strings.Contains(text, page+"/unpin") || strings.Contains(text, page+"/resume") || strings.Contains(text, page+"/promote") {
		t.Error("what is pinned can be unpinned, not resumed or promoted")
	}
	if _, text := get(t, h, Root); !strings.Contains(text, "Pinned") {
		t.Error("the overview does not say that it is pinned")
	}
}

// TestSteerRefuses: what is not this server's own form, of who sends it, about what they
// saw, does nothing.
func TestSteerRefuses(t *testing.T) {
	t.Parallel()
	f := told(t, 12, 6)
	now := noon
	who := admin
	cfg := configOf(f, admin)
	cfg.Now = func() time.Time { return now }
	cfg.Viewer = as(&who)
	h := New(cfg)
	page := rolloutPath(f.objects[0].Key)
	path := page + "/abort"
	good := formOf(t, h, path)
	good.Set("why", "because")
	with := func(name, value string) url.Values {
		form := url.Values{}
		for k, v := range good {
			form[k] = v
		}
		form.Set(name, value)
		return form
	}
	for _, c := range []struct {
		name    string
		form    url.Values
		headers map[string]string
		code    int
		says    string
	}{
		{"a page of another server", good, map[string]string{"Origin": "http://evil.example"}, 403, "another server"},
		{"a page of another port", good, map[string]string{"Origin": "http://127.0.0.1:8080"}, 403, "another server"},
		{"a page without a name", good, map[string]string{"Origin": "null"}, 403, "another server"},
		{"another site, as the browser says", good, map[string]string{"Sec-Fetch-Site": "cross-site"}, 403, "another server"},
		{"no token", with("token", ""), nil, 409, "too old, or not one of yours"},
		{"a token of nobody", with("token", "99999999999."+strings.Repeat("ab", 32)), nil, 409, "too old, or not one of yours"},
		{"a token for another button", with("token", formOf(t, h, page+"/promote").Get("token")), nil, 409, "too old, or not one of yours"},
		{"what was seen is another", with("seen", "x"), nil, 409, "has moved on"},
		{"no reason", with("why", " \t"), nil, 409, "Say why"},
		{"too much", with("why", strings.Repeat("x", maxForm)), nil, 400, "cannot be read"},
	} {
		if code, text := send(h, path, c.form, c.headers); code != c.code || !strings.Contains(text, c.says) {
			t.Errorf("%s: %d", c.name, code)
		}
	}
	if code, text := send(h, page+"/resume", good, nil); code != 409 || !strings.Contains(text, "no sense") {
		t.Errorf("resume of what is not paused: %d", code)
	}
	if code, _ := send(h, page+"/explode", good, nil); code != 409 {
		t.Errorf("a verb that nobody knows: %d", code)
	}
	who.name = "eve"
	if code, text := send(h, path, good, nil); code != 409 || !strings.Contains(text, "not one of yours") {
		t.Errorf("a form of somebody else: %d", code)
	}
	who = admin
	now = now.Add(formLasts + time.Second)
	if code, text := send(h, path, good, nil); code != 409 || !strings.Contains(text, "too old") {
		t.Errorf("an old form: %d", code)
	}
	now = noon
	f.change(func() { f.rollouts[0].Rollout.Step = 1 })
	now = now.Add(time.Minute)
	if code, text := send(h, path, good, nil); code != 409 || !strings.Contains(text, "has moved on") {
		t.Errorf("a form of how it was: %d", code)
	}
	for _, v := range []fakeViewer{looker, {name: "sue", known: true, verbs: []access.Verb{access.List, access.Read}}} {
		who = v
		want := http.StatusForbidden
		if !v.known {
			want = http.StatusSeeOther // to show who they are
		}
		if code, _ := send(h, path, good, nil); code != want {
			t.Errorf("%s: %d", v.name, code)
		}
		if code, _ := get(t, h, path); code != want {
			t.Errorf("%s is asked: %d", v.name, code)
		}
		if _, text := get(t, h, page); strings.Contains(text, path) {
			t.Errorf("%s sees a button", v.name)
		}
	}
	if len(f.orders) != 0 {
		t.Fatalf("%+v", f.orders)
	}
	who = admin
	f.refuse = errors.New("the rollout is over")
	form := formOf(t, h, path)
	form.Set("why", "my reason")
	if code, text := send(h, path, form, nil); code != 409 || !strings.Contains(text, "the rollout is over") || !strings.Contains(text, `value="my reason"`) {
		t.Errorf("what the control plane refuses: %d", code)
	}
}

// TestSignIn: a token is judged elsewhere; where one comes from is not left.
func TestSignIn(t *testing.T) {
	t.Parallel()
	h := New(configOf(told(t, 12, 6), looker))
	form := url.Values{"credential": {"right"}, "next": {Root + "matrix?state=r"}}
	if code, text := send(h, Root+"sign-in", form, nil); code != http.StatusSeeOther || text != Root+"matrix?state=r" {
		t.Errorf("%d %s", code, text)
	}
	for _, next := range []string{"https://evil.example/", "//evil.example/", "/\\evil.example", Root + "\\..", "", "/metrics", "javascript:x"} {
		form.Set("next", next)
		if _, text := send(h, Root+"sign-in", form, nil); text != Root {
			t.Errorf("next %q leads to %q", next, text)
		}
	}
	form.Set("credential", "wrong-token")
	if code, text := send(h, Root+"sign-in", form, nil); code != http.StatusUnauthorized || !strings.Contains(text, "nobody&#39;s") || strings.Contains(text, "wrong-token") {
		t.Errorf("%d", code)
	}
	if code, _ := send(h, Root+"sign-in", form, map[string]string{"Origin": "http://evil.example"}); code != http.StatusForbidden {
		t.Errorf("of another server: %d", code)
	}
	if code, text := send(h, Root+"sign-out", nil, nil); code != http.StatusSeeOther || text != Root {
		t.Errorf("%d %s", code, text)
	}
	cfg := configOf(told(t, 12, 6), looker)
	cfg.SignIn = nil
	if code, _ := send(New(cfg), Root+"sign-in", form, nil); code != http.StatusNotFound {
		t.Errorf("where nobody can: %d", code)
	}
}

// TestGuards: every answer keeps other pages out.
func TestGuards(t *testing.T) {
	t.Parallel()
	h := New(configOf(told(t, 12, 6), admin))
	for _, path := range []string{"", "matrix", "style.css", "dashboard.js", "icon.svg", "none", "plugins/a/b/c"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, Root+path, nil))
		csp := w.Header().Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "frame-ancestors 'none'", "form-action 'self'", "base-uri 'none'", "require-trusted-types-for 'script'"} {
			if !strings.Contains(csp, want) {
				t.Errorf("%s: no %s", path, want)
			}
		}
		if strings.Contains(csp, "unsafe") || strings.Contains(csp, "*") || w.Header().Get("X-Content-Type-Options") != "nosniff" || w.Header().Get("Referrer-Policy") != "same-origin" {
			t.Errorf("%s: %v", path, w.Header())
		}
		if b, _ := io.ReadAll(w.Body); len(b) == 0 {
			t.Errorf("%s is empty", path)
		}
	}
}

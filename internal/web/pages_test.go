package web

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/dashboard"
)

// fakeRollouts remembers who steered.
type fakeRollouts struct {
	unasked
	by atomic.Value
}

func (f *fakeRollouts) Rollouts(context.Context) ([]control.RolloutView, error) {
	key := chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "edge", Name: "a"}
	return []control.RolloutView{{Rollout: chandler.Rollout{Key: key, State: chandler.RolloutPaused}}}, nil
}

func (f *fakeRollouts) Steer(_ context.Context, o control.Steering) (control.RolloutView, error) {
	f.by.Store(string(o.Verb) + " by " + o.By)
	return control.RolloutView{}, nil
}

// browser asks as one does, and keeps cookies.
type browser struct {
	t       *testing.T
	s       *served
	cookies map[string]*http.Cookie
}

func (b *browser) ask(method, path string, form url.Values, headers map[string]string) (int, string, http.Header) {
	b.t.Helper()
	req, err := http.NewRequestWithContext(b.t.Context(), method, "http://"+b.s.addr+path, strings.NewReader(form.Encode()))
	if err != nil {
		b.t.Fatal(err)
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Origin", "http://"+b.s.addr)
		req.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	for name, value := range headers {
		req.Header.Set(name, value)
	}
	for _, c := range b.cookies {
		req.AddCookie(c)
	}
	way := &http.Transport{DisableKeepAlives: true}
	resp, err := way.RoundTrip(req)
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, c := range resp.Cookies() {
		if c.MaxAge < 0 {
			delete(b.cookies, c.Name)
		} else {
			b.cookies[c.Name] = c
		}
	}
	return resp.StatusCode, string(text), resp.Header
}

func (b *browser) signIn(who string) (int, string) {
	b.t.Helper()
	code, text, _ := b.ask(http.MethodPost, dashboard.Root+"sign-in", url.Values{"credential": {who + "'s token"}}, nil)
	return code, text
}

// field gives a hidden field of a form.
func field(text, name string) string {
	_, rest, _ := strings.Cut(text, `name="`+name+`" value="`)
	value, _, _ := strings.Cut(rest, `"`)
	return value
}

// TestDashboard: who shows nothing looks, from this machine; a token says who somebody is,
// for as long as the operator grants it something.
func TestDashboard(t *testing.T) {
	t.Parallel()
	var gone, late atomic.Bool
	start := time.Now()
	rollouts := &fakeRollouts{}
	plane := fakeControl{journal: &journal{}, views: []control.ObjectView{configured("edge", "a"), configured("shop", "b")}}
	s := serve(t, Config{
		UID: os.Getuid(), Control: plane, Rollouts: rollouts,
		Grants: func() []access.Grant {
			if gone.Load() {
				return nil
			}
			return []access.Grant{tokenOf("olga", access.Admin, "edge"), tokenOf("vic", access.Viewer, "*")}
		},
		Now: func() time.Time {
			if late.Load() {
				return start.Add(sessionLasts + time.Second)
			}
			return start
		},
	})
	b := &browser{t, s, map[string]*http.Cookie{}}
	if code, _, h := b.ask(http.MethodGet, "/", nil, nil); code != http.StatusTemporaryRedirect || h.Get("Location") != dashboard.Root {
		t.Errorf("the root: %d %v", code, h)
	}
	const plugin, button = dashboard.Root + "plugins/WasmPlugin/edge/a", dashboard.Root + "rollouts/WasmPlugin/edge/a/resume"
	if code, text, _ := b.ask(http.MethodGet, plugin, nil, nil); code != 200 || !strings.Contains(text, "looking only") || strings.Contains(text, "canary") {
		t.Errorf("who shows nothing: %d %s", code, text)
	}
	if code, _, h := b.ask(http.MethodGet, button, nil, nil); code != http.StatusSeeOther || !strings.HasPrefix(h.Get("Location"), dashboard.Root+"sign-in?next=") {
		t.Errorf("a button of nobody: %d", code)
	}
	if code, text := b.signIn("thief"); code != http.StatusUnauthorized || len(b.cookies) != 0 || !strings.Contains(text, "nobody&#39;s") {
		t.Errorf("a token of nobody: %d %v", code, b.cookies)
	}

	if code, _ := b.signIn("vic"); code != http.StatusSeeOther || len(b.cookies) != 1 {
		t.Fatalf("vic: %d %v", code, b.cookies)
	}
	for name, c := range b.cookies {
		if !c.HttpOnly || c.SameSite != http.SameSiteLaxMode || c.Path != dashboard.Root || strings.Contains(c.Value, "token") || c.Secure {
			t.Errorf("%s: %+v", name, c)
		}
	}
	if code, text, _ := b.ask(http.MethodGet, button, nil, nil); code != http.StatusForbidden || !strings.Contains(text, "vic may not") {
		t.Errorf("a button of vic: %d", code)
	}
	b.signIn("olga")
	code, text, _ := b.ask(http.MethodGet, button, nil, nil)
	if code != 200 || !strings.Contains(text, ">olga<") {
		t.Fatalf("a button of olga: %d", code)
	}
	form := url.Values{"token": {field(text, "token")}, "seen": {field(text, "seen")}}
	for _, headers := range []map[string]string{{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "same-site"}, {"Sec-Fetch-Site": "cross-site"}} {
		if code, _, _ := b.ask(http.MethodPost, button, form, headers); code != http.StatusForbidden || rollouts.by.Load() != nil {
			t.Errorf("%v: %d", headers, code)
		}
	}
	if code, _, _ := b.ask(http.MethodPost, button, form, nil); code != http.StatusSeeOther || rollouts.by.Load() != "resume by olga" {
		t.Errorf("olga steers: %d %v", code, rollouts.by.Load())
	}
	if log := s.log.String(); !strings.Contains(log, `msg=changed who=olga from=127.0.0.1:`) || !strings.Contains(log, `does=resume object="WasmPlugin edge/a"`) ||
		!strings.Contains(log, "the token is nobody's") || strings.Contains(log, "'s token") {
		t.Errorf("the log: %s", log)
	}
	// The cookie is good for the dashboard alone.
	if code, text, _ := b.ask(http.MethodGet, "/chandler.v1.Admin/List?encoding=json&message=%7B%7D&connect=v1", nil, nil); code != 200 || strings.Count(text, `"redacted":true`) != 2 {
		t.Errorf("the API with a cookie: %d %s", code, text)
	}
	gone.Store(true)
	if _, text, _ := b.ask(http.MethodGet, plugin, nil, nil); !strings.Contains(text, "looking only") {
		t.Error("a token that is good no more still is, in the dashboard")
	}
	gone.Store(false)
	late.Store(true)
	if _, text, _ := b.ask(http.MethodGet, plugin, nil, nil); !strings.Contains(text, "looking only") {
		t.Error("a session does not end")
	}
	late.Store(false)
	for _, c := range b.cookies {
		kept := c.Value
		for _, bad := range []string{"", "x", kept + "A", strings.Repeat("A", len(kept))} {
			c.Value = bad
			if code, text, _ := b.ask(http.MethodGet, plugin, nil, nil); code != 200 || !strings.Contains(text, "looking only") {
				t.Errorf("a cookie that is none: %d", code)
			}
		}
		c.Value = kept
	}
	if _, text, _ := b.ask(http.MethodGet, plugin, nil, nil); !strings.Contains(text, ">olga<") {
		t.Error("olga is not known any more")
	}
	b.ask(http.MethodPost, dashboard.Root+"sign-out", nil, nil)
	if _, text, _ := b.ask(http.MethodGet, plugin, nil, nil); !strings.Contains(text, "looking only") || len(b.cookies) != 0 {
		t.Error("olga did not sign out")
	}
	if code, _, _ := b.ask(http.MethodGet, plugin, nil, showing("thief")); code != http.StatusUnauthorized {
		t.Errorf("a header that is no good: %d", code)
	}
}

// TestVisits: a link on another page leads to the dashboard, and nothing else of
// another page does.
func TestVisits(t *testing.T) {
	t.Parallel()
	s := serve(t, Config{UID: os.Getuid(), Control: fakeControl{journal: &journal{}}, Hosts: []string{"control.example"}})
	visit := func(more ...string) map[string]string {
		h := map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
		for i := 0; i < len(more); i += 2 {
			h[more[i]] = more[i+1]
		}
		return h
	}
	b := &browser{t, s, map[string]*http.Cookie{}}
	for _, c := range []struct {
		method, path string
		headers      map[string]string
		code         int
	}{
		{"GET", dashboard.Root, visit(), 200},
		{"GET", "/", visit(), 307},
		{"GET", dashboard.Root, visit("Sec-Fetch-Dest", "iframe"), 403},
		{"GET", dashboard.Root, visit("Sec-Fetch-Mode", "cors"), 403},
		{"GET", dashboard.Root, visit("Origin", "http://evil.example"), 403},
		{"GET", "/metrics", visit(), 403},
		{"GET", "/chandler.v1.Admin/List", visit(), 403},
		{"POST", dashboard.Root + "sign-out", visit(), 403},
		{"POST", dashboard.Root + "sign-in", visit("Origin", ""), 403},
	} {
		if code, _, _ := b.ask(c.method, c.path, nil, c.headers); code != c.code {
			t.Errorf("%s %s %v: %d, want %d", c.method, c.path, c.headers, code, c.code)
		}
	}
}

// TestStreamsEnd: a page that follows does not hold the server up when it ends.
func TestStreamsEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, streamsEnd) // they have some seconds, which a machine that stalls is not to take
}

func streamsEnd(t *testing.T) {
	s := serve(t, Config{UID: os.Getuid(), Control: fakeControl{journal: &journal{}}})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.addr+dashboard.Root+"live", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	if line, err := lines.ReadString('\n'); err != nil || line != "event: version\n" || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%q %v", line, err)
	}
	s.end()
	if _, err := io.ReadAll(lines); err != nil {
		t.Errorf("the stream was cut, not ended: %v", err)
	}
}

package dashboard

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// logOf has what a handler logs stand in the test's output.
func logOf(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// get asks for a page as a browser on this machine does.
func get(t testing.TB, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "http://127.0.0.1:9911"+path, nil))
	return w.Code, w.Body.String()
}

var (
	versions = regexp.MustCompile(`data-version="[0-9a-f]+-`)
	tokens   = regexp.MustCompile(`name="token" value="[^"]*"`)
)

// golden compares a text with the one that is kept. One that changed is removed and
// written anew by the next run.
func golden(t *testing.T, name, text string) {
	t.Helper()
	text = versions.ReplaceAllString(text, `data-version="v-`)
	text = tokens.ReplaceAllString(text, `name="token" value="T"`)
	path := filepath.Join("testdata", "pages", name+".html")
	want, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Logf("%s is new: look at it", path)
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, []byte(text)) {
		got := strings.Split(text, "\n")
		for i, line := range strings.Split(string(want), "\n") {
			if i >= len(got) || got[i] != line {
				t.Errorf("%s, line %d:\n%s\nwant\n%s", path, i+1, strings.Join(got[min(i, len(got)):min(i+1, len(got))], ""), line)
				return
			}
		}
		t.Errorf("%s: there is more than is kept", path)
	}
}

// pagesOf names every kind of page.
func pagesOf() map[string]string {
	return map[string]string{
		"overview": "", "matrix-table": "matrix", "matrix-map": "matrix?view=map", "matrix-filtered": "matrix?state=r&proxy=proxy", "matrix-words": "matrix?plugin=geo", "proxies": "proxies", "rollouts": "rollouts",
		"events": "events", "events-filtered": "events?plugin=auth&reason=Applied", "plugin": "plugins/WasmPlugin/istio-system/auth", "plugin-failing": "plugins/WasmPlugin/istio-system/geo",
		"proxy": "proxies/edge/proxy-0000", "proxy-away": "proxies/pay/proxy-0011", "rollout": "rollouts/WasmPlugin/istio-system/auth", "rollout-degraded": "rollouts/WasmPlugin/istio-system/rate-limit",
		"rollout-disabled": "rollouts/WasmPlugin/istio-system/headers", "confirm-abort": "rollouts/WasmPlugin/istio-system/auth/abort", "confirm-disable": "rollouts/WasmPlugin/istio-system/auth/disable", "sign-in": "sign-in",
	}
}

func TestPages(t *testing.T) {
	t.Parallel()
	cfg := configOf(told(t, 12, 6), admin)
	cfg.Log = logOf(t)
	h := New(cfg)
	for name, path := range pagesOf() {
		code, text := get(t, h, Root+path)
		if code != http.StatusOK {
			t.Errorf("%s: %d", name, code)
			continue
		}
		golden(t, name, text)
	}
}

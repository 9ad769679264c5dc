package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
)

// post asks a handler as somebody from an address would.
func post(h http.Handler, path, from string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, nil)
	r.RemoteAddr = from
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// A running agent checks and trims its store for those on its machine, and keeps
// what is leased or last good.
func TestAdminStore(t *testing.T) {
	t.Parallel()
	a := bareAgent(t)
	h := a.adminHandler(prometheus.NewRegistry())
	const here = "127.0.0.1:1234"
	var digests []chandler.ModuleDigest
	for _, text := range []string{"leased", "good", "denied", "unused", "remote"} {
		d, _, err := a.store.Ingest(strings.NewReader(text), "")
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, d)
	}
	lease, err := a.store.Acquire(digests[0])
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Release()
	version := func(d chandler.ModuleDigest) Version {
		return Version{Attachment: chandler.Attachment{Key: chandler.Key{Name: "a"}, Program: chandler.Program{Module: &chandler.Module{Digest: d}}}}
	}
	if err := saveLastGood(durable.OS(), a.cfg.Data, SaveLastGood{Versions: []Version{version(digests[1])}, Denied: []Version{version(digests[2])}}); err != nil {
		t.Fatal(err)
	}
	remote := `{"resources":[{"name":"theirs","modules":[{"what":"` + strings.Repeat("0", 64) + `","digest":"` + string(digests[4]) + `"}]}]}`
	if err := os.WriteFile(filepath.Join(a.cfg.Data, "remote-1"), []byte(remote), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"192.0.2.1:1234", "[2001:db8::1]:1", "nonsense"} {
		if w := post(h, "/store/trim", from); w.Code != http.StatusForbidden {
			t.Errorf("from %s: %d", from, w.Code)
		}
	}
	own := httptest.NewRequest(http.MethodPost, "/store/trim?dry_run=true", nil)
	own.RemoteAddr = "192.0.2.1:1234"
	for at, code := range map[string]int{"192.0.2.1:9912": http.StatusOK, "192.0.2.2:9912": http.StatusForbidden} {
		addr := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(at))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, own.WithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, net.Addr(addr))))
		if w.Code != code {
			t.Errorf("from %s to %s: %d, want %d", own.RemoteAddr, at, w.Code, code)
		}
	}
	if w := post(h, "/store/trim", here, "Origin", "https://example.com"); w.Code != http.StatusForbidden {
		t.Errorf("from a page: %d", w.Code)
	}
	for _, query := range []string{"max_bytes=x", "max_bytes=-1", "dry_run=perhaps"} {
		if w := post(h, "/store/trim?"+query, here); w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d", query, w.Code)
		}
	}
	report := func(path, from string) (r StoreReport) {
		t.Helper()
		w := post(h, path, from)
		if err := json.Unmarshal(w.Body.Bytes(), &r); err != nil || w.Code != http.StatusOK {
			t.Fatalf("%s: %d %v %s", path, w.Code, err, w.Body)
		}
		return r
	}
	for _, path := range []string{"/store/trim?dry_run=true", "/store/trim"} {
		if r := report(path, "[::1]:1"); len(r.Modules) != 1 || r.Modules[0].Digest != digests[3] || r.Bytes != 6 || r.Left != 22 {
			t.Errorf("%s: %+v", path, r)
		}
	}
	if r := report("/store/verify", here); r.Checked != 4 || len(r.Modules) != 0 || len(r.Errors) != 0 {
		t.Errorf("%+v", r)
	}
	if err := os.WriteFile(lastGoodPath(a.cfg.Data), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if w := post(h, "/store/trim", here); w.Code != http.StatusInternalServerError || !strings.Contains(w.Body.String(), "cannot be read") {
		t.Errorf("without a last good set: %d %s", w.Code, w.Body)
	}
	if n, _ := a.store.Stats(); n != 4 {
		t.Errorf("%d modules are left", n)
	}
}

func TestAdminStatus(t *testing.T) {
	t.Parallel()
	a := bareAgent(t)
	a.cfg.Node = chandler.Node{Name: "n", Namespace: "ns", AgentVersion: "v1"}
	h := a.adminHandler(prometheus.NewRegistry())
	status := func() (st Status) {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/status", nil))
		dec := json.NewDecoder(bytes.NewReader(w.Body.Bytes()))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&st); err != nil {
			t.Fatalf("%v: %s", err, w.Body)
		}
		return st
	}
	if st := status(); st.Node != "ns/n" || st.Version != "v1" || st.OK() || st.Store.Max == 0 || st.Control.Connected {
		t.Errorf("at the start: %+v", st)
	}
	a.connection(true, "c:1", nil)
	since := status().Control.Since
	a.connection(true, "c:2", nil)
	if c := status().Control; !c.Connected || c.Address != "c:2" || !c.Since.Equal(since) {
		t.Errorf("connected: %+v", c)
	}
	a.connection(false, "c:2", chandler.Problemf(chandler.CodeControlUnreachable, "", "", "no\x1b route"))
	if c := status().Control; c.Connected || !strings.Contains(c.Error, "no  route") && !strings.Contains(c.Error, "no route") {
		t.Errorf("not connected: %+v", c)
	}
	a.step(t.Context(), message{event: EnvoyEnded{Message: "it is gone", Attempt: 1}})
	if st := status(); st.OK() || st.Envoy.PID != 0 || st.Envoy.Down != "it is gone" || len(st.Unready) != 1 {
		t.Errorf("without an Envoy: %+v", st)
	}
	a.draining.Store(true)
	if w := status(); len(w.Unready) != 1 || w.Unready[0] != "draining" {
		t.Errorf("at the end: %+v", w)
	}
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/ports"
)

func TestServerInfo(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	s, err := readServerInfo([]byte(`{"version": "9e55/1.40.0/Clean/RELEASE/BoringSSL", "state": "LIVE", "uptime_current_epoch": "90s", "uptime_all_epochs": "1s"}`), now)
	if err != nil || s.version != "1.40.0" || s.build != "9e55/1.40.0/Clean/RELEASE/BoringSSL" || !s.begun.Equal(now.Add(-90*time.Second)) || s.open {
		t.Errorf("%+v, %v", s, err)
	}
	for _, text := range []string{"", "[]", "{}", `{"version": "x", "uptime_current_epoch": "1s"}`, `{"version": "a/1.40.0/b"}`,
		`{"version": "a/1.40.0/b", "uptime_current_epoch": "-1s"}`, `{"version": "a/1.40.0/b", "uptime_current_epoch": "NaNs"}`,
		`{"version": "a/1.40.0/b", "uptime_current_epoch": "1e300s"}`, `{"version": "a/1.40.0/b", "uptime_current_epoch": "5"}`} {
		if s, err := readServerInfo([]byte(text), now); err == nil || !strings.Contains(err.Error(), "as no Envoy does") {
			t.Errorf("%s: %+v, %v", text, s, err)
		}
	}
}

func FuzzServerInfo(f *testing.F) {
	f.Add([]byte(`{"version": "9e55/1.40.0/Clean/RELEASE/BoringSSL", "uptime_current_epoch": "90s"}`))
	f.Add([]byte(`{"version": "//1.2.3/", "uptime_current_epoch": "0x1p-2s"}`))
	now := time.Now()
	f.Fuzz(func(t *testing.T, body []byte) {
		s, err := readServerInfo(body, now)
		if err == nil && (s.version == "" || s.begun.After(now) || s.begun.Before(now.Add(-1e9*time.Second))) {
			t.Errorf("%+v", s)
		}
	})
}

func TestSlotsByVersion(t *testing.T) {
	t.Parallel()
	for version, want := range map[string]bool{"1.39": false, "1.39.0": true, "1.40.0-dev": true, "2.0.0": true, "1.38.9": false, "1.36.4": false, "0.99.0": false, "": false, "new": false, "1": false} {
		if hasSlots(version) != want {
			t.Errorf("%s has slots: %v", version, !want)
		}
	}
}

// Slow is not gone: an Envoy compiles for seconds and does not answer.
func TestGone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ask := func(at adminAddress, patience time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c := newAdminClient(at)
		defer c.http.CloseIdleConnections()
		_, err := c.get(ctx, "/server_info")
		return err
	}
	socket := adminAddress{network: "unix", address: filepath.Join(dir, "s")}
	if err := ask(socket, time.Minute); !gone(err) {
		t.Errorf("without a socket: %v", err)
	}
	if err := ask(adminAddress{network: "tcp", file: filepath.Join(dir, "none")}, time.Minute); !gone(err) {
		t.Errorf("without the file of its address: %v", err)
	}
	lis, err := net.Listen("unix", socket.address)
	if err != nil {
		t.Fatal(err)
	}
	if err := ask(socket, 100*time.Millisecond); err == nil || gone(err) {
		t.Errorf("one that does not answer: %v", err)
	}
	lis.(*net.UnixListener).SetUnlinkOnClose(false)
	lis.Close()
	if err := ask(socket, time.Minute); !gone(err) {
		t.Errorf("of one that was killed: %v", err)
	}
	for _, err := range []error{syscall.EACCES, context.DeadlineExceeded, errors.New("EOF")} {
		if gone(err) {
			t.Errorf("%v means that nobody is there", err)
		}
	}
}

// The address of an admin interface may be in a file, and another one later.
func TestAdminAddressInAFile(t *testing.T) {
	t.Parallel()
	at := adminAddress{network: "tcp", address: "127.0.0.1:0", file: filepath.Join(t.TempDir(), "address")}
	client := newAdminClient(at)
	for range 2 {
		lis, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write([]byte("here")) })}
		done := make(chan struct{})
		go func() { defer close(done); _ = srv.Serve(lis) }()
		if err := os.WriteFile(at.file, []byte(lis.Addr().String()+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		body, err := client.get(t.Context(), "/x")
		if err != nil || string(body) != "here" {
			t.Errorf("%q, %v", body, err)
		}
		client.http.CloseIdleConnections()
		srv.Close()
		<-done
	}
	for s, want := range map[string]string{"127.0.0.1:9901": "127.0.0.1:9901", "unix:///run/a.sock": "unix:///run/a.sock", "127.0.0.1:0": "", "x": "", "unix://": "", "http://x:1": ""} {
		if at, err := parseAdminAddress(s); (err == nil) != (want != "") || err == nil && at.String() != want {
			t.Errorf("%s is %v, %v", s, at, err)
		}
	}
}

// This program is not its own Envoy, whatever it is called.
func TestFindEnvoy(t *testing.T) {
	own, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	self, real := filepath.Join(dir, "envoy"), filepath.Join(dir, "real")
	if err := os.Symlink(own, self); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(real, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	for name, want := range map[string]string{"envoy": "", self: "", "real": real, real: real, "another": "", filepath.Join(dir, "another"): ""} {
		found, err := FindEnvoy(name)
		if found != want || (err == nil) != (want != "") || err != nil && !strings.Contains(err.Error(), "CHANDLER_AGENT_ENVOY") {
			t.Errorf("%s: %s, %v", name, found, err)
		}
		if (name == self || name == "envoy") && !strings.Contains(err.Error(), "is this agent itself") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// scriptedAdmin is the admin interface of an Envoy that follows a script.
type scriptedAdmin struct {
	mu      sync.Mutex
	version string
	begun   time.Time
	slow    chan struct{} // answers wait for it; nil: they do not
	asked   int
}

// count is how often it was asked.
func (s *scriptedAdmin) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

func (s *scriptedAdmin) set(change func(*scriptedAdmin)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

func (s *scriptedAdmin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	version, age, slow := s.version, time.Since(s.begun), s.slow
	s.asked++
	s.mu.Unlock()
	if slow != nil {
		select {
		case <-slow:
		case <-r.Context().Done():
			return
		}
	}
	switch r.URL.Path {
	case "/server_info":
		fmt.Fprintf(w, `{"version": "abc/%s/Clean/RELEASE/BoringSSL", "uptime_current_epoch": "%ds"}`, version, int(age.Seconds()))
	case "/stats":
		fmt.Fprintln(w, "listener_manager.total_listeners_active: 1\nlistener_manager.total_listeners_warming: 0")
	}
}

// separateAgent runs an agent beside a scripted Envoy, on an address of this machine.
func separateAgent(t *testing.T, admin http.Handler) (a *Agent, srv *http.Server, ended chan error) {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(config, []byte("static_resources: {}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	addr, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	srv = &http.Server{Handler: admin}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(lis) }()
	t.Cleanup(func() { srv.Close(); <-served })
	cfg := Config{Node: chandler.Node{Name: "n", Namespace: "ns"}, Data: filepath.Join(dir, "data"), EnvoyArgs: []string{"-c", config}, EnvoyAdmin: addr, NoChild: true}
	if err := WriteBootstrap(t.Context(), cfg, "1.40.0", filepath.Join(dir, "g.yaml")); err != nil {
		t.Fatal(err)
	}
	if a, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended = make(chan error, 1)
	done := make(chan struct{})
	go func() { defer close(done); ended <- a.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	within(t, "the agent begins", func() bool { return a.view.Load() != nil })
	return a, srv, ended
}

func within(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// One that is slow is there; one that is younger than the one before is another; one that
// refuses connections is gone; of another version it is for another agent.
func TestSeparateComesAndGoes(t *testing.T) {
	t.Parallel()
	admin := &scriptedAdmin{version: "1.40.0", begun: time.Now().Add(-time.Hour)}
	a, _, ended := separateAgent(t, admin)
	within(t, "it is seen", func() bool { return a.status().Envoy.Running() })
	first := a.status().Envoy
	if first.Version != "1.40.0" || !first.Separate || time.Since(first.Since).Round(time.Minute) != time.Hour {
		t.Errorf("%+v", first)
	}

	release := make(chan struct{})
	admin.set(func(s *scriptedAdmin) { s.slow = release })
	for until := time.Now().Add(3 * watchInterval); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		if now := a.status().Envoy; !now.Running() || !now.Since.Equal(first.Since) {
			t.Fatalf("slow is taken for gone: %+v", now)
		}
	}
	// What it told of its age was true when it was asked; that it is read late makes no
	// other Envoy of it.
	admin.set(func(s *scriptedAdmin) { s.slow = nil })
	close(release)
	answered := admin.count()
	within(t, "it is looked at again", func() bool { return admin.count() >= answered+3 })
	if now := a.status().Envoy; !now.Running() || !now.Since.Equal(first.Since) {
		t.Fatalf("one whose answer was late is taken for another: %+v", now)
	}
	admin.set(func(s *scriptedAdmin) { s.begun = time.Now().Add(-time.Minute) })
	within(t, "another is seen", func() bool {
		now := a.status().Envoy
		return now.Running() && time.Since(now.Since) < 2*time.Minute
	})

	admin.set(func(s *scriptedAdmin) { s.version, s.begun = "1.41.0", time.Now() })
	select {
	case err := <-ended:
		if err == nil || !strings.Contains(err.Error(), "another Envoy (1.41.0) has come") {
			t.Errorf("the agent ends with %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("one of another version is served")
	}
}

func TestSeparateIsGone(t *testing.T) {
	t.Parallel()
	a, srv, ended := separateAgent(t, &scriptedAdmin{version: "1.40.0", begun: time.Now()})
	within(t, "it is seen", func() bool { return a.status().Envoy.Running() })
	srv.Close()
	within(t, "it is gone", func() bool {
		st := a.status()
		return !st.Envoy.Running() && !st.Ready && strings.Contains(st.Envoy.Down, "connection refused")
	})
	select {
	case err := <-ended:
		t.Errorf("the agent ended too: %v", err)
	default:
	}
}

// An agent that may not look at Envoy's admin interface says so, and serves nothing that
// it cannot see taken.
func TestSeparateCannotBeSeen(t *testing.T) {
	t.Parallel()
	a, _, _ := separateAgent(t, http.NotFoundHandler()) // somebody listens, and is no Envoy
	st := a.status()
	if st.Ready || st.Envoy.Running() || !st.Envoy.Separate || !strings.Contains(st.Envoy.Down, a.cfg.EnvoyAdmin) || !strings.Contains(st.Envoy.Down, "404") {
		t.Errorf("%+v", st.Envoy)
	}
	if _, err := os.Stat(filepath.Join(a.cfg.Data, "envoy", "ads.sock")); err == nil {
		t.Error("slots are served to nobody knows whom")
	}
}

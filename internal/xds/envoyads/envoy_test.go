package envoyads

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/testenv/module"
)

const userConfig = `
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}]}
          http_filters:
          - name: router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
`

// live is the real Envoy under a derived bootstrap, with a server for its slots.
type live struct {
	*testing.T
	dir     string
	derived attach.Derived
	events  chan Event
	server  *Server
	stop    func()
	address string   // of the listener
	conn    net.Conn // to it; nil: not yet
	answers *bufio.Reader
}

func startLive(t *testing.T) *live {
	t.Helper()
	dir, err := os.MkdirTemp("", "chandler") // short: paths of sockets are bounded
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l := &live{T: t, dir: dir, events: make(chan Event, 1000)}
	config, err := attach.MergeConfig("envoy.yaml", []byte(userConfig), "")
	if err != nil {
		t.Fatal(err)
	}
	l.derived, err = attach.Derive(config, attach.DeriveConfig{NodeID: "n", Cluster: "c", ADSSocket: filepath.Join(dir, "ads"),
		ListenersFile: filepath.Join(dir, "listeners"), AdminSocket: filepath.Join(dir, "admin")})
	if err != nil {
		t.Fatal(err)
	}
	l.write("bootstrap.yaml", l.derived.Bootstrap)
	l.write(filepath.Base(l.derived.ListenersFile), l.derived.Listeners)
	l.listen()
	t.Cleanup(func() { l.stop() })
	l.startEnvoy()
	return l
}

func (l *live) write(name string, content []byte) string {
	l.Helper()
	path := filepath.Join(l.dir, name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		l.Fatal(err)
	}
	return path
}

// listen starts a server for the slots, as an agent does when it begins.
func (l *live) listen() {
	l.Helper()
	lis, err := net.Listen("unix", filepath.Join(l.dir, "ads"))
	if err != nil {
		l.Fatal(err)
	}
	l.server = New(Config{Events: func(ev Event) { l.events <- ev }})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.server.Serve(ctx, lis) }()
	l.stop = func() {
		cancel()
		if err := <-done; err != nil {
			l.Errorf("Serve: %v", err)
		}
	}
}

func (l *live) startEnvoy() {
	l.Helper()
	log, err := os.Create(filepath.Join(l.dir, "log"))
	if err != nil {
		l.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(module.Envoy(l.T), "-c", filepath.Join(l.dir, "bootstrap.yaml"), "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if l.Failed() {
			text, _ := os.ReadFile(log.Name())
			l.Logf("Envoy's log:\n%s", text)
		}
	})
}

func (l *live) await(what string, holds func() bool) {
	l.Helper()
	for until := time.Now().Add(bound); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		if holds() {
			return
		}
	}
	l.Fatalf("not within %v: %s", bound, what)
}

func (l *live) event() Event {
	l.Helper()
	select {
	case ev := <-l.events:
		return ev
	case <-time.After(bound):
		l.Fatal("no event")
		return nil
	}
}

// admin asks Envoy's admin interface.
func (l *live) admin(path string) string {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, l.derived.Admin.Network, l.derived.Admin.Address)
	}}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport, Timeout: bound}).Get("http://envoy" + path)
	if err != nil {
		return ""
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	return string(text)
}

// findAddress learns the port that the listener has got.
func (l *live) findAddress() bool {
	var list struct {
		Statuses []struct {
			Local struct {
				Socket struct {
					Port int `json:"port_value"`
				} `json:"socket_address"`
			} `json:"local_address"`
		} `json:"listener_statuses"`
	}
	if json.Unmarshal([]byte(l.admin("/listeners?format=json")), &list) != nil || len(list.Statuses) == 0 {
		return false
	}
	l.address = fmt.Sprintf("127.0.0.1:%d", list.Statuses[0].Local.Socket.Port)
	return true
}

// serves asserts what a request is answered, all of them on one connection.
func (l *live) serves(want int) {
	l.Helper()
	if l.conn == nil {
		conn, err := net.Dial("tcp", l.address)
		if err != nil {
			l.Fatal(err)
		}
		l.Cleanup(func() { _ = conn.Close() })
		l.conn, l.answers = conn, bufio.NewReader(conn)
	}
	_ = l.conn.SetDeadline(time.Now().Add(bound))
	_, err := io.WriteString(l.conn, "GET / HTTP/1.1\r\nHost: web\r\n\r\n")
	if err != nil {
		l.Fatal(err)
	}
	res, err := http.ReadResponse(l.answers, nil)
	if err != nil {
		l.Fatal(err)
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	if err != nil || res.StatusCode != want {
		l.Fatalf("status %d, want %d; %v", res.StatusCode, want, err)
	}
}

func (l *live) set(slot attach.Slot, members ...attach.Member) string {
	config := attach.Compose(slot, members)
	version := attach.Version(config)
	l.server.Set(slot.Name(), version, attach.Body(config))
	return version
}

func (l *live) acked(slot attach.Slot, version string) {
	l.Helper()
	if got, want := l.event(), (Acked{Slot: slot.Name(), Version: version}); got != want {
		l.Fatalf("told %#v, want %#v", got, want)
	}
}

// refused asserts a NACK that blames the member.
func (l *live) refused(slot attach.Slot, version string, m attach.Member) {
	l.Helper()
	ev, ok := l.event().(Nacked)
	if !ok || ev.Slot != slot.Name() || ev.Version != version {
		l.Fatalf("told %#v", ev)
	}
	if key, ok := attach.PluginOfNack(ev.Message, []attach.Member{m}); !ok || key != m.Attachment.Key {
		l.Errorf("nobody is blamed for %q", ev.Message)
	}
}

func (l *live) plugin(name string, program chandler.Program, path string) attach.Member {
	return attach.Member{ModulePath: path, Attachment: &chandler.Attachment{
		Key: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: name}, Program: program,
		Behaviour: chandler.Behaviour{Type: chandler.HTTP, Phase: chandler.PhaseAuthn, FailStrategy: chandler.FailReload,
			Config: []byte("{}"), Env: []chandler.EnvVar{{Name: "A", Value: "b"}}},
	}}
}

// The whole way on the real Envoy: nothing listens before the slots are filled;
// then plugins come, are refused, and go, all on one connection; and a new agent
// finds everything as it was.
func TestRealEnvoy(t *testing.T) {
	t.Parallel()
	l := startLive(t)
	slots := l.derived.Slots
	subscribed := map[string]bool{}
	for len(subscribed) < len(slots) {
		switch ev := l.event().(type) {
		case Connected:
			if ev.Version != "1.40.0" {
				t.Errorf("connected: %#v", ev)
			}
		case Subscribed:
			if _, ok := attach.ParseSlot(ev.Slot); !ok || ev.Version != "" {
				t.Errorf("subscribed: %#v", ev)
			}
			subscribed[ev.Slot] = true
		default:
			t.Fatalf("told %#v", ev)
		}
	}
	if l.findAddress() {
		if conn, err := net.Dial("tcp", l.address); err == nil {
			_ = conn.Close()
			t.Error("the listener is open before its slots are filled")
		}
	}
	versions := map[string]string{}
	for _, slot := range slots {
		versions[slot.Name()] = l.set(slot)
		l.acked(slot, versions[slot.Name()])
	}
	l.await("the listener opens", func() bool { return l.findAddress() && strings.HasPrefix(l.admin("/ready"), "LIVE") })
	l.serves(200)
	slot := slots[0]
	wasm := chandler.Program{Module: &chandler.Module{Digest: "sha256:x"}}
	deny := l.plugin("deny", wasm, l.write("deny.wasm", module.Deny(418)))
	good := l.set(slot, deny)
	l.acked(slot, good)
	l.serves(418)

	gone := l.plugin("gone", wasm, filepath.Join(l.dir, "gone.wasm"))
	l.refused(slot, l.set(slot, deny, gone), gone)
	l.serves(418)
	l.acked(slot, l.set(slot, deny))
	cut := l.plugin("cut", wasm, l.write("cut.wasm", module.Truncate(module.Deny(200))))
	l.refused(slot, l.set(slot, deny, cut), cut)
	l.serves(418)
	l.acked(slot, l.set(slot, deny))

	// An agent that begins anew finds Envoy as it is, and need not send a thing;
	// then it refuses again what its predecessor saw refused.
	bad := l.set(slot, deny, cut)
	l.refused(slot, bad, cut)
	l.restartServer(slot, good, versions)
	if again := l.set(slot, deny, cut); again != bad {
		t.Fatal("the composition is not deterministic")
	}
	l.refused(slot, bad, cut)
	l.serves(418)

	denied := l.plugin("deny", wasm, "")
	denied.StandIn = chandler.StandInDeny
	l.acked(slot, l.set(slot, denied))
	l.serves(403)
	lua := l.plugin("lua", chandler.Program{Lua: &chandler.Lua{InlineCode: `function envoy_on_request(h) h:respond({[":status"] = "429"}, "") end`}}, "")
	l.acked(slot, l.set(slot, lua))
	l.serves(429)
	l.acked(slot, l.set(slot))
	l.serves(200)
}

func (l *live) restartServer(slot attach.Slot, good string, versions map[string]string) {
	l.Helper()
	l.stop()
	if ev, ok := l.event().(Disconnected); !ok {
		l.Fatalf("told %#v", ev)
	}
	l.serves(418)
	versions[slot.Name()] = good
	l.listen()
	for _, s := range l.derived.Slots {
		if s == slot {
			l.set(s, l.plugin("deny", chandler.Program{Module: &chandler.Module{Digest: "sha256:x"}}, filepath.Join(l.dir, "deny.wasm")))
		} else {
			l.set(s)
		}
	}
	current := map[string]bool{}
	for len(current) < len(versions) {
		switch ev := l.event().(type) {
		case Connected:
		case Subscribed:
			if ev.Version != versions[ev.Slot] {
				l.Fatalf("Envoy holds %#v, want %s", ev, versions[ev.Slot])
			}
		case Acked:
			if !ev.Current || ev.Version != versions[ev.Slot] {
				l.Fatalf("told %#v", ev)
			}
			current[ev.Slot] = true
		default:
			l.Fatalf("told %#v", ev)
		}
	}
	l.serves(418)
}

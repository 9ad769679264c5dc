package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"chandler.dev/chandler/internal/testenv/module"
)

// Attach, change of configuration, change of module and detach under constant
// load: no request fails and no connection is closed.
func TestNoRequestIsHarmed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	v1 := w.push("append:v1", module.Append())
	v2 := w.push("append:v2", module.Append(module.WithSection("build", []byte("2"))))
	const keep, anew = 8, 2
	l := startLoad(port, keep, anew, func(a answer) error {
		if a.code != http.StatusOK {
			return fmt.Errorf("status %d", a.code)
		}
		return nil
	})
	for round := range 5 {
		w.apply(plugin("p", v1, tag(fmt.Sprintf("attach-%d", round))))
		sees(t, port, fmt.Sprintf("attach-%d", round))
		w.apply(plugin("p", v1, tag(fmt.Sprintf("config-%d", round))))
		sees(t, port, fmt.Sprintf("config-%d", round))
		w.apply(plugin("p", v2, tag(fmt.Sprintf("module-%d", round))))
		sees(t, port, fmt.Sprintf("module-%d", round))
		if out, ok := w.cli("", "delete", "wasmplugin", "p", "-n", "edge"); !ok {
			t.Fatal(out)
		}
		sees(t, port)
	}
	l.end()
	if len(l.wrong) > 0 {
		t.Errorf("of %d requests some went wrong: %s", l.answers.Load(), strings.Join(l.wrong, "; "))
	}
	if n := l.closed.Load(); n > 0 {
		t.Errorf("%d times a kept connection was ended by the proxy", n)
	}
	if l.answers.Load() < 500 {
		t.Errorf("only %d requests: the load noticed little", l.answers.Load())
	}
	t.Logf("%d requests, %d kept connections", l.answers.Load(), keep)
}

// From the moment a denying plugin is in force no request passes it, on
// connections that were open before too.
func TestDenialIsImmediate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	transport := &http.Transport{MaxIdleConnsPerHost: 1}
	defer transport.CloseIdleConnections()
	kept := &http.Client{Transport: transport, Timeout: time.Minute}
	if a, err := request(kept, http.MethodGet, port, "/", nil); err != nil || a.code != 200 {
		t.Fatalf("before: %v %v", a.code, err)
	}
	w.apply(plugin("deny", w.push("deny:v1", module.Deny(403))))
	for _, client := range []*http.Client{kept, fresh} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			if a, err := request(client, method, port, "/", nil); err != nil || a.code != 403 {
				t.Errorf("%s in force: status %d, %v", method, a.code, err)
			}
		}
	}
}

// A WebSocket is decided like any request, also where upgrades have a filter
// list of their own; and an open one survives an attach.
func TestWebSocket(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.upstream.Close()
	w.upstream = httptest.NewServer(http.HandlerFunc(echoSocket))
	t.Cleanup(w.upstream.Close)
	plain, own := freePort(t), freePort(t)
	const router = `{name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}`
	w.agent(node{name: "a"}, w.gateway(
		listener{port: plain, name: "plain", upgrades: "[{upgrade_type: websocket}]"},
		listener{port: own, name: "own", upgrades: "[{upgrade_type: websocket, filters: [" + router + "]}]"}))
	for _, port := range []int{plain, own} {
		conn := dialSocket(t, port)
		defer conn.CloseNow()
		exchange(t, conn, "before")
		url := w.push("deny:v1", module.Deny(403))
		w.apply(plugin("deny", url, fmt.Sprintf("match: [{ports: [{number: %d}]}]", port)))
		exchange(t, conn, "after the attach")
		if code := tryUpgrade(t, port); code != 403 {
			t.Errorf("port %d: an upgrade got %d while a plugin denies", port, code)
		}
	}
}

func echoSocket(rw http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(rw, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	for {
		kind, b, err := conn.Read(r.Context())
		if err != nil || conn.Write(r.Context(), kind, b) != nil {
			return
		}
	}
}

func dialSocket(t *testing.T, port int) *websocket.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, _, err := websocket.Dial(ctx, "ws://"+loopback(port)+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func exchange(t *testing.T, conn *websocket.Conn, text string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := conn.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if _, b, err := conn.Read(ctx); err != nil || string(b) != text {
		t.Fatalf("%s: got %q, %v", text, b, err)
	}
}

// tryUpgrade asks for a WebSocket by hand and gives the status.
func tryUpgrade(t *testing.T, port int) int {
	t.Helper()
	conn, err := net.DialTimeout("tcp", loopback(port), time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"+
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

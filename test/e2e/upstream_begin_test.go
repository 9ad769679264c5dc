//go:build upstream

package e2e

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	healthcheck "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/health_check/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/upstream"
)

// startBeneath starts an agent as ownPlane.agent does, with texts in the bootstrap replaced,
// and does not wait.
func (u *ownPlane) startBeneath(n node, replaced ...string) *beneath {
	u.w.t.Helper()
	b := &beneath{u: u, admin: filepath.Join(u.w.t.TempDir(), "a")}
	b.proxy = u.w.startAgent(n, strings.NewReplacer(replaced...).Replace(u.Bootstrap("node-of-bootstrap", b.admin)))
	return b
}

// envoyIsReady tells whether Envoy says so itself, as load balancers ask it.
func (b *beneath) envoyIsReady() bool {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", b.admin)
	}}
	res, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Get("http://envoy/ready")
	if err != nil {
		return false
	}
	defer res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// isShut tells whether nobody listens on a port.
func isShut(port int) bool {
	conn, err := dialTCP(port, "")
	if err != nil {
		return true
	}
	_ = conn.Close()
	return false
}

// An Envoy that starts does not say that it is ready while one of its first listeners waits
// for a module; when it says so that listener is open, with the module. An agent that begins
// anew beside it withholds nothing.
func TestUpstreamReady(t *testing.T) {
	variants(t, func(t *testing.T, v upstream.Variant) {
		content := module.Append()
		asked, release := make(chan struct{}, 16), make(chan struct{})
		modules := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/never.wasm" {
				<-req.Context().Done()
				return
			}
			asked <- struct{}{}
			select {
			case <-release:
				_, _ = rw.Write(content)
			case <-req.Context().Done():
			}
		}))
		t.Cleanup(modules.Close)
		w := newWorld(t)
		u, port, tcp := w.under(v), freePort(t), freePort(t)
		u.set(u.tcp(t, "tcp", tcp, echoServer(t)), upstream.Resources{v.Cluster("modules"), upstream.Backend("modules", modules.Listener.Addr().String()),
			v.Listener("guarded", loopback(port), "r", gateways(t, "/append.wasm", content, "theirs"))})
		b := u.startBeneath(node{name: "a"})
		select {
		case <-asked:
		case <-time.After(time.Minute):
			t.Fatal("the module is not asked for")
		}
		for until := time.Now().Add(1500 * time.Millisecond); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
			if b.envoyIsReady() {
				t.Fatal("Envoy says that it is ready while a listener waits for its module")
			}
			for _, p := range []int{port, tcp, u.port} {
				if !isShut(p) {
					t.Fatal("a listener is open, so that Envoy has begun")
				}
			}
		}
		close(release)
		eventually(t, 20*time.Second, "Envoy is ready", func() (bool, string) { return b.envoyIsReady(), b.tail() })
		if a := get(t, port, "/"); a.code != http.StatusOK || strings.Join(appended(a), " ") != "theirs" {
			t.Errorf("once Envoy is ready: status %d, tags %v", a.code, appended(a))
		}
		b.awaitReady()
		if held := b.told(t).Upstreams[0].Held; held != "" {
			t.Error(held)
		}

		b.kill(t)
		second, waiting := freePort(t), freePort(t)
		u.set(u.served[4:], upstream.Resources{v.Listener("second", loopback(second), "r"),
			v.Listener("waiting", loopback(waiting), "r", gateways(t, "/never.wasm", []byte("never"), "never"))})
		b.restart()
		opens(t, second, "")
		if !b.envoyIsReady() || !isShut(waiting) {
			t.Error("a listener was withheld from an Envoy that serves, until another could open")
		}
	})
}

// health is a listener for checks alone, which gets no plugins.
func health(t *testing.T, v upstream.Variant, port int) *listenerv3.Listener {
	t.Helper()
	l := v.Listener("health", loopback(port), "r")
	filter, err := anypb.New(&healthcheck.HealthCheck{PassThroughMode: wrapperspb.Bool(false)})
	if err != nil {
		t.Fatal(err)
	}
	typed := l.GetFilterChains()[0].GetFilters()[0].GetTypedConfig()
	manager := &hcm.HttpConnectionManager{}
	if err := typed.UnmarshalTo(manager); err != nil {
		t.Fatal(err)
	}
	manager.RouteSpecifier = &hcm.HttpConnectionManager_RouteConfig{RouteConfig: &route.RouteConfiguration{Name: "none"}}
	manager.HttpFilters = append([]*hcm.HttpFilter{{Name: "health", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: filter}}}, manager.HttpFilters...)
	if err := typed.MarshalFrom(manager); err != nil {
		t.Fatal(err)
	}
	return l
}

// An Envoy that starts does not wait for ever: before it would give up by itself, after 15 s
// or what its bootstrap says, it goes on with the listeners that can open, and log and status
// name those that it began without.
func TestUpstreamBeginsWithout(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		v     upstream.Variant
		says  string
		waits time.Duration
	}{{upstream.Variant{}, "", 10 * time.Second}, {upstream.Variant{Delta: true}, "", 10 * time.Second}, {upstream.Variant{Delta: true}, "6s", 4 * time.Second}} {
		v := c.v
		t.Run(v.String()+c.says, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			u, port := w.under(v), freePort(t)
			u.set(upstream.Resources{health(t, v, port)})
			if err := w.control.stop(); err != nil { // nobody tells which plugins belong here
				t.Fatal(err)
			}
			began := time.Now()
			var replaced []string
			if c.says != "" {
				replaced = []string{"lds_config: {", fmt.Sprintf(`lds_config: {"initial_fetch_timeout": %q, `, c.says)}
			}
			b := u.startBeneath(node{name: "a"}, replaced...)
			eventually(t, 40*time.Second, "Envoy is ready", func() (bool, string) { return b.envoyIsReady(), b.tail() })
			if took := time.Since(began); took < c.waits {
				t.Errorf("it has not waited: %v", took)
			}
			if a := get(t, port, "/"); a.code != http.StatusOK {
				t.Errorf("the listener that can open answers %d", a.code)
			}
			if !isShut(u.port) {
				t.Error("the other listener is open, and nobody knows which plugins belong in it")
			}
			want := `without listeners that wait for a module or for what belongs in them`
			if held := b.told(t).Upstreams[0].Held; !strings.HasSuffix(held, want+`: "in"`) {
				t.Errorf("the status says %q", held)
			}
			if text, _ := b.agentCLI("status"); !strings.Contains(text, want+`: "in"`) {
				t.Errorf("the command says\n%s", text)
			}
			if log := b.tail(); !strings.Contains(log, want) {
				t.Errorf("the log has no word of it:\n%s", log)
			}
			w.startControl()
			opens(t, u.port, "")
			b.awaitReady()
			if held := b.told(t).Upstreams[0].Held; held != "" {
				t.Error(held)
			}
		})
	}
}

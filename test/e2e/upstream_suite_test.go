//go:build upstream

package e2e

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/upstream"
)

// walked are all control planes that TestUpstreamWalk stands under.
var walked = upstream.Variants

// variants runs a test under each kind of control plane.
func variants(t *testing.T, test func(t *testing.T, v upstream.Variant)) {
	t.Parallel()
	for _, v := range upstream.Variants {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			test(t, v)
		})
	}
}

// The walkthrough of the README passes where the gateway's listeners come from somebody
// else's control plane.
func TestUpstreamWalkthrough(t *testing.T) {
	variants(t, func(t *testing.T, v upstream.Variant) {
		w := theSamplesWorld(t)
		u := w.under(v)
		b := u.agent(theSamplesGateway)
		walkthrough(t, b.proxy, u.port)
		b.arrives(t)
	})
}

// A listener that Envoy refuses: the control plane hears it in Envoy's words, whether slots
// stand in it or not; what else it sends arrives, plugins change, and nothing that is there
// notices. Mended, it opens with its plugins.
func TestUpstreamRefused(t *testing.T) {
	variants(t, func(t *testing.T, v upstream.Variant) {
		w := newWorld(t)
		u := w.under(v)
		b := u.agent(node{name: "a"})
		url := w.push("append:v1", module.Append())
		w.apply(plugin("p", url, tag("one")))
		l := startLoad(u.port, 2, 1, matching("one|two"))
		port := freePort(t)
		unknown := &hcm.HttpFilter{Name: "nobody.knows", ConfigType: &hcm.HttpFilter_TypedConfig{
			TypedConfig: &anypb.Any{TypeUrl: "type.googleapis.com/google.protobuf.BoolValue"}}}
		for words, bad := range map[string]*listenerv3.Listener{
			"no filter chains": {Name: "late", Address: v.Listener("late", loopback(port), "r").Address},
			"nobody.knows":     v.Listener("late", loopback(port), "r", unknown),
		} {
			u.set(upstream.Resources{bad})
			version := fmt.Sprint(u.version)
			u.Await("the listener is refused", func() bool { return u.Nacked(upstream.Listeners, version) != "" })
			if got := u.Nacked(upstream.Listeners, version); !strings.Contains(got, words) || !strings.Contains(got, "late") {
				t.Errorf("of a listener with %s the control plane hears %q", words, got)
			}
			u.marked()
			w.apply(plugin("p", url, tag("two")))
			sees(t, u.port, "two")
			free(t, port, 0)
		}
		u.set(upstream.Resources{v.Listener("late", loopback(port), "r")})
		opens(t, port, "two")
		u.Await("the listener is taken", func() bool { return u.Acked(upstream.Listeners, fmt.Sprint(u.version)) })
		unharmed(t, l)
		b.arrives(t)
	})
}

// What a control plane said once is said again, to an Envoy that is connected directly and
// to one under an agent with a plugin: both have the same in the end, but for slots.
func TestUpstreamReplay(t *testing.T) {
	variants(t, func(t *testing.T, v upstream.Variant) {
		w := newWorld(t)
		w.submit(plugin("p", w.push("append:v1", module.Append()), tag("one")))
		recording := filepath.Join("..", "..", "internal", "testenv", "upstream", "testdata", v.String()+".jsonl")
		direct, under := w.replayed(t, v, recording), w.replayed(t, v, recording)
		file := filepath.Join(direct.dir, "envoy.yaml")
		if err := os.WriteFile(file, []byte(direct.Bootstrap("node", direct.admin)), 0o600); err != nil {
			t.Fatal(err)
		}
		start(t, filepath.Join(direct.dir, "envoy.log"), envoyBinary(t), "-c", file, "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning")
		// Both drain for as long: a listener that drains asks for its routes as before.
		w.startAgentArgs(node{name: "a"}, under.Bootstrap("node", under.admin), "--concurrency", "1", "--drain-time-s", "600").awaitReady()
		direct.Await()
		under.Await()
		eventually(t, 20*time.Second, "both Envoys have the same", func() (bool, string) {
			a, b := direct.view(t), under.view(t)
			return slices.Equal(a, b) && len(a) > 5, fmt.Sprintf("directly\n%s\nunder an agent\n%s", strings.Join(a, "\n"), strings.Join(b, "\n"))
		})
		a := via(t, filepath.Join(under.dir, "limited"))
		if a.code != http.StatusOK || !slices.Equal(appended(a), []string{"one"}) {
			t.Errorf("through the agent's: status %d, tags %v", a.code, appended(a))
		}
	})
}

// replay is a control plane that says what is recorded, and all that has paths beside it.
type replay struct {
	*upstream.Replay
	*beneath
	dir string
}

func (w *world) replayed(t *testing.T, v upstream.Variant, recording string) *replay {
	t.Helper()
	dir := t.TempDir()
	lis, err := net.Listen("unix", filepath.Join(dir, "backend"))
	if err != nil {
		t.Fatal(err)
	}
	backend := httptest.NewUnstartedServer(http.HandlerFunc(echo))
	backend.Listener.Close()
	backend.Listener = lis
	backend.Start()
	t.Cleanup(backend.Close)
	return &replay{upstream.NewReplay(t, v, recording, dir), &beneath{admin: filepath.Join(dir, "admin")}, dir}
}

// view is what an Envoy has by discovery, without what is chandler's, wherever its files are.
func (r *replay) view(t *testing.T) (all []string) {
	t.Helper()
	for _, m := range r.runs(t) {
		if l, ok := m.(*listenerv3.Listener); ok {
			m = withoutSlots(t, l)
		}
		all = append(all, strings.ReplaceAll(fmt.Sprintf("%T %s", m, protojson.MarshalOptions{}.Format(m)), r.dir, ""))
	}
	slices.Sort(all)
	return all
}

// via asks once on a socket.
func via(t *testing.T, socket string) answer {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: dialing("unix", socket)}
	a, err := request(&http.Client{Transport: transport, Timeout: 20 * time.Second}, http.MethodGet, 80, "/", nil)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// shown is the certificate that a port shows.
func shown(t *testing.T, port int) *x509.Certificate {
	t.Helper()
	conn, err := tls.Dial("tcp", loopback(port), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0]
}

// leaf reads a certificate.
func leaf(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	admin "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	route "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/filter_chain/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler/internal/agent"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/upstream"
)

// ownPlane is a control plane of somebody else's, and what it serves to the Envoys of a
// world: a listener on a port, with route, cluster and endpoint.
type ownPlane struct {
	*upstream.Upstream
	variant upstream.Variant
	w       *world
	port    int
	version int
	served  upstream.Resources
}

func (w *world) under(v upstream.Variant) *ownPlane {
	return w.underOne(upstream.Config{Variant: v})
}

func (w *world) underOne(c upstream.Config) *ownPlane {
	u := &ownPlane{Upstream: upstream.New(w.t, c), variant: c.Variant, w: w, port: freePort(w.t)}
	u.set()
	return u
}

// set serves the listener and more, under a new version that answers have as their mark.
func (u *ownPlane) set(more ...upstream.Resources) {
	u.w.t.Helper()
	u.version++
	u.served = upstream.Resources{
		u.variant.Listener("in", loopback(u.port), "r"), u.variant.Cluster("c"), upstream.Route("r", "c", fmt.Sprint(u.version)),
		upstream.Backend("c", strings.TrimPrefix(u.w.upstream.URL, "http://")),
	}
	for _, m := range more {
		u.served = append(u.served, m...)
	}
	u.Set(fmt.Sprint(u.version), u.served)
}

// marked waits until answers have the mark of what is served.
func (u *ownPlane) marked() {
	u.w.t.Helper()
	eventually(u.w.t, 20*time.Second, fmt.Sprintf("version %d serves", u.version), func() (bool, string) {
		a, err := request(fresh, http.MethodGet, u.port, "/", nil)
		if err != nil {
			return false, err.Error()
		}
		return a.headers.Get("x-mark") == fmt.Sprint(u.version), fmt.Sprint(a.headers)
	})
}

// beneath is an agent whose Envoy is configured to take everything from the control plane.
type beneath struct {
	*proxy
	u     *ownPlane
	admin string // Envoy's socket
}

func (u *ownPlane) agent(n node) *beneath {
	u.w.t.Helper()
	b := &beneath{u: u, admin: filepath.Join(u.w.t.TempDir(), "a")}
	b.proxy = u.w.agent(n, u.Bootstrap("node-of-bootstrap", b.admin))
	return b
}

// ask asks Envoy's admin interface.
func (b *beneath) ask(t *testing.T, path string) []byte {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", b.admin)
	}}
	res, err := (&http.Client{Transport: transport}).Get("http://envoy" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// dump is what Envoy says it runs with.
func (b *beneath) dump(t *testing.T) *admin.ConfigDump {
	t.Helper()
	var dump admin.ConfigDump
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b.ask(t, "/config_dump?include_eds"), &dump); err != nil {
		t.Fatal(err)
	}
	return &dump
}

// runs gives what Envoy has by discovery: clusters, endpoints, routes, listeners, and filters
// but for slots.
func (b *beneath) runs(t *testing.T) (all []proto.Message) {
	t.Helper()
	open := func(a *anypb.Any) proto.Message {
		m, err := a.UnmarshalNew()
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, a := range b.dump(t).Configs {
		switch m := open(a).(type) {
		case *admin.ClustersConfigDump:
			for _, c := range m.DynamicActiveClusters {
				all = append(all, open(c.Cluster))
			}
		case *admin.RoutesConfigDump:
			for _, r := range m.DynamicRouteConfigs {
				all = append(all, open(r.RouteConfig))
			}
		case *admin.EndpointsConfigDump:
			for _, e := range m.DynamicEndpointConfigs {
				all = append(all, open(e.EndpointConfig))
			}
		case *admin.EcdsConfigDump:
			for _, f := range m.EcdsFilters {
				if c := open(f.EcdsFilter).(*core.TypedExtensionConfig); !strings.HasPrefix(c.Name, "chandler/") {
					all = append(all, c)
				}
			}
		case *admin.ListenersConfigDump:
			for _, l := range m.DynamicListeners {
				if l.ActiveState != nil {
					all = append(all, open(l.ActiveState.Listener))
				}
			}
		}
	}
	return all
}

// arrives holds that Envoy has what the control plane serves: listeners with slots in
// them, everything else as it is.
func (b *beneath) arrives(t *testing.T) {
	t.Helper()
	has := b.runs(t)
	for _, m := range b.u.served {
		want := m.(proto.Message)
		switch want := want.(type) {
		case *listenerv3.Listener:
			i := slices.IndexFunc(has, func(m proto.Message) bool {
				l, ok := m.(*listenerv3.Listener)
				return ok && l.Name == want.Name
			})
			if i < 0 || !strings.Contains(fmt.Sprint(has[i]), "chandler/") || !proto.Equal(withoutSlots(t, has[i].(*listenerv3.Listener)), want) {
				t.Errorf("Envoy has not the listener %s with slots and no other change", want.Name)
			}
			continue
		case *endpoint.ClusterLoadAssignment: // Envoy tells it with its defaults
			if !slices.ContainsFunc(has, func(m proto.Message) bool {
				e, ok := m.(*endpoint.ClusterLoadAssignment)
				return ok && e.ClusterName == want.ClusterName
			}) {
				t.Errorf("Envoy has no endpoints of %s", want.ClusterName)
			}
			continue
		case *clusterv3.Cluster, *route.RouteConfiguration:
		default:
			t.Fatalf("a %T is served", want)
		}
		if !slices.ContainsFunc(has, func(m proto.Message) bool { return proto.Equal(m, want) }) {
			t.Errorf("Envoy has not %v", want)
		}
	}
}

// withoutSlots is a listener without the filters that are chandler's.
func withoutSlots(t *testing.T, l *listenerv3.Listener) *listenerv3.Listener {
	t.Helper()
	l = proto.CloneOf(l)
	for _, chain := range append(l.FilterChains, l.DefaultFilterChain) {
		if chain == nil {
			continue
		}
		chain.Filters = slices.DeleteFunc(chain.Filters, func(f *listenerv3.Filter) bool { return strings.HasPrefix(f.Name, "chandler/") })
		for _, f := range chain.Filters {
			var m hcm.HttpConnectionManager
			if f.GetTypedConfig().UnmarshalTo(&m) != nil {
				continue
			}
			m.HttpFilters = slices.DeleteFunc(m.HttpFilters, func(f *hcm.HttpFilter) bool { return strings.HasPrefix(f.Name, "chandler/") })
			if err := anypb.MarshalFrom(f.GetTypedConfig(), &m, proto.MarshalOptions{Deterministic: true}); err != nil {
				t.Fatal(err)
			}
		}
	}
	return l
}

// told is what the agent says of itself.
func (b *beneath) told(t *testing.T) (st agent.Status) {
	t.Helper()
	res, err := http.Get("http://" + b.proxy.admin + "/status")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&st); err != nil {
		t.Fatal(err)
	}
	return st
}

// introduced holds that the control plane hears of its Envoy's node what Envoy says, and
// who stands between them.
func (b *beneath) introduced(t *testing.T) {
	t.Helper()
	var heard *core.Node
	for _, r := range b.u.Requests() {
		if r.Node != nil {
			heard = r.Node
		}
	}
	if heard.GetId() != "node-of-bootstrap" || heard.GetCluster() != "testers" || heard.GetLocality().GetZone() != "here" || len(heard.GetExtensions()) < 100 {
		t.Errorf("the control plane hears of %s, %s, %v and %d extensions", heard.GetId(), heard.GetCluster(), heard.GetLocality(), len(heard.GetExtensions()))
	}
	fields := heard.GetMetadata().GetFields()
	if fields["LABELS"].GetStructValue().GetFields()["app"].GetStringValue() != "tested" ||
		fields["CHANDLER"].GetStructValue().GetFields()["node"].GetStringValue() != "edge/a" {
		t.Errorf("of metadata it hears %v", fields)
	}
}

// Under a control plane that speaks in whatever way, the walkthrough passes; what it sends
// arrives; and when it, chandler's control plane and the registry are away, an Envoy and an
// agent that are killed come back with all of it.
func TestUpstreamWalk(t *testing.T) {
	t.Parallel()
	for _, v := range walked {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			u := w.under(v)
			b := u.agent(node{name: "a"})
			walk(t, w, u.port, "the moon is wrong")
			b.arrives(t)
			b.introduced(t)
			if st := b.told(t); len(st.Upstreams) != 1 || !st.Upstreams[0].Connected || len(st.Listeners) != 1 || st.Listeners[0].Name != "in" {
				t.Errorf("the agent says %+v of its upstream, %+v of listeners", st.Upstreams, st.Listeners)
			}
			w.apply(plugin("deny", w.push("deny:v1", module.Deny(401)), "phase: AUTHN"))
			if a := get(t, u.port, "/"); a.code != 401 {
				t.Fatalf("status %d", a.code)
			}
			b.alone(t)
			if a := get(t, u.port, "/"); a.code != 401 {
				t.Errorf("alone: status %d", a.code)
			}
			b.arrives(t)
			eventually(t, 20*time.Second, "the agent says that its upstream is away", func() (bool, string) {
				st := b.told(t)
				return !st.Upstreams[0].Connected && st.Upstreams[0].Error != "" && st.Upstreams[0].Lost > 0, fmt.Sprintf("%+v", st.Upstreams)
			})
			u.Start()
			u.set()
			u.marked()
		})
	}
}

// alone takes all others away, kills agent and Envoy, and starts the agent again; the
// first answer that comes has the plugin in it.
func (b *beneath) alone(t *testing.T) {
	t.Helper()
	keptBy(t, filepath.Join(b.dir, "data"), "c")
	b.u.Stop()
	if err := b.w.control.stop(); err != nil {
		t.Fatal(err)
	}
	b.w.registry.Close()
	envoy := b.envoy(t)
	b.kill(t)
	if err := syscall.Kill(envoy, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	stopped(t, envoy)
	b.restart()
	eventually(t, 30*time.Second, "an answer", func() (bool, string) {
		a, err := request(fresh, http.MethodGet, b.u.port, "/", nil)
		if err == nil && a.code != 401 {
			t.Fatalf("the first answer is %d", a.code)
		}
		return err == nil, fmt.Sprint(err)
	})
	b.awaitReady()
}

// keptBy waits until listeners, clusters, routes and endpoints are on an agent's disk,
// with those of that cluster.
func keptBy(t *testing.T, data, cluster string) {
	t.Helper()
	eventually(t, 30*time.Second, "what Envoy took is on disk", func() (bool, string) {
		views := keptViews(data)
		endpoints, listeners := false, false
		for _, text := range views {
			endpoints = endpoints || bytes.Contains(text, []byte("ClusterLoadAssignment")) && bytes.Contains(text, []byte(cluster))
			listeners = listeners || bytes.Contains(text, []byte("config.listener.v3.Listener"))
		}
		return endpoints && listeners && len(views) >= 4, fmt.Sprintf("there are %d views", len(views))
	})
}

// keptViews are those that the agent with that directory would begin with.
func keptViews(data string) (views [][]byte) {
	sets, _ := filepath.Glob(filepath.Join(data, "envoy", "upstream-*", "set-*"))
	for _, name := range sets {
		set, _ := os.ReadFile(name)
		files, _ := filepath.Glob(filepath.Join(filepath.Dir(name), "view-*"))
		for _, file := range files {
			if text, err := os.ReadFile(file); err == nil && bytes.Contains(set, []byte(filepath.Base(file))) { // else it is being written, or was replaced
				views = append(views, text)
			}
		}
	}
	return views
}

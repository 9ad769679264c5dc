//go:build upstream

package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	admin "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	runtime "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/upstream"
)

// What is not the agent's matter arrives as it is: Envoy has clusters, endpoints, routes,
// secrets and runtime as the control plane has them, and whoever asks at the agent's socket
// is given the very bytes, fields included that nobody knows.
func TestUpstreamUntouched(t *testing.T) {
	variants(t, func(t *testing.T, v upstream.Variant) {
		w := newWorld(t)
		u := w.underOne(upstream.Config{Variant: v, Runtime: "theirs"})
		ca := authority.New(t)
		pair := ca.Issue(authority.Leaf{DNS: []string{"shown"}})
		port := freePort(t)
		more := append(odd(t, v), secrets(t, ca, pair)...)
		u.set(more, upstream.Resources{withSecrets(t, v, port), &runtime.Runtime{Name: "theirs", Layer: fields(t, map[string]any{"their.key": 7})}})
		b := u.agent(node{name: "a"})
		w.apply(plugin("p", w.push("append:v1", module.Append()), tag("one")))
		sees(t, u.port, "one")

		all := u.served
		u.served = nil
		for _, m := range all { // the others are compared here
			switch m.(type) {
			case *tlsv3.Secret, *runtime.Runtime:
			default:
				u.served = append(u.served, m)
			}
		}
		b.arrives(t)
		if got, want := shown(t, port), leaf(t, pair.Cert); !got.Equal(want) {
			t.Errorf("by TLS it shows %v", got.DNSNames)
		}
		if trusted := b.secret(t, "trusted"); !proto.Equal(trusted, more[len(more)-1].(*tlsv3.Secret)) {
			t.Errorf("Envoy has the secret %v", trusted)
		}
		if text := string(b.ask(t, "/runtime")); !strings.Contains(text, `"their.key"`) {
			t.Errorf("Envoy has the runtime %s", text)
		}
		b.sameBytes(t)
	})
}

// odd are resources with what is seldom used, and with what is not known to anybody.
func odd(t *testing.T, v upstream.Variant) upstream.Resources {
	t.Helper()
	c := v.Cluster("odd")
	c.Metadata = &core.Metadata{FilterMetadata: map[string]*structpb.Struct{"theirs": fields(t, map[string]any{"a": "b", "n": 1.5})}}
	c.LbPolicy, c.OutlierDetection = clusterv3.Cluster_RING_HASH, &clusterv3.OutlierDetection{Consecutive_5Xx: wrapperspb.UInt32(7)}
	e := upstream.Backend("odd", "127.0.0.1:9")
	e.Endpoints[0].Priority, e.Endpoints[0].Locality = 1, &core.Locality{Zone: "elsewhere"}
	e.Endpoints[0].LbEndpoints[0].HealthStatus = core.HealthStatus_DEGRADED
	// Envoy lets fields of later versions be, in what control planes send, and does not show
	// them.
	e.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 50_000, protowire.BytesType), "of a later version"))
	return upstream.Resources{c, e}
}

func fields(t *testing.T, m map[string]any) *structpb.Struct {
	t.Helper()
	s, err := structpb.NewStruct(m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// secrets are a certificate to be shown, and, the last, one to be trusted.
func secrets(t *testing.T, ca *authority.Authority, pair authority.Pair) upstream.Resources {
	t.Helper()
	data := func(file string) *core.DataSource {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return &core.DataSource{Specifier: &core.DataSource_InlineBytes{InlineBytes: b}}
	}
	return upstream.Resources{
		&tlsv3.Secret{Name: "shown", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: data(pair.Cert), PrivateKey: data(pair.Key)}}},
		&tlsv3.Secret{Name: "trusted", Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: data(ca.File)}}},
	}
}

// withSecrets is a listener that has both secrets by SDS.
func withSecrets(t *testing.T, v upstream.Variant, port int) *listenerv3.Listener {
	t.Helper()
	config, err := anypb.New(&tlsv3.DownstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{{Name: "shown", SdsConfig: v.Source()}},
		ValidationContextType: &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
			ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: "trusted", SdsConfig: v.Source()}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	l := v.Listener("secured", loopback(port), "r")
	l.FilterChains[0].TransportSocket = &core.TransportSocket{Name: "tls", ConfigType: &core.TransportSocket_TypedConfig{TypedConfig: config}}
	return l
}

// secret is one that Envoy has.
func (b *beneath) secret(t *testing.T, name string) *tlsv3.Secret {
	t.Helper()
	for _, a := range b.dump(t).Configs {
		var all admin.SecretsConfigDump
		if a.UnmarshalTo(&all) != nil {
			continue
		}
		for _, s := range all.DynamicActiveSecrets {
			var secret tlsv3.Secret
			if s.Name != name {
				continue
			}
			if err := s.Secret.UnmarshalTo(&secret); err != nil {
				t.Fatal(err)
			}
			return &secret
		}
	}
	return nil
}

// sameBytes asks the control plane itself, and the agent as an Envoy does.
func (b *beneath) sameBytes(t *testing.T) {
	t.Helper()
	for _, kind := range []struct {
		typeURL, service, call string
		names                  []string
	}{
		{upstream.Clusters, "envoy.service.cluster.v3.ClusterDiscoveryService", "Clusters", []string{"c", "odd"}},
		{upstream.Endpoints, "envoy.service.endpoint.v3.EndpointDiscoveryService", "Endpoints", []string{"c", "odd"}},
		{upstream.Routes, "envoy.service.route.v3.RouteDiscoveryService", "Routes", []string{"r"}},
		{upstream.Secrets, "envoy.service.secret.v3.SecretDiscoveryService", "Secrets", []string{"shown", "trusted"}},
		{upstream.Runtimes, "envoy.service.runtime.v3.RuntimeDiscoveryService", "Runtime", []string{"theirs"}},
	} {
		if !b.u.variant.Separate {
			kind.service, kind.call = "envoy.service.discovery.v3.AggregatedDiscoveryService", "AggregatedResources"
		}
		prefix := "/Stream"
		if b.u.variant.Delta {
			prefix = "/Delta"
		}
		method := "/" + kind.service + prefix + kind.call
		there := bytesOf(t, b.u.Addr, method, kind.typeURL, kind.names)
		here := bytesOf(t, "unix:"+b.socket(t), method, kind.typeURL, kind.names)
		if !maps.Equal(there, here) {
			t.Errorf("of %s the control plane gives\n%q\nthe agent\n%q", kind.typeURL, there, here)
		}
	}
}

// socket is where the agent stands for the control plane.
func (b *beneath) socket(t *testing.T) (found string) {
	t.Helper()
	err := filepath.WalkDir(filepath.Join(b.dir, "data"), func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.Type() == fs.ModeSocket && strings.HasPrefix(d.Name(), "xds") {
			found = path
		}
		return err
	})
	if err != nil || found == "" {
		t.Fatalf("no socket: %v", err)
	}
	return found
}

// bytesOf asks for resources of a type, and gives their bytes, and the versions of those
// that have one.
func bytesOf(t *testing.T, addr, method, typeURL string, names []string) map[string]string {
	t.Helper()
	conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		t.Fatal(err)
	}
	var q proto.Message = &discovery.DiscoveryRequest{Node: &core.Node{Id: "node-of-bootstrap"}, TypeUrl: typeURL, ResourceNames: names}
	var p proto.Message = &discovery.DiscoveryResponse{}
	if strings.Contains(method, "/Delta") {
		q = &discovery.DeltaDiscoveryRequest{Node: &core.Node{Id: "node-of-bootstrap"}, TypeUrl: typeURL, ResourceNamesSubscribe: names}
		p = &discovery.DeltaDiscoveryResponse{}
	}
	if err := stream.SendMsg(q); err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for have := 0; have < len(names); have = len(found) {
		if err := stream.RecvMsg(p); err != nil {
			t.Fatalf("%s of %s: %v, after %d of %q", typeURL, addr, err, have, names)
		}
		switch p := p.(type) {
		case *discovery.DeltaDiscoveryResponse:
			for _, r := range p.Resources {
				found[r.Name] = fmt.Sprintf("%s: %s", r.Version, r.Resource.Value)
			}
		case *discovery.DiscoveryResponse:
			for _, a := range p.Resources {
				m, err := a.UnmarshalNew()
				if err != nil {
					t.Fatal(err)
				}
				found[cache.GetResourceName(m)] = string(a.Value)
			}
		}
	}
	return found
}

package deltaserver_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/deltaserver"
)

// hello is the first message of a node.
func hello(edit func(*discoveryv3.DeltaDiscoveryRequest)) *discoveryv3.DeltaDiscoveryRequest {
	req := &discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "ns/a"}, TypeUrl: typeURL}
	if edit != nil {
		edit(req)
	}
	return req
}

// refused sends requests and wants the stream to end, with a code of gRPC, one of
// ours and words, which are bounded and printable.
func (c *control) refused(t *testing.T, code codes.Code, reason chandler.Code, words string, reqs ...*discoveryv3.DeltaDiscoveryRequest) {
	t.Helper()
	str := c.raw(t)
	for _, req := range reqs {
		if err := str.Send(req); err != nil {
			break // the answer tells why
		}
	}
	for {
		_, err := str.Recv()
		if err == nil {
			continue
		}
		said := status.Convert(err).Message()
		if status.Code(err) != code || wire.Reason(err) != reason || !strings.Contains(said, words) {
			t.Errorf("ended with %v and the code %q, want %v, %s and %q", err, wire.Reason(err), code, reason, words)
		}
		if len(said) > 1000 || strings.ContainsAny(said, "\x1b\n") {
			t.Errorf("reason of %d bytes: %.100q", len(said), said)
		}
		t.Attr("refusal", string(wire.Reason(err)))
		return
	}
}

func names(n, size int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint(i) + strings.Repeat("n", size)
	}
	return out
}

func TestRefuse_B92_NodeIsMissingOrChanges(t *testing.T) {
	t.Parallel()
	c := serve(t)
	c.set("ns/a", "x@1")
	c.refused(t, codes.InvalidArgument, chandler.CodeXDSNode, "node id missing in first message", &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL})
	c.refused(t, codes.InvalidArgument, chandler.CodeXDSNode, `node id changed from "ns/a" to "ns/b\x1b"`,
		hello(nil), hello(func(r *discoveryv3.DeltaDiscoveryRequest) { r.Node = &corev3.Node{Id: "ns/b\x1b"} }))
}

// B93 as a whole, with certificates, is in package control.
func TestRefuse_B93_ForeignIdentity(t *testing.T) {
	t.Parallel()
	c := serve(t)
	c.set("ns/stranger", "x@1")
	c.refused(t, codes.PermissionDenied, chandler.CodeXDSIdentity, "go away",
		hello(func(r *discoveryv3.DeltaDiscoveryRequest) { r.Node = &corev3.Node{Id: "ns/stranger"} }))
}

func TestRefuse_B94_Names(t *testing.T) {
	t.Parallel()
	c := serve(t)
	c.set("ns/a", "x@1")
	for what, subscribe := range map[string][]string{
		"name of 1048577 bytes, limit 512":  names(1, 1<<20),
		"100000 resource names, limit 1024": names(100_000, 1),
		`name "a\x1b[31m" has control`:      {"a\x1b[31m"},
		`name "a\u0085" has control`:        {"a\u0085"},
	} {
		c.refused(t, codes.InvalidArgument, chandler.CodeXDSName, what, hello(func(r *discoveryv3.DeltaDiscoveryRequest) { r.ResourceNamesSubscribe = subscribe }))
		c.refused(t, codes.InvalidArgument, chandler.CodeXDSName, what, hello(func(r *discoveryv3.DeltaDiscoveryRequest) { r.ResourceNamesUnsubscribe = subscribe }))
	}
	c.refused(t, codes.InvalidArgument, chandler.CodeXDSName, `has control`,
		hello(func(r *discoveryv3.DeltaDiscoveryRequest) { r.InitialResourceVersions = map[string]string{"a": "1\n"} }))
	c.refused(t, codes.InvalidArgument, chandler.CodeXDSName, `limit 512`,
		hello(func(r *discoveryv3.DeltaDiscoveryRequest) {
			r.InitialResourceVersions = map[string]string{strings.Repeat("a", 600): "1"}
		}))
}

// What one request may not name, many may not either.
func TestNamesInManyRequests(t *testing.T) {
	t.Parallel()
	c := serve(t)
	c.set("ns/a", "x@1")
	var reqs []*discoveryv3.DeltaDiscoveryRequest
	for i := range 10 {
		reqs = append(reqs, hello(func(r *discoveryv3.DeltaDiscoveryRequest) { r.ResourceNamesSubscribe = names(1024, 1+i) }))
	}
	c.refused(t, codes.ResourceExhausted, chandler.CodeXDSLimit, "more than 10000 resource names on a stream", reqs...)
}

// B95: by its name, what is for another node is as if it were not there; both are
// counted alike.
func TestRefuse_B95_AnothersPlugin(t *testing.T) {
	t.Parallel()
	c := serve(t)
	c.set("ns/a", "x@1")
	c.set("shop/b", "theirs@1")
	answers := map[string]string{}
	for _, name := range []string{"theirs", "missing"} {
		str := c.raw(t)
		if err := str.Send(hello(func(r *discoveryv3.DeltaDiscoveryRequest) { r.ResourceNamesSubscribe = []string{name} })); err != nil {
			t.Fatal(err)
		}
		resp, err := str.Recv()
		if err != nil {
			t.Fatal(err)
		}
		answers[name] = fmt.Sprint(resp.GetResources(), resp.GetRemovedResources())
	}
	if answers["theirs"] != answers["missing"] || strings.Contains(answers["theirs"], "theirs") {
		t.Errorf("answers %q", answers)
	}
	if n := c.count(deltaserver.AskedOther); n != 2 {
		t.Errorf("%d counted", n)
	}
	t.Attr("refusal", "same")
}

func (c *control) count(what deltaserver.Asked) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked[what]
}

// B96: the wildcard, said or meant, is what is for the node; it is counted. Of
// another type, as of Envoy's own, it is nothing.
func TestRefuse_B96_Wildcard(t *testing.T) {
	t.Parallel()
	c := serve(t)
	c.set("ns/a", "x@1", "y@1")
	c.set("shop/b", "theirs@1")
	for i, subscribe := range [][]string{{"*"}, nil} {
		str := c.raw(t)
		for _, typ := range []string{"type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig", typeURL} {
			if err := str.Send(hello(func(r *discoveryv3.DeltaDiscoveryRequest) { r.TypeUrl, r.ResourceNamesSubscribe = typ, subscribe })); err != nil {
				t.Fatal(err)
			}
		}
		resp, err := str.Recv()
		if err != nil || resp.GetTypeUrl() != typeURL || len(resp.GetResources()) != 2 {
			t.Errorf("got %v, %v", resp, err)
		}
		if n := c.count(deltaserver.AskedAll); n != i+1 {
			t.Errorf("%d counted after %d", n, i+1)
		}
	}
	t.Attr("refusal", "narrowed")
}

// B98: why an agent refused something is kept, within bounds and without secrets.
func TestRefuse_B98_ErrorDetail(t *testing.T) {
	t.Parallel()
	for name, detail := range map[string]string{
		"long":    "bad " + strings.Repeat("x", 1<<20),
		"escapes": "bad \x1b[31mred\x1b[0m\r\nforged: line\x00\u0085",
		"secrets": `bad {"password": "hunter2 and more", "api_key":"hunter2"} Authorization: Bearer hunter2hunter2 https://me:hunter2@reg.example/ token=hunter2`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := serve(t)
			c.set("ns/a", "x@1")
			str := c.raw(t)
			if err := str.Send(hello(nil)); err != nil {
				t.Fatal(err)
			}
			resp, err := str.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if err := str.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResponseNonce: resp.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: detail}}); err != nil {
				t.Fatal(err)
			}
			kept := ""
			for deadline := time.Now().Add(time.Minute); kept == ""; {
				c.mu.Lock()
				if len(c.nacks) > 0 {
					kept = c.nacks[0]
				}
				c.mu.Unlock()
				if time.Now().After(deadline) {
					t.Fatal("nothing is kept")
				}
				time.Sleep(time.Millisecond) // between looks at a condition
			}
			if !strings.Contains(kept, "bad ") || len(kept) > 4<<10+100 || strings.ContainsAny(kept, "\x1b\r\n\x00\u0085") || strings.Contains(kept, "hunter2") {
				t.Errorf("%d bytes are kept: %.300q", len(kept), kept)
			}
			t.Attr("refusal", "cut")
		})
	}
}

func TestRefuse_B99_InitialVersions(t *testing.T) {
	t.Parallel()
	c := serve(t)
	c.set("ns/a", "x@1")
	versions := map[string]string{}
	for i := range 10_001 {
		versions[fmt.Sprint(i)] = "1"
	}
	c.refused(t, codes.ResourceExhausted, chandler.CodeXDSLimit, "10001 initial resource versions, limit 10000",
		hello(func(r *discoveryv3.DeltaDiscoveryRequest) { r.InitialResourceVersions = versions }))
}

func TestRefuse_B100_LargeRequest(t *testing.T) {
	t.Parallel()
	c := serve(t)
	c.set("ns/a", "x@1")
	versions := map[string]string{}
	for i := range 5000 {
		versions[fmt.Sprint(i)] = strings.Repeat("v", 300)
	}
	c.refused(t, codes.ResourceExhausted, chandler.CodeXDSLimit, "bytes, limit 1048576",
		hello(func(r *discoveryv3.DeltaDiscoveryRequest) { r.InitialResourceVersions = versions }))
}

// B100: of 1,000 streams of one node eight are served, and the others told; another
// node is served meanwhile.
func TestRefuse_B100_ManyStreams(t *testing.T) {
	t.Parallel()
	c := serve(t)
	c.set("ns/a", "x@1")
	c.set("ns/b", "x@1")
	conn, err := grpc.NewClient("passthrough:///control", c.options()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	refused := 0
	for range 1000 {
		str, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := str.Send(hello(nil)); err != nil {
			t.Fatal(err)
		}
		_, err = str.Recv()
		switch {
		case err == nil:
		case status.Code(err) == codes.ResourceExhausted && wire.Reason(err) == chandler.CodeXDSLimit && strings.Contains(err.Error(), `node "ns/a" has 8 streams, limit 8`):
			refused++
		default:
			t.Fatal(err)
		}
	}
	if refused != 992 {
		t.Errorf("%d of 1000 are refused", refused)
	}
	str := c.raw(t)
	if err := str.Send(hello(func(r *discoveryv3.DeltaDiscoveryRequest) { r.Node = &corev3.Node{Id: "ns/b"} })); err != nil {
		t.Fatal(err)
	}
	if _, err := str.Recv(); err != nil {
		t.Error(err)
	}
	t.Attr("refusal", string(chandler.CodeXDSLimit))
}

// B91: a type that is not served gets no answer but a line in the log, and the stream
// goes on.
func TestRefuse_B91_UnknownTypeLeavesTheStreamAlive(t *testing.T) {
	t.Parallel()
	c := serve(t)
	c.set("ns/a", "x@1")
	str := c.raw(t)
	for _, typ := range []string{"type.googleapis.com/envoy.config.listener.v3.Listener", typeURL} {
		if err := str.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "ns/a"}, TypeUrl: typ}); err != nil {
			t.Fatal(err)
		}
	}
	resp, err := str.Recv()
	if err != nil || resp.GetTypeUrl() != typeURL || len(resp.GetResources()) != 1 {
		t.Errorf("got %v, %v", resp, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if said := c.log.String(); strings.Count(said, "resource type is not served here") != 1 || !strings.Contains(said, "code=XDSType") {
		t.Errorf("the log says %q", said)
	}
	t.Attr("refusal", string(chandler.CodeXDSType))
}

package control_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/credential"
	"chandler.dev/chandler/internal/identity"
	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/wire"
)

// secured is a rig whose agents show certificates, which mean what rules say.
type secured struct {
	*rig
	ca     *authority.Authority
	own    authority.Pair
	agents *identity.Authenticator

	mu  sync.Mutex
	log bytes.Buffer
}

// Write implements io.Writer, for the log.
func (s *secured) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Write(b)
}

func (s *secured) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.String()
}

var server = authority.Leaf{DNS: []string{"control"}}

func newSecured(t *testing.T, rules ...identity.Rule) *secured {
	t.Helper()
	ca := authority.New(t)
	s := &secured{ca: ca, own: ca.Issue(server), rig: newRig(t)}
	tls, err := credential.NewServer(credential.Files{Cert: s.own.Cert, Key: s.own.Key, CA: ca.File, RequireClient: true})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(s, nil))
	s.agents = identity.New(identity.Config{Verify: tls.Verify, Rules: rules, Authority: credential.NewAuthorities(nil).Verify, Log: log})
	s.settle = func(c *control.Config) {
		c.Authenticator, c.Recheck, c.Credentials = s.agents, 20*time.Millisecond, tls
	}
	s.restart()
	return s
}

// shows are options with a certificate.
func (s *secured) shows(p authority.Pair) []grpc.DialOption {
	return append(s.options(), credential.NewClient(credential.Files{CA: s.ca.File, Cert: p.Cert, Key: p.Key, ServerName: "control"}).DialOptions()...)
}

// B93: somebody with a good certificate who claims what it does not allow gets no
// resource and no byte, may report nothing, is named in the log, and is told why.
func TestRefuse_B93_ForgedClaims(t *testing.T) {
	t.Parallel()
	s := newSecured(t, identity.Rule{
		SPIFFE: "spiffe://example.org/ns/{namespace}/node/{node}", Labels: map[string][]string{"app": {"web"}},
	})
	mod := module.Append()
	s.set("auth:v1", mod)
	s.apply("pay", "oci://reg.example/auth:v1", nil)
	s.await("pay", chandler.ConditionResolvedRefs, "True Resolved")
	digest := string(chandler.Digest[chandler.ModuleDigest](mod))
	mine := s.ca.Issue(authority.Leaf{URI: "spiffe://example.org/ns/istio-system/node/gw"})

	good := s.joinWith(chandler.Node{Namespace: "istio-system", Name: "gw", Labels: map[string]string{"app": "web"}}, s.shows(mine))
	good.has("pay", runs(mod))
	assigned, sent := gauge(t, s.metrics, "chandler_xds_resource_bytes_sent_total"), gauge(t, s.metrics, "chandler_module_bytes_sent_total")
	for name, claim := range map[string]struct {
		node chandler.Node
		why  string
	}{
		"label":     {chandler.Node{Namespace: "istio-system", Name: "gw", Labels: map[string]string{"app": "pay\x1b[31m"}}, ""},
		"other key": {chandler.Node{Namespace: "istio-system", Name: "gw", Labels: map[string]string{"tier": "front"}}, `spiffe://example.org/ns/istio-system/node/gw may not claim the label "tier=front"`},
		"value":     {chandler.Node{Namespace: "istio-system", Name: "gw", Labels: map[string]string{"app": "pay"}}, `may not claim the label "app=pay"`},
		"namespace": {chandler.Node{Namespace: "shop", Name: "gw", Labels: map[string]string{"app": "web"}}, `may not act as node "shop/gw"`},
		"node":      {chandler.Node{Namespace: "istio-system", Name: "gw2", Labels: map[string]string{"app": "web"}}, `may not act as node "istio-system/gw2"`},
	} {
		forged := s.joinWith(claim.node, s.shows(mine))
		var why error // that a handshake took long is none
		eventually(t, func() bool {
			forged.mu.Lock()
			defer forged.mu.Unlock()
			i := slices.IndexFunc(forged.lost, func(err error) bool { return wire.Reason(err) != "" })
			if i >= 0 {
				why = forged.lost[i]
			}
			return i >= 0
		}, func() string { return name + " is not refused" })
		forged.mu.Lock()
		updates := forged.updates
		forged.mu.Unlock()
		if updates != 0 {
			t.Errorf("%s: it got %d answers", name, updates)
		}
		want, reason := codes.PermissionDenied, chandler.CodeXDSIdentity
		if claim.why == "" { // what is no label is refused before
			want, reason = codes.InvalidArgument, chandler.CodeXDSNode
		}
		if status.Code(why) != want || wire.Reason(why) != reason || !strings.Contains(why.Error(), claim.why) {
			t.Errorf("%s: %v, with the code %q", name, why, wire.Reason(why))
		}
		conn, err := grpc.NewClient("passthrough:///control", s.shows(mine)...)
		if err != nil {
			t.Fatal(err)
		}
		own := &agent{t: t, node: claim.node, conns: make(chan *grpc.ClientConn, 1)}
		own.conns <- conn
		if b, err := own.read(digest, 0); status.Code(err) != want || len(b) != 0 {
			t.Errorf("%s: %d bytes of a module, %v", name, len(b), err)
		}
		if err := say(t, own.report(), wire.Report{Node: &claim.node, Sequence: 1, Full: true}); status.Code(err) != want {
			t.Errorf("%s: a report: %v", name, err)
		}
		forged.stop()
		conn.Close()
		t.Attr("refusal", string(wire.Reason(why)))
	}
	if now := gauge(t, s.metrics, "chandler_xds_resource_bytes_sent_total"); now != assigned {
		t.Errorf("%v bytes of resources went out", now-assigned)
	}
	if now := gauge(t, s.metrics, "chandler_module_bytes_sent_total"); now != sent {
		t.Errorf("%v bytes of modules went out", now-sent)
	}
	if said := s.said(); !strings.Contains(said, "an agent is refused") || !strings.Contains(said, "spiffe://example.org/ns/istio-system/node/gw may not") || strings.Contains(said, "\x1b") {
		t.Errorf("the log says %q", said)
	}

	// The rules are others now: it is no longer believed, on the stream it has.
	good.mu.Lock()
	before := len(good.lost)
	good.mu.Unlock()
	s.agents.SetRules([]identity.Rule{{SPIFFE: "spiffe://example.org/ns/shop/node/{node}", Namespace: "shop"}})
	eventually(t, func() bool { good.mu.Lock(); defer good.mu.Unlock(); return len(good.lost) > before }, func() string { return "the stream stays" })
}

// B95: bytes that are for another node are as if they were not there, and both tries
// are counted.
func TestRefuse_B95_AnothersModule(t *testing.T) {
	t.Parallel()
	s := newSecured(t, identity.Rule{DNS: "{node}.{namespace}.node.example.org"})
	mod := module.Append()
	s.set("auth:v1", mod)
	s.apply("pay", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Selector = map[string]string{"app": "pay"} })
	s.await("pay", chandler.ConditionResolvedRefs, "True Resolved")
	a := s.joinWith(chandler.Node{Namespace: "istio-system", Name: "gw"}, s.shows(s.ca.Issue(authority.Leaf{DNS: []string{"gw.istio-system.node.example.org"}})))
	_, theirs := a.read(string(chandler.Digest[chandler.ModuleDigest](mod)), 0)
	_, missing := a.read(string(chandler.Digest[chandler.ModuleDigest]([]byte("nobody's"))), 0)
	if status.Code(theirs) != codes.NotFound || theirs.Error() != missing.Error() {
		t.Errorf("%v, and for what is not there %v", theirs, missing)
	}
	if n := gauge(t, s.metrics, "chandler_agents_asked_total", "what", "other"); n != 2 {
		t.Errorf("%v are counted", n)
	}
	t.Attr("refusal", "same")
}

// Certificates of both sides and their authority are renewed under agents whose
// plugins change all the time: no stream is lost, until what it was opened with is
// no longer trusted; then it comes back with what is in the files.
func TestCertificatesRotateUnderLoad(t *testing.T) {
	t.Parallel()
	s := newSecured(t, identity.Rule{DNS: "{node}.{namespace}.node.example.org"})
	const fleet = 20
	names := make([]authority.Leaf, fleet)
	pairs, agents := make([]authority.Pair, fleet), make([]*agent, fleet)
	for i := range agents {
		names[i] = authority.Leaf{DNS: []string{fmt.Sprintf("gw-%d.istio-system.node.example.org", i)}}
		pairs[i] = s.ca.Issue(names[i])
		agents[i] = s.joinWith(chandler.Node{Namespace: "istio-system", Name: fmt.Sprintf("gw-%d", i)}, s.shows(pairs[i]))
	}
	version := 0
	change := func() {
		t.Helper()
		version++
		tag, mod := fmt.Sprintf("auth:v%d", version), module.Append(module.WithSection("version", fmt.Append(nil, version)))
		s.set(tag, mod)
		s.apply("auth", "oci://reg.example/"+tag, nil)
		for _, a := range agents {
			a.has("auth", runs(mod))
		}
	}
	lost := func() (n int, why error) {
		for _, a := range agents {
			a.mu.Lock()
			n, why = n+len(a.lost), errors.Join(why, errors.Join(a.lost...))
			a.mu.Unlock()
		}
		return n, why
	}
	change()
	for _, a := range agents { // whose handshake took long came once more
		a.mu.Lock()
		a.lost = nil
		a.mu.Unlock()
	}
	next := authority.New(t)
	for _, step := range []func(){
		func() { s.ca.Renew(s.own, server) },
		func() {
			for i, p := range pairs {
				s.ca.Renew(p, names[i])
			}
		},
		func() { replace(t, s.ca.File, s.ca.File, next.File) },
		func() { next.Renew(s.own, server) },
		func() {
			for i, p := range pairs {
				next.Renew(p, names[i])
			}
		},
	} {
		step()
		for range 5 {
			change()
		}
		// Who comes now meets what is in the files now.
		a := s.joinWith(chandler.Node{Namespace: "istio-system", Name: "gw-0"}, s.shows(pairs[0]))
		a.has("auth", func(chandler.Attachment) bool { return true })
		a.stop()
	}
	if n, why := lost(); n > 0 {
		t.Fatalf("%d streams were lost: %v", n, why)
	}
	replace(t, s.ca.File, next.File)
	eventually(t, func() bool {
		return !slices.ContainsFunc(agents, func(a *agent) bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.lost) == 0 })
	}, func() string {
		n, _ := lost()
		return fmt.Sprintf("%d streams have ended, not all of the old authority's", n)
	})
	change()
	for _, a := range agents {
		a.mu.Lock()
		if status.Code(a.lost[0]) != codes.Unauthenticated {
			t.Errorf("a stream ended with %v", a.lost[0])
		}
		a.mu.Unlock()
	}
}

// replace puts the contents of others in place of a file, at once.
func replace(t *testing.T, file string, by ...string) {
	t.Helper()
	var all []byte
	for _, name := range by {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	if err := errors.Join(os.WriteFile(file+".next", all, 0o600), os.Rename(file+".next", file)); err != nil {
		t.Fatal(err)
	}
}

// B101: what is no method of the port is refused as such, and HTTP/1 is not spoken;
// the port lives on.
func TestRefuse_B101_Paths(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	for _, path := range []string{
		"envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources", "/", "", "//", "/a", "/a/b/c",
		"/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources", "/chandler.v1.Admin/Apply",
		"/envoy.service.discovery.v3.AggregatedDiscoveryService/Forged" + strings.Repeat("x", 4096),
	} {
		got := statusOf(t, r, path)
		if got != fmt.Sprint(int(codes.Unimplemented)) {
			t.Errorf("%.80q: grpc-status %q", path, got)
		}
	}
	conn, err := grpc.NewClient("passthrough:///control", r.options()...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	err = conn.Invoke(t.Context(), "/chandler.v1.Reports/Forged", &emptypb.Empty{}, &emptypb.Empty{})
	if status.Code(err) != codes.Unimplemented || wire.Reason(err) != chandler.CodeXDSPath || !strings.Contains(err.Error(), `"/chandler.v1.Reports/Forged" is not served`) {
		t.Errorf("%v, with the code %q", err, wire.Reason(err))
	}
	t.Attr("refusal", string(wire.Reason(err)))

	raw := dialRaw(t, r)
	if _, err := io.WriteString(raw, "GET / HTTP/1.1\r\nHost: control\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, _ := io.ReadAll(io.LimitReader(raw, 64<<10))
	if strings.Contains(string(answer), "HTTP/1") {
		t.Errorf("HTTP/1 is answered: %q", answer)
	}
	r.deliver()
	r.join(gateway).conn()
}

func dialRaw(t *testing.T, r *rig) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	conn, err := r.dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// statusOf calls a path, as no client of gRPC's would, and gives the status of gRPC.
func statusOf(t *testing.T, r *rig, path string) string {
	t.Helper()
	conn := dialRaw(t, r)
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		t.Fatal(err)
	}
	f := http2.NewFramer(conn, conn)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, h := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", path}, {":authority", "control"}, {"content-type", "application/grpc"}, {"te", "trailers"}} {
		if err := enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(f.WriteSettings(), f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true, EndStream: true})); err != nil {
		t.Fatal(err)
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			t.Errorf("%.80q: %v", path, err)
			return ""
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			for _, h := range frame.Fields {
				if h.Name == "grpc-status" {
					return h.Value
				}
			}
		case *http2.RSTStreamFrame:
			return "reset: " + frame.ErrCode.String()
		}
	}
}

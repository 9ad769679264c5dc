package identity_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/identity"
	"chandler.dev/chandler/internal/testenv/authority"
)

var address = &net.TCPAddr{IP: net.IPv4(10, 0, 0, 9), Port: 4711}

// over is a call over TLS; pair may be zero.
func over(t *testing.T, pair authority.Pair) context.Context {
	t.Helper()
	var state tls.ConnectionState
	if pair.Cert != "" {
		p, err := tls.LoadX509KeyPair(pair.Cert, pair.Key)
		if err != nil {
			t.Fatal(err)
		}
		state.PeerCertificates = []*x509.Certificate{p.Leaf}
		state.VerifiedChains = [][]*x509.Certificate{{p.Leaf}}
	}
	return peer.NewContext(t.Context(), &peer.Peer{Addr: address, AuthInfo: credentials.TLSInfo{State: state}})
}

func node(namespace, name string, labels ...string) chandler.Node {
	n := chandler.Node{Namespace: namespace, Name: name, AgentVersion: "v1", Features: []string{"http"}}
	for _, l := range labels {
		if n.Labels == nil {
			n.Labels = map[string]string{}
		}
		k, v, _ := strings.Cut(l, "=")
		n.Labels[k] = v
	}
	return n
}

func check(t *testing.T, a *identity.Authenticator, ctx context.Context, claim chandler.Node, code codes.Code, why string) {
	t.Helper()
	got, err := a.Authenticate(ctx, claim)
	if status.Code(err) != code || err != nil && !strings.Contains(err.Error(), why) {
		t.Errorf("%s: %v, want %v with %q", claim.ID(), err, code, why)
	}
	if err != nil && got.ID() != "/" {
		t.Errorf("%s: a node beside an error: %+v", claim.ID(), got)
	}
	if err == nil && (got.ID() != claim.ID() || got.AgentVersion != "v1" || len(got.Features) != 1) {
		t.Errorf("%s: became %+v", claim.ID(), got)
	}
}

// What a certificate may claim, and that nothing else of it counts.
func TestCertificates(t *testing.T) {
	t.Parallel()
	ca := authority.New(t)
	a := identity.New(identity.Config{TrustDomain: "example.org"})
	const ok = codes.OK
	for _, c := range []struct {
		name  string
		leaf  authority.Leaf
		claim chandler.Node
		code  codes.Code
		why   string
	}{
		{"workload", authority.Leaf{URI: "spiffe://example.org/ns/edge/sa/gateway"}, node("edge", "any"), ok, ""},
		{"workload elsewhere", authority.Leaf{URI: "spiffe://example.org/ns/edge/sa/gateway"}, node("shop", "any"), codes.PermissionDenied,
			`spiffe://example.org/ns/edge/sa/gateway may not act as node "shop/any"`},
		{"node", authority.Leaf{URI: "spiffe://example.org/ns/edge/node/e1"}, node("edge", "e1"), ok, ""},
		{"another node", authority.Leaf{URI: "spiffe://example.org/ns/edge/node/e1"}, node("edge", "e2"), codes.PermissionDenied, `may not act as node "edge/e2"`},
		{"machine", authority.Leaf{DNS: []string{"e1.dc.edge.node.example.org"}}, node("edge", "e1.dc"), ok, ""},
		{"another machine", authority.Leaf{DNS: []string{"e1.edge.node.example.org"}}, node("edge", "e2"), codes.PermissionDenied, "e1.edge.node.example.org may not act"},
		{"machine elsewhere", authority.Leaf{DNS: []string{"e1.edge.node.example.org"}}, node("shop", "e1"), codes.PermissionDenied, "may not act"},
		{"several", authority.Leaf{DNS: []string{"www.example.org", "e1.edge.node.example.org", "e1.shop.node.example.org"}}, node("shop", "e1"), ok, ""},
		{"any of a namespace", authority.Leaf{DNS: []string{"*.edge.node.example.org"}}, node("edge", "whatever"), ok, ""},
		{"any elsewhere", authority.Leaf{DNS: []string{"*.edge.node.example.org"}}, node("shop", "whatever"), codes.PermissionDenied, "may not act"},
		{"any of any", authority.Leaf{DNS: []string{"*.node.example.org"}}, node("*", "whatever"), codes.Unauthenticated, "no name in the certificate"},
		{"some", authority.Leaf{DNS: []string{"e*.edge.node.example.org"}}, node("edge", "e1"), codes.Unauthenticated, "no name in the certificate"},
		{"a service", authority.Leaf{DNS: []string{"web.shop.svc.example.org"}}, node("shop", "web"), codes.Unauthenticated, "NODE.NAMESPACE.node.example.org"},
		{"nothing", authority.Leaf{}, node("", "test"), codes.Unauthenticated, "no name in the certificate"},
		{"other domain", authority.Leaf{URI: "spiffe://example.com/ns/edge/sa/gateway"}, node("edge", "a"), codes.Unauthenticated, `trust domain "example.org"`},
		{"other form", authority.Leaf{URI: "spiffe://example.org/workload"}, node("edge", "a"), codes.Unauthenticated, "no agent of the trust domain"},
		{"deeper", authority.Leaf{URI: "spiffe://example.org/ns/edge/sa/a/b"}, node("edge", "a"), codes.Unauthenticated, "no agent"},
		{"no namespace", authority.Leaf{URI: "spiffe://example.org/ns//sa/a"}, node("", "a"), codes.Unauthenticated, "no agent"},
		{"a query", authority.Leaf{URI: "spiffe://example.org/ns/edge/sa/a?x"}, node("edge", "a"), codes.Unauthenticated, "no agent"},
		{"https", authority.Leaf{URI: "https://example.org/ns/edge/sa/a"}, node("edge", "a"), codes.Unauthenticated, "no agent"},
		{"a URI wins", authority.Leaf{URI: "spiffe://example.org/ns/edge/sa/a", DNS: []string{"e1.shop.node.example.org"}}, node("shop", "e1"), codes.PermissionDenied, "may not act"},
		{"expired meanwhile", authority.Leaf{URI: "spiffe://example.org/ns/edge/sa/a", NotAfter: time.Now().Add(-time.Minute)}, node("edge", "a"), codes.Unauthenticated, "expired at"},
	} {
		t.Run(c.name, func(t *testing.T) { check(t, a, over(t, ca.Issue(c.leaf)), c.claim, c.code, c.why) })
	}
}

func TestNothingToShow(t *testing.T) {
	t.Parallel()
	a := identity.New(identity.Config{})
	check(t, a, t.Context(), node("edge", "a"), codes.Unauthenticated, "peer is not known")
	check(t, a, peer.NewContext(t.Context(), &peer.Peer{Addr: address}), node("edge", "a"), codes.Unauthenticated, "without TLS")
	check(t, a, over(t, authority.Pair{}), node("edge", "a"), codes.Unauthenticated, "give the agent --tls-cert and --tls-key")
	// Tokens are not looked at, and then not told either.
	check(t, a, shows(over(t, authority.Pair{}), "Bearer x"), node("edge", "a"), codes.Unauthenticated, "a client certificate is wanted")
	check(t, identity.New(identity.Config{Reviewer: reviewer{}}), over(t, authority.Pair{}), node("edge", "a"), codes.Unauthenticated, "--token-file")
	// A certificate that the handshake has not verified is none.
	ctx := over(t, authority.New(t).Issue(authority.Leaf{URI: "spiffe://cluster.local/ns/edge/sa/a"}))
	check(t, a, ctx, node("edge", "a"), codes.OK, "")
	p, _ := peer.FromContext(ctx)
	info := p.AuthInfo.(credentials.TLSInfo)
	info.State.VerifiedChains = nil
	p.AuthInfo = info
	check(t, a, ctx, node("edge", "a"), codes.Unauthenticated, "a client certificate is wanted")
}

// A connection may outlive the trust in who made its certificate.
func TestTrustEnds(t *testing.T) {
	t.Parallel()
	var trusted error
	a := identity.New(identity.Config{Verify: func(chain []*x509.Certificate) error {
		if len(chain) != 1 {
			t.Errorf("%d certificates", len(chain))
		}
		return trusted
	}})
	ctx := over(t, authority.New(t).Issue(authority.Leaf{DNS: []string{"e1.edge.node.cluster.local"}}))
	check(t, a, ctx, node("edge", "e1"), codes.OK, "")
	trusted = errors.New("unknown authority")
	check(t, a, ctx, node("edge", "e1"), codes.Unauthenticated, "the certificate is not trusted: unknown authority")
}

func TestClaimedLabels(t *testing.T) {
	t.Parallel()
	ctx := over(t, authority.New(t).Issue(authority.Leaf{DNS: []string{"e1.edge.node.cluster.local"}}))
	claim := node("edge", "e1", "app=web", "tier=front")
	got, err := identity.New(identity.Config{}).Authenticate(ctx, claim)
	if err != nil || !maps.Equal(got.Labels, claim.Labels) {
		t.Errorf("%v, %v", got.Labels, err)
	}
	some := identity.New(identity.Config{Labels: []string{"app"}})
	check(t, some, ctx, node("edge", "e1", "app=web"), codes.OK, "")
	check(t, some, ctx, claim, codes.PermissionDenied, `e1.edge.node.cluster.local may not claim the label "tier"`)
	none := identity.New(identity.Config{Labels: []string{}})
	check(t, none, ctx, node("edge", "e1"), codes.OK, "")
	check(t, none, ctx, node("edge", "e1", "app=web"), codes.PermissionDenied, `the label "app"`)
}

// Of labels that the proxy's configuration has, a node gets those that it could have
// claimed, and is not refused for the others.
func TestFoundLabels(t *testing.T) {
	t.Parallel()
	ctx := over(t, authority.New(t).Issue(authority.Leaf{DNS: []string{"e1.edge.node.cluster.local"}}))
	claim := node("edge", "e1", "app=web")
	claim.Found = map[string]string{"app": "other", "tier": "front", "zone": "a"}
	labels := func(a *identity.Authenticator, ctx context.Context) map[string]string {
		t.Helper()
		got, err := a.Authenticate(ctx, claim)
		if err != nil || got.Found != nil {
			t.Errorf("%+v, %v", got, err)
		}
		return got.Labels
	}
	if got := labels(identity.New(identity.Config{}), ctx); !maps.Equal(got, map[string]string{"app": "web", "tier": "front", "zone": "a"}) {
		t.Errorf("without a bound: %v", got)
	}
	if got := labels(identity.New(identity.Config{Labels: []string{"app", "zone"}}), ctx); !maps.Equal(got, map[string]string{"app": "web", "zone": "a"}) {
		t.Errorf("of two labels: %v", got)
	}
	known := identity.New(identity.Config{Reviewer: reviewer{"t": {
		Name: "x", Namespace: "edge", Node: "e1", Known: true, Labels: map[string]string{"app": "web", "pod": "yes"}}}})
	if got := labels(known, shows(ctx, "Bearer t")); !maps.Equal(got, map[string]string{"app": "web", "pod": "yes"}) {
		t.Errorf("of a pod: %v", got)
	}
	if len(claim.Labels) != 1 || len(claim.Found) != 3 {
		t.Errorf("the claim was written to: %+v", claim)
	}
}

// reviewer knows tokens by heart.
type reviewer map[string]identity.Identity

func (r reviewer) Review(_ context.Context, token string) (identity.Identity, error) {
	if token == "away" {
		return identity.Identity{}, errors.New("connection refused")
	}
	if id, ok := r[token]; ok {
		return id, nil
	}
	return identity.Identity{}, fmt.Errorf("%w: it is for another audience", identity.ErrRefused)
}

func shows(ctx context.Context, authorization ...string) context.Context {
	return metadata.NewIncomingContext(ctx, metadata.MD{"authorization": authorization})
}

func TestTokens(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	ca := authority.New(t)
	certificate := ca.Issue(authority.Leaf{DNS: []string{"e1.shop.node.cluster.local"}})
	a := identity.New(identity.Config{
		Log: slog.New(slog.NewTextHandler(&log, nil)),
		Reviewer: reviewer{
			"bound": {Name: "system:serviceaccount:edge:gw", Namespace: "edge", ServiceAccount: "gw", Node: "gw-1", Known: true, Labels: map[string]string{"app": "gw", "tier": "front"}},
			"free":  {Name: "system:serviceaccount:edge:gw", Namespace: "edge", ServiceAccount: "gw"},
		},
	})
	plain := peer.NewContext(t.Context(), &peer.Peer{Addr: address})
	tls := over(t, authority.Pair{})
	for _, c := range []struct {
		name  string
		ctx   context.Context
		claim chandler.Node
		code  codes.Code
		why   string
	}{
		{"good", shows(tls, "Bearer bound"), node("edge", "gw-1"), codes.OK, ""},
		{"scheme in lower case", shows(tls, "bearer bound"), node("edge", "gw-1", "app=gw"), codes.OK, ""},
		{"another namespace", shows(tls, "Bearer bound"), node("shop", "gw-1"), codes.PermissionDenied, `system:serviceaccount:edge:gw may not act as node "shop/gw-1"`},
		{"another pod", shows(tls, "Bearer bound"), node("edge", "gw-2"), codes.PermissionDenied, `node "edge/gw-2"`},
		{"another value", shows(tls, "Bearer bound"), node("edge", "gw-1", "app=pay"), codes.PermissionDenied, `the label "app=pay": it is not on the pod`},
		{"another label", shows(tls, "Bearer bound"), node("edge", "gw-1", "pay=1"), codes.PermissionDenied, "not on the pod"},
		{"not bound", shows(tls, "Bearer free"), node("edge", "any", "app=x"), codes.OK, ""},
		{"not bound, elsewhere", shows(tls, "Bearer free"), node("shop", "any"), codes.PermissionDenied, "may not act"},
		{"refused", shows(tls, "Bearer other"), node("edge", "gw-1"), codes.Unauthenticated, "the token is refused: it is for another audience"},
		{"refused, with a certificate", shows(over(t, certificate), "Bearer other"), node("shop", "e1"), codes.Unauthenticated, "refused"},
		{"none, with a certificate", over(t, certificate), node("shop", "e1"), codes.OK, ""},
		{"nobody can tell", shows(tls, "Bearer away"), node("edge", "gw-1"), codes.Unavailable, "nobody can say now"},
		{"in plain text", shows(plain, "Bearer bound"), node("edge", "gw-1"), codes.Unauthenticated, "without TLS"},
		{"two", shows(tls, "Bearer bound", "Bearer free"), node("edge", "gw-1"), codes.Unauthenticated, "no bearer token"},
		{"basic", shows(tls, "Basic bound"), node("edge", "gw-1"), codes.Unauthenticated, "no bearer token"},
		{"empty", shows(tls, "Bearer "), node("edge", "gw-1"), codes.Unauthenticated, "no bearer token"},
		{"long", shows(tls, "Bearer "+strings.Repeat("x", 17<<10)), node("edge", "gw-1"), codes.Unauthenticated, "no bearer token"},
	} {
		t.Run(c.name, func(t *testing.T) { check(t, a, c.ctx, c.claim, c.code, c.why) })
	}
	got, err := a.Authenticate(shows(tls, "Bearer bound"), node("edge", "gw-1", "app=gw"))
	if err != nil || !maps.Equal(got.Labels, map[string]string{"app": "gw", "tier": "front"}) {
		t.Errorf("labels are %v, want the pod's; %v", got.Labels, err)
	}
	if said := log.String(); strings.Contains(said, "bound") || !strings.Contains(said, "an agent is refused") {
		t.Errorf("the log says:\n%s", said)
	}
	if lines := strings.Count(log.String(), "an agent is refused"); lines > 2 {
		t.Errorf("%d refusals were logged within a second", lines)
	}
}

func TestAdmit(t *testing.T) {
	t.Parallel()
	ca := authority.New(t)
	a := identity.New(identity.Config{Reviewer: reviewer{
		"peer":  {Name: "system:serviceaccount:sys:chandler (pod chandler-1)", Namespace: "sys", ServiceAccount: "chandler", Node: "chandler-1", Known: true},
		"agent": {Name: "system:serviceaccount:sys:gw", Namespace: "sys", ServiceAccount: "gw"},
	}})
	for _, c := range []struct {
		name string
		ctx  context.Context
		code codes.Code
	}{
		{"token", shows(over(t, authority.Pair{}), "Bearer peer"), codes.OK},
		{"certificate", over(t, ca.Issue(authority.Leaf{URI: "spiffe://cluster.local/ns/sys/sa/chandler"})), codes.OK},
		{"an agent", shows(over(t, authority.Pair{}), "Bearer agent"), codes.PermissionDenied},
		{"elsewhere", over(t, ca.Issue(authority.Leaf{URI: "spiffe://cluster.local/ns/edge/sa/chandler"})), codes.PermissionDenied},
		{"a machine", over(t, ca.Issue(authority.Leaf{DNS: []string{"chandler.sys.node.cluster.local"}})), codes.PermissionDenied},
		{"nobody", over(t, authority.Pair{}), codes.Unauthenticated},
	} {
		if err := a.Admit(c.ctx, "sys", "chandler"); status.Code(err) != c.code {
			t.Errorf("%s: %v, want %v", c.name, err, c.code)
		}
	}
	if err := a.Admit(over(t, ca.Issue(authority.Leaf{DNS: []string{"chandler.sys.node.cluster.local"}})), "sys", ""); status.Code(err) != codes.PermissionDenied {
		t.Errorf("without a service account a machine is a replica: %v", err)
	}
}

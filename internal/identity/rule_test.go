package identity_test

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/identity"
	"chandler.dev/chandler/internal/testenv/authority"
)

// What a certificate may claim by the operator's rules, and that its names mean
// nothing else beside them.
func TestRules(t *testing.T) {
	t.Parallel()
	ca := authority.New(t)
	any := map[string][]string{"*": {"*"}}
	rules := []identity.Rule{
		{SPIFFE: "spiffe://example.org/ns/{namespace}/node/{node}", Labels: map[string][]string{"app": {"web", "edge-*"}, "zone/*": {"*", ""}}},
		{SPIFFE: "spiffe://example.org/workload/*/gateway-{node}", Namespace: "edge"},
		{DNS: "{node}.Machines.example.org", Namespace: "edge", Node: "m*", Labels: any},
		{DNS: "{node}.machines.example.org", Namespace: "edge", Node: "mighty", Labels: map[string][]string{"x": {"y"}}},
		{URI: "https://example.org/{namespace}/*", Namespace: "team-*", Labels: any},
		{DNS: "*.trusted.example.org", CA: "good.pem", Namespace: "edge"},
		{DNS: "*.untrusted.example.org", CA: "bad.pem", Namespace: "edge"},
		{DNS: "broken.example.org"}, // says no namespace
	}
	a := identity.New(identity.Config{TrustDomain: "example.org", Rules: rules, Authority: func(file string, chain []*x509.Certificate) error {
		if file == "good.pem" && len(chain) == 1 {
			return nil
		}
		return errors.New("another authority's")
	}})
	spiffe := func(path string) authority.Leaf { return authority.Leaf{URI: "spiffe://example.org" + path} }
	dns := func(names ...string) authority.Leaf { return authority.Leaf{DNS: names} }
	const ok, denied = codes.OK, codes.PermissionDenied
	for _, c := range []struct {
		name  string
		leaf  authority.Leaf
		claim chandler.Node
		code  codes.Code
		why   string
	}{
		{"captured", spiffe("/ns/edge/node/e1"), node("edge", "e1", "app=web", "zone/a=", "zone/b=1"), ok, ""},
		{"another namespace", spiffe("/ns/edge/node/e1"), node("shop", "e1"), denied, `spiffe://example.org/ns/edge/node/e1 may not act as node "shop/e1"`},
		{"another node", spiffe("/ns/edge/node/e1"), node("edge", "e2"), denied, "may not act"},
		{"a value", spiffe("/ns/edge/node/e1"), node("edge", "e1", "app=pay"), denied, `may not claim the label "app=pay"`},
		{"a value by pattern", spiffe("/ns/edge/node/e1"), node("edge", "e1", "app=edge-7"), ok, ""},
		{"half of a pattern", spiffe("/ns/edge/node/e1"), node("edge", "e1", "app=xedge-7"), denied, "may not claim"},
		{"a key", spiffe("/ns/edge/node/e1"), node("edge", "e1", "tier=web"), denied, `"tier=web"`},
		{"deeper", spiffe("/ns/edge/node/e1/x"), node("edge", "e1"), denied, "no rule is for a certificate of spiffe://example.org/ns/edge/node/e1/x"},
		{"two parts for one", spiffe("/ns/edge/x/node/e1"), node("edge/x", "e1"), denied, "no rule"},
		{"a star in the certificate", spiffe("/ns/edge/node/*"), node("edge", "*"), denied, "no rule"},
		{"escaped", spiffe("/ns/edge%2Fx/node/e1"), node("edge", "e1"), denied, "no rule"},
		{"other domain", authority.Leaf{URI: "spiffe://example.org.evil/ns/edge/node/e1"}, node("edge", "e1"), denied, "no rule"},
		{"with a query", spiffe("/ns/edge/node/e1?x"), node("edge", "e1"), denied, "no rule"},
		{"a part of a part", spiffe("/workload/a/gateway-7"), node("edge", "7"), ok, ""},
		{"no labels are allowed", spiffe("/workload/a/gateway-7"), node("edge", "7", "app=web"), denied, `"app=web"`},
		{"an empty part", spiffe("/workload//gateway-7"), node("edge", "7"), denied, "no rule"},
		{"the name alone means nothing", spiffe("/ns/edge/sa/gateway"), node("edge", "any"), denied, "no rule"},
		{"nor does the DNS name", dns("e1.edge.node.example.org"), node("edge", "e1"), denied, "no rule is for a certificate of e1.edge.node.example.org"},
		{"a machine", dns("www.example.org", "m1.machines.EXAMPLE.org"), node("edge", "m1", "x=anything"), ok, ""},
		{"a machine's name", dns("a1.machines.example.org"), node("edge", "a1"), denied, "may not act"},
		{"more than a label", dns("m1.x.machines.example.org"), node("edge", "m1.x"), denied, "no rule"},
		{"two rules", dns("mighty.machines.example.org"), node("edge", "mighty", "z=1"), ok, ""},
		{"a URI", authority.Leaf{URI: "https://example.org/team-a/x"}, node("team-a", "any", "x=y"), ok, ""},
		{"a URI elsewhere", authority.Leaf{URI: "https://example.org/shop/x"}, node("shop", "any"), denied, "may not act"},
		{"by its authority", dns("a.trusted.example.org"), node("edge", "any"), ok, ""},
		{"another authority's", dns("a.untrusted.example.org"), node("edge", "any"), denied, "no rule"},
		{"a broken rule", dns("broken.example.org"), node("", "any"), denied, "no rule"},
		{"nobody", authority.Leaf{}, node("edge", "a"), denied, "no rule is for a certificate of nobody"},
	} {
		t.Run(c.name, func(t *testing.T) { check(t, a, over(t, ca.Issue(c.leaf)), c.claim, c.code, c.why) })
	}

	a.SetRules(nil)
	check(t, a, over(t, ca.Issue(dns("e1.edge.node.example.org"))), node("edge", "e1"), ok, "")
	a.SetRules([]identity.Rule{{DNS: "no namespace"}})
	check(t, a, over(t, ca.Issue(dns("e1.edge.node.example.org"))), node("edge", "e1"), denied, "no rule")
}

// A rule that is wrong says so, field by field.
func TestRuleCheck(t *testing.T) {
	t.Parallel()
	for want, r := range map[string]identity.Rule{
		"":                           {SPIFFE: "spiffe://example.org/ns/{namespace}/*", CA: "/etc/ca.pem", Node: "a*", Labels: map[string][]string{"app": {"*"}}},
		"SpecRequired ":              {Namespace: "edge"},
		"SpecValue ":                 {SPIFFE: "spiffe://example.org/a", DNS: "a.example.org", Namespace: "edge"},
		"SpecRequired namespace":     {DNS: "{node}.example.org"},
		"SpecValue namespace":        {DNS: "{node}.example.org", Namespace: "*"},
		"SpecValue spiffe":           {SPIFFE: "https://example.org/a", Namespace: "edge"},
		"SpecValue uri":              {URI: "example.org/a", Namespace: "edge"},
		"SpecValue dns":              {DNS: "edge.*", Namespace: "edge"},
		`SpecRequired labels["app"]`: {DNS: "a.example.org", Namespace: "edge", Labels: map[string][]string{"app": {}}},
		`SpecRequired labels[""]`:    {DNS: "a.example.org", Namespace: "edge", Labels: map[string][]string{"": {"x"}}},
		"SpecValue node":             {DNS: "a.example.org", Namespace: "edge", Node: strings.Repeat("a", 600)},
	} {
		got := ""
		for _, p := range r.Check() {
			got = fmt.Sprintf("%s %s", p.Code, p.Field)
			if p.Message == "" {
				t.Errorf("%+v: no words", r)
			}
		}
		if got != want {
			t.Errorf("%+v: %q, want %q", r, got, want)
		}
	}
	for _, pattern := range []string{"spiffe://*/ns/a", "spiffe://{namespace}/a", "spiffe:///a", "spiffe://example.org/{pod}", "spiffe://example.org/{node}/{node}", "spiffe://example.org/{node"} {
		r := identity.Rule{SPIFFE: pattern, Namespace: "edge"}
		if !slices.ContainsFunc(r.Check(), func(p chandler.Problem) bool { return p.Field == "spiffe" && p.Code == chandler.CodeSpecValue }) {
			t.Errorf("%s is taken", pattern)
		}
	}
}

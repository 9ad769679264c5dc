package access_test

import (
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/access"
)

func hash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

var grants = access.Grants{
	{Name: "reader", TokenSHA256: hash("t1"), Role: access.Viewer, Namespaces: []string{"edge", "shop"}},
	{Name: "mover", TokenSHA256: hash("t2"), Role: access.Operator, Namespaces: []string{"edge"}},
	{Name: "owner", Certificate: "spiffe://d/ns/ops/sa/owner", Role: access.Admin, Namespaces: []string{"edge"}},
	{Name: "root", User: "jane", Role: access.Admin, Namespaces: []string{access.Everywhere}},
	{Name: "team", Group: "platform", Role: access.Viewer, Namespaces: []string{access.Everywhere}},
}

func TestRoles(t *testing.T) {
	t.Parallel()
	all := []access.Verb{access.List, access.Read, access.Steer, access.Edit, access.Enrol, access.Debug}
	for _, c := range []struct {
		name   string
		have   access.Grants
		in     string
		expect []access.Verb
	}{
		{"viewer", grants.Token("t1"), "shop", all[:2]},
		{"viewer elsewhere", grants.Token("t1"), "other", nil},
		{"viewer of all", grants.Token("t1"), access.Everywhere, nil},
		{"operator", grants.Token("t2"), "edge", all[:3]},
		{"admin of one", grants.Certificate([]string{"x", "spiffe://d/ns/ops/sa/owner"}), "edge", all[:5]},
		{"admin of all", grants.Account(&access.Account{User: "jane"}), "any", all},
		{"group", grants.Account(&access.Account{User: "joe", Groups: []string{"platform"}}), "any", all[:2]},
		{"a token that nobody has", grants.Token("t3"), "edge", nil},
		{"no token", grants.Token(""), "edge", nil},
		{"a certificate without names", grants.Certificate([]string{""}), "edge", nil},
		{"a user without a name", grants.Account(&access.Account{Groups: []string{""}}), "edge", nil},
	} {
		for _, v := range all {
			if got, want := c.have.Allow(v, c.in), slices.Contains(c.expect, v); got != want {
				t.Errorf("%s: %s in %s: %t", c.name, v, c.in, got)
			}
		}
	}
	if one := grants.Token("t1"); !one.Somewhere(access.Read) || one.Somewhere(access.Steer) {
		t.Error("a viewer of two namespaces may read somewhere, and steer nowhere")
	}
}

func TestCheck(t *testing.T) {
	t.Parallel()
	good := access.Grant{Name: "n", TokenSHA256: hash("t"), Role: access.Viewer, Namespaces: []string{"edge"}}
	if p := good.Check(); len(p) > 0 {
		t.Errorf("a good one: %v", p)
	}
	for _, c := range []struct {
		field, says string
		spoil       func(*access.Grant)
	}{
		{"name", "required", func(g *access.Grant) { g.Name = " " }},
		{"", "not 0 of them", func(g *access.Grant) { g.TokenSHA256 = "" }},
		{"", "not 2 of them", func(g *access.Grant) { g.Group = "x" }},
		{"tokenSHA256", "64 hex digits", func(g *access.Grant) { g.TokenSHA256 = "secret" }},
		{"tokenSHA256", "no text at all", func(g *access.Grant) { g.TokenSHA256 = hash("") }},
		{"role", `"root" is unknown`, func(g *access.Grant) { g.Role = "root" }},
		{"namespaces", "required", func(g *access.Grant) { g.Namespaces = nil }},
		{"namespaces[1]", `"Edge*" is not valid`, func(g *access.Grant) { g.Namespaces = []string{"*", "Edge*"} }},
	} {
		g := good
		c.spoil(&g)
		p := g.Check()
		if len(p) != 1 || p[0].Field != c.field || !strings.Contains(p[0].Message, c.says) || p[0].Hint == "" {
			t.Errorf("%s %s: %v", c.field, c.says, p)
		}
		if c.says == "64 hex digits" && strings.Contains(p[0].Error(), "secret") {
			t.Errorf("what may be a token is repeated: %v", p)
		}
	}
}

func TestAddressed(t *testing.T) {
	t.Parallel()
	local := netip.MustParseAddr("::ffff:10.1.2.3")
	for host, want := range map[string]bool{
		"localhost:9911": true, "LOCALHOST": true, "127.0.0.1:9911": true, "127.0.0.1": true, "[::1]:1": true, "[::1]": true,
		"10.1.2.3:9911": true, "control.example": true, "Control.example.:9911": true,
		"": false, "evil.example:9911": false, "localhost.evil.example": false, "127.0.0.1.evil.example": false, "10.1.2.4": false, "0.0.0.0:9911": false,
	} {
		if got := access.Addressed(host, local, []string{"control.example"}); got != want {
			t.Errorf("%q: %t", host, got)
		}
	}
}

func TestSameOrigin(t *testing.T) {
	t.Parallel()
	const host = "127.0.0.1:9911"
	for _, c := range []struct {
		origin, site string
		want         bool
	}{
		{"", "", true}, {"", "none", true}, {"", "same-origin", true}, {"http://" + host, "same-origin", true}, {"https://" + host, "", true},
		{"", "cross-site", false}, {"", "same-site", false}, {"null", "", false}, {"http://evil.example", "", false},
		{"http://127.0.0.1:8080", "", false}, {"http://" + host + ".evil.example", "", false}, {"http://" + host, "cross-site", false}, {"::", "", false},
	} {
		if got := access.SameOrigin(host, c.origin, c.site); got != c.want {
			t.Errorf("origin %q, site %q: %t", c.origin, c.site, got)
		}
	}
}

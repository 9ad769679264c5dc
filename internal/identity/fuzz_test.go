package identity

import (
	"crypto/x509"
	"net/url"
	"strings"
	"testing"
	"unicode"
)

// FuzzNames: whom a certificate is of stands in it, within the trust domain, and a
// certificate of nobody says why.
func FuzzNames(f *testing.F) {
	for _, s := range [][2]string{
		{"spiffe://d.example/ns/a/sa/b", ""}, {"spiffe://d.example/ns/a/node/n", "x.a.node.d.example"}, {"", "n.a.node.d.example"}, {"", "*.a.node.d.example"},
		{"", "a.b.c.node.d.example"}, {"spiffe://other/ns/a/sa/b", ""}, {"spiffe://d.example/ns//sa/", ""}, {"", ".node.d.example"}, {"spiffe://d.example/ns/a%2Fb/sa/c", ""},
	} {
		f.Add(s[0], s[1])
	}
	f.Fuzz(func(t *testing.T, uri, dns string) {
		c := &x509.Certificate{}
		if u, err := url.Parse(uri); err == nil && uri != "" {
			c.URIs = []*url.URL{u}
		}
		if dns != "" {
			c.DNSNames = []string{dns}
		}
		ids, why := names(c, "d.example")
		if (len(ids) == 0) != (why != "") {
			t.Fatalf("%q %q: %+v, %q", uri, dns, ids, why)
		}
		if len(why) > 4<<10 || strings.ContainsFunc(why, unicode.IsControl) {
			t.Fatalf("not fit to be shown: %q", why)
		}
		for _, id := range ids {
			if id.Namespace == "" || !strings.Contains(id.Name, "d.example") || strings.ContainsAny(id.Namespace, "/") ||
				!strings.Contains(uri+dns, id.Node) || strings.Contains(id.Node, "*") || len(c.URIs) > 0 && strings.Contains(id.Node, "/") {
				t.Fatalf("%q %q: %+v", uri, dns, id)
			}
		}
	})
}

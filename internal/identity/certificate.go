package identity

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"

	"chandler.dev/chandler"
)

// names reads whom a certificate is of. One with a URI is a SPIFFE certificate
// and has no other name:
//
//	spiffe://TRUST DOMAIN/ns/NAMESPACE/sa/SERVICE ACCOUNT    a workload: any node of the namespace
//	spiffe://TRUST DOMAIN/ns/NAMESPACE/node/NODE             one node
//
// One without is of a machine, of every node that a DNS name of this form names:
//
//	NODE.NAMESPACE.node.TRUST DOMAIN
//
// where a NODE of "*" is any node of the namespace, and may have dots. The subject
// counts for nothing. Without an identity why says what was found.
func names(c *x509.Certificate, trustDomain string) (ids []Identity, why string) {
	if len(c.URIs) > 0 {
		if len(c.URIs) > 1 {
			return nil, fmt.Sprintf("the certificate has %d URIs, a SPIFFE certificate has one", len(c.URIs))
		}
		id, ok := spiffe(c.URIs[0], trustDomain)
		if !ok {
			return nil, fmt.Sprintf("the certificate is of %s, which is no agent of the trust domain %s", chandler.Quote(c.URIs[0].String()), chandler.Quote(trustDomain))
		}
		return []Identity{id}, ""
	}
	for _, name := range c.DNSNames {
		if id, ok := machine(name, trustDomain); ok {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil, fmt.Sprintf("no name in the certificate is of the form %s or %s",
			"spiffe://"+trustDomain+"/ns/NAMESPACE/sa/ACCOUNT", "NODE.NAMESPACE.node."+trustDomain)
	}
	return ids, ""
}

func spiffe(u *url.URL, trustDomain string) (Identity, bool) {
	if u.Scheme != "spiffe" || u.Host != trustDomain || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.RawPath != "" || u.Opaque != "" {
		return Identity{}, false
	}
	parts := strings.Split(u.Path, "/") // begins with an empty one
	if len(parts) != 5 || parts[0] != "" || parts[1] != "ns" || parts[2] == "" || parts[4] == "" {
		return Identity{}, false
	}
	id := Identity{Name: u.String(), Namespace: parts[2]}
	switch parts[3] {
	case "sa":
		id.ServiceAccount = parts[4]
	case "node":
		id.Node = parts[4]
	default:
		return Identity{}, false
	}
	return id, true
}

func machine(name, trustDomain string) (Identity, bool) {
	rest, ok := strings.CutSuffix(name, ".node."+trustDomain)
	at := strings.LastIndexByte(rest, '.')
	if !ok || at <= 0 || at == len(rest)-1 || strings.Contains(rest, "/") { // an authority may sign what is no name of DNS
		return Identity{}, false
	}
	id := Identity{Name: name, Namespace: rest[at+1:], Node: rest[:at]}
	if id.Node == "*" {
		id.Node = ""
	}
	return id, !strings.Contains(id.Node, "*")
}

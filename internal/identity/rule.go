package identity

import (
	"crypto/x509"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"

	"chandler.dev/chandler"
)

// Limits of one rule.
const (
	maxPattern = 512 // bytes of a pattern
	maxLabels  = 256 // keys, and values of a key
)

// Rule is an entry of `identities:` in the operator's file: whose a certificate is,
// and what its owner may claim. It is the answer to names that are given by somebody
// else. With rules a certificate counts for what they say and for nothing else; all
// that is claimed must be allowed by one of them.
//
// Patterns are compared as a whole. A * stands for one or more characters within one
// part of a name: between slashes in a URI, between dots in a DNS name, anywhere in a
// namespace, node or label. {namespace} and {node} in the name of the certificate
// stand for the same, without a *, and what stands there is the only namespace or
// node that may be claimed.
type Rule struct {
	// SPIFFE, DNS or URI, one of them, is the pattern of a name in the certificate:
	// of its SPIFFE id, for instance spiffe://example.org/ns/{namespace}/node/{node},
	// or of one of the DNS names or URIs among its subject alternative names.
	SPIFFE string `yaml:"spiffe,omitempty"`
	DNS    string `yaml:"dns,omitempty"` // the same for a DNS name
	URI    string `yaml:"uri,omitempty"` // the same for a URI
	// CA names a file of authorities, in PEM, by one of which the certificate must
	// be; empty: any of --client-ca. The rule trusts nobody whom --client-ca does not.
	CA string `yaml:"ca,omitempty"`
	// Namespace is the pattern of what may be claimed; needed without {namespace}.
	Namespace string `yaml:"namespace,omitempty"`
	// Node is the same for the node's name; without it and {node}: any.
	Node string `yaml:"node,omitempty"`
	// Labels are those that may be claimed: patterns of values by the pattern of the
	// key. Others may not, and without Labels none may.
	Labels map[string][]string `yaml:"labels,omitempty"`
}

// Check tells what is wrong with a rule; fields are relative to it.
func (r *Rule) Check() []chandler.Problem {
	var c checker
	field, pattern, count := r.pattern()
	switch {
	case count == 0:
		c.add(chandler.CodeSpecRequired, "", "give spiffe, dns or uri", "nothing says which certificates the rule is for")
	case count > 1:
		c.add(chandler.CodeSpecValue, "", "write a rule for each", "spiffe, dns and uri are three ways to name a certificate; give one")
	default:
		c.certificate(field, pattern)
	}
	switch captures := strings.Contains(pattern, captureNamespace); {
	case r.Namespace == "" && !captures:
		c.add(chandler.CodeSpecRequired, "namespace", "name it, or put {namespace} into the pattern", "nothing says which namespace may be claimed")
	case r.Namespace != "" && !captures && strings.Trim(r.Namespace, "*") == "":
		c.add(chandler.CodeSpecValue, "namespace", "name it, or put {namespace} into the pattern", "a certificate for every namespace is one for every tenant")
	}
	c.pattern("namespace", r.Namespace)
	c.pattern("node", r.Node)
	if len(r.Labels) > maxLabels {
		c.add(chandler.CodeSpecValue, "labels", "use patterns", "%d labels, limit %d", len(r.Labels), maxLabels)
		return c
	}
	for _, key := range slices.Sorted(maps.Keys(r.Labels)) {
		at := fmt.Sprintf("labels[%s]", chandler.Quote(key))
		values := r.Labels[key]
		c.pattern(at, key)
		switch {
		case key == "":
			c.add(chandler.CodeSpecRequired, at, "name it", "a label without a key")
		case len(values) == 0:
			c.add(chandler.CodeSpecRequired, at, `say ["*"] for any`, "no value is allowed")
		case len(values) > maxLabels:
			c.add(chandler.CodeSpecValue, at, "use patterns", "%d values, limit %d", len(values), maxLabels)
		}
		for _, value := range values[:min(len(values), maxLabels)] {
			c.pattern(at, value)
		}
	}
	return c
}

const (
	captureNamespace = "{namespace}"
	captureNode      = "{node}"
)

// pattern gives the pattern of the certificate's name, its field, and how many there
// are.
func (r *Rule) pattern() (field, pattern string, count int) {
	for _, p := range [][2]string{{"spiffe", r.SPIFFE}, {"dns", r.DNS}, {"uri", r.URI}} {
		if p[1] != "" {
			field, pattern = p[0], p[1]
			count++
		}
	}
	return field, pattern, count
}

// checker collects problems.
type checker []chandler.Problem

func (c *checker) add(code chandler.Code, field, hint, format string, args ...any) {
	*c = append(*c, *chandler.Problemf(code, field, hint, format, args...))
}

func (c *checker) pattern(field, pattern string) {
	if len(pattern) > maxPattern {
		c.add(chandler.CodeSpecValue, field, "make it shorter", "%d bytes, limit %d", len(pattern), maxPattern)
	}
}

// certificate checks the pattern of a certificate's name. Whose trust domain, or
// host, it is must be said.
func (c *checker) certificate(field, pattern string) {
	c.pattern(field, pattern)
	rest := strings.NewReplacer(captureNamespace, "", captureNode, "").Replace(pattern)
	switch {
	case strings.ContainsAny(rest, "{}"):
		c.add(chandler.CodeSpecValue, field, "use {namespace} and {node}", "%s has other braces than {namespace} and {node}", chandler.Quote(pattern))
	case strings.Count(pattern, captureNamespace) > 1 || strings.Count(pattern, captureNode) > 1:
		c.add(chandler.CodeSpecValue, field, "use each once", "%s has {namespace} or {node} twice", chandler.Quote(pattern))
	}
	switch scheme, after, ok := strings.Cut(pattern, "://"); {
	case field == "dns":
		if labels := strings.Split(rest, "."); strings.Trim(labels[len(labels)-1], "*") == "" {
			c.add(chandler.CodeSpecValue, field, "end it with a domain of yours", "%s names certificates of any domain", chandler.Quote(pattern))
		}
	case !ok || field == "spiffe" && scheme != "spiffe":
		c.add(chandler.CodeSpecValue, field, "write it as it stands in the certificate, from the scheme on", "%s is no such URI", chandler.Quote(pattern))
	default:
		host, _, _ := strings.Cut(after, "/")
		if host == "" || strings.ContainsAny(scheme+host, "*{") {
			c.add(chandler.CodeSpecValue, field, "write scheme and host out", "%s names certificates of any trust domain", chandler.Quote(pattern))
		}
	}
}

// nobody matches nothing.
var nobody = regexp.MustCompile(`[^\s\S]`)

// ruling is a rule that can be asked.
type ruling struct {
	ca              string
	spiffe, dns     bool
	certificate     *regexp.Regexp
	namespace, node *regexp.Regexp // nil: any
	labels          []allowed
}

// allowed are values that a label may have.
type allowed struct {
	key    *regexp.Regexp
	values []*regexp.Regexp
}

// compile makes a rule ready. One in which something is wrong is for nobody.
func (r *Rule) compile() (*ruling, bool) {
	if len(r.Check()) > 0 {
		return nil, false
	}
	field, pattern, _ := r.pattern()
	c := &ruling{ca: r.CA, spiffe: field == "spiffe", dns: field == "dns"}
	separator := "/"
	if c.dns {
		pattern, separator = strings.ToLower(pattern), "."
	}
	c.certificate = compiled(pattern, separator)
	if r.Namespace != "" {
		c.namespace = compiled(r.Namespace, "")
	}
	if r.Node != "" {
		c.node = compiled(r.Node, "")
	}
	for _, key := range slices.Sorted(maps.Keys(r.Labels)) {
		a := allowed{key: compiled(key, "")}
		for _, value := range r.Labels[key] {
			a.values = append(a.values, compiled(value, ""))
		}
		c.labels = append(c.labels, a)
	}
	return c, true
}

// compiled is a pattern whose parts are parted by separator, or that is one part.
func compiled(pattern, separator string) *regexp.Regexp {
	text := regexp.QuoteMeta(pattern)
	text = strings.NewReplacer(
		`\*`, "[^"+separator+"\x00]+",
		`\{namespace\}`, "(?P<namespace>[^*/"+separator+"]+)",
		`\{node\}`, "(?P<node>[^*/"+separator+"]+)",
	).Replace(text)
	return regexp.MustCompile(`\A(?:` + text + `)\z`)
}

// whose gives whom a certificate is of, by one rule: one identity for each of its
// names that the rule is about.
func (r *ruling) whose(c *x509.Certificate) []Identity {
	var ids []Identity
	for _, name := range r.names(c) {
		found := r.certificate.FindStringSubmatch(name)
		if found == nil {
			continue
		}
		id := Identity{Name: name, rule: r}
		for i, capture := range r.certificate.SubexpNames() {
			switch capture {
			case "namespace":
				id.Namespace = found[i]
			case "node":
				id.Node = found[i]
			}
		}
		ids = append(ids, id)
	}
	return ids
}

// names are the names of a certificate that a rule looks at. A SPIFFE certificate has
// one URI.
func (r *ruling) names(c *x509.Certificate) []string {
	var names []string
	switch {
	case r.dns:
		for _, name := range c.DNSNames {
			names = append(names, strings.ToLower(name))
		}
	case r.spiffe && len(c.URIs) != 1:
	default:
		for _, u := range c.URIs {
			if plain(u) {
				names = append(names, u.String())
			}
		}
	}
	return names
}

// plain tells whether a URI is nothing but scheme, host and path, so that its parts
// are what stands between its slashes.
func plain(u *url.URL) bool {
	return u.User == nil && u.RawQuery == "" && !u.ForceQuery && u.Fragment == "" && u.RawPath == "" && u.Opaque == ""
}

// covers tells whether somebody may claim to be a node, whatever its labels.
func (id *Identity) covers(n chandler.Node) bool {
	if id.Node != "" && id.Node != n.Name {
		return false
	}
	r := id.rule
	if r == nil {
		return id.Namespace == n.Namespace
	}
	return (id.Namespace == "" || id.Namespace == n.Namespace) &&
		(r.namespace == nil || r.namespace.MatchString(n.Namespace)) && (r.node == nil || r.node.MatchString(n.Name))
}

// allows tells whether a rule allows a label.
func (r *ruling) allows(key, value string) bool {
	return slices.ContainsFunc(r.labels, func(a allowed) bool {
		return a.key.MatchString(key) && slices.ContainsFunc(a.values, func(v *regexp.Regexp) bool { return v.MatchString(value) })
	})
}

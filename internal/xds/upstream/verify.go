package upstream

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"chandler.dev/chandler"
)

// rules are what a control plane's certificate must be, as Envoy judges it: of an
// authority, and with one of the names asked for. The name that is dialled plays no
// part unless a rule says so. Without rules any certificate will do.
type rules struct {
	roots     *x509.CertPool // nil: any authority
	untrusted bool           // one of no authority will do, too
	names     []nameMatcher  // one of them, if there are any
	hosts     []string       // likewise, of those that the connection is for
	hostname  string         // as browsers judge it
	hashes    [][]byte       // of the certificate, or
	keys      [][]byte       // of its key; one of either
}

// verify judges a chain, the server's own certificate first.
func (r *rules) verify(chain []*x509.Certificate, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("the control plane shows no certificate")
	}
	leaf := chain[0]
	if r.roots != nil && !r.untrusted {
		others := x509.NewCertPool()
		for _, c := range chain[1:] {
			others.AddCert(c)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: r.roots, Intermediates: others, CurrentTime: now}); err != nil {
			return fmt.Errorf("the control plane's certificate is not trusted: %w", err)
		}
	}
	if r.hostname != "" {
		if err := leaf.VerifyHostname(r.hostname); err != nil {
			return fmt.Errorf("the control plane's certificate is for somebody else: %w", err)
		}
	}
	has := func(m nameMatcher) bool { return m.match(leaf) }
	if len(r.names) > 0 && !slices.ContainsFunc(r.names, has) {
		return fmt.Errorf("the control plane's certificate is for %s, and none of that is what the bootstrap asks for", namesOf(leaf))
	}
	if len(r.hosts) > 0 && !slices.ContainsFunc(r.hosts, func(host string) bool { return isFor(leaf, host) }) {
		return fmt.Errorf("the control plane's certificate is for %s, and not for %s", namesOf(leaf), chandler.Quote(r.hosts[0]))
	}
	if len(r.hashes)+len(r.keys) > 0 && !contains(r.hashes, leaf.Raw) && !contains(r.keys, leaf.RawSubjectPublicKeyInfo) {
		return errors.New("the control plane's certificate has none of the hashes that the bootstrap names")
	}
	return nil
}

func contains(hashes [][]byte, content []byte) bool {
	sum := sha256.Sum256(content)
	return slices.ContainsFunc(hashes, func(h []byte) bool { return string(h) == string(sum[:]) })
}

// nameMatcher asks for one of a certificate's names.
type nameMatcher struct {
	kind  tlsv3.SubjectAltNameMatcher_SanType
	exact string // of DNS, where the certificate's may have a wildcard
	test  func(string) bool
}

func (m nameMatcher) match(c *x509.Certificate) bool {
	test := m.test
	if m.exact != "" {
		test = func(name string) bool { return covers(name, m.exact) }
	}
	return slices.ContainsFunc(namesOfKind(c, m.kind), test)
}

// namesOfKind are the subject alternative names of a certificate.
func namesOfKind(c *x509.Certificate, kind tlsv3.SubjectAltNameMatcher_SanType) []string {
	var names []string
	switch kind {
	case tlsv3.SubjectAltNameMatcher_DNS:
		return c.DNSNames
	case tlsv3.SubjectAltNameMatcher_EMAIL:
		return c.EmailAddresses
	case tlsv3.SubjectAltNameMatcher_URI:
		for _, u := range c.URIs {
			names = append(names, u.String())
		}
	case tlsv3.SubjectAltNameMatcher_IP_ADDRESS:
		for _, ip := range c.IPAddresses {
			names = append(names, ip.String())
		}
	}
	return names
}

// nameKinds are those that a matcher without a kind is for.
var nameKinds = []tlsv3.SubjectAltNameMatcher_SanType{
	tlsv3.SubjectAltNameMatcher_DNS, tlsv3.SubjectAltNameMatcher_URI, tlsv3.SubjectAltNameMatcher_EMAIL, tlsv3.SubjectAltNameMatcher_IP_ADDRESS,
}

// namesOf tells a person what a certificate is for.
func namesOf(c *x509.Certificate) string {
	var all []string
	for _, kind := range nameKinds {
		all = append(all, namesOfKind(c, kind)...)
	}
	if len(all) == 0 {
		return "nobody by name"
	}
	return chandler.Quote(strings.Join(all, ", "))
}

// isFor tells whether a certificate has a name for the host.
func isFor(c *x509.Certificate, host string) bool {
	return slices.ContainsFunc(c.DNSNames, func(name string) bool { return covers(name, host) }) ||
		slices.Contains(namesOfKind(c, tlsv3.SubjectAltNameMatcher_URI), host) ||
		slices.Contains(namesOfKind(c, tlsv3.SubjectAltNameMatcher_IP_ADDRESS), host)
}

// covers tells whether a DNS name of a certificate is for the host; its first label may
// be a wildcard.
func covers(name, host string) bool {
	if strings.EqualFold(name, host) {
		return true
	}
	domain, wild := strings.CutPrefix(name, "*.")
	first, rest, below := strings.Cut(host, ".")
	return wild && below && first != "" && domain != "" && strings.EqualFold(domain, rest)
}

// readRules reads a validation context, but for its authorities. Errors have the path of the field in it.
func readRules(c *tlsv3.CertificateValidationContext, path string) (*rules, error) {
	if err := only(c, path, "trusted_ca", "system_root_certs", "watched_directory", "verify_certificate_spki", "verify_certificate_hash",
		"match_typed_subject_alt_names", "match_subject_alt_names", "trust_chain_verification", "suppress_client_ca_list"); err != nil {
		return nil, err
	}
	r := &rules{untrusted: c.GetTrustChainVerification() == tlsv3.CertificateValidationContext_ACCEPT_UNTRUSTED}
	if err := checkData(c.GetTrustedCa(), path+".trusted_ca"); err != nil {
		return nil, err
	}
	for i, m := range c.GetMatchTypedSubjectAltNames() {
		path := fmt.Sprintf("%s.match_typed_subject_alt_names[%d]", path, i)
		if !slices.Contains(nameKinds, m.GetSanType()) {
			return nil, problem(path+".san_type", "use DNS, URI, EMAIL or IP_ADDRESS", "the agent cannot look at names of this type")
		}
		if err := r.name(m.GetMatcher(), path+".matcher", m.GetSanType()); err != nil {
			return nil, err
		}
	}
	//lint:ignore SA1019 Bootstraps still have it.
	for i, m := range c.GetMatchSubjectAltNames() {
		if err := r.name(m, fmt.Sprintf("%s.match_subject_alt_names[%d]", path, i), nameKinds...); err != nil {
			return nil, err
		}
	}
	var err error
	for i, text := range c.GetVerifyCertificateHash() {
		var hash []byte
		if hash, err = hex.DecodeString(strings.ReplaceAll(text, ":", "")); err != nil || len(hash) != sha256.Size {
			return nil, problem(fmt.Sprintf("%s.verify_certificate_hash[%d]", path, i), "write SHA-256 in hexadecimal", "%s is no hash", chandler.Quote(text))
		}
		r.hashes = append(r.hashes, hash)
	}
	for i, text := range c.GetVerifyCertificateSpki() {
		var hash []byte
		if hash, err = base64.StdEncoding.DecodeString(text); err != nil || len(hash) != sha256.Size {
			return nil, problem(fmt.Sprintf("%s.verify_certificate_spki[%d]", path, i), "write SHA-256 in base64", "%s is no hash", chandler.Quote(text))
		}
		r.keys = append(r.keys, hash)
	}
	return r, nil
}

// noAuthority is what is wrong with rules that trust any authority and go by names.
func noAuthority(path string) error {
	return problem(path, "add trusted_ca", "names in a certificate say nothing without an authority that is trusted")
}

func (r *rules) name(m *matcherv3.StringMatcher, path string, kinds ...tlsv3.SubjectAltNameMatcher_SanType) error {
	test, err := stringTest(m, path)
	if err != nil {
		return err
	}
	for _, kind := range kinds {
		match := nameMatcher{kind: kind, test: test}
		if kind == tlsv3.SubjectAltNameMatcher_DNS {
			match.exact = m.GetExact()
		}
		r.names = append(r.names, match)
	}
	return nil
}

// stringTest is what a matcher of texts says.
func stringTest(m *matcherv3.StringMatcher, path string) (func(string) bool, error) {
	fold := func(s string) string { return s }
	if m.GetIgnoreCase() {
		fold = strings.ToLower
	}
	compare := func(by func(s, part string) bool, part string) func(string) bool {
		return func(s string) bool { return by(fold(s), fold(part)) }
	}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return compare(func(s, part string) bool { return s == part }, p.Exact), nil
	case *matcherv3.StringMatcher_Prefix:
		return compare(strings.HasPrefix, p.Prefix), nil
	case *matcherv3.StringMatcher_Suffix:
		return compare(strings.HasSuffix, p.Suffix), nil
	case *matcherv3.StringMatcher_Contains:
		return compare(strings.Contains, p.Contains), nil
	case *matcherv3.StringMatcher_SafeRegex:
		whole, err := regexp.Compile(`\A(?:` + p.SafeRegex.GetRegex() + `)\z`)
		if err != nil {
			return nil, problem(path+".safe_regex.regex", "", "%s is no regular expression", chandler.Quote(p.SafeRegex.GetRegex()))
		}
		return whole.MatchString, nil
	}
	return nil, problem(path, "use exact, prefix, suffix, contains or safe_regex", "the agent does not know how to match a name by this")
}

// readPool reads authorities in PEM.
func readPool(text []byte) (*x509.CertPool, error) {
	pool, found := x509.NewCertPool(), false
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		pool.AddCert(c)
		found = true
	}
	if !found {
		return nil, errors.New("there is no certificate of an authority in it")
	}
	return pool, nil
}

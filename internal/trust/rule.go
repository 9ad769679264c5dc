package trust

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"regexp/syntax"
	"slices"
	"strings"

	"github.com/sigstore/sigstore-go/pkg/verify"

	"chandler.dev/chandler"
)

// Rule is one entry of `signatures:` in the operator's file: which modules it is
// about, and who must have signed them. It must be loaded before it is used.
type Rule struct {
	// Name is what messages call the rule.
	Name string `yaml:"name"`
	// Namespaces are those of plugins; * stands for any characters. None means all.
	Namespaces []string `yaml:"namespaces"`
	// Repositories are patterns of registry/repository, or of a URL of http, https
	// or file: * stands for any characters of one part, a part ** for any number of
	// parts. None means all modules, wherever they are from.
	Repositories []string `yaml:"repositories"`

	// Keys are public keys: PEM, or names of files of PEM.
	Keys []string `yaml:"keys"`
	// Identities are those that an authority of TrustedRoot certifies (keyless).
	Identities []Identity `yaml:"identities"`
	// Threshold is how many different keys and identities must have signed; 0 is 1.
	Threshold int `yaml:"threshold"`
	// SignedAs are further repositories (patterns as above) that a signature may
	// name, for modules that were signed before they were copied.
	SignedAs []string `yaml:"signedAs"`

	// TrustedRoot is a trusted_root.json of Sigstore, or the name of a file of it.
	// Nothing but what is in it is trusted, and no network is asked.
	TrustedRoot string `yaml:"trustedRoot"`
	// LogEntries is how many transparency logs of the root must hold a signature.
	// Unset is 1 for identities where the root has logs, and 0 for keys.
	LogEntries *int `yaml:"logEntries"`
	// Timestamps is how many timestamping authorities of the root must have dated
	// a signature. Unset is 1 for identities where the root has no logs, else 0.
	Timestamps *int `yaml:"timestamps"`
	// CertificateLogs is how many certificate logs of the root must hold an
	// identity's certificate. Unset is 1 where the root has such logs.
	CertificateLogs *int `yaml:"certificateLogs"`

	demand *demand // set by Load
}

// Identity is whom a certificate was issued to. Of each pair one is given; a
// pattern is a regular expression (RE2) that is anchored at both ends.
type Identity struct {
	// Issuer is the URL of the OpenID provider.
	Issuer        string `yaml:"issuer"`
	IssuerPattern string `yaml:"issuerPattern"` // the same as a pattern
	// Subject is the certificate's subject alternative name: a mail address, or the
	// URL of a workflow.
	Subject        string `yaml:"subject"`
	SubjectPattern string `yaml:"subjectPattern"` // the same as a pattern
}

// Bounds of a rule.
const (
	maxEntries   = 64
	maxPattern   = 1024
	maxThreshold = 16
)

// complaints gathers what is wrong with a rule.
type complaints struct {
	rule  *Rule
	found []chandler.Problem
}

func (c *complaints) add(field, hint, format string, args ...any) {
	c.found = append(c.found, *chandler.Problemf(chandler.CodePolicy, field, hint, c.rule.title()+": "+format, args...))
}

// title is what messages call the rule.
func (r *Rule) title() string {
	if r.Name == verificationKey {
		return verificationKey
	}
	return "signature rule " + chandler.Quote(r.Name)
}

// Check tells what is wrong with the rule as it is written; Load tells more.
// Fields are relative to the rule.
func (r *Rule) Check() []chandler.Problem {
	c := &complaints{rule: r}
	if r.Name == "" || r.Name == verificationKey {
		c.add("name", "write a name, by which messages call the rule", "name %s is none", chandler.Quote(r.Name))
	}
	for i, ns := range r.Namespaces {
		if ns == "" || len(ns) > maxPattern {
			c.add(fmt.Sprintf("namespaces[%d]", i), "write a namespace; * stands for any characters", "namespace %s is none", chandler.Quote(ns))
		}
	}
	c.patterns("repositories", r.Repositories)
	c.patterns("signedAs", r.SignedAs)
	if len(r.Keys)+len(r.Identities) == 0 {
		c.add("", "give keys or identities", "nobody is named whose signature counts")
	}
	if n := len(r.Keys) + len(r.Identities) + len(r.Namespaces); n > 3*maxEntries {
		c.add("", "write several rules", "it has %d entries, limit %d", n, 3*maxEntries)
	}
	for i, key := range r.Keys {
		if isPEM(key) {
			c.key(i, key)
		} else if key == "" {
			c.add(fmt.Sprintf("keys[%d]", i), "write PEM, or the name of a file", "authority %d has no usable key: it is empty", i)
		}
	}
	for i := range r.Identities {
		c.identity(fmt.Sprintf("identities[%d]", i), &r.Identities[i])
	}
	if len(r.Identities) > 0 && r.TrustedRoot == "" {
		c.add("trustedRoot", "name a file trusted_root.json", "identities need a trusted root, which says whose certificates count")
	}
	c.thresholds()
	return c.found
}

func isPEM(text string) bool { return strings.Contains(text, "-----BEGIN") }

func (c *complaints) key(i int, pem string) {
	if _, wrong := chandler.ParsePublicKeys(pem); wrong != "" {
		c.add(fmt.Sprintf("keys[%d]", i), "give PEM blocks of type PUBLIC KEY", "authority %d has no usable key: it %s", i, wrong)
	}
}

func (c *complaints) patterns(field string, patterns []string) {
	if len(patterns) > maxEntries {
		c.add(field, "write several rules", "%s has %d entries, limit %d", field, len(patterns), maxEntries)
	}
	for i, p := range patterns {
		if p == "" || len(p) > maxPattern || strings.ContainsAny(p, " @") {
			c.add(fmt.Sprintf("%s[%d]", field, i), "write registry/repository; * stands for one part, ** for any number", "pattern %s is none of a repository", chandler.Quote(p))
		} else if !chandler.WholeParts(p) {
			c.add(fmt.Sprintf("%s[%d]", field, i), "write ** between slashes, three times at most", "pattern %s has ** where it cannot be", chandler.Quote(p))
		}
	}
}

func (c *complaints) identity(at string, id *Identity) {
	c.oneOf(at+".issuer", "issuer", id.Issuer, id.IssuerPattern)
	c.oneOf(at+".subject", "subject", id.Subject, id.SubjectPattern)
}

// oneOf wants a value or a pattern. A pattern that is found anywhere in a name
// would let everybody in who can choose a part of his own.
func (c *complaints) oneOf(at, what, exact, pattern string) {
	if (exact == "") == (pattern == "") {
		c.add(at, "write "+what+" or "+what+"Pattern", "one of %s and %sPattern is needed", what, what)
		return
	}
	if pattern == "" {
		return
	}
	tree, err := syntax.Parse(pattern, syntax.Perl)
	switch {
	case err != nil || len(pattern) > maxPattern:
		c.add(at+"Pattern", "write a regular expression (RE2)", "pattern %s is no regular expression", chandler.Quote(pattern))
	case !anchored(tree, syntax.OpBeginText, false) || !anchored(tree, syntax.OpEndText, true):
		c.add(at+"Pattern", "write ^(?:...)$", "pattern %s is not anchored at both ends", chandler.Quote(pattern))
	}
}

// anchored tells whether all that re matches begins, or ends, with the anchor.
func anchored(re *syntax.Regexp, anchor syntax.Op, atEnd bool) bool {
	switch re.Op {
	case anchor:
		return true
	case syntax.OpCapture:
		return anchored(re.Sub[0], anchor, atEnd)
	case syntax.OpConcat:
		i := 0
		if atEnd {
			i = len(re.Sub) - 1
		}
		return anchored(re.Sub[i], anchor, atEnd)
	case syntax.OpAlternate:
		for _, sub := range re.Sub {
			if !anchored(sub, anchor, atEnd) {
				return false
			}
		}
		return true
	}
	return false
}

func (c *complaints) thresholds() {
	r := c.rule
	if r.Threshold < 0 || r.Threshold > maxThreshold {
		c.add("threshold", "write how many must have signed", "threshold %d is out of range 1-%d", r.Threshold, maxThreshold)
	}
	for _, n := range []struct {
		field string
		value *int
	}{{"logEntries", r.LogEntries}, {"timestamps", r.Timestamps}, {"certificateLogs", r.CertificateLogs}} {
		switch {
		case n.value == nil:
		case *n.value < 0 || *n.value > maxThreshold:
			c.add(n.field, "write how many are needed", "%s %d is out of range 0-%d", n.field, *n.value, maxThreshold)
		case *n.value > 0 && r.TrustedRoot == "":
			c.add("trustedRoot", "name a file trusted_root.json", "%s needs a trusted root", n.field)
		}
	}
}

// Applies tells whether the rule is about a plugin of namespace whose module is at
// ref.
func (r *Rule) Applies(namespace string, ref chandler.Reference) bool {
	return (len(r.Namespaces) == 0 || slices.ContainsFunc(r.Namespaces, func(p string) bool { return chandler.Glob(p, namespace) })) &&
		(len(r.Repositories) == 0 || matches(r.Repositories, ref))
}

// matches tells whether one of the patterns is that of where a reference leads.
func matches(patterns []string, ref chandler.Reference) bool {
	origin := ref.Origin()
	return slices.ContainsFunc(patterns, func(p string) bool { return chandler.MatchOrigin(p, origin) })
}

// Hash is over what the rule demands, with what is in the files that it names. It
// is empty for a rule that is not loaded.
func (r *Rule) Hash() string {
	if r.demand == nil {
		return ""
	}
	return r.demand.hash
}

// hash makes one of the parts of a rule.
func hash(parts ...any) string {
	b, err := json.Marshal(parts)
	if err != nil { // plain types only
		panic(fmt.Sprintf("trust: marshal: %v", err))
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// matcher gives the identity as certificates are compared with it. It has been
// checked.
func (id *Identity) matcher() (verify.CertificateIdentity, error) {
	return verify.NewShortCertificateIdentity(id.Issuer, id.IssuerPattern, id.Subject, id.SubjectPattern)
}

// String describes the identity, for people.
func (id *Identity) String() string {
	or := func(exact, pattern string) string {
		if exact != "" {
			return chandler.Printable(exact, chandler.MaxQuoted)
		}
		return chandler.Printable(pattern, chandler.MaxQuoted)
	}
	return or(id.Subject, id.SubjectPattern) + " (issuer " + or(id.Issuer, id.IssuerPattern) + ")"
}

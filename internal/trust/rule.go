package trust

import (
	"chandler.dev/chandler"
)

// Rule is one entry of `signatures:` in the operator's file: which modules it is
// about, and who must have signed them. It is to be checked before it is used.
type Rule struct {
	// Name is what messages call the rule.
	Name string `yaml:"name"`
	// Namespaces are those of plugins; * stands for any characters. None means all.
	Namespaces []string `yaml:"namespaces,omitempty"`
	// Repositories are patterns of host/repository, for http and https of
	// host/path: * stands for any characters but a slash, ** for any. None means
	// all modules, wherever they are from.
	Repositories []string `yaml:"repositories,omitempty"`

	// Keys are public keys: PEM, or names of files of PEM.
	Keys []string `yaml:"keys,omitempty"`
	// Identities are those that an authority of TrustedRoot certifies (keyless).
	Identities []Identity `yaml:"identities,omitempty"`
	// Threshold is how many of the keys and identities must have signed; 0 is 1.
	Threshold int `yaml:"threshold,omitempty"`
	// SignedAs are further repositories (patterns as in Repositories) that a
	// signature may name, for modules that were signed before they were copied.
	SignedAs []string `yaml:"signedAs,omitempty"`

	// TrustedRoot is the name of a file trusted_root.json of Sigstore. Nothing
	// but what is in it is trusted, and no network is asked.
	TrustedRoot string `yaml:"trustedRoot,omitempty"`
	// LogEntries is how many transparency logs of the root must hold a signature.
	// Unset is 1 for identities where the root has logs, and 0 for keys.
	LogEntries *int `yaml:"logEntries,omitempty"`
	// Timestamps is how many timestamping authorities of the root must have dated
	// a signature. Unset is 1 for identities where the root has no logs, else 0.
	Timestamps *int `yaml:"timestamps,omitempty"`
	// CertificateLogs is how many certificate logs of the root must hold the
	// certificate of an identity. Unset is 1 where the root has such logs.
	CertificateLogs *int `yaml:"certificateLogs,omitempty"`
}

// Identity is whom a certificate was issued to. Of each pair one is given; a
// pattern is a regular expression (RE2) anchored at both ends.
type Identity struct {
	// Issuer is the URL of the OpenID provider.
	Issuer        string `yaml:"issuer,omitempty"`
	IssuerPattern string `yaml:"issuerPattern,omitempty"`
	// Subject is the certificate's subject alternative name: an address, or the
	// URL of a workflow.
	Subject        string `yaml:"subject,omitempty"`
	SubjectPattern string `yaml:"subjectPattern,omitempty"`
}

// Check tells what is wrong with the rule; fields are relative to it. The files
// that it names are read with read, and what is in them from then on belongs to
// the rule: changed files need a rule read anew.
func (r *Rule) Check(read func(name string) ([]byte, error)) []chandler.Problem {
	return []chandler.Problem{*chandler.Problemf(chandler.CodePolicy, "", "wait for the next commit", "signatures are not verified yet")}
}

// Applies tells whether the rule is about a plugin of namespace whose module is at
// ref.
func (r *Rule) Applies(namespace string, ref chandler.Reference) bool { return true }

// Hash is over what the rule demands, keys and trusted root included: equal for
// rules that judge alike. The rule must have been checked.
func (r *Rule) Hash() string { return "" }

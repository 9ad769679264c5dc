package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"

	"chandler.dev/chandler"
)

// verificationKey is the name of the rule that a plugin's own field makes.
const verificationKey = "verificationKey"

const (
	maxKeyFile  = 64 << 10
	maxRootFile = 4 << 20
)

// demand is a rule with what is in its files: what is needed to judge.
type demand struct {
	hash       string
	keys       []publicKey
	identities verify.CertificateIdentities
	wanted     []string // who, for people
	threshold  int
	root       *root.TrustedRoot // nil: none is named

	// How many logs and timestamps of the root are needed, of signatures by keys
	// and by certificates.
	keyLogs, keyTimes           int
	identityLogs, identityTimes int
	certificateLogs             int
}

// publicKey is one key with the ways in which cosign has signed with its kind.
type publicKey struct {
	name string
	ways []signature.Verifier
}

// Load reads the files that the rule names, with read, and tells what is wrong
// with it, Check's problems included. What was in the files belongs to the rule
// from then on: changed files need Load again. A rule with problems trusts nobody.
func (r *Rule) Load(read func(name string) ([]byte, error)) []chandler.Problem {
	r.demand = nil
	c := &complaints{rule: r, found: r.Check()}
	d := &demand{threshold: max(r.Threshold, 1)}
	l := loader{complaints: c, read: read, demand: d}
	for i, key := range r.Keys {
		l.key(i, key)
	}
	l.trustedRoot()
	if len(c.found) > 0 {
		return c.found
	}
	for i := range r.Identities {
		id := &r.Identities[i]
		m, err := id.matcher()
		if err != nil {
			c.add(fmt.Sprintf("identities[%d]", i), "correct it", "the identity cannot be used")
			return c.found
		}
		d.identities = append(d.identities, m)
		d.wanted = append(d.wanted, id.String())
	}
	l.needs()
	l.seal()
	return c.found
}

// seal makes the demand the rule's, if nothing is wrong.
func (l *loader) seal() {
	if len(l.found) > 0 {
		return
	}
	r, d := l.rule, l.demand
	d.hash = hash(l.content, r.Identities, d.threshold, r.SignedAs, d.keyLogs, d.keyTimes, d.identityLogs, d.identityTimes, d.certificateLogs)
	r.demand = d
}

// loadKey loads the rule that a plugin's own field makes.
func (r *Rule) loadKey() []chandler.Problem {
	c := &complaints{rule: r}
	l := loader{complaints: c, demand: &demand{threshold: 1}}
	if c.key(0, r.Keys[0]); len(c.found) > 0 {
		return c.found
	}
	l.key(0, r.Keys[0])
	l.seal()
	return c.found
}

// loader fills a demand from files.
type loader struct {
	*complaints
	read   func(name string) ([]byte, error)
	demand *demand

	content []string // digests of all that was read
}

// file gives the content of a file that the rule names, or tells what is wrong.
func (l *loader) file(field, name string, limit int) (string, bool) {
	b, err := l.read(name)
	switch {
	case err != nil:
		l.add(field, "name a file that can be read, from the folder of this one on", "file %s cannot be read", chandler.Quote(name))
		return "", false
	case len(b) > limit:
		l.add(field, "name another file", "file %s has %d bytes, limit %d", chandler.Quote(name), len(b), limit)
		return "", false
	}
	return string(b), true
}

func (l *loader) key(i int, text string) {
	if text == "" {
		return // told by Check
	}
	if !isPEM(text) {
		content, ok := l.file(fmt.Sprintf("keys[%d]", i), text, maxKeyFile)
		if !ok {
			return
		}
		if text = content; !isPEM(text) {
			text = "-" // what is wrong is that it is no PEM
		}
		l.complaints.key(i, text)
	}
	keys, wrong := chandler.ParsePublicKeys(text)
	if wrong != "" {
		return // told
	}
	for _, key := range keys {
		k, digest, err := newPublicKey(key)
		if err != nil {
			l.add(fmt.Sprintf("keys[%d]", i), "give another key", "authority %d has no usable key", i)
			return
		}
		if slices.Contains(l.content, digest) {
			continue // listed twice
		}
		l.content = append(l.content, digest)
		l.demand.keys = append(l.demand.keys, k)
		l.demand.wanted = append(l.demand.wanted, k.name)
	}
}

// newPublicKey gives a key ready for use, and its digest.
func newPublicKey(key crypto.PublicKey) (publicKey, string, error) {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return publicKey{}, "", err
	}
	sum := sha256.Sum256(der)
	k := publicKey{name: fmt.Sprintf("key sha256:%x", sum[:8])}
	hashes := []crypto.Hash{crypto.SHA256}
	switch key := key.(type) {
	case *ecdsa.PublicKey: // cosign 2 hashes with SHA-256, whatever the curve
		switch key.Curve.Params().BitSize {
		case 384:
			hashes = append(hashes, crypto.SHA384)
		case 521:
			hashes = append(hashes, crypto.SHA512)
		}
	case *rsa.PublicKey, ed25519.PublicKey:
	}
	for _, h := range hashes {
		v, err := signature.LoadVerifier(key, h)
		if err != nil {
			return publicKey{}, "", err
		}
		k.ways = append(k.ways, v)
	}
	return k, hex.EncodeToString(sum[:]), nil
}

func (l *loader) trustedRoot() {
	text := l.rule.TrustedRoot
	if text == "" {
		return
	}
	if !strings.HasPrefix(strings.TrimSpace(text), "{") {
		content, ok := l.file("trustedRoot", text, maxRootFile)
		if !ok {
			return
		}
		text = content
	}
	r, err := root.NewTrustedRootFromJSON([]byte(text))
	if err != nil {
		l.add("trustedRoot", "give a trusted_root.json of Sigstore", "the trusted root cannot be read: %s", chandler.Printable(err.Error(), 200))
		return
	}
	sum := sha256.Sum256([]byte(text))
	l.content = append(l.content, hex.EncodeToString(sum[:]))
	l.demand.root = r
}

// needs settles how many logs and timestamps are needed, and whether the root can
// give them.
func (l *loader) needs() {
	r, d := l.rule, l.demand
	given := func(n *int, otherwise int) int {
		if n == nil {
			return otherwise
		}
		return *n
	}
	d.keyLogs, d.keyTimes = given(r.LogEntries, 0), given(r.Timestamps, 0)
	if d.root == nil {
		return
	}
	logs, authorities, certificateLogs := len(d.root.RekorLogs()), len(d.root.TimestampingAuthorities()), len(d.root.CTLogs())
	without := 0
	if logs == 0 {
		without = 1
	}
	d.identityLogs, d.identityTimes = given(r.LogEntries, min(logs, 1)), given(r.Timestamps, without)
	d.certificateLogs = given(r.CertificateLogs, min(certificateLogs, 1))
	for _, n := range []struct {
		field, what string
		need, has   int
	}{
		{"logEntries", "transparency logs", max(d.keyLogs, d.identityLogs), logs},
		{"timestamps", "timestamping authorities", max(d.keyTimes, d.identityTimes), authorities},
		{"certificateLogs", "certificate logs", d.certificateLogs, certificateLogs},
	} {
		if n.need > n.has {
			l.add(n.field, "give another root, or a smaller number", "the trusted root has %d %s, needed are %d", n.has, n.what, n.need)
		}
	}
	if len(r.Identities) == 0 {
		return
	}
	if len(d.root.FulcioCertificateAuthorities()) == 0 {
		l.add("trustedRoot", "give another root", "the trusted root has no authority for the certificates of identities")
	}
	if d.identityLogs+d.identityTimes == 0 {
		l.add("timestamps", "ask for log entries or timestamps", "without either nobody knows whether a certificate was valid when it signed")
	}
}

// material is what signatures are held against, with one way of one key.
func (d *demand) material(way signature.Verifier) root.TrustedMaterial {
	all := root.TrustedMaterialCollection{}
	if d.root != nil {
		all = append(all, d.root)
	}
	if way == nil {
		return all
	}
	key := root.NewExpiringKey(way, time.Time{}, time.Time{})
	return append(all, root.NewTrustedPublicKeyMaterial(func(string) (root.TimeConstrainedVerifier, error) { return key, nil }))
}

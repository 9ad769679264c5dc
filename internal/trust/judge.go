package trust

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/sigstore/sigstore-go/pkg/verify"
	"github.com/sigstore/sigstore/pkg/signature"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
)

// objectionf says why a signature does not count. The code says how far it came.
func objectionf(code chandler.Code, format string, args ...any) *chandler.Problem {
	return chandler.Problemf(code, "", "", format, args...)
}

// subject is what must be signed.
type subject struct {
	ref      chandler.Reference
	artifact chandler.ArtifactDigest
}

// judge tells which of the signers that the rule names have signed the subject, or
// why there are not enough of them. One good signature among bad ones suffices: a
// registry lets others put theirs beside it.
func (r *Rule) judge(of subject, claims []*claim, unread []*chandler.Problem, listed int) ([]string, *chandler.Problem) {
	objections := slices.Clone(unread)
	var by []string
	for _, c := range claims {
		who, objection := r.count(of, c)
		if objection != nil {
			objections = append(objections, objection)
		} else if !slices.Contains(by, who) {
			by = append(by, who)
		}
	}
	slices.Sort(by)
	if len(by) >= r.demand.threshold {
		return by, nil
	}
	return nil, r.refuse(of, by, objections, listed)
}

// count tells who has signed, or why that does not count.
func (r *Rule) count(of subject, c *claim) (string, *chandler.Problem) {
	if !slices.Contains(c.digests, bare(of.artifact)) {
		of := "nothing"
		if len(c.digests) > 0 {
			of = chandler.Printable("sha256:"+c.digests[0], chandler.MaxQuoted)
		}
		return "", objectionf(chandler.CodeSigSubject, "%s is for %s", c.where, of)
	}
	if c.payload != nil && !r.isFor(of.ref, c.repository) {
		return "", objectionf(chandler.CodeSigSubject, "%s is for repository %s", c.where, chandler.Quote(c.repository))
	}
	d := r.demand
	var objection *chandler.Problem
	if c.byCertificate != nil && len(d.identities) > 0 {
		if objection = d.countIdentity(of, c); objection == nil {
			return describe(c), nil
		}
	}
	if c.byKey != nil && len(d.keys) > 0 {
		who, no := d.countKey(of, c)
		if no == nil {
			return who, nil
		}
		objection = further(objection, no)
	}
	if objection == nil {
		signer := "a key"
		if c.byCertificate != nil {
			signer = describe(c)
		}
		objection = objectionf(chandler.CodeSigIdentity, "%s is signed by %s", c.where, signer)
	}
	return "", objection
}

// isFor tells whether a signature that names a repository is for ref's.
func (r *Rule) isFor(ref chandler.Reference, named string) bool {
	is, p := chandler.ParseReference("oci://" + strings.TrimPrefix(named, "oci://"))
	if p != nil {
		return false
	}
	return is.Host == ref.Host && is.Repository == ref.Repository || matches(r.SignedAs, is)
}

// describe names the signer of a certificate.
func describe(c *claim) string {
	id := Identity{Issuer: c.signer.Issuer, Subject: c.signer.SubjectAlternativeName}
	return id.String()
}

// countKey tells which key made the signature.
func (d *demand) countKey(of subject, c *claim) (string, *chandler.Problem) {
	for _, key := range d.keys {
		for _, way := range key.ways {
			if d.verify(of, c, way, verify.WithNoObserverTimestamps()) != nil {
				continue
			}
			if d.keyLogs+d.keyTimes > 0 {
				if p := d.proven(of, c, way, d.keyOptions()); p != nil {
					return "", p
				}
			}
			return key.name, nil
		}
	}
	return "", objectionf(chandler.CodeSigIdentity, "%s verifies with no key that is wanted", c.where)
}

func (d *demand) keyOptions() []verify.VerifierOption {
	var options []verify.VerifierOption
	if d.keyLogs > 0 {
		options = append(options, verify.WithTransparencyLog(d.keyLogs))
	}
	if d.keyTimes > 0 {
		return append(options, verify.WithSignedTimestamps(d.keyTimes))
	}
	return append(options, verify.WithNoObserverTimestamps())
}

// countIdentity tells what keeps the signature of a certificate from counting.
func (d *demand) countIdentity(of subject, c *claim) *chandler.Problem {
	if _, err := d.identities.Verify(c.signer); err != nil {
		return objectionf(chandler.CodeSigIdentity, "%s is signed by %s", c.where, describe(c))
	}
	// When a certificate of minutes was used, a log or an authority must say.
	options := []verify.VerifierOption{verify.WithObserverTimestamps(1)}
	if d.identityTimes > 0 {
		options = []verify.VerifierOption{verify.WithSignedTimestamps(d.identityTimes)}
	}
	if d.identityLogs > 0 {
		options = append(options, verify.WithTransparencyLog(d.identityLogs))
	}
	if d.certificateLogs > 0 {
		options = append(options, verify.WithSignedCertificateTimestamps(d.certificateLogs))
	}
	return d.proven(of, c, nil, options)
}

// proven verifies a signature with its log entries and timestamps. The latter come
// first and by themselves, so that a message can tell what is wrong.
func (d *demand) proven(of subject, c *claim, way signature.Verifier, options []verify.VerifierOption) *chandler.Problem {
	v, err := verify.NewVerifier(d.material(way), options...)
	if err != nil {
		return objectionf(chandler.CodePolicy, "the rule's numbers of logs and timestamps cannot be used")
	}
	entity := c.byKey
	if way == nil {
		entity = c.byCertificate
	}
	logged, err := v.VerifyTransparencyLogInclusion(entity)
	if err != nil {
		return objectionf(chandler.CodeSigLog, "%s: its log entry does not hold for it: %s", c.where, chandler.Printable(err.Error(), 200))
	}
	if d.demandsTime(way) {
		if _, err := v.VerifyObserverTimestamps(entity, logged); err != nil {
			return objectionf(chandler.CodeSigLog, "%s: its time is not proven: %s", c.where, chandler.Printable(err.Error(), 200))
		}
	}
	if err := d.verify(of, c, way, options...); err != nil {
		return objectionf(chandler.CodeSigIdentity, "%s does not verify: %s", c.where, chandler.Printable(err.Error(), 200))
	}
	return nil
}

func (d *demand) demandsTime(way signature.Verifier) bool { return way == nil || d.keyTimes > 0 }

// verify is all of a signature: log, time, certificate or key, and the signature
// itself over what it must be over.
func (d *demand) verify(of subject, c *claim, way signature.Verifier, options ...verify.VerifierOption) error {
	v, err := verify.NewVerifier(d.material(way), options...)
	if err != nil {
		return err
	}
	if way != nil {
		_, err = v.Verify(c.byKey, verify.NewPolicy(c.about(of.artifact), verify.WithKey()))
		return err
	}
	policy := []verify.PolicyOption{}
	for _, id := range d.identities {
		policy = append(policy, verify.WithCertificateIdentity(id))
	}
	_, err = v.Verify(c.byCertificate, verify.NewPolicy(c.about(of.artifact), policy...))
	return err
}

// rank orders codes by how far a signature came: what is said is why the one that
// came furthest does not count.
func rank(code chandler.Code) int {
	return slices.Index([]chandler.Code{
		chandler.CodeSigParse, chandler.CodeSigLimit, chandler.CodeSigSubject, chandler.CodeSigIdentity, chandler.CodeSigLog, chandler.CodePolicy,
	}, code)
}

func further(a, b *chandler.Problem) *chandler.Problem {
	if a == nil || b != nil && rank(b.Code) > rank(a.Code) {
		return b
	}
	return a
}

// maxReasons is how many signatures a message explains.
const maxReasons = 3

// refuse says what is wanted and why it is not there.
func (r *Rule) refuse(of subject, by []string, objections []*chandler.Problem, listed int) *chandler.Problem {
	wants := r.title() + " wants " + r.wants()
	if len(by) > 0 {
		wants += "; there is " + enumerate(by, "and")
	}
	if len(objections) == 0 && listed == 0 {
		return chandler.Problemf(chandler.CodeSigMissing, "", "sign "+string(of.artifact)+", with cosign sign", "%s; %s has no signature", wants, of.artifact)
	}
	code := chandler.CodeSigMissing // the threshold
	slices.SortStableFunc(objections, func(a, b *chandler.Problem) int { return cmp.Compare(rank(b.Code), rank(a.Code)) })
	var reasons []string
	for i, o := range objections {
		if i == maxReasons {
			reasons = append(reasons, fmt.Sprintf("%d more do not count", len(objections)-maxReasons))
			break
		}
		reasons = append(reasons, o.Message)
	}
	if len(objections) > 0 {
		code = objections[0].Code
	}
	hint := "sign " + string(of.artifact) + " with what is wanted"
	if listed > fetch.MaxSignatures {
		code, hint = chandler.CodeSigLimit, "remove signatures that are not needed"
		reasons = append([]string{fmt.Sprintf("%d signatures, %d looked at", listed, fetch.MaxSignatures)}, reasons...)
	}
	if len(reasons) == 0 {
		return chandler.Problemf(code, "", hint, "%s; the artifact is %s", wants, of.artifact)
	}
	return chandler.Problemf(code, "", hint, "%s; the artifact is %s; %s", wants, of.artifact, strings.Join(reasons, "; "))
}

// wants says whose signature is wanted.
func (r *Rule) wants() string {
	who := enumerate(r.demand.wanted, "or")
	if r.demand.threshold > 1 {
		return fmt.Sprintf("signatures of %d: %s", r.demand.threshold, who)
	}
	return "a signature of " + who
}

// enumerate writes up to four words.
func enumerate(words []string, last string) string {
	const enough = 4
	if len(words) > enough {
		words = append(slices.Clone(words[:enough-1]), fmt.Sprintf("%d others", len(words)-enough+1))
	}
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	n := len(words) - 1
	return strings.Join(words[:n], ", ") + " " + last + " " + words[n]
}

// Package trust tells who signed a module: with a key that the plugin or the
// operator names, or with a certificate of an authority of the operator's trusted
// root. It reads cosign's signatures in both places where they lie and asks
// nobody but the registry for them; what is verified once holds without it.
//
// It decides nothing else about modules, and does not sign.
package trust

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
)

// Request says what must be signed, and by whom.
type Request struct {
	Plugin    chandler.Key
	Reference chandler.Reference
	// Artifact is the manifest or index that the reference names: the digest that
	// must be signed. It is empty for modules that are not from a registry.
	Artifact chandler.ArtifactDigest
	// Credentials are those of the plugin's pull secret; nil asks the operator's
	// keychain.
	Credentials *fetch.Credentials
	// VerificationKey is the plugin's own, PEM; empty is none. One of its keys
	// must have signed.
	VerificationKey string
	// Rules are those that apply, loaded; all must hold.
	Rules []*Rule
}

// Evidence is why a module is trusted.
type Evidence struct {
	// By names who signed it, for people, sorted; empty if nothing was demanded.
	By []string
}

// Registry has the signatures of artifacts; *fetch.Client is one.
type Registry interface {
	Signatures(ctx context.Context, ref chandler.Reference, artifact chandler.ArtifactDigest, own *fetch.Credentials) (fetch.Signatures, error)
}

// Config is what a Verifier works with.
type Config struct {
	Registry   Registry
	Registerer prometheus.Registerer
}

// Bounds of what is remembered. What is forgotten costs a look into the registry.
const (
	maxVerdicts  = 4096
	maxKnown     = 512
	maxKnownSize = 64 << 10 // bytes of signatures of one artifact
)

// Verifier verifies signatures and remembers what it verified. It may be used by
// several goroutines.
type Verifier struct {
	registry Registry
	checks   *prometheus.CounterVec

	mu sync.Mutex
	// verdicts are by what was asked: an artifact, a repository and what rules demand.
	verdicts *recent[string, Evidence]
	// known are signatures that counted, for rules that change while the registry
	// is away.
	known *recent[subject, fetch.Signatures]
}

// New gives a Verifier; nothing is started.
func New(cfg Config) *Verifier {
	return &Verifier{
		registry: cfg.Registry,
		checks: promauto.With(cfg.Registerer).NewCounterVec(prometheus.CounterOpts{
			Name: "chandler_signature_checks_total", Help: "Questions whether a module is signed as demanded, by what came of them.",
		}, []string{"result"}),
		verdicts: newRecent[string, Evidence](maxVerdicts), known: newRecent[subject, fetch.Signatures](maxKnown),
	}
}

// Verify finds out whether a module is signed as demanded. The error is a
// *chandler.Problem when it is not, and a *fetch.Error when that cannot be told
// because of the registry; that may be temporary.
func (v *Verifier) Verify(ctx context.Context, req Request) (Evidence, error) {
	rules, problem := demands(req)
	if problem != nil {
		return v.refused(problem)
	}
	if len(rules) == 0 {
		return Evidence{}, nil
	}
	if req.Reference.Scheme != chandler.SchemeOCI {
		return v.refused(chandler.Problemf(chandler.CodeSigMissing, "", "push the module to a registry and sign it there",
			"%s wants %s, and nothing at %s urls can be signed", rules[0].title(), rules[0].wants(), req.Reference.Scheme))
	}
	if _, ok := chandler.ParseDigest[chandler.ArtifactDigest](string(req.Artifact)); !ok {
		return v.refused(chandler.Problemf(chandler.CodeSigMissing, "", "resolve it first", "%s wants %s of a module without digest", rules[0].title(), rules[0].wants()))
	}
	of := newSubject(req)
	question := question(of, rules)
	if said, ok := v.recall(question); ok {
		v.checks.WithLabelValues("known").Inc()
		return said, nil
	}
	found, err := v.registry.Signatures(ctx, req.Reference, req.Artifact, req.Credentials)
	if err != nil {
		return v.judgeKnown(of, rules, question, err)
	}
	said, problem := judge(of, rules, found)
	if problem != nil {
		return v.refused(problem)
	}
	v.remember(of, question, said, found)
	v.checks.WithLabelValues("good").Inc()
	return said, nil
}

func (v *Verifier) refused(p *chandler.Problem) (Evidence, error) {
	v.checks.WithLabelValues("refused").Inc()
	return Evidence{}, p
}

// demands gives the rules that must hold: the request's and that of its key.
func demands(req Request) ([]*Rule, *chandler.Problem) {
	rules := slices.Clone(req.Rules)
	for _, r := range rules {
		if r.demand == nil {
			return nil, chandler.Problemf(chandler.CodePolicy, "", "correct the rule", "%s cannot be used, so nothing is trusted by it", r.title())
		}
	}
	if req.VerificationKey == "" {
		return rules, nil
	}
	own := &Rule{Name: verificationKey, Keys: []string{req.VerificationKey}}
	if problems := own.loadKey(); len(problems) > 0 {
		return nil, &problems[0]
	}
	return append(rules, own), nil
}

// newSubject leaves out of the reference what does not matter: tag and spelling.
func newSubject(req Request) subject {
	ref := chandler.Reference{Scheme: chandler.SchemeOCI, Host: req.Reference.Host, Repository: req.Reference.Repository}
	return subject{ref: ref, artifact: req.Artifact}
}

// question is what a verdict is the answer to.
func question(of subject, rules []*Rule) string {
	var hashes []string
	for _, r := range rules {
		hashes = append(hashes, r.Hash())
	}
	slices.Sort(hashes)
	return hash(of.ref.String(), of.artifact, hashes)
}

// judge tells whether all rules hold.
func judge(of subject, rules []*Rule, found fetch.Signatures) (Evidence, *chandler.Problem) {
	var claims []*claim
	var unread []*chandler.Problem
	for i := range found.Faults {
		unread = append(unread, asObjection(&found.Faults[i]))
	}
	for _, s := range found.Found {
		if c, objection := read(s); objection != nil {
			unread = append(unread, objection)
		} else {
			claims = append(claims, c)
		}
	}
	var said Evidence
	for _, r := range rules {
		by, problem := r.judge(of, claims, unread, found.Listed)
		if problem != nil {
			return Evidence{}, problem
		}
		said.By = append(said.By, by...)
	}
	slices.Sort(said.By)
	said.By = slices.Compact(said.By)
	return said, nil
}

// asObjection gives what kept a signature from being read as why it does not count.
func asObjection(fault *chandler.Problem) *chandler.Problem {
	code := chandler.CodeSigParse
	if fault.Code == chandler.CodeSigLimit || fault.Code == chandler.CodeHTTPLink {
		code = chandler.CodeSigLimit
	}
	return objectionf(code, "%s", fault.Message)
}

// judgeKnown answers from signatures that are known already, as the registry does
// not answer: they are as good as they were. What they do not suffice for may be
// there all the same, so that is the registry's error and no refusal.
func (v *Verifier) judgeKnown(of subject, rules []*Rule, question string, err error) (Evidence, error) {
	v.mu.Lock()
	found, ok := v.known.get(of)
	v.mu.Unlock()
	var down *fetch.Error
	if !errors.As(err, &down) || !down.Temporary || !ok {
		v.checks.WithLabelValues("unknown").Inc()
		return Evidence{}, err
	}
	said, problem := judge(of, rules, found)
	if problem == nil {
		v.remember(of, question, said, found)
		v.checks.WithLabelValues("good").Inc()
		return said, nil
	}
	v.checks.WithLabelValues("unknown").Inc()
	more := *down
	more.Problem.Message = strings.TrimRight(more.Problem.Message, ".") + "; of the signatures that are known from before, none suffices: " + problem.Message
	return Evidence{}, &more
}

func (v *Verifier) recall(question string) (Evidence, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	said, ok := v.verdicts.get(question)
	return Evidence{By: slices.Clone(said.By)}, ok
}

func (v *Verifier) remember(of subject, question string, said Evidence, found fetch.Signatures) {
	size := 0
	for _, s := range found.Found {
		size += len(s.Content)
		for k, value := range s.Annotations {
			size += len(k) + len(value)
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.verdicts.put(question, Evidence{By: slices.Clone(said.By)})
	if size <= maxKnownSize {
		found.Faults = nil
		v.known.put(of, found)
	}
}

// Package trust tells who signed a module: with a key that the plugin or the
// operator names, or with a certificate of an authority of the operator's trusted
// root. It reads cosign's signatures in both places where they lie and asks
// nobody but the registry for them; what is verified once holds without it. A Signer
// makes such signatures with a key, in the forms that cosign verifies.
//
// It decides nothing else about modules, and what it signed others put in place.
package trust

import (
	"context"
	"log/slog"
	"slices"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
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
	Registry Registry
	// Dir keeps the signatures that counted, so that a control plane that starts
	// while the registry is away knows them; it is made when it is needed. Empty:
	// only memory keeps them.
	Dir        string
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Bounds of what is remembered. What is forgotten costs a look into the registry.
const (
	maxVerdicts  = 4096
	maxKnown     = 256
	maxKnownSize = 64 << 10 // bytes of signatures of one artifact
)

// Verifier verifies signatures and remembers what it verified. It may be used by
// several goroutines.
type Verifier struct {
	cfg    Config
	checks *prometheus.CounterVec

	mu sync.Mutex
	// verdicts are by what was asked: an artifact, a repository and what rules demand.
	verdicts *recent[string, Evidence]
	// known are signatures that counted once, for rules that change. They hold
	// without the registry, and a shelf has those that memory has not.
	known *recent[subject, fetch.Signatures]
	shelf shelf
}

// New gives a Verifier; nothing is started.
func New(cfg Config) *Verifier {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	checks := promauto.With(cfg.Registerer).NewCounterVec(prometheus.CounterOpts{
		Name: "chandler_signature_checks_total",
		Help: "Questions whether a module is signed as demanded, by what came of them: good, known (as before), refused, or unknown (the registry does not say).",
	}, []string{"result"})
	for _, result := range []string{"good", "known", "refused", "unknown"} {
		checks.WithLabelValues(result) // there from the start
	}
	return &Verifier{
		cfg: cfg, shelf: shelf{durable.OS(), cfg.Dir}, checks: checks,
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
		return said, nil
	}
	known, ok := v.recollect(of)
	if ok {
		if said, problem := judge(of, rules, known); problem == nil {
			v.remember(question, said)
			return said, nil
		}
	}
	found, err := v.cfg.Registry.Signatures(ctx, req.Reference, req.Artifact, req.Credentials)
	if err != nil {
		v.checks.WithLabelValues("unknown").Inc()
		return Evidence{}, err
	}
	said, problem := judge(of, rules, found)
	if problem != nil {
		return v.refused(problem)
	}
	v.remember(question, said)
	v.keep(of, found)
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

// recall gives a verdict that was given before.
func (v *Verifier) recall(question string) (Evidence, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	said, ok := v.verdicts.get(question)
	if ok {
		v.checks.WithLabelValues("known").Inc()
	}
	return Evidence{By: slices.Clone(said.By)}, ok
}

func (v *Verifier) remember(question string, said Evidence) {
	v.checks.WithLabelValues("good").Inc()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.verdicts.put(question, Evidence{By: slices.Clone(said.By)})
}

// recollect gives the signatures that counted before.
func (v *Verifier) recollect(of subject) (fetch.Signatures, bool) {
	v.mu.Lock()
	found, ok := v.known.get(of)
	v.mu.Unlock()
	if ok {
		return found, true
	}
	if found, ok = v.shelf.load(of); ok {
		v.know(of, found)
	}
	return found, ok
}

func (v *Verifier) know(of subject, found fetch.Signatures) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.known.put(of, found)
}

// keep keeps signatures of which at least one counts. Those that others put
// beside it without measure are not worth the room.
func (v *Verifier) keep(of subject, found fetch.Signatures) {
	size := 0
	for _, s := range found.Found {
		size += len(s.Content)
		for k, value := range s.Annotations {
			size += len(k) + len(value)
		}
	}
	if size > maxKnownSize {
		return
	}
	found = fetch.Signatures{Found: found.Found, Listed: len(found.Found)}
	v.know(of, found)
	if err := v.shelf.save(of, found); err != nil {
		v.cfg.Log.Warn("signatures are not kept on disk", "artifact", of.artifact, "error", err)
	}
}

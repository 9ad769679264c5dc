package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/config"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/identity"
	"chandler.dev/chandler/internal/policy"
	"chandler.dev/chandler/internal/trust"
)

// operator is what the file of --config says, at first and later.
type operator struct {
	file    atomic.Pointer[config.File] // as it is now
	watcher *config.Watcher             // nil: there is no file
	path    string

	// What its gates need besides; set once it is there.
	verifier *trust.Verifier
	ground   policy.Ground
	agents   *identity.Authenticator // nil: agents show nothing
	log      *slog.Logger
}

// openOperator reads the file; without one everything is as in an empty file.
func openOperator(path string, metrics prometheus.Registerer, log *slog.Logger) (*operator, error) {
	op := &operator{log: log}
	op.file.Store(new(config.File))
	if path == "" {
		return op, nil
	}
	watcher, file, err := config.Open(path, metrics, log)
	if err != nil {
		return nil, usagef("%v", err)
	}
	op.watcher, op.path = watcher, path
	op.file.Store(file)
	return op, nil
}

// strict tells whether what Istio takes is refused where it is doubtful.
func (op *operator) strict() bool { return op.file.Load().Strict }

// admit tells what the policy has against a plugin, as it is now.
func (op *operator) admit(p *chandler.Plugin) []chandler.Problem {
	return op.gate(op.file.Load()).Admit(p)
}

// identify has agents known by the file's rules.
func (op *operator) identify(agents control.Authenticator) error {
	rules := op.file.Load().Identities
	if op.agents, _ = agents.(*identity.Authenticator); op.agents != nil {
		op.agents.SetRules(rules)
	} else if len(rules) > 0 {
		return usagef("--config: identities are about certificates, which agents do not show without --tls-cert and --client-ca")
	}
	return nil
}

// grants are who may do what at the admin port.
func (op *operator) grants() []access.Grant { return op.file.Load().Access }

// requireVersions tells whether a plugin must have been tried in a proxy's own Envoy.
func (op *operator) requireVersions() bool { return op.file.Load().Vet.RequireEnvoyVersions }

// watch has everybody go by what the file says whenever it has changed, until ctx
// ends.
func (op *operator) watch(ctx context.Context, plane *control.Control) {
	if op.watcher == nil {
		return
	}
	op.watcher.Run(ctx, func(f *config.File) {
		op.file.Store(f)
		if err := op.identify(op.agents); err != nil {
			op.log.Error("the identities of the operator's file are for nobody", "reason", err)
		}
		plane.Govern(ctx, op.gate(f))
		plane.Reconsider()
	})
}

// gate makes a gate of what a file says.
func (op *operator) gate(f *config.File) control.Gate {
	g := &gate{policy: &f.Policy, verifier: op.verifier, ground: op.ground}
	var demands []any // what the rules demand, and of whom
	for i := range f.Signatures {
		r := &f.Signatures[i]
		g.rules = append(g.rules, r)
		demands = append(demands, r.Namespaces, r.Repositories, r.Hash())
	}
	g.ground.Signed = func(p *chandler.Plugin) bool { return len(g.rulesFor(p)) > 0 }
	b, err := json.Marshal([]any{f.Policy, demands, op.ground.RootNamespace, op.ground.Insecure})
	if err != nil { // plain types only
		panic(fmt.Sprintf("chandler: marshal policy: %v", err))
	}
	sum := sha256.Sum256(b)
	g.hash = hex.EncodeToString(sum[:])
	return g
}

// gate is policy and signatures together.
type gate struct {
	policy   *policy.Policy
	rules    []*trust.Rule
	verifier *trust.Verifier
	ground   policy.Ground
	hash     string
}

func (g *gate) Hash() string { return g.hash }

func (g *gate) Admit(p *chandler.Plugin) []chandler.Problem { return g.policy.Admit(p, g.ground) }

func (g *gate) Terms(p *chandler.Plugin) policy.Terms { return g.policy.Terms(p) }

func (g *gate) Detaches() bool { return g.policy.OnViolation == policy.Detach }

// rulesFor gives the rules about signatures that apply to a plugin.
func (g *gate) rulesFor(p *chandler.Plugin) []*trust.Rule {
	if p.Wasm == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(g.rules), func(r *trust.Rule) bool { return !r.Applies(p.Namespace, p.Wasm.Reference) })
}

func (g *gate) Trust(ctx context.Context, p *chandler.Plugin, r *chandler.Release, own *fetch.Credentials) ([]chandler.Verdict, error) {
	if problem := g.policy.Accept(p, r); problem != nil {
		return nil, problem
	}
	verdict := chandler.Verdict{Judge: chandler.JudgePolicy, PolicyHash: g.hash, At: time.Now().UTC()}
	if p.Wasm == nil {
		return []chandler.Verdict{verdict}, nil
	}
	evidence, err := g.verifier.Verify(ctx, trust.Request{
		Plugin: p.Key, Reference: p.Wasm.Reference, Artifact: r.Artifact, Credentials: own,
		VerificationKey: p.Wasm.VerificationKey, Rules: g.rulesFor(p),
	})
	if err != nil {
		return nil, err
	}
	verdict.SignedBy = evidence.By
	return []chandler.Verdict{verdict}, nil
}

// misconfigured is the error of what cannot be run as it was asked for.
func misconfigured(code chandler.Code, flag, hint string, err error) error {
	p := chandler.Problemf(code, flag, hint, "%v", err)
	return usagef("%s (%s)", p.Error(), p.Code)
}

// checkKeyFile refuses a private key that everybody on the machine may read. One that
// is not there is told where it is used.
func checkKeyFile(flag, path string) error {
	stat, err := os.Stat(path)
	if err != nil || stat.Mode().Perm()&0o004 == 0 {
		return nil
	}
	return misconfigured(chandler.CodeConfKeyMode, flag, "take the right away: chmod o-r "+path,
		fmt.Errorf("the private key %s may be read by everybody (mode %04o)", path, stat.Mode().Perm()))
}

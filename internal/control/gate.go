package control

import (
	"context"
	"fmt"
	"slices"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/policy"
)

// Gate is the operator's word on what may reach proxies. It says the same for ever:
// another policy is another Gate (see Control.Govern).
type Gate interface {
	// Hash is the same for gates that judge the same.
	Hash() string
	// Admit tells what is against a plugin, before anything of it is fetched. It does
	// no I/O.
	Admit(*chandler.Plugin) []chandler.Problem
	// Terms are what a plugin that is admitted is held to.
	Terms(*chandler.Plugin) policy.Terms
	// Trust judges a release of an admitted plugin before it is recorded, and again
	// while it is in force when there is another Gate. The error is a *chandler.Problem,
	// or a *fetch.Error when nothing is known yet.
	Trust(context.Context, *chandler.Plugin, *chandler.Release, *fetch.Credentials) ([]chandler.Verdict, error)
	// Detaches tells whether what is in force is taken out when it is found to be
	// against the policy.
	Detaches() bool
}

// Govern puts another gate in place of the one before. Everything is judged again by
// it, what is in force too. It returns when that has begun, or ctx ended.
func (c *Control) Govern(ctx context.Context, g Gate) {
	select {
	case c.gates <- g:
	case <-ctx.Done():
	}
}

// ruling is what the gate says of a plugin as it is written.
type ruling struct {
	plugin  *chandler.Plugin
	against []chandler.Problem
	terms   policy.Terms
}

// misplaced tells whether the plugin may not even stand where it does: then it denies
// nothing there either.
func (r *ruling) misplaced() bool {
	for i := range r.against {
		if r.against[i].Code == chandler.CodeScopeDenied {
			return true
		}
	}
	return false
}

// ruled gives the gate's ruling on a plugin; that on nothing is empty.
func (l *loop) ruled(p *chandler.Plugin) ruling {
	switch {
	case p == nil:
		return ruling{}
	case l.gate == nil:
		return ruling{plugin: p, terms: policy.Terms{FirstAttach: p.FirstAttach}}
	}
	before, ok := l.rulings[p.UID]
	if ok && before.plugin == p {
		return before
	}
	r := ruling{p, l.gate.Admit(p), l.gate.Terms(p)}
	l.rulings[p.UID] = r
	if slices.Equal(before.against, r.against) {
		return r // nothing new
	}
	if len(r.against) > 0 {
		l.c.Emit(chandler.Event{Key: p.Key, Reason: chandler.EventNotResolved, Warning: true, Message: fmt.Sprintf("generation %d is against the operator's policy: %s: %s", p.Generation, r.against[0].Code, r.against[0].Error())})
	}
	for i := range r.against {
		l.c.log.Warn("against the operator's policy", "plugin", p.Key.String(), "generation", p.Generation, "code", r.against[i].Code, "error", r.against[i].Error())
	}
	return r
}

// governed takes another gate. Whatever failed under the one before is tried again at
// once, and jobs begun under it are begun again (see start).
func (l *loop) governed(g Gate) {
	if l.gate != nil && g != nil && l.gate.Hash() == g.Hash() {
		return
	}
	l.gate = g
	clear(l.rulings)
	clear(l.objections)
	for i := range l.snapshot.Objects {
		o := &l.snapshot.Objects[i]
		l.stale[o.Key] = true
		if a := l.attempts[o.UID]; a.Failed > 0 {
			l.attempts[o.UID] = a.Soon()
		}
	}
	for id, a := range l.judging {
		l.judging[id] = a.Soon()
	}
	if l.seen {
		l.c.Emit(chandler.Event{Reason: chandler.EventPolicy, Message: fmt.Sprintf("the policy has changed; %s judged by it again", chandler.Count(len(l.snapshot.Objects), "plugin is", "plugins are"))})
		l.c.log.Info("the policy has changed; every plugin is judged by it again", "plugins", len(l.snapshot.Objects))
	}
}

// gateHash is empty without a gate: then nothing is judged.
func (l *loop) gateHash() string {
	if l.gate == nil {
		return ""
	}
	return l.gate.Hash()
}

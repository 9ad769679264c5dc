package resolve

import (
	"errors"
	"slices"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
)

// Waits after a try that failed. What may heal by itself is tried soon; what
// somebody has to mend is tried ever more rarely, and never given up.
const (
	minTemporary = 200 * time.Millisecond
	MaxTemporary = 3 * time.Second
	minPermanent = time.Second
	MaxPermanent = 5 * time.Minute
	maxHint      = time.Hour // longest Retry-After that is believed
)

// Policy is the operator's.
type Policy struct {
	// Interval, unless zero, is after how long a plugin that is always to be
	// pulled is resolved again without having changed.
	Interval time.Duration
	// Gate is the hash of what releases are judged by; empty: by nothing.
	Gate string
	// Denied: of the release that is there it was found to be against the gate.
	Denied bool
}

// Attempts is what has been tried for one generation of a plugin. The zero value
// is a plugin that nobody has tried yet.
type Attempts struct {
	UID        string
	Generation int64
	// Failed counts the failures since the last success.
	Failed  uint32
	Problem *chandler.Problem
	// Next is when to try again after a failure; Done when it last went well.
	Next, Done time.Time
	// Gate is what the release that is there was last found good by, and Judging that the
	// last try only judged it.
	Gate    string
	Judging bool
}

// Soon gives the attempts with the next try due at once, for what they failed of may
// be otherwise now.
func (a Attempts) Soon() Attempts {
	a.Next = time.Time{}
	return a
}

// Decision says whether to resolve now, or else when; a zero At means not before
// something changes. With Judge the release that is there is to be judged again, and
// nothing is to be resolved.
type Decision struct {
	Now   bool
	At    time.Time
	Judge bool
}

// Due decides whether a plugin wants resolving. have is the release that its
// rollout is at, or nil. A generation is resolved once; a failure is tried again
// when Attempts says so; PullAlways comes again after Policy.Interval. What was found
// good by another gate than Policy.Gate is to be judged again, and so is what was found to
// be against it when nothing has failed since: the resource may have been against it.
func Due(p *chandler.Plugin, have *chandler.Release, a Attempts, policy Policy, now time.Time) Decision {
	if p == nil {
		return Decision{}
	}
	if a.UID != p.UID || a.Generation != p.Generation {
		a = Attempts{}
	}
	at := func(t time.Time) Decision {
		if t.After(now) {
			return Decision{At: t}
		}
		return Decision{Now: true}
	}
	current := have != nil && have.UID == p.UID && have.Generation == p.Generation
	switch {
	case a.Failed > 0:
		d := at(a.Next)
		d.Judge = a.Judging && current
		return d
	case !current:
		return Decision{Now: true}
	case policy.Gate != "" && (policy.Denied || a.Gate != policy.Gate && !judgedBy(have, policy.Gate)):
		return Decision{Now: true, Judge: true}
	case policy.Interval > 0 && p.Wasm != nil && p.Wasm.Reference.Scheme != chandler.SchemeFile &&
		p.Wasm.EffectivePullPolicy() == chandler.PullAlways:
		return at(lastAsked(have, a, now).Add(policy.Interval))
	}
	return Decision{}
}

// judgedBy tells whether a release was found good by a gate when it was recorded.
func judgedBy(r *chandler.Release, gate string) bool {
	return slices.ContainsFunc(r.Verdicts, func(v chandler.Verdict) bool { return v.PolicyHash == gate })
}

// lastAsked is when a release was found to be what its plugin means. Done is of this
// run and its clock never jumps. ResolvedAt is read from a record: one that is yet
// to come was written under a clock that was wrong, and says nothing; to ask once
// more is cheap, and not to ask for a year is not.
func lastAsked(have *chandler.Release, a Attempts, now time.Time) time.Time {
	if at := have.ResolvedAt; !at.After(now) && at.After(a.Done) {
		return at
	}
	return a.Done
}

// Succeeded gives the attempts after a try that went well, by that gate.
func Succeeded(p *chandler.Plugin, gate string, now time.Time) Attempts {
	return Attempts{UID: p.UID, Generation: p.Generation, Done: now, Gate: gate}
}

// Judged gives the attempts after the release that is there was found good by a gate.
func (a Attempts) Judged(p *chandler.Plugin, gate string) Attempts {
	done := a.Done
	if a.UID != p.UID || a.Generation != p.Generation {
		done = time.Time{}
	}
	return Succeeded(p, gate, done)
}

// Refusal gives what a gate has against a release that it judged with err; nil: that
// nobody can be asked says nothing.
func Refusal(err error) *chandler.Problem {
	if err == nil {
		return nil
	}
	p, temporary, _ := explain(err)
	if temporary {
		return nil
	}
	return p
}

// After gives the attempts after a try that failed with err. chance, from 0 to
// 1, is the caller's jitter: the wait is between half and all of the back-off. A
// server's Retry-After is kept to exactly.
func (a Attempts) After(p *chandler.Plugin, err error, now time.Time, chance float64) Attempts {
	if a.UID != p.UID || a.Generation != p.Generation {
		a = Attempts{UID: p.UID, Generation: p.Generation}
	}
	problem, temporary, hint := explain(err)
	if problem.Field == "" && problem.Code != chandler.CodeInternal {
		problem.Field = field(p, problem.Code)
	}
	a.Problem = problem
	a.Failed++
	wait := backoff(a.Failed, minPermanent, MaxPermanent)
	if temporary {
		wait = backoff(a.Failed, minTemporary, MaxTemporary)
	}
	wait = wait/2 + time.Duration(chance*float64(wait/2))
	if hint > 0 {
		wait = min(hint, maxHint)
	}
	a.Next = now.Add(wait)
	return a
}

// Behind gives the attempts of a plugin that does not try by itself, because
// another one, whose attempts are given, found that their host does not answer:
// it fares as that one did.
func (a Attempts) Behind(p *chandler.Plugin, other Attempts) Attempts {
	if a.UID != p.UID || a.Generation != p.Generation {
		a = Attempts{UID: p.UID, Generation: p.Generation}
	}
	a.Failed, a.Problem, a.Next, a.Judging = other.Failed, other.Problem, other.Next, false
	return a
}

// HostWide tells whether err is the trouble of the host that was asked, and not of
// one plugin alone.
func HostWide(err error) bool {
	var failed *fetch.Error
	return errors.As(err, &failed) && failed.HostWide
}

func backoff(n uint32, least, most time.Duration) time.Duration {
	d := least
	for range min(n, 32) - 1 {
		d = min(2*d, most)
	}
	return d
}

// explain turns an error of Resolve into a problem of the plugin. What is
// neither a fetch's error nor a problem is a fault of ours or of this machine:
// it is tried again soon.
func explain(err error) (p *chandler.Problem, temporary bool, hint time.Duration) {
	var failed *fetch.Error
	if errors.As(err, &failed) {
		problem := failed.Problem
		return &problem, failed.Temporary, failed.RetryAfter
	}
	if errors.As(err, &p) {
		problem := *p
		local := problem.Code == chandler.CodeCacheFull || problem.Code == chandler.CodeCacheUnwritable || problem.Code == chandler.CodeInternal
		return &problem, local, 0
	}
	return chandler.Problemf(chandler.CodeInternal, "", "see the control plane's log", "%s", chandler.Printable(err.Error(), 1024)), true, 0
}

// field is where in a plugin's resource a problem of its release has its cause.
func field(p *chandler.Plugin, code chandler.Code) string {
	switch wasm := p.Kind == chandler.KindTrafficExtension; {
	case p.Lua != nil:
		return "spec.lua.inlineCode"
	case code == chandler.CodeWasmConfigure && wasm:
		return "spec.wasm.pluginConfig"
	case code == chandler.CodeWasmConfigure:
		return "spec.pluginConfig"
	case wasm:
		return "spec.wasm.url"
	}
	return "spec.url"
}

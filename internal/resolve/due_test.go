package resolve_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/resolve"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func TestDue(t *testing.T) {
	t.Parallel()
	plugin := func(generation int64, policy chandler.PullPolicy, tag, pin string) *chandler.Plugin {
		return &chandler.Plugin{UID: "u", Generation: generation, Wasm: &chandler.Wasm{
			Reference: chandler.Reference{Scheme: chandler.SchemeOCI, Host: "h", Repository: "r", Tag: tag}, PullPolicy: policy, SHA256: pin,
		}}
	}
	release := func(generation int64) *chandler.Release {
		return &chandler.Release{UID: "u", Generation: generation, ResolvedAt: t0}
	}
	judged := func(generation int64, gate string) *chandler.Release {
		r := release(generation)
		r.Verdicts = []chandler.Verdict{{Judge: chandler.JudgePolicy, PolicyHash: gate}}
		return r
	}
	hour, gate := resolve.Policy{Interval: time.Hour}, resolve.Policy{Gate: "g"}
	for _, c := range []struct {
		name     string
		plugin   *chandler.Plugin
		have     *chandler.Release
		attempts resolve.Attempts
		policy   resolve.Policy
		now      time.Time
		want     resolve.Decision
	}{
		{"never valid", nil, nil, resolve.Attempts{}, hour, t0, resolve.Decision{}},
		{"new", plugin(1, "", "v1", ""), nil, resolve.Attempts{}, hour, t0, resolve.Decision{Now: true}},
		{"resolved", plugin(1, "", "v1", ""), release(1), resolve.Attempts{}, hour, t0.Add(time.Hour * 9), resolve.Decision{}},
		{"new generation", plugin(2, "", "v1", ""), release(1), resolve.Attempts{}, hour, t0, resolve.Decision{Now: true}},
		{"made anew under its name", plugin(1, "", "v1", ""), &chandler.Release{UID: "old", Generation: 1}, resolve.Attempts{}, hour, t0, resolve.Decision{Now: true}},
		{"failed, not yet", plugin(1, "", "v1", ""), nil, resolve.Attempts{UID: "u", Generation: 1, Failed: 1, Next: t0.Add(time.Second)}, hour, t0, resolve.Decision{At: t0.Add(time.Second)}},
		{"failed, again", plugin(1, "", "v1", ""), nil, resolve.Attempts{UID: "u", Generation: 1, Failed: 1, Next: t0}, hour, t0, resolve.Decision{Now: true}},
		{"failed, then edited", plugin(2, "", "v1", ""), nil, resolve.Attempts{UID: "u", Generation: 1, Failed: 1, Next: t0.Add(time.Hour)}, hour, t0, resolve.Decision{Now: true}},
		{"always, by time", plugin(1, chandler.PullAlways, "v1", ""), release(1), resolve.Attempts{}, hour, t0, resolve.Decision{At: t0.Add(time.Hour)}},
		{"always, due", plugin(1, chandler.PullAlways, "v1", ""), release(1), resolve.Attempts{}, hour, t0.Add(time.Hour), resolve.Decision{Now: true}},
		{"always, same outcome lately", plugin(1, chandler.PullAlways, "v1", ""), release(1), resolve.Attempts{UID: "u", Generation: 1, Done: t0.Add(time.Minute)}, hour, t0.Add(time.Hour), resolve.Decision{At: t0.Add(61 * time.Minute)}},
		{"always, no interval", plugin(1, chandler.PullAlways, "v1", ""), release(1), resolve.Attempts{}, resolve.Policy{}, t0.Add(time.Hour), resolve.Decision{}},
		{"latest", plugin(1, "", "latest", ""), release(1), resolve.Attempts{}, hour, t0, resolve.Decision{At: t0.Add(time.Hour)}},
		{"latest, pinned", plugin(1, chandler.PullAlways, "latest", "ab"), release(1), resolve.Attempts{}, hour, t0, resolve.Decision{}},
		{"judged by no gate, and there is one", plugin(1, "", "v1", ""), release(1), resolve.Attempts{}, gate, t0, resolve.Decision{Now: true, Judge: true}},
		{"judged by another gate", plugin(1, "", "v1", ""), judged(1, "f"), resolve.Attempts{}, gate, t0, resolve.Decision{Now: true, Judge: true}},
		{"judged by this gate when it was recorded", plugin(1, "", "v1", ""), judged(1, "g"), resolve.Attempts{}, gate, t0, resolve.Decision{}},
		{"judged by this gate since", plugin(1, "", "v1", ""), judged(1, "f"), resolve.Attempts{UID: "u", Generation: 1, Gate: "g"}, gate, t0, resolve.Decision{}},
		{"an older generation is not judged, the new one is resolved", plugin(2, "", "v1", ""), judged(1, "f"), resolve.Attempts{}, gate, t0, resolve.Decision{Now: true}},
		{"found wanting, not yet", plugin(1, "", "v1", ""), judged(1, "f"), resolve.Attempts{UID: "u", Generation: 1, Failed: 1, Judging: true, Next: t0.Add(time.Second)}, gate, t0, resolve.Decision{At: t0.Add(time.Second), Judge: true}},
		{"found wanting, again", plugin(1, "", "v1", ""), judged(1, "f"), resolve.Attempts{UID: "u", Generation: 1, Failed: 1, Judging: true, Next: t0}, gate, t0, resolve.Decision{Now: true, Judge: true}},
		{"found wanting in an earlier run", plugin(1, "", "v1", ""), judged(1, "g"), resolve.Attempts{}, resolve.Policy{Gate: "g", Denied: true}, t0, resolve.Decision{Now: true, Judge: true}},
		{"found wanting, and then another gate", plugin(1, "", "v1", ""), judged(1, "f"), resolve.Attempts{UID: "u", Generation: 1, Failed: 1, Judging: true, Next: t0.Add(time.Hour)}.Soon(), gate, t0, resolve.Decision{Now: true, Judge: true}},
		{"failed to resolve, and then another gate", plugin(2, "", "v1", ""), judged(1, "f"), resolve.Attempts{UID: "u", Generation: 2, Failed: 1, Next: t0.Add(time.Hour)}.Soon(), gate, t0, resolve.Decision{Now: true}},
	} {
		if got := resolve.Due(c.plugin, c.have, c.attempts, c.policy, c.now); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
	}
}

// A gate that could ask nobody has said nothing, and what it says of a release is not
// said of its plugin's next try.
func TestRefusal(t *testing.T) {
	t.Parallel()
	p := &chandler.Plugin{UID: "u", Generation: 1}
	definite := chandler.Problemf(chandler.CodePolicyDenied, "spec.url", "", "no")
	away := &fetch.Error{Problem: chandler.Problem{Code: chandler.CodeFetchFailed}, Temporary: true}
	if why := resolve.Refusal(away); why != nil {
		t.Errorf("that nobody can be asked is against it: %v", why)
	}
	if why := resolve.Refusal(fmt.Errorf("while judging: %w", definite)); why == nil || why.Code != chandler.CodePolicyDenied {
		t.Errorf("what is against it is %v", why)
	}
	if why := resolve.Refusal(nil); why != nil {
		t.Errorf("against nothing: %v", why)
	}
	b := resolve.Succeeded(p, "f", t0).After(p, definite, t0, 1).Judged(p, "g")
	if b.Failed != 0 || b.Problem != nil || b.Gate != "g" || !b.Done.Equal(t0) {
		t.Errorf("judged good: %+v", b)
	}
}

func TestBackoff(t *testing.T) {
	t.Parallel()
	p := &chandler.Plugin{UID: "u", Generation: 1}
	temporary := &fetch.Error{Problem: chandler.Problem{Code: chandler.CodeFetchFailed}, Temporary: true}
	permanent := &fetch.Error{Problem: chandler.Problem{Code: chandler.CodeNotFound}}
	refused := chandler.Problemf(chandler.CodeWasmMagic, "", "", "not a module")
	waits := func(err error, n int, chance float64) []time.Duration {
		var a resolve.Attempts
		var out []time.Duration
		for range n {
			a = a.After(p, err, t0, chance)
			out = append(out, a.Next.Sub(t0))
		}
		return out
	}
	const ms = time.Millisecond
	for _, c := range []struct {
		err    error
		chance float64
		want   []time.Duration
	}{
		{temporary, 1, []time.Duration{200 * ms, 400 * ms, 800 * ms, 1600 * ms, 3000 * ms, 3000 * ms}},
		{temporary, 0, []time.Duration{100 * ms, 200 * ms, 400 * ms, 800 * ms, 1500 * ms}},
		{permanent, 1, []time.Duration{time.Second, 2 * time.Second, 4 * time.Second}},
		{fmt.Errorf("while resolving: %w", refused), 1, []time.Duration{time.Second, 2 * time.Second}},
		{errors.New("disk on fire"), 1, []time.Duration{200 * ms}},
		{&fetch.Error{RetryAfter: 42 * time.Second, Temporary: true}, 0, []time.Duration{42 * time.Second, 42 * time.Second}},
		{&fetch.Error{RetryAfter: 1000 * time.Hour, Temporary: true}, 0, []time.Duration{time.Hour}},
	} {
		if got := waits(c.err, len(c.want), c.chance); fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%v with chance %v: %v, want %v", c.err, c.chance, got, c.want)
		}
	}
	if got := waits(permanent, 100, 1)[99]; got != resolve.MaxPermanent {
		t.Errorf("the hundredth wait is %v", got)
	}
	if got := waits(temporary, 100, 1)[99]; got != resolve.MaxTemporary {
		t.Errorf("the hundredth wait is %v", got)
	}
	a := resolve.Attempts{}.After(p, refused, t0, 0)
	if a.Problem.Field != "spec.url" || refused.Field != "" {
		t.Errorf("problem %+v", a.Problem)
	}
	if b := a.After(&chandler.Plugin{UID: "u", Generation: 2}, refused, t0, 0); b.Failed != 1 {
		t.Error("failures of an older generation are counted")
	}
}

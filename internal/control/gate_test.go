package control_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/policy"
	"chandler.dev/chandler/internal/testenv/module"
)

// gate is a scripted one.
type gate struct {
	hash     string
	deny     map[string]chandler.Code // by name, before anything is fetched
	distrust map[string]error         // by name
	terms    policy.Terms
	detach   bool

	mu     sync.Mutex
	judged []string
}

func (g *gate) Hash() string   { return g.hash }
func (g *gate) Detaches() bool { return g.detach }

func (g *gate) Admit(p *chandler.Plugin) []chandler.Problem {
	if code, ok := g.deny[p.Name]; ok {
		return []chandler.Problem{*chandler.Problemf(code, "spec.url", "", "%s says no", g.hash)}
	}
	return nil
}

func (g *gate) Terms(p *chandler.Plugin) policy.Terms {
	t := g.terms
	if p.FirstAttach != "" {
		t.FirstAttach = p.FirstAttach
	}
	return t
}

func (g *gate) Trust(_ context.Context, p *chandler.Plugin, r *chandler.Release, _ *fetch.Credentials) ([]chandler.Verdict, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.judged = append(g.judged, p.Name)
	if err := g.distrust[p.Name]; err != nil {
		return nil, err
	}
	return []chandler.Verdict{{Judge: chandler.JudgePolicy, PolicyHash: g.hash}}, nil
}

func (g *gate) trusted() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.judged)
}

func newGatedRig(t *testing.T, g control.Gate) *rig {
	t.Helper()
	r := newRig(t)
	r.govern(g)
	return r
}

func (r *rig) govern(g control.Gate) {
	r.t.Helper()
	r.settle = func(cfg *control.Config) { cfg.Gate = g }
	r.Govern(r.t.Context(), g)
}

// What is not allowed is not even asked for, and heard of by nobody; allowed later, it
// heals without an edit.
func TestGateBeforeAnythingIsFetched(t *testing.T) {
	t.Parallel()
	r := newGatedRig(t, &gate{hash: "1", deny: map[string]chandler.Code{"a": chandler.CodePolicyDenied, "b": chandler.CodePolicyDenied, "c": chandler.CodeScopeDenied}})
	r.set("a:v1", module.Append())
	a := r.join(gateway)
	deny := func(p *chandler.Plugin) { p.FirstAttach = chandler.FirstAttachDeny }
	r.put("a", "oci://reg.example/a:v1", nil)
	r.put("b", "oci://reg.example/a:v1", deny)
	r.put("c", "oci://reg.example/a:v1", deny)
	r.deliver()
	for _, name := range []string{"a", "b"} {
		r.await(name, chandler.ConditionAccepted, "False PolicyDenied")
		r.await(name, chandler.ConditionResolvedRefs, "Unknown PolicyDenied")
	}
	r.await("c", chandler.ConditionAccepted, "False ScopeDenied")
	if s := r.status("a"); len(s.Problems) != 1 || s.Problems[0].Field != "spec.url" || s.Problems[0].Message != "1 says no" {
		t.Errorf("problems %+v", s.Problems)
	}
	// Who asked to deny meanwhile does, unless he may not stand there at all.
	a.has("b", func(att chandler.Attachment) bool { return att.Program.Deny })
	r.Govern(t.Context(), &gate{hash: "2", deny: map[string]chandler.Code{"c": chandler.CodeScopeDenied}})
	a.has("a", runs(module.Append()))
	a.has("b", runs(module.Append()))
	r.await("c", chandler.ConditionAccepted, "False ScopeDenied")
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.held) != 2 {
		t.Errorf("the agent has %v", a.held)
	}
}

// A release that is not trusted is not recorded; the one before stays.
func TestGateBeforeRecording(t *testing.T) {
	t.Parallel()
	unsigned := chandler.Problemf("SigMissing", "", "", "nobody signed it")
	g := &gate{hash: "1", distrust: map[string]error{}}
	r := newGatedRig(t, g)
	good, bad := module.Append(), module.Deny(http.StatusForbidden)
	r.set("a:v1", good)
	r.set("a:v2", bad)
	a := r.join(gateway)
	r.apply("a", "oci://reg.example/a:v1", nil)
	a.has("a", runs(good))
	g.mu.Lock()
	g.distrust["a"] = unsigned
	g.mu.Unlock()
	r.apply("a", "oci://reg.example/a:v2", nil)
	r.await("a", chandler.ConditionResolvedRefs, "False SigMissing")
	a.has("a", runs(good))
	if releases, err := r.records.Releases(t.Context()); err != nil || len(releases) != 1 || releases[0].Verdicts[1].PolicyHash != "1" {
		t.Errorf("recorded: %+v, %v", releases, err)
	}
	r.Govern(t.Context(), &gate{hash: "2"})
	a.has("a", runs(bad))
	if got := r.status("a").Release; got == nil || got.Generation != 2 {
		t.Errorf("release %+v", got)
	}
}

// A policy made stricter judges what is in force: it stays, and its status says that
// it is against it; the registry is not asked what a tag means by now. Loosened again,
// all is as it was.
func TestGateJudgesWhatIsInForce(t *testing.T) {
	t.Parallel()
	r := newGatedRig(t, &gate{hash: "1"})
	good := module.Append()
	r.set("a:v1", good)
	r.set("b:v1", good)
	a := r.join(gateway)
	r.apply("a", "oci://reg.example/a:v1", func(p *chandler.Plugin) { p.Wasm.PullPolicy = chandler.PullAlways })
	r.apply("b", "oci://reg.example/b:v1", nil)
	a.has("a", runs(good))
	a.has("b", runs(good))
	before := r.count()
	first := r.status("a").Release.ID

	away := &fetch.Error{Problem: chandler.Problem{Code: chandler.CodeFetchFailed, Message: "the registry is away"}, Temporary: true}
	unsigned := chandler.Problemf("SigMissing", "", "", "nobody signed it")
	for i, c := range []struct {
		err    error
		reason string
	}{{unsigned, "False SigMissing"}, {away, "False FetchFailed"}, {nil, "True Resolved"}} {
		r.Govern(t.Context(), &gate{hash: fmt.Sprint("strict ", i), distrust: map[string]error{"a": c.err}})
		r.await("a", chandler.ConditionResolvedRefs, c.reason)
		r.await("b", chandler.ConditionResolvedRefs, "True Resolved")
		a.has("a", runs(good))
	}
	r.Govern(t.Context(), &gate{hash: "place", deny: map[string]chandler.Code{"a": chandler.CodeScopeDenied}})
	r.await("a", chandler.ConditionAccepted, "False ScopeDenied")
	a.has("a", runs(good))
	r.recordsDenied(chandler.CodeScopeDenied)
	r.Govern(t.Context(), &gate{hash: "1"})
	r.await("a", chandler.ConditionAccepted, "True Accepted")
	r.recordsDenied() // else it is judged at the next start
	if r.count() != before || r.status("a").Release.ID != first {
		t.Errorf("%d calls to the registry since, release %s", r.count()-before, r.status("a").Release.ID)
	}

	// A restart under the same policy judges nothing again; under another it does.
	g := &gate{hash: "1"}
	r.settle = func(cfg *control.Config) { cfg.Gate = g }
	r.restart()
	r.deliver()
	r.await("a", chandler.ConditionResolvedRefs, "True Resolved")
	if got := g.trusted(); len(got) != 0 {
		t.Errorf("judged again after a restart: %v", got)
	}
	g = &gate{hash: "other", distrust: map[string]error{"b": unsigned}}
	r.settle = func(cfg *control.Config) { cfg.Gate = g }
	r.restart()
	r.deliver()
	r.await("b", chandler.ConditionResolvedRefs, "False SigMissing")
	r.await("a", chandler.ConditionResolvedRefs, "True Resolved")
	a.stop()
}

// recordsDenied waits until that, and no more, is what records have against releases.
func (r *rig) recordsDenied(want ...chandler.Code) {
	r.t.Helper()
	var got []chandler.Code
	eventually(r.t, func() bool {
		got = nil
		rollouts, _ := r.records.Rollouts(r.t.Context())
		for i := range rollouts {
			for _, d := range rollouts[i].Denied {
				got = append(got, d.Reason)
			}
		}
		return slices.Equal(got, want)
	}, func() string { return fmt.Sprintf("recorded is %v", got) })
}

// Where the operator wants it, what is in force and against the policy is taken out;
// that nobody can be asked takes out nothing.
func TestGateDetaches(t *testing.T) {
	t.Parallel()
	r := newGatedRig(t, &gate{hash: "1", detach: true})
	good := module.Append()
	r.set("a:v1", good)
	a := r.join(gateway)
	r.apply("a", "oci://reg.example/a:v1", nil)
	a.has("a", runs(good))
	held := func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.held) == 1 }
	gone := func() bool { return !held() }
	what := func() string { return fmt.Sprint(held()) }

	away := &fetch.Error{Problem: chandler.Problem{Code: chandler.CodeFetchFailed, Message: "the registry is away"}, Temporary: true}
	r.Govern(t.Context(), &gate{hash: "2", detach: true, distrust: map[string]error{"a": away}})
	r.await("a", chandler.ConditionResolvedRefs, "False FetchFailed")
	if !held() {
		t.Error("taken out because nobody could be asked")
	}
	for i, g := range []*gate{
		{deny: map[string]chandler.Code{"a": chandler.CodePolicyDenied}},
		{distrust: map[string]error{"a": chandler.Problemf("SigMissing", "", "", "nobody signed it")}},
	} {
		g.hash, g.detach = fmt.Sprint("against ", i), true
		r.Govern(t.Context(), g)
		eventually(t, gone, what)
		r.await("a", chandler.ConditionReady, map[int]string{0: "False PolicyDenied", 1: "False SigMissing"}[i])
		if s := r.status("a"); s.Desired != 0 || len(s.Proxies) != 0 {
			t.Errorf("of what is taken out, %d proxies are told of", len(s.Proxies))
		}
		r.Govern(t.Context(), &gate{hash: fmt.Sprint("good ", i), detach: true})
		a.has("a", runs(good))
		r.await("a", chandler.ConditionResolvedRefs, "True Resolved")
	}
}

// The operator's terms are part of a release: another set of them is another release
// of the same bytes.
func TestGateTerms(t *testing.T) {
	t.Parallel()
	r := newGatedRig(t, &gate{hash: "1", terms: policy.Terms{FirstAttach: chandler.FirstAttachDeny}})
	a := r.join(gateway)
	r.apply("a", "oci://reg.example/a:v1", nil)
	a.has("a", func(att chandler.Attachment) bool { return att.Program.Deny })
	r.set("a:v1", module.Append())
	a.has("a", func(att chandler.Attachment) bool {
		return runs(module.Append())(att) && att.FirstAttach == chandler.FirstAttachDeny && att.Capabilities == nil
	})
	first := r.status("a").Release
	before := r.count()
	r.Govern(t.Context(), &gate{hash: "2", terms: policy.Terms{Capabilities: []string{"proxy_log"}}})
	a.has("a", func(att chandler.Attachment) bool {
		return runs(module.Append())(att) && slices.Equal(att.Capabilities, []string{"proxy_log"}) && att.FirstAttach == "" && att.Release != first.ID
	})
	if r.count() != before {
		t.Error("other terms asked the registry")
	}
	r.Govern(t.Context(), &gate{hash: "1"})
	a.has("a", func(att chandler.Attachment) bool { return att.Release == first.ID && att.Capabilities == nil })
}

// A policy that comes while a plugin is being judged is what counts.
func TestGateChangesMeanwhile(t *testing.T) {
	t.Parallel()
	r := newGatedRig(t, stuck{&gate{hash: "1"}})
	r.set("a:v1", module.Append())
	r.apply("a", "oci://reg.example/a:v1", nil)
	r.await("a", chandler.ConditionResolvedRefs, "Unknown Resolving")
	r.Govern(t.Context(), &gate{hash: "2", distrust: map[string]error{"a": errors.Join(chandler.Problemf("SigMissing", "", "", "nobody signed it"))}})
	r.await("a", chandler.ConditionResolvedRefs, "False SigMissing")
	if releases, err := r.records.Releases(t.Context()); err != nil || len(releases) != 0 {
		t.Errorf("recorded: %+v, %v", releases, err)
	}
}

// stuck comes to no end.
type stuck struct{ *gate }

func (stuck) Trust(ctx context.Context, _ *chandler.Plugin, _ *chandler.Release, _ *fetch.Credentials) ([]chandler.Verdict, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

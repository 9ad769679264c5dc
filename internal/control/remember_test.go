package control_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/testenv/module"
)

// A resource that is deleted and comes back, with another uid and after restarts,
// keeps its digest although the tag has moved; one that asks for another module,
// or comes back too late, does not.
func TestRecreatedKeepsItsDigest(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	var late atomic.Int64
	r.settle = func(cfg *control.Config) {
		cfg.Remember = time.Hour
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(late.Load())) }
	}
	r.restart()
	one, two := module.Append(), module.Deny(401)
	r.set("auth:v1", one)
	r.set("auth:v2", two)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	first := a.has("auth", runs(one))
	remove := func(releases, rollouts int) {
		t.Helper()
		delete(r.objects, "auth")
		r.deliver()
		r.left(releases, rollouts)
	}
	remove(0, 1)

	a.stop()
	r.restart()
	a.connect(r)
	r.deliver()
	r.set("auth:v1", two)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	// Until it hears of it, the agent has the one before.
	second := a.has("auth", func(att chandler.Attachment) bool { return att.UID != first.UID })
	if !runs(one)(second) || second.Sequence != 1 {
		t.Errorf("came back as %+v", second)
	}
	r.left(1, 1) // the record of the one before is of no use any more

	remove(0, 1)
	r.apply("auth", "oci://reg.example/auth:v2", nil)
	a.has("auth", runs(two))

	remove(0, 1)
	late.Store(int64(2 * time.Hour))
	r.deliver()
	r.left(0, 0)
}

// A plugin whose release was lost, and whose rollout was not, keeps its digest.
func TestLostReleaseKeepsItsDigest(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	one := module.Append()
	r.set("auth:v1", one)
	r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Wasm.Config = []byte(`{"a":1}`) })
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
	r.stop()
	releases, err := r.records.Releases(t.Context())
	if err != nil || len(releases) != 1 {
		t.Fatal(releases, err)
	}
	if err := r.records.DeleteRelease(t.Context(), releases[0].ID); err != nil {
		t.Fatal(err)
	}
	r.set("auth:v1", module.Deny(401))
	r.start()
	r.deliver()
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
	if got := r.join(gateway).has("auth", runs(one)); string(got.Config) != `{"a":1}` || got.Release != releases[0].ID {
		t.Errorf("attached is %+v; want release %s", got, releases[0].ID)
	}
	r.left(1, 1)
}

// left waits until so many records are left.
func (r *rig) left(releases, rollouts int) {
	r.t.Helper()
	var got string
	eventually(r.t, func() bool {
		a, _ := r.records.Releases(r.t.Context())
		b, _ := r.records.Rollouts(r.t.Context())
		got = fmt.Sprintf("%d releases, %d rollouts", len(a), len(b))
		return len(a) == releases && len(b) == rollouts
	}, func() string { return got })
}

package control_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/testenv/module"
)

func TestApplyEditDelete(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	one, two := module.Append(), module.Deny(401)
	r.set("auth:v1", one)
	r.set("auth:v2", two)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	first := a.has("auth", runs(one))
	if first.Generation != 1 || first.Sequence != 1 || first.Release == "" {
		t.Errorf("attachment %+v", first)
	}
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")

	r.apply("auth", "oci://reg.example/auth:v2", nil)
	if second := a.has("auth", runs(two)); second.Sequence != 2 || second.UID != first.UID {
		t.Errorf("attachment %+v", second)
	}
	delete(r.objects, "auth")
	r.deliver()
	eventually(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.attached) == 0 }, func() string { return "removal" })
	eventually(t, func() bool {
		releases, _ := r.records.Releases(t.Context())
		rollouts, _ := r.records.Rollouts(t.Context())
		return len(releases)+len(rollouts) == 0
	}, func() string { return "records of the deleted plugin go" })
}

func TestOtherNodesAndLateOnes(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Selector = map[string]string{"istio": "ingressgateway"} })
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
	late := r.join(gateway)
	late.has("auth", runs(mod))
	other := r.join(chandler.Node{Namespace: "shop", Name: "cart"})
	eventually(t, func() bool { other.mu.Lock(); defer other.mu.Unlock(); return other.updates == 1 }, func() string { return "first answer" })
	if len(other.attached) != 0 {
		t.Errorf("a node that is not selected got %v", other.held)
	}
}

// A working plugin whose URL is edited to what does not exist stays as it was,
// and the status says why.
func TestUnresolvableKeepsTheLastRelease(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	a.has("auth", runs(mod))

	r.apply("auth", "oci://reg.example/auth:v9", nil)
	r.await("auth", chandler.ConditionResolvedRefs, "False NotFound")
	if s := r.status("auth"); s.Attempt == 0 || s.NextTry.IsZero() || s.Release == nil || s.Release.Generation != 1 {
		t.Errorf("status %+v", s)
	}
	r.set("auth:v8", []byte("not a module"))
	r.apply("auth", "oci://reg.example/auth:v8", nil)
	r.await("auth", chandler.ConditionResolvedRefs, "False WasmMagic")
	if att := a.has("auth", runs(mod)); att.Generation != 1 {
		t.Errorf("attachment %+v", att)
	}
	// It heals without an edit.
	next := module.Deny(403)
	r.set("auth:v8", next)
	a.has("auth", runs(next))
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
}

func TestFirstAttachDeny(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	a := r.join(gateway)
	deny := func(p *chandler.Plugin) { p.FirstAttach = chandler.FirstAttachDeny }
	r.apply("auth", "oci://reg.example/auth:v1", deny)
	a.has("auth", func(att chandler.Attachment) bool { return att.Program.Deny })
	r.await("auth", chandler.ConditionResolvedRefs, "False NotFound")
	mod := module.Append()
	r.set("auth:v1", mod)
	a.has("auth", runs(mod))
	// An update is never denied.
	r.apply("auth", "oci://reg.example/auth:v2", deny)
	r.await("auth", chandler.ConditionResolvedRefs, "False NotFound")
	a.has("auth", runs(mod))
}

func TestInvalidEditKeepsTheLastRelease(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	a.has("auth", runs(mod))
	o := r.objects["auth"]
	o.Generation++
	o.Problems = []chandler.Problem{{Code: chandler.CodeSpecEnum, Field: "spec.phase", Message: "phase is not known"}}
	r.objects["auth"] = o
	r.deliver()
	r.await("auth", chandler.ConditionAccepted, "False SpecEnum")
	a.has("auth", runs(mod))
}

// A restart with nothing to fetch from: the same versions, no resource bytes, and
// nobody is answered before the resources are read.
func TestRestartWithoutRegistry(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	before := a.has("auth", runs(mod))
	a.stop()

	r.fail(errors.New("the registry is away"))
	calls := r.count()
	r.restart()
	a.mu.Lock()
	held := maps.Clone(a.held)
	a.updates, a.bytes = 0, 0
	a.mu.Unlock()
	a.connect(r)
	eventually(t, func() bool { return gauge(t, r.metrics, "chandler_agents") == 1 }, func() string { return "connected" })
	if r.Ready() == nil || a.updates != 0 {
		t.Error("answered before the resources were read")
	}
	r.deliver()
	eventually(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.updates == 1 }, func() string { return "first answer" })
	if a.bytes != 0 || !maps.Equal(a.held, held) {
		t.Errorf("%d bytes; held %v, before %v", a.bytes, a.held, held)
	}
	fresh := r.join(chandler.Node{Namespace: "istio-system", Name: "gw2"})
	if after := fresh.has("auth", runs(mod)); after.Sequence != before.Sequence || after.Release != before.Release {
		t.Errorf("after the restart %+v, before %+v", after, before)
	}
	if r.count() != calls {
		t.Error("the restart asked the registry")
	}
	// A change of configuration alone needs no registry either.
	r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Wasm.Config = []byte(`{"a":1}`) })
	fresh.has("auth", func(att chandler.Attachment) bool {
		return string(att.Config) == `{"a":1}` && att.Sequence == before.Sequence+1
	})
}

// Records that are lost make no agent detach: it keeps what it has until there is
// a release again.
func TestLostRecordsDetachNobody(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	a.has("auth", runs(mod))
	a.stop()
	r.fail(errors.New("the registry is away"))
	r.records, r.dir = record.NewMemory(), t.TempDir()
	r.restart()
	a.updates = 0
	a.connect(r)
	r.deliver()
	eventually(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.updates >= 1 }, func() string { return "first answer" })
	a.has("auth", runs(mod))
	r.await("auth", chandler.ConditionResolvedRefs, "False Internal")
	if s := r.status("auth"); s.InForce != 0 {
		t.Error("claims to be in force what is not known")
	}
	r.fail(nil)
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
	a.has("auth", runs(mod))
}

// The store was emptied while the control plane was down: the module comes back
// by its digest, unasked.
func TestMissingModuleIsFetchedAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
	r.set("auth:v1", module.Deny(500)) // the tag moved meanwhile
	r.set("auth:old", mod)
	r.dir = t.TempDir()
	r.restart()
	a := r.join(gateway)
	r.deliver()
	digest := string(a.has("auth", runs(mod)).Program.Module.Digest)
	eventually(t, func() bool {
		got, err := a.read(digest, 0)
		if err != nil && status.Code(err) != codes.Unavailable {
			t.Fatal(err)
		}
		return bytes.Equal(got, mod)
	}, func() string { return "the module is back" })
}

// A secret that comes is tried at once, and not when its plugin's next try is due.
func TestPullSecretMustBeThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, pullSecretMustBeThere)
}

func pullSecretMustBeThere(t *testing.T) {
	r := newRig(t)
	r.set("auth:v1", module.Append())
	r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Wasm.PullSecret = "s" })
	r.await("auth", chandler.ConditionResolvedRefs, "False SecretType")
	r.secrets = map[source.SecretName]source.Secret{{Namespace: "istio-system", Name: "s"}: {DockerConfigJSON: []byte(`{"auths":{}}`)}}
	began := time.Now()
	r.deliver()
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
	if took := time.Since(began); took > 100*time.Millisecond {
		t.Errorf("a secret that came was tried after %v", took)
	}
}

// F58, and the hundred edits of the walkthrough: the last one wins.
func TestManyEditsTheLastOneWins(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	a := r.join(gateway)
	for i := range 100 {
		r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Wasm.Config = fmt.Appendf(nil, `{"n":%d}`, i) })
	}
	a.has("auth", func(att chandler.Attachment) bool { return string(att.Config) == `{"n":99}` })
	eventually(t, func() bool {
		releases, err := r.records.Releases(t.Context())
		return err == nil && len(releases) <= 11
	}, func() string { return "old releases go" })
	if calls := r.count(); calls > 10 {
		t.Errorf("a hundred configurations of one module made %d requests", calls)
	}
}

func TestManyPluginsAndOneThatHangs(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	a := r.join(gateway)
	for i := range 50 {
		url := "oci://reg.example/auth:v1"
		if i%2 == 0 {
			url = "oci://reg.example/missing:v1"
		}
		r.apply(fmt.Sprintf("p%02d", i), url, nil)
	}
	eventually(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.attached) == 25 }, func() string { return "25 plugins" })
}

// The module of the release before stands by for an undo, also after a restart and
// for an agent that never had it; one that means the same module has none.
func TestStandbyForUndo(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	one, two := module.Append(), module.Deny(401)
	r.set("auth:v1", one)
	r.set("auth:v2", two)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	if att := a.has("auth", runs(one)); len(att.Standby) != 0 {
		t.Errorf("the first release has %v on standby", att.Standby)
	}
	r.apply("auth", "oci://reg.example/auth:v2", nil)
	before := chandler.Digest[chandler.ModuleDigest](one)
	stands := func(att chandler.Attachment) bool {
		return runs(two)(att) && len(att.Standby) == 1 && att.Standby[0].Digest == before && att.Standby[0].Size == int64(len(one))
	}
	a.has("auth", stands)
	a.stop()
	a.updates, a.bytes = 0, 0
	r.restart()
	r.deliver()
	a.connect(r)
	eventually(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.updates == 1 }, func() string { return "first answer" })
	if a.bytes != 0 {
		t.Errorf("an agent that was up to date was sent %d bytes", a.bytes)
	}
	late := r.join(chandler.Node{Namespace: "istio-system", Name: "late"})
	late.has("auth", stands)
	if got, err := late.read(string(before), 0); err != nil || string(got) != string(one) {
		t.Errorf("the module on standby: %d bytes, %v", len(got), err)
	}

	r.apply("auth", "oci://reg.example/auth:v2", func(p *chandler.Plugin) { p.Wasm.Config = []byte(`{"n":1}`) })
	a.has("auth", func(att chandler.Attachment) bool { return string(att.Config) == `{"n":1}` && len(att.Standby) == 0 })
}

// Without a root namespace a plugin reaches proxies of its own namespace only.
func TestNoRootNamespace(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.stop()
	r.root = control.NoRootNamespace
	r.start()
	mod := module.Append()
	r.set("auth:v1", mod)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	r.join(gateway).has("auth", runs(mod))
	other := r.join(chandler.Node{Namespace: "shop", Name: "a"})
	other.conn() // has been answered
	if len(other.attached) != 0 {
		t.Errorf("a proxy of another namespace has %v", other.attached)
	}
}

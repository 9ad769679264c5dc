package control_test

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/sandbox"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/vet"
)

var dbSecret = source.SecretName{Namespace: "istio-system", Name: "db"}

// hide puts a secret there, at a version.
func (r *rig) hide(version, value string) {
	r.secrets = map[source.SecretName]source.Secret{
		dbSecret: {SecretName: dbSecret, Type: "Opaque", Version: version, Values: map[string][]byte{"config": []byte(value)}},
	}
}

// secretive has a plugin's configuration come from that secret, too.
func secretive(p *chandler.Plugin) {
	p.Wasm.Config = []byte(`{"a":1,"b":{"c":2}}`)
	p.Wasm.ConfigFrom = []chandler.SecretKey{{Name: "db", Key: "config"}}
}

func configured(want string) func(chandler.Attachment) bool {
	return func(a chandler.Attachment) bool { return string(a.Config) == want }
}

// problem is what keeps a plugin from being resolved.
func (r *rig) problem(name string) string {
	for _, c := range r.status(name).Conditions {
		if c.Type == chandler.ConditionResolvedRefs && c.Status == chandler.False {
			return c.Message
		}
	}
	return ""
}

// recorded is all that the records hold.
func (r *rig) recorded() string {
	r.t.Helper()
	releases, err := r.records.Releases(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	rollouts, err := r.records.Rollouts(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	b, err := json.Marshal([]any{releases, rollouts})
	if err != nil {
		r.t.Fatal(err)
	}
	return string(b)
}

// The secret's value reaches proxies and no record; another value is another
// release; and without the secret what is in force stays.
func TestConfigFromSecret(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	r.hide("v1", "b: {password: hunter2}")
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", secretive)
	first := a.has("auth", configured(`{"a":1,"b":{"c":2,"password":"hunter2"}}`))
	if !first.SecretConfig || !slices.Contains(first.Requires, chandler.FeatureSecretConfig) {
		t.Errorf("%+v", first)
	}

	calls := r.count()
	r.hide("v2", "b: {password: hunter3}")
	r.deliver()
	second := a.has("auth", configured(`{"a":1,"b":{"c":2,"password":"hunter3"}}`))
	if second.Release == first.Release || second.Sequence != first.Sequence+1 || second.Generation != first.Generation {
		t.Errorf("%+v after %+v", second, first)
	}
	if r.count() != calls {
		t.Error("another value of a secret asked the registry")
	}

	for want, spoil := range map[string]func(){
		`secret "db" is not in namespace istio-system`:              func() { r.secrets = nil },
		`secret "db" in namespace istio-system has no key "config"`: func() { r.hide("v3", ""); delete(r.secrets[dbSecret].Values, "config") },
		`what secret/db#config holds is no object of YAML or JSON`:  func() { r.hide("v4", "[hunter4]") },
		`with the secrets' values the configuration is`:             func() { r.hide("v5", "a: "+strings.Repeat("hunter5", 19000)) },
		`the API server does not answer`: func() {
			r.secrets[dbSecret] = source.Secret{SecretName: dbSecret, Problem: &chandler.Problem{Message: "the API server does not answer"}}
		},
	} {
		r.hide("v2", "b: {password: hunter3}")
		r.deliver()
		r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
		spoil()
		r.deliver()
		eventually(t, func() bool { return strings.Contains(r.problem("auth"), want) }, func() string { return r.problem("auth") + ", want " + want })
		if p := r.problem("auth"); !strings.Contains(p, source.ConfigFromField) || strings.Contains(p, "hunter") {
			t.Error(p)
		}
		// Who comes now gets it, too: it is still known here.
		late := r.join(chandler.Node{Namespace: "istio-system", Name: "late"})
		if got := late.has("auth", configured(string(second.Config))); got.Release != second.Release {
			t.Errorf("%s: %+v, want %+v", want, got, second)
		}
		late.stop()
	}
	if got := a.has("auth", configured(string(second.Config))); got.Sequence != second.Sequence {
		t.Errorf("%+v, want %+v", got, second)
	}

	// To take it out of the annotation is a change as well.
	r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Wasm.Config = []byte(`{"a":1}`) })
	if got := a.has("auth", configured(`{"a":1}`)); got.SecretConfig || len(got.Requires) > 0 {
		t.Errorf("%+v", got)
	}
	if shown := r.recorded(); strings.Contains(shown, "hunter") || !strings.Contains(shown, `"Key":"config"`) {
		t.Error(shown)
	}
}

// A control plane that starts without the secret takes nothing from those who have
// the plugin, and lets nobody pass who has not.
func TestConfigFromSecretThatIsGoneAtTheStart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	r.hide("v1", "password: hunter2")
	a := r.join(gateway)
	r.put("open", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { secretive(p); p.Wasm.FailStrategy = chandler.FailOpen })
	r.apply("auth", "oci://reg.example/auth:v1", secretive)
	whole := configured(`{"a":1,"b":{"c":2},"password":"hunter2"}`)
	before := a.has("auth", whole)
	a.has("open", whole)
	a.stop()

	r.secrets = nil
	r.restart()
	r.deliver()
	r.await("auth", chandler.ConditionResolvedRefs, "False SecretKey")
	a.mu.Lock()
	held := maps.Clone(a.held)
	a.updates = 0
	a.mu.Unlock()
	a.connect(r)
	fresh := r.join(chandler.Node{Namespace: "istio-system", Name: "fresh"})
	denied := fresh.has("auth", func(a chandler.Attachment) bool { return a.Program.Deny })
	if denied.Release != "" || strings.Contains(string(denied.Config), "hunter2") {
		t.Errorf("%+v", denied)
	}
	if _, there := fresh.attached["WasmPlugin/istio-system/open"]; there {
		t.Error("a plugin that may be left out is not")
	}
	eventually(t, func() bool { a.mu.Lock(); defer a.mu.Unlock(); return a.updates > 0 }, func() string { return "first answer" })
	a.mu.Lock()
	if !maps.Equal(a.held, held) {
		t.Errorf("held %v, before %v", a.held, held)
	}
	a.mu.Unlock()

	// The secret of old is the release of old; another is another.
	r.hide("v1", "password: hunter2")
	r.deliver()
	if got := fresh.has("auth", whole); got.Release != before.Release || got.Sequence != before.Sequence {
		t.Errorf("%+v, before %+v", got, before)
	}
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
	r.hide("v2", "password: hunter3")
	r.deliver()
	for _, who := range []*agent{a, fresh} {
		if got := who.has("auth", configured(`{"a":1,"b":{"c":2},"password":"hunter3"}`)); got.Sequence != before.Sequence+1 {
			t.Errorf("%+v", got)
		}
		who.has("open", configured(`{"a":1,"b":{"c":2},"password":"hunter3"}`))
	}
}

// Of a configuration with secrets no word of Envoy's is repeated.
func TestConfigFromSecretIsTriedInSilence(t *testing.T) {
	t.Parallel()
	for _, says := range []error{nil, errors.New("no verdict: hunter2")} {
		r := &rig{t: t, registry: &registry{mods: map[string][]byte{}}, dir: t.TempDir(), objects: map[string]source.Object{}}
		r.records = record.NewMemory()
		repeats := func(_ context.Context, c sandbox.Case) (*chandler.Problem, error) {
			return chandler.Problemf(chandler.CodeWasmConfigure, "", "", "Envoy 9.9 refuses it: no %s", c.Member.Attachment.Config), says
		}
		r.settle = func(c *control.Config) {
			c.Vetter = vet.New(vet.Config{Judges: []vet.Judge{judge{version: "9.9", says: repeats}}, Registerer: c.Registerer})
		}
		r.start()
		r.set("auth:v1", module.Append())
		r.hide("v1", "password: hunter2")
		r.put("open", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Wasm.Config = []byte(`{"shown":1}`) })
		r.apply("auth", "oci://reg.example/auth:v1", secretive)
		eventually(t, func() bool { return strings.Contains(r.problem("auth"), "kept back") && r.problem("open") != "" }, func() string { return r.problem("auth") })
		if p := r.problem("auth"); strings.Contains(p, "hunter2") {
			t.Error(p)
		}
		if p := r.problem("open"); says == nil && !strings.Contains(p, `{"shown":1}`) {
			t.Error(p)
		}
		r.stop()
	}
}

func TestRefuse_B86_OfAnotherType(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.set("auth:v1", module.Append())
	r.hide("v1", "{}")
	r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Wasm.PullSecret = "db" })
	const want = `secret "db" is of type "Opaque"; needs kubernetes.io/dockerconfigjson`
	eventually(t, func() bool { return strings.Contains(r.problem("auth"), want) }, func() string { return r.problem("auth") + ", want " + want })
	if got := r.reason("auth", chandler.ConditionResolvedRefs); got != "False SecretType" {
		t.Error(got)
	}
	t.Attr("refusal", string(chandler.CodeSecretType))
}

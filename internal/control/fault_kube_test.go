package control_test

import (
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/testenv/module"
)

// A control plane starts, and the newest text of a plugin is refused, with no valid
// one known: as in a cluster, where only the newest is kept. Who has the plugin
// keeps it, the record of what was in force stays, and a correction goes on from it.
func TestRestartWithRefusedText(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	one, two := module.Append(), module.Deny(401)
	r.set("auth:v1", one)
	r.set("auth:v2", two)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	before := a.has("auth", runs(one))

	o := r.objects["auth"]
	o.Generation++
	o.Plugin, o.Problems = nil, []chandler.Problem{{Code: chandler.CodeSpecEnum, Field: "spec.phase", Message: "phase is not known"}}
	r.objects["auth"] = o
	a.stop()
	r.restart()
	a.connect(r)
	r.deliver()
	r.await("auth", chandler.ConditionAccepted, "False SpecEnum")
	r.apply("later", "oci://reg.example/auth:v1", nil)
	a.has("later", runs(one)) // and so it was answered
	if after := a.has("auth", runs(one)); after.Release != before.Release || after.Sequence != before.Sequence {
		t.Errorf("after the restart %+v, before %+v", after, before)
	}
	r.apply("auth", "oci://reg.example/auth:v2", nil)
	if after := a.has("auth", runs(two)); after.Sequence != before.Sequence+1 {
		t.Errorf("the correction has sequence %d, before it was %d", after.Sequence, before.Sequence)
	}
}

// The right to read a secret is withdrawn: what is in force stays, what needs no
// secret goes on, and what needs it says why; until the right is there again.
func TestFault_F55_RightWithdrawn(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	one, two := module.Append(), module.Deny(401)
	r.set("auth:v1", one)
	r.set("auth:v2", two)
	name := source.SecretName{Namespace: "istio-system", Name: "pull"}
	good := source.Secret{SecretName: name, DockerConfigJSON: []byte(`{"auths":{"reg.example":{"username":"u","password":"canary"}}}`)}
	r.secrets = map[source.SecretName]source.Secret{name: good}
	needs := func(p *chandler.Plugin) { p.Wasm.PullSecret = "pull" }
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", needs)
	before := a.has("auth", runs(one))

	r.secrets[name] = source.Secret{SecretName: name, Problem: chandler.Problemf(chandler.CodeSecretType, "", "", "the control plane may not read secret pull")}
	r.apply("free", "oci://reg.example/auth:v2", nil)
	a.has("free", runs(two))
	if r.reason("auth", chandler.ConditionResolvedRefs) != "True Resolved" {
		t.Errorf("what is in force is %s", r.reason("auth", chandler.ConditionResolvedRefs))
	}
	r.apply("auth", "oci://reg.example/auth:v2", needs)
	r.await("auth", chandler.ConditionResolvedRefs, "False SecretType")
	for _, c := range r.status("auth").Conditions {
		if c.Type == chandler.ConditionResolvedRefs && !strings.Contains(c.Message, "may not read secret pull") {
			t.Errorf("the reason is told as %q", c.Message)
		}
	}
	if after := a.has("auth", runs(one)); after.Release != before.Release {
		t.Error("what was in force is not")
	}
	r.secrets[name] = good
	r.deliver()
	a.has("auth", runs(two))
}

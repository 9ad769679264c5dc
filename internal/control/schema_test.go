package control_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/testenv/module"
)

// guarded is a schema of {"rules": [{"prefix": ...}], "key": ...}.
const guarded = `{"type":"object","required":["rules"],"properties":{"key":{"type":"string","writeOnly":true},
"rules":{"type":"array","items":{"properties":{"prefix":{"type":"string"},"password":{"minLength":6}},"required":["prefix"]}}}}`

func withConfig(config string) func(*chandler.Plugin) {
	return func(p *chandler.Plugin) { p.Wasm.Config = []byte(config) }
}

func (r *rig) view(name string) control.ObjectView {
	r.t.Helper()
	views, err := r.Objects(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	i := slices.IndexFunc(views, func(v control.ObjectView) bool { return v.Name == name })
	if i < 0 {
		r.t.Fatalf("no %s", name)
	}
	return views[i]
}

// A configuration that is not as its schema has it reaches no proxy and no record,
// and what was right before stays; also after a restart without the registry.
func TestConfigIsJudgedBySchema(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.carry("auth:v1", module.Append(), guarded)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", withConfig(`{"rules":[{"prefix":7}]}`))
	r.await("auth", chandler.ConditionResolvedRefs, "False ConfigSchema")
	if p := r.problem("auth"); !strings.HasPrefix(p, "spec.pluginConfig.rules[0].prefix: must be a string, not a number") {
		t.Error(p)
	}
	if recorded := r.recorded(); strings.Contains(recorded, "auth") {
		t.Errorf("it is recorded: %s", recorded)
	}

	r.apply("auth", "oci://reg.example/auth:v1", withConfig(`{"rules":[{"prefix":"/"}]}`))
	first := a.has("auth", configured(`{"rules":[{"prefix":"/"}]}`))
	release := r.status("auth").Release
	if release.Schema == nil || release.SchemaUnusable() != "" || release.SecretConfig {
		t.Errorf("%+v", release)
	}
	if !strings.Contains(r.recorded(), string(release.Schema.Digest)) {
		t.Error("the release does not name the schema")
	}

	a.stop()
	r.fail(os.ErrDeadlineExceeded)
	r.restart()
	a.connect(r)
	for config, want := range map[string]string{
		`{"rules":[{"prefix":"/"},{}]}`: "spec.pluginConfig.rules[1].prefix: is missing",
		`{"rules":{}}`:                  "spec.pluginConfig.rules: must be a list, not an object",
		``:                              "spec.pluginConfig.rules: is missing",
		`{"rules":[{"prefix":1},{}]}`:   "spec.pluginConfig.rules[0].prefix: must be a string, not a number, says the module's schema; spec.pluginConfig.rules[1].prefix: is missing",
	} {
		r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) {
			if config != "" {
				p.Wasm.Config = []byte(config)
			}
		})
		eventually(t, func() bool { return strings.HasPrefix(r.problem("auth"), want) }, func() string { return r.problem("auth") + ", want " + want })
		if got := a.has("auth", configured(string(first.Config))); got.Release != first.Release {
			t.Errorf("%s: %+v", config, got)
		}
	}
	r.apply("auth", "oci://reg.example/auth:v1", withConfig(`{"rules":[{"prefix":"/x"}]}`))
	a.has("auth", configured(`{"rules":[{"prefix":"/x"}]}`))
}

// What secrets hold is judged with the rest, and no word shows it.
func TestSecretsAreJudgedBySchema(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.carry("auth:v1", module.Append(), guarded)
	a := r.join(gateway)
	from := func(p *chandler.Plugin) {
		p.Wasm.Config = []byte(`{"rules":[]}`)
		p.Wasm.ConfigFrom = []chandler.SecretKey{{Name: "db", Key: "config"}}
	}
	r.hide("v1", `{"key": "hunter2"}`)
	r.apply("auth", "oci://reg.example/auth:v1", from)
	first := a.has("auth", configured(`{"key":"hunter2","rules":[]}`))
	for version, c := range map[string][2]string{
		"v2": {`{"key": 31337}`, "spec.pluginConfig.key: must be a string, not a number"},
		"v3": {`{"rules": [{"prefix": "/", "password": "31337"}]}`, "spec.pluginConfig.rules[0].password: must have 6 characters at least"},
	} {
		r.hide(version, c[0])
		r.deliver()
		eventually(t, func() bool { return strings.HasPrefix(r.problem("auth"), c[1]) }, func() string { return r.problem("auth") })
		if strings.Contains(r.problem("auth"), "31337") {
			t.Error(r.problem("auth"))
		}
	}
	if got := a.has("auth", configured(string(first.Config))); got.Release != first.Release {
		t.Errorf("%+v", got)
	}
}

// A value that is write-only is hidden, and nothing that a plugin says of a
// configuration with one is repeated, whether it was taken or not.
func TestWriteOnly(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.carry("auth:v1", module.Append(), guarded)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", withConfig(`{"key":"hunter2"}`))
	r.await("auth", chandler.ConditionResolvedRefs, "False ConfigSchema")
	hidden := func() [][]string {
		v := r.view("auth")
		if v.Hidden == nil {
			return nil
		}
		return v.Hidden([]byte(`{"key":"hunter2"}`))
	}
	if got := hidden(); len(got) != 1 || strings.Join(got[0], "/") != "key" {
		t.Errorf("of a configuration that was refused %q is hidden", got)
	}
	r.apply("auth", "oci://reg.example/auth:v1", withConfig(`{"key":"hunter2","rules":[]}`))
	if got := a.has("auth", configured(`{"key":"hunter2","rules":[]}`)); !got.SecretConfig {
		t.Errorf("%+v", got)
	}
	if v := r.view("auth"); v.Schema == nil || !v.Status.Release.SecretConfig {
		t.Errorf("%+v", v)
	}

	// Without the schema nobody knows what is not to be shown.
	digest := r.status("auth").Release.Schema.Digest
	a.stop()
	r.fail(os.ErrDeadlineExceeded)
	r.stop()
	if err := os.Remove(filepath.Join(r.dir, strings.TrimPrefix(string(digest), "sha256:")+".wasm")); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.deliver()
	eventually(t, func() bool { return r.Ready() == nil }, func() string { return "it is not ready" })
	if got := hidden(); len(got) != 1 || len(got[0]) != 0 {
		t.Errorf("without its schema %q is hidden", got)
	}
	r.fail(nil)
	eventually(t, func() bool { got := hidden(); return len(got) == 1 && len(got[0]) == 1 }, func() string { return "the schema is not fetched again" })
}

// A schema that is of no use holds nothing up, and that is told.
func TestUnusableSchema(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.carry("auth:v1", module.Append(), `{"$ref":"https://schemas.example/auth.json"}`)
	a := r.join(gateway)
	r.apply("auth", "oci://reg.example/auth:v1", withConfig(`{"a":1}`))
	a.has("auth", configured(`{"a":1}`))
	s := r.status("auth")
	if why := s.Release.SchemaUnusable(); !strings.Contains(why, "nothing is fetched") {
		t.Errorf("why it is of no use: %q", why)
	}
	i := slices.IndexFunc(s.Warnings, func(p chandler.Problem) bool { return p.Code == chandler.CodeSchemaUnusable })
	if i < 0 || s.Warnings[i].Field != "spec.url" || !strings.Contains(s.Warnings[i].Message, "nothing is fetched") {
		t.Errorf("warnings: %v", s.Warnings)
	}
}

// Another lock is resolved at once, in the same generation; one that names what nobody
// has leaves what is in force; and while a lock file cannot be read, nobody is asked.
func TestLock(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	one, two, three := module.Append(), module.Deny(403), module.Prefix()
	r.set("auth:old", one)
	r.set("auth:v1", two)
	lock := func(digest chandler.ArtifactDigest, held bool) {
		t.Helper()
		o := r.objects["auth"]
		p, w := *o.Plugin, *o.Plugin.Wasm
		w.Locked, w.Held = strings.TrimPrefix(string(digest), "sha256:"), held
		p.Wasm, o.Plugin = &w, &p
		r.objects["auth"] = o
		r.deliver()
	}
	runs := func(mod []byte) func(chandler.Attachment) bool {
		return func(a chandler.Attachment) bool {
			return a.Program.Module.Digest == chandler.Digest[chandler.ModuleDigest](mod)
		}
	}
	a := r.join(gateway)
	r.put("auth", "oci://reg.example/auth:v1", nil)
	lock(artifactOf(one), false)
	first := a.has("auth", runs(one))
	lock(artifactOf(two), false)
	second := a.has("auth", runs(two))
	if second.Generation != first.Generation || second.Sequence != first.Sequence+1 {
		t.Errorf("%+v after %+v", second, first)
	}
	lock(artifactOf(three), false)
	r.await("auth", chandler.ConditionResolvedRefs, "False NotFound")
	if p := r.problem("auth"); !strings.Contains(p, "the lock file says") {
		t.Error(p)
	}
	if got := a.has("auth", runs(two)); got.Release != second.Release {
		t.Errorf("%+v", got)
	}
	lock(artifactOf(one), false) // at once, though the last try failed
	third := a.has("auth", runs(one))
	if third.Sequence != second.Sequence+1 {
		t.Errorf("%+v after %+v", third, second)
	}

	calls := r.count()
	lock("", true)
	r.apply("late", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Wasm.Held = true })
	r.set("other:v1", three)
	r.apply("other", "oci://reg.example/other:v1", nil)
	a.has("other", runs(three))
	if r.count() != calls+3 { // what its tag means, its module, its schema
		t.Error("somebody was asked about what is held")
	}
	if got := a.has("auth", runs(one)); got.Release != third.Release {
		t.Errorf("%+v", got)
	}
}

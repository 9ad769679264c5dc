package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/proxywasm"
)

// plugin is one of namespace shop; edit may be nil.
func plugin(t *testing.T, url string, edit func(*chandler.Plugin)) *chandler.Plugin {
	t.Helper()
	ref, problem := chandler.ParseReference(url)
	if problem != nil {
		t.Fatal(problem)
	}
	p := &chandler.Plugin{
		Key:  chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "shop", Name: "auth"},
		Wasm: &chandler.Wasm{URL: url, Reference: ref},
	}
	if edit != nil {
		edit(p)
	}
	return p
}

func in(namespace string) func(*chandler.Plugin) {
	return func(p *chandler.Plugin) { p.Namespace = namespace }
}

func signed(p *chandler.Plugin) bool { return p.Name == "signed" }

// judged is a plugin under a policy, and what is told of it; "" is nothing.
type judged struct {
	name   string
	policy Policy
	plugin *chandler.Plugin
	code   chandler.Code
	text   string
}

func try(t *testing.T, cases []judged) {
	t.Helper()
	for _, c := range cases {
		problems := c.policy.Admit(c.plugin, Ground{RootNamespace: "mesh", Insecure: []string{"plain.example"}, Signed: signed})
		switch {
		case c.code == "" && len(problems) > 0:
			t.Errorf("%s: refused: %v", c.name, problems)
		case c.code == "":
		case len(problems) != 1:
			t.Errorf("%s: %d problems: %v", c.name, len(problems), problems)
		case problems[0].Code != c.code || !strings.Contains(problems[0].Error(), c.text):
			t.Errorf("%s: %s: %s\nwant %s: %s", c.name, problems[0].Code, problems[0].Error(), c.code, c.text)
		default:
			t.Attr("refusal", string(c.code))
		}
	}
}

const digest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

// Without a section, or in an empty file, everything may be that may be for Istio.
func TestNothingIsRestrictedByDefault(t *testing.T) {
	t.Parallel()
	everything := func(p *chandler.Plugin) {
		p.Namespace, p.Phase = "mesh", chandler.PhaseAuthn
		p.Wasm.PullSecret = "s"
		for i := range 200 {
			p.Wasm.Env = append(p.Wasm.Env, chandler.EnvVar{Name: fmt.Sprint("V", i), Host: true})
		}
	}
	for _, url := range []string{"reg.example/a:v1", "http://h.example/x.wasm", "file:///opt/x.wasm", "plain.example/a"} {
		try(t, []judged{{name: url, plugin: plugin(t, url, everything)}})
	}
	var none Policy
	p := plugin(t, "reg.example/a", nil)
	if terms := none.Terms(p); terms.FirstAttach != "" || terms.Capabilities != nil {
		t.Errorf("terms %+v", terms)
	}
	if problem := none.Accept(p, &chandler.Release{Program: chandler.Program{Module: &chandler.Module{Size: 1 << 30}}}); problem != nil {
		t.Error(problem)
	}
}

func TestRegistries(t *testing.T) {
	t.Parallel()
	rules := []Origin{
		{Scope: Scope{[]string{"shop", "team-*"}}, Repositories: []string{"reg.example/team/**", "https://h.example/plugins/*.wasm", "docker.io/library/*"}},
		{Scope: Scope{[]string{"shop"}}, Repositories: []string{"*.mirror.example/*"}, Require: RequireDigest},
		{Scope: Scope{[]string{"shop"}}, Repositories: []string{"signed.example/*"}, Require: RequireSignature},
		{Scope: Scope{[]string{"shop"}}, Repositories: []string{"either.example/*"}, Require: RequireEither},
	}
	p := Policy{Registries: rules}
	name := func(p *chandler.Plugin) { p.Name = "signed" }
	pin := func(p *chandler.Plugin) { p.Wasm.SHA256 = digest[7:] }
	denied := chandler.CodePolicyDenied
	try(t, []judged{
		{"allowed", p, plugin(t, "oci://reg.example/team/a:v1", nil), "", ""},
		{"below", p, plugin(t, "reg.example/team/x/y", in("team-1")), "", ""},
		{"another repository", p, plugin(t, "reg.example/other/a", nil), denied, `spec.url: modules for namespace shop may not come from "reg.example/other/a"; push it to reg.example/team/**, https://h.example/plugins/*.wasm, docker.io/library/*, *.mirror.example/*, signed.example/* or 1 more place`},
		{"a name that begins alike", p, plugin(t, "reg.example.evil.example/team/a", nil), denied, "may not come from"},
		{"a name that ends alike", p, plugin(t, "evil-reg.example/team/a", nil), denied, "may not come from"},
		{"another port", p, plugin(t, "reg.example:5000/team/a", nil), denied, "may not come from"},
		{"another namespace", p, plugin(t, "reg.example/team/a", in("other")), denied, "modules for namespace other may come from nowhere"},
		{"https, its query does not count", p, plugin(t, "https://h.example/plugins/a.wasm?t=1", nil), "", ""},
		{"http is not https", p, plugin(t, "http://h.example/plugins/a.wasm", nil), denied, "may not come from"},
		{"a * is one part", p, plugin(t, "https://h.example/plugins/x/a.wasm", nil), denied, "may not come from"},
		{"docker's defaults", p, plugin(t, "busybox", nil), "", ""},
		{"a digest is wanted", p, plugin(t, "eu.mirror.example/a:v1", nil), denied, "eu.mirror.example/a lacks what it must have: registries[1] of the operator's file wants a digest"},
		{"a digest in the url", p, plugin(t, "eu.mirror.example/a@"+digest, nil), "", ""},
		{"a digest beside it", p, plugin(t, "eu.mirror.example/a:v1", pin), "", ""},
		{"a digest in a lock file", p, plugin(t, "eu.mirror.example/a:v1", func(p *chandler.Plugin) { p.Wasm.Locked = digest[7:] }), "", ""},
		{"a signature is wanted", p, plugin(t, "signed.example/a@"+digest, nil), denied, "wants a signature"},
		{"a signature is demanded", p, plugin(t, "signed.example/a", name), "", ""},
		{"one of both is wanted", p, plugin(t, "either.example/a", nil), denied, "wants a digest or a signature"},
		{"one of both: digest", p, plugin(t, "either.example/a@"+digest, nil), "", ""},
		{"one of both: signature", p, plugin(t, "either.example/a", name), "", ""},
		{"an empty list allows nothing", Policy{Registries: []Origin{}}, plugin(t, "reg.example/team/a", nil), denied, "may come from nowhere"},
		{"the other kind's field", p, plugin(t, "reg.example/a", func(p *chandler.Plugin) { p.Kind = chandler.KindTrafficExtension }), denied, "spec.wasm.url: "},
		{"Lua comes from nowhere else", p, &chandler.Plugin{Lua: &chandler.Lua{}}, "", ""},
		{"files are another section's", p, plugin(t, "file:///opt/x.wasm", nil), "", ""},
	})
}

// B16: of paths, those that are relative or lead out with .. are no references at all.
func TestRefuse_B16_Files(t *testing.T) {
	t.Parallel()
	p := Policy{Files: []Folder{{Scope: Scope{[]string{"shop"}}, Roots: []string{"/opt/plugins", "/srv"}}, {Scope: Scope{[]string{"all"}}, Roots: []string{"/"}}}}
	denied := chandler.CodeFileDenied
	try(t, []judged{
		{"below a root", p, plugin(t, "file:///opt/plugins/a/x.wasm", nil), "", ""},
		{"below another", p, plugin(t, "file:///srv/x.wasm", nil), "", ""},
		{"beside it", p, plugin(t, "file:///opt/plugins-of-others/x.wasm", nil), denied, `spec.url: file "/opt/plugins-of-others/x.wasm" is in no folder that namespace shop may use; put it below /opt/plugins, /srv`},
		{"anywhere", p, plugin(t, "file:///etc/x.wasm", in("all")), "", ""},
		{"of a tenant", p, plugin(t, "file:///opt/plugins/x.wasm", in("other")), denied, "namespace other may not use files of the proxies' machines"},
		{"no folder", Policy{Files: []Folder{}}, plugin(t, "file:///opt/x.wasm", nil), denied, "may not use files"},
		{"strict, without a section", Policy{Strict: true}, plugin(t, "file:///opt/x.wasm", nil), denied, "may not use files"},
		{"strict, with one", Policy{Strict: true, Files: p.Files}, plugin(t, "file:///srv/x.wasm", nil), "", ""},
	})
	for _, path := range []string{"file://x.wasm", "file:///opt/plugins/../../etc/x.wasm", "file:///opt/./x.wasm"} {
		if _, problem := chandler.ParseReference(path); problem == nil || problem.Code != denied {
			t.Errorf("%s: %v", path, problem)
		}
	}
}

func TestRefuse_B21_HostEnvironment(t *testing.T) {
	t.Parallel()
	env := func(vars ...chandler.EnvVar) func(*chandler.Plugin) {
		return func(p *chandler.Plugin) { p.Wasm.Env = vars }
	}
	p := Policy{HostEnvironment: []Environment{{Scope: Scope{[]string{"shop"}}, Names: []string{"REGION", "POD_*"}}}}
	try(t, []judged{
		{"allowed", p, plugin(t, "a", env(chandler.EnvVar{Name: "REGION", Host: true}, chandler.EnvVar{Name: "POD_IP", Host: true})), "", ""},
		{"one's own value", p, plugin(t, "a", env(chandler.EnvVar{Name: "AWS_SECRET_ACCESS_KEY", Value: "x"})), "", ""},
		{"not on the list", p, plugin(t, "a", env(chandler.EnvVar{Name: "REGION", Host: true}, chandler.EnvVar{Name: "AWS_SECRET_ACCESS_KEY", Host: true})), chandler.CodeEnvHost,
			`spec.vmConfig.env[1].name: host variable "AWS_SECRET_ACCESS_KEY" is not on the operator's list for namespace shop`},
		{"another namespace", p, plugin(t, "a", func(p *chandler.Plugin) {
			p.Namespace, p.Wasm.Env = "other", []chandler.EnvVar{{Name: "REGION", Host: true}}
		}), chandler.CodeEnvHost, "REGION"},
		{"nobody's", Policy{HostEnvironment: []Environment{}}, plugin(t, "a", env(chandler.EnvVar{Name: "REGION", Host: true})), chandler.CodeEnvHost, "REGION"},
	})
}

func TestRefuse_B26_Scope(t *testing.T) {
	t.Parallel()
	p := Policy{RootNamespace: []RootRule{{Plugins: []string{"log-*", "auth"}}, {Plugins: []string{"auth"}, Everywhere: true}}}
	root := func(name string, edit func(*chandler.Plugin)) *chandler.Plugin {
		return plugin(t, "a", func(p *chandler.Plugin) {
			p.Namespace, p.Name = "mesh", name
			if edit != nil {
				edit(p)
			}
		})
	}
	selects := func(p *chandler.Plugin) { p.Selector = map[string]string{"app": "x"} }
	phase := func(phase chandler.Phase, namespace string) *chandler.Plugin {
		return plugin(t, "a", func(p *chandler.Plugin) { p.Phase, p.Namespace = phase, namespace })
	}
	phases := Policy{Phases: []PhaseRule{{Allow: []PhaseName{"STATS", "UNSPECIFIED"}}, {Scope: Scope{[]string{"mesh"}}, Allow: []PhaseName{"AUTHN"}}}}
	denied := chandler.CodeScopeDenied
	try(t, []judged{
		{"everywhere", p, root("auth", nil), "", ""},
		{"with a selector", p, root("log-a", selects), "", ""},
		{"with a target", p, root("log-a", func(p *chandler.Plugin) { p.TargetRefs = []chandler.TargetRef{{Kind: "Gateway", Name: "g"}} }), "", ""},
		{"without a selector", p, root("log-a", nil), denied, `spec.selector: a plugin of the root namespace without a selector is for every proxy there is, and "log-a" may not be`},
		{"not named", p, root("other", selects), denied, `metadata.namespace: mesh is the root namespace, whose plugins are for proxies of all namespaces, and "other" is not among those allowed`},
		{"of its own namespace", p, plugin(t, "a", nil), "", ""},
		{"nobody", Policy{RootNamespace: []RootRule{}}, root("auth", nil), denied, "metadata.namespace"},
		{"a phase for all", phases, phase(chandler.PhaseStats, "shop"), "", ""},
		{"no phase", phases, phase(chandler.PhaseUnspecified, "shop"), "", ""},
		{"a phase of others", phases, phase(chandler.PhaseAuthn, "shop"), denied, "spec.phase: phase AUTHN is not allowed in namespace shop"},
		{"a phase of one's own", phases, phase(chandler.PhaseAuthn, "mesh"), "", ""},
		{"no phase is one, too", Policy{Phases: []PhaseRule{{Allow: []PhaseName{"AUTHN"}}}}, phase(chandler.PhaseUnspecified, "shop"), denied, "phase UNSPECIFIED is not allowed"},
		{"Lua has a phase, too", phases, &chandler.Plugin{Phase: chandler.PhaseAuthz, Lua: &chandler.Lua{}}, denied, "spec.phase"},
	})
}

// The rows that are refusals where the file says strict, and nothing otherwise.
func TestRefuse_B7_B10_B19_B20_Strict(t *testing.T) {
	t.Parallel()
	strict := Policy{Strict: true}
	named := Policy{Strict: true, Registries: []Origin{{Repositories: []string{"http://h.example/**"}}}}
	secret := func(p *chandler.Plugin) { p.Wasm.PullSecret = "s" }
	env := func(n, size int) func(*chandler.Plugin) {
		return func(p *chandler.Plugin) {
			for i := range n {
				p.Wasm.Env = append(p.Wasm.Env, chandler.EnvVar{Name: fmt.Sprint("V", i), Value: strings.Repeat("v", size)})
			}
		}
	}
	try(t, []judged{
		{"oci", strict, plugin(t, "oci://reg.example/a", secret), "", ""},
		{"https", strict, plugin(t, "https://h.example/a", nil), "", ""},
		{"no scheme", strict, plugin(t, "reg.example/a:v1", nil), chandler.CodeURLAmbiguous, `spec.url: url "reg.example/a:v1" names no scheme, which the operator's file asks for (strict); write oci://reg.example/a`},
		{"plain http", strict, plugin(t, "http://h.example/a", nil), chandler.CodeURLInsecure, "spec.url: plain http needs a rule for this host and a digest"},
		{"plain http, host allowed", named, plugin(t, "http://h.example/a", nil), chandler.CodeURLInsecure, "a digest"},
		{"plain http, allowed and pinned", named, plugin(t, "http://h.example/a", func(p *chandler.Plugin) { p.Wasm.SHA256 = digest[7:] }), "", ""},
		{"insecure registry", strict, plugin(t, "oci://plain.example/a", nil), chandler.CodeURLInsecure, "a digest"},
		{"insecure registry, pinned", strict, plugin(t, "oci://plain.example/a@"+digest, nil), "", ""},
		{"a pull secret of no use", strict, plugin(t, "https://h.example/a", secret), chandler.CodeSecretUnused, "spec.imagePullSecret: a pull secret works only with oci urls"},
		{"64 variables", strict, plugin(t, "oci://reg.example/a", env(64, 1)), "", ""},
		{"65 variables", strict, plugin(t, "oci://reg.example/a", env(65, 1)), chandler.CodeEnvName, "spec.vmConfig.env: env has 65 entries, limit 64"},
		{"a large one", strict, plugin(t, "oci://reg.example/a", env(1, 4096)), chandler.CodeEnvName, "an entry of env has 4098 bytes, limit 4096"},
	})
}

func TestLimits(t *testing.T) {
	t.Parallel()
	p := Policy{Limits: []Limit{
		{ModuleSize: 4 << 20},
		{Scope: Scope{[]string{"shop"}}, Repositories: []string{"reg.example/small/*"}, ModuleSize: 1 << 20, LoadTime: 500 * time.Millisecond},
	}}
	release := func(size, code int64) *chandler.Release {
		return &chandler.Release{Program: chandler.Program{Module: &chandler.Module{Size: size}}, CodeSize: code}
	}
	small, other := plugin(t, "reg.example/small/a", nil), plugin(t, "reg.example/a", nil)
	for _, c := range []struct {
		name    string
		plugin  *chandler.Plugin
		release *chandler.Release
		code    chandler.Code
		text    string
	}{
		{"fits", small, release(1<<20, 400_000), "", ""},
		{"too large for all", other, release(5<<20, 1), chandler.CodeModuleTooLarge, "spec.url: the module has 5242880 bytes; limits[0] of the operator's file allows 4194304"},
		{"too large for these", small, release(2<<20, 1), chandler.CodeModuleTooLarge, "limits[1] of the operator's file allows 1048576"},
		{"not for others", other, release(2<<20, 2<<20), "", ""},
		{"too slow", small, release(1<<20, 600_000), chandler.CodePolicyDenied, "the module has 600000 bytes of code, which an Envoy is predicted to compile in 600ms; limits[1] of the operator's file allows 500ms"},
		{"nobody knows its code", small, release(1<<20, 0), chandler.CodePolicyDenied, "predicted to compile in 1.049s"},
		{"a file has no size here", small, &chandler.Release{Program: chandler.Program{File: &chandler.LocalFile{}}}, "", ""},
	} {
		switch problem := p.Accept(c.plugin, c.release); {
		case c.code == "" && problem == nil:
		case problem == nil || problem.Code != c.code || !strings.Contains(problem.Error(), c.text):
			t.Errorf("%s: %v", c.name, problem)
		}
	}
}

func TestTerms(t *testing.T) {
	t.Parallel()
	p := Policy{
		DenyFirstAttach: []DenyRule{{Scope: Scope{[]string{"shop"}}, Phases: []PhaseName{"AUTHN"}}, {Scope: Scope{[]string{"bank"}}}},
		Capabilities: []CapabilityRule{
			{Deny: []string{"proxy_http_call", "proxy_grpc_*"}},
			{Scope: Scope{[]string{"bank"}}, Plugins: []string{"caller"}},
		},
	}
	authn := func(p *chandler.Plugin) { p.Phase = chandler.PhaseAuthn }
	for _, c := range []struct {
		plugin *chandler.Plugin
		want   chandler.FirstAttach
	}{
		{plugin(t, "a", authn), chandler.FirstAttachDeny},
		{plugin(t, "a", nil), chandler.FirstAttachHold},
		{plugin(t, "a", in("bank")), chandler.FirstAttachDeny},
		{plugin(t, "a", in("other")), chandler.FirstAttachHold},
		{plugin(t, "a", func(p *chandler.Plugin) { p.FirstAttach = chandler.FirstAttachDeny }), chandler.FirstAttachDeny},
	} {
		if got := p.Terms(c.plugin).FirstAttach; got != c.want {
			t.Errorf("%+v: %q", c.plugin, got)
		}
	}
	capable := func(policy Policy, p *chandler.Plugin, name string) bool {
		list := policy.Terms(p).Capabilities
		return list == nil || slices.Contains(list, name)
	}
	shop := plugin(t, "a", nil)
	for name, want := range map[string]bool{
		"proxy_log": true, "fd_write": true, "proxy_http_call": false, "proxy_grpc_call": false, "proxy_grpc_stream": false,
	} {
		if capable(p, shop, name) != want {
			t.Errorf("%s is allowed: %v", name, !want)
		}
	}
	if got := p.Terms(plugin(t, "a", func(p *chandler.Plugin) { p.Namespace, p.Name = "bank", "caller" })).Capabilities; got != nil {
		t.Errorf("an exception that allows all gives %v", got)
	}
	few := Policy{Capabilities: []CapabilityRule{{Scope: Scope{[]string{"shop"}}, Allow: []string{"proxy_log", "wasi"}, Deny: []string{"random_get"}}}}
	for name, want := range map[string]bool{"proxy_log": true, "fd_write": true, "random_get": false, "proxy_get_property": false} {
		if capable(few, shop, name) != want {
			t.Errorf("of few, %s is allowed: %v", name, !want)
		}
	}
	// A plugin for which no rule speaks may call nothing, and is called all the same: else
	// it would let everything pass.
	got := few.Terms(plugin(t, "a", in("other"))).Capabilities
	if !slices.Equal(got, proxywasm.Callbacks()) || !slices.Contains(got, "proxy_on_request_headers") {
		t.Errorf("no rule speaks: %v", got)
	}
	if got := few.Terms(&chandler.Plugin{Lua: &chandler.Lua{}}).Capabilities; got != nil {
		t.Errorf("Lua: %v", got)
	}
}

// Check tells what would not do what it looks like.
func TestCheck(t *testing.T) {
	t.Parallel()
	type checker interface{ Check() []chandler.Problem }
	for _, c := range []struct {
		rule  checker
		field string // "" for none wrong
	}{
		{&Origin{Repositories: []string{"reg.example/**", "reg.example:5000/a", "*.team.example/x/*", "https://h.example/*", "localhost:5000/**"}}, ""},
		{&Origin{}, "repositories"},
		{&Origin{Repositories: []string{"reg.example"}}, "repositories[0]"},
		{&Origin{Repositories: []string{"reg.example/"}}, "repositories[0]"},
		{&Origin{Repositories: []string{"a/b", "**"}}, "repositories[1]"},
		{&Origin{Repositories: []string{"*/team"}}, "repositories[0]"},
		{&Origin{Repositories: []string{"reg*/team"}}, "repositories[0]"},
		{&Origin{Repositories: []string{"*.example/team"}}, "repositories[0]"},
		{&Origin{Repositories: []string{"Reg.example/team"}}, "repositories[0]"},
		{&Origin{Repositories: []string{"ftp://reg.example/team"}}, "repositories[0]"},
		{&Origin{Repositories: []string{"reg.example/a**"}}, "repositories[0]"},
		{&Origin{Repositories: []string{"reg.example/**/**/**/**"}}, "repositories[0]"},
		{&Origin{Repositories: []string{"a/b"}, Scope: Scope{[]string{}}}, "namespaces"},
		{&Origin{Repositories: []string{"a/b"}, Scope: Scope{[]string{""}}}, "namespaces[0]"},
		{&Origin{Repositories: []string{"a/b"}, Require: "hash"}, "require"},
		{&Folder{Roots: []string{"/", "/opt/x"}}, ""},
		{&Folder{Roots: []string{"opt"}}, "roots[0]"},
		{&Folder{Roots: []string{"/opt/../etc"}}, "roots[0]"},
		{&Folder{Roots: []string{"/opt/"}}, "roots[0]"},
		{&Folder{}, "roots"},
		{&Environment{Names: []string{"A*"}}, ""},
		{&Environment{}, "names"},
		{&PhaseRule{Allow: []PhaseName{"AUTHN", "UNSPECIFIED"}}, ""},
		{&PhaseRule{Allow: []PhaseName{"authn"}}, "allow[0]"},
		{&RootRule{Plugins: []string{"a"}}, ""},
		{&RootRule{Everywhere: true}, "plugins"},
		{&Limit{ModuleSize: 1}, ""},
		{&Limit{}, "*"},
		{&Limit{LoadTime: -1}, "loadTime"},
		{&CapabilityRule{Allow: []string{"*", "proxy_grpc_*", "fd_write", "wasi"}, Deny: []string{"proxy_http_call"}}, ""},
		{&CapabilityRule{Allow: []string{}}, ""},
		{&CapabilityRule{Deny: []string{"proxy_http_cal"}}, "deny[0]"},
		{&CapabilityRule{Allow: []string{"proxy_on_request_headers"}}, "allow[0]"},
		{&DenyRule{}, ""},
		{&DenyRule{Phases: []PhaseName{}}, "phases"},
		{&Policy{OnViolation: "detach"}, ""},
		{&Policy{OnViolation: "warn"}, "onViolation"},
	} {
		problems := c.rule.Check()
		switch {
		case c.field == "" && len(problems) > 0:
			t.Errorf("%+v: %v", c.rule, problems)
		case c.field != "" && (len(problems) == 0 || problems[0].Field != strings.TrimPrefix(c.field, "*")):
			t.Errorf("%+v: %v, want one of %s", c.rule, problems, c.field)
		}
	}
	var b Bytes
	for text, want := range map[string]Bytes{"5MiB": 5 << 20, "1.5 KiB": 1536, "100": 100, "1GiB": 1 << 30} {
		if err := b.UnmarshalText([]byte(text)); err != nil || b != want {
			t.Errorf("%s is %d, %v", text, b, err)
		}
	}
	for _, text := range []string{"", "0", "-1", "MiB", "5MB", "1e300GiB", "NaN"} {
		if err := b.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken for a size", text)
		}
	}
}

package policy

import (
	"fmt"
	"slices"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/proxywasm"
)

// What strict allows of variables.
const (
	strictEnv      = 64
	strictEnvBytes = 4 << 10
)

// Admit tells what the policy has against a plugin, before anything of it is
// fetched. ScopeDenied is about where it stands and whom it selects; all else about
// what it wants to run, and with what.
func (p *Policy) Admit(plugin *chandler.Plugin, g Ground) []chandler.Problem {
	j := judgement{p, plugin, g, nil}
	j.place()
	if plugin.Wasm != nil {
		j.source()
		j.environment()
	}
	return j.problems
}

type judgement struct {
	*Policy
	plugin   *chandler.Plugin
	ground   Ground
	problems []chandler.Problem
}

// field is the path of a module's field in the plugin's resource.
func (j *judgement) field(name string) string {
	if j.plugin.Kind == chandler.KindTrafficExtension {
		return "spec.wasm." + name
	}
	return "spec." + name
}

func (j *judgement) deny(code chandler.Code, field, hint, format string, args ...any) {
	j.problems = append(j.problems, *chandler.Problemf(code, field, hint, format, args...))
}

// place judges phase and scope.
func (j *judgement) place() {
	p := j.plugin
	if j.Phases != nil && !slices.ContainsFunc(j.Phases, func(r PhaseRule) bool { return r.names(p.Namespace) && allowsPhase(r.Allow, p.Phase) }) {
		phase := string(p.Phase)
		if phase == "" {
			phase = "UNSPECIFIED"
		}
		j.deny(chandler.CodeScopeDenied, "spec.phase", "use a phase that the operator's file allows there (section phases)",
			"phase %s is not allowed in namespace %s", phase, p.Namespace)
	}
	if j.RootNamespace == nil || p.Namespace != j.ground.RootNamespace || p.Namespace == "" {
		return
	}
	named, everywhere := false, false
	for _, r := range j.RootNamespace {
		if matches(r.Plugins, p.Name) {
			named, everywhere = true, everywhere || r.Everywhere
		}
	}
	switch {
	case !named:
		j.deny(chandler.CodeScopeDenied, "metadata.namespace", "write it in the namespace of the proxies that it is for; the operator's file names those that may stand here (section rootNamespace)",
			"%s is the root namespace, whose plugins are for proxies of all namespaces, and %s is not among those allowed", p.Namespace, chandler.Quote(p.Name))
	case !everywhere && len(p.Selector) == 0 && len(p.TargetRefs) == 0:
		j.deny(chandler.CodeScopeDenied, "spec.selector", "select proxies by their labels; the operator's file names the plugins that may do without (section rootNamespace, everywhere)",
			"a plugin of the root namespace without a selector is for every proxy there is, and %s may not be", chandler.Quote(p.Name))
	}
}

// source judges where the module comes from.
func (j *judgement) source() {
	w := j.plugin.Wasm
	ref := w.Reference
	if j.Strict {
		j.strictSource()
	}
	if ref.Scheme == chandler.SchemeFile {
		j.file(ref.Path)
		return
	}
	if j.Registries == nil {
		return
	}
	var allowed []string // of this namespace
	lacking := ""
	for i, r := range j.Registries {
		if !r.names(j.plugin.Namespace) {
			continue
		}
		if !matchesOrigin(r.Repositories, ref) {
			allowed = append(allowed, r.Repositories...)
			continue
		}
		if j.satisfies(r.Require) {
			return
		}
		lacking = fmt.Sprintf("registries[%d] of the operator's file wants %s", i, spell(r.Require))
	}
	switch {
	case lacking != "":
		j.deny(chandler.CodePolicyDenied, j.field("url"), "pin it: "+ref.Origin()+"@sha256:..., the field sha256, or chandler lock; a signature counts where the operator's file says whose (section signatures)",
			"%s lacks what it must have: %s", ref.Origin(), lacking)
	case len(allowed) == 0:
		j.deny(chandler.CodePolicyDenied, j.field("url"), "ask the operator to allow it (section registries)",
			"modules for namespace %s may come from nowhere", j.plugin.Namespace)
	default:
		j.deny(chandler.CodePolicyDenied, j.field("url"), "push it to "+list(allowed)+", or ask the operator to allow it (section registries)",
			"modules for namespace %s may not come from %s", j.plugin.Namespace, chandler.Quote(ref.Origin()))
	}
}

// list names a few of many.
func list(names []string) string {
	const most = 5
	shown := strings.Join(names[:min(len(names), most)], ", ")
	if more := len(names) - most; more > 0 {
		shown += " or " + chandler.Count(more, "more place", "more places")
	}
	return shown
}

func spell(r Requirement) string {
	switch r {
	case RequireDigest:
		return "a digest"
	case RequireSignature:
		return "a signature"
	}
	return "a digest or a signature"
}

func (j *judgement) satisfies(r Requirement) bool {
	digest := j.plugin.Wasm.Pinned()
	signed := j.ground.Signed != nil && j.ground.Signed(j.plugin)
	switch r {
	case RequireDigest:
		return digest
	case RequireSignature:
		return signed
	case RequireEither:
		return digest || signed
	}
	return true
}

func (j *judgement) strictSource() {
	w, url := j.plugin.Wasm, j.field("url")
	ref := w.Reference
	if ref.Scheme == chandler.SchemeOCI && !strings.HasPrefix(strings.ToLower(w.URL), "oci://") {
		j.deny(chandler.CodeURLAmbiguous, url, "write oci://"+ref.Host+"/"+ref.Repository, "url %s names no scheme, which the operator's file asks for (strict)", chandler.Quote(w.URL))
	}
	pinned := w.Pinned()
	plain := ref.Scheme == chandler.SchemeHTTP || ref.Scheme == chandler.SchemeOCI && slices.Contains(j.ground.Insecure, ref.Host)
	named := ref.Scheme == chandler.SchemeOCI || slices.ContainsFunc(j.Registries, func(r Origin) bool {
		return r.names(j.plugin.Namespace) && matchesOrigin(r.Repositories, ref)
	})
	if plain && !(pinned && named) {
		j.deny(chandler.CodeURLInsecure, url, "use https, or have the operator allow the host (section registries) and pin the module by its digest",
			"plain http needs a rule for this host and a digest (strict)")
	}
	if w.PullSecret != "" && ref.Scheme != chandler.SchemeOCI {
		j.deny(chandler.CodeSecretUnused, j.field("imagePullSecret"), "remove it, or use an oci url", "a pull secret works only with oci urls; this one is %s (strict)", ref.Scheme)
	}
}

// file judges a path on the proxies' machines. References hold it cleaned, absolute
// and without "..".
func (j *judgement) file(path string) {
	if j.Files == nil && !j.Strict {
		return
	}
	var roots []string
	for _, r := range j.Files {
		if !r.names(j.plugin.Namespace) {
			continue
		}
		for _, root := range r.Roots {
			if root == "/" || strings.HasPrefix(path, strings.TrimSuffix(root, "/")+"/") {
				return
			}
		}
		roots = append(roots, r.Roots...)
	}
	if len(roots) == 0 {
		j.deny(chandler.CodeFileDenied, j.field("url"), "push the module to a registry, or ask the operator to allow the folder (section files)",
			"namespace %s may not use files of the proxies' machines", j.plugin.Namespace)
		return
	}
	j.deny(chandler.CodeFileDenied, j.field("url"), "put it below "+list(roots), "file %s is in no folder that namespace %s may use", chandler.Quote(path), j.plugin.Namespace)
}

func (j *judgement) environment() {
	env, bytes := j.plugin.Wasm.Env, 0
	for i, v := range env {
		bytes = max(bytes, len(v.Name)+len(v.Value))
		if !v.Host || j.HostEnvironment == nil {
			continue
		}
		allowed := slices.ContainsFunc(j.HostEnvironment, func(r Environment) bool { return r.names(j.plugin.Namespace) && matches(r.Names, v.Name) })
		if !allowed {
			j.deny(chandler.CodeEnvHost, j.field(fmt.Sprintf("vmConfig.env[%d].name", i)), "write the value itself, or ask the operator to allow it (section hostEnvironment)",
				"host variable %s is not on the operator's list for namespace %s", chandler.Quote(v.Name), j.plugin.Namespace)
		}
	}
	if !j.Strict {
		return
	}
	if len(env) > strictEnv {
		j.deny(chandler.CodeEnvName, j.field("vmConfig.env"), "put settings into pluginConfig", "env has %d entries, limit %d (strict)", len(env), strictEnv)
	}
	if bytes > strictEnvBytes {
		j.deny(chandler.CodeEnvName, j.field("vmConfig.env"), "put settings into pluginConfig", "an entry of env has %d bytes, limit %d (strict)", bytes, strictEnvBytes)
	}
}

// Accept tells what the policy has against a release of an admitted plugin: how large
// its module is, and how long it is predicted to load.
func (p *Policy) Accept(plugin *chandler.Plugin, r *chandler.Release) *chandler.Problem {
	m := r.Program.Module
	if m == nil || plugin.Wasm == nil {
		return nil
	}
	field := (&judgement{plugin: plugin}).field("url")
	code := r.CodeSize
	if code == 0 {
		code = m.Size // recorded before it was looked at: at most all of it
	}
	predicted := proxywasm.PredictLoad(code)
	for i, l := range p.Limits {
		if !l.names(plugin.Namespace) || l.Repositories != nil && !matchesOrigin(l.Repositories, plugin.Wasm.Reference) {
			continue
		}
		if l.ModuleSize > 0 && m.Size > int64(l.ModuleSize) {
			return chandler.Problemf(chandler.CodeModuleTooLarge, field, "build it smaller (without symbols, optimised for size), or have the limit raised",
				"the module has %d bytes; limits[%d] of the operator's file allows %d", m.Size, i, l.ModuleSize)
		}
		if l.LoadTime > 0 && predicted > l.LoadTime {
			return chandler.Problemf(chandler.CodePolicyDenied, field, "build less code into it, or have the limit raised",
				"the module has %d bytes of code, which an Envoy is predicted to compile in %s; limits[%d] of the operator's file allows %s", code, predicted, i, l.LoadTime)
		}
	}
	return nil
}

package source

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"chandler.dev/chandler"
)

// Limits of a plugin's fields; lengths are in characters unless they say bytes.
const (
	maxTargets    = 16
	maxLabelValue = 63
	maxEnv        = 256
	maxEnvName    = 256
	maxEnvValue   = 2048
	maxPluginName = 256
	maxConfig     = 128 << 10 // bytes of canonical JSON
	maxConfigDeep = 32
	maxLua        = 65536 // bytes
)

var (
	commonFields = []string{"selector", "targetRefs", "phase", "priority", "match"}
	wasmFields   = []string{"url", "sha256", "imagePullPolicy", "imagePullSecret", "verificationKey", "pluginConfig", "pluginName",
		"failStrategy", "vmConfig", "type"}
)

// decodePlugin reads the spec of either kind.
func decodePlugin(top record, key chandler.Key) *chandler.Plugin {
	n, at := top.field("spec")
	if n == nil || n.kind != object {
		got := "missing"
		if n != nil {
			got = n.kind.String()
		}
		top.problem(chandler.CodeSpecShape, at, "write the plugin's fields under spec", "spec must be an object of kind %s v1alpha1; it is %s", key.Kind, got)
		return nil
	}
	p := &chandler.Plugin{Key: key, Type: chandler.HTTP}
	if key.Kind == chandler.KindWasmPlugin {
		spec := top.record(n, at, map[string]string{"wasm": "write its fields under spec itself"}, slices.Concat(commonFields, wasmFields, []string{"targetRef"})...)
		decodeScope(spec, p)
		p.Wasm, p.Type = decodeWasm(spec)
		return p
	}
	hints := map[string]string{"targetRef": "write targetRefs, a list"}
	for _, f := range wasmFields {
		hints[f] = "write it under spec.wasm"
	}
	spec := top.record(n, at, hints, slices.Concat(commonFields, []string{"wasm", "lua"})...)
	decodeScope(spec, p)
	wasm, wasmAt := spec.field("wasm")
	lua, luaAt := spec.field("lua")
	switch {
	case wasm == nil && lua == nil:
		spec.problem(chandler.CodeSpecRequired, at, "write spec.wasm or spec.lua", "one of wasm and lua is required")
	case wasm != nil && lua != nil:
		spec.problem(chandler.CodeSpecShape, luaAt, "keep one of them", "wasm and lua exclude each other")
	case wasm != nil:
		if r := spec.record(wasm, wasmAt, nil, wasmFields...); r.node != nil {
			p.Wasm, p.Type = decodeWasm(r)
		}
	default:
		p.Lua = decodeLua(spec.record(lua, luaAt, nil, "inlineCode"))
	}
	return p
}

func decodeLua(r record) *chandler.Lua {
	if r.node == nil {
		return nil
	}
	code, ok := r.text("inlineCode")
	at := r.at.field("inlineCode")
	switch {
	case ok && len(code) > maxLua:
		r.problem(chandler.CodeSpecValue, at, "write less, or a Wasm module", "inlineCode has %d bytes, limit %d", len(code), maxLua)
	case ok && strings.ContainsRune(code, 0):
		r.problem(chandler.CodeSpecValue, at, "remove the character", "inlineCode contains byte 0x00 at %d", strings.IndexByte(code, 0))
	case code == "" && (ok || r.node.get("inlineCode") == nil):
		r.problem(chandler.CodeSpecRequired, at, "write the Lua source", "inlineCode is required")
	}
	return &chandler.Lua{InlineCode: code}
}

// decodeScope reads which proxies, which traffic, and where in the chain.
func decodeScope(spec record, p *chandler.Plugin) {
	p.Phase = choose(spec, "phase", option[chandler.Phase]{"AUTHN", chandler.PhaseAuthn}, option[chandler.Phase]{"AUTHZ", chandler.PhaseAuthz},
		option[chandler.Phase]{"STATS", chandler.PhaseStats}, option[chandler.Phase]{"UNSPECIFIED_PHASE", chandler.PhaseUnspecified},
		option[chandler.Phase]{"UNSPECIFIED", chandler.PhaseUnspecified})
	if v, ok := spec.integer("priority", chandler.CodeSpecEnum, math.MinInt32, math.MaxInt32); ok {
		priority := int32(v)
		p.Priority = &priority
	}
	decodeTargets(spec, p)
	matches, at := spec.list("match")
	for i, m := range matches {
		p.Match = append(p.Match, decodeMatch(spec.record(m, at.item(i), nil, "mode", "ports")))
	}
}

func decodeTargets(spec record, p *chandler.Plugin) {
	var given []string
	for _, f := range []string{"selector", "targetRef", "targetRefs"} {
		if n, _ := spec.field(f); n != nil {
			given = append(given, f)
		}
	}
	if len(given) > 1 {
		spec.problem(chandler.CodeTarget, spec.at.field(given[1]), "keep one of them", "use %s, not both", strings.Join(given, " or "))
	}
	if n, at := spec.field("selector"); n != nil {
		p.Selector = decodeSelector(spec.record(n, at, nil, "matchLabels"))
	}
	if n, at := spec.field("targetRef"); n != nil {
		p.TargetRefs = append(p.TargetRefs, decodeTarget(spec.record(n, at, nil, "group", "kind", "name", "namespace"), p.Namespace))
	}
	refs, at := spec.list("targetRefs")
	if len(refs) > maxTargets {
		spec.problem(chandler.CodeTarget, at, "write several plugins", "targetRefs has %d entries, limit %d", len(refs), maxTargets)
		return
	}
	for i, n := range refs {
		p.TargetRefs = append(p.TargetRefs, decodeTarget(spec.record(n, at.item(i), nil, "group", "kind", "name", "namespace"), p.Namespace))
	}
}

func decodeSelector(r record) map[string]string {
	labels := r.stringMap("matchLabels")
	at := r.at.field("matchLabels")
	n, _ := r.field("matchLabels")
	if n == nil || n.kind != object {
		return nil
	}
	for _, f := range n.fields { // in the order as written
		switch v := labels[f.name]; {
		case f.name == "":
			r.problem(chandler.CodeTarget, at, "name a label", "matchLabels has an empty key")
		case strings.Contains(f.name, "*"):
			r.problem(chandler.CodeTarget, at.field(f.name), "write the label out", "label %s has a wildcard", chandler.Quote(f.name))
		case strings.Contains(v, "*"):
			r.problem(chandler.CodeTarget, at.field(f.name), "write the value out; to select all leave the label out", "value %s has a wildcard", chandler.Quote(v))
		case len([]rune(v)) > maxLabelValue:
			r.problem(chandler.CodeTarget, at.field(f.name), "no label has a longer value", "value %s has %d characters, limit %d",
				chandler.Quote(v), len([]rune(v)), maxLabelValue)
		}
	}
	return labels
}

// targetKinds are what a plugin may be attached to, with their API groups.
func targetKinds() map[string][]string {
	return map[string][]string{
		"Service":      {"", "core"},
		"ServiceEntry": {"networking.istio.io"},
		"Gateway":      {"gateway.networking.k8s.io"},
		"GatewayClass": {"gateway.networking.k8s.io"},
	}
}

func decodeTarget(r record, own string) chandler.TargetRef {
	if r.node == nil {
		return chandler.TargetRef{}
	}
	var t chandler.TargetRef
	t.Group, _ = r.text("group")
	t.Kind, _ = r.text("kind")
	t.Name, _ = r.text("name")
	groups, known := targetKinds()[t.Kind]
	switch {
	case r.node.get("kind") == nil || r.node.get("kind").text == "" && r.node.get("kind").kind == text:
		r.problem(chandler.CodeTarget, r.at.field("kind"), "write Gateway, GatewayClass, Service or ServiceEntry", "kind is required")
	case t.Kind != "" && !known:
		r.problem(chandler.CodeTarget, r.at.field("kind"), "write Gateway, GatewayClass, Service or ServiceEntry", "kind %s cannot be a target", chandler.Quote(t.Kind))
	case known && !slices.Contains(groups, t.Group):
		r.problem(chandler.CodeTarget, r.at.field("group"), fmt.Sprintf("write group: %q", groups[0]), "%s is not of group %s", t.Kind, chandler.Quote(t.Group))
	}
	if n := r.node.get("name"); n == nil || n.kind == text && n.text == "" {
		r.problem(chandler.CodeTarget, r.at.field("name"), "write the target's name", "name is required")
	} else if n.kind == text && (len(t.Name) > maxName || !subdomain.MatchString(t.Name)) {
		r.problem(chandler.CodeTarget, r.at.field("name"), "write the name of a resource", "name %s is not valid", chandler.Quote(t.Name))
	}
	if ns, _ := r.text("namespace"); ns != "" && ns != own {
		r.problem(chandler.CodeTarget, r.at.field("namespace"), "leave it out; a target is in the plugin's own namespace", "no grant in namespace %s", chandler.Quote(ns))
	}
	if why := t.Unsupported(); why != "" {
		r.warn(chandler.CodeUnsupportedTarget, r.at, chandler.HintUnsupportedTarget, "%s", why)
	}
	return t
}

func decodeMatch(r record) chandler.Match {
	m := chandler.Match{Mode: choose(r, "mode", option[chandler.Mode]{"CLIENT", chandler.ModeClient}, option[chandler.Mode]{"SERVER", chandler.ModeServer},
		option[chandler.Mode]{"CLIENT_AND_SERVER", chandler.ModeAny}, option[chandler.Mode]{"UNDEFINED", chandler.ModeAny})}
	ports, at := r.list("ports")
	for i, n := range ports {
		port := r.record(n, at.item(i), nil, "number")
		if port.node == nil {
			continue
		}
		if port.node.get("number") == nil {
			r.problem(chandler.CodeMatchPort, port.at.field("number"), "write the number of a port", "number is required")
		}
		v, ok := port.integer("number", chandler.CodeMatchPort, 1, 65535)
		switch {
		case !ok:
		case slices.Contains(m.Ports, uint32(v)):
			r.problem(chandler.CodeMatchPort, port.at.field("number"), "remove one", "port %d is listed twice", v)
		default:
			m.Ports = append(m.Ports, uint32(v))
		}
	}
	return m
}

// decodeWasm reads the part about a module; for a WasmPlugin that is the spec.
func decodeWasm(r record) (*chandler.Wasm, chandler.FilterType) {
	w := &chandler.Wasm{}
	decodeOrigin(r, w)
	w.PullPolicy = choose(r, "imagePullPolicy", option[chandler.PullPolicy]{"IfNotPresent", chandler.PullIfNotPresent},
		option[chandler.PullPolicy]{"Always", chandler.PullAlways}, option[chandler.PullPolicy]{"UNSPECIFIED_POLICY", chandler.PullDefault})
	decodeKey(r, w)
	decodeConfig(r, w)
	w.RootID, _ = r.bounded("pluginName", chandler.CodeSpecValue, 1, maxPluginName)
	if !chandler.IsPlain(w.RootID) {
		r.problem(chandler.CodeSpecValue, r.at.field("pluginName"), "remove the character", "pluginName %s has a character that is not to be seen", chandler.Quote(w.RootID))
	}
	w.FailStrategy = choose(r, "failStrategy", option[chandler.FailStrategy]{"FAIL_CLOSE", chandler.FailClose},
		option[chandler.FailStrategy]{"FAIL_OPEN", chandler.FailOpen}, option[chandler.FailStrategy]{"FAIL_RELOAD", chandler.FailReload})
	if w.FailStrategy == "" {
		w.FailStrategy = chandler.FailClose
	}
	typ := choose(r, "type", option[chandler.FilterType]{"HTTP", chandler.HTTP}, option[chandler.FilterType]{"NETWORK", chandler.Network},
		option[chandler.FilterType]{"UNSPECIFIED_PLUGIN_TYPE", chandler.HTTP})
	if typ == "" {
		typ = chandler.HTTP
	}
	if n, at := r.field("vmConfig"); n != nil {
		vm := r.record(n, at, nil, "env", "runtime")
		if n, at := vm.field("runtime"); n != nil {
			r.problem(chandler.CodeRuntime, at, "remove it", "runtime is set by the platform: v8")
		}
		w.Env = decodeEnv(vm)
	}
	return w, typ
}

// decodeOrigin reads where the module is, which one, and with what secret.
func decodeOrigin(r record, w *chandler.Wasm) {
	at := r.at.field("url")
	url, ok := r.text("url")
	if ok || r.node.get("url") == nil {
		ref, p := chandler.ParseReference(url)
		r.tell(at, p)
		w.URL, w.Reference = url, ref
	}
	if pin, ok := r.text("sha256"); ok {
		w.SHA256 = pin
		r.tell(r.at.field("sha256"), checkPin(pin, w.Reference))
	}
	w.PullSecret, ok = r.bounded("imagePullSecret", chandler.CodeSecretRef, 1, maxName)
	if !ok {
		return
	}
	secretAt := r.at.field("imagePullSecret")
	if !subdomain.MatchString(w.PullSecret) {
		r.problem(chandler.CodeSecretRef, secretAt, "write its name only; it must be in the plugin's namespace",
			"imagePullSecret %s is not the name of a secret", chandler.Quote(w.PullSecret))
	} else if s := w.Reference.Scheme; s != chandler.SchemeOCI && s != "" {
		r.warn(chandler.CodeSecretUnused, secretAt, "remove it, or use an oci url", "a pull secret works only with oci urls; this one is %s", s)
	}
}

// checkPin holds the sha256 field by itself and against the url.
func checkPin(pin string, ref chandler.Reference) *chandler.Problem {
	hint := "write 64 lower-case hex digits"
	switch bare, prefixed := strings.CutPrefix(pin, "sha256:"); {
	case pin == "":
		return nil
	case chandler.IsSHA256Hex(pin):
		return ref.CheckPin(pin)
	case pin == "nil":
		hint = "leave the field out"
	case prefixed && chandler.IsSHA256Hex(bare):
		hint = "leave sha256: out, the field says so"
	case chandler.IsSHA256Hex(strings.ToLower(pin)):
		hint = "write it in lower case"
	}
	return chandler.Problemf(chandler.CodeDigestSyntax, "", hint, "sha256 %s is not a digest", chandler.Quote(pin))
}

// decodeKey reads the keys of which one must have signed the module.
func decodeKey(r record, w *chandler.Wasm) {
	key, ok := r.text("verificationKey")
	if !ok || key == "" {
		return
	}
	w.VerificationKey = key
	at := r.at.field("verificationKey")
	if _, wrong := chandler.ParsePublicKeys(key); wrong != "" {
		r.problem(chandler.CodeSpecValue, at, "write one or more PEM blocks of type PUBLIC KEY", "verificationKey %s", wrong)
		return
	}
	if s := w.Reference.Scheme; s != chandler.SchemeOCI && s != "" {
		r.problem(chandler.CodeSpecValue, at, "push the module to a registry and sign it there, or remove the key and pin the module by sha256",
			"a verificationKey works only with oci urls; nothing at %s urls can be signed", s)
	}
}

func decodeConfig(r record, w *chandler.Wasm) {
	n, at := r.field("pluginConfig")
	if n == nil {
		return
	}
	if n.kind != object {
		r.wrongKind(n, at, object)
		return
	}
	n.resolveSwitches()
	checkConfig(r.judge, n, at, 1)
	refuseRedacted(r.judge, n, at)
	w.Config = n.canonical()
	if len(w.Config) > maxConfig {
		r.problem(chandler.CodeConfigSize, at, "have the plugin read large data from elsewhere", "pluginConfig is %d bytes, limit %d", len(w.Config), maxConfig)
	}
}

// checkConfig tells what cannot be said in JSON, and nesting without measure.
func checkConfig(j *judge, n *node, at *path, depth int) {
	switch {
	case n.unfit != "":
		j.problem(chandler.CodeConfigSize, at, "write a smaller number, or a string", "number %s", n.unfit)
	case depth > maxConfigDeep && (n.kind == object || n.kind == list):
		j.problem(chandler.CodeConfigSize, at, "nest less", "pluginConfig is nested deeper than %d", maxConfigDeep)
		return
	}
	for _, f := range n.fields {
		checkConfig(j, f.value, at.field(f.name), depth+1)
	}
	for i, item := range n.items {
		checkConfig(j, item, at.item(i), depth+1)
	}
}

// refuseRedacted refuses what stands in the place of values that were not shown: a
// resource that was read without them is not to be written back.
func refuseRedacted(j *judge, n *node, at *path) {
	if n.kind == text && n.text == Redacted {
		j.problem(chandler.CodeSpecValue, at, "write the value itself", "%s is what is shown in place of a value", Redacted)
	}
	for _, f := range n.fields {
		refuseRedacted(j, f.value, at.field(f.name))
	}
	for i, item := range n.items {
		refuseRedacted(j, item, at.item(i))
	}
}

var reservedEnv = regexp.MustCompile(`^(ISTIO_META_|CHANDLER_)`)

func decodeEnv(vm record) []chandler.EnvVar {
	entries, at := vm.list("env")
	if len(entries) > maxEnv {
		vm.problem(chandler.CodeEnvName, at, "put settings into pluginConfig", "env has %d entries, limit %d", len(entries), maxEnv)
		return nil
	}
	var env []chandler.EnvVar
	seen := map[string]bool{}
	for i, n := range entries {
		r := vm.record(n, at.item(i), nil, "name", "valueFrom", "value")
		if r.node == nil {
			continue
		}
		var v chandler.EnvVar
		v.Name, _ = r.text("name")
		checkEnvName(r, v.Name, seen)
		seen[v.Name] = true
		v.Host = choose(r, "valueFrom", option[string]{"INLINE", "inline"}, option[string]{"HOST", "host"}) == "host"
		v.Value, _ = r.bounded("value", chandler.CodeSpecValue, 0, maxEnvValue)
		valueAt := r.at.field("value")
		switch value, _ := r.field("value"); {
		case v.Host && value != nil:
			r.problem(chandler.CodeEnvHost, valueAt, "leave it out, or write valueFrom: INLINE", "value has no meaning with valueFrom: HOST")
			v.Value = ""
		case strings.ContainsRune(v.Value, 0):
			r.problem(chandler.CodeSpecValue, valueAt, "remove the character", "value contains byte 0x00 at %d", strings.IndexByte(v.Value, 0))
		}
		env = append(env, v)
	}
	return env
}

func checkEnvName(r record, name string, seen map[string]bool) {
	at := r.at.field("name")
	bad := func(hint, format string, args ...any) { r.problem(chandler.CodeEnvName, at, hint, format, args...) }
	switch n := r.node.get("name"); {
	case n != nil && n.kind != text: // told already
	case name == "":
		bad("write a name", "env name is required")
	case len([]rune(name)) > maxEnvName:
		bad("use a shorter one", "env name %s has %d characters, limit %d", chandler.Quote(name), len([]rune(name)), maxEnvName)
	case strings.Contains(name, "=") || !chandler.IsPlain(name):
		bad("use letters, digits and _", "env name %s contains = or a control character", chandler.Quote(name))
	case reservedEnv.MatchString(name):
		bad("use another name", "env name %s is reserved", chandler.Quote(name))
	case seen[name]:
		bad("keep one of them", "env name %s is listed twice", chandler.Quote(name))
	}
}

package migrate

import (
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler"
)

// builder makes the spec of a WasmPlugin from a patch.
type builder struct {
	of     *envoyFilter
	spec   *yaml.Node
	origin map[string]string
	before int // notes that there were before
}

// newBuilder begins one; the fields stand in this order.
func newBuilder(f *envoyFilter) *builder {
	return &builder{of: f, spec: mapping(), origin: map[string]string{}, before: len(f.notes)}
}

// put sets a field of the spec that comes from a path of the input; nil is none.
func (b *builder) put(name string, n *yaml.Node, from string) {
	if n != nil {
		put(b.spec, name, n)
	}
	b.origin["spec."+name] = from
}

func (b *builder) refuse(at, hint, format string, args ...any) {
	b.of.note(Lost, at, hint, format, args...)
}

// lost tells whether anything was refused since the builder began.
func (b *builder) lost() bool {
	for _, n := range b.of.notes[b.before:] {
		if n.Verdict == Lost {
			return true
		}
	}
	return b.of.untold > 0
}

// scope translates which proxies and which traffic.
func (b *builder) scope(p *patch) {
	spec := b.of.root.get("spec")
	selector, refs := spec.get("workload_selector"), spec.get("target_refs")
	labels := selector.get("labels")
	selects := labels.is(yaml.MappingNode) && len(labels.node.Content) > 0
	if selects {
		s := mapping()
		put(s, "matchLabels", labels.all())
		b.put("selector", s, selector.at)
		b.origin["spec.selector.matchLabels"] = labels.at
	}
	if refs.is(yaml.SequenceNode) && len(refs.node.Content) > 0 {
		b.put("targetRefs", refs.all(), refs.at)
		selects = true
	}
	match := p.value.get("match")
	var mode string
	context := match.get("context")
	switch c := context.text(); c {
	case "", "ANY":
	case "SIDECAR_INBOUND":
		mode = "SERVER"
	case "GATEWAY", "SIDECAR_OUTBOUND":
		mode = "CLIENT"
		if !selects {
			b.refuse(context.at, "write spec.workloadSelector.labels into the input, for instance istio: ingressgateway, and translate again",
				"%s without a workloadSelector: mode CLIENT would mean gateways and the outbound traffic of sidecars alike", c)
		}
	default:
		b.refuse(context.at, "write GATEWAY, SIDECAR_INBOUND, SIDECAR_OUTBOUND or ANY", "context %s is not known", chandler.Quote(c))
	}
	if v := match.get("proxy"); v.there() {
		v.all()
		b.refuse(v.at, "keep, of several versions, the patch that is in use, and remove match.proxy from the input", "chandler does not choose by a proxy's version or metadata")
	}
	listener := match.get("listener")
	port := listener.get("port_number")
	if v := listener.get("filter_chain").get("destination_port"); v.there() {
		if port.there() {
			b.refuse(v.at, "keep one of the two in the input", "portNumber and destinationPort together have no equal")
		}
		port = v
	}
	entry := mapping()
	if mode != "" {
		put(entry, "mode", str(mode))
		b.origin["spec.match[0].mode"] = context.at
	}
	if n, err := strconv.Atoi(port.text()); port.there() && (err != nil || n != 0) {
		number := mapping()
		put(number, "number", port.node)
		put(entry, "ports", list(number))
		b.origin["spec.match[0].ports[0].number"] = port.at
	}
	if len(entry.Content) > 0 {
		b.put("match", list(entry), match.at)
	}
}

// wasm translates a PluginConfig; false: it is none.
func (b *builder) wasm(c *wasmConfig) bool {
	v := c.value
	if !v.is(yaml.MappingNode) {
		b.refuse(v.at, "write the plugin's configuration there", "config is missing")
		return false
	}
	if c.network {
		b.put("type", str(string(chandler.Network)), v.at)
	}
	b.ignore(v.get("name"), "", "the plugin's name in Envoy is chandler's to give: kind, namespace and name of the resource")
	if id := v.get("root_id"); id.text() != "" {
		b.put("pluginName", str(id.text()), id.at)
	}
	b.failure(v)
	vm := v.get("vm_config")
	runtime := vm.get("runtime")
	if runtime.text() == "envoy.wasm.runtime.null" {
		v.all()
		b.refuse(runtime.at, "keep it with Istio; its own statistics come with Envoy", "it is compiled into Istio's Envoy: there is no module")
		return false
	}
	b.code(vm)
	b.ignore(vm.get("vm_id"), "", "each plugin has a VM of its own: shared data and queues with another plugin of the same vm_id end")
	b.ignore(vm.get("allow_precompiled"), "", "code compiled ahead is not taken; Envoy compiles the module")
	b.ignore(vm.get("nack_on_code_cache_miss"), "", "it has no meaning here: a plugin is put in force when its module is on disk")
	if r := runtime.text(); r != "" && r != "envoy.wasm.runtime.v8" {
		b.refuse(runtime.at, "build the module for V8", "runtime %s is not there; plugins run in V8", chandler.Quote(r))
	}
	if cfg := vm.get("configuration"); cfg.there() {
		cfg.all()
		b.refuse(cfg.at, "have the plugin read it from pluginConfig", "a VM has no configuration of its own")
	}
	b.environment(vm.get("environment_variables"))
	b.configuration(v.get("configuration"))
	b.ignore(v.get("reload_config"), "", "how long Envoy waits before it makes a VM anew is its own default")
	return true
}

// ignore notes something that is left out without loss.
func (b *builder) ignore(v value, hint, why string) {
	if v.there() {
		v.all()
		b.of.note(Differs, v.at, hint, "%s", why)
	}
}

func (b *builder) failure(v value) {
	policy, open := v.get("failure_policy"), v.get("fail_open")
	b.origin["spec.failStrategy"] = v.at
	switch policy.text() {
	case "FAIL_OPEN":
		b.put("failStrategy", str(string(chandler.FailOpen)), policy.at)
	case "FAIL_RELOAD":
		b.put("failStrategy", str(string(chandler.FailReload)), policy.at)
	case "FAIL_CLOSED":
		b.put("failStrategy", str(string(chandler.FailClose)), policy.at)
	case "", "UNSPECIFIED":
		if open.text() == "true" {
			b.put("failStrategy", str(string(chandler.FailOpen)), open.at)
		}
	default:
		b.refuse(policy.at, "write FAIL_CLOSED, FAIL_OPEN or FAIL_RELOAD", "failure_policy %s is not known", chandler.Quote(policy.text()))
	}
}

// code translates where the module is.
func (b *builder) code(vm value) {
	code := vm.get("code")
	local, remote := code.get("local"), code.get("remote")
	b.origin["spec.imagePullPolicy"] = code.at
	switch {
	case remote.there():
		uri := remote.get("http_uri")
		url := uri.get("uri")
		b.put("url", str(url.text()), url.at)
		b.origin["spec.sha256"] = remote.at
		if pin := remote.get("sha256"); pin.text() != "" && pin.text() != "nil" {
			b.put("sha256", str(pin.text()), pin.at)
		}
		uri.get("cluster") // Istio's agent has no use for it either
		b.ignore(uri.get("timeout"), "see chandler serve --fetch-deadline", "how long a download may take is the control plane's to say")
		b.ignore(remote.get("retry_policy"), "", "a download is tried again until it succeeds")
	case local.get("filename").text() != "":
		file := local.get("filename")
		b.put("url", str("file://"+file.text()), file.at)
	default:
		for _, kind := range []string{"inline_bytes", "inline_string", "environment_variable"} {
			if v := local.get(kind); v.there() {
				v.all()
				b.refuse(v.at, "push the module to a registry and write its reference", "a module inside a resource (%s) is not carried over", kind)
				return
			}
		}
		b.refuse(code.at, "write where the module is", "code is missing")
	}
}

// environment translates the VM's variables.
func (b *builder) environment(v value) {
	if !v.there() {
		return
	}
	env := list()
	for _, key := range v.get("host_env_keys").items() {
		if !key.is(yaml.ScalarNode) {
			b.refuse(key.at, "write a string", "the name of a variable is no string")
		}
		e := mapping()
		put(e, "name", str(key.text()))
		put(e, "valueFrom", str("HOST"))
		b.origin["spec.vmConfig.env["+strconv.Itoa(len(env.Content))+"]"] = key.at
		env.Content = append(env.Content, e)
	}
	pairs := v.get("key_values")
	for i := 0; pairs.is(yaml.MappingNode) && i+1 < len(pairs.node.Content); i += 2 {
		name := pairs.node.Content[i].Value
		if pairs.node.Content[i+1].Kind != yaml.ScalarNode {
			b.refuse(join(pairs.at, name), "write a string", "the value of a variable is no string")
		}
		e := mapping()
		put(e, "name", str(name))
		put(e, "value", str(pairs.node.Content[i+1].Value))
		b.origin["spec.vmConfig.env["+strconv.Itoa(len(env.Content))+"]"] = join(pairs.at, name)
		env.Content = append(env.Content, e)
	}
	pairs.all()
	if len(env.Content) > 0 {
		vm := mapping()
		put(vm, "env", env)
		b.put("vmConfig", vm, v.at)
		b.origin["spec.vmConfig.env"] = v.at
	}
}

// configuration translates what the plugin is handed. A Struct reaches it as
// JSON, the two wrappers as they are.
func (b *builder) configuration(v value) {
	if !v.there() {
		return
	}
	inner := v.get("value")
	switch name := typeName(v.get("@type").text()); name {
	case "google.protobuf.Struct":
		b.put("pluginConfig", inner.all(), inner.at)
	case "google.protobuf.StringValue":
		b.text(inner, inner.text())
	default:
		v.all()
		b.refuse(v.at, "write a google.protobuf.Struct with the same meaning", "a configuration of type %s is not carried over", chandler.Quote(name))
	}
}

// text translates a configuration that is text.
func (b *builder) text(v value, s string) {
	if s == "" {
		return
	}
	n, err := fromJSON(s)
	if err != nil {
		b.refuse(v.at, "have the plugin read a JSON object", "the configuration is text and no JSON object, which pluginConfig must be")
		return
	}
	b.put("pluginConfig", n, v.at)
	if strings.TrimSpace(s) != s || strings.ContainsAny(s, "\n") {
		b.of.note(Differs, v.at, "", "the plugin gets the same JSON, without its line breaks")
	}
}

package migrate

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler"
)

// envoyFilter is an object of the input with its patches.
type envoyFilter struct {
	*object
	priority int64
	created  string
	patches  []*patch
}

// patch is one of configPatches.
type patch struct {
	of      *envoyFilter
	value   value
	applyTo string
	// config holds the Wasm configuration; nil: the patch is not about Wasm.
	config *wasmConfig
	// uses is the name of the extension configuration that a filter asks for.
	uses string
	// defines is the name of the extension configuration that this is, usedBy the
	// last of those whose filters ask for it.
	defines string
	usedBy  *envoyFilter
}

// wasmConfig is where a Wasm configuration stands.
type wasmConfig struct {
	value   value // of the PluginConfig
	network bool
}

func (o *object) isEnvoyFilter() bool {
	group, _, _ := strings.Cut(o.root.get("apiVersion").text(), "/")
	return o.root.get("kind").text() == "EnvoyFilter" && group == "networking.istio.io"
}

// What patches apply to, as far as it matters here.
const (
	toHTTP      = "HTTP_FILTER"
	toNetwork   = "NETWORK_FILTER"
	toExtension = "EXTENSION_CONFIG"
	toCluster   = "CLUSTER"
)

// envoyFilters translates all of them together, as an extension configuration
// and the filter that uses it may be in two.
func (t *translation) envoyFilters(filters []*envoyFilter) {
	byName := map[string][]*patch{}
	taken := map[string]bool{} // names of WasmPlugins, those of the input too
	for _, o := range t.objects {
		if o.doc.Kind == chandler.KindWasmPlugin {
			taken[o.root.get("metadata").get("namespace").text()+"/"+o.doc.Name] = true
		}
	}
	for _, f := range filters {
		f.open()
		for _, p := range f.patches {
			if p.defines != "" {
				byName[p.defines] = append(byName[p.defines], p)
			}
		}
	}
	inOrder := slices.Clone(filters)
	slices.SortStableFunc(inOrder, func(a, b *envoyFilter) int {
		return cmp.Or(a.rank()-b.rank(), cmp.Compare(a.priority, b.priority), cmp.Compare(a.created, b.created))
	})
	var chain []*placed
	for _, f := range inOrder {
		for _, p := range f.patches {
			if m := t.translate(p, byName, taken); m != nil {
				chain = m.insert(chain)
			}
		}
	}
	rank(chain)
	for _, f := range filters {
		finish(f)
	}
}

// rank: Istio takes those of the root namespace first.
func (f *envoyFilter) rank() int {
	if f.root.get("metadata").get("namespace").text() == rootNamespace {
		return 0
	}
	return 1
}

// open reads what every patch is about.
func (f *envoyFilter) open() {
	spec := f.root.get("spec")
	f.root.get("status").all()
	f.root.get("apiVersion")
	f.root.get("metadata").all()
	f.created = f.root.get("metadata").get("creationTimestamp").text()
	if v := spec.get("priority"); v.there() {
		n, err := strconv.ParseInt(v.text(), 10, 32)
		if err != nil {
			f.note(Lost, v.at, "write a number", "priority is no number")
		}
		f.priority = n
	}
	for _, item := range spec.get("config_patches").items() {
		p := &patch{of: f, value: item, applyTo: item.get("apply_to").text()}
		f.patches = append(f.patches, p)
		v := item.get("patch").get("value")
		switch p.applyTo {
		case toHTTP, toNetwork:
			if c := findWasm(v.get("typed_config")); c != nil {
				p.config = c
			} else if d := v.get("config_discovery"); d.there() && namesWasm(d.get("type_urls")) {
				p.uses = v.get("name").text()
			}
		case toExtension:
			if c := findWasm(v.get("typed_config")); c != nil {
				p.config, p.defines = c, v.get("name").text()
			}
		}
	}
}

// The types of Wasm filters.
const (
	typeHTTPWasm    = "envoy.extensions.filters.http.wasm.v3.Wasm"
	typeNetworkWasm = "envoy.extensions.filters.network.wasm.v3.Wasm"
)

func typeName(url string) string { return url[strings.LastIndexByte(url, '/')+1:] }

// findWasm gives the plugin's configuration in a filter's typed_config, which may
// be wrapped in a TypedStruct; nil if it is of another type.
func findWasm(v value) *wasmConfig {
	name := typeName(v.get("@type").text())
	if name == "udpa.type.v1.TypedStruct" || name == "xds.type.v3.TypedStruct" {
		name = typeName(v.get("type_url").text())
		v = v.get("value")
	}
	if name != typeHTTPWasm && name != typeNetworkWasm {
		return nil
	}
	return &wasmConfig{value: v.get("config"), network: name == typeNetworkWasm}
}

func namesWasm(urls value) bool {
	for _, u := range urls.items() {
		if name := typeName(u.text()); name == typeHTTPWasm || name == typeNetworkWasm {
			return true
		}
	}
	return false
}

// aboutWasm tells whether any patch is.
func (f *envoyFilter) aboutWasm() bool {
	return slices.ContainsFunc(f.patches, func(p *patch) bool { return p.config != nil || p.uses != "" })
}

// translate makes a resource of a patch that puts a Wasm filter into a chain. It
// notes why, when it cannot.
func (t *translation) translate(p *patch, byName map[string][]*patch, taken map[string]bool) *placed {
	if p.defines != "" || p.config == nil && p.uses == "" {
		return nil // finish sees to it
	}
	f, config := p.of, p.config
	source := p
	if p.uses != "" {
		d := f.find(p, byName[p.uses])
		if d == nil {
			return nil
		}
		source, config = d, d.config
		if d.of != f { // paths are in another object then
			at := d.of.title + ": " + config.value.at
			config = &wasmConfig{value{config.value.node, at, config.value.read}, config.network}
		}
		p.discovery()
		d.scope(p)
	}
	if config.network != (p.applyTo == toNetwork) {
		f.note(Lost, config.value.at, "make both of the same family", "a Wasm filter of another family than %s", p.applyTo)
		return nil
	}
	b := newBuilder(f)
	b.scope(p)
	where, ok := b.place(p)
	ok = b.wasm(config) && ok
	p.settle()
	source.settle()
	if !ok || b.lost() {
		return nil
	}
	where.made = b.made(t.namespace, unique(taken, f, b))
	where.of, where.patch = f, p
	if !t.give(f.object, where.made) {
		return nil
	}
	return where
}

// find gives the one extension configuration that a filter means: that of its own
// object, else of its namespace, else the only one.
func (f *envoyFilter) find(p *patch, found []*patch) *patch {
	namespace := func(o *envoyFilter) string { return o.root.get("metadata").get("namespace").text() }
	at := p.value.get("patch").get("value").get("name").at
	for _, fits := range []func(*patch) bool{
		func(d *patch) bool { return d.of == f },
		func(d *patch) bool { return namespace(d.of) == namespace(f) },
		func(*patch) bool { return true },
	} {
		var all []*patch
		for _, d := range found {
			if fits(d) {
				all = append(all, d)
			}
		}
		switch len(all) {
		case 0:
			continue
		case 1:
			all[0].usedBy = f
			return all[0]
		}
		for _, d := range all {
			d.usedBy = f
		}
		f.note(Lost, at, "keep the one that is in use, or translate them one by one", "%d extension configurations are named %s", len(all), chandler.Quote(p.uses))
		return nil
	}
	f.note(Lost, at, "give the EnvoyFilter that has it in the same input", "the extension configuration %s is not there", chandler.Quote(p.uses))
	return nil
}

// discovery reads how a filter waits for its configuration, which chandler's
// agent does in its own way.
func (p *patch) discovery() {
	d := p.value.get("patch").get("value").get("config_discovery")
	d.get("type_urls").all()
	d.get("config_source").all()
	if v := d.get("default_config"); v.there() {
		v.all()
		p.of.note(Differs, v.at, "", "what stands in until the configuration is there is chandler's to choose; see failStrategy")
	}
	if v := d.get("apply_default_config_without_warming"); v.there() {
		v.all()
		p.of.note(Differs, v.at, "", "it has no meaning here: a plugin is put in force when it is ready")
	}
}

// scope holds the match of an extension configuration against that of the filter
// that uses it, which decides.
func (d *patch) scope(p *patch) {
	mine, theirs := d.value.get("match"), p.value.get("match")
	d.value.get("patch").get("operation")
	if c := mine.get("context").text(); c != "" && c != "ANY" && c != theirs.get("context").text() {
		d.of.note(Differs, mine.get("context").at, "", "the context of the filter decides, not that of its configuration")
	}
	if d.of != p.of {
		d.of.root.get("spec").get("workload_selector").all()
	}
}

// settle notes what nobody read in the patch, and in what is around it.
func (p *patch) settle() {
	p.value.get("patch").get("value").get("name")
	for _, at := range append(p.value.unread(), p.of.root.unread()...) {
		inPatches := strings.HasPrefix(at, p.of.root.get("spec").get("config_patches").at)
		told := slices.ContainsFunc(p.of.notes, func(n Note) bool { return n.Field == at })
		if !told && (!inPatches || strings.HasPrefix(at, p.value.at)) {
			p.of.note(Lost, at, "remove it from the input if it is not needed", "there is nothing here that it could become")
		}
	}
}

// finish notes what became of the whole object and of each patch that did not
// become a resource.
func finish(f *envoyFilter) {
	if !f.aboutWasm() {
		f.note(Left, "", "", "it has nothing of Wasm and stays as it is")
		return
	}
	for _, p := range f.patches {
		at := p.value.at
		switch {
		case p.defines != "" && p.usedBy == nil:
			f.note(Lost, at, "give the EnvoyFilter whose filter uses it in the same input", "no filter uses the extension configuration %s", chandler.Quote(p.defines))
		case p.defines != "" && len(f.made) == 0 && p.usedBy != nil && len(p.usedBy.made) > 0:
			f.note(Carried, at, "delete the EnvoyFilter with "+p.usedBy.title, "%s went into the resource of the filter that uses it", chandler.Quote(p.defines))
		case p.defines != "" && p.usedBy != f && p.usedBy != nil && len(p.usedBy.made) == 0:
			f.note(Lost, at, "see there", "the filter that uses it, of %s, is not carried over", p.usedBy.title)
		case p.config == nil && p.uses == "" && p.applyTo == toCluster && f.fetchesFrom(p.value):
			f.note(Differs, at, "remove it with the EnvoyFilter", "the cluster is not needed to fetch modules: the control plane does that")
		case p.config == nil && p.uses == "":
			f.note(Lost, at, "keep this patch in an EnvoyFilter of its own", "a patch of %s is not about Wasm", chandler.Quote(p.applyTo))
		}
	}
	if len(f.made) == 0 {
		return
	}
	var names []string
	for _, m := range f.made {
		names = append(names, field(field(m.root, "metadata"), "name").Value)
	}
	f.lead(Carried, "apply it where no WasmPlugin has that name, and delete the EnvoyFilter at once: until then both run on proxies that have both", "carried over as WasmPlugin %s", strings.Join(names, ", "))
}

// fetchesFrom tells whether a cluster patch adds what only downloads used.
func (f *envoyFilter) fetchesFrom(p value) bool {
	name := p.get("patch").get("value").get("name").text()
	return name != "" && slices.ContainsFunc(f.patches, func(o *patch) bool {
		return o.config != nil && o.config.value.get("vm_config").get("code").get("remote").get("http_uri").get("cluster").text() == name
	})
}

// unique gives the new resource a name after its EnvoyFilter.
func unique(taken map[string]bool, f *envoyFilter, b *builder) string {
	base := f.root.get("metadata").get("name").text()
	namespace := f.root.get("metadata").get("namespace").text()
	name := base
	for i := 2; taken[namespace+"/"+name]; i++ {
		suffix := fmt.Sprintf("-%d", i)
		name = base[:min(len(base), maxName-len(suffix))] + suffix
	}
	taken[namespace+"/"+name] = true
	return name
}

// made puts the resource together.
func (b *builder) made(namespace, name string) *made {
	old := b.of.root.get("metadata").node
	meta := mapping()
	put(meta, "name", str(name))
	if n := field(old, "namespace"); n != nil && n.Value != "" {
		put(meta, "namespace", str(n.Value))
	} else if namespace != "" {
		put(meta, "namespace", str(namespace))
	}
	labels := mapping()
	if n := field(old, "labels"); n != nil && n.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			labels.Content = append(labels.Content, n.Content[i], n.Content[i+1])
		}
	}
	put(labels, LabelRevision, str(Revision))
	put(meta, "labels", labels)
	root := mapping()
	put(root, "apiVersion", str(chandler.APIVersion))
	put(root, "kind", str(chandler.KindWasmPlugin))
	put(root, "metadata", meta)
	put(root, "spec", b.spec)
	b.origin["metadata.name"], b.origin["metadata"] = "metadata.name", "metadata"
	return &made{root: root, origin: b.origin}
}

package migrate

import (
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler"
)

const (
	maxName     = 253
	lastApplied = "kubectl.kubernetes.io/last-applied-configuration"
)

// istio translates a WasmPlugin or a TrafficExtension: it stays what it is, with
// the label that gives it to chandler.
func (t *translation) istio(o *object) {
	m := &made{root: o.root.all()}
	remove(m.root, "status")
	t.metadata(o, m)
	spec := field(m.root, "spec")
	wasm, at := spec, "spec"
	if o.doc.Kind == chandler.KindTrafficExtension && spec != nil {
		wasm, at = field(spec, "wasm"), "spec.wasm"
	}
	if wasm != nil && wasm.Kind == yaml.MappingNode {
		o.module(wasm, at)
	}
	if t.give(o, m) {
		o.lead(Carried, "apply it over the old one: with its label istiod lets go of it, and proxies with an agent get it from chandler",
			"carried over, with the label %s: %s", LabelRevision, Revision)
	}
}

// lead puts a note before the others.
func (o *object) lead(v Verdict, hint, format string, args ...any) {
	before := o.notes
	o.notes = nil
	o.note(v, "", hint, format, args...)
	o.notes = append(o.notes, before...)
}

// metadata keeps what people write there and sets the label.
func (t *translation) metadata(o *object, m *made) {
	meta := field(m.root, "metadata")
	if meta == nil || meta.Kind != yaml.MappingNode {
		return // package source will refuse it
	}
	for _, name := range []string{"uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink"} {
		remove(meta, name)
	}
	for _, name := range []string{"ownerReferences", "finalizers", "deletionTimestamp", "deletionGracePeriodSeconds", "generateName"} {
		if remove(meta, name) {
			o.note(Differs, "metadata."+name, "see to it by other means if it matters", "%s is left out", name)
		}
	}
	if a := field(meta, "annotations"); a != nil {
		remove(a, lastApplied)
		if len(a.Content) == 0 {
			remove(meta, "annotations")
		}
	}
	if t.namespace != "" && field(meta, "namespace") == nil {
		put(meta, "namespace", str(t.namespace))
	}
	labels := field(meta, "labels")
	if labels == nil || labels.Kind != yaml.MappingNode {
		if labels != nil && labels.ShortTag() != "!!null" {
			return // package source will refuse it
		}
		labels = mapping()
		put(meta, "labels", labels)
	}
	if rev := field(labels, LabelRevision); rev != nil && rev.Value != Revision {
		o.note(Differs, join("metadata.labels", LabelRevision), "", "revision %s of Istio no longer takes it", chandler.Quote(rev.Value))
	}
	put(labels, LabelRevision, str(Revision))
}

// module writes out what Istio took and chandler refuses, where the meaning is
// the same without it.
func (o *object) module(wasm *yaml.Node, at string) {
	if n := field(wasm, "sha256"); n != nil && n.Value == "nil" {
		remove(wasm, "sha256")
		o.note(Differs, at+".sha256", "", `"nil" means no digest; the field is left out`)
	}
	if n := field(wasm, "verificationKey"); n != nil && n.Kind == yaml.ScalarNode && n.Value != "" {
		remove(wasm, "verificationKey")
		o.note(Differs, at+".verificationKey", "put it back when the module is signed with that key",
			"it is left out: Istio takes it and checks nothing, chandler would refuse a module that is not signed with it")
	}
	if n := field(wasm, "url"); n != nil && n.Kind == yaml.ScalarNode {
		before, _, cut := strings.Cut(n.Value, "?")
		if cut && strings.HasPrefix(strings.ToLower(before), "oci://") {
			n.Value = before
			o.note(Differs, at+".url", "", "an image has no query; Istio left it out without a word, here it is gone from the url")
		}
	}
}

// reachable refuses a plugin that would reach no proxy at all, and notes what
// a proxy must declare to be one that is meant.
func (o *object) reachable(m *made, p *chandler.Plugin) bool {
	ok := true
	for i, r := range p.TargetRefs {
		path := "spec.targetRefs[" + strconv.Itoa(i) + "]"
		if field(field(m.root, "spec"), "targetRef") != nil {
			path = "spec.targetRef"
		}
		switch r.Kind {
		case "Service":
			o.note(Differs, m.field(path), "put the label chandler.dev/service with the service's name on the pods of the proxy that stands before it",
				"a Service means the proxies that say they stand before it; there are no waypoints")
		case "ServiceEntry":
			o.note(Lost, m.field(path), "select the proxies by their labels: selector.matchLabels", "a ServiceEntry is reached through a waypoint, which chandler has not")
			ok = false
		default:
			if why := r.Unsupported(); why != "" {
				o.note(Lost, m.field(path), chandler.HintUnsupportedTarget, "%s", why)
				ok = false
			}
		}
	}
	return ok
}

// differences notes what will be otherwise than with Istio.
func (o *object) differences(m *made, p *chandler.Plugin) {
	if p.Wasm == nil {
		return
	}
	at := "spec."
	if p.Kind == chandler.KindTrafficExtension {
		at = "spec.wasm."
	}
	note := func(field, hint, format string, args ...any) {
		o.note(Differs, m.field(at+field), hint, format, args...)
	}
	w := p.Wasm
	switch {
	case m.origin != nil && p.FirstAttach != chandler.FirstAttachDeny:
		note("failStrategy", "", "a change that fails leaves the version before in force, and a first attach lets traffic pass until the module is ready")
	case w.FailStrategy == chandler.FailOpen:
		note("failStrategy", "", "a change that fails (no such tag, a module that does not load) leaves the version before in force; Istio takes the plugin out")
	case p.FirstAttach != chandler.FirstAttachDeny:
		note("failStrategy", "to deny from the moment of the first attach, set the annotation "+chandler.AnnotationFirstAttach+": deny",
			"a change that fails leaves the version before in force, and a first attach lets traffic pass until the module is ready; Istio denies in both cases")
	}
	o.pullPolicy(w, note)
	scheme, _, hasScheme := strings.Cut(w.URL, "://")
	switch w.Reference.Scheme {
	case chandler.SchemeOCI:
		host := w.Reference.Host
		if !hasScheme && strings.Contains(host, ":") {
			note("url", "", "Istio drops an image with a port and without oci://; here it is taken")
		}
		if plainHost(host) {
			note("url", "if it has none, allow it: chandler serve --insecure-registry "+chandler.Printable(host, maxName),
				"Istio falls back to plain HTTP when the registry has no TLS; here it must be allowed")
		}
	case chandler.SchemeHTTP, chandler.SchemeHTTPS:
		if w.SHA256 == "" {
			note("sha256", "write the digest of the module", "the module at an %s url without a digest is fetched once for each change of the resource, by the control plane", scheme)
		}
	case chandler.SchemeFile:
		note("url", "have the file on every machine with an agent", "the agent takes a copy and holds to it; status says that nobody vetted it")
	}
	for _, e := range w.Env {
		if e.Host {
			note("vmConfig.env", "", "a value from the host is that of the agent's environment, which Envoy inherits")
			break
		}
	}
}

// plainHost tells whether a registry is of a kind that often has no TLS.
func plainHost(host string) bool {
	name, _, port := strings.Cut(host, ":")
	if name == "localhost" || strings.HasPrefix(name, "127.") {
		return false // always allowed
	}
	return port || strings.HasSuffix(name, ".svc") || strings.HasSuffix(name, ".local") || strings.HasSuffix(name, ".internal") || !strings.Contains(name, ".")
}

// pullPolicy notes when a tag means something new.
func (o *object) pullPolicy(w *chandler.Wasm, note func(field, hint, format string, args ...any)) {
	if w.SHA256 != "" || w.Reference.Digest != "" || w.Reference.Scheme != chandler.SchemeOCI {
		return
	}
	const hint = "pin the digest if it must never move: url@sha256:..."
	switch {
	case w.EffectivePullPolicy() == chandler.PullAlways && w.PullPolicy == chandler.PullDefault && w.Reference.Tag == "":
		note("imagePullPolicy", hint, "an image without a tag is resolved at each change of the resource; Istio pulls it only where it is not present")
	case w.EffectivePullPolicy() == chandler.PullAlways:
		note("imagePullPolicy", hint, "the control plane resolves the tag once for each change of the resource, for all proxies; Istio's agents each do it for themselves")
	default:
		note("imagePullPolicy", hint, "a tag is resolved once and kept until the url changes; Istio's proxies that start later get what the tag means then")
	}
}

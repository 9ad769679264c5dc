package source

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"regexp"
	"slices"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/rollout"
)

// defaultNamespace is that of documents which name none.
const defaultNamespace = "default"

// Document is one object of a manifest, judged by itself.
type Document struct {
	// Key is what the document is about; parts that cannot be made out are empty.
	// Kind is KindSecret for a secret.
	chandler.Key
	Labels      map[string]string
	Annotations map[string]string
	// Plugin has neither UID nor Generation nor Created, which are the source's. It
	// and Secret are nil when there are Problems.
	Plugin   *chandler.Plugin
	Secret   *Secret
	Problems []chandler.Problem
	Warnings []chandler.Problem
	// Manifest is the text of this document by itself, as it was written.
	Manifest []byte
	// Line is where it begins in the whole, from 1.
	Line int

	// digest is over all that decides what the object means; see digest.
	digest string
	// explicit is Manifest with the namespace written out.
	explicit []byte
	// foreign: a resource of another API, for somebody else.
	foreign bool
}

// identified tells whether it is known which object the document is about.
func (d *Document) identified() bool { return d.Kind != "" && d.Namespace != "" && d.Name != "" }

// Foreign tells whether it is a resource of another API, for somebody else.
func (d *Document) Foreign() bool { return d.foreign }

// Decode reads a manifest of YAML or JSON: any number of documents, and Lists of
// them. It is strict: what is not known is a problem, with the path of the field
// and what was probably meant. All rules that need nothing but the text are
// applied. Documents that say nothing are left out. namespace is for those that
// name none; empty means "default".
func Decode(manifest []byte, namespace string) []Document {
	if namespace == "" {
		namespace = defaultNamespace
	}
	var docs []Document
	for _, c := range split(manifest) {
		j := &judge{}
		root := grow(c, j)
		switch {
		case root == nil:
			docs = append(docs, Document{Problems: j.all(), Line: c.line})
		case isList(root):
			docs = append(docs, decodeList(root, c, namespace, j)...)
		case root.kind == null:
		default:
			docs = append(docs, decodeObject(root, c, namespace, j))
		}
	}
	return docs
}

// isList tells whether root is a v1 List, as kubectl writes it.
func isList(root *node) bool {
	kind, version := root.get("kind"), root.get("apiVersion")
	if kind == nil || version == nil {
		return false
	}
	return kind.text == "List" && version.text == "v1" ||
		version.text == chandler.APIVersion && (kind.text == chandler.KindWasmPlugin+"List" || kind.text == chandler.KindTrafficExtension+"List")
}

func decodeList(root *node, c chunk, namespace string, j *judge) []Document {
	top := j.record(root, &path{}, nil, "apiVersion", "kind", "metadata", "items")
	items, at := top.list("items")
	var docs []Document
	if problems := j.all(); len(problems) > 0 {
		docs = append(docs, Document{Problems: problems, Line: c.line})
	}
	for i, item := range items {
		j := &judge{}
		d := Document{Line: c.line}
		switch {
		case item.size > 2*maxDocument:
			j.problem(chandler.CodeSpecParse, at.item(i), "make it smaller; a module reads large data from elsewhere",
				"the object is over %d bytes", maxDocument)
			d.Problems = j.all()
		case isList(item):
			j.problem(chandler.CodeSpecShape, at.item(i), "put its items into the outer List", "a List in a List")
			d.Problems = j.all()
		default:
			d = decodeObject(item, chunk{item.yaml(), c.line}, namespace, j)
		}
		docs = append(docs, d)
	}
	return docs
}

// decodeObject reads one resource; c is its text.
func decodeObject(root *node, c chunk, namespace string, j *judge) Document {
	d := Document{Manifest: c.text, Line: c.line}
	if root.kind != object {
		j.problem(chandler.CodeSpecShape, nil, "write apiVersion, kind, metadata and spec",
			"the document must be an object of kind WasmPlugin v1alpha1, not %s", root.kind)
		d.Problems = j.all()
		return d
	}
	d.Kind, d.foreign = kindOf(root, j)
	if d.foreign || d.Kind == "" {
		d.Problems = j.all()
		return d
	}
	known := []string{"apiVersion", "kind", "metadata", "spec", "status"}
	if d.Kind == KindSecret {
		known = []string{"apiVersion", "kind", "metadata", "type", "data", "stringData", "immutable"}
	}
	top := j.record(root, &path{}, topHints(d.Kind), known...)
	decodeMetadata(top, &d, namespace)
	if d.Kind == KindSecret {
		d.Secret = decodeSecret(top, d.Key)
	} else {
		if status, at := top.field("status"); status != nil {
			j.warn(chandler.CodeSpecValue, at, "leave it out", "status is ignored: it says what is so, not what is asked for")
		}
		d.Plugin = decodePlugin(top, d.Key)
		d.digest = digest(root, d.Annotations)
		if d.Plugin != nil {
			d.Plugin.Labels, d.Plugin.Annotations = d.Labels, d.Annotations
			d.Plugin.FirstAttach = firstAttach(j, d.Annotations)
			if from := configFrom(j, d.Annotations, d.Plugin); from != nil {
				d.Plugin.Wasm.ConfigFrom = from
			}
			decodeProbes(j, d.Plugin)
			decodeRollout(j, d.Plugin)
		}
	}
	d.Problems, d.Warnings = j.all(), j.warnings
	if len(d.Problems) > 0 {
		d.Plugin, d.Secret = nil, nil
	}
	d.explicit = d.Manifest
	if root.get("metadata").get("namespace") == nil && d.identified() {
		d.explicit = withNamespace(root, d.Namespace).yaml()
	}
	return d
}

// topHints are for fields of the spec that stand beside it.
func topHints(kind string) map[string]string {
	hints := map[string]string{}
	if kind == KindSecret {
		return hints
	}
	for _, f := range slices.Concat(commonFields, wasmFields, []string{"targetRef", "wasm", "lua"}) {
		hints[f] = "write it under spec; see its indentation"
	}
	return hints
}

// kindOf tells which resource it is, or the judge why it is none.
func kindOf(root *node, j *judge) (kind string, foreign bool) {
	top := record{j, &path{}, root}
	before := len(j.problems)
	version, _ := top.text("apiVersion")
	kind, _ = top.text("kind")
	if len(j.problems) > before {
		return "", false
	}
	const hint = "write apiVersion: " + chandler.APIVersion + " and kind: WasmPlugin or TrafficExtension"
	group, _, grouped := strings.Cut(version, "/")
	ownGroup, _, _ := strings.Cut(chandler.APIVersion, "/")
	plugin := kind == chandler.KindWasmPlugin || kind == chandler.KindTrafficExtension
	switch {
	case kind == KindSecret && version == "v1", plugin && version == chandler.APIVersion:
		return kind, false
	case kind == "" || version == "":
		missing := "kind"
		if kind != "" {
			missing = "apiVersion"
		}
		j.problem(chandler.CodeSpecShape, top.at.field(missing), hint, "%s is missing; the document must be an object of kind WasmPlugin v1alpha1", missing)
	case plugin:
		j.problem(chandler.CodeSpecShape, top.at.field("apiVersion"), "write "+chandler.APIVersion,
			"apiVersion %s has no %s", chandler.Quote(version), kind)
		return kind, false
	case grouped && group == ownGroup || !grouped && version != "v1":
		at := hint
		if s := suggest(kind, []string{chandler.KindWasmPlugin, chandler.KindTrafficExtension}); s != "" {
			at = "did you mean " + s + "?"
		}
		j.problem(chandler.CodeSpecShape, top.at.field("kind"), at, "kind %s of %s is not known", chandler.Quote(kind), chandler.Quote(version))
	default:
		j.problem(chandler.CodeSpecShape, top.at.field("kind"), "keep it in another folder; WasmPlugin, TrafficExtension and Secret are read here",
			"kind %s of %s is not read here", chandler.Quote(kind), chandler.Quote(version))
		return "", true
	}
	return "", false
}

var (
	dnsLabel  = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	subdomain = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
)

const maxName = 253

// decodeMetadata reads what identifies the object. What the API server writes
// into metadata is accepted and ignored.
func decodeMetadata(top record, d *Document, namespace string) {
	n, at := top.field("metadata")
	if n == nil {
		top.problem(chandler.CodeSpecRequired, at, "write metadata with a name", "metadata is required")
		return
	}
	m := top.record(n, at, nil, "name", "namespace", "labels", "annotations", "generateName", "uid", "resourceVersion", "generation",
		"creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "ownerReferences", "finalizers", "managedFields", "selfLink")
	if m.node == nil {
		return
	}
	d.Labels, d.Annotations = m.stringMap("labels"), m.stringMap("annotations")
	name, ok := m.text("name")
	switch {
	case !ok && m.node.get("name") != nil:
	case !ok && m.node.get("generateName") != nil:
		m.problem(chandler.CodeSpecRequired, at.field("name"), "write a name; generateName is for the Kubernetes API", "metadata.name is required")
	case !ok:
		m.problem(chandler.CodeSpecRequired, at.field("name"), "write a name", "metadata.name is required")
	case len(name) > maxName || !subdomain.MatchString(name):
		m.problem(chandler.CodeSpecValue, at.field("name"), "use at most 253 lower-case letters, digits, dashes and dots, with a letter or digit at both ends",
			"name %s is not valid", chandler.Quote(name))
	default:
		d.Name = name
	}
	if written, ok := m.text("namespace"); ok {
		namespace = written
	} else if m.node.get("namespace") != nil {
		return
	}
	if !dnsLabel.MatchString(namespace) {
		m.problem(chandler.CodeSpecValue, at.field("namespace"), "use at most 63 lower-case letters, digits and dashes, with a letter or digit at both ends",
			"namespace %s is not valid", chandler.Quote(namespace))
		return
	}
	d.Namespace = namespace
}

// annotationPrefix is of the annotations that are ours.
const annotationPrefix = "chandler.dev/"

// firstAttach reads our annotations. One that nobody knows is worth a warning
// only: an older or newer control plane may know it.
func firstAttach(j *judge, annotations map[string]string) chandler.FirstAttach {
	at := (&path{}).field("metadata").field("annotations")
	known := slices.Concat([]string{chandler.AnnotationFirstAttach, chandler.AnnotationConfigFrom, chandler.AnnotationProbe}, rolloutAnnotations)
	for _, name := range slices.Sorted(maps.Keys(annotations)) {
		if !strings.HasPrefix(name, annotationPrefix) || slices.Contains(known, name) {
			continue
		}
		hint := "remove it; known is " + strings.Join(known, ", ")
		if s := suggest(name, known); s != "" {
			hint = "did you mean " + s + "?"
		}
		j.warn(chandler.CodeSpecUnknown, at.field(name), hint, "annotation %s is not known and ignored", chandler.Quote(name))
	}
	switch v, ok := annotations[chandler.AnnotationFirstAttach]; {
	case !ok, v == "hold":
	case v == "deny":
		return chandler.FirstAttachDeny
	default:
		j.problem(chandler.CodeSpecEnum, at.field(chandler.AnnotationFirstAttach), "write deny or hold",
			"%s %s is unknown", chandler.AnnotationFirstAttach, chandler.Quote(v))
	}
	return chandler.FirstAttachHold
}

// rolloutAnnotations are those that say how a change comes to proxies.
var rolloutAnnotations = []string{chandler.AnnotationRollout, chandler.AnnotationRolloutInterval, chandler.AnnotationRolloutOnFailure}

// decodeRollout reads them. A mistake refuses the resource: without its steps a change
// would go to everyone at once.
func decodeRollout(j *judge, p *chandler.Plugin) {
	plan, problems := rollout.Parse(p.Annotations)
	p.Rollout = plan
	at := (&path{}).field("metadata").field("annotations")
	for _, name := range rolloutAnnotations {
		for i := range problems {
			if to := at.field(name); problems[i].Field == to.String() {
				j.tell(to, &problems[i])
			}
		}
	}
}

// digest is over what decides the meaning of a plugin: its spec and the
// annotations that are read, but those that say in what steps it comes to proxies. Labels,
// comments and spelling are not in it.
func digest(root *node, annotations map[string]string) string {
	h := sha256.New()
	if spec := root.get("spec"); spec != nil {
		h.Write(spec.canonical())
	}
	h.Write([]byte("\n" + annotations[chandler.AnnotationFirstAttach]))
	for _, name := range []string{chandler.AnnotationConfigFrom, chandler.AnnotationProbe} {
		if value, ok := annotations[name]; ok {
			h.Write([]byte("\n" + name + " " + value))
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// withNamespace is root with its namespace written out.
func withNamespace(root *node, namespace string) *node {
	c := *root
	c.fields = slices.Clone(root.fields)
	for i, f := range c.fields {
		if f.name != "metadata" {
			continue
		}
		m := *f.value
		m.fields = slices.DeleteFunc(slices.Clone(m.fields), func(f field) bool { return f.name == "namespace" })
		m.fields = append(m.fields, field{"namespace", &node{kind: text, text: namespace}})
		c.fields[i].value = &m
	}
	return &c
}

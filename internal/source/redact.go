package source

import "chandler.dev/chandler"

// Redacted stands in the place of a value that is not shown.
const Redacted = "<redacted>"

// plain are the fields of an object that hold no secrets; an empty one is shown
// with all that is in it.
type plain map[string]plain

var (
	plainAll  = plain{}
	plainWasm = plain{
		"sha256": nil, "imagePullPolicy": nil, "imagePullSecret": nil, "pluginName": nil, "failStrategy": nil, "type": nil, "url": nil,
		"vmConfig": {"env": {"name": nil, "valueFrom": nil}},
	}
	plainObject = plain{
		"apiVersion": nil, "kind": nil,
		"metadata": {"name": nil, "namespace": nil, "generateName": nil, "labels": plainAll, "annotations": {chandler.AnnotationFirstAttach: nil, chandler.AnnotationConfigFrom: nil}},
		"spec": with(plainWasm, plain{
			"selector": plainAll, "targetRef": plainAll, "targetRefs": plainAll, "match": plainAll, "phase": nil, "priority": nil, "wasm": plainWasm,
		}),
	}
)

func with(a, b plain) plain {
	all := plain{}
	for _, m := range []plain{a, b} {
		for name, below := range m {
			all[name] = below
		}
	}
	return all
}

// Redact gives an object's text for those who may not read its configuration. Of
// fields that cannot hold a secret the values are kept; of all others, those that
// nobody knows among them, every value is replaced, so that only their structure
// is seen. Comments are gone. Of a text that cannot be read nothing is given.
func Redact(manifest []byte) []byte {
	var out []byte
	for _, c := range split(manifest) {
		root := grow(c, &judge{})
		if root == nil {
			continue
		}
		if len(out) > 0 {
			out = append(out, "---\n"...)
		}
		out = append(out, redact(root, plainObject).yaml()...)
	}
	return out
}

// redact copies a value. Without anything plain it is shown when it is a single
// value and its field is plain, which the caller has seen to.
func redact(n *node, shown plain) *node {
	switch n.kind {
	case object:
		made := &node{kind: object}
		for _, f := range n.fields {
			below, ok := shown[f.name]
			value := f.value
			switch {
			case f.name == "url" && ok:
				value = redactURL(value)
			case ok && below == nil && value.scalar(): // as it is
			case ok && below != nil && len(below) == 0:
			default:
				value = redact(value, below)
			}
			made.add(f.name, value)
		}
		return made
	case list:
		made := &node{kind: list}
		for _, item := range n.items {
			made.items = append(made.items, redact(item, shown))
		}
		return made
	}
	return &node{kind: text, text: Redacted}
}

func (n *node) scalar() bool { return n.kind != list && n.kind != object }

// redactURL shows a reference without the values of a query.
func redactURL(n *node) *node {
	if n.kind == text {
		if ref, problem := chandler.ParseReference(n.text); problem == nil {
			return &node{kind: text, text: ref.Redacted()}
		}
	}
	return redact(n, nil)
}

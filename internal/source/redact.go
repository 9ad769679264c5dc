package source

import (
	"strconv"

	"chandler.dev/chandler"
)

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
		"metadata": {"name": nil, "namespace": nil, "generateName": nil, "labels": plainAll, "annotations": {
			chandler.AnnotationFirstAttach: nil, chandler.AnnotationConfigFrom: nil,
			chandler.AnnotationRollout: nil, chandler.AnnotationRolloutInterval: nil, chandler.AnnotationRolloutOnFailure: nil,
		}},
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

// Hide replaces values of a plugin's configuration in an object's text. places gives
// where, for the configuration as JSON: each the names of fields and the numbers of
// items that lead to it, and an empty one is all of it. Where nothing is replaced the
// text stays as it was written; else comments are gone.
func Hide(manifest []byte, places func(config []byte) [][]string) ([]byte, bool) {
	var out []byte
	hid := false
	for _, c := range split(manifest) {
		root := grow(c, &judge{})
		if root == nil {
			continue
		}
		for _, spec := range []*node{root.get("spec"), root.get("spec").get("wasm")} {
			config := spec.get("pluginConfig")
			if config == nil {
				continue
			}
			for _, at := range places(config.canonical()) {
				hid = config.hide(at) || hid
			}
		}
		if hid { // kubectl keeps a copy of the whole there
			root.get("metadata").get("annotations").get("kubectl.kubernetes.io/last-applied-configuration").hide(nil)
		}
		if len(out) > 0 {
			out = append(out, "---\n"...)
		}
		out = append(out, root.yaml()...)
	}
	if !hid {
		return manifest, false
	}
	return out, true
}

// hide replaces what stands at a place; false: nothing does.
func (n *node) hide(at []string) bool {
	for _, name := range at {
		var below *node
		switch {
		case n == nil:
		case n.kind == list:
			if i, err := strconv.Atoi(name); err == nil && i >= 0 && i < len(n.items) {
				below = n.items[i]
			}
		default:
			for _, f := range n.fields {
				if f.name == name {
					below = f.value
				}
			}
		}
		n = below
	}
	if n == nil {
		return false
	}
	*n = node{kind: text, text: Redacted}
	return true
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

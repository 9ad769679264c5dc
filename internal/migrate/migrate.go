// Package migrate translates what Istio was told about Wasm into resources for
// chandler: WasmPlugins and TrafficExtensions as they are, and EnvoyFilters that
// put Wasm filters into a chain. It says where a resource will behave otherwise
// than before, and what it cannot carry over.
//
// It is pure: text in, text and notes out. What it gives is accepted by package
// source. It never guesses: a resource of which a part cannot be carried over is
// not given at all, since applied it would take the old one's place with less.
package migrate

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source"
)

// From is what the input was written for.
type From string

// The sources of a translation.
const (
	FromIstio       From = "istio"       // WasmPlugin and TrafficExtension
	FromEnvoyFilter From = "envoyfilter" // EnvoyFilter with Wasm filters
)

// The label by which istiod leaves a resource to another control plane, and ours.
const (
	LabelRevision = "istio.io/rev"
	Revision      = "chandler"
)

// Verdict is what a note says of its field.
type Verdict string

// The verdicts.
const (
	Carried Verdict = "carried" // the object is in the output; Message says as what
	Differs Verdict = "differs" // it is, and something behaves otherwise than before
	Lost    Verdict = "lost"    // it cannot be carried over; Hint says what to do
	Left    Verdict = "left"    // it is of no concern here and stays as it is
)

// Note says one thing about one object of the input.
type Note struct {
	Verdict Verdict `json:"verdict"`
	// Object is "Kind namespace/name" as far as it is known, Line where its
	// document begins in the input, from 1; 0 where the input has no lines.
	Object string `json:"object,omitempty"`
	Line   int    `json:"line,omitempty"`
	// Field is a path in the object of the input; empty for the whole of it.
	Field   string `json:"field,omitempty"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

// maxNotes bounds what is said of one object, maxObjects how many are read.
const (
	maxNotes   = 64
	maxObjects = 10000
)

// Result is a translation.
type Result struct {
	// Manifest is YAML of the resources for chandler, separated by "---".
	Manifest []byte
	// Notes are in the order of the input. Each object has at least one.
	Notes []Note
}

// Complete tells whether nothing was lost.
func (r Result) Complete() bool {
	return !slices.ContainsFunc(r.Notes, func(n Note) bool { return n.Verdict == Lost })
}

// Translate reads a manifest of YAML or JSON, any number of documents and Lists.
// namespace is for those that name none; empty leaves them without, for kubectl to
// fill in.
func Translate(from From, manifest []byte, namespace string) Result {
	t := &translation{from: from, namespace: namespace}
	docs := source.Decode(manifest, namespace)
	if len(docs) > maxObjects {
		t.notes = append(t.notes, Note{Verdict: Lost, Line: docs[maxObjects].Line, Message: fmt.Sprintf("more than %d objects", maxObjects),
			Hint: "translate the rest by itself"})
		docs = docs[:maxObjects]
	}
	var filters []*envoyFilter
	for _, d := range docs {
		o := t.open(d)
		switch {
		case o == nil:
		case from == FromEnvoyFilter && o.isEnvoyFilter():
			filters = append(filters, &envoyFilter{object: o})
		case from == FromIstio && d.Kind != source.KindSecret && d.Kind != "":
			t.istio(o)
		default:
			o.leave(from)
		}
	}
	t.envoyFilters(filters)
	return t.result()
}

// translation is one call of Translate.
type translation struct {
	from      From
	namespace string
	objects   []*object
	notes     []Note // about no object
}

// object is one object of the input.
type object struct {
	doc    source.Document
	root   value
	title  string
	notes  []Note
	untold int
	made   []*made // in the order of the output
}

// made is an object of the output.
type made struct {
	root *yaml.Node
	// origin maps paths of the output to paths of the input.
	origin map[string]string
}

// open reads a document; nil when it cannot be read, which is noted.
func (t *translation) open(d source.Document) *object {
	o := &object{doc: d}
	t.objects = append(t.objects, o)
	refuse := func(problems []chandler.Problem) *object {
		for _, p := range problems {
			o.note(Lost, p.Field, p.Hint, "%s", p.Message)
		}
		return nil
	}
	var root yaml.Node
	if d.Manifest == nil {
		return refuse(d.Problems)
	}
	if err := yaml.Unmarshal(d.Manifest, &root); err != nil || len(root.Content) == 0 {
		o.note(Lost, "", "write it as YAML", "the document cannot be read")
		return nil
	}
	tree := flatten(root.Content[0], 0)
	if tree == nil || tree.Kind != yaml.MappingNode {
		return refuse(d.Problems)
	}
	o.root = value{node: tree, read: map[*yaml.Node]bool{}}
	metadata := o.root.get("metadata")
	o.title = strings.TrimSpace(o.root.get("kind").text() + " " + metadata.get("namespace").text() + "/" + metadata.get("name").text())
	o.title = chandler.Printable(strings.Replace(o.title, " /", " ", 1), 2*maxName)
	if d.Kind != "" {
		return o
	}
	if group, _, _ := strings.Cut(chandler.APIVersion, "/"); o.root.get("kind").text() == "" || strings.HasPrefix(o.root.get("apiVersion").text(), group+"/") {
		return refuse(d.Problems)
	}
	// The text is sound, or there is a problem beside that the kind is another's.
	other := slices.DeleteFunc(slices.Clone(d.Problems), func(p chandler.Problem) bool { return p.Field == "kind" })
	if len(other) > 0 {
		return refuse(other)
	}
	return o
}

// leave notes that an object is none of those that are translated.
func (o *object) leave(from From) {
	hint := ""
	switch {
	case o.isEnvoyFilter():
		hint = "translate it with --from envoyfilter"
	case from == FromEnvoyFilter && o.doc.Plugin != nil:
		hint = "translate it with --from istio"
	case o.doc.Kind == source.KindSecret:
		hint = "pull secrets stay where they are, in the namespace of the plugin"
	}
	o.note(Left, "", hint, "it is not read here and stays as it is")
}

const maxField = 512 // bytes, of a note's field

func (o *object) note(v Verdict, field, hint, format string, args ...any) {
	if len(o.notes) >= maxNotes-1 {
		if v == Lost {
			o.untold++
		}
		return
	}
	o.notes = append(o.notes, Note{Verdict: v, Field: chandler.Printable(field, maxField), Hint: hint, Message: fmt.Sprintf(format, args...)})
}

// give takes an object into the output unless package source would refuse it, and
// notes what will be otherwise. It says whether it was taken.
func (t *translation) give(o *object, m *made) bool {
	text := render(m.root)
	docs := source.Decode(text, t.namespace)
	if len(docs) != 1 || docs[0].Kind == "" {
		o.note(Lost, "", "please report this", "the translation cannot be read")
		return false
	}
	d := docs[0]
	for _, p := range d.Problems {
		o.note(Lost, m.field(p.Field), p.Hint, "%s", p.Message)
	}
	if d.Plugin == nil {
		return false
	}
	if !o.reachable(m, d.Plugin) {
		return false
	}
	for _, p := range d.Warnings {
		o.note(Differs, m.field(p.Field), p.Hint, "%s", p.Message)
	}
	o.differences(m, d.Plugin)
	o.made = append(o.made, m)
	return true
}

// field gives the path in the input from which a path of the output comes.
func (m *made) field(path string) string {
	for p := path; p != ""; {
		if from, ok := m.origin[p]; ok {
			return from + path[len(p):]
		}
		cut := max(strings.LastIndexByte(p, '.'), strings.LastIndexByte(p, '['))
		if cut < 0 {
			break
		}
		p = p[:cut]
	}
	if m.origin == nil {
		return path
	}
	return ""
}

func (t *translation) result() Result {
	var r Result
	var out bytes.Buffer
	for _, o := range t.objects {
		for _, m := range o.made {
			if out.Len() > 0 {
				out.WriteString("---\n")
			}
			out.Write(render(m.root))
		}
		if o.untold > 0 {
			o.notes = append(o.notes, Note{Verdict: Lost, Message: fmt.Sprintf("%d more", o.untold), Hint: "mend the others first"})
		}
		for _, n := range o.notes {
			n.Object, n.Line = o.title, o.doc.Line
			r.Notes = append(r.Notes, n)
		}
	}
	r.Notes = append(r.Notes, t.notes...)
	r.Manifest = out.Bytes()
	return r
}

// Text gives the notes for people: one paragraph an object.
func Text(notes []Note) string {
	var b strings.Builder
	for i, n := range notes {
		if i == 0 || n.Object != notes[i-1].Object || n.Line != notes[i-1].Line {
			title := n.Object
			if title == "" {
				title = "document"
			}
			b.WriteString(title)
			if n.Line > 0 {
				fmt.Fprintf(&b, " (line %d)", n.Line)
			}
			b.WriteByte('\n')
		}
		what := map[Verdict]string{Carried: "", Differs: "differs: ", Lost: "not carried over: ", Left: "left: "}[n.Verdict]
		field := n.Field
		if field != "" {
			field += ": "
		}
		fmt.Fprintf(&b, "  %s%s%s\n", what, field, n.Message)
		if n.Hint != "" {
			fmt.Fprintf(&b, "    %s\n", n.Hint)
		}
	}
	return b.String()
}

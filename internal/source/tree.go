package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/strict"
)

// Limits of a document.
const (
	maxDocument = 256 << 10 // bytes
	maxList     = 4 << 20   // of a List, whose items have the limit above each
	maxDepth    = 100
)

// kind is what JSON knows.
type kind uint8

const (
	null kind = iota
	boolean
	number
	text
	list
	object
)

func (k kind) String() string {
	return [...]string{"null", "a boolean", "a number", "a string", "a list", "an object"}[k]
}

// node is a value of a document: YAML with its aliases, merge keys, tags and
// spellings of numbers resolved to what JSON can say.
type node struct {
	kind kind
	// text is the string, or the canonical JSON of a boolean or a number.
	text string
	// switched: the string is a plain word that Kubernetes reads as a boolean; see strict.Switch.
	switched bool
	// unfit, unless empty, says why a number cannot be written as JSON.
	unfit  string
	items  []*node
	fields []field // as written, each name once
	// size is about how many bytes it takes to write it out.
	size int
}

type field struct {
	name  string
	value *node
}

// get gives the value of a field; nil when it is absent or null.
func (n *node) get(name string) *node {
	if n == nil || n.kind != object {
		return nil
	}
	for _, f := range n.fields {
		if f.name == name && f.value.kind != null {
			return f.value
		}
	}
	return nil
}

// path is where a value stands in a document.
type path struct {
	up    *path
	name  string
	index int // of a list, when name is empty
}

func (p *path) field(name string) *path { return &path{up: p, name: name} }
func (p *path) item(i int) *path        { return &path{up: p, index: i} }

const maxField = 512 // bytes of a problem's field

var plainName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]{0,63}$`)

// String gives for instance spec.match[0].ports[1].number. Names that are no
// words are put in brackets and quotes.
func (p *path) String() string {
	var parts []string
	for ; p != nil && p.up != nil; p = p.up {
		switch {
		case p.name == "":
			parts = append(parts, "["+strconv.Itoa(p.index)+"]")
		case !plainName.MatchString(p.name):
			parts = append(parts, "["+chandler.Quote(p.name)+"]")
		case p.up.up == nil:
			parts = append(parts, p.name)
		default:
			parts = append(parts, "."+p.name)
		}
	}
	var b strings.Builder
	for i := len(parts) - 1; i >= 0; i-- {
		b.WriteString(parts[i])
	}
	return chandler.Printable(b.String(), maxField)
}

// grower makes a tree from YAML.
type grower struct {
	judge *judge
	line  int // lines before the document
	// left is how many bytes the tree may still take: with aliases a few lines can
	// mean any number.
	left int
	open map[*yaml.Node]bool // from the root down to here, through aliases
}

// errStop ends the growing; the judge has the problem.
var errStop = errors.New("document is refused")

// grow reads one document. Nil means that it cannot be read at all; the judge
// knows why. Mistakes of single fields are told to the judge and passed over.
func grow(c chunk, j *judge) *node { return growWithin(c, j, maxDocument) }

// growWithin is grow for documents of other sizes; a List may always have its own.
func growWithin(c chunk, j *judge, limit int) *node {
	g := &grower{judge: j, line: c.line - 1, left: limit + 2*len(c.text), open: map[*yaml.Node]bool{}}
	if !g.checkText(c.text) {
		return nil
	}
	d := yaml.NewDecoder(bytes.NewReader(jsonAsYAML(c.text)))
	var doc, rest yaml.Node
	if err := d.Decode(&doc); err != nil {
		g.refuseSyntax(err)
		return nil
	}
	switch err := d.Decode(&rest); {
	case err == nil:
		g.refuse(&rest, nil, "separate documents by a line of ---", "a second document begins")
		return nil
	case !errors.Is(err, io.EOF):
		g.refuseSyntax(err)
		return nil
	}
	root, err := g.node(doc.Content[0], &path{}, 0)
	if err != nil {
		return nil
	}
	if isList(root) {
		limit = max(limit, maxList)
	}
	if len(c.text) > limit {
		j.problem(chandler.CodeSpecParse, nil, "make it smaller; a module reads large data from elsewhere",
			"%d:1: the document has %d bytes, limit %d", c.line, len(c.text), limit)
		return nil
	}
	if root.size > 2*limit {
		g.refuseAliases(doc.Content[0], limit)
		return nil
	}
	return root
}

// checkText refuses what no parser should see.
func (g *grower) checkText(b []byte) bool {
	if len(b) > maxList {
		g.judge.problem(chandler.CodeSpecParse, nil, "make it smaller; a module reads large data from elsewhere",
			"%d:1: the document has %d bytes, limit %d", g.line+1, len(b), maxDocument)
		return false
	}
	line, column := 1, 1
	for i := 0; i < len(b); {
		r, n := utf8.DecodeRune(b[i:])
		why := ""
		switch {
		case r == utf8.RuneError && n == 1:
			why = fmt.Sprintf("byte 0x%02x is not valid UTF-8", b[i])
		case r < ' ' && r != '\n' && r != '\r' && r != '\t', r == 0x7f:
			why = fmt.Sprintf("control character 0x%02x", r)
		}
		if why != "" {
			g.judge.problem(chandler.CodeSpecParse, nil, "save the file as UTF-8 text", "%d:%d: %s", g.line+line, column, why)
			return false
		}
		if column++; r == '\n' {
			line, column = line+1, 1
		}
		i += n
	}
	return true
}

// refuse tells what is wrong at n.
func (g *grower) refuse(n *yaml.Node, at *path, hint, format string, args ...any) {
	g.judge.problem(chandler.CodeSpecParse, at, hint, "%d:%d: %s", g.line+n.Line, n.Column, fmt.Sprintf(format, args...))
}

func (g *grower) refuseAliases(n *yaml.Node, limit int) {
	g.refuse(n, nil, "write less through aliases", "with its aliases resolved the document is over %d bytes", limit)
}

var syntaxError = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)`)

// refuseSyntax words the parser's complaint. It gives lines only, and those of
// its grammar are counted from 0.
func (g *grower) refuseSyntax(err error) {
	line, reason := 1, err.Error()
	if m := syntaxError.FindStringSubmatch(reason); m != nil {
		reason = m[2]
		if n, err := strconv.Atoi(m[1]); err == nil {
			line = n
			if strings.HasPrefix(reason, "did not find expected") {
				line++
			}
		}
	}
	g.judge.problem(chandler.CodeSpecParse, nil, "see whether indentation, quotes and brackets are as they should be near it",
		"%d: %s", g.line+line, chandler.Printable(reason, 256))
}

func (g *grower) node(n *yaml.Node, at *path, depth int) (*node, error) {
	if depth > maxDepth {
		g.refuse(n, at, "nest less", "nested deeper than %d", maxDepth)
		return nil, errStop
	}
	if n.Kind == yaml.AliasNode {
		if g.open[n.Alias] {
			g.refuse(n, at, "write it out", "the alias *%s stands inside what it means", chandler.Printable(n.Value, 64))
			return nil, errStop
		}
		return g.node(n.Alias, at, depth)
	}
	own := len(n.Value) + 1
	if g.left -= own; g.left < 0 {
		g.refuseAliases(n, maxDocument)
		return nil, errStop
	}
	if n.Kind == yaml.ScalarNode {
		s := g.scalar(n, at)
		s.size = own
		return s, nil
	}
	g.open[n] = true
	defer delete(g.open, n)
	if tag := n.ShortTag(); tag != "!!map" && tag != "!!seq" {
		g.refuse(n, at, "remove the tag", "tag %s is not known", chandler.Quote(tag))
	}
	if n.Kind == yaml.MappingNode {
		return g.mapping(n, at, depth)
	}
	made := &node{kind: list, size: own}
	for i, item := range n.Content {
		v, err := g.node(item, at.item(i), depth+1)
		if err != nil {
			return nil, err
		}
		made.items = append(made.items, v)
		made.size += v.size
	}
	return made, nil
}

// mapping resolves the fields of n. Those that a merge key brings in give way to
// those that are written out.
func (g *grower) mapping(n *yaml.Node, at *path, depth int) (*node, error) {
	made := &node{kind: object, size: 1}
	has := make(map[string]bool, len(n.Content)/2)
	var merged []*node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.Kind != yaml.ScalarNode {
			g.refuse(n.Content[i], at, "name a field by a string", "the name of a field is no string")
			continue
		}
		name := key.Value
		if key.ShortTag() != "!!merge" && has[name] {
			g.refuse(n.Content[i], at.field(name), "keep one of them", "duplicate key %s", chandler.Quote(name))
			continue
		}
		v, err := g.node(n.Content[i+1], at.field(name), depth+1)
		switch {
		case err != nil:
			return nil, err
		case key.ShortTag() != "!!merge":
			has[name] = true
			made.add(name, v)
		case v.kind == list:
			merged = append(merged, v.items...)
		default:
			merged = append(merged, v)
		}
	}
	for _, m := range merged {
		if m.kind != object {
			g.refuse(n, at, "merge an object", "a merge key (<<) needs an object, not %s", m.kind)
		}
		for _, f := range m.fields {
			if !has[f.name] {
				has[f.name] = true
				made.add(f.name, f.value)
			}
		}
	}
	return made, nil
}

func (n *node) add(name string, v *node) {
	n.fields = append(n.fields, field{name, v})
	n.size += len(name) + 1 + v.size
}

func (g *grower) scalar(n *yaml.Node, at *path) *node {
	switch tag := n.ShortTag(); tag {
	case "!!null":
		return &node{kind: null, text: "null"}
	case "!!bool":
		var b bool
		if err := n.Decode(&b); err == nil {
			return &node{kind: boolean, text: strconv.FormatBool(b)}
		}
	case "!!int", "!!float":
		return numeral(n)
	case "!!str", "!!timestamp": // a date is a string, as it is to Kubernetes
		if n.Style == 0 && numberLike.MatchString(n.Value) {
			return &node{kind: number, text: "0", unfit: "is out of range"}
		}
		_, isSwitch := strict.Switch(n.Value)
		return &node{kind: text, text: n.Value, switched: n.Style == 0 && isSwitch}
	default:
		g.refuse(n, at, "remove the tag", "tag %s is not known", chandler.Quote(tag))
	}
	return &node{kind: text, text: n.Value}
}

// resolveSwitches makes booleans of the plain words for them, in n and below: where text
// decides nothing but what is free-form (pluginConfig). Elsewhere they stay the text that is
// wanted there.
func (n *node) resolveSwitches() {
	if n.switched {
		on, _ := strict.Switch(n.text)
		n.kind, n.text, n.switched = boolean, strconv.FormatBool(on), false
	}
	for _, f := range n.fields {
		f.value.resolveSwitches()
	}
	for _, item := range n.items {
		item.resolveSwitches()
	}
}

var (
	numberLike  = regexp.MustCompile(`^[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$`)
	integerLike = regexp.MustCompile(`^[-+]?[0-9]+$`)
)

// numeral keeps integers of 64 bits exactly and all else as JSON's numbers go.
func numeral(n *yaml.Node) *node {
	unfit := func(why string) *node { return &node{kind: number, text: "0", unfit: why} }
	var v any
	if err := n.Decode(&v); err != nil {
		return unfit("is no number")
	}
	f, ok := v.(float64)
	switch {
	case !ok:
		return &node{kind: number, text: fmt.Sprint(v)}
	case math.IsNaN(f):
		return unfit("is NaN")
	case math.IsInf(f, 0):
		return unfit("is infinite")
	case math.Abs(f) >= 1<<53 && integerLike.MatchString(strings.ReplaceAll(n.Value, "_", "")): // a small one is 08, which is no octal number
		return unfit("does not fit 64 bits")
	case f == 0:
		return &node{kind: number, text: "0"} // of either sign
	}
	b, err := json.Marshal(f)
	if err != nil {
		return unfit("is out of range")
	}
	if math.Abs(f) >= 1<<63 && integerLike.Match(b) { // it must be read back as what it is
		b = strconv.AppendFloat(nil, f, 'e', -1, 64)
	}
	return &node{kind: number, text: string(b)}
}

package attach

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler"
)

// maxNodes bounds a configuration with its aliases resolved: a few lines of
// YAML can mean billions of nodes.
const maxNodes = 1 << 20

// notYAMLHint names the one known construct that Envoy's reader takes and this
// one does not.
const notYAMLHint = "a value with a question mark between { } or [ ] needs quotes"

// object is a message to be put into a tree.
type object = map[string]any

func problem(field, hint, format string, args ...any) error {
	return chandler.Problemf(chandler.CodeEnvoyConfig, field, hint, format, args...)
}

// parse reads YAML or JSON into a tree without aliases, comments and styles of
// quoting: a scalar is either plain, with its text as it was written, or a
// string in double quotes. Envoy makes the same difference and no other.
func parse(text []byte) (root *yaml.Node, isJSON bool, err error) {
	if trimmed := bytes.TrimSpace(text); bytes.HasPrefix(trimmed, []byte("{")) && json.Valid(text) {
		root, err := parseJSON(text)
		return root, true, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, false, problem("", notYAMLHint, "the Envoy configuration cannot be read as YAML: %s", chandler.Printable(err.Error(), 512))
	}
	if len(doc.Content) == 0 {
		return newMapping(), false, nil
	}
	root, err = (&resolver{open: map[*yaml.Node]bool{}}).resolve(doc.Content[0])
	if err == nil && isNull(root) {
		root = newMapping()
	}
	if err == nil && root.Kind != yaml.MappingNode {
		err = problem("", "", "the Envoy configuration is not a mapping")
	}
	return root, false, err
}

// resolver copies a tree, with a copy of its own in place of each alias.
type resolver struct {
	nodes int
	open  map[*yaml.Node]bool // from the root down to here, through aliases
}

func (r *resolver) resolve(n *yaml.Node) (*yaml.Node, error) {
	if r.nodes++; r.nodes > maxNodes {
		return nil, problem("", "", "the Envoy configuration has more than %d values once its aliases are resolved", maxNodes)
	}
	switch n.Kind {
	case yaml.AliasNode:
		if r.open[n.Alias] {
			return nil, problem("", "", "line %d: the alias *%s stands inside what it means", n.Line, chandler.Printable(n.Value, 64))
		}
		return r.resolve(n.Alias)
	case yaml.ScalarNode:
		return scalar(n), nil
	}
	r.open[n] = true
	defer delete(r.open, n)
	c := &yaml.Node{Kind: n.Kind, Tag: n.Tag, Style: n.Style & (yaml.FlowStyle | yaml.TaggedStyle), Line: n.Line}
	if n.Kind == yaml.MappingNode {
		return c, r.mapping(n, c)
	}
	for _, item := range n.Content {
		v, err := r.resolve(item)
		if err != nil {
			return nil, err
		}
		c.Content = append(c.Content, v)
	}
	return c, nil
}

// scalar is a copy of n with one style of quoting for all strings.
func scalar(n *yaml.Node) *yaml.Node {
	c := &yaml.Node{Kind: n.Kind, Tag: n.Tag, Value: n.Value, Style: n.Style & yaml.TaggedStyle, Line: n.Line}
	switch {
	case n.Style&(yaml.DoubleQuotedStyle|yaml.SingleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0:
		c.Style |= yaml.DoubleQuotedStyle
	case n.ShortTag() == "!!null":
		c.Value = "null" // nothing at all would become '' in a flow mapping
	}
	return c
}

// mapping resolves the entries of n into c. Those that a merge key brings in
// come last and give way to those that are written out.
func (r *resolver) mapping(n, c *yaml.Node) error {
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.Kind != yaml.ScalarNode {
			return problem("", "", "line %d: the key of a mapping is no scalar", key.Line)
		}
		value, err := r.resolve(n.Content[i+1])
		switch {
		case err != nil:
			return err
		case key.ShortTag() != "!!merge":
			c.Content = append(c.Content, scalar(key), value)
		case value.Kind == yaml.SequenceNode:
			merged = append(merged, value.Content...)
		default:
			merged = append(merged, value)
		}
	}
	has := map[string]bool{}
	for i := 0; i < len(c.Content); i += 2 {
		has[c.Content[i].Value] = true
	}
	for _, m := range merged {
		if m.Kind != yaml.MappingNode {
			return problem("", "", "line %d: a merge key (<<) needs a mapping", n.Line)
		}
		for i := 0; i+1 < len(m.Content); i += 2 {
			if key := m.Content[i].Value; !has[key] {
				has[key] = true
				c.Content = append(c.Content, m.Content[i], m.Content[i+1])
			}
		}
	}
	return nil
}

// parseJSON reads a valid JSON text into a tree; numbers keep their text.
func parseJSON(text []byte) (*yaml.Node, error) {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var stack []*yaml.Node
	isKey := func() bool {
		if len(stack) == 0 {
			return false
		}
		top := stack[len(stack)-1]
		return top.Kind == yaml.MappingNode && len(top.Content)%2 == 0
	}
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return nil, problem("", "", "the Envoy configuration is empty")
		} else if err != nil {
			return nil, problem("", "", "the Envoy configuration is not JSON: %s", chandler.Printable(err.Error(), 512))
		}
		var n *yaml.Node
		switch v := token.(type) {
		case json.Delim:
			switch v {
			case '{':
				stack = append(stack, newMapping())
				continue
			case '[':
				stack = append(stack, &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"})
				continue
			}
			n, stack = stack[len(stack)-1], stack[:len(stack)-1]
		case string:
			if n = newString(v); isKey() {
				n = newKey(v)
			}
		default:
			n = plain(v)
		}
		if len(stack) == 0 {
			return n, nil
		}
		top := stack[len(stack)-1]
		top.Content = append(top.Content, n)
	}
}

// fromObject makes a tree of a message written in Go.
func fromObject(o object) *yaml.Node {
	text, err := json.Marshal(o)
	if err == nil {
		var root *yaml.Node
		if root, err = parseJSON(text); err == nil {
			return root
		}
	}
	panic(fmt.Sprintf("attach: an object of strings, booleans and lists has no JSON: %v", err))
}

func newMapping() *yaml.Node { return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"} }

func newString(s string) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s, Style: yaml.DoubleQuotedStyle}
}

// newKey is a string that is quoted only where it must be.
func newKey(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }

func newSequence(items ...*yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: items}
}

// plain is a number, a boolean or null.
func plain(v any) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Value: fmt.Sprint(v)}
	if v == nil {
		n.Value = "null"
	}
	n.Tag = n.ShortTag()
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// render writes a tree, as JSON when its numbers mean what JSON says.
func render(root *yaml.Node, asJSON bool) ([]byte, error) {
	if asJSON {
		var b bytes.Buffer
		renderJSON(&b, root)
		b.WriteByte('\n')
		var indented bytes.Buffer
		if err := json.Indent(&indented, b.Bytes(), "", "  "); err != nil {
			return nil, fmt.Errorf("write configuration: %w", err)
		}
		return indented.Bytes(), nil
	}
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := errors.Join(e.Encode(root), e.Close()); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	return b.Bytes(), nil
}

func renderJSON(b *bytes.Buffer, n *yaml.Node) {
	quoted := func(s string) {
		text, _ := json.Marshal(s) // a string always has JSON
		b.Write(text)
	}
	separate := func(i int) {
		if i > 0 {
			b.WriteByte(',')
		}
	}
	switch n.Kind {
	case yaml.MappingNode:
		b.WriteByte('{')
		for i := 0; i+1 < len(n.Content); i += 2 {
			separate(i)
			quoted(n.Content[i].Value)
			b.WriteByte(':')
			renderJSON(b, n.Content[i+1])
		}
		b.WriteByte('}')
	case yaml.SequenceNode:
		b.WriteByte('[')
		for i, item := range n.Content {
			separate(i)
			renderJSON(b, item)
		}
		b.WriteByte(']')
	default:
		if n.Style&yaml.DoubleQuotedStyle != 0 {
			quoted(n.Value)
		} else {
			b.WriteString(n.Value)
		}
	}
}

// camel is the other spelling of a field's name: http_filters, httpFilters.
func camel(name string) string {
	var b strings.Builder
	up := false
	for _, r := range name {
		switch {
		case r == '_':
			up = true
			continue
		case up:
			b.WriteString(strings.ToUpper(string(r)))
		default:
			b.WriteRune(r)
		}
		up = false
	}
	return b.String()
}

// sub is the path of a field inside the one at path.
func sub(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// index is where the value of a field stands in a mapping's content, in either
// spelling; -1 when it is absent.
func index(m *yaml.Node, path, name string) (int, error) {
	found, other := -1, camel(name)
	for i := 0; i+1 < len(m.Content); i += 2 {
		if key := m.Content[i].Value; key == name || key == other {
			if found >= 0 {
				return -1, problem(sub(path, name), "keep one of the two", "the field is given twice")
			}
			found = i + 1
		}
	}
	return found, nil
}

// field gives the value of a field, nil when it is absent or null.
func field(m *yaml.Node, path, name string) (*yaml.Node, error) {
	i, err := index(m, path, name)
	if err != nil || i < 0 || isNull(m.Content[i]) {
		return nil, err
	}
	return m.Content[i], nil
}

// fieldOf is field, of a kind that it must have.
func fieldOf(kind yaml.Kind, m *yaml.Node, path, name string) (*yaml.Node, error) {
	n, err := field(m, path, name)
	if err != nil || n == nil || n.Kind == kind {
		return n, err
	}
	what := map[yaml.Kind]string{yaml.MappingNode: "a mapping", yaml.SequenceNode: "a list", yaml.ScalarNode: "a scalar"}[kind]
	return nil, problem(sub(path, name), "", "the field must be %s", what)
}

func message(m *yaml.Node, path, name string) (*yaml.Node, error) {
	return fieldOf(yaml.MappingNode, m, path, name)
}

// scalarText gives a scalar field as it is written, "" when it is absent.
func scalarText(m *yaml.Node, path, name string) (string, error) {
	n, err := fieldOf(yaml.ScalarNode, m, path, name)
	if err != nil || n == nil {
		return "", err
	}
	return n.Value, nil
}

// item is a message in a list, with its path.
type item struct {
	*yaml.Node
	path string
}

// messages gives the items of a list of messages; an absent list has none.
func messages(m *yaml.Node, path, name string) ([]item, error) {
	list, err := fieldOf(yaml.SequenceNode, m, path, name)
	if err != nil || list == nil {
		return nil, err
	}
	items := make([]item, len(list.Content))
	for i, n := range list.Content {
		items[i] = item{n, fmt.Sprintf("%s[%d]", sub(path, name), i)}
		if n.Kind != yaml.MappingNode {
			return nil, problem(items[i].path, "", "the item must be a mapping")
		}
	}
	return items, nil
}

// set gives a field a value, in the spelling in which it is there.
func set(m *yaml.Node, path, name string, value *yaml.Node) error {
	i, err := index(m, path, name)
	switch {
	case err != nil:
		return err
	case i >= 0:
		m.Content[i] = value
	default:
		m.Content = append(m.Content, newKey(name), value)
	}
	return nil
}

// remove takes a field away.
func remove(m *yaml.Node, path, name string) error {
	i, err := index(m, path, name)
	if err == nil && i >= 0 {
		m.Content = append(m.Content[:i-1:i-1], m.Content[i+1:]...)
	}
	return err
}

// ensure gives a message field, and makes it when it is absent.
func ensure(m *yaml.Node, path, name string) (*yaml.Node, error) {
	n, err := message(m, path, name)
	if err != nil || n != nil {
		return n, err
	}
	n = newMapping()
	return n, set(m, path, name, n)
}

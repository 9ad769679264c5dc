package migrate

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler"
)

const maxDepth = 100

// flatten gives a tree without aliases, merge keys and flow style. Package source
// has bounded what aliases may mean. Nil: it is too deep, or no tree.
func flatten(n *yaml.Node, depth int) *yaml.Node {
	if depth > maxDepth {
		return nil
	}
	if n.Kind == yaml.AliasNode {
		return flatten(n.Alias, depth+1)
	}
	c := *n
	c.Anchor, c.Content = "", nil
	c.Style &^= yaml.FlowStyle
	if n.Kind != yaml.MappingNode {
		for _, item := range n.Content {
			f := flatten(item, depth+1)
			if f == nil {
				return nil
			}
			c.Content = append(c.Content, f)
		}
		return &c
	}
	has := make(map[string]bool, len(n.Content)/2)
	var merged []*yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := flatten(n.Content[i], depth+1), flatten(n.Content[i+1], depth+1)
		switch {
		case k == nil || v == nil || k.Kind != yaml.ScalarNode:
			return nil
		case k.ShortTag() != "!!merge":
			has[k.Value] = true
			c.Content = append(c.Content, k, v)
		case v.Kind == yaml.SequenceNode:
			merged = append(merged, v.Content...)
		default:
			merged = append(merged, v)
		}
	}
	for _, m := range merged {
		for i := 0; m.Kind == yaml.MappingNode && i+1 < len(m.Content); i += 2 {
			if name := m.Content[i].Value; !has[name] {
				has[name] = true
				c.Content = append(c.Content, m.Content[i], m.Content[i+1])
			}
		}
	}
	return &c
}

// field gives the value of a field by its name; nil when it is not there.
func field(n *yaml.Node, name string) *yaml.Node {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			return n.Content[i+1]
		}
	}
	return nil
}

// remove takes a field out of an object and tells whether it was there.
func remove(n *yaml.Node, name string) bool {
	for i := 0; n != nil && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			n.Content = append(n.Content[:i], n.Content[i+2:]...)
			return true
		}
	}
	return false
}

// value is a place in the input. What was never asked for is told at the end, so
// that nothing is dropped in silence.
type value struct {
	node *yaml.Node // nil: not there
	at   string
	read map[*yaml.Node]bool
}

func (v value) there() bool { return v.node != nil && v.node.ShortTag() != "!!null" }

// get gives a field, written in camelCase or in snake_case; name is in the latter
// where they differ.
func (v value) get(name string) value {
	if v.node == nil || v.node.Kind != yaml.MappingNode {
		return value{at: join(v.at, name), read: v.read}
	}
	for i := 0; i+1 < len(v.node.Content); i += 2 {
		if key := v.node.Content[i].Value; key == name || snake(key) == name {
			v.read[v.node.Content[i+1]] = true
			return value{v.node.Content[i+1], join(v.at, key), v.read}
		}
	}
	return value{at: join(v.at, name), read: v.read}
}

// items gives what a list holds.
func (v value) items() []value {
	if v.node == nil || v.node.Kind != yaml.SequenceNode {
		return nil
	}
	items := make([]value, len(v.node.Content))
	for i, n := range v.node.Content {
		v.read[n] = true
		items[i] = value{n, v.at + "[" + strconv.Itoa(i) + "]", v.read}
	}
	return items
}

// text gives a scalar as it is written, "" for anything else.
func (v value) text() string {
	if !v.there() || v.node.Kind != yaml.ScalarNode {
		return ""
	}
	return v.node.Value
}

func (v value) is(kind yaml.Kind) bool { return v.there() && v.node.Kind == kind }

// all marks everything below as read and gives it.
func (v value) all() *yaml.Node {
	if v.node != nil {
		v.mark(v.node)
	}
	return v.node
}

func (v value) mark(n *yaml.Node) {
	v.read[n] = true
	for _, c := range n.Content {
		v.mark(c)
	}
}

// unread gives the places that nobody asked for, the uppermost of each.
func (v value) unread() []string {
	if v.node == nil {
		return nil
	}
	var found []string
	each := func(n *yaml.Node, at string) {
		if !v.read[n] {
			found = append(found, at)
		} else {
			found = append(found, value{n, at, v.read}.unread()...)
		}
	}
	switch v.node.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(v.node.Content); i += 2 {
			each(v.node.Content[i+1], join(v.at, v.node.Content[i].Value))
		}
	case yaml.SequenceNode:
		for i, n := range v.node.Content {
			each(n, v.at+"["+strconv.Itoa(i)+"]")
		}
	}
	return found
}

var plainName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_-]{0,63}$`)

func join(at, name string) string {
	switch {
	case !plainName.MatchString(name):
		return at + "[" + chandler.Quote(name) + "]"
	case at == "":
		return name
	}
	return at + "." + name
}

// snake writes typedConfig as typed_config.
func snake(name string) string {
	if strings.IndexFunc(name, unicode.IsUpper) <= 0 {
		return name
	}
	var b strings.Builder
	for _, r := range name {
		if unicode.IsUpper(r) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// render writes an object as YAML.
func render(n *yaml.Node) []byte {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	if err := e.Encode(n); err != nil {
		return nil // a tree that was read before can be written
	}
	return b.Bytes()
}

// Makers of nodes.

func str(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	return n
}

func num(i int) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: strconv.Itoa(i)}
}

func list(items ...*yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: items}
}

func mapping() *yaml.Node { return &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"} }

// put sets a field of an object, and appends it when it is new.
func put(n *yaml.Node, name string, v *yaml.Node) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == name {
			n.Content[i+1] = v
			return
		}
	}
	n.Content = append(n.Content, str(name), v)
}

var errNoObject = errors.New("no JSON object")

// fromJSON reads a JSON object, its fields in their order.
func fromJSON(text string) (*yaml.Node, error) {
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	n, err := jsonValue(d, 0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) || n.Kind != yaml.MappingNode {
		return nil, errNoObject
	}
	return n, nil
}

func jsonValue(d *json.Decoder, depth int) (*yaml.Node, error) {
	if depth > maxDepth {
		return nil, errNoObject
	}
	tok, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch tok := tok.(type) {
	case string:
		return str(tok), nil
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(tok)}, nil
	case json.Number:
		return jsonNumber(tok), nil
	case json.Delim:
		n, has := list(), map[string]bool{}
		if tok == '{' {
			n = mapping()
		}
		for d.More() {
			if tok == '{' {
				key, err := d.Token()
				if err != nil {
					return nil, err
				}
				name, _ := key.(string)
				if has[name] {
					return nil, errNoObject
				}
				has[name] = true
				v, err := jsonValue(d, depth+1)
				if err != nil {
					return nil, err
				}
				n.Content = append(n.Content, str(name), v)
				continue
			}
			v, err := jsonValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, v)
		}
		_, err := d.Token()
		return n, err
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}, nil
}

func jsonNumber(n json.Number) *yaml.Node {
	tag := "!!int"
	if strings.ContainsAny(n.String(), ".eE") {
		tag = "!!float"
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: n.String()}
}

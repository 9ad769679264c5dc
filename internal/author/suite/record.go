package suite

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"unicode/utf8"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler/internal/exchange"
)

// FirstFile is where a plugin without tests begins.
const FirstFile = `# yaml-language-server: $schema=https://chandler.dev/schemas/test.schema.json
cases:
- name: a request
  request: /
`

// maxRecorded is how long a body is that is written down.
const maxRecorded = 4 << 10

// Record writes what came of steps that expect nothing into a file, as what is expected
// of them from now on: of each case what its first run gave. filled is how many steps
// that are. What else stands in the file stays, comments included.
func Record(file []byte, results []Result) (out []byte, filled int, err error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(file, &doc); err != nil || len(doc.Content) == 0 {
		return nil, 0, fmt.Errorf("the file is not as it was when it was read: %w", err)
	}
	byName := map[string]*Result{}
	for i := range results {
		byName[results[i].Name] = &results[i]
	}
	cases := child(doc.Content[0], "cases")
	if cases == nil {
		return file, 0, nil
	}
	for _, c := range cases.Content {
		name := child(c, "name")
		if name == nil || byName[name.Value] == nil || len(byName[name.Value].Runs) == 0 {
			continue
		}
		steps := []*yaml.Node{c}
		if list := child(c, "steps"); list != nil {
			steps = list.Content
		}
		for i, s := range byName[name.Value].Runs[0].seen {
			if i < len(steps) && child(steps[i], "expect") == nil && s.outcome != nil {
				steps[i].Content = append(steps[i].Content, scalar("expect"), s.expected())
				filled++
			}
		}
	}
	if filled == 0 {
		return file, 0, nil
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	enc.CompactSeqIndent()
	if err := enc.Encode(&doc); err != nil {
		return nil, 0, err
	}
	return b.Bytes(), filled, enc.Close()
}

// child is the value of a key.
func child(n *yaml.Node, key string) *yaml.Node {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

func scalar(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	return n
}

// number is a scalar that is no text.
func number(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: s} }

func yes() *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: "true"} }

// mapping is an object in the making.
type mapping struct{ yaml.Node }

func newMapping(style yaml.Style) *mapping {
	return &mapping{yaml.Node{Kind: yaml.MappingNode, Style: style}}
}

func (m *mapping) set(key string, value *yaml.Node) {
	m.Content = append(m.Content, scalar(key), value)
}

// expected is what came, as what is expected.
func (s *seen) expected() *yaml.Node {
	m, o := newMapping(0), s.outcome
	if o.Response == nil {
		m.set("reset", yes())
	} else {
		status, _ := o.Response.Get(":status")
		m.set("status", number(status))
		if h := fieldsOf(o.Response.Headers); h != nil {
			m.set("headers", h)
		}
		m.body(o.Response)
		if t := fieldsOf(o.Response.Trailers); t != nil {
			m.set("trailers", t)
		}
	}
	if o.Trap != "" {
		m.set("trap", yes())
	}
	if o.Cut {
		m.set("cut", yes())
	}
	m.set("upstream", scalar(map[bool]string{true: "reached", false: "notReached"}[o.Upstream != nil]))
	if len(s.calls) > 0 {
		calls := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range s.calls {
			call, request := newMapping(yaml.FlowStyle), &s.calls[i].Request
			call.set("cluster", scalar(s.calls[i].Cluster))
			for _, name := range []string{"method", "path"} {
				value, _ := request.Get(":" + name)
				call.set(name, scalar(value))
			}
			calls.Content = append(calls.Content, &call.Node)
		}
		m.set("calls", calls)
	}
	return &m.Node
}

// body is expected as JSON where it is that, else as text.
func (m *mapping) body(got *exchange.Message) {
	body := got.Body()
	if len(body) > maxRecorded || !utf8.Valid(body) {
		return
	}
	if trimmed := bytes.TrimSpace(body); len(trimmed) > 0 && (trimmed[0] == '{' || trimmed[0] == '[') && json.Valid(trimmed) {
		var value yaml.Node
		if yaml.Unmarshal(trimmed, &value) == nil && len(value.Content) == 1 {
			of := newMapping(0)
			of.set("json", value.Content[0])
			m.set("body", &of.Node)
			return
		}
	}
	m.set("body", scalar(string(body)))
}

// fieldsOf are headers by name; nil: none.
func fieldsOf(fields []exchange.Header) *yaml.Node {
	m, all := newMapping(0), &exchange.Message{Headers: fields}
	for _, h := range fields {
		if h.Name[0] == ':' || exchange.Own(h.Name) || child(&m.Node, h.Name) != nil {
			continue
		}
		value, _ := all.Get(h.Name)
		node := scalar(value)
		if _, err := strconv.Atoi(value); err == nil {
			node = number(value)
		}
		m.set(h.Name, node)
	}
	if len(m.Content) == 0 {
		return nil
	}
	return &m.Node
}

package source

import (
	"bytes"
	"cmp"
	"encoding/json"
	"slices"
	"strings"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler/internal/strict"
)

// canonical gives the one JSON text of a value: names sorted, no blanks.
func (n *node) canonical() []byte { return n.appendJSON(nil) }

func (n *node) appendJSON(out []byte) []byte {
	switch n.kind {
	case text:
		return appendString(out, n.text)
	case list:
		out = append(out, '[')
		for i, item := range n.items {
			if i > 0 {
				out = append(out, ',')
			}
			out = item.appendJSON(out)
		}
		return append(out, ']')
	case object:
		out = append(out, '{')
		for i, f := range slices.SortedFunc(slices.Values(n.fields), func(a, b field) int { return cmp.Compare(a.name, b.name) }) {
			if i > 0 {
				out = append(out, ',')
			}
			out = append(appendString(out, f.name), ':')
			out = f.value.appendJSON(out)
		}
		return append(out, '}')
	}
	return append(out, n.text...)
}

func appendString(out []byte, s string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a string into memory
	return append(out, bytes.TrimSuffix(b.Bytes(), []byte("\n"))...)
}

// yaml writes a value as YAML, in the order in which it was written.
func (n *node) yaml() []byte {
	var b bytes.Buffer
	e := yaml.NewEncoder(&b)
	e.SetIndent(2)
	// Neither can fail: the tree has scalars, lists and mappings, in memory.
	_ = e.Encode(n.yamlNode())
	_ = e.Close()
	return b.Bytes()
}

func (n *node) yamlNode() *yaml.Node {
	switch n.kind {
	case text:
		if n.switched {
			return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: n.text}
		}
		return yamlString(n.text)
	case list:
		y := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for _, item := range n.items {
			y.Content = append(y.Content, item.yamlNode())
		}
		return y
	case object:
		y := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		for _, f := range n.fields {
			y.Content = append(y.Content, yamlString(f.name), f.value.yamlNode())
		}
		return y
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Value: n.text}
}

func yamlString(s string) *yaml.Node {
	y := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s}
	if _, isSwitch := strict.Switch(s); isSwitch {
		y.Style = yaml.DoubleQuotedStyle // or it would be read as a boolean
	} else if strings.Contains(s, "\n") {
		y.Style = yaml.LiteralStyle // as it is read best; what cannot be is quoted
	} else if len(s) > 0 && strings.Trim(s, "0123456789+-.eE_") == "" {
		y.Style = yaml.DoubleQuotedStyle // or a number out of range would be one
	}
	return y
}

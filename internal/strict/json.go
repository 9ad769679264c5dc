package strict

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler"
)

// json gives the JSON of any value, names sorted, no blanks: what chandler makes of a
// pluginConfig.
func (r *reader) json(n *yaml.Node, path string, depth int) ([]byte, bool) {
	var v any
	ok := r.plain(n, &v, path, depth)
	if !ok {
		return nil, false
	}
	if _, isSwitch := Switch(n.Value); isSwitch {
		v = n.Value // alone it is text
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		r.refuse(n, chandler.CodeConfValue, path, "", "it is not JSON: %v", err)
		return nil, false
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), true
}

// plain reads a node as encoding/json would its JSON.
func (r *reader) plain(n *yaml.Node, into *any, path string, depth int) bool {
	r.places[path] = n
	switch {
	case depth > maxDepth:
		r.refuse(n, chandler.CodeConfParse, path, "", "the file is nested deeper than %d", maxDepth)
		return false
	case n.Kind == yaml.AliasNode || n.Anchor != "":
		r.refuse(n, chandler.CodeConfParse, path, "write it out", "anchors and aliases are not accepted")
		return false
	case n.Kind == yaml.MappingNode:
		before, object := len(r.mistakes), map[string]any{}
		r.keys(n, path, func(key, value *yaml.Node, at string) {
			var v any
			r.plain(value, &v, at, depth+1)
			object[key.Value] = v
		})
		*into = object
		return len(r.mistakes) == before
	case n.Kind == yaml.SequenceNode:
		list := make([]any, len(n.Content))
		all := true
		for i, item := range n.Content {
			all = r.plain(item, &list[i], fmt.Sprintf("%s[%d]", path, i), depth+1) && all
		}
		*into = list
		return all
	}
	v, err := scalarOf(n)
	if err != nil {
		r.refuse(n, chandler.CodeConfValue, path, "put it in quotes if it is text", "%s is nothing that JSON has", chandler.Quote(n.Value))
		return false
	}
	*into = v
	return true
}

// scalarOf reads a single value. Numbers that JSON writes in the same way stay as they
// are written.
func scalarOf(n *yaml.Node) (v any, err error) {
	number := json.Number(n.Value)
	switch {
	case n.Tag == "!!str" && n.Style == 0:
		if on, ok := Switch(n.Value); ok {
			return on, nil
		}
		return n.Value, nil
	case !slices.Contains([]string{"!!null", "!!bool", "!!int", "!!float"}, n.Tag):
		return n.Value, nil
	case (n.Tag == "!!int" || n.Tag == "!!float") && json.Valid([]byte(number)) && !strings.HasPrefix(n.Value, " "):
		return number, nil
	}
	if err := n.Decode(&v); err != nil {
		return nil, err
	}
	if f, ok := v.(float64); ok && (math.IsInf(f, 0) || math.IsNaN(f)) {
		return nil, fmt.Errorf("%v is no number of JSON", f)
	}
	return v, nil
}

// Switch tells which boolean a word is in YAML 1.1 that is none in YAML 1.2, where it stands
// without quotes. kubectl reads YAML 1.1, and what a configuration means must not depend on who
// reads it.
func Switch(word string) (on, ok bool) {
	switch word {
	case "y", "Y", "yes", "Yes", "YES", "on", "On", "ON":
		return true, true
	case "n", "N", "no", "No", "NO", "off", "Off", "OFF":
		return false, true
	}
	return false, false
}

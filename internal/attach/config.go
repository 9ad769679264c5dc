package attach

import (
	"math"
	"path/filepath"
	"strconv"
	"strings"

	yaml "go.yaml.in/yaml/v3"
)

// Config is an Envoy configuration as a tree of YAML nodes.
type Config struct {
	root *yaml.Node
	// json: it came as JSON, and numbers mean what JSON says: Envoy's reader of
	// YAML takes fractions and numbers over 32 bits for text.
	json bool
}

// MergeConfig reads what Envoy's --config-path and --config-yaml give, and
// merges the two as Envoy does: scalars of the second override unless they are
// zero, lists are appended, messages are merged. path is the file's name, whose
// extension says how Envoy would read it, and file its content; both are empty
// without --config-path, and override is empty without --config-yaml. Aliases
// and merge keys are resolved. Errors are *chandler.Problem.
func MergeConfig(path string, file []byte, override string) (*Config, error) {
	root, isJSON, err := parse(file)
	if err != nil {
		return nil, err
	}
	switch strings.ToLower(filepath.Ext(path)) {
	case ".yaml", ".yml":
		isJSON = false
	}
	if strings.TrimSpace(override) == "" {
		return &Config{root: root, json: isJSON}, nil
	}
	if isJSON {
		plainNumbers(root)
	}
	second, _, err := parse([]byte(override))
	if err != nil {
		return nil, err
	}
	merge(root, second, false)
	return &Config{root: root}, nil
}

// plainNumbers writes whole numbers as JSON may write them, such as 1e3, so that
// they are whole numbers as YAML too.
func plainNumbers(n *yaml.Node) {
	for _, c := range n.Content {
		plainNumbers(c)
	}
	if n.Kind != yaml.ScalarNode || n.Style&yaml.DoubleQuotedStyle != 0 || !strings.ContainsAny(n.Value, ".eE") {
		return
	}
	if f, err := strconv.ParseFloat(n.Value, 64); err == nil && f == math.Trunc(f) && math.Abs(f) < 1<<53 {
		*n = *plain(strconv.FormatInt(int64(f), 10))
	}
}

// mapFields are the fields of a bootstrap that are maps: an entry of the second
// replaces that of the first as a whole, and keys have one spelling.
var mapFields = map[string]bool{"metadata": true, "dynamicParameters": true, "certificateProviderInstances": true}

// exclusive fields: of each group a message has one, and the second's wins.
var exclusive = [][]string{
	{"socket_address", "pipe", "envoy_internal_address"},
	{"port_value", "named_port"},
	{"filename", "inline_bytes", "inline_string", "environment_variable"},
	{"path", "path_config_source", "api_config_source", "ads", "self"},
	{"envoy_grpc", "google_grpc"},
	{"text_format", "json_format", "text_format_source"},
}

// merge puts second into first, both mappings, as protocol buffers merge
// messages of which only the JSON form is known.
func merge(first, second *yaml.Node, isMap bool) {
	for i := 0; i+1 < len(second.Content); i += 2 {
		key, value := second.Content[i], second.Content[i+1]
		at := -1
		for j := 0; j+1 < len(first.Content); j += 2 {
			if name := first.Content[j].Value; name == key.Value || !isMap && camel(name) == camel(key.Value) {
				at = j + 1
			}
		}
		switch {
		case at < 0:
			first.Content = append(first.Content, key, value)
		case isMap:
			first.Content[at] = value
		case isNull(value):
		default:
			first.Content[at] = merged(key.Value, first.Content[at], value)
		}
		if !isMap && !isNull(value) {
			dropExclusive(first, key.Value)
		}
	}
}

// merged is what becomes of one field.
func merged(name string, first, second *yaml.Node) *yaml.Node {
	switch {
	case first.Kind != second.Kind:
		return second
	case second.Kind == yaml.SequenceNode:
		first.Content = append(first.Content, second.Content...)
		return first
	case second.Kind == yaml.MappingNode:
		if has(first, "@type") || has(second, "@type") {
			return second // an Any is a name and bytes
		}
		merge(first, second, mapFields[camel(name)])
		return first
	case isZero(second) && camel(name) != camel("port_value"):
		return first // unset, in protocol buffers
	}
	return second
}

func has(m *yaml.Node, key string) bool {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return true
		}
	}
	return false
}

// isZero tells whether a scalar is the zero value of its type.
func isZero(n *yaml.Node) bool {
	if n.Style&yaml.DoubleQuotedStyle == 0 {
		switch strings.ToLower(n.Value) {
		case "false", "no", "off", "n":
			return true
		}
	}
	number := strings.TrimSuffix(n.Value, "s") // of a duration
	if f, err := strconv.ParseFloat(number, 64); err == nil && (number != n.Value || n.Style&yaml.DoubleQuotedStyle == 0) {
		return f == 0
	}
	return n.Value == ""
}

// dropExclusive takes the other fields of the groups that name is in out of m.
func dropExclusive(m *yaml.Node, name string) {
	for _, group := range exclusive {
		member := false
		for _, field := range group {
			member = member || camel(field) == camel(name)
		}
		if !member {
			continue
		}
		for i := len(m.Content) - 2; i >= 0; i -= 2 {
			for _, field := range group {
				if camel(m.Content[i].Value) == camel(field) && camel(field) != camel(name) {
					m.Content = append(m.Content[:i:i], m.Content[i+2:]...)
					break
				}
			}
		}
	}
}

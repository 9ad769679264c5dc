package source

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"regexp"
	"slices"
	"strings"

	"chandler.dev/chandler"
)

// Secret is a Kubernetes Secret: of a registry's credentials, or of values for
// plugins' configurations. Nothing in it must ever be shown, and printing one shows
// its name.
type Secret struct {
	SecretName
	Type string
	// DockerConfigJSON is the content of a pull secret; nil for every other type.
	DockerConfigJSON []byte
	// Values are all that is in it, by key.
	Values map[string][]byte
	// Version is another one whenever Values are, also after a restart, and tells
	// nothing of them.
	Version string
	// Problem, unless nil, is why there is no content.
	Problem *chandler.Problem
}

// String names the secret.
func (s Secret) String() string { return "secret " + s.Namespace + "/" + s.Name }

// GoString does, too.
func (s Secret) GoString() string { return s.String() }

// Types of secrets, and the item of the first.
const (
	PullSecretType = "kubernetes.io/dockerconfigjson"
	opaqueType     = "Opaque"
	pullSecretItem = ".dockerconfigjson"
)

// decodeSecret reads a secret of any type. No message shows anything of its content.
func decodeSecret(top record, key chandler.Key) *Secret {
	s := &Secret{SecretName: SecretName{key.Namespace, key.Name}, Type: opaqueType, Values: map[string][]byte{}}
	if typ, ok := top.text("type"); ok && typ != "" {
		s.Type = typ
	}
	at := decodeValues(top, s)
	if s.Type != PullSecretType {
		return s
	}
	content, ok := s.Values[pullSecretItem]
	if !ok {
		if at[pullSecretItem] == nil { // else it was told already
			_, data := top.field("data")
			top.problem(chandler.CodeSecretType, data, "put the docker config there", "secret has no %s", pullSecretItem)
		}
		return nil
	}
	var config map[string]json.RawMessage
	err := json.Unmarshal(content, &config)
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		top.problem(chandler.CodeSecretJSON, at[pullSecretItem], "write a docker config with auths", "not JSON at offset %d", syntax.Offset)
		return nil
	case err != nil || config == nil:
		top.problem(chandler.CodeSecretJSON, at[pullSecretItem], "write a docker config with auths", "not a JSON object")
		return nil
	}
	s.DockerConfigJSON = content
	return s
}

// decodeValues reads data, and stringData over it. It gives where each is written.
func decodeValues(top record, s *Secret) map[string]*path {
	places := map[string]*path{}
	plain, plainAt := top.field("stringData")
	data, dataAt := top.field("data")
	each := func(n *node, at *path, do func(key string, at *path, text string)) {
		r := record{top.judge, at, n}
		if n != nil && n.kind != object {
			r.wrongKind(n, at, object)
			return
		}
		if n == nil {
			return
		}
		for _, f := range n.fields {
			places[f.name] = at.field(f.name)
			switch f.value.kind {
			case text:
				do(f.name, places[f.name], f.value.text)
			case null:
				s.Values[f.name] = nil // as the API server reads it
			default:
				r.wrongKind(f.value, places[f.name], text)
			}
		}
	}
	each(data, dataAt, func(key string, at *path, text string) {
		if plain.get(key) != nil {
			return
		}
		decoded, err := base64.StdEncoding.DecodeString(strings.NewReplacer("\n", "", " ", "").Replace(text))
		switch {
		case err == nil:
			s.Values[key] = decoded
		case s.Type == PullSecretType && key == pullSecretItem:
			top.problem(chandler.CodeSecretJSON, at, "write the base64 of the docker config, or put the config itself into stringData", "not base64")
		default:
			top.problem(chandler.CodeSecretValue, at, "write the base64 of the value, or put the value itself into stringData", "not base64")
		}
	})
	each(plain, plainAt, func(key string, _ *path, text string) { s.Values[key] = []byte(text) })
	return places
}

// Limits of the annotation config-from.
const (
	maxConfigFrom = 16
	maxSecretKey  = 253
)

var secretKey = regexp.MustCompile(`^[-._a-zA-Z0-9]+$`)

// configFrom reads from which secrets a plugin's configuration is, too.
func configFrom(j *judge, annotations map[string]string, p *chandler.Plugin) []chandler.SecretKey {
	text, ok := annotations[chandler.AnnotationConfigFrom]
	if !ok {
		return nil
	}
	const hint = "write secret/NAME#KEY, or several with commas between; the secret must be in the plugin's namespace"
	at := (&path{}).field("metadata").field("annotations").field(chandler.AnnotationConfigFrom)
	if p.Wasm == nil {
		if p.Lua != nil {
			j.problem(chandler.CodeSecretRef, at, "remove it", "a Lua filter has no configuration")
		}
		return nil
	}
	parts := strings.Split(text, ",")
	if len(parts) > maxConfigFrom {
		j.problem(chandler.CodeSecretRef, at, "put several values into one key", "it names %d values, limit %d", len(parts), maxConfigFrom)
		return nil
	}
	var keys []chandler.SecretKey
	for _, part := range parts {
		part = strings.TrimSpace(part)
		rest, isSecret := strings.CutPrefix(part, "secret/")
		name, key, _ := strings.Cut(rest, "#")
		k := chandler.SecretKey{Name: name, Key: key}
		switch {
		case !isSecret || len(name) > maxName || !subdomain.MatchString(name) || len(key) > maxSecretKey || !secretKey.MatchString(key):
			j.problem(chandler.CodeSecretRef, at, hint, "%s names no value of a secret", chandler.Quote(part))
		case slices.Contains(keys, k):
			j.problem(chandler.CodeSecretRef, at, "keep one of them", "%s is named twice", k)
		default:
			keys = append(keys, k)
		}
	}
	return keys
}

// ConfigFromField is where a resource says which secrets its configuration is from.
const ConfigFromField = `metadata.annotations["` + chandler.AnnotationConfigFrom + `"]`

// ConfigValue is what a secret has under a key.
type ConfigValue struct {
	From    chandler.SecretKey
	Content []byte
}

// MergeConfig merges values, each an object of YAML or JSON, over a configuration,
// which is canonical JSON or nil: objects field by field, anything else as a whole,
// and the later goes before the earlier. A problem shows nothing of any of them.
func MergeConfig(config []byte, values []ConfigValue) ([]byte, *chandler.Problem) {
	merged := &node{kind: object}
	if config != nil {
		if merged = readObject(config); merged == nil { // we wrote it
			return nil, chandler.Problemf(chandler.CodeInternal, "", "please report it", "a configuration cannot be read back")
		}
	}
	for _, v := range values {
		over := readObject(v.Content)
		if over == nil {
			return nil, chandler.Problemf(chandler.CodeSecretValue, ConfigFromField, `put an object there, for instance {"password": "..."}`,
				"what %s holds is no object of YAML or JSON", v.From)
		}
		merged = mergeNodes(merged, over)
	}
	j := &judge{}
	if checkConfig(j, merged, nil, 1); len(j.problems) > 0 {
		return nil, chandler.Problemf(chandler.CodeSecretValue, ConfigFromField, "write large numbers as strings, and nest less",
			"with the secrets' values the configuration has a number out of range, or is nested deeper than %d", maxConfigDeep)
	}
	b := merged.canonical()
	if len(b) > maxConfig {
		return nil, chandler.Problemf(chandler.CodeConfigSize, ConfigFromField, "have the plugin read large data from elsewhere",
			"with the secrets' values the configuration is %d bytes, limit %d", len(b), maxConfig)
	}
	return b, nil
}

// readObject reads one document that is an object; nil when it is anything else, or
// has any mistake. It means what it would in pluginConfig.
func readObject(content []byte) *node {
	chunks := split(content)
	if len(chunks) != 1 {
		return nil
	}
	j := &judge{}
	root := grow(chunks[0], j)
	if root == nil || root.kind != object || len(j.problems) > 0 {
		return nil
	}
	root.resolveSwitches()
	return root
}

func mergeNodes(under, over *node) *node {
	if under.kind != object || over.kind != object {
		return over
	}
	merged := &node{kind: object, fields: slices.Clone(under.fields)}
	at := make(map[string]int, len(under.fields))
	for i, f := range under.fields {
		at[f.name] = i
	}
	for _, f := range over.fields {
		if i, ok := at[f.name]; ok {
			merged.fields[i].value = mergeNodes(merged.fields[i].value, f.value)
		} else {
			merged.fields = append(merged.fields, f)
		}
	}
	return merged
}

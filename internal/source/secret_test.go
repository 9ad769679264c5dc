package source_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source"
)

// configured is a plugin with an annotation.
func configured(from string) string {
	return fmt.Sprintf("apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: p, annotations: {chandler.dev/config-from: %q}}\nspec: {url: oci://r.example/p:1}\n", from)
}

func TestConfigFrom(t *testing.T) {
	t.Parallel()
	d := source.Decode([]byte(configured("secret/db#a.yaml, secret/db#b,secret/other.name#a.yaml")), "")[0]
	if d.Plugin == nil || !slices.Equal(d.Plugin.Wasm.ConfigFrom, []chandler.SecretKey{{Name: "db", Key: "a.yaml"}, {Name: "db", Key: "b"}, {Name: "other.name", Key: "a.yaml"}}) {
		t.Errorf("%+v", d)
	}
	if len(d.Warnings) > 0 {
		t.Error(d.Warnings)
	}
	many := strings.TrimSuffix(strings.Repeat("secret/a#b,", 17), ",")
	for from, want := range map[string]string{
		"":                        `"" names no value of a secret`,
		"db#a":                    `"db#a" names no value of a secret`,
		"secret/db":               `"secret/db" names no value of a secret`,
		"secret/db#":              `"secret/db#" names no value of a secret`,
		"secret/#a":               `"secret/#a" names no value of a secret`,
		"secret/other/db#a":       `"secret/other/db#a" names no value of a secret`,
		"secret/DB#a":             `"secret/DB#a" names no value of a secret`,
		"secret/db#a#b":           `"secret/db#a#b" names no value of a secret`,
		"secret/db#../a":          `"secret/db#../a" names no value of a secret`,
		"secret/db#a,":            `"" names no value of a secret`,
		"configmap/db#a":          `"configmap/db#a" names no value of a secret`,
		"secret/db#a,secret/db#a": "secret/db#a is named twice",
		many:                      "it names 17 values, limit 16",
	} {
		d := source.Decode([]byte(configured(from)), "")[0]
		if d.Plugin != nil || len(d.Problems) != 1 || d.Problems[0].Code != chandler.CodeSecretRef || d.Problems[0].Message != want ||
			d.Problems[0].Field != source.ConfigFromField {
			t.Errorf("%q: %+v, want %s", from, d.Problems, want)
		}
	}
	lua := strings.Replace(strings.Replace(configured("secret/db#a"), "WasmPlugin", "TrafficExtension", 1), "{url: oci://r.example/p:1}", "{lua: {inlineCode: x}}", 1)
	if d := source.Decode([]byte(lua), "")[0]; len(d.Problems) != 1 || !strings.Contains(d.Problems[0].Message, "Lua") {
		t.Errorf("%+v", d.Problems)
	}
}

func TestSecretsOfAnyType(t *testing.T) {
	t.Parallel()
	d := source.Decode([]byte(`
apiVersion: v1
kind: Secret
metadata: {name: db}
data: {a: aHVudGVyMg==, b: aHVudGVyMw==, none: null}
stringData: {b: plain}
`), "")[0]
	if d.Secret == nil || d.Secret.Type != "Opaque" || d.Secret.DockerConfigJSON != nil ||
		string(d.Secret.Values["a"]) != "hunter2" || string(d.Secret.Values["b"]) != "plain" || len(d.Secret.Values) != 3 {
		t.Fatalf("%+v", d.Problems)
	}
	if shown := fmt.Sprintf("%v %+v %#v %s", *d.Secret, d.Secret, *d.Secret, d.Secret); strings.Contains(shown, "hunter2") || strings.Contains(shown, "104") {
		t.Error(shown)
	}
	for text, want := range map[string]string{
		"data: {a: hunter2!}":    "SecretValue data.a not base64",
		"data: {a: 1234567}":     "SpecValue data.a a must be a string, not a number",
		"data: hunter2":          "SpecValue data data must be an object, not a string",
		"stringData: {a: [aa4]}": "SpecValue stringData.a a must be a string, not a list",
	} {
		d := source.Decode([]byte("apiVersion: v1\nkind: Secret\nmetadata: {name: db}\n"+text+"\n"), "")[0]
		if d.Secret != nil || len(d.Problems) != 1 {
			t.Errorf("%s: %+v", text, d.Problems)
			continue
		}
		if p := d.Problems[0]; fmt.Sprint(p.Code, " ", p.Field, " ", p.Message) != want {
			t.Errorf("%s: %s %s %s, want %s", text, p.Code, p.Field, p.Message, want)
		}
	}
}

func TestMergeConfig(t *testing.T) {
	t.Parallel()
	from := chandler.SecretKey{Name: "db", Key: "a"}
	for _, test := range []struct {
		config string
		values []string
		want   string
	}{
		{"", []string{"a: 1"}, `{"a":1}`},
		{`{"a":{"b":1,"c":[1,2]},"d":"x"}`, []string{"a: {b: 2, e: {f: null}}"}, `{"a":{"b":2,"c":[1,2],"e":{"f":null}},"d":"x"}`},
		{`{"a":[1,2],"b":{"c":1}}`, []string{`{"a":[3],"b":4}`}, `{"a":[3],"b":4}`},
		{`{"a":1}`, []string{"a: 2", "a: {b: 3}", "a: {c: 4}"}, `{"a":{"b":3,"c":4}}`},
		{`{"a":18446744073709551615,"b":1e+30}`, []string{"c: \"<\\u2028\\n\""}, `{"a":18446744073709551615,"b":1e+30,"c":"<\u2028\n"}`},
		{`{"a":1}`, []string{"{}"}, `{"a":1}`},
		{`{"a":"yes"}`, []string{`b: yes`, `c: "yes"`}, `{"a":"yes","b":true,"c":"yes"}`},
	} {
		var values []source.ConfigValue
		for _, v := range test.values {
			values = append(values, source.ConfigValue{From: from, Content: []byte(v)})
		}
		var config []byte
		if test.config != "" {
			config = []byte(test.config)
		}
		if got, p := source.MergeConfig(config, values); p != nil || string(got) != test.want {
			t.Errorf("%s + %q = %s %v, want %s", test.config, test.values, got, p, test.want)
		}
	}
	const canary = "hunter2"
	for value, code := range map[string]chandler.Code{
		"":                                   chandler.CodeSecretValue,
		canary:                               chandler.CodeSecretValue,
		"[" + canary + "]":                   chandler.CodeSecretValue,
		"null":                               chandler.CodeSecretValue,
		"{" + canary:                         chandler.CodeSecretValue,
		"a: 1\n---\nb: " + canary:            chandler.CodeSecretValue,
		canary + ": 1\n" + canary + ": 2\n":  chandler.CodeSecretValue,
		"a: !" + canary + " x":               chandler.CodeSecretValue,
		"a: *" + canary:                      chandler.CodeSecretValue,
		canary + ": .nan":                    chandler.CodeSecretValue,
		canary + ": " + deep(40):             chandler.CodeSecretValue,
		canary + ": " + deep(2000):           chandler.CodeSecretValue,
		"a: \x00" + canary:                   chandler.CodeSecretValue,
		canary + ": \xff":                    chandler.CodeSecretValue,
		"a: " + strings.Repeat("x", 128<<10): chandler.CodeConfigSize,
		"a: " + strings.Repeat("x", 300<<10): chandler.CodeSecretValue,
	} {
		got, p := source.MergeConfig([]byte(`{}`), []source.ConfigValue{{From: from, Content: []byte(value)}})
		if got != nil || p == nil || p.Code != code {
			t.Errorf("%.40q: %s %v, want %s", value, got, p, code)
			continue
		}
		if strings.Contains(p.Error(), canary) {
			t.Errorf("%.40q: %v", value, p)
		}
	}
}

func deep(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }

// What a configuration says is the same after it went through a merge with nothing.
func TestMergeConfigKeepsWhatItIsGiven(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		name := rapid.StringMatching(`[ -~é\x{2028}\x{1F600}\\"/<&]{0,8}`)
		config := map[string]any{}
		for range rapid.IntRange(0, 5).Draw(t, "n") {
			config[name.Draw(t, "name")] = rapid.OneOf(
				rapid.Map(name, func(s string) any { return s }), rapid.Map(rapid.Int64(), func(i int64) any { return i }),
				rapid.Map(rapid.Float64(), func(f float64) any { return json.Number(strconv.FormatFloat(f, 'e', -1, 64)) }), rapid.Map(name, func(s string) any { return []any{s, nil, true} }),
			).Draw(t, "value")
		}
		text := fmt.Sprintf("apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: p}\nspec:\n  url: oci://r.example/p:1\n  pluginConfig: %s\n", marshal(config))
		d := source.Decode([]byte(text), "")[0]
		if d.Plugin == nil {
			t.Fatalf("%s: %v", text, d.Problems)
		}
		got, p := source.MergeConfig(d.Plugin.Wasm.Config, nil)
		if p != nil || string(got) != string(d.Plugin.Wasm.Config) {
			t.Errorf("%s: %s %v", d.Plugin.Wasm.Config, got, p)
		}
	})
}

// A secret's version is another one when its values are, and tells nothing of them;
// it outlives a restart.
func TestSecretVersions(t *testing.T) {
	t.Parallel()
	b := start(t, source.DirectoryConfig{})
	secret := func(value string) string {
		return "apiVersion: v1\nkind: Secret\nmetadata: {name: db}\nstringData: {a: " + value + "}\n"
	}
	version := func(b *bench) string {
		return b.last().Secrets[source.SecretName{Namespace: "default", Name: "db"}].Version
	}
	var seen []string
	for i, want := range []source.Action{source.Created, source.Unchanged, source.Configured, source.Configured} {
		if r := b.apply(secret([]string{"one", "one", "two", "one"}[i]))[0]; r.Action != want {
			t.Errorf("%+v", r)
		}
		seen = append(seen, version(b))
	}
	if seen[0] == "" || seen[0] != seen[1] || seen[0] == seen[2] || seen[0] != seen[3] {
		t.Error(seen)
	}
	b.stop()
	again := start(t, source.DirectoryConfig{Data: b.data})
	if got := version(again); got != seen[3] {
		t.Errorf("%s after a restart, %s before", got, seen[3])
	}
	again.stop()
	if err := os.Remove(filepath.Join(b.data, "objects", "versions.key")); err != nil {
		t.Fatal(err)
	}
	if got := version(start(t, source.DirectoryConfig{Data: b.data})); got == seen[3] || len(got) != len(seen[3]) {
		t.Errorf("%s without the key, %s before", got, seen[3])
	}
}

func marshal(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

package source_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source"
	row "chandler.dev/chandler/internal/testenv/refusal"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v; run the test with -update", err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs\n--- got\n%s\n--- want\n%s", file, got, want)
	}
}

// show writes documents for a golden file.
func show(docs []source.Document) []byte {
	var b bytes.Buffer
	for _, d := range docs {
		fmt.Fprintf(&b, "# line %d: %s\n", d.Line, d.Key)
		for _, p := range d.Problems {
			fmt.Fprintf(&b, "%s: %s\n", p.Code, &p)
		}
		for _, p := range d.Warnings {
			fmt.Fprintf(&b, "warning %s: %s\n", p.Code, &p)
		}
		if d.Plugin != nil {
			shown := struct {
				*chandler.Plugin
				Config string `json:",omitempty"`
			}{Plugin: d.Plugin}
			if d.Plugin.Wasm != nil {
				shown.Config = string(d.Plugin.Wasm.Config)
				if shown.Config == "" && d.Plugin.Wasm.Config != nil {
					shown.Config = "(empty, not nil)"
				}
			}
			text, _ := json.MarshalIndent(shown, "", "  ")
			fmt.Fprintf(&b, "%s\n", text)
		}
		if d.Secret != nil {
			fmt.Fprintf(&b, "secret %s of %d bytes\n", d.Secret.SecretName, len(d.Secret.DockerConfigJSON))
		}
	}
	return b.Bytes()
}

func TestGolden(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test data: %v", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			manifest, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			docs := source.Decode(manifest, "")
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", show(docs))
			for _, d := range docs {
				again(t, d)
			}
		})
	}
}

// again decodes the manifest of a document by itself: it must mean the same.
func again(t *testing.T, d source.Document) {
	t.Helper()
	if d.Plugin == nil && d.Secret == nil {
		return
	}
	docs := source.Decode(d.Manifest, d.Namespace)
	if len(docs) != 1 {
		t.Fatalf("%s: its manifest has %d documents", d.Key, len(docs))
	}
	a, b := docs[0], d
	a.Line, b.Line = 0, 0
	if got, want := show([]source.Document{a}), show([]source.Document{b}); !bytes.Equal(got, want) {
		t.Errorf("%s: its manifest\n%s\nmeans\n%s\nnot\n%s", d.Key, d.Manifest, got, want)
	}
}

// wasmPlugin is a plugin with more lines in its spec.
func wasmPlugin(spec string) string {
	head := "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata:\n  name: p\nspec:\n"
	if !strings.Contains("\n"+spec, "\nurl:") {
		spec = "url: oci://reg.example/a:v1\n" + spec
	}
	return head + "  " + strings.ReplaceAll(strings.TrimSpace(spec), "\n", "\n  ") + "\n"
}

// refusal is a manifest and the one problem that it has.
type refusal struct {
	manifest    string
	code, field string
	text        string // message; hint
}

func refuse(t *testing.T, cases ...refusal) {
	t.Helper()
	for _, c := range cases {
		seen := row.Begin(t)
		docs := source.Decode([]byte(c.manifest), "")
		if len(docs) != 1 {
			t.Errorf("%s\nhas %d documents", c.manifest, len(docs))
			continue
		}
		d := docs[0]
		if len(d.Problems) != 1 || d.Plugin != nil {
			t.Errorf("%s\nwas not refused for one reason: plugin %v, problems %v", clip(c.manifest), d.Plugin != nil, d.Problems)
			continue
		}
		p := d.Problems[0]
		seen.Saw(p.Code, p.Error())
		got := p
		got.Field = ""
		if string(p.Code) != c.code || p.Field != c.field || got.Error() != c.text || p.Hint == "" {
			t.Errorf("%s\n got %s %q: %s\nwant %s %q: %s", clip(c.manifest), p.Code, p.Field, got.Error(), c.code, c.field, c.text)
		}
	}
}

func clip(s string) string { return s[:min(len(s), 400)] }

// accept is for manifests that are one plugin without a warning.
func accept(t *testing.T, manifest string) *chandler.Plugin {
	t.Helper()
	docs := source.Decode([]byte(manifest), "")
	if len(docs) != 1 || docs[0].Plugin == nil || len(docs[0].Problems)+len(docs[0].Warnings) > 0 {
		t.Fatalf("%s\nwas not accepted: %s", clip(manifest), show(docs))
	}
	return docs[0].Plugin
}

func TestPluginConfig(t *testing.T) {
	t.Parallel()
	for spec, want := range map[string]string{
		"pluginConfig: null": "<nil>",
		"pluginConfig:":      "<nil>",
		"pluginConfig: {}":   "{}",
		"pluginConfig: {b: 1, a: [1.0, 1e3, 0x1f, -0, 9007199254740993, 18446744073709551615, 1.5e300], c: {}}": `{"a":[1,1000,31,0,9007199254740993,18446744073709551615,1.5e+300],"b":1,"c":{}}`,
		`pluginConfig: {s: "<&>\0\u2028 'x'", n: ~, t: true, d: 2024-01-01, y: yes}`:                            `{"d":"2024-01-01","n":null,"s":"<&>\u0000\u2028 'x'","t":true,"y":true}`,
		"pluginConfig:\n  text: |\n    a\n    b\n":                                                              `{"text":"a\nb\n"}`,
	} {
		config := accept(t, wasmPlugin(spec)).Wasm.Config
		got := string(config)
		if config == nil {
			got = "<nil>"
		}
		if got != want {
			t.Errorf("%s\n got %s\nwant %s", spec, got, want)
		}
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	p := accept(t, "{\n\t\"apiVersion\": \"extensions.istio.io/v1alpha1\", \"kind\": \"WasmPlugin\",\r\n\t\"metadata\": {\"name\": \"p\"},\n"+
		`"spec": {"url": "oci:\/\/reg.example\/a", "pluginConfig": {"a\\/": "\ud83d\ude00\u00e9\ud800 `+"\u0085"+`", "b": 1E2}}}`)
	if got, want := string(p.Wasm.Config), "{\"a\\\\/\":\"😀é\uFFFD \u0085\",\"b\":100}"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestStatusAndAnnotations(t *testing.T) {
	t.Parallel()
	docs := source.Decode([]byte(strings.Replace(wasmPlugin("url: a"), "  name: p\n",
		"  name: p\n  managedFields: []\n  uid: x\n  annotations: {chandler.dev/first-atach: deny, chandler.dev/first-attach: hold, other/x: y}\n", 1)+"status: {conditions: []}\n"), "ns")
	d := docs[0]
	if len(d.Warnings) != 2 || d.Plugin == nil || d.Namespace != "ns" || d.Plugin.FirstAttach != chandler.FirstAttachHold {
		t.Fatalf("%s", show(docs))
	}
	if w := d.Warnings[0]; w.Field != "status" {
		t.Errorf("%v", w)
	}
	if w := d.Warnings[1]; w.Field != `metadata.annotations["chandler.dev/first-atach"]` || w.Hint != "did you mean chandler.dev/first-attach?" {
		t.Errorf("%v", w)
	}
}

func TestProblemsAreBounded(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	for i := range 200 {
		fmt.Fprintf(&b, "\nfield%d: 1", i)
	}
	d := source.Decode([]byte(wasmPlugin(b.String())), "")[0]
	if n := len(d.Problems); n != 32 {
		t.Fatalf("%d problems", n)
	}
	if last := d.Problems[31]; last.Message != "169 more problems" {
		t.Errorf("last: %s", last.Message)
	}
}

// A mistake in one document does not hide the others.
func TestDocumentsStandByThemselves(t *testing.T) {
	t.Parallel()
	docs := source.Decode([]byte("# nothing\n---\n---\n"+wasmPlugin("url: a")+"---\na: [\n--- # next\n"+strings.Replace(wasmPlugin("url: b"), "name: p", "name: q", 1)+"...\n"), "")
	if len(docs) != 3 || docs[0].Name != "p" || docs[0].Plugin == nil || docs[2].Name != "q" || docs[2].Plugin == nil {
		t.Fatalf("%s", show(docs))
	}
	if p := docs[1].Problems[0]; p.Code != chandler.CodeSpecParse || !strings.HasPrefix(p.Message, "12: ") {
		t.Errorf("%v", p)
	}
}

// Texts that would take a careless reader long, or much memory.
func TestRefuse_B03_Bombs(t *testing.T) {
	laughs := "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
	for i := 1; i < 12; i++ {
		laughs += fmt.Sprintf("a%d: &a%d [%s*a%d]\n", i, i, strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 9), i-1)
	}
	long := strings.Repeat("x", 200_000)
	cases := map[string]string{
		"laughs":     laughs,
		"big scalar": "a: &a " + long + "\nb: [" + strings.Repeat("*a, ", 10_000) + "*a]\n",
		"itself":     "a: &a [*a]\n",
		"brackets":   strings.Repeat("[", 250_000),
		"braces":     strings.Repeat("{a: ", 60_000),
		"dashes":     strings.Repeat("- ", 120_000),
		"indents":    indents(600),
		"comments":   strings.Repeat("#\n", 120_000) + "a: [",
		"keys":       keys(20_000) + "a: [",
		"anchors":    strings.Repeat("- &a x\n", 30_000) + "- [",
		"merges":     "a: &a {" + strings.Repeat("<<: *a, ", 1000) + "}\n",
	}
	for _, name := range slices.Sorted(maps.Keys(cases)) {
		seen := row.Begin(t)
		docs := source.Decode([]byte(cases[name]), "")
		if len(docs) == 0 {
			t.Errorf("%s: nothing was read, and nothing refused", name)
		}
		for _, d := range docs {
			if len(d.Problems) == 0 || d.Problems[0].Code != chandler.CodeSpecParse {
				t.Errorf("%s: %v", name, d.Problems)
				continue
			}
			seen.Saw(d.Problems[0].Code, name+": "+d.Problems[0].Error())
		}
	}
}

func indents(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

func keys(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "k%d: v\n", i)
	}
	return b.String()
}

func FuzzDecode(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.yaml")
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"apiVersion":"v1","kind":"List","items":[{"\/":"\ud83d\ude00"}]}`))
	f.Add([]byte("a: &a\n  <<: [*a, {b: 1}]\n"))
	f.Fuzz(func(t *testing.T, manifest []byte) {
		for _, d := range source.Decode(manifest, "") {
			if (d.Plugin != nil || d.Secret != nil) != (len(d.Problems) == 0) && d.Kind != "" {
				t.Errorf("%s: plugin %v with %d problems", d.Key, d.Plugin != nil, len(d.Problems))
			}
			if d.Plugin != nil && d.Plugin.Wasm != nil && d.Plugin.Wasm.Config != nil && !json.Valid(d.Plugin.Wasm.Config) {
				t.Errorf("config is not JSON: %q", d.Plugin.Wasm.Config)
			}
			for _, p := range append(d.Problems, d.Warnings...) {
				if p.Code == "" || len(p.Error()) > 4096 || !utf8.ValidString(p.Error()) || strings.ContainsFunc(p.Error(), func(r rune) bool { return r < ' ' }) {
					t.Errorf("not fit to be shown: %q", p.Error())
				}
			}
			again(t, d)
		}
	})
}

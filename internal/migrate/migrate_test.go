package migrate

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/source"
)

var update = flag.Bool("update", false, "write testdata/*/out.yaml and notes.txt")

// fromOf tells by the name of a folder of testdata what it is translated from.
func fromOf(dir string) From {
	if strings.HasPrefix(filepath.Base(dir), "filter-") {
		return FromEnvoyFilter
	}
	return FromIstio
}

// TestGolden holds whole translations of shapes that people use.
func TestGolden(t *testing.T) {
	dirs, err := filepath.Glob("testdata/*")
	if err != nil || len(dirs) < 8 {
		t.Fatalf("%d folders, %v", len(dirs), err)
	}
	for _, dir := range dirs {
		if filepath.Base(dir) == "fuzz" {
			continue // inputs of FuzzTranslate
		}
		t.Run(filepath.Base(dir), func(t *testing.T) {
			in, err := os.ReadFile(filepath.Join(dir, "in.yaml"))
			if err != nil {
				t.Fatal(err)
			}
			r := Translate(fromOf(dir), in, "")
			check(t, in, r)
			for name, got := range map[string]string{"out.yaml": string(r.Manifest), "notes.txt": Text(r.Notes)} {
				file := filepath.Join(dir, name)
				if *update {
					if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				if want, err := os.ReadFile(file); err != nil || got != string(want) {
					t.Errorf("%s, %v: got\n%s", file, err, got)
				}
			}
		})
	}
}

// check holds what is true of every translation.
func check(t *testing.T, in []byte, r Result) {
	t.Helper()
	for _, d := range source.Decode(r.Manifest, "") {
		if d.Plugin == nil {
			t.Errorf("the output is refused: %v", d.Problems)
		} else if d.Labels[LabelRevision] != Revision {
			t.Errorf("%s is still istiod's", d.Key)
		}
	}
	told := map[int]int{}
	for _, n := range r.Notes {
		told[n.Line]++
		if len(n.Field) > maxField+32 || len(n.Message) > 4096 || len(n.Object) > 3*maxName {
			t.Errorf("a note without measure: %+v", n)
		}
		if n.Verdict == Lost && n.Hint == "" {
			t.Errorf("a loss without what to do: %+v", n)
		}
	}
	for _, d := range source.Decode(in, "") {
		if told[d.Line] == 0 {
			t.Errorf("line %d: dropped without a word", d.Line)
		}
	}
}

// What was translated once is translated again to the same.
func TestAgain(t *testing.T) {
	for _, dir := range []string{"testdata/istio-walkthrough", "testdata/istio-dump", "testdata/istio-urls"} {
		in, err := os.ReadFile(filepath.Join(dir, "out.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		if again := Translate(FromIstio, in, ""); !bytes.Equal(again.Manifest, in) || !again.Complete() {
			t.Errorf("%s: translated twice:\n%s\n%s", dir, again.Manifest, Text(again.Notes))
		}
	}
}

func TestNamespace(t *testing.T) {
	const in = "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: a}\nspec: {url: x}\n"
	if r := Translate(FromIstio, []byte(in), ""); strings.Contains(string(r.Manifest), "namespace") {
		t.Errorf("a namespace nobody named:\n%s", r.Manifest)
	}
	if r := Translate(FromIstio, []byte(in), "shop"); !strings.Contains(string(r.Manifest), "namespace: shop") {
		t.Errorf("not in the namespace:\n%s", r.Manifest)
	}
}

// A WasmPlugin that is there already keeps its name to itself.
func TestNamesTaken(t *testing.T) {
	filter, err := os.ReadFile("testdata/filter-local/in.yaml")
	if err != nil {
		t.Fatal(err)
	}
	const there = "apiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: http-filter, namespace: shop}\nspec: {url: x}\n---\n"
	r := Translate(FromEnvoyFilter, append([]byte(there), filter...), "")
	check(t, append([]byte(there), filter...), r)
	if !strings.Contains(string(r.Manifest), "name: http-filter-2\n") || strings.Contains(string(r.Manifest), "name: http-filter\n") {
		t.Errorf("it would be taken over:\n%s", r.Manifest)
	}
}

// However much is wrong, what is said of it has an end.
func TestBounded(t *testing.T) {
	var b strings.Builder
	b.WriteString("apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: a}\nspec:\n  configPatches:\n")
	b.WriteString("  - {applyTo: HTTP_FILTER, patch: {operation: ADD, value: {typed_config: {'@type': x/envoy.extensions.filters.http.wasm.v3.Wasm, config: {}}}}}\n")
	for range 2000 {
		b.WriteString("  - {applyTo: ROUTE_CONFIGURATION}\n")
	}
	r := Translate(FromEnvoyFilter, []byte(b.String()), "")
	if n := len(r.Notes); n > maxNotes || r.Complete() || len(r.Manifest) > 0 {
		t.Errorf("%d notes, complete %t", n, r.Complete())
	}
	if last := r.Notes[len(r.Notes)-1]; !strings.HasSuffix(last.Message, " more") {
		t.Errorf("those that are not told are not counted: %+v", last)
	}
}

// FuzzTranslate: no input ends the program, and what comes out can be applied.
func FuzzTranslate(f *testing.F) {
	dirs, _ := filepath.Glob("testdata/*")
	for _, dir := range dirs {
		if in, err := os.ReadFile(filepath.Join(dir, "in.yaml")); err == nil {
			f.Add(in)
		}
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, from := range []From{FromIstio, FromEnvoyFilter} {
			check(t, in, Translate(from, in, ""))
		}
	})
}

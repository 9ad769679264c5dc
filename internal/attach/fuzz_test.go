package attach

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler"
)

// FuzzDerive: any file is refused with its field, or becomes a bootstrap and
// listeners that can be read, the same each time.
func FuzzDerive(f *testing.F) {
	files, err := filepath.Glob("testdata/*/*")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, file := range files {
		if dir := filepath.Base(filepath.Dir(file)); strings.HasSuffix(file, ".golden") || dir != "derive" && dir != "upstream" {
			continue
		}
		f.Add(readSeed(f, file), "")
		f.Add([]byte("{}"), string(readSeed(f, file)))
	}
	f.Add([]byte("a: &a {b: *a}"), "static_resources: {listeners: [{address: 1}]}")
	f.Fuzz(func(t *testing.T, file []byte, override string) {
		if config, err := MergeConfig("x.yaml", file, override); err == nil {
			if told := config.Told("", ""); len(told.Labels) > maxToldLabels+1 || strings.ContainsAny(told.Name+told.Namespace, "/ \n") || len(told.Name+told.Namespace) > 2*maxToldName {
				t.Fatalf("%+v", told)
			}
		}
		d, err := deriveText(file, override)
		if err != nil {
			var p *chandler.Problem
			if !errors.As(err, &p) || p.Code == "" || p.Message == "" || len(p.Error()) > 8<<10 || strings.ContainsFunc(p.Error(), func(r rune) bool { return r < ' ' }) {
				t.Fatalf("not named: %v", err)
			}
			return
		}
		var v yaml.Node
		for _, b := range [][]byte{d.Bootstrap, d.Listeners} {
			if err := yaml.Unmarshal(b, &v); err != nil {
				t.Fatalf("%v in\n%s", err, b)
			}
			if d.Extension == ".json" && b != nil && !json.Valid(b) {
				t.Fatalf("no JSON: %s", b)
			}
		}
		for _, c := range d.ControlPlanes {
			for _, part := range []Part{c.Service, c.TLS, c.Keepalive, c.HTTP} {
				if part.JSON != nil && !json.Valid(part.JSON) {
					t.Fatalf("%s is no JSON: %s", part.Path, part.JSON)
				}
			}
		}
		again, err := deriveText(file, override)
		if err != nil || string(again.Bootstrap) != string(d.Bootstrap) || string(again.Listeners) != string(d.Listeners) || again.ListenersVersion != d.ListenersVersion {
			t.Fatalf("the second time:\n%s\n%s\nfirst:\n%s\n%s\n%v", again.Bootstrap, again.Listeners, d.Bootstrap, d.Listeners, err)
		}
		if names := slices.Clone(d.ListenerNames); len(slices.Compact(slices.Sorted(slices.Values(names)))) != len(names) {
			t.Fatalf("two listeners of one name: %q", names)
		}
	})
}

func readSeed(f *testing.F, path string) []byte {
	f.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

func deriveText(file []byte, override string) (Derived, error) {
	c, err := MergeConfig("", file, override)
	if err != nil {
		return Derived{}, err
	}
	return Derive(c, upstreamConfig)
}

// FuzzPluginOfNack: a refusal is of the plugin that Envoy names, or of none.
func FuzzPluginOfNack(f *testing.F) {
	f.Add("Unable to create Wasm plugin WasmPlugin/ns/a", "ns", "a")
	f.Add("Invalid path: /modules/a.", "ns", "a-b")
	f.Add("Unable to create Wasm plugin WasmPlugin/ns/a-b; Unable to create Wasm plugin", "ns", "")
	f.Fuzz(func(t *testing.T, message, namespace, name string) {
		member := func(name string) Member {
			return Member{ModulePath: "/modules/" + name, Attachment: &chandler.Attachment{
				Key: chandler.Key{Kind: "WasmPlugin", Namespace: namespace, Name: name}, Program: chandler.Program{Module: &chandler.Module{}},
			}}
		}
		members := []Member{member(name), member(name + "-b"), member("other")}
		key, ok := PluginOfNack(message, members)
		if ok && !strings.Contains(message, key.String()) && !strings.Contains(message, "/modules/"+key.Name) {
			t.Fatalf("%s of %q", key, message)
		}
		slices.Reverse(members)
		if again, ok2 := PluginOfNack(message, members); again != key || ok2 != ok {
			t.Fatalf("%s, in another order %s", key, again)
		}
		longer := member(name + "-b").Attachment.Key
		if got, ok := PluginOfNack(nackedPlugin+longer.String(), members); ok && got != longer && !strings.ContainsAny(namespace+name, "/ .") {
			t.Fatalf("%s for %s", got, longer)
		}
	})
}

package kube

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source"
)

// FuzzJudge: any object that an API server may hold is a plugin, or has a problem
// that says why not, and is the same when it comes again unchanged.
func FuzzJudge(f *testing.F) {
	for _, s := range []string{
		`{"apiVersion":"extensions.istio.io/v1alpha1","kind":"WasmPlugin","metadata":{"name":"p","namespace":"ns","uid":"u","generation":2,"labels":{"a":"b"}},"spec":{"url":"oci://reg.example/a:v1","pluginConfig":{"a":1}},"status":{"chandler":{}}}`,
		`{"apiVersion":"extensions.istio.io/v1alpha1","kind":"WasmPlugin","metadata":{"name":"p","namespace":"ns"},"spec":null}`,
		`{"kind":1,"metadata":{"name":[],"labels":{"a":1},"generation":1.5}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var object map[string]any
		if json.Unmarshal(b, &object) != nil || object == nil {
			return
		}
		h := judge("WasmPlugin", &unstructured.Unstructured{Object: object}, nil)
		o := h.object
		if (o.Plugin == nil) != (len(o.Problems) > 0) {
			t.Fatalf("%+v", o)
		}
		for _, p := range append(o.Problems, o.Warnings...) {
			if p.Code == "" || len(p.Error()) > 4096 || strings.ContainsFunc(p.Error(), func(r rune) bool { return r < ' ' }) {
				t.Fatalf("not fit to be shown: %q", p.Error())
			}
		}
		if o.Plugin != nil && (o.Plugin.Key != o.Key || o.Plugin.UID != o.UID) {
			t.Fatalf("%+v of %+v", o.Plugin, o.Key)
		}
		if again := judge("WasmPlugin", &unstructured.Unstructured{Object: object}, h); again != h {
			t.Fatalf("it changes by itself: %+v and %+v", h, again)
		}
	})
}

// FuzzReadSecret: a pull secret of the cluster is read, or refused without a word of
// its content.
func FuzzReadSecret(f *testing.F) {
	f.Add([]byte(`{"type":"kubernetes.io/dockerconfigjson","data":{".dockerconfigjson":"eyJhdXRocyI6e319"}}`))
	f.Add([]byte(`{"type":"kubernetes.io/dockerconfigjson","data":{".dockerconfigjson":"hunter2"}}`))
	f.Add([]byte(`{"type":"Opaque","data":{"a":1}}`))
	f.Add([]byte(`{"type":"Opaque","data":{"a":"hunter2"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var object map[string]any
		if json.Unmarshal(b, &object) != nil {
			return
		}
		s := readSecret(source.SecretName{Namespace: "ns", Name: "s"}, &unstructured.Unstructured{Object: object})
		if s.Problem != nil && len(s.Values) > 0 || s.Type == source.PullSecretType && (s.Problem == nil) != (len(s.DockerConfigJSON) > 0) ||
			s.Name != "s" || s.Namespace != "ns" {
			t.Fatalf("%+v", s)
		}
		data, _ := object["data"].(map[string]any)
		named := func(key string) bool { return strings.Contains(key, "hunter2") } // keys are no secret
		if p := s.Problem; p != nil && (p.Code == "" || len(p.Error()) > 4096 ||
			strings.Contains(p.Error(), "hunter2") && !slices.ContainsFunc(slices.Collect(maps.Keys(data)), named)) {
			t.Fatalf("%+v", p)
		}
	})
}

// FuzzStatusFields: what others wrote into a status is read as ours or taken for
// absent, and what is read is written as the same.
func FuzzStatusFields(f *testing.F) {
	f.Add([]byte(`{"observedGeneration":1,"conditions":[{"type":"Ready","status":"True","lastTransitionTime":"2026-11-28T00:00:00Z"}],"chandler":{}}`))
	f.Add([]byte(`{"conditions":{},"chandler":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var status any
		if json.Unmarshal(b, &status) != nil {
			return
		}
		first := readStatusFields(&unstructured.Unstructured{Object: map[string]any{"status": status}})
		u, err := first.object(chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: "p"}, "u")
		if err != nil {
			t.Fatal(err)
		}
		if again := readStatusFields(u); again.text() != first.text() {
			t.Fatalf("%s\nthen %s", first.text(), again.text())
		}
	})
}

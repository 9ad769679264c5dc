package chart

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	yaml "go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write testdata/*.golden, and the chart's copies of other files")

// The chart holds copies of the definitions and of the alert rules, as Helm reads nothing
// outside of it.
func TestCopies(t *testing.T) {
	files, err := filepath.Glob("../../deploy/crds/*.yaml")
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range append(files, "../../deploy/prometheus/chandler.rules.yaml") {
		want, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		folder := map[string]string{"crds": "definitions", "prometheus": "monitoring"}[filepath.Base(filepath.Dir(file))]
		name := filepath.Join("../../deploy/helm/chandler", folder, filepath.Base(file))
		if *update {
			if err := os.WriteFile(name, want, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not the same as %s, %v: go test ./internal/chart -update", name, file, err)
		}
	}
}

// TestGolden: testdata/NAME.yaml are values, NAME.golden what is rendered, without
// the definitions.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("%v, %v", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			values, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			manifests, notes, err := Render(Options{Release: "chandler", Namespace: "chandler-system", Values: [][]byte{values}, Set: []string{"crds.mode=never"}})
			if err != nil {
				t.Fatal(err)
			}
			documents(t, manifests)
			got := append(manifests, "--- NOTES\n"+notes...)
			golden := strings.TrimSuffix(file, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if want, err := os.ReadFile(golden); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, %v: got\n%s", golden, err, got)
			}
		})
	}
}

// object is as much of a manifest as tests look at.
type object struct {
	Kind     string
	Metadata struct {
		Name, Namespace string
		Annotations     map[string]string
	}
	Rules []struct {
		APIGroups     []string `yaml:"apiGroups"`
		Resources     []string
		ResourceNames []string `yaml:"resourceNames"`
		Verbs         []string
	}
}

func documents(t *testing.T, manifests []byte) []object {
	t.Helper()
	var objects []object
	for d := yaml.NewDecoder(bytes.NewReader(manifests)); ; {
		var n yaml.Node
		if err := d.Decode(&n); errors.Is(err, io.EOF) {
			return objects
		} else if err != nil {
			t.Fatalf("%v:\n%s", err, manifests)
		}
		var o object
		if err := n.Decode(&o); err != nil || o.Kind == "" || o.Metadata.Name == "" {
			t.Fatalf("no object: %v %+v", err, o)
		}
		objects = append(objects, o)
	}
}

// Without a cluster to look at the definitions are in, unless told otherwise.
func TestModes(t *testing.T) {
	for mode, want := range map[string]int{"auto": 2, "always": 2, "never": 0} {
		manifests, _, err := Render(Options{Release: "chandler", Namespace: "c", Set: []string{"crds.mode=" + mode}})
		if err != nil {
			t.Fatal(err)
		}
		got := 0
		for _, o := range documents(t, manifests) {
			if o.Kind == "CustomResourceDefinition" {
				got++
				if o.Metadata.Annotations["helm.sh/resource-policy"] != "keep" {
					t.Errorf("%s would go with the release, and all plugins with it", o.Metadata.Name)
				}
			}
		}
		if got != want {
			t.Errorf("crds.mode=%s: %d definitions, want %d", mode, got, want)
		}
	}
}

// No right is for all of anything, and secrets are read by name, or in the
// namespaces that are named.
func TestRights(t *testing.T) {
	manifests, _, err := Render(Options{Release: "chandler", Namespace: "c", Set: []string{"secrets.namespaces={a,b}", "secrets.names.d={pull,more}"}})
	if err != nil {
		t.Fatal(err)
	}
	var secrets []string
	for _, o := range documents(t, manifests) {
		for _, r := range o.Rules {
			for _, list := range [][]string{r.APIGroups, r.Resources, r.Verbs} {
				if strings.Contains(strings.Join(list, " "), "*") {
					t.Errorf("%s %s has a wildcard", o.Kind, o.Metadata.Name)
				}
			}
			if !slices.Contains(r.Resources, "secrets") {
				continue
			}
			if o.Kind != "Role" {
				t.Errorf("%s %s reads secrets", o.Kind, o.Metadata.Name)
			}
			secrets = append(secrets, fmt.Sprintf("%s %s %s", o.Metadata.Namespace, r.ResourceNames, r.Verbs))
		}
	}
	want := "a [] [get watch], b [] [get watch], d [pull more] [get watch]"
	if got := strings.Join(secrets, ", "); got != want {
		t.Errorf("secrets: %s, want %s", got, want)
	}
}

func TestRefused(t *testing.T) {
	for set, want := range map[string]string{
		"crds.mode=sometimes":            "crds",
		"replicas=0":                     "replicas",
		"replica=2":                      "replica",
		"image.repository=":              "image",
		"image.digest=sha256:1":          "digest",
		"fetchDeadline=soon":             "fetchDeadline",
		"secrets.namespaces={A}":         "secrets",
		"secrets.names.a={}":             "secrets",
		"serviceAccount.create=false":    "serviceAccount.name is needed",
		"tls.secretName=":                "tls.secretName is needed",
		"networkPolicy.agentsFrom={a}":   "networkPolicy",
		"service.type=ExternalName":      "service",
		"persistence.storageClassName=A": "storageClassName",
	} {
		if _, _, err := Render(Options{Release: "chandler", Namespace: "c", Set: []string{set}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", set, err, want)
		}
	}
	if _, _, err := Render(Options{Release: "chandler", Namespace: "c", Set: []string{"persistence.enabled=true", "replicas=2"}}); err == nil || !strings.Contains(err.Error(), "one replica") {
		t.Errorf("a volume for two replicas: %v", err)
	}
	if _, _, err := Render(Options{Release: "chandler", Namespace: "c", Set: []string{"tls.enabled=false"}}); err == nil || !strings.Contains(err.Error(), "over TLS only") {
		t.Errorf("without TLS: %v", err)
	}
}

// The image's tag is the version of who installs, unless the values name one.
func TestAppVersion(t *testing.T) {
	for set, want := range map[string]string{"replicas=1": "registry.example/chandler:0.3.0", "image.tag=mine": "registry.example/chandler:mine"} {
		manifests, _, err := Render(Options{Release: "chandler", Namespace: "chandler-system", Set: []string{set}, AppVersion: "0.3.0"})
		if err != nil || !strings.Contains(string(manifests), `image: "`+want+`"`) {
			t.Errorf("%s: %v, want %s in\n%s", set, err, want, manifests)
		}
	}
}

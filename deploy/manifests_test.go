// Package deploy_test holds the manifests against the commands they start, and
// the example's Envoy file against Envoy.
package deploy_test

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler/internal/chart"
)

const examples = "../examples/kubernetes"

// object is as much of a manifest as is looked at here.
type object struct {
	Kind     string
	Metadata struct{ Name string }
	Data     map[string]string
	Spec     struct {
		Template struct {
			Spec struct {
				Containers []struct {
					Name, Image string
					Args        []string
				}
			}
		}
	}
}

func objects(t *testing.T, manifests []byte) []object {
	t.Helper()
	var all []object
	for d := yaml.NewDecoder(bytes.NewReader(manifests)); ; {
		var o object
		if err := d.Decode(&o); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, o)
	}
}

// manifests are those of the examples and of the chart.
func manifests(t *testing.T) []object {
	t.Helper()
	files, err := filepath.Glob(examples + "/*.yaml")
	if err != nil || len(files) < 3 {
		t.Fatalf("%v, %v", files, err)
	}
	set := []string{"tls.clientCASecretName=machines", "ownUnlabelled=true", "registries.insecure={a:5000}", "registries.hosts.a=skip_verify=false", "registries.tokenRealms={a=b}"}
	text, _, err := chart.Render(chart.Options{Release: "chandler", Namespace: "chandler-system", Set: set})
	if err != nil {
		t.Fatal(err)
	}
	all := objects(t, text)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, objects(t, text)...)
	}
	return all
}

// help is what a command says of its flags.
func help(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", append([]string{"run", "-C", ".."}, args...)...).CombinedOutput()
	if len(out) == 0 {
		t.Fatal(err)
	}
	return string(out)
}

// Every flag that a container is started with is one of its command.
func TestFlags(t *testing.T) {
	t.Parallel()
	commands := map[string]string{
		"chandler": help(t, "./cmd/chandler", "serve", "--help"), "chandler-gateway": help(t, "./cmd/chandler-agent", "--help"),
		"chandler-bookinfo": help(t, "./cmd/bookinfo", "--help"),
	}
	started := 0
	for _, o := range manifests(t) {
		for _, c := range o.Spec.Template.Spec.Containers {
			image := c.Image[strings.LastIndexByte(c.Image, '/')+1:]
			image, _, _ = strings.Cut(image, ":")
			text, ok := commands[image]
			if !ok {
				t.Errorf("%s %s: image %s", o.Kind, o.Metadata.Name, c.Image)
			}
			started++
			for _, arg := range c.Args {
				if arg == "--" {
					break // what follows is Envoy's
				}
				name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
				if !strings.HasPrefix(arg, "-") {
					continue
				}
				if !strings.Contains(text, "-"+name+" ") && !strings.Contains(text, "-"+name+"\n") {
					t.Errorf("%s %s: %s has no flag %s", o.Kind, o.Metadata.Name, image, arg)
				}
			}
		}
	}
	if started != 8 {
		t.Errorf("%d containers were looked at", started)
	}
}

// The example's Envoy file is one that Envoy takes.
func TestEnvoyFile(t *testing.T) {
	t.Parallel()
	checked := 0
	for _, o := range manifests(t) {
		text, ok := o.Data["envoy.yaml"]
		if o.Kind != "ConfigMap" || !ok {
			continue
		}
		checked++
		file := filepath.Join(t.TempDir(), "envoy.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), "../.tools/envoy", "--mode", "validate", "-c", file, "--service-node", "a", "--service-cluster", "a").CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", o.Metadata.Name, err, out)
		}
	}
	if checked != 1 {
		t.Errorf("%d files of Envoy", checked)
	}
}

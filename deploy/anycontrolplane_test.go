package deploy_test

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kyaml "sigs.k8s.io/yaml"
)

var yamlBlock = regexp.MustCompile("(?ms)^```yaml\n(.*?)^```")

// snippet is the only YAML of docs/any-control-plane.md that has some words.
func snippet(t *testing.T, words ...string) []byte {
	t.Helper()
	page, err := os.ReadFile("../docs/any-control-plane.md")
	if err != nil {
		t.Fatal(err)
	}
	var found [][]byte
	for _, b := range yamlBlock.FindAllSubmatch(page, -1) {
		if !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(string(b[1]), w) }) {
			found = append(found, b[1])
		}
	}
	if len(found) != 1 {
		t.Fatalf("%d snippets with %q", len(found), words)
	}
	return found[0]
}

func strict(t *testing.T, text []byte, into any) {
	t.Helper()
	if err := kyaml.UnmarshalStrict(text, into); err != nil {
		t.Fatal(err)
	}
}

// needed are the variables without which no agent in Envoy's place does its work.
func needed(t *testing.T, has func(name string) bool) {
	t.Helper()
	for _, name := range []string{"CHANDLER_AGENT_ENVOY", "CHANDLER_AGENT_CONTROL", "CHANDLER_AGENT_TLS_CA", "CHANDLER_AGENT_TOKEN_FILE", "CHANDLER_AGENT_DATA"} {
		if !has(name) {
			t.Errorf("%s is not set", name)
		}
	}
}

// The pod's annotations are those of Istio, in the forms that its injection reads: volumes
// and mounts by name, and as much of a ProxyConfig as is used here.
func TestIstioAnnotations(t *testing.T) {
	t.Parallel()
	var pod struct {
		Metadata struct {
			Annotations struct {
				Image   string `json:"sidecar.istio.io/proxyImage"`
				Volumes string `json:"sidecar.istio.io/userVolume"`
				Mounts  string `json:"sidecar.istio.io/userVolumeMount"`
				Config  string `json:"proxy.istio.io/config"`
			} `json:"annotations"`
		} `json:"metadata"`
	}
	strict(t, snippet(t, "proxy.istio.io/config"), &pod)
	given := pod.Metadata.Annotations
	var volumes map[string]corev1.VolumeSource
	strict(t, []byte(given.Volumes), &volumes)
	var mounts map[string]corev1.VolumeMount // their names are the keys
	strict(t, []byte(given.Mounts), &mounts)
	if !json.Valid([]byte(given.Volumes)) || !json.Valid([]byte(given.Mounts)) || len(mounts) != 1 || !strings.Contains(given.Image, "/") {
		t.Errorf("%+v", given)
	}
	for name := range mounts {
		if _, ok := volumes[name]; !ok {
			t.Errorf("no volume %s", name)
		}
	}
	var config struct {
		BinaryPath    string            `json:"binaryPath"`
		ProxyMetadata map[string]string `json:"proxyMetadata"`
	}
	strict(t, []byte(given.Config), &config)
	if !strings.HasSuffix(config.BinaryPath, "/envoy") || config.BinaryPath == config.ProxyMetadata["CHANDLER_AGENT_ENVOY"] {
		t.Errorf("the agent is not known by its name, or starts itself: %+v", config)
	}
	needed(t, func(name string) bool { return config.ProxyMetadata[name] != "" })
	tokenMounted(t, volumes["chandler"], mounts["chandler"].MountPath, config.ProxyMetadata["CHANDLER_AGENT_TOKEN_FILE"])
}

func tokenMounted(t *testing.T, v corev1.VolumeSource, path, file string) {
	t.Helper()
	if v.Projected == nil || len(v.Projected.Sources) != 2 {
		t.Fatalf("%+v", v)
	}
	token := v.Projected.Sources[0].ServiceAccountToken
	if token == nil || token.Audience != "chandler" || path+"/"+token.Path != file {
		t.Errorf("%+v at %s, wanted at %s", token, path, file)
	}
}

// envoyProxy is as much of Envoy Gateway's resource as is used here.
type envoyProxy struct {
	metav1.TypeMeta `json:",inline"`
	Metadata        struct{ Name, Namespace string } `json:"metadata"`
	Spec            struct {
		Provider struct {
			Type       string `json:"type"`
			Kubernetes *struct {
				EnvoyDeployment struct {
					Container struct {
						Image        string               `json:"image"`
						Env          []corev1.EnvVar      `json:"env"`
						VolumeMounts []corev1.VolumeMount `json:"volumeMounts"`
					} `json:"container"`
					Pod struct {
						Volumes []corev1.Volume `json:"volumes"`
					} `json:"pod"`
				} `json:"envoyDeployment"`
			} `json:"kubernetes"`
			Host *struct {
				EnvoyVersion string `json:"envoyVersion"`
			} `json:"host"`
		} `json:"provider"`
	} `json:"spec"`
}

// The EnvoyProxy for Kubernetes has every setting, and its mounts have their volumes.
func TestEnvoyProxyOnKubernetes(t *testing.T) {
	t.Parallel()
	var p envoyProxy
	strict(t, snippet(t, "kind: EnvoyProxy", "type: Kubernetes"), &p)
	if p.APIVersion != "gateway.envoyproxy.io/v1alpha1" || p.Kind != "EnvoyProxy" || p.Spec.Provider.Type != "Kubernetes" || p.Spec.Provider.Kubernetes == nil || p.Spec.Provider.Host != nil {
		t.Fatalf("%+v", p)
	}
	container, volumes := p.Spec.Provider.Kubernetes.EnvoyDeployment.Container, p.Spec.Provider.Kubernetes.EnvoyDeployment.Pod.Volumes
	env := map[string]corev1.EnvVar{}
	for _, e := range container.Env {
		env[e.Name] = e
	}
	needed(t, func(name string) bool { return env[name].Value != "" })
	for name, path := range map[string]string{"CHANDLER_AGENT_NODE": "metadata.name", "CHANDLER_AGENT_NAMESPACE": "metadata.namespace"} {
		if from := env[name].ValueFrom; from == nil || from.FieldRef == nil || from.FieldRef.FieldPath != path {
			t.Errorf("%s is %+v", name, env[name])
		}
	}
	for _, m := range container.VolumeMounts {
		i := slices.IndexFunc(volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		if i < 0 {
			t.Fatalf("no volume %s", m.Name)
		}
		if m.Name == "chandler" {
			tokenMounted(t, volumes[i].VolumeSource, m.MountPath, env["CHANDLER_AGENT_TOKEN_FILE"].Value)
		} else if !strings.HasPrefix(env["CHANDLER_AGENT_DATA"].Value, m.MountPath+"/") {
			t.Errorf("%s is not on %+v", env["CHANDLER_AGENT_DATA"].Value, m)
		}
	}
}

// Without Kubernetes the agent stands where Envoy Gateway looks for the Envoy of the
// version that its EnvoyProxy names.
func TestEnvoyGatewayOnAMachine(t *testing.T) {
	t.Parallel()
	var p envoyProxy
	strict(t, snippet(t, "kind: EnvoyProxy", "type: Host"), &p)
	if p.Spec.Provider.Type != "Host" || p.Spec.Provider.Host == nil || p.Spec.Provider.Kubernetes != nil {
		t.Fatalf("%+v", p)
	}
	var g struct {
		metav1.TypeMeta `json:",inline"`
		Gateway         struct {
			ControllerName string `json:"controllerName"`
		} `json:"gateway"`
		Provider struct {
			Type   string `json:"type"`
			Custom struct {
				Resource struct {
					Type string `json:"type"`
					File struct {
						Paths []string `json:"paths"`
					} `json:"file"`
				} `json:"resource"`
				Infrastructure struct {
					Type string `json:"type"`
					Host struct {
						ConfigHome string `json:"configHome"`
						DataHome   string `json:"dataHome"`
						StateHome  string `json:"stateHome"`
						RuntimeDir string `json:"runtimeDir"`
					} `json:"host"`
				} `json:"infrastructure"`
			} `json:"custom"`
		} `json:"provider"`
	}
	strict(t, snippet(t, "kind: EnvoyGateway\n"), &g)
	page, err := os.ReadFile("../docs/any-control-plane.md")
	if err != nil {
		t.Fatal(err)
	}
	link := g.Provider.Custom.Infrastructure.Host.DataHome + "/envoy-versions/" + p.Spec.Provider.Host.EnvoyVersion + "/bin/envoy"
	if g.Kind != "EnvoyGateway" || !strings.Contains(string(page), "ln -s /usr/local/bin/chandler-agent "+link+"\n") {
		t.Errorf("%+v: no link %s", g, link)
	}
}

package deploy_test

import (
	"os"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	kyaml "sigs.k8s.io/yaml"
)

// The pod of docs/agent.md is one of Kubernetes, every field of it, in which Envoy and the
// agent are of different users and have one group. That its commands work is held in
// test/e2e.
func TestPodBeside(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../docs/agent.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "```yaml\n")
	text, _, _ = strings.Cut(text, "```")
	var pod corev1.Pod
	if err := kyaml.UnmarshalStrict([]byte(text), &pod); err != nil {
		t.Fatal(err)
	}
	volumes := map[string]bool{}
	for _, v := range pod.Spec.Volumes {
		volumes[v.Name] = true
	}
	users := map[int64]int{}
	for _, c := range append(pod.Spec.InitContainers, pod.Spec.Containers...) {
		users[*c.SecurityContext.RunAsUser]++
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] {
				t.Errorf("%s mounts %s", c.Name, m.Name)
			}
		}
	}
	if len(users) != 2 || pod.Spec.SecurityContext.FSGroup == nil || *pod.Spec.SecurityContext.FSGroup != 65500 {
		t.Errorf("users %v, group %v", users, pod.Spec.SecurityContext.FSGroup)
	}
}

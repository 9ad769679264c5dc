package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler/internal/testenv/module"
)

// besides are the three commands of an Envoy with an agent beside it, as a page or a unit
// has them, and the variables of the agent's.
type besides struct {
	bootstrap, agent, envoy []string
	env                     []string
}

// works runs the commands, on the folders of a test, and has a plugin attached.
func (b besides) works(t *testing.T) {
	t.Helper()
	w := newWorld(t)
	port := freePort(t)
	ap := standApart(t, w, w.gateway(listener{port: port, name: "in"}))
	here := strings.NewReplacer("/run/chandler/agent", ap.data, "/var/lib/chandler-agent", ap.data, "/etc/envoy/envoy.yaml", ap.config,
		"/usr/local/bin/chandler-agent", ap.program, "/usr/local/bin/envoy", ap.binary,
		"65500", strconv.Itoa(ap.group), "chandler-envoy", strconv.Itoa(ap.group), "chandler.chandler-system.svc:9910", w.listen, ":9912", ap.admin)
	command := func(words ...string) *exec.Cmd {
		for i := range words {
			words[i] = here.Replace(words[i])
		}
		cmd := exec.Command(words[0], words[1:]...)
		cmd.Dir, cmd.SysProcAttr = ap.dir, ap.agentUser
		cmd.Env = append(os.Environ(), "CHANDLER_AGENT_CONTROL="+w.listen, "CHANDLER_AGENT_ADMIN="+ap.admin, "CHANDLER_AGENT_NAMESPACE=edge",
			"CHANDLER_AGENT_ENVOY="+ap.binary)
		for _, pair := range b.env {
			cmd.Env = append(cmd.Env, here.Replace(pair))
		}
		return cmd
	}
	if out, err := command(b.bootstrap...).CombinedOutput(); err != nil {
		t.Fatalf("bootstrap: %v\n%s", err, out)
	}
	ap.agent = run(t, filepath.Join(ap.dir, "agent.log"), command(b.agent...))
	envoy := command(b.envoy...)
	envoy.SysProcAttr, envoy.Env = ap.envoyUser, nil
	ap.envoy = run(t, filepath.Join(ap.dir, "envoy.log"), envoy)
	ap.awaitReady()
	w.apply(plugin("p", w.push("append:v1", module.Append()), tag("one")))
	sees(t, port, "one")
}

// The pod of docs/agent.md does what the page says.
func TestWaysAsToldPod(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "agent.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, text, ok := strings.Cut(string(page), "```yaml\n")
	text, _, ok2 := strings.Cut(text, "```")
	type container struct {
		Name         string
		Args         []string
		VolumeMounts []struct{ Name, MountPath string } `yaml:"volumeMounts"`
		Env          []struct{ Name string }
	}
	var pod struct {
		Spec struct {
			SecurityContext struct {
				FSGroup int `yaml:"fsGroup"`
			} `yaml:"securityContext"`
			InitContainers []container `yaml:"initContainers"`
			Containers     []container
		}
	}
	if err := yaml.Unmarshal([]byte(text), &pod); err != nil || !ok || !ok2 {
		t.Fatal(err)
	}
	all := append(pod.Spec.InitContainers, pod.Spec.Containers...)
	if len(all) != 3 || pod.Spec.SecurityContext.FSGroup != 65500 {
		t.Fatalf("%+v", pod)
	}
	for _, c := range all[1:] { // one folder under one path, in all
		if !slices.Equal(c.VolumeMounts, all[0].VolumeMounts) {
			t.Errorf("%s mounts %v", c.Name, c.VolumeMounts)
		}
	}
	if len(all[0].Env) != 2 || !slices.Equal(all[0].Env, all[1].Env) {
		t.Errorf("bootstrap and agent are told of different nodes: %v, %v", all[0].Env, all[1].Env)
	}
	const program, envoy = "/usr/local/bin/chandler-agent", "/usr/local/bin/envoy" // the images' entry points
	besides{
		bootstrap: append([]string{program}, all[0].Args...), agent: append([]string{program}, all[1].Args...), envoy: append([]string{envoy}, all[2].Args...),
		env: []string{"CHANDLER_AGENT_NODE=edge"},
	}.works(t)
}

// The units do what they are for.
func TestWaysAsToldUnits(t *testing.T) {
	t.Parallel()
	settings := func(name string) map[string][]string {
		b, err := os.ReadFile(filepath.Join("..", "..", "deploy", "systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		found := map[string][]string{}
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && line[0] != '#' && value != "" {
				found[name] = append(found[name], value)
			}
		}
		return found
	}
	agent, envoy := settings("chandler-agent-beside.service"), settings("chandler-beside.conf")
	if !slices.Equal(agent["Group"], envoy["SupplementaryGroups"]) || agent["RestrictSUIDSGID"] != nil || !slices.Equal(agent["StateDirectoryMode"], []string{"0750"}) {
		t.Errorf("agent %v, Envoy %v", agent, envoy)
	}
	besides{
		bootstrap: strings.Fields(agent["ExecStartPre"][0]), agent: strings.Fields(agent["ExecStart"][0]), envoy: strings.Fields(envoy["ExecStart"][0]),
		env: append(agent["Environment"], "STATE_DIRECTORY=/var/lib/chandler-agent"),
	}.works(t)
}

//go:build kube

package e2e

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/kube"
)

// chandler migrate with what makes a cluster other than a file: the order in which
// EnvoyFilters came, names that are taken, more than a page of objects, kinds that
// are not defined and rights that are not given.
func TestKubeMigrateCluster(t *testing.T) {
	c := newCluster(t)
	migrateAs := func(kubeconfig, stdin string, args ...string) (out, talk string, err error) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(built, "chandler"), append([]string{"migrate", "--from"}, args...)...)
		cmd.Env = []string{"KUBECONFIG=" + kubeconfig}
		cmd.Stdin = strings.NewReader(stdin)
		var stdout, stderr strings.Builder
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		err = cmd.Run()
		return stdout.String(), stderr.String(), err
	}
	migrate := func(args ...string) (out, talk string) {
		t.Helper()
		out, talk, err := migrateAs(c.Admin, "", args...)
		if err != nil {
			t.Fatalf("%v: %v: %s", args, err, talk)
		}
		return out, talk
	}
	c.apply(kube.EnvoyFilters)
	c.kubectl("", "wait", "--for=condition=Established", "crd/envoyfilters.networking.istio.io")
	serves(t, c.Cluster, "envoyfilters")

	// Istio takes the older first, and times are in seconds.
	named := func(name string) string {
		return strings.NewReplacer("{name: guard,", "{name: "+name+",", "name: guard\n", "name: "+name+"\n").Replace(envoyFilter)
	}
	created := func(name string) string {
		return c.kubectl("", "get", "envoyfilter", name, "-n", "edge", "-o", "jsonpath={.metadata.creationTimestamp}")
	}
	c.apply(named("zebra"))
	eventually(t, time.Minute, "a later second", func() (bool, string) {
		c.kubectl("", "delete", "envoyfilter", "ant", "-n", "edge", "--ignore-not-found")
		c.apply(named("ant"))
		return created("ant") > created("zebra"), created("ant")
	})
	// "ant" is also the name of a plugin of Istio's.
	c.apply(plugin("ant", "oci://registry.example/ant:v1"))

	got, talk := migrate("envoyfilter", "-A")
	given := c.kubectl("", "get", "envoyfilters,wasmplugins", "-A", "-o", "yaml")
	want, _, err := migrateAs(c.Admin, given, "envoyfilter", "-f", "-")
	if err != nil || got != want {
		t.Errorf("from the cluster\n%s\nfrom kubectl (%v)\n%s", got, err, want)
	}
	if strings.Count(got, "kind: WasmPlugin") != 2 || strings.Contains(got, "  name: ant\n") || !strings.Contains(talk, "--from istio") {
		t.Errorf("with a plugin of the same name it gives\n%s\nand says\n%s", got, talk)
	}

	// More than a page.
	var many strings.Builder
	for i := range 501 {
		fmt.Fprintf(&many, "---\n%s\n", strings.TrimSpace(plugin(fmt.Sprintf("many-%03d", i), "oci://registry.example/many:v1")))
	}
	c.kubectl(many.String(), "create", "-f", "-")
	if got, _ := migrate("istio", "-n", "edge"); strings.Count(got, "kind: WasmPlugin\n") != 502 {
		t.Errorf("of 502 plugins it gives %d", strings.Count(got, "kind: WasmPlugin\n"))
	}

	// Who may not read is told what.
	reader, err := c.User("reader", "readers")
	if err != nil {
		t.Fatal(err)
	}
	out, talk, err := migrateAs(reader, "", "istio", "-n", "edge")
	if err == nil || out != "" || !strings.Contains(talk, `User "reader" cannot list resource "wasmplugins" in API group "extensions.istio.io" in the namespace "edge"`) {
		t.Errorf("who may not read gets %q and is told: %s (%v)", out, talk, err)
	}

	// One kind of two is enough, as with an older Istio.
	c.kubectl("", "delete", "crd", "trafficextensions.extensions.istio.io")
	eventually(t, time.Minute, "TrafficExtension is not defined", func() (bool, string) { // the API server forgets it a moment later
		got, talk = migrate("istio", "-A")
		return strings.Contains(talk, "The cluster does not define TrafficExtension."), talk
	})
	if !strings.Contains(got, "name: ant\n") {
		t.Errorf("without TrafficExtension it gives: %.500s", got)
	}
}

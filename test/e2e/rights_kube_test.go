//go:build kube

package e2e

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	yaml "go.yaml.in/yaml/v3"
)

// role is one of the chart's roles.
type role struct {
	text     []byte
	kind     string
	name     string
	place    string // its namespace
	rules    []grant
	document map[string]any
}

// grant is one of a role's.
type grant struct {
	APIGroups     []string `yaml:"apiGroups"`
	Resources     []string
	ResourceNames []string `yaml:"resourceNames,omitempty"`
	Verbs         []string
}

// roles gives those of the chart.
func (w *charted) roles() (all []role) {
	w.t.Helper()
	for d := yaml.NewDecoder(bytes.NewReader(w.rendered)); ; {
		var r role
		switch err := d.Decode(&r.document); {
		case errors.Is(err, io.EOF):
			return all
		case err != nil:
			w.t.Fatal(err)
		}
		if r.kind, _ = r.document["kind"].(string); r.kind != "ClusterRole" && r.kind != "Role" {
			continue
		}
		var err error
		if r.text, err = yaml.Marshal(r.document); err != nil {
			w.t.Fatal(err)
		}
		var is struct {
			Metadata struct{ Name, Namespace string }
			Rules    []grant
		}
		if err := yaml.Unmarshal(r.text, &is); err != nil {
			w.t.Fatal(err)
		}
		r.name, r.place, r.rules = is.Metadata.Name, is.Metadata.Namespace, is.Rules
		all = append(all, r)
	}
}

// granted gives what the chart grants as "VERB GROUP/RESOURCE [NAME]".
func (w *charted) granted() map[string]bool {
	all := map[string]bool{}
	for _, r := range w.roles() {
		for _, rule := range r.rules {
			for _, verb := range rule.Verbs {
				for _, resource := range rule.Resources {
					for _, name := range append(rule.ResourceNames, "")[:max(1, len(rule.ResourceNames))] {
						all[strings.TrimSpace(verb+" "+rule.APIGroups[0]+"/"+resource+" "+name)] = true
					}
				}
			}
		}
	}
	return all
}

const controlAccount = "system:serviceaccount:chandler-system:chandler"

// asked gives what the control plane asked for, in both ways in which a rule may
// grant it, and what was forbidden.
func (w *charted) asked() (asked, forbidden map[string]bool) {
	w.t.Helper()
	requests, err := w.cluster.Requests()
	if err != nil {
		w.t.Fatal(err)
	}
	asked, forbidden = map[string]bool{}, map[string]bool{}
	for _, r := range requests {
		if r.User != controlAccount {
			continue
		}
		what := r.Verb + " " + r.Resource
		if r.Code == http.StatusForbidden {
			forbidden[what+" "+r.Name] = true
			continue
		}
		asked[what], asked[what+" "+r.Name] = true, true
	}
	return asked, forbidden
}

// without takes the rules about a resource from the chart's roles, and gives what
// puts them back. Both return when the API server goes by it.
func (w *charted) without(resource string) (restore func()) {
	w.t.Helper()
	about := func(u grant) bool { return slices.Contains(u.Resources, resource) }
	var taken []role
	settled := func(may bool) {
		w.t.Helper()
		for _, r := range taken {
			for _, u := range r.rules {
				if about(u) {
					w.awaitRight(u, r.place, may)
				}
			}
		}
	}
	for _, r := range w.roles() {
		kept := slices.DeleteFunc(slices.Clone(r.rules), about)
		if len(kept) == len(r.rules) {
			continue
		}
		document := maps.Clone(r.document)
		document["rules"] = kept
		text, err := yaml.Marshal(document)
		if err != nil {
			w.t.Fatal(err)
		}
		taken = append(taken, r)
		w.kubectl(string(text), "replace", "-f", "-")
	}
	if len(taken) == 0 {
		w.t.Fatalf("no rule of the chart is about %s", resource)
	}
	settled(false)
	return func() {
		w.t.Helper()
		for _, r := range taken {
			w.kubectl(string(r.text), "replace", "-f", "-")
		}
		settled(true)
	}
}

// awaitRight waits until the control plane may or may not do what a rule grants.
func (w *charted) awaitRight(u grant, namespace string, may bool) {
	w.t.Helper()
	resource, sub, _ := strings.Cut(u.Resources[0], "/")
	if u.APIGroups[0] != "" {
		resource += "." + u.APIGroups[0]
	}
	if len(u.ResourceNames) > 0 {
		resource += "/" + u.ResourceNames[0]
	}
	args := []string{"auth", "can-i", u.Verbs[0], resource, "-n", cmp.Or(namespace, "istio-system")}
	if sub != "" {
		args = append(args, "--subresource="+sub)
	}
	eventually(w.t, 30*time.Second, fmt.Sprint(args, may), func() (bool, string) {
		out, err := w.cluster.KubectlAs(w.t.Context(), w.account, "", args...)
		return strings.Contains(out, map[bool]string{true: "yes", false: "no"}[may]) && (err == nil) == may, out
	})
}

// here puts a plugin into the namespace of the gateway.
func here(manifest string) string {
	return strings.ReplaceAll(manifest, "namespace: edge", "namespace: istio-system")
}

// shown is a field of a plugin as kubectl shows it.
func (w *charted) shown(name, path string) string {
	w.t.Helper()
	return w.kubectl("", "get", "wasmplugin", "-n", "istio-system", name, "-o", "jsonpath="+path)
}

// logs waits until the control plane says all of this in one line after mark.
func (w *charted) logs(mark int, texts ...string) {
	w.t.Helper()
	eventually(w.t, time.Minute, fmt.Sprint("the control plane's log: ", texts), func() (bool, string) {
		b, err := os.ReadFile(w.control.log)
		if err != nil {
			return false, err.Error()
		}
		for line := range strings.Lines(string(b[mark:])) {
			if !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(line, text) }) {
				return true, ""
			}
		}
		return false, string(b[mark:])
	})
}

// The chart's rights are enough, and each is used. Whichever is taken away, what is
// in force stays as it is, the control plane says what it lacks, and it goes on by
// itself when it has it again.
func TestKubeRights(t *testing.T) {
	w := newCharted(t, "secrets.names.istio-system={pull}")
	reg, url := private(t, "puller", "secret")
	w.kubectl(here(pullSecret(reg, "puller", "secret")), "apply", "-f", "-")
	base := here(plugin("base", url, tag("base"), "imagePullSecret: pull", "phase: AUTHN"))
	w.kubectl(base, "apply", "-f", "-")
	w.kubectl(here(extension), "apply", "-f", "-")
	tags := func(want ...string) { t.Helper(); heals(t, w.port, append([]string{"base"}, want...)...) }
	tags()
	load := startLoad(w.port, 2, 1, func(a answer) error {
		if got := appended(a); a.code != http.StatusOK || len(got) == 0 || got[0] != "base" {
			return fmt.Errorf("status %d, tags %v", a.code, got)
		}
		return nil
	})
	ready := func(name string) {
		t.Helper()
		w.kubectl("", "wait", "--for=condition=Ready", "--timeout=60s", "-n", "istio-system", "wasmplugin/"+name)
	}
	ready("base")
	// More versions than are kept, and a rollout that somebody touches.
	other := w.push("append:v1", build(1))
	for n := range 12 {
		w.kubectl(here(plugin("other", other, tag(fmt.Sprint("v", n)))), "apply", "-f", "-")
		tags(fmt.Sprint("v", n))
	}
	w.kubectl("", "annotate", "controllerrevisions", "-n", "istio-system", "-l", "chandler.dev/record=rollout", "somebody=was-here")
	w.kubectl(here(plugin("other", other, tag("last"))), "apply", "-f", "-")
	tags("last")
	ready("other")
	asked, forbidden := w.asked()
	if len(forbidden) > 0 {
		t.Errorf("the chart's rights are not enough: %v", slices.Collect(maps.Keys(forbidden)))
	}
	for g := range w.granted() {
		if !asked[g] && !streamed[g] {
			t.Errorf("the chart grants what is not used: %s", g)
		}
	}
	t.Logf("%d rights, each used", len(w.granted()))
	w.kubectl("", "delete", "wasmplugin", "-n", "istio-system", "other")
	tags()

	w.lacks(t, url)
	harmless(t, load)
}

// lacks takes one right after the other.
func (w *charted) lacks(t *testing.T, url string) {
	tags := func(want ...string) {
		t.Helper()
		eventually(t, time.Minute, fmt.Sprint("requests get ", want), func() (bool, string) {
			got := appended(get(t, w.port, "/"))
			return slices.Equal(got, want), fmt.Sprint(got)
		})
	}
	inForce := func(name string) { t.Helper(); tags("base", name) }
	says := func(path string, texts ...string) func(string) {
		return func(name string) {
			t.Helper()
			eventually(t, time.Minute, fmt.Sprint("the status of ", name, " says ", texts), func() (bool, string) {
				got := w.shown(name, path)
				return !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(got, text) }), got
			})
		}
	}
	const reasons = "{.status.conditions[*].message}"
	mark := 0
	logs := func(texts ...string) func(string) { return func(string) { t.Helper(); w.logs(mark, texts...) } }
	unready := func(string) {
		t.Helper()
		if ok, _ := w.ready(); ok {
			t.Error("the control plane is ready")
		}
	}
	nothing := func(string) {}
	taken := map[string]bool{}
	for i, c := range []struct {
		resource string
		restart  bool // of the control plane, without the right
		// lacking are true of a new plugin while the right is lacking, and having
		// when it is there again.
		lacking []func(name string)
		having  func(name string)
	}{
		{"wasmplugins", true, []func(string){logs("forbidden", "wasmplugins"), unready}, inForce},
		{"wasmplugins/status", false, []func(string){inForce, logs("a status cannot be written", "forbidden")}, says(reasons, "in force on the 1 proxy")},
		{"customresourcedefinitions", true, []func(string){logs("it may not be seen whether Istio is here", "forbidden")}, inForce},
		{"configmaps", true, []func(string){logs("it may not be seen whether Istio is here", "forbidden")}, inForce},
		{"controllerrevisions", false, []func(string){says(reasons, "forbidden", "controllerrevisions")}, inForce},
		{"controllerrevisions", true, []func(string){logs("the records cannot be read yet", "forbidden"), unready}, inForce},
		{"events", false, []func(string){inForce, logs("an Event cannot be written", "forbidden")}, nothing},
		{"tokenreviews", true, []func(string){logs("tokenreviews", "forbidden")}, inForce},
		{"pods", true, []func(string){logs("pods", "forbidden")}, inForce},
		{"leases", false, []func(string){logs("leases", "forbidden"), logs("no replica leads")}, inForce},
		{"secrets", true, []func(string){says(reasons, `the control plane may not read secret "pull"`)}, inForce},
	} {
		name := fmt.Sprintf("p%d", i)
		t.Logf("without %s; restarted: %t", c.resource, c.restart)
		log, err := os.ReadFile(w.control.log)
		if err != nil {
			t.Fatal(err)
		}
		mark, taken[c.resource] = len(log), true
		restore := w.without(c.resource)
		if c.restart {
			if err := w.control.stop(); err != nil { // it gives the Lease back
				t.Error(err)
			}
			w.launch()
		}
		w.kubectl(here(plugin(name, url, tag(name), "imagePullSecret: pull")), "apply", "-f", "-")
		for _, is := range c.lacking {
			is(name)
		}
		if got := appended(get(t, w.port, "/")); len(got) == 0 || got[0] != "base" {
			t.Errorf("requests get %v", got)
		}
		restore()
		w.awaitReady()
		c.having(name)
		w.kubectl("", "delete", "wasmplugin", "-n", "istio-system", name)
		tags("base")
		w.kubectl("", "wait", "--for=condition=Ready", "--timeout=60s", "-n", "istio-system", "wasmplugin/base")
	}
	for _, r := range w.roles() {
		for _, g := range r.rules {
			if !taken[g.Resources[0]] {
				t.Errorf("nobody knows what breaks without %v", g.Resources)
			}
		}
	}
}

// streamed are lists that this API server sends as the beginning of a watch; older
// ones are asked for them.
var streamed = map[string]bool{"list extensions.istio.io/wasmplugins": true, "list extensions.istio.io/trafficextensions": true}

// extension is of the second kind.
const extension = `apiVersion: extensions.istio.io/v1alpha1
kind: TrafficExtension
metadata: {name: lua, namespace: edge}
spec: {lua: {inlineCode: "function envoy_on_request(h) end"}}
`

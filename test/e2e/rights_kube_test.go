//go:build kube

package e2e

import (
	"bytes"
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

// here puts a plugin into the namespace of the gateway.
func here(manifest string) string {
	return strings.ReplaceAll(manifest, "namespace: edge", "namespace: istio-system")
}

// shown is a field of a plugin as kubectl shows it.
func (w *charted) shown(name, path string) string {
	w.t.Helper()
	return w.kubectl("", "get", "wasmplugin", "-n", "istio-system", name, "-o", "jsonpath="+path)
}

// hideRollouts takes away what rollout records are known by.
func (w *charted) hideRollouts() {
	w.t.Helper()
	w.kubectl("", "label", "controllerrevisions", "-n", "istio-system", "-l", "chandler.dev/record=rollout", "chandler.dev/record-")
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
	t.Setenv(streaming, "false") // older API servers cannot; then list is asked for
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
	// More versions than are kept, and a rollout that is hidden, but in the way.
	other := w.push("append:v1", build(1))
	for n := range 12 {
		w.kubectl(here(plugin("other", other, tag(fmt.Sprint("v", n)))), "apply", "-f", "-")
		tags(fmt.Sprint("v", n))
	}
	w.hideRollouts()
	w.kubectl(here(plugin("other", other, tag("last"))), "apply", "-f", "-")
	tags("last")
	ready("other")
	if out := w.visit("visitor"); !strings.Contains(out, "values of configuration are not shown") {
		t.Errorf("somebody without rights sees %s", out)
	}
	eventually(t, time.Minute, "each right that the chart grants is used", func() (bool, string) {
		asked, forbidden := w.asked()
		if len(forbidden) > 0 {
			t.Fatalf("the chart's rights are not enough: %v", slices.Collect(maps.Keys(forbidden)))
		}
		unused := slices.DeleteFunc(slices.Collect(maps.Keys(w.granted())), func(g string) bool { return asked[g] })
		return len(unused) == 0, fmt.Sprint(unused)
	})
	t.Logf("%d rights, each used", len(w.granted()))
	w.kubectl("", "delete", "wasmplugin", "-n", "istio-system", "other")
	tags()

	w.lacks(t, url)
	harmless(t, load)
}

// visit asks the admin port as a new service account, by its token.
func (w *charted) visit(name string) string {
	w.t.Helper()
	w.kubectl("", "create", "serviceaccount", "-n", "istio-system", name)
	token := w.kubectl("", "create", "token", "-n", "istio-system", name, "--audience=chandler-admin")
	out, _ := w.cli("", "get", "-A", "-o", "yaml", "--token-file", w.write(token))
	return out
}

// extension is of the second kind.
const extension = `apiVersion: extensions.istio.io/v1alpha1
kind: TrafficExtension
metadata: {name: lua, namespace: edge}
spec: {lua: {inlineCode: "function envoy_on_request(h) end"}}
`

// streaming is the switch by which client-go takes a list as the beginning of a watch.
const streaming = "KUBE_FEATURE_WatchListClient"

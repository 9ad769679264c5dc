//go:build kube

package kube_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source/kube"
	testkube "chandler.dev/chandler/internal/testenv/kube"
)

// istiosDefinition is a TrafficExtension as others may have it installed: without
// columns, and with a status that has no place for what is our own. %s is for
// whether it keeps unknown fields.
const istiosDefinition = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: trafficextensions.extensions.istio.io}
spec:
  group: extensions.istio.io
  scope: Namespaced
  names: {kind: TrafficExtension, listKind: TrafficExtensionList, plural: trafficextensions, singular: trafficextension}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec: {type: object, x-kubernetes-preserve-unknown-fields: true}
          status:
            type: object%s
            properties:
              conditions:
                type: array
                items:
                  type: object
                  properties:
                    lastProbeTime: {type: string, format: date-time}
                    lastTransitionTime: {type: string, format: date-time}
                    message: {type: string}%s
                    reason: {type: string}
                    status: {type: string}
                    type: {type: string}
              observedGeneration: {anyOf: [{type: integer}, {type: string}], x-kubernetes-int-or-string: true}
              validationMessages:
                type: array
                items: {type: object, x-kubernetes-preserve-unknown-fields: true}
`

// Under a definition of somebody else, which refuses fields of our own or drops
// them, the conditions are written all the same, and not again and again.
func testOthersDefinition(t *testing.T, c *testkube.Cluster, client *kube.Client) {
	const generation = "\n                    observedGeneration: {anyOf: [{type: integer}, {type: string}], x-kubernetes-int-or-string: true}"
	for name, d := range map[string]struct{ keeps, generation, ready string }{
		"keeps unknown fields":         {"\n            x-kubernetes-preserve-unknown-fields: true", generation, "Ready=True/Ready 1/1"},
		"knows no fields of ours":      {"", generation, "Ready=True/Ready "},
		"knows no generation of these": {"", "", "Ready=True/Ready "},
	} {
		t.Run(name, func(t *testing.T) {
			kubectl(t, c, "", "delete", "crd", "trafficextensions.extensions.istio.io")
			apply(t, c, fmt.Sprintf(istiosDefinition, d.keeps, d.generation))
			defined(t, c, "trafficextensions")
			tr := newTruth()
			stop := writer(t, client, tr)
			p := create(t, c, tr, chandler.KindTrafficExtension, "elsewhere")
			p.says(1, nil, 0, "")
			p.awaits("Ready=False/Progressing")
			p.says(1, nil, 1, "")
			p.awaits(d.ready)
			kubectl(t, c, "", "wait", "--for=condition=Ready", "--timeout=60s", "-n", "ns", "trafficextension/elsewhere")
			version := p.get("{.metadata.resourceVersion}")
			marker := create(t, c, tr, chandler.KindTrafficExtension, "marker")
			marked := func() {
				t.Helper()
				for n := range 2 { // each at least a second after the one before
					p.says(1, nil, 1, "")
					marker.says(1, nil, n, "")
					marker.awaits([]string{"Ready=False/Progressing", "Ready=True/Ready"}[n])
				}
				if now := p.get("{.metadata.resourceVersion}"); now != version {
					t.Errorf("resource version %s has become %s although nothing changed", version, now)
				}
			}
			marked()
			stop()
			writer(t, client, tr)
			marked()
		})
	}
}

// Under a definition of ours that is older than the control plane, a status says
// what there is a place for.
func testOlderDefinition(t *testing.T, c *testkube.Cluster, client *kube.Client) {
	now, err := os.ReadFile(filepath.Join(crds, "trafficextensions.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	states := regexp.MustCompile(`(?m)^ +(state|inForce): \{type: string.*\n`)
	if len(states.FindAll(now, -1)) != 3 { // of the proxies two, and the rollout
		t.Fatal("the definition is another one than this test thinks")
	}
	kubectl(t, c, "", "delete", "crd", "trafficextensions.extensions.istio.io")
	apply(t, c, string(states.ReplaceAll(now, nil)))
	defined(t, c, "trafficextensions")
	tr := newTruth()
	writer(t, client, tr)
	p := create(t, c, tr, chandler.KindTrafficExtension, "before")
	p.proxies = 3
	p.says(1, nil, 2, "Envoy says: no such export")
	p.awaits("Ready=False/Rejected 2/3")
	if got := p.get("{.status.chandler.failures[*].node}: {.status.chandler.failures[*].message}"); got != "ns/gw-2: Envoy says: no such export" {
		t.Errorf("the failing proxies are %q", got)
	}
}

// A control plane is killed in the middle of writing a status, again and again,
// while what is true changes: a status that says Ready of the present generation
// is never one that was not, and what the next one says is the truth.
func TestFault_F6_KilledWhileWritingStatus(t *testing.T) {
	c, client := withPlugins(t)
	tr := newTruth()
	p := create(t, c, tr, chandler.KindWasmPlugin, "killed")
	for round := range 12 {
		generation := int64(round + 1)
		if round > 0 {
			kubectl(t, c, fmt.Sprintf(`{"spec": {"priority": %d}}`, round), "patch", "wasmplugin", "-n", "ns", "killed", "--type=merge", "--patch-file=/dev/stdin")
		}
		stop := writer(t, client, tr)
		// Odd generations are good, even ones are not.
		if good := round%2 == 0; good {
			p.says(generation, nil, 1, "")
		} else {
			p.says(generation, &chandler.Problem{Code: chandler.CodeNotFound, Message: "no such tag"}, 0, "")
		}
		for range round % 4 { // sooner or later in the write
			p.get("{.metadata.name}")
		}
		stop()
		p.honest()
	}
	writer(t, client, tr)
	p.awaits("ResolvedRefs=False/NotFound Programmed=False/NotFound Ready=False/NotFound")
	p.honest()
}

// honest holds what is shown against the rule: odd generations are good.
func (p *cast) honest() {
	p.t.Helper()
	shown := p.get(`{.metadata.generation} {.status.observedGeneration} {.status.conditions[?(@.type=="Ready")].status} {.status.conditions[?(@.type=="Ready")].observedGeneration} {.status.conditions[*].type}`)
	f := strings.Fields(shown)
	switch {
	case len(f) == 1: // never written yet
	case len(f) != 8:
		p.t.Errorf("half a status: %q", shown)
	case f[1] != f[3]:
		p.t.Errorf("two generations in one status: %q", shown)
	case (f[2] == "True") != strings.Contains("13579", f[1][len(f[1])-1:]):
		p.t.Errorf("not what was true of generation %s: %q", f[1], shown)
	}
}

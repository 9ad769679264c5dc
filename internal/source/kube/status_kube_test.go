//go:build kube

package kube_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/source/kube"
	"chandler.dev/chandler/internal/status"
	testkube "chandler.dev/chandler/internal/testenv/kube"
)

// statusRules is all that StatusWriter may do.
const statusRules = `
- {apiGroups: [extensions.istio.io], resources: [wasmplugins, trafficextensions], verbs: [list, watch]}
- {apiGroups: [extensions.istio.io], resources: [wasmplugins/status, trafficextensions/status], verbs: [patch]}
- {apiGroups: [events.k8s.io], resources: [events], verbs: [create]}`

const crds = "../../../deploy/crds/"

// truth is what a control plane would say.
type truth struct {
	mu      sync.Mutex
	views   map[string]control.ObjectView
	known   bool
	changed chan struct{}
	asked   int
}

func newTruth() *truth {
	return &truth{views: map[string]control.ObjectView{}, known: true, changed: make(chan struct{})}
}

func (t *truth) Objects(context.Context) ([]control.ObjectView, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked++
	if !t.known {
		return nil, errors.New("not known")
	}
	var views []control.ObjectView
	for _, v := range t.views {
		views = append(views, v)
	}
	return views, nil
}

func (t *truth) Changed() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed
}

func (t *truth) edit(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f()
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *truth) questions() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.asked
}

// cast is a plugin in the cluster, and what is true of it.
type cast struct {
	t       *testing.T
	c       *testkube.Cluster
	truth   *truth
	kind    string
	name    string
	in      status.Input
	uid     string
	module  chandler.ModuleDigest
	proxies int
	rollout *chandler.Rollout
}

// create makes a plugin in namespace ns of which nothing is true yet.
func create(t *testing.T, c *testkube.Cluster, tr *truth, kind, name string) *cast {
	t.Helper()
	spec := `{url: "oci://reg.example/auth:v1"}`
	if kind == chandler.KindTrafficExtension {
		spec = `{wasm: ` + spec + `}`
	}
	apply(t, c, fmt.Sprintf(`
apiVersion: extensions.istio.io/v1alpha1
kind: %s
metadata: {namespace: ns, name: %s}
spec: %s
`, kind, name, spec))
	p := &cast{t: t, c: c, truth: tr, kind: kind, name: name, proxies: 1}
	p.uid = p.get("{.metadata.uid}")
	return p
}

func (p *cast) get(jsonpath string) string {
	p.t.Helper()
	return kubectl(p.t, p.c, "", "get", p.kind, "-n", "ns", p.name, "-o", "jsonpath="+jsonpath)
}

// says makes what status.Join gives true: of a generation, that resolved unless
// problem is set, and is in force on so many of its proxies.
func (p *cast) says(generation int64, problem *chandler.Problem, inForce int, failing string) {
	key := chandler.Key{Kind: p.kind, Namespace: "ns", Name: p.name}
	in := status.Input{
		Generation: generation, Now: time.Now(), Resolve: status.Resolve{Problem: problem},
		Plugin: &chandler.Plugin{Key: key, UID: p.uid, Generation: generation}, Rollout: p.rollout,
	}
	if problem == nil {
		r := chandler.Release{
			Key: key, UID: p.uid, Generation: generation, Reference: "oci://reg.example/auth@sha256:" + strings.Repeat("ab", 32), ABI: "0.2.1",
			Artifact:   chandler.ArtifactDigest("sha256:" + strings.Repeat("ab", 32)),
			Program:    chandler.Program{Module: &chandler.Module{Digest: chandler.ModuleDigest("sha256:" + strings.Repeat("cd", 32)), Size: 4711}},
			ResolvedAt: time.Unix(1_700_000_000, 0),
		}.WithID()
		in.Target = &r
		for i := range p.proxies {
			s := chandler.AttachmentState{Key: key, UID: p.uid, Release: r.ID, State: chandler.StateFetching}
			switch {
			case i < inForce:
				s.State, s.InForce = chandler.StateInForce, r.ID
			case failing != "":
				s.State, s.Reason, s.Message = chandler.StateRejected, chandler.CodeRejected, failing
			}
			in.Proxies = append(in.Proxies, status.Proxy{Node: chandler.Node{Namespace: "ns", Name: fmt.Sprint("gw-", i)}, Connected: true, State: &s})
		}
	}
	v := control.ObjectView{Object: source.Object{Key: key, UID: p.uid, Generation: generation}, Status: status.Join(in)}
	p.truth.edit(func() { p.truth.views[key.String()] = v })
}

func (p *cast) forget() {
	p.truth.edit(func() { clear(p.truth.views) })
}

// conditions waits until they are as said: "Accepted=True/Accepted".
func (p *cast) awaits(want string) {
	p.t.Helper()
	eventually(p.t, func() bool { return strings.Contains(p.conditions(), want) })
}

func (p *cast) conditions() string {
	return p.get(`{range .status.conditions[*]}{.type}={.status}/{.reason} {end}{.status.chandler.ready}`)
}

func (p *cast) events(want string, n int) {
	p.t.Helper()
	eventually(p.t, func() bool { return strings.Count(p.describe(), want) >= n })
	if out := p.describe(); strings.Count(out, want) != n {
		p.t.Errorf("%q should be told %d times:\n%s", want, n, out)
	}
}

func (p *cast) describe() string {
	p.t.Helper()
	out := kubectl(p.t, p.c, "", "describe", p.kind, "-n", "ns", p.name)
	_, events, _ := strings.Cut(out, "Events:")
	return events
}

// writer runs a StatusWriter until stop.
func writer(t *testing.T, client *kube.Client, tr *truth) (stop func()) {
	t.Helper()
	w := kube.NewStatusWriter(kube.StatusConfig{
		Client: client, Objects: tr.Objects, Changed: tr.Changed, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// withPlugins gives a cluster that knows our kinds, and a client that may write
// statuses.
func withPlugins(t *testing.T) (*testkube.Cluster, *kube.Client) {
	c := testkube.Start(t, tools)
	kubectl(t, c, "", "create", "namespace", "ns")
	kubectl(t, c, "", "apply", "-f", crds+"wasmplugins.yaml", "-f", crds+"trafficextensions.yaml")
	defined(t, c, "wasmplugins", "trafficextensions")
	return c, account(t, c, "status", statusRules)
}

// TestStatus: statuses and Events in a cluster, by an account with their rules
// alone.
func TestStatus(t *testing.T) {
	c, client := withPlugins(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *testkube.Cluster, *kube.Client)
	}{
		{"seen by kubectl", testSeenByKubectl},
		{"a restart", testStatusRestart},
		{"changed by hand", testChangedByHand},
		{"the server restarts", testServerRestarts},
		{"a definition of others", testOthersDefinition},
		{"an older definition", testOlderDefinition},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, c, client) })
		kubectl(t, c, "", "delete", "wasmplugins,trafficextensions", "-n", "ns", "--all")
	}
}

// What people look at: columns, conditions to wait for, and what describe tells.
func testSeenByKubectl(t *testing.T, c *testkube.Cluster, client *kube.Client) {
	tr := newTruth()
	writer(t, client, tr)
	p := create(t, c, tr, chandler.KindWasmPlugin, "good")
	p.proxies = 3
	p.says(1, nil, 1, "")
	p.awaits("Accepted=True/Accepted ResolvedRefs=True/Resolved Programmed=False/Progressing Ready=False/Progressing 1/3")
	waited := make(chan error, 2)
	for _, condition := range []string{"Programmed", "Ready"} {
		go func() {
			_, err := c.Kubectl(t.Context(), "", "wait", "--for=condition="+condition, "--timeout=60s", "-n", "ns", "wasmplugin/good")
			waited <- err
		}()
	}
	p.says(1, nil, 2, "")
	p.awaits("2/3")
	if len(waited) > 0 {
		t.Error("kubectl wait ended although it is not in force everywhere")
	}
	p.says(1, nil, 3, "")
	for range 2 {
		if err := <-waited; err != nil {
			t.Error(err)
		}
	}
	if out := kubectl(t, c, "", "get", "wasmplugin", "-A"); !strings.Contains(out, "READY") || !strings.Contains(out, " 3/3 ") {
		t.Errorf("kubectl get:\n%s", out)
	}
	if out := kubectl(t, c, "", "get", "wasmplugin", "-A", "-o", "wide"); !strings.Contains(out, "sha256:"+strings.Repeat("cd", 32)) {
		t.Errorf("kubectl get -o wide:\n%s", out)
	}
	p.events("Resolved", 1)
	p.events("in force on all 3 proxies", 1)
	shownRollout(t, c, client, p)

	// An edit: what is shown of the generation before is no answer to who waits.
	kubectl(t, c, `{"spec": {"priority": 1}}`, "patch", "wasmplugin", "-n", "ns", "good", "--type=merge", "--patch-file=/dev/stdin")
	if _, err := c.Kubectl(t.Context(), "", "wait", "--for=condition=Ready", "--timeout=1s", "-n", "ns", "wasmplugin/good"); err == nil {
		t.Error("kubectl wait took the status of the generation before")
	}
	p.says(2, nil, 2, "Envoy says: no such export")
	p.awaits("Programmed=False/Rejected Ready=False/Rejected 2/3")
	p.events("Envoy says: no such export", 1)
	if got := p.get("{.status.chandler.failures[*].node}"); got != "ns/gw-2" {
		t.Errorf("the failing proxies are %q", got)
	}

	bad := create(t, c, tr, chandler.KindTrafficExtension, "bad")
	bad.says(1, &chandler.Problem{Code: chandler.CodeNotFound, Field: "spec.wasm.url", Message: "reg.example has no tag v1"}, 0, "")
	bad.awaits("ResolvedRefs=False/NotFound Programmed=False/NotFound Ready=False/NotFound 0/0")
	kubectl(t, c, "", "wait", "--for=condition=Ready=False", "--timeout=60s", "-n", "ns", "trafficextension/bad")
	bad.events("reg.example has no tag v1", 1)
}

// A control plane that starts writes nothing where all is as it was, tells nothing
// again, and leaves the times of conditions.
// shownRollout: while a change comes in steps, kubectl and its plugin show where it is.
func shownRollout(t *testing.T, c *testkube.Cluster, client *kube.Client, p *cast) {
	t.Helper()
	p.rollout = &chandler.Rollout{
		State: chandler.RolloutProgressing, Plan: &chandler.RolloutPlan{Steps: []chandler.RolloutStep{{Count: 1}, {Percent: 100}}},
		Proxies: 3, Chosen: 1, Updated: 1,
	}
	p.says(1, nil, 3, "")
	p.awaits("RolloutProgressing")
	if out := kubectl(t, c, "", "get", "wasmplugin", "-A"); !strings.Contains(out, "STATE") || !strings.Contains(out, " RolloutProgressing ") {
		t.Errorf("kubectl get:\n%s", out)
	}
	if out := kubectl(t, c, "", "get", "wasmplugin", "-A", "-o", "wide"); !strings.Contains(out, " Progressing ") || !strings.Contains(out, " 1/2") {
		t.Errorf("kubectl get -o wide:\n%s", out)
	}
	views, err := client.Shown(t.Context(), kube.Query{Namespace: "ns", Name: p.name})
	if err != nil || len(views) != 1 {
		t.Fatal(views, err)
	}
	if r := views[0].Status.Rollout; r == nil || r.State != chandler.RolloutProgressing || r.Step != 0 || len(r.Plan.Steps) != 2 {
		t.Errorf("kubectl chandler shows %+v", r)
	}
	p.rollout = nil
	p.says(1, nil, 3, "")
	p.awaits("Ready=True")
}

func testStatusRestart(t *testing.T, c *testkube.Cluster, client *kube.Client) {
	tr := newTruth()
	stop := writer(t, client, tr)
	p, other := create(t, c, tr, chandler.KindWasmPlugin, "same"), create(t, c, tr, chandler.KindWasmPlugin, "other")
	p.says(1, nil, 1, "")
	p.awaits("Ready=True/Ready 1/1")
	p.events("Programmed", 1)
	stop()
	before := p.get("{.metadata.resourceVersion} {.status}")

	tr.edit(func() { tr.known = false })
	writer(t, client, tr)
	asked := tr.questions()
	eventually(t, func() bool { return tr.questions() > asked+2 })
	if after := p.get("{.metadata.resourceVersion} {.status}"); after != before {
		t.Errorf("written before anything was known:\n%s\nbefore:\n%s", after, before)
	}
	tr.edit(func() { tr.known = true })
	p.says(1, nil, 1, "")
	other.says(1, nil, 1, "")
	other.awaits("Ready=True/Ready 1/1")
	p.says(1, nil, 1, "")
	other.says(1, nil, 0, "")
	other.awaits("Ready=False/Progressing 0/1")
	if after := p.get("{.metadata.resourceVersion} {.status}"); after != before {
		t.Errorf("written again:\n%s\nbefore:\n%s", after, before)
	}
	p.events("Programmed", 1)
}

// What somebody writes over ours is put right; what he writes beside it stays; and
// another resource of the same name gets nothing of the first.
func testChangedByHand(t *testing.T, c *testkube.Cluster, client *kube.Client) {
	tr := newTruth()
	writer(t, client, tr)
	p := create(t, c, tr, chandler.KindWasmPlugin, "wiped")
	p.says(1, nil, 1, "")
	p.awaits("Ready=True/Ready 1/1")
	patch := func(body string) {
		t.Helper()
		kubectl(t, c, body, "patch", "wasmplugin", "-n", "ns", "wiped", "--subresource=status", "--type=merge", "--patch-file=/dev/stdin")
	}
	patch(`{"status": null}`)
	p.awaits("Ready=True/Ready 1/1")
	patch(`{"status": {"conditions": [{"type": "Ready", "status": "False", "reason": "Forged"}], "validationMessages": [{"level": "INFO"}]}}`)
	p.awaits("Accepted=True/Accepted ResolvedRefs=True/Resolved Programmed=True/Programmed Ready=True/Ready 1/1")
	if got := p.get("{.status.validationMessages[*].level}"); got != "INFO" {
		t.Errorf("Istio's messages have become %q", got)
	}

	kubectl(t, c, "", "delete", "wasmplugin", "-n", "ns", "wiped")
	again := create(t, c, tr, chandler.KindWasmPlugin, "wiped")
	marker := create(t, c, tr, chandler.KindWasmPlugin, "marker")
	p.says(1, nil, 0, "") // of the first uid
	marker.says(1, nil, 1, "")
	marker.awaits("Ready=True/Ready 1/1")
	if got := again.get("{.status}"); got != "" {
		t.Errorf("the second resource has the first one's status: %s", got)
	}
	again.says(1, nil, 1, "")
	again.awaits("Ready=True/Ready 1/1")
}

// The API server is away while things change: afterwards what is true is shown.
func testServerRestarts(t *testing.T, c *testkube.Cluster, client *kube.Client) {
	tr := newTruth()
	writer(t, client, tr)
	p := create(t, c, tr, chandler.KindWasmPlugin, "while-away")
	p.says(1, nil, 0, "")
	p.awaits("Ready=False/Progressing 0/1")
	if err := c.APIServer.Kill(); err != nil {
		t.Fatal(err)
	}
	p.says(1, nil, 1, "")
	asked := tr.questions()
	p.says(1, nil, 0, "it fell")
	eventually(t, func() bool { return tr.questions() > asked })
	if err := c.APIServer.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.awaits("Programmed=False/Rejected Ready=False/Rejected 0/1")
	p.says(1, nil, 1, "")
	p.awaits("Ready=True/Ready 1/1")
}

//go:build kube

package kube_test

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/source/kube"
	testkube "chandler.dev/chandler/internal/testenv/kube"
)

// sourceRules is all that a Source may do, but for secrets.
const sourceRules = `
- {apiGroups: [extensions.istio.io], resources: [wasmplugins, trafficextensions], verbs: [get, list, watch]}
- {apiGroups: [apiextensions.k8s.io], resources: [customresourcedefinitions], verbs: [get, watch], resourceNames: [wasmplugins.extensions.istio.io, trafficextensions.extensions.istio.io]}
- {apiGroups: [""], resources: [configmaps], verbs: [get, watch], resourceNames: [istio-ca-root-cert]}`

// watched is a Source that runs.
type watched struct {
	t    *testing.T
	log  *lines
	stop func()

	mu    sync.Mutex
	snaps []source.Snapshot
}

// watchPlugins runs a Source until the test ends, or stop is called.
func watchPlugins(t *testing.T, client *kube.Client, cfg kube.Source) *watched {
	t.Helper()
	w := &watched{t: t, log: &lines{}}
	cfg.Client, cfg.Log = client, slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- cfg.Run(ctx, func(s source.Snapshot) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.snaps = append(w.snaps, s)
		})
	}()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		w.stop()
		if t.Failed() {
			t.Logf("the source's log:\n%s", w.log)
		}
	})
	return w
}

// shown is a snapshot in short: the objects that are in force with the generation
// of each, and "!" after those whose newest text is refused.
func shown(s source.Snapshot) string {
	var out []string
	for _, o := range s.Objects {
		name := o.Namespace + "/" + o.Name
		if o.Plugin != nil {
			name += fmt.Sprint(":", o.Plugin.Generation)
		}
		if len(o.Problems) > 0 {
			name += "!"
		}
		out = append(out, name)
	}
	return strings.Join(out, " ")
}

// await waits until the newest snapshot is so, and gives it.
func (w *watched) await(want string) source.Snapshot {
	w.t.Helper()
	return w.awaitSo(want, func(s source.Snapshot) bool { return shown(s) == want })
}

func (w *watched) awaitSo(what string, so func(source.Snapshot) bool) source.Snapshot {
	w.t.Helper()
	var last source.Snapshot
	for end := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) { // between looks
		all := w.all()
		if len(all) > 0 {
			if last = all[len(all)-1]; so(last) {
				return last
			}
		}
		if time.Now().After(end) {
			w.t.Fatalf("%d snapshots, the last %q; want %q", len(all), shown(last), what)
		}
	}
}

func (w *watched) all() []source.Snapshot {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.snaps
}

// never fails if a snapshot from the n-th on was so.
func (w *watched) never(n int, what string, so func(source.Snapshot) bool) {
	w.t.Helper()
	for i, s := range w.all() {
		if i >= n && so(s) {
			w.t.Errorf("snapshot %d of %d is %q: %s", i, len(w.all()), shown(s), what)
		}
	}
}

func wasm(namespace, name, url string, more ...string) string {
	text := fmt.Sprintf("---\napiVersion: extensions.istio.io/v1alpha1\nkind: WasmPlugin\nmetadata: {name: %s, namespace: %s, labels: {LABELS}}\nspec:\n  url: %s\n", name, namespace, url)
	labels := ""
	for _, line := range more {
		if l, ok := strings.CutPrefix(line, "labels: "); ok {
			labels = l
			continue
		}
		text += "  " + line + "\n"
	}
	return strings.Replace(text, "LABELS", labels, 1)
}

const url, badURL = "reg.example/p:v1", "oci://reg.example/UPPER:v1"

// TestSource: plugins of a real API server, with the rights it says it needs.
func TestSource(t *testing.T) {
	c := testkube.Start(t, tools)
	client := account(t, c, "plugins", sourceRules)
	kubectl(t, c, "", "create", "namespace", "ns")
	w := watchPlugins(t, client, kube.Source{})
	w.await("") // no definitions: nothing, and not no answer
	kubectl(t, c, "", "apply", "-f", crds+"wasmplugins.yaml")
	defined(t, c, "wasmplugins")
	apply(t, c, wasm("ns", "a", url))
	s := w.await("ns/a:1")
	if o := s.Objects[0]; o.UID == "" || o.Created.IsZero() || o.Plugin.UID != o.UID || !o.Plugin.Created.Equal(o.Created) || len(o.Annotations) > 0 || len(o.Warnings) > 0 {
		t.Errorf("the object is %+v", o)
	}
	kubectl(t, c, "", "apply", "-f", crds+"trafficextensions.yaml")
	defined(t, c, "trafficextensions")
	apply(t, c, "{apiVersion: extensions.istio.io/v1alpha1, kind: TrafficExtension, metadata: {name: t, namespace: ns}, spec: {lua: {inlineCode: 'x = 1'}}}")
	w.await("ns/a:1 ns/t:1")

	t.Run("status is nobody's wish", func(t *testing.T) {
		n := len(w.all())
		kubectl(t, c, "", "patch", "wasmplugin", "-n", "ns", "a", "--subresource=status", "--type=merge", "-p", `{"status":{"observedGeneration":1}}`)
		apply(t, c, wasm("ns", "b", url))
		w.await("ns/a:1 ns/b:1 ns/t:1")
		if len(w.all()) != n+1 {
			t.Errorf("%d snapshots of a status and a new plugin", len(w.all())-n)
		}
	})
	t.Run("a refused text", func(t *testing.T) {
		apply(t, c, wasm("ns", "a", badURL))
		s := w.await("ns/a:1! ns/b:1 ns/t:1")
		if o := s.Objects[0]; o.Generation != 2 || o.Problems[0].Field != "spec.url" {
			t.Errorf("%+v", o)
		}
		anew := watchPlugins(t, client, kube.Source{})
		anew.await("ns/a! ns/b:1 ns/t:1") // what is in force is in the records
		anew.stop()
		apply(t, c, wasm("ns", "a", url, "priority: 3"))
		w.await("ns/a:3 ns/b:1 ns/t:1")
	})
	t.Run("deleted and made anew", func(t *testing.T) {
		before := w.await("ns/a:3 ns/b:1 ns/t:1").Objects[0].UID
		kubectl(t, c, "", "delete", "wasmplugins.extensions.istio.io", "-n", "ns", "a")
		w.await("ns/b:1 ns/t:1")
		apply(t, c, wasm("ns", "a", url))
		if o := w.await("ns/a:1 ns/b:1 ns/t:1").Objects[0]; o.UID == before {
			t.Error("another of the same name has the uid of the first")
		}
	})
	t.Run("two owners", func(t *testing.T) { twoOwners(t, c, client, w) })
	t.Run("a kind that is no longer defined", func(t *testing.T) {
		kubectl(t, c, "", "delete", "crd", "wasmplugins.extensions.istio.io")
		w.await("ns/t:1")
		kubectl(t, c, "", "apply", "-f", crds+"wasmplugins.yaml")
		defined(t, c, "wasmplugins")
		apply(t, c, wasm("ns", "a", url))
		w.await("ns/a:1 ns/t:1")
	})
	if strings.Contains(w.log.String(), "level=ERROR") {
		t.Errorf("the log has errors:\n%s", w.log)
	}
}

// With Istio's definition, what says nothing is Istio's, unless the operator says
// otherwise, or it was ours before; with ours it is ours. What says a revision is
// always that one's.
func twoOwners(t *testing.T, c *testkube.Cluster, client *kube.Client, ours *watched) {
	apply(t, c, wasm("ns", "mine", url, "labels: istio.io/rev: chandler")+wasm("ns", "canary", url, "labels: istio.io/rev: canary"))
	const all, labelled = "ns/a:1 ns/b:1 ns/mine:1 ns/t:1", "ns/mine:1 ns/t:1"
	ours.await(all)
	so := len(ours.all())
	bold := watchPlugins(t, client, kube.Source{OwnUnlabelled: true})
	bold.await(all)
	kubectl(t, c, "", "label", "crd", "wasmplugins.extensions.istio.io", "app.kubernetes.io/part-of-")
	fresh := watchPlugins(t, client, kube.Source{})
	fresh.await(labelled) // trafficextensions are still defined by us
	// Definition and plugins are watched apart, in no order.
	eventually(t, func() bool { return strings.Contains(ours.log.String(), `msg="Istio is here`) })
	apply(t, c, wasm("ns", "late", url, ""))
	bold.await("ns/a:1 ns/b:1 ns/late:1 ns/mine:1 ns/t:1")
	kubectl(t, c, "", "delete", "wasmplugin", "-n", "ns", "late")
	bold.await(all)
	ours.never(so, "a change of what was ours, or what came after Istio", func(source.Snapshot) bool { return true })
	if !strings.Contains(ours.log.String(), "--own-unlabelled") {
		t.Errorf("nothing is said of it:\n%s", ours.log)
	}
	fresh.never(0, "an unlabelled one", func(s source.Snapshot) bool { return strings.Contains(shown(s), "ns/a") })
	kubectl(t, c, "", "label", "wasmplugin", "-n", "ns", "b", "istio.io/rev=chandler")
	fresh.await("ns/b:1 ns/mine:1 ns/t:1")
	ours.await(all)
	kubectl(t, c, "", "label", "wasmplugin", "-n", "ns", "b", "istio.io/rev=canary", "--overwrite")
	fresh.await(labelled)
	bold.await("ns/a:1 ns/mine:1 ns/t:1")
	ours.await("ns/a:1 ns/mine:1 ns/t:1")
	bold.never(0, "of another revision", func(s source.Snapshot) bool { return strings.Contains(shown(s), "canary") })
	kubectl(t, c, "", "patch", "wasmplugin", "-n", "ns", "a", "--subresource=status", "--type=merge", "-p", `{"status":{"chandler":{"ready":"1/1"}}}`)
	fresh.await("ns/a:1 ns/mine:1 ns/t:1")
	kubectl(t, c, "", "label", "crd", "wasmplugins.extensions.istio.io", "app.kubernetes.io/part-of=chandler")
	kubectl(t, c, "", "delete", "wasmplugin", "-n", "ns", "mine", "canary", "b")
	ours.await("ns/a:1 ns/t:1")
	bold.stop()
	fresh.stop()
	so = len(ours.all())

	// An istiod is seen too, even with our definitions.
	kubectl(t, c, "", "create", "namespace", "istio-system")
	kubectl(t, c, "", "create", "configmap", "-n", "istio-system", "istio-ca-root-cert")
	beside := watchPlugins(t, client, kube.Source{})
	beside.await("ns/a:1") // by its status
	kubectl(t, c, "", "delete", "configmap", "-n", "istio-system", "istio-ca-root-cert")
	beside.await("ns/a:1 ns/t:1")
	beside.stop()
	ours.never(so, "a change", func(source.Snapshot) bool { return true })

	// Who may not see the definition leaves alone what may be another's.
	blind := watchPlugins(t, account(t, c, "blind", strings.SplitN(sourceRules, "\n- {apiGroups: [apiext", 2)[0]), kube.Source{})
	blind.await("ns/a:1")
	if !strings.Contains(blind.log.String(), "it may not be seen whether Istio is here") {
		t.Errorf("nothing is said of it:\n%s", blind.log)
	}
	blind.stop()
}

//go:build kube

package kube_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/record/recordtest"
	"chandler.dev/chandler/internal/source/kube"
	testkube "chandler.dev/chandler/internal/testenv/kube"
)

const tools = "../../../.tools"

// recordRules is all that Records may do.
const recordRules = `
- {apiGroups: [apps], resources: [controllerrevisions], verbs: [get, list, watch, create, patch, delete]}`

// account makes a service account with exactly these rules (and a path of no use, by
// which is seen when they hold), and gives a client of it.
func account(t *testing.T, c *testkube.Cluster, name, rules string) *kube.Client {
	t.Helper()
	config, err := c.ServiceAccount(t.Context(), "default", name)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, c, fmt.Sprintf(`
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: %[1]s}
rules: %[2]s
- {nonResourceURLs: [/granted/%[1]s], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: %[1]s}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: %[1]s}
subjects: [{kind: ServiceAccount, namespace: default, name: %[1]s}]
`, name, rules))
	eventually(t, func() bool {
		_, err := c.KubectlAs(t.Context(), config, "", "auth", "can-i", "get", "/granted/"+name)
		return err == nil
	})
	client, err := kube.Connect(config, "", "test")
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func apply(t *testing.T, c *testkube.Cluster, manifest string) {
	t.Helper()
	kubectl(t, c, manifest, "apply", "-f", "-")
}

func kubectl(t *testing.T, c *testkube.Cluster, stdin string, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(t.Context(), stdin, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestRecords: the records in a cluster, by an account with their rules alone.
func TestRecords(t *testing.T) {
	c := testkube.Start(t, tools)
	kubectl(t, c, "", "create", "namespace", "ns")
	client := account(t, c, "records", recordRules)

	recordtest.TestStore(t, func(t *testing.T) record.Store {
		kubectl(t, c, "", "delete", "controllerrevisions", "-n", "ns", "--all")
		return kube.NewRecords(client, nil)
	})
	for name, test := range map[string]func(*testing.T, *testkube.Cluster, *kube.Client){
		"an owned release":       testOwned,
		"found by another":       testFound,
		"two that write":         testTwoWriters,
		"what is no record":      testForeign,
		"too large":              testTooLarge,
		"no server at the start": testNoServer,
		"watched":                testWatched,
		"of a later version":     testLater,
	} {
		t.Run(name, func(t *testing.T) {
			kubectl(t, c, "", "delete", "controllerrevisions", "-n", "ns", "--all")
			test(t, c, client)
		})
	}
}

// Deleting the plugin collects its releases, and not its rollout.
func testOwned(t *testing.T, c *testkube.Cluster, client *kube.Client) {
	s := kube.NewRecords(client, nil)
	put(t, s, 1)
	want := "release apps/v1:WasmPlugin/p/u true 1"
	got := kubectl(t, c, "", "get", "controllerrevisions", "-n", "ns", "-l", "chandler.dev/plugin=p", "-o",
		`go-template={{range .items}}{{index .metadata.labels "chandler.dev/record"}} apps/v1:{{range .metadata.ownerReferences}}{{.kind}}/{{.name}}/{{.uid}} {{.controller}}{{end}} {{.revision}}
{{end}}`)
	if !strings.Contains(got, want) || !strings.Contains(got, "rollout apps/v1: 1") {
		t.Errorf("the objects are\n%swant a line %q", got, want)
	}
}

func put(t *testing.T, s record.Store, n int64) record.Rollout {
	t.Helper()
	if err := s.PutRelease(t.Context(), recordtest.Release(n)); err != nil {
		t.Fatal(err)
	}
	r, err := s.SwapRollout(t.Context(), nil, recordtest.Rollout(uint64(n)))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A control plane that starts finds what the last one left, and goes on from it.
func testFound(t *testing.T, _ *testkube.Cluster, client *kube.Client) {
	written := put(t, kube.NewRecords(client, nil), 1)
	s := kube.NewRecords(client, nil)
	releases, err := s.Releases(t.Context())
	if err != nil || len(releases) != 1 || releases[0].ID != recordtest.Release(1).ID {
		t.Fatalf("releases %v, %v", releases, err)
	}
	rollouts, err := s.Rollouts(t.Context())
	if err != nil || len(rollouts) != 1 || rollouts[0].Revision != written.Revision || rollouts[0].Release != releases[0].ID {
		t.Fatalf("rollouts %+v, %v; want %+v", rollouts, err, written)
	}
	if _, err := s.SwapRollout(t.Context(), &rollouts[0], recordtest.Rollout(2)); err != nil {
		t.Error(err)
	}
	if err := s.DeleteRelease(t.Context(), releases[0].ID); err != nil {
		t.Error(err)
	}
	if err := s.DeleteRollout(t.Context(), "u"); err != nil {
		t.Error(err)
	}
	if left, err := kube.NewRecords(client, nil).Releases(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("left after the deletion: %v, %v", left, err)
	}
}

// What a later control plane says in a rollout is still there when this one, which has
// listed or watched it, has changed it.
func testLater(t *testing.T, c *testkube.Cluster, client *kube.Client) {
	put(t, kube.NewRecords(client, nil), 1)
	const annotation = `go-template={{range .items}}{{.metadata.name}} {{index .metadata.annotations "chandler.dev/rollout"}}{{end}}`
	list := []string{"get", "controllerrevisions", "-n", "ns", "-l", "chandler.dev/record=rollout", "-o", annotation}
	name, text, _ := strings.Cut(kubectl(t, c, "", list...), " ")
	kubectl(t, c, "", "annotate", "--overwrite", "controllerrevision", "-n", "ns", name,
		"chandler.dev/rollout="+strings.Replace(text, "{", `{"Colour":"red",`, 1))
	s := kube.NewRecords(client, nil)
	rollouts, err := s.Rollouts(t.Context())
	if err != nil || len(rollouts) != 1 {
		t.Fatalf("rollouts %+v, %v", rollouts, err)
	}
	for n := uint64(2); n < 4; n++ {
		if rollouts[0], err = s.SwapRollout(t.Context(), &rollouts[0], recordtest.Rollout(n)); err != nil {
			t.Fatal(err)
		}
		if got := kubectl(t, c, "", list...); !strings.HasSuffix(got, `,"Colour":"red"}`) || !strings.Contains(got, fmt.Sprintf(`"Sequence":%d`, n)) {
			t.Errorf("the rollout is %s", got)
		}
	}
}

// Of two control planes that write one wins, and the other one finds out what is
// there instead.
func testTwoWriters(t *testing.T, _ *testkube.Cluster, client *kube.Client) {
	a, b := kube.NewRecords(client, nil), kube.NewRecords(client, nil)
	first := put(t, a, 1)
	if _, err := b.SwapRollout(t.Context(), nil, recordtest.Rollout(5)); !errors.Is(err, record.ErrConflict) {
		t.Fatalf("a second creation: %v", err)
	}
	second, err := b.SwapRollout(t.Context(), &first, recordtest.Rollout(2))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.SwapRollout(t.Context(), &first, recordtest.Rollout(3)); !errors.Is(err, record.ErrConflict) {
		t.Fatalf("a swap from what was overtaken: %v", err)
	}
	all, err := a.Rollouts(t.Context())
	if err != nil || len(all) != 1 || all[0].Sequence != 2 || all[0].Revision != second.Revision {
		t.Errorf("the loser knows %+v, %v; want %+v", all, err, second)
	}
}

// What is no record, or of another version, or of another namespace, is passed by
// with a line in the log, and stays.
func testForeign(t *testing.T, c *testkube.Cluster, client *kube.Client) {
	put(t, kube.NewRecords(client, nil), 1)
	copied := recordtest.Release(2)
	copied.Namespace = "elsewhere"
	elsewhere, err := json.Marshal(copied.WithID())
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{"torn": `{"Format": 1, "ID": "x"}`, "newer": `{"Format": 2}`, "elsewhere": string(elsewhere)} {
		apply(t, c, fmt.Sprintf(`
apiVersion: apps/v1
kind: ControllerRevision
metadata: {namespace: ns, name: %s, labels: {chandler.dev/record: release}}
revision: 1
data: %s
`, name, data))
	}
	apply(t, c, `
apiVersion: apps/v1
kind: ControllerRevision
metadata: {namespace: ns, name: rollout, labels: {chandler.dev/record: rollout}, annotations: {chandler.dev/rollout: '{"Format": 2}'}}
revision: 1
data: {}
`)
	var log lines
	s := kube.NewRecords(client, slog.New(slog.NewTextHandler(&log, nil)))
	releases, err := s.Releases(t.Context())
	if err != nil || len(releases) != 1 {
		t.Errorf("releases %v, %v; want the good one", releases, err)
	}
	if rollouts, err := s.Rollouts(t.Context()); err != nil || len(rollouts) != 1 {
		t.Errorf("rollouts %v, %v; want the good one", rollouts, err)
	}
	if n := strings.Count(log.String(), "a record is passed by"); n != 4 {
		t.Errorf("%d lines in the log, want 4:\n%s", n, log.String())
	}
	if n := strings.Count(kubectl(t, c, "", "get", "controllerrevisions", "-n", "ns", "-o", "name"), "\n"); n != 6 {
		t.Errorf("%d objects are left, want 6", n)
	}
}

// lines is a log to look at.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A release that Kubernetes does not keep is the user's to mend, in words.
func testTooLarge(t *testing.T, _ *testkube.Cluster, client *kube.Client) {
	s := kube.NewRecords(client, nil)
	fits := recordtest.Release(1)
	fits.Config = []byte(`"` + strings.Repeat("x", 700<<10) + `"`)
	if err := s.PutRelease(t.Context(), fits.WithID()); err != nil {
		t.Errorf("of 700 KiB: %v", err)
	}
	large := recordtest.Release(2)
	large.Config = []byte(`"` + strings.Repeat("x", 800<<10) + `"`)
	var p *chandler.Problem
	if err := s.PutRelease(t.Context(), large.WithID()); !errors.As(err, &p) || p.Code != chandler.CodeConfigSize || !strings.Contains(p.Message, "Kubernetes keeps up to 1048576") {
		t.Errorf("of 800 KiB: %v", err)
	}
}

// Who starts before the API server waits for it.
func testNoServer(t *testing.T, c *testkube.Cluster, client *kube.Client) {
	put(t, kube.NewRecords(client, nil), 1)
	if err := c.APIServer.Kill(); err != nil {
		t.Fatal(err)
	}
	var log lines
	s := kube.NewRecords(client, slog.New(slog.NewTextHandler(&log, nil)))
	type answer struct {
		releases []chandler.Release
		err      error
	}
	got := make(chan answer, 1)
	go func() {
		releases, err := s.Releases(t.Context())
		got <- answer{releases, err}
	}()
	eventually(t, func() bool { return strings.Contains(log.String(), "cannot be read yet") })
	if err := c.APIServer.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if a := <-got; a.err != nil || len(a.releases) != 1 {
		t.Errorf("releases %v, %v; want one", a.releases, a.err)
	}
	if _, err := s.Rollouts(context.Background()); err != nil {
		t.Error(err)
	}
}

// A replica is told of what another one writes, and of what was deleted while the
// API server was away.
func testWatched(t *testing.T, c *testkube.Cluster, client *kube.Client) {
	writer, reader := kube.NewRecords(client, nil), kube.NewRecords(client, nil)
	first := put(t, writer, 1)
	ctx, cancel := context.WithCancel(t.Context())
	changes, ended := make(chan record.Change, 100), make(chan error, 1)
	go func() { ended <- reader.Watch(ctx, func(ch record.Change) { changes <- ch }) }()
	told := map[string]bool{}
	expect := func(want ...string) {
		t.Helper()
		for _, w := range want {
			for !told[w] {
				select {
				case ch := <-changes:
					told[change(ch)] = true
				case <-time.After(time.Minute):
					t.Fatalf("told of %v, not of %q", slices.Sorted(maps.Keys(told)), w)
				}
			}
		}
	}
	one, two := recordtest.Release(1).ID.Short(), recordtest.Release(2).ID.Short()
	expect("release "+one, "rollout 1")

	if err := writer.PutRelease(t.Context(), recordtest.Release(2)); err != nil {
		t.Fatal(err)
	}
	second, err := writer.SwapRollout(t.Context(), &first, recordtest.Rollout(2))
	if err != nil {
		t.Fatal(err)
	}
	expect("release "+two, "rollout 2")
	if all, err := reader.Rollouts(t.Context()); err != nil || len(all) != 1 || all[0].Revision != second.Revision {
		t.Errorf("the reader knows %+v, %v", all, err)
	}
	if err := writer.DeleteRelease(t.Context(), recordtest.Release(1).ID); err != nil {
		t.Fatal(err)
	}
	expect("release " + one + " deleted")

	if err := c.APIServer.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.APIServer.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := writer.DeleteRollout(t.Context(), "u"); err != nil {
		t.Fatal(err)
	}
	expect("rollout 2 deleted")
	if err := reader.DeleteRelease(t.Context(), recordtest.Release(2).ID); err != nil {
		t.Error(err)
	}
	expect("release " + two + " deleted")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func change(ch record.Change) string {
	s := ""
	if ch.Release != nil {
		s = "release " + ch.Release.ID.Short()
	} else {
		s = fmt.Sprint("rollout ", ch.Rollout.Sequence)
	}
	if ch.Deleted {
		s += " deleted"
	}
	return s
}

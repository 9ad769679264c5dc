package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/registry"
)

// What releases have written, a folder each, with the control plane's data and the
// agent's. TestSkewRecord makes them, and holds that they are what those releases
// write.
const recordings = "testdata/releases"

// usualData is where the recorded data is said to have been.
const usualData = "/var/lib/chandler"

// registryHost is the recordings' registry.
const registryHost = "registry.example"

var ends = regexp.MustCompile(`"(until|expires)":"[^"]*"`)

// hostsFor gives the folder by which the world's registry stands in for that host.
func (w *world) hostsFor(host string) string {
	w.t.Helper()
	dir := filepath.Join(w.dir, "hosts")
	if err := os.MkdirAll(filepath.Join(dir, host), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, host, "hosts.toml"), fmt.Appendf(nil, "server = \"http://%s\"\n", w.registry.Addr), 0o644); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

// recorded is what an agent of a release kept of, in the order of names: a change in
// steps that has not come to it, a script, a plugin, and one with a secret.
var recorded = []string{"c1", "hidden", "l1", "n2"}

// Data of every release is read as what it meant: an agent serves it without a control
// plane; a control plane goes on from it, with the same releases and sequences, without
// a word to the registry or to the agent, and takes a change; who was enrolled is.
// Nothing of it is set aside.
func TestDataOfReleases(t *testing.T) {
	t.Parallel()
	for _, release := range releaseNames(t) {
		t.Run(release, func(t *testing.T) {
			t.Parallel()
			readsData(t, filepath.Join(recordings, release))
		})
	}
}

// releaseNames gives the releases of tools/releases.txt, oldest first.
func releaseNames(t testing.TB) (names []string) {
	t.Helper()
	list, err := os.ReadFile("../../tools/releases.txt")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(list)) {
		if fields := strings.Fields(line); len(fields) == 2 && fields[0] != "#" {
			names = append(names, fields[0])
		}
	}
	if len(names) < 2 {
		t.Fatalf("the releases are %q", names)
	}
	return names
}

func readsData(t *testing.T, recording string) {
	w := uncontrolled(t, enrolment(t)...)
	w.flags = append(w.flags, "--hosts-dir", w.hostsFor(registryHost))
	control, data := filepath.Join(w.dir, "control"), filepath.Join(w.dir, "agent")
	copied(t, control, filepath.Join(recording, "control"), usualData, control)
	copied(t, data, filepath.Join(recording, "agent"), usualData, data)
	// Machines whose certificates have ended are forgotten after a month.
	for name, text := range tree(t, filepath.Join(control, "nodes")) {
		text = ends.ReplaceAllString(text, time.Now().UTC().Add(time.Hour).Format(`"$1":"`+time.RFC3339+`"`))
		if err := os.WriteFile(filepath.Join(control, "nodes", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := w.places()
	w.startControl()
	if out, ok := w.cli("", "node", "list", "-A"); !ok || !strings.Contains(out, "edge") {
		t.Errorf("node list: %s", out)
	}
	token := w.token("-n", "edge")
	if err := w.control.stop(); err != nil {
		t.Fatal(err)
	}

	port := freePort(t)
	p := w.startAgent(node{name: "a", flags: append(token, "--data", data)}, w.gateway(listener{port: port, name: "in"}))
	hasAll(t, port, recorded...)
	w.startControl()
	eventually(t, 60*time.Second, "the agent is back", func() (bool, string) {
		out, _ := w.cli("", "describe", "wasmplugin", "p", "-n", "edge")
		return strings.Contains(out, "InForce"), out
	})
	if now := w.places(); !maps.Equal(now, before) || len(now) != 5 {
		t.Errorf("assigned is %+v, and was %+v", now, before)
	}
	if bytes := w.everSent(); bytes != 0 {
		t.Errorf("the agent was sent %v bytes again", bytes)
	}
	w.submit(strings.ReplaceAll(tree(t, filepath.Join(control, "applied"))["wasmplugin_edge_p.yaml"], "n2", "n3"))
	hasAll(t, port, "c1", "hidden", "l1", "n3")
	if now := w.places(); now["p"].Sequence != before["p"].Sequence+1 || now["c"] != before["c"] {
		t.Errorf("after a change of p there is %+v, and was %+v", now, before)
	}
	if out, code := p.agentCLI("bypass", "out", "--undo", "--data", data); code != 0 {
		t.Errorf("exit code %d: %s", code, out)
	}
	hasAll(t, port, "c1", "hidden", "l1", "n3", "out")
	if asked := w.registry.Counts(); asked != (registry.Counts{}) {
		t.Errorf("the registry was asked: %+v", asked)
	}
	for _, dir := range []string{control, data} {
		for name := range tree(t, dir) {
			if strings.Contains(name, "aside") || strings.Contains(name, "lastgood.") {
				t.Errorf("%s was set aside in %s", name, dir)
			}
		}
	}
}

// hasAll waits until a request has gone through these plugins, in any order.
func hasAll(t *testing.T, port int, want ...string) {
	t.Helper()
	eventually(t, 60*time.Second, fmt.Sprintf("plugins %q", want), func() (bool, string) {
		a, err := request(fresh, http.MethodGet, port, "/", nil)
		if err != nil {
			return false, err.Error()
		}
		got := slices.Sorted(slices.Values(appended(a)))
		return slices.Equal(got, want), fmt.Sprintf("status %d, plugins %q", a.code, got)
	})
}

// copied copies data but for locks, and says in it that it was at another place.
func copied(t *testing.T, to, from, was, is string) {
	t.Helper()
	for name, b := range tree(t, from) {
		if filepath.Base(name) == "lock" {
			continue
		}
		b = strings.ReplaceAll(b, was, is)
		path := filepath.Join(to, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// tree reads all files below a folder.
func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		all[name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// place is where a plugin is on its way: which release of it was assigned, and as the
// how manieth.
type place struct {
	Release  chandler.ReleaseID
	Sequence uint64
}

// places tells it of the plugins that the control plane has records of.
func (w *world) places() map[string]place {
	w.t.Helper()
	files, err := filepath.Glob(filepath.Join(w.dir, "control", "records", "rollouts", "*.json"))
	if err != nil {
		w.t.Fatal(err)
	}
	all := map[string]place{}
	for _, file := range files {
		var r struct {
			Name string
			place
		}
		if b, err := os.ReadFile(file); err != nil || json.Unmarshal(b, &r) != nil {
			w.t.Fatalf("%s: %v", file, err)
		}
		all[r.Name] = r.place
	}
	return all
}

//go:build upgrade

package e2e

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

var recordFlag = flag.Bool("record", false, "TestSkewRecord writes what releases write to test/e2e/"+recordings)

// What is kept of the data of releases for TestDataOfReleases is what they write: the
// same files, with the same fields.
func TestSkewRecord(t *testing.T) {
	for _, r := range releases(t) {
		t.Run(r.version, func(t *testing.T) {
			to, kept := t.TempDir(), filepath.Join(recordings, r.version)
			if *recordFlag {
				if err := os.RemoveAll(kept); err != nil {
					t.Fatal(err)
				}
				to = kept
			}
			recordData(t, r, to)
			if got, want := shapes(t, to), shapes(t, kept); !slices.Equal(got, want) {
				t.Errorf("written:\n%s\nkept:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		})
	}
}

// recordData has a release write all that it keeps, and puts it into a folder.
func recordData(t *testing.T, r programs, to string) {
	w := uncontrolled(t, append(enrolment(t), "--no-vet")...)
	w.flags = append(w.flags, "--hosts-dir", w.hostsFor(registryHost))
	w.program = r.control
	w.startControl()
	port := freePort(t)
	p := w.agent(node{name: "a", binary: r.agent, flags: w.token("-n", "edge")}, w.gateway(listener{port: port, name: "in"}))
	w.token("-n", "edge", "--label", "app=web") // nobody spends it
	pushed, digest := w.pushDigest("append:v1", module.Append())
	url := strings.Replace(pushed, w.registry.Addr, registryHost, 1)
	one := func(name, tagged string, more ...string) string {
		return plugin(name, url, append(more, tag(tagged))...)
	}
	pinned := func(tagged string) string { return plugin("p", url+"@"+string(digest), tag(tagged)) }
	w.apply(dbSecret("hidden") + join(pinned("n1"), one("c", "c1"), fromSecret(one("q", "shown", "priority: 3")),
		one("out", "out"), script("l", luaTag("l1"))))
	w.apply(pinned("n2"))
	w.submit(inSteps(one("c", "c2")))
	if out, code := p.agentCLI("bypass", "out", "--reason", "recorded", "--data", filepath.Join(p.dir, "data")); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	hasAll(t, port, recorded...)
	eventually(t, 20*time.Second, "c is on its way", func() (bool, string) {
		at := w.places()["c"]
		return at.Sequence == 2, fmt.Sprint(at)
	})
	if out, ok := w.cli("", "rollout", "pause", "c", "-n", "edge"); !ok { // for as long as the recording is there
		t.Fatal(out)
	}
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	if err := w.control.stop(); err != nil {
		t.Fatal(err)
	}
	for part, dir := range map[string]string{"control": filepath.Join(w.dir, "control"), "agent": filepath.Join(p.dir, "data")} {
		for _, kept := range []string{"applied", "objects", "records", "modules", "nodes", "bypass", "lastgood"} {
			if _, err := os.Stat(filepath.Join(dir, kept)); err == nil {
				copied(t, filepath.Join(to, part, kept), filepath.Join(dir, kept), dir, usualData)
			}
		}
	}
}

// shapes tells of every file in which folder it is and which fields it has, or of what
// kind it is when it is no JSON.
func shapes(t *testing.T, dir string) []string {
	t.Helper()
	var all []string
	for name, text := range tree(t, dir) {
		var v any
		if json.Unmarshal([]byte(text), &v) != nil {
			all = append(all, filepath.Dir(name)+": a file "+filepath.Ext(name))
			continue
		}
		all = append(all, filepath.Dir(name)+": "+strings.Join(slices.Sorted(maps.Keys(fieldsOf(v, "", map[string]bool{}))), " "))
	}
	slices.Sort(all)
	return all
}

// fieldsOf gathers the paths of all fields of a JSON value.
func fieldsOf(v any, at string, into map[string]bool) map[string]bool {
	switch v := v.(type) {
	case map[string]any:
		for name, value := range v {
			into[at+name] = true
			fieldsOf(value, at+name+".", into)
		}
	case []any:
		for _, value := range v {
			fieldsOf(value, at, into)
		}
	}
	return into
}

// inSteps has a change of plugin c wait for a canary that there is none of.
func inSteps(manifest string) string {
	return strings.Replace(manifest, "namespace: edge}", `namespace: edge, annotations: {chandler.dev/rollout: "canary=true,100%", chandler.dev/rollout-interval: 1h}}`, 1)
}

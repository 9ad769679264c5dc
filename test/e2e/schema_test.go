package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/module"
)

// tagSchema is of the configuration of an appending module.
const tagSchema = `{"title": "Append", "type": "object", "required": ["tag"], "additionalProperties": false, "properties": {
  "tag": {"type": "string", "pattern": "^[a-z]+$", "description": "What is appended."},
  "keys": {"type": "array", "items": {"type": "object", "properties": {"id": {"type": "string"}, "secret": {"type": "string", "writeOnly": true}}}}}}`

// A configuration that is not as the schema in the artifact has it is told with its
// place and never in force; what is right is, and stays through a wrong edit, with the
// registry away and over a restart, too.
func TestConfigSchema(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	client := fetch.New(fetch.Config{Dir: w.dir})
	defer client.Close()
	ref := w.registry.Addr + "/plugins/append:schema"
	if _, err := client.Push(t.Context(), ref, module.Append(), fetch.PushOptions{Documents: fetch.Documents{Schema: []byte(tagSchema)}}); err != nil {
		t.Fatal(err)
	}
	with := func(config string) string { return plugin("p", "oci://"+ref, "pluginConfig: "+config) }

	w.submit(with("{tag: 7}"))
	w.tells("p", "ConfigSchema", "spec.pluginConfig.tag: must be a string, not a number, says the module's schema", "it is: What is appended.")
	has(t, port) // nothing is in force

	w.apply(with("{tag: one}"))
	sees(t, port, "one")
	w.tells("p", "configured as its schema has it", "Schema (Append):", "keys[].secret")

	const canary = "kqzvxwyjpm"
	w.submit(with("{tag: Two}"))
	w.tells("p", `spec.pluginConfig.tag: does not match the pattern "^[a-z]+$"`, "generation 2 stays assigned, in force on 1 of 1 proxy")
	has(t, port, "one")
	w.submit(with("{tag: two, keys: [{id: a}, {id: b, secret: " + canary + "}, 7]}"))
	w.tells("p", "spec.pluginConfig.keys[2]: must be an object, not a number")
	has(t, port, "one")

	w.registry.Close()
	if err := w.control.stop(); err != nil {
		t.Fatal(err)
	}
	w.startControl()
	w.submit(with("{}"))
	w.tells("p", "spec.pluginConfig.tag: is missing")
	has(t, port, "one")
	w.apply(with("{tag: three, keys: [{id: b, secret: " + canary + "}]}"))
	eventually(t, 20*time.Second, "what is right is in force", func() (bool, string) {
		a, err := request(fresh, http.MethodGet, port, "/", nil)
		return err == nil && strings.Contains(fmt.Sprint(a.seen["X-Plugins"]), `"tag":"three"`), fmt.Sprint(a.seen, err)
	})

	// What is write-only is seen nowhere, but where it belongs.
	c := &canaries{}
	c.text("a write-only value", canary)
	places := secretPlaces(t, w, p, false)
	for _, command := range []string{"get wasmplugin p -n edge -o yaml", "describe wasmplugin p -n edge --show-config"} {
		out, ok := w.cli("", strings.Fields(command)...)
		if !ok || !strings.Contains(out, "tag: three") || !strings.Contains(out, "secret: <redacted>") {
			t.Errorf("%s: %s", command, out)
		}
		places["chandler "+command] = []byte(out)
	}
	for place, content := range places {
		belongs := strings.HasPrefix(place, "control control/applied/") || strings.HasPrefix(place, "control control/objects/") || strings.HasPrefix(place, "control control/records/")
		if found := c.find(content); len(found) > 0 && !belongs {
			t.Errorf("%s shows a write-only value: %v", place, found[:1])
		}
	}
}

// What the lock file of a directory names is in force wherever the tag is moved to, on
// proxies that come later, too, until the lock file says otherwise.
func TestLock(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("moving:v1", module.Append())
	lock := func(args ...string) (string, bool) {
		out, err := exec.Command(filepath.Join(built, "chandler"), append([]string{"lock", "-f", w.plugins}, args...)...).CombinedOutput()
		return string(out), err == nil
	}
	w.edit("p.yaml", plugin("p", url, "imagePullPolicy: Always", tag("one")))
	sees(t, port, "one")
	if out, ok := lock(); !ok || !strings.Contains(out, "added") {
		t.Fatal(out)
	}
	w.push("moving:v1", module.Deny(http.StatusTeapot))
	if out, ok := lock("--check"); ok || !strings.Contains(out, "changed") {
		t.Errorf("a tag that moved is not told: %s", out)
	}
	w.edit("p.yaml", plugin("p", url, "imagePullPolicy: Always", tag("two")))
	sees(t, port, "two")
	late := freePort(t)
	w.agent(node{name: "late"}, w.gateway(listener{port: late, name: "in"}))
	sees(t, late, "two")

	if out, ok := lock(); !ok {
		t.Fatal(out)
	}
	eventually(t, 30*time.Second, "the new lock is in force", func() (bool, string) {
		got, err := request(fresh, http.MethodGet, port, "/", nil)
		return err == nil && got.code == http.StatusTeapot, fmt.Sprint(got.code, err)
	})
	if err := os.WriteFile(filepath.Join(w.plugins, "chandler.lock"), []byte("format: 1\nlocked:\n- {url: '"+url+"', digest: 'sha256:"+strings.Repeat("a", 64)+"'}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.tells("p", "NotFound", "the lock file says that "+url+" is sha256:aaaa", "stays assigned")
	if got := get(t, port, "/"); got.code != http.StatusTeapot {
		t.Errorf("status %d", got.code)
	}
}

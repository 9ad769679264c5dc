package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/module"
)

// A control plane is taken back behind one that knew more of a resource, and has none of
// its texts that it could read: it says what it does not know, and what is in force stays
// so, by the records, until the resource can be read again.
func TestResourceOfLater(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	resource := plugin("p", w.push("append:v1", module.Append()), tag("one"))
	w.apply(resource)
	sees(t, port, "one")
	before := w.places()
	if err := w.control.stop(); err != nil {
		t.Fatal(err)
	}
	text := resource + "  telepathy: true\n"
	w.writes("applied/wasmplugin_edge_p.yaml", func(string) string { return text })
	w.writes("objects/wasmplugin_edge_p.json", func(was string) string {
		var o map[string]any
		if err := json.Unmarshal([]byte(was), &o); err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256([]byte(text))
		o["Manifest"], o["Digest"] = text, hex.EncodeToString(sum[:])
		b, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	})
	w.startControl()
	w.tells("p", "SpecUnknown", "telepathy")
	sees(t, port, "one")
	if now := w.places(); now["p"] != before["p"] {
		t.Errorf("assigned is %+v, and was %+v", now, before)
	}
	w.apply(strings.ReplaceAll(resource, "one", "two"))
	sees(t, port, "two")
}

// writes writes a file of the control plane's anew, as it is not running.
func (w *world) writes(name string, text func(was string) string) {
	w.t.Helper()
	path := filepath.Join(w.dir, "control", name)
	b, err := os.ReadFile(path)
	if err == nil {
		err = os.WriteFile(path, []byte(text(string(b))), 0o600)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

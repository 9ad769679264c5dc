package source_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/source"
)

// What a control plane of before kept of its resources is taken over: who an object
// is, and which generation it is at.
func TestFault_F78_StateOfBefore(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	must(t, os.CopyFS(data, os.DirFS("testdata/format-1")))
	path := filepath.Join(data, "objects", "wasmplugin_default_a.json")
	b, err := os.ReadFile(path)
	must(t, err)
	text := strings.Replace(string(b), "/var/lib/chandler", data, 1) // where it was then
	must(t, os.WriteFile(path, []byte(strings.Replace(text, `"Format": 1`, `"Later": {"a": 1}, "Format": 1`, 1)), 0o600))
	d := start(t, source.DirectoryConfig{Data: data})
	objects := d.last().Objects
	if len(objects) != 1 || objects[0].UID != "7ec57a66-c0af-4529-b71a-87bec1605d3d" || objects[0].Generation != 2 || !url("a", "b")(d.last()) {
		t.Fatalf("%+v", objects)
	}
	d.apply(doc("a", "url: c"))
	if o := d.last().Objects[0]; o.UID != objects[0].UID || o.Generation != 3 {
		t.Errorf("edited it is %+v", o)
	}
	if b, err := os.ReadFile(path); err != nil || !strings.Contains(string(b), `"Later"`) {
		t.Errorf("what a later control plane wrote is gone: %s, %v", b, err)
	}
}

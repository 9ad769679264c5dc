package assign_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/assign"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden reads testdata/*.txtar: in.json holds root namespace, candidates and
// nodes; out.json what every node gets, in the order of keys.
func TestGolden(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			t.Parallel()
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, ar.Files[0].Data)
			if *update {
				ar.Files = append(ar.Files[:1], txtar.File{Name: "out.json", Data: got})
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if len(ar.Files) < 2 || !bytes.Equal(ar.Files[1].Data, got) {
				t.Errorf("got\n%s", got)
			}
		})
	}
}

func play(t *testing.T, input []byte) []byte {
	t.Helper()
	var in struct {
		Root       string
		Candidates []assign.Candidate
		Nodes      []chandler.Node
	}
	d := json.NewDecoder(bytes.NewReader(input))
	d.DisallowUnknownFields()
	if err := d.Decode(&in); err != nil {
		t.Fatal(err)
	}
	out := map[string]any{}
	seen := map[string]bool{}
	for _, n := range in.Nodes {
		keys := []string{}
		for _, c := range in.Candidates {
			if assign.Selects(c.Plugin, n, in.Root) {
				keys = append(keys, c.Plugin.String())
				seen[c.Plugin.String()] = true
			}
		}
		slices.Sort(keys)
		out[n.ID()] = keys
	}
	for _, c := range in.Candidates {
		if seen[c.Plugin.String()] && (c.Release != nil || c.Deny) {
			out[c.Plugin.String()] = assign.Attach(c)
		}
	}
	b, err := json.MarshalIndent(out, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

// An attachment is the release's, word for word: what was resolved and vetted is
// what runs, also while a newer generation of the plugin is not resolved.
func TestAttachKeepsToTheRelease(t *testing.T) {
	t.Parallel()
	priority := int32(7)
	release := chandler.Release{
		Key: chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: "n"}, UID: "u", Generation: 3,
		Program:   chandler.Program{Module: &chandler.Module{Digest: chandler.Digest[chandler.ModuleDigest]([]byte("x")), Size: 1}},
		Behaviour: chandler.Behaviour{Type: chandler.HTTP, Phase: chandler.PhaseAuthn, Priority: &priority, Config: []byte(`{"old":1}`)},
	}.WithID()
	plugin := &chandler.Plugin{
		Key: release.Key, UID: "u", Generation: 4, Created: time.Unix(100, 0), Type: chandler.HTTP,
		Phase: chandler.PhaseStats, Wasm: &chandler.Wasm{Config: []byte(`{"new":1}`)},
		FirstAttach: chandler.FirstAttachDeny,
	}
	a := assign.Attach(assign.Candidate{Plugin: plugin, Release: &release, Sequence: 9})
	if a.Generation != 3 || a.Release != release.ID || a.Phase != chandler.PhaseAuthn || string(a.Config) != `{"old":1}` {
		t.Errorf("attachment is not the release's: %+v", a)
	}
	if a.Sequence != 9 || !a.Created.Equal(plugin.Created) || a.FirstAttach != chandler.FirstAttachDeny || a.Key != plugin.Key {
		t.Errorf("attachment is not the plugin's: %+v", a)
	}
}

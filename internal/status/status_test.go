package status_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/status"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestGolden reads testdata/*.txtar: every NAME.in.json is an Input laid over the
// one before it, and NAME.out.txt what the status says then; the status before is
// the next one's Previous.
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
			out := &txtar.Archive{Comment: ar.Comment}
			var previous *chandler.Status
			for _, f := range ar.Files {
				name, ok := strings.CutSuffix(f.Name, ".in.json")
				if !ok {
					continue
				}
				var in status.Input
				d := json.NewDecoder(bytes.NewReader(f.Data))
				d.DisallowUnknownFields()
				if err := d.Decode(&in); err != nil {
					t.Fatalf("%s: %v", f.Name, err)
				}
				in.Previous = previous
				s := status.Join(in)
				previous = &s
				out.Files = append(out.Files, f, txtar.File{Name: name + ".out.txt", Data: render(s)})
			}
			got := txtar.Format(out)
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if want := txtar.Format(ar); !bytes.Equal(got, want) {
				t.Errorf("got\n%s", got)
			}
		})
	}
}

func render(s chandler.Status) []byte {
	var b strings.Builder
	for _, c := range s.Conditions {
		b.WriteString(strings.Join([]string{string(c.Type), string(c.Status), string(c.Reason), c.LastTransition.Format("15:04"), c.Message}, " | "))
		b.WriteByte('\n')
	}
	j, err := json.Marshal(map[string]any{"generation": s.ObservedGeneration, "desired": s.Desired, "inForce": s.InForce, "failed": s.Failed})
	if err != nil {
		panic(err)
	}
	b.Write(j)
	b.WriteByte('\n')
	for _, p := range s.Proxies {
		b.WriteString(p.Namespace + "/" + p.Node + " " + string(p.State))
		if !p.Connected {
			b.WriteString(" (away)")
		}
		b.WriteByte('\n')
	}
	for _, w := range s.Warnings {
		b.WriteString("warning " + string(w.Code) + "\n")
	}
	return []byte(b.String())
}

// Whatever proxies say of other releases, it is not counted as the target's.
func TestInForceCountsTheTargetOnly(t *testing.T) {
	t.Parallel()
	plugin := &chandler.Plugin{Key: chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: "n"}, UID: "u", Generation: 2}
	target := &chandler.Release{ID: "new", UID: "u", Generation: 2}
	in := status.Input{Generation: 2, Plugin: plugin, Target: target, Now: time.Unix(1, 0)}
	for _, st := range []chandler.AttachmentState{
		{UID: "u", Release: "old", InForce: "old", State: chandler.StateInForce},
		{UID: "u", Release: "new", InForce: "old", State: chandler.StateInForce},
		{UID: "u", Release: "new", InForce: "new", State: chandler.StateReady},
		{UID: "another", Release: "new", InForce: "new", State: chandler.StateInForce},
		{UID: "u", Release: "new", InForce: "new", State: chandler.StateInForce, Reason: chandler.CodeEnvoyDown},
	} {
		in.Proxies = []status.Proxy{{Node: chandler.Node{Namespace: "ns", Name: "p"}, Connected: true, State: &st}}
		s := status.Join(in)
		if s.InForce != 0 || s.Conditions[2].Status == chandler.True || s.Conditions[3].Status == chandler.True {
			t.Errorf("%+v counts as in force", st)
		}
	}
}

// What is taken out is never said to be in force, or to be nobody's: neither where the
// resource itself is fine, nor where only those have nothing who are not chosen.
func TestDetachedIsSaid(t *testing.T) {
	t.Parallel()
	plugin := &chandler.Plugin{Key: chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: "n"}, UID: "u", Generation: 2}
	first, second := &chandler.Release{ID: "first", UID: "u", Generation: 1}, &chandler.Release{ID: "second", UID: "u", Generation: 2}
	why := chandler.Problem{Code: chandler.CodeSigMissing, Message: "nobody signed it"}
	node := chandler.Node{Namespace: "ns", Name: "p"}
	has := status.Proxy{Node: node, Connected: true, Wants: second, State: &chandler.AttachmentState{UID: "u", Release: "second", InForce: "second", State: chandler.StateInForce}}
	for name, c := range map[string]struct {
		in   status.Input
		want string
	}{
		"everyone's, while another is meant": {
			status.Input{Target: first, Meant: second, Detached: []status.Detached{{Release: first, Why: why, Whole: true}}, Proxies: []status.Proxy{{Node: node, Connected: true, Nothing: true}}},
			"False SigMissing generation 1 is taken out of all proxies, as it is against the operator's policy: nobody signed it",
		},
		"that of the others": {
			status.Input{Target: second, Detached: []status.Detached{{Release: first, Why: why}}, Proxies: []status.Proxy{has}},
			"True Programmed in force on the 1 proxy it is for; generation 1 is taken out of the proxies that are not chosen, as it is against the operator's policy: nobody signed it",
		},
		"of a resource before": {
			status.Input{Target: second, Detached: []status.Detached{{Release: &chandler.Release{ID: "older"}, Why: why}}, Proxies: []status.Proxy{has}},
			"True Programmed in force on the 1 proxy it is for; release older is taken out of the proxies that are not chosen, as it is against the operator's policy: nobody signed it",
		},
	} {
		in := c.in
		in.Generation, in.Plugin, in.Now = 2, plugin, time.Unix(1, 0)
		p := status.Join(in).Conditions[2]
		if got := string(p.Status) + " " + string(p.Reason) + " " + p.Message; got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

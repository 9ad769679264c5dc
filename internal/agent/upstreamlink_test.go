package agent

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// What is told of a link is what is so: one stream that is lost is enough, and one that
// Envoy wants no more is none. A link that comes and goes does not fill the log.
func TestUpstreamLink(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		l := newUpstreamLink(slog.New(slog.NewTextHandler(&log, nil)))
		begun := time.Now()
		if st := l.status("cp"); st.Connected || st.Lost != 0 || st.Error != "" {
			t.Errorf("before anything: %+v", st)
		}
		l.word("/lds", nil)
		l.word("/cds", nil)
		time.Sleep(time.Minute)
		l.word("/cds", errors.New("it is\x1bgone"))
		if st := l.status("cp"); st.Name != "cp" || st.Connected || st.Lost != 1 || st.Error != "/cds: it is gone" || !st.Since.Equal(begun.Add(time.Minute)) {
			t.Errorf("with one stream lost: %+v", st)
		}
		l.ended("/cds")
		if st := l.status("cp"); !st.Connected || st.Error != "" {
			t.Errorf("when Envoy does not want it any more: %+v", st)
		}
		l.word("/cds", nil)
		for range 1000 { // 100 s
			l.word("/cds", errors.New("gone"))
			l.word("/cds", nil)
			time.Sleep(100 * time.Millisecond)
		}
		if n := strings.Count(log.String(), "\n"); n > 30 {
			t.Errorf("%d lines for a link that flaps:\n%.600s", n, log.String())
		}
		if st := l.status("cp"); !st.Connected || st.Lost != 1001 {
			t.Errorf("in the end: %+v", st)
		}
	})
}

// Envoy's node goes up as it is, with who stands between beside what its metadata says.
func TestIntroduce(t *testing.T) {
	t.Parallel()
	a := &Agent{cfg: Config{Node: chandler.Node{Namespace: "ns", Name: "n", AgentVersion: "1.2.3"}}}
	metadata, err := structpb.NewStruct(map[string]any{"LABELS": map[string]any{"app": "x"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, node := range []*corev3.Node{{}, {Id: "id", Metadata: metadata, UserAgentName: "envoy"}} {
		raw, err := proto.Marshal(node)
		if err != nil {
			t.Fatal(err)
		}
		said := a.introduce(raw)
		if !bytes.HasPrefix(said, raw) {
			t.Errorf("what Envoy said of %v is changed", node)
		}
		var heard corev3.Node
		if err := proto.Unmarshal(said, &heard); err != nil {
			t.Fatal(err)
		}
		own := heard.Metadata.Fields[nodeMetadataKey].GetStructValue().GetFields()
		if own["node"].GetStringValue() != "ns/n" || own["agent_version"].GetStringValue() != "1.2.3" {
			t.Errorf("heard of the agent: %v", own)
		}
		delete(heard.Metadata.Fields, nodeMetadataKey)
		if node.Metadata == nil {
			heard.Metadata = nil
		}
		if !proto.Equal(&heard, node) {
			t.Errorf("heard %v, not %v", &heard, node)
		}
	}
}

// The slots of one plugin that stand in listeners are the same for the next agent.
func TestSlotsAreKept(t *testing.T) {
	t.Parallel()
	a := &Agent{cfg: Config{Data: t.TempDir()}}
	if own, err := a.keptSlots(); err != nil || len(own) != 0 {
		t.Errorf("of nothing: %v, %v", own, err)
	}
	own := []attach.Slot{
		{Phase: chandler.PhaseAuthn, Mode: chandler.ModeClient, Port: 80, Network: true, Plugin: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "a", Name: "b"}},
		{Mode: chandler.ModeServer, Plugin: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "a", Name: "a"}},
	}
	if err := os.Mkdir(a.envoyDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := a.keepSlots(own); err != nil {
		t.Fatal(err)
	}
	if kept, err := a.keptSlots(); err != nil || !slices.Equal(kept, own) {
		t.Errorf("kept %v, %v", kept, err)
	}
	writeFile(t, a.slotsPath(), []byte(`["chandler/authn/client/80", "nonsense", 5]`))
	if kept, err := a.keptSlots(); err == nil {
		t.Errorf("of nonsense: %v", kept)
	}
}

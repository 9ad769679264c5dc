package remotewasm

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler/internal/xds/relay"
)

// viewOf is what Envoy has, in the state of the world.
func viewOf(t *testing.T, clusters ...*clusterv3.Cluster) relay.View {
	t.Helper()
	view := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), ClusterType)
	for _, c := range clusters {
		packed, err := anypb.New(c)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := proto.Marshal(packed)
		if err != nil {
			t.Fatal(err)
		}
		view = protowire.AppendBytes(protowire.AppendTag(view, 5, protowire.BytesType), raw)
	}
	v, err := relay.ReadView(view)
	if err != nil || v.Len() != len(clusters) {
		t.Fatal(err)
	}
	return v
}

// Remote Wasm in a cluster is told of once, as long as Envoy has it there.
func TestWasmInClusters(t *testing.T) {
	t.Parallel()
	var said bytes.Buffer
	log := slog.New(slog.NewTextHandler(&said, nil))
	plain := &clusterv3.Cluster{Name: "plain"}
	guarded := func(name string) *clusterv3.Cluster {
		return &clusterv3.Cluster{Name: name, Filters: []*clusterv3.Filter{{Name: "f", TypedConfig: plugin{name: "f", url: first}.filter(t)}}}
	}
	var c Clusters
	told := func(when, want string, views ...relay.View) {
		t.Helper()
		c.Look(views, log)
		var names []string
		for _, s := range c.Status() {
			names = append(names, s.Name)
			if !s.Elsewhere || s.Problem.Field != "filters[0].typed_config" {
				t.Errorf("%+v", s)
			}
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s %q are told of, want %q", when, got, want)
		}
	}
	told("without clusters", "")
	told("with none in them", "", viewOf(t, plain))
	told("with some", "a b", viewOf(t, guarded("b"), plain, guarded("a")))
	told("once more", "a b", viewOf(t, guarded("b"), plain, guarded("a")))
	if text := said.String(); strings.Count(text, "\n") != 2 || !strings.Contains(text, "resource=a error=") {
		t.Errorf("the log says\n%s", text)
	}
	told("when one has none any more", "a", viewOf(t, &clusterv3.Cluster{Name: "b"}, guarded("a")))
	told("when all are gone", "")
}

package agent

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/xds/relay"
)

// keptView is one of a cluster under a version, as deltas have it.
func keptView(t *testing.T, version string) relay.View {
	t.Helper()
	field := func(b []byte, num protowire.Number, content []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), content)
	}
	typeURL := []byte("type.googleapis.com/envoy.config.cluster.v3.Cluster")
	resource := field(field(field(nil, 1, []byte(version)), 2, field(field(nil, 1, typeURL), 2, field(nil, 1, []byte("c")))), 3, []byte("c"))
	v, err := relay.ReadView(field(protowire.AppendVarint(protowire.AppendTag(field(nil, 1, typeURL), 2, protowire.VarintType), 1), 5, resource))
	if err != nil {
		t.Fatal(err)
	}
	v.Changes = 1
	return v
}

// What Envoy took stays good when its configuration leads to its control plane elsewhere or
// to another one, whose versions it does not have; it goes when no control plane is named at
// its place any more.
func TestKeptViewsOutliveAnEdit(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	control := func(path, cluster, address string) attach.ControlPlane {
		return attach.ControlPlane{Cluster: cluster, Service: attach.Part{Path: path, JSON: []byte(`{"envoy_grpc": {"cluster_name": "` + cluster + `"}}`)},
			Endpoints: []attach.Endpoint{{Network: "tcp", Address: address}}}
	}
	recall := func(cp attach.ControlPlane) (*controlPlane, func()) {
		a := &Agent{cfg: Config{Data: data}, log: slog.New(slog.DiscardHandler), derived: attach.Derived{ControlPlanes: []attach.ControlPlane{cp}}}
		if err := a.openUpstreams(); err != nil {
			t.Fatal(err)
		}
		if err := a.recallUpstreams(); err != nil {
			t.Fatal(err)
		}
		return a.upstreams[0], a.closeUpstreams
	}
	text := func(views []relay.View) string {
		var b bytes.Buffer
		for _, v := range views {
			if _, err := v.WriteTo(&b); err != nil {
				t.Fatal(err)
			}
		}
		return b.String()
	}
	const ads = "dynamic_resources.ads_config.grpc_services[0]"
	first, end := recall(control(ads, "one", "127.0.0.1:1"))
	one := []relay.View{keptView(t, "version-1")}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	first.store.Run(ctx, func() ([]relay.View, time.Time) { return one, time.Time{} })
	end()
	for what, cp := range map[string]attach.ControlPlane{
		"another address": control(ads, "one", "127.0.0.1:2"),
		"another cluster": control(ads, "two", "127.0.0.1:1"),
	} {
		u, end := recall(cp)
		if got := text(u.remembered); len(u.remembered) != 1 || u.remembered[0].Len() != 1 || got == text(one) || got != text([]relay.View{one[0].Anew()}) {
			t.Errorf("%s: remembered is %q", what, got)
		}
		end()
	}
	u, end := recall(control(ads, "one", "127.0.0.1:1"))
	if text(u.remembered) != text(one) {
		t.Errorf("by the same way it is %q", text(u.remembered))
	}
	end()
	_, end = recall(control("dynamic_resources.lds_config.api_config_source.grpc_services[0]", "one", "127.0.0.1:1"))
	end()
	if _, err := os.Stat(first.views); !errors.Is(err, fs.ErrNotExist) {
		left, _ := filepath.Glob(filepath.Join(data, "envoy", "*"))
		t.Errorf("what nothing leads to is there: %v", left)
	}
}

// The log tells once that there is no stream to Envoy's control plane, also where there
// has been none, and once that there is one again.
func TestUpstreamLinkTells(t *testing.T) {
	t.Parallel()
	away := errors.New("connection refused")
	for name, c := range map[string]struct {
		words []error // nil: a stream is there
		want  []string
	}{
		"there":               {[]error{nil, nil}, []string{"connected"}},
		"away from the start": {[]error{away, away}, []string{"no stream"}},
		"comes later":         {[]error{away, away, nil}, []string{"no stream", "connected"}},
		"away for a moment":   {[]error{nil, away, nil}, []string{"connected", "no stream", "connected"}},
	} {
		var out bytes.Buffer
		l := newUpstreamLink(slog.New(slog.NewTextHandler(&out, nil)))
		for _, err := range c.words {
			l.word("/m", err)
		}
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != len(c.want) {
			t.Errorf("%s: %q", name, lines)
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(lines[i], want) {
				t.Errorf("%s: line %d is %q", name, i, lines[i])
			}
		}
		if st := l.status("x"); st.Connected != (c.words[len(c.words)-1] == nil) {
			t.Errorf("%s: status %+v", name, st)
		}
	}
}

package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/upstream"
)

// ownPlane is a control plane of somebody else's, and what it serves to the Envoys of a world:
// a listener on a port, with route, cluster and endpoint.
type ownPlane struct {
	*upstream.Upstream
	variant upstream.Variant
	w       *world
	port    int
	version int
}

func (w *world) under(v upstream.Variant) *ownPlane {
	u := &ownPlane{Upstream: upstream.New(w.t, upstream.Config{Variant: v}), variant: v, w: w, port: freePort(w.t)}
	u.set()
	return u
}

// set serves the listener and more, under a new version.
func (u *ownPlane) set(more ...upstream.Resources) {
	u.w.t.Helper()
	u.version++
	mark := fmt.Sprint(u.version)
	all := upstream.Resources{
		u.variant.Listener("in", loopback(u.port), "r"), u.variant.Cluster("c"), upstream.Route("r", "c", mark),
		upstream.Backend("c", strings.TrimPrefix(u.w.upstream.URL, "http://")),
	}
	for _, m := range more {
		all = append(all, m...)
	}
	u.Set(mark, all)
}

// bootstrap is that of an Envoy under it.
func (u *ownPlane) bootstrap(dir string) string {
	return u.Bootstrap("node-of-bootstrap", filepath.Join(dir, "a"))
}

// Under a control plane that speaks in whatever way, the walkthrough passes through the
// agent before Envoy's arguments.
func TestUpstreamWalk(t *testing.T) {
	t.Parallel()
	for _, v := range upstream.Variants {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			u := w.under(v)
			p := w.agent(node{name: "a"}, u.bootstrap(t.TempDir()))
			walk(t, w, u.port, "the moon is wrong")
			_ = p
		})
	}
}

var _ = http.MethodGet

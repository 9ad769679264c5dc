package remotewasm

import (
	"log/slog"
	"maps"
	"slices"
	"sync"

	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/xds/relay"
)

// elsewhere tells, by their names, of resources with Wasm that is not made local where it
// stands.
type elsewhere map[string]*chandler.Problem

// look notes in which fields of a resource such Wasm stands. The log is told what is news.
func (e elsewhere) look(name string, fields []string, log *slog.Logger) {
	if len(fields) == 0 {
		delete(e, name)
		return
	}
	p := chandler.Problemf(chandler.CodeEnvoyConfig, fields[0], "let it stand in a filter chain, a connection manager or an access log, as a message of its own type",
		"Wasm is not made local in %s like this one: Envoy fetches its module itself if that is remote", chandler.Count(len(fields), "field", "fields"))
	before := e[name]
	if before != nil && *before == *p || before == nil && len(e) >= maxNames {
		return
	}
	e[name] = p
	log.Warn("Wasm of the control plane is not made local where it stands", "resource", chandler.Printable(name, 256), "error", p)
}

func (e elsewhere) status() (list []Status) {
	for _, name := range slices.Sorted(maps.Keys(e)) {
		list = append(list, Status{Name: name, Elsewhere: true, Problem: e[name]})
	}
	return list
}

// Clusters tells of remote Wasm in the clusters of one control plane. They pass as they are,
// so Envoy fetches its modules. Its methods may be called by several goroutines.
type Clusters struct {
	mu        sync.Mutex
	elsewhere elsewhere
}

// Look looks into the clusters among all that Envoy has of the control plane, and tells the
// log what is news.
func (c *Clusters) Look(views []relay.View, log *slog.Logger) {
	found := map[string][]string{}
	for _, v := range views {
		if v.Type != ClusterType {
			continue
		}
		v.Each(func(name string, body []byte) {
			if fields := attach.WasmElsewhere(&anypb.Any{TypeUrl: ClusterType, Value: body}); len(fields) > 0 {
				found[name] = fields
			}
		})
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.elsewhere == nil {
		c.elsewhere = elsewhere{}
	}
	maps.DeleteFunc(c.elsewhere, func(name string, _ *chandler.Problem) bool { return found[name] == nil })
	for _, name := range slices.Sorted(maps.Keys(found)) {
		c.elsewhere.look(name, found[name], log)
	}
}

// Status tells of clusters with remote Wasm, in order of their names.
func (c *Clusters) Status() []Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.elsewhere.status()
}

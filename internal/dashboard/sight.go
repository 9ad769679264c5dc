package dashboard

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/access"
)

// sight is what one viewer may see and do.
type sight struct {
	viewer Viewer
	*access.Sight
}

func newSight(ctx context.Context, v Viewer) *sight {
	return &sight{v, access.NewSight(func(verb access.Verb, namespace string) (bool, error) { return v.Allowed(ctx, verb, namespace) })}
}

// fingerprint sums up what is allowed of what is in a snapshot: who has the same sees
// the same.
func (s *sight) fingerprint(of *snapshot, steers access.Verb) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %t", s.viewer.Name(), s.viewer.Known())
	for _, v := range []access.Verb{access.List, access.Read, steers} {
		if s.Everywhere(v) {
			fmt.Fprintf(&b, " %s *", v)
			continue
		}
		for _, n := range of.namespaces() {
			if s.May(v, n) {
				fmt.Fprintf(&b, " %s %q", v, n)
			}
		}
	}
	return b.String()
}

// namespaces are those of all that there is.
func (s *snapshot) namespaces() []string {
	seen := map[string]bool{}
	for _, p := range s.plugins {
		seen[p.Namespace] = true
	}
	for _, p := range s.proxies {
		seen[p.Namespace] = true
	}
	all := make([]string, 0, len(seen))
	for n := range seen {
		all = append(all, n)
	}
	slices.Sort(all)
	return all
}

// seen is the part of a snapshot that somebody may see: plugins and proxies of
// namespaces that they may list, and what happened there. Of a plugin that is seen its
// whole status is, as by the API.
func (s *snapshot) seen(by *sight) *snapshot {
	if by.Everywhere(access.List) {
		return s
	}
	part := &snapshot{version: s.version, partial: s.partial, byKey: map[chandler.Key]*plugin{}, byNode: map[string]*proxy{}, rendered: s.rendered}
	for _, p := range s.plugins {
		if by.May(access.List, p.Namespace) {
			part.plugins, part.byKey[p.Key] = append(part.plugins, p), p
		}
	}
	for _, p := range s.proxies {
		if by.May(access.List, p.Namespace) {
			part.proxies, part.byNode[p.ID()] = append(part.proxies, p), p
		}
	}
	for _, e := range s.events {
		if namespace := e.Namespace(); namespace != "" && by.May(access.List, namespace) {
			part.events = append(part.events, e)
		}
	}
	return part
}

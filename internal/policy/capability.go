package policy

import (
	"slices"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/proxywasm"
)

// capabilities gives what the plugin of that key may call, and all that Envoy calls
// it by: a callback that is not allowed would not be called, and the plugin would let
// pass in silence what it is there to look at. Nil: everything.
func (p *Policy) capabilities(k chandler.Key) []string {
	var allowed []string
	all := true
	for _, name := range proxywasm.HostCalls() {
		if slices.ContainsFunc(p.Capabilities, func(r CapabilityRule) bool {
			return r.names(k.Namespace) && (r.Plugins == nil || matches(r.Plugins, k.Name)) && r.allows(name)
		}) {
			allowed = append(allowed, name)
		} else {
			all = false
		}
	}
	if all {
		return nil
	}
	return append(allowed, proxywasm.Callbacks()...)
}

func (r *CapabilityRule) allows(name string) bool {
	return (r.Allow == nil || capable(r.Allow, name)) && !capable(r.Deny, name)
}

// wasi stands for all functions of WASI.
const wasi = "wasi"

func capable(patterns []string, name string) bool {
	return matches(patterns, name) || slices.Contains(patterns, wasi) && !strings.HasPrefix(name, "proxy_")
}

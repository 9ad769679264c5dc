package agent

import (
	"maps"
	"slices"
	"strings"
	"sync"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/xds/relay"
)

// heldListeners are listeners of a control plane that Envoy has begun without, as something
// of them was not there in time: they are shut while Envoy says that it is ready.
type heldListeners struct {
	mu    sync.Mutex
	names map[string]bool
}

// tell is the relay's. It gives those that are news.
func (h *heldListeners) tell(ev relay.Event) (news []string) {
	if ev.Type != listenerType {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range slices.Concat(ev.Acked, ev.Removed, ev.Left) {
		delete(h.names, name)
	}
	if len(ev.Without) > 0 {
		h.names = map[string]bool{}
		for _, name := range ev.Without {
			h.names[name] = true
		}
	}
	return ev.Without
}

// another says that Envoy is another process.
func (h *heldListeners) another() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.names = nil
}

// String is a sentence for people; empty: there are none.
func (h *heldListeners) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var names []string
	for _, name := range slices.Sorted(maps.Keys(h.names)) {
		names = append(names, chandler.Quote(name))
	}
	if names == nil {
		return ""
	}
	return "Envoy has begun without listeners that wait for a module or for what belongs in them: " + strings.Join(few(names), ", ")
}

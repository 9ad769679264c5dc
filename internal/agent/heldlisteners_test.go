package agent

import (
	"slices"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/xds/relay"
)

// A listener that Envoy began without is named until Envoy has it, or it is gone, or that
// Envoy is.
func TestHeldListeners(t *testing.T) {
	t.Parallel()
	var h heldListeners
	tell := func(ev relay.Event) []string {
		ev.Type = listenerType
		return h.tell(ev)
	}
	if news := tell(relay.Event{Acked: []string{"a"}}); news != nil || h.String() != "" {
		t.Errorf("without any: %q, %q", news, h.String())
	}
	if news := tell(relay.Event{Without: []string{"d", "c", "b", "a"}}); !slices.Equal(news, []string{"d", "c", "b", "a"}) {
		t.Errorf("news are %q", news)
	}
	h.tell(relay.Event{Type: "other", Acked: []string{"a"}})
	for _, step := range []struct {
		ev   relay.Event
		want string
	}{{relay.Event{}, `"a", "b", "c", "d"`}, {relay.Event{Acked: []string{"b", "x"}}, `"a", "c", "d"`},
		{relay.Event{Removed: []string{"c"}}, `"a", "d"`}, {relay.Event{Left: []string{"a"}}, `"d"`}} {
		if tell(step.ev); !strings.HasSuffix(h.String(), ": "+step.want) {
			t.Errorf("after %+v: %s, want %s", step.ev, h.String(), step.want)
		}
	}
	if h.another(); h.String() != "" {
		t.Errorf("of another Envoy: %s", h.String())
	}
}

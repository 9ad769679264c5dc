package agent

import (
	"sync"

	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/xds/envoyads"
	"chandler.dev/chandler/internal/xds/relay"
)

// slotServer serves slots to one Envoy, as an envoyads.Server does.
type slotServer interface {
	Set(slot, version string, body *anypb.Any)
	Drop(slot string)
}

// slotNames begins the names of slots.
const slotNames = "chandler/"

// relayedSlots serves slots on the stream that Envoy has to its own control plane, which
// does not hear of them.
type relayedSlots struct {
	changed func(slot string)    // has it sent to Envoy
	events  func(envoyads.Event) // is told what Envoy did

	mu    sync.Mutex
	slots map[string]slotContent
}

type slotContent struct {
	version string
	body    []byte
}

func newRelayedSlots(changed func(slot string), events func(envoyads.Event)) *relayedSlots {
	return &relayedSlots{changed: changed, events: events, slots: map[string]slotContent{}}
}

// Set says what a slot shall hold.
func (s *relayedSlots) Set(slot, version string, body *anypb.Any) {
	s.mu.Lock()
	s.slots[slot] = slotContent{version, body.GetValue()}
	s.mu.Unlock()
	s.changed(slot)
}

// Drop forgets a slot that Envoy does not want any more.
func (s *relayedSlots) Drop(slot string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.slots, slot)
}

// local is how the relay asks and tells.
func (s *relayedSlots) local() relay.Local {
	return relay.Local{Prefix: slotNames, Get: s.get, Tell: s.tell}
}

func (s *relayedSlots) get(slot string) (body []byte, version string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, ok := s.slots[slot]
	return c.body, c.version, ok
}

func (s *relayedSlots) tell(ev relay.LocalEvent) {
	switch ev.What {
	case relay.Subscribed:
		s.events(envoyads.Subscribed{Slot: ev.Name, Version: ev.Version})
	case relay.Unsubscribed:
		s.events(envoyads.Unsubscribed{Slot: ev.Name})
	case relay.Acked:
		s.events(envoyads.Acked{Slot: ev.Name, Version: ev.Version, Current: ev.Current})
	case relay.Nacked:
		s.events(envoyads.Nacked{Slot: ev.Name, Version: ev.Version, Message: ev.Words})
	}
}

// relaysSlots tells whether slots come over the stream to Envoy's own control plane.
func (a *Agent) relaysSlots() bool { return len(a.upstreams) > 0 && a.derived.AgentCluster == "" }

// changedSlot has Envoy told what a slot holds by now.
func (a *Agent) changedSlot(slot string) { a.changedUpstream(attach.ExtensionConfigType, slot) }

package wire

import (
	"fmt"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

var (
	states = newEnum("state", map[chandler.State]chandlerv1.State{
		chandler.StatePending:   chandlerv1.State_STATE_PENDING,
		chandler.StateFetching:  chandlerv1.State_STATE_FETCHING,
		chandler.StateReady:     chandlerv1.State_STATE_READY,
		chandler.StateInForce:   chandlerv1.State_STATE_IN_FORCE,
		chandler.StateRejected:  chandlerv1.State_STATE_REJECTED,
		chandler.StateFailed:    chandlerv1.State_STATE_FAILED,
		chandler.StateUnmatched: chandlerv1.State_STATE_UNMATCHED,
	})
	standIns = newEnum("stand-in", map[chandler.StandIn]chandlerv1.StandIn{
		chandler.StandInNone: chandlerv1.StandIn_STAND_IN_NONE,
		chandler.StandInPass: chandlerv1.StandIn_STAND_IN_PASS,
		chandler.StandInDeny: chandlerv1.StandIn_STAND_IN_DENY,
	})
)

// Report is one message of a node about its attachments.
type Report struct {
	// Node is set in the first message of a stream and whenever it changed.
	Node *chandler.Node
	// Sequence grows by one a message within a stream, from 1.
	Sequence uint64
	// Full: States is everything; what is not in it is gone.
	Full    bool
	States  []chandler.AttachmentState
	Removed []chandler.Key
	// Facts are nil where nothing is said of them, and Traffic is empty.
	Facts   *chandler.Facts
	Traffic []chandler.Traffic
	// Silent: no answer is wanted.
	Silent bool
}

// ReportToProto translates a report for the wire.
func ReportToProto(r Report) *chandlerv1.ReportRequest {
	m := &chandlerv1.ReportRequest{Sequence: r.Sequence, Full: r.Full, Facts: FactsToProto(r.Facts), Traffic: TrafficToProto(r.Traffic), Silent: r.Silent}
	if r.Node != nil {
		m.Node = NodeToProto(*r.Node)
	}
	for i := range r.States {
		m.States = append(m.States, StateToProto(r.States[i]))
	}
	for _, k := range r.Removed {
		m.Removed = append(m.Removed, k.String())
	}
	return m
}

// ReportFromProto checks and translates a report. Lists over MaxStates are
// refused whole: half of the truth is none.
func ReportFromProto(m *chandlerv1.ReportRequest) (Report, error) {
	r := Report{Sequence: m.GetSequence(), Full: m.GetFull(), Silent: m.GetSilent()}
	if m.GetNode() != nil {
		n, err := NodeFromProto(m.GetNode())
		if err != nil {
			return Report{}, err
		}
		r.Node = &n
	}
	if err := checkLen("states", len(m.GetStates()), MaxStates); err != nil {
		return Report{}, err
	}
	if err := checkLen("removed", len(m.GetRemoved()), MaxStates); err != nil {
		return Report{}, err
	}
	for _, s := range m.GetStates() {
		st, err := StateFromProto(s)
		if err != nil {
			return Report{}, err
		}
		r.States = append(r.States, st)
	}
	for _, s := range m.GetRemoved() {
		if err := checkName("removed plugin", s); err != nil {
			return Report{}, err
		}
		k, ok := chandler.ParseKey(s)
		if !ok {
			return Report{}, fmt.Errorf("removed plugin %s: want kind/namespace/name", chandler.Quote(s))
		}
		r.Removed = append(r.Removed, k)
	}
	var err error
	r.Facts, r.Traffic, err = said(m)
	return r, err
}

// Relayed is one node as its control plane knows it.
type Relayed struct {
	Node      chandler.Node
	Connected bool
	States    []chandler.AttachmentState
	Facts     *chandler.Facts
	Traffic   []chandler.Traffic
}

// RelayToProto translates a node for another control plane.
func RelayToProto(r Relayed) *chandlerv1.RelayRequest {
	m := &chandlerv1.RelayRequest{
		Node: NodeToProto(r.Node), Connected: r.Connected,
		Facts: FactsToProto(r.Facts), Traffic: TrafficToProto(r.Traffic),
	}
	for _, s := range r.States {
		m.States = append(m.States, StateToProto(s))
	}
	return m
}

// RelayFromProto checks and translates a node, with the bounds of a report.
func RelayFromProto(m *chandlerv1.RelayRequest) (Relayed, error) {
	n, err := NodeFromProto(m.GetNode())
	if err != nil {
		return Relayed{}, err
	}
	if err := checkLen("states", len(m.GetStates()), MaxStates); err != nil {
		return Relayed{}, err
	}
	r := Relayed{Node: n, Connected: m.GetConnected()}
	for _, s := range m.GetStates() {
		st, err := StateFromProto(s)
		if err != nil {
			return Relayed{}, err
		}
		r.States = append(r.States, st)
	}
	r.Facts, r.Traffic, err = said(m)
	return r, err
}

// StateToProto translates what an agent says of one plugin. The message is cut
// to MaxMessage and made fit to be shown.
func StateToProto(s chandler.AttachmentState) *chandlerv1.AttachmentState {
	return &chandlerv1.AttachmentState{
		Plugin:     encodeRef(s.Key, s.UID),
		Generation: s.Generation,
		Release:    string(s.Release),
		Sequence:   s.Sequence,
		State:      states.to[s.State],
		Reason:     string(s.Reason),
		Message:    printable(s.Message),
		Attempt:    s.Attempt,
		NextTry:    encodeTime(s.NextTry),
		InForce:    string(s.InForce),
		Since:      encodeTime(s.Since),
		Rejections: s.Rejections,
		VmTraps:    s.VMTraps,
		StandIn:    standIns.to[s.StandIn],
	}
}

// printable makes a text fit to be shown and no longer than MaxMessage, with
// the mark of what was cut. Doing it twice changes nothing.
func printable(s string) string {
	s = chandler.Printable(s, 3*len(s)) // one bad byte becomes three good ones
	if len(s) <= MaxMessage {
		return s
	}
	return chandler.Printable(s, MaxMessage-64)
}

// StateFromProto checks and translates what an agent says of one plugin.
func StateFromProto(m *chandlerv1.AttachmentState) (chandler.AttachmentState, error) {
	s := chandler.AttachmentState{
		Generation: m.GetGeneration(),
		Sequence:   m.GetSequence(),
		Reason:     chandler.Code(m.GetReason()),
		Message:    printable(Masked(m.GetMessage(), MaxMessage-64)),
		Attempt:    m.GetAttempt(),
		Rejections: m.GetRejections(),
		VMTraps:    m.GetVmTraps(),
	}
	var err error
	if s.Key, s.UID, err = decodeRef(m.GetPlugin()); err != nil {
		return chandler.AttachmentState{}, err
	}
	if err := decodeStateRest(m, &s); err != nil {
		return chandler.AttachmentState{}, fmt.Errorf("state of %s: %w", s.Key, err)
	}
	return s, nil
}

func decodeStateRest(m *chandlerv1.AttachmentState, s *chandler.AttachmentState) (err error) {
	if s.Release, err = decodeRelease("release", m.GetRelease()); err != nil {
		return err
	}
	if s.InForce, err = decodeRelease("release in force", m.GetInForce()); err != nil {
		return err
	}
	if s.State, err = states.decode(m.GetState()); err != nil {
		return err
	}
	if s.StandIn, err = standIns.decode(m.GetStandIn()); err != nil {
		return err
	}
	if s.NextTry, err = decodeTime("next try", m.GetNextTry()); err != nil {
		return err
	}
	if s.Since, err = decodeTime("since", m.GetSince()); err != nil {
		return err
	}
	if !codeShaped(m.GetReason()) {
		return fmt.Errorf("reason %s is not a code", chandler.Quote(m.GetReason()))
	}
	return nil
}

// codeShaped accepts CamelCase words. A newer agent may know codes that this
// side does not, so the list itself is not asked.
func codeShaped(s string) bool {
	if len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < 'A' || c > 'Z') && (i == 0 || (c < 'a' || c > 'z') && (c < '0' || c > '9')) {
			return false
		}
	}
	return true
}

package wire

import (
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

// Limits of what an agent says of its proxy.
const (
	MaxListeners = 256
	MaxSlots     = 2048 // of all listeners together
	MaxMembers   = 8192 // of all slots together
	MaxTraffic   = 256  // modes and ports
	maxEpoch     = 64
	maxCount     = 1 << 53
)

// FactsToProto translates facts for the wire, nil to nil. What is over the limits is
// left out, and More says so; names are made fit to be shown.
func FactsToProto(f *chandler.Facts) *chandlerv1.Facts {
	if f == nil {
		return nil
	}
	m := &chandlerv1.Facts{
		Slots: f.Slots, More: f.More || len(f.Listeners) > MaxListeners,
		StoreModules: uint32(f.Store.Modules), StoreBytes: uint64(max(f.Store.Bytes, 0)), StoreLimit: uint64(max(f.Store.Limit, 0)),
	}
	slots, members := MaxSlots, MaxMembers
	for _, l := range f.Listeners[:min(len(f.Listeners), MaxListeners)] {
		out := &chandlerv1.Listener{Name: shown(l.Name), Address: shown(l.Address), Port: l.Port, Mode: modes.to[l.Mode]}
		for _, s := range l.Slots[:min(len(l.Slots), slots)] {
			slot := encodeSlot(s, members)
			members -= len(slot.Members)
			m.More = m.More || len(slot.Members) < len(s.Members)
			out.Slots = append(out.Slots, slot)
		}
		slots -= len(out.Slots)
		m.More = m.More || len(l.Slots) > len(out.Slots)
		m.Listeners = append(m.Listeners, out)
	}
	for _, b := range f.Bypassed[:min(len(f.Bypassed), maxList)] {
		m.Bypassed = append(m.Bypassed, &chandlerv1.Bypass{Plugin: encodeRef(b.Key, ""), Reason: printable(b.Reason), At: encodeTime(b.At)})
	}
	return m
}

// shown is a foreign name as it may travel. Doing it twice changes nothing, and what came
// so goes on as it is.
func shown(s string) string {
	if checkOptionalName("", s) == nil {
		return s
	}
	return chandler.Printable(s, MaxName-64)
}

func encodeSlot(s chandler.Slot, most int) *chandlerv1.Slot {
	m := &chandlerv1.Slot{Name: shown(s.Name), Type: filterTypes.to[s.Type], Phase: phases.to[s.Phase]}
	for _, x := range s.Members[:min(len(s.Members), most)] {
		m.Members = append(m.Members, &chandlerv1.SlotMember{Plugin: encodeRef(x.Key, ""), Release: string(x.Release), StandIn: standIns.to[x.StandIn]})
	}
	return m
}

// FactsFromProto checks and translates facts, nil to nil.
func FactsFromProto(m *chandlerv1.Facts) (*chandler.Facts, error) {
	if m == nil {
		return nil, nil
	}
	f := &chandler.Facts{Slots: m.GetSlots(), More: m.GetMore()}
	f.Store = chandler.StoreUse{Modules: int(m.GetStoreModules()), Bytes: int64(m.GetStoreBytes()), Limit: int64(m.GetStoreLimit())}
	if f.Store.Bytes < 0 || f.Store.Limit < 0 {
		return nil, errors.New("the size of a store is out of range")
	}
	if err := checkLen("listeners", len(m.GetListeners()), MaxListeners); err != nil {
		return nil, err
	}
	if err := checkLen("bypassed plugins", len(m.GetBypassed()), maxList); err != nil {
		return nil, err
	}
	slots, members := 0, 0
	for _, x := range m.GetListeners() {
		slots += len(x.GetSlots())
		for _, s := range x.GetSlots() {
			members += len(s.GetMembers())
		}
	}
	if err := errors.Join(checkLen("slots", slots, MaxSlots), checkLen("members of slots", members, MaxMembers)); err != nil {
		return nil, err
	}
	for _, x := range m.GetListeners() {
		l, err := decodeListener(x)
		if err != nil {
			return nil, fmt.Errorf("listener: %w", err)
		}
		f.Listeners = append(f.Listeners, l)
	}
	for _, x := range m.GetBypassed() {
		b, err := decodeBypass(x)
		if err != nil {
			return nil, fmt.Errorf("bypassed plugin: %w", err)
		}
		f.Bypassed = append(f.Bypassed, b)
	}
	return f, nil
}

func decodeListener(m *chandlerv1.Listener) (l chandler.Listener, err error) {
	l = chandler.Listener{Name: m.GetName(), Address: m.GetAddress(), Port: m.GetPort()}
	if err := errors.Join(checkOptionalName("name", l.Name), checkOptionalName("address", l.Address)); err != nil {
		return l, err
	}
	if l.Mode, err = direction(m.GetMode()); err != nil {
		return l, err
	}
	for _, x := range m.GetSlots() {
		s, err := decodeSlot(x)
		if err != nil {
			return l, fmt.Errorf("slot: %w", err)
		}
		l.Slots = append(l.Slots, s)
	}
	return l, nil
}

// direction is a mode that traffic can have.
func direction(m chandlerv1.Mode) (chandler.Mode, error) {
	mode, err := modes.decode(m)
	if err == nil && mode == chandler.ModeAny {
		err = errors.New("a listener is for clients or for servers")
	}
	return mode, err
}

func decodeSlot(m *chandlerv1.Slot) (s chandler.Slot, err error) {
	s.Name = m.GetName()
	if err := checkOptionalName("name", s.Name); err != nil {
		return s, err
	}
	if s.Type, err = filterTypes.decode(m.GetType()); err != nil {
		return s, err
	}
	if s.Phase, err = phases.decode(m.GetPhase()); err != nil {
		return s, err
	}
	for _, x := range m.GetMembers() {
		var member chandler.SlotMember
		if member.Key, _, err = decodeRef(x.GetPlugin()); err != nil {
			return s, err
		}
		if member.Release, err = decodeRelease("release", x.GetRelease()); err != nil {
			return s, err
		}
		if member.StandIn, err = standIns.decode(x.GetStandIn()); err != nil {
			return s, err
		}
		s.Members = append(s.Members, member)
	}
	return s, nil
}

func decodeBypass(m *chandlerv1.Bypass) (b chandler.Bypass, err error) {
	if b.Key, _, err = decodeRef(m.GetPlugin()); err != nil {
		return b, err
	}
	b.Reason = printable(Masked(m.GetReason(), MaxMessage-64))
	b.At, err = decodeTime("time", m.GetAt())
	return b, err
}

// TrafficToProto translates counts of answers for the wire.
func TrafficToProto(list []chandler.Traffic) []*chandlerv1.Traffic {
	var out []*chandlerv1.Traffic
	for i := range list[:min(len(list), MaxTraffic)] {
		t := &list[i]
		out = append(out, &chandlerv1.Traffic{
			Mode: modes.to[t.Mode], Port: t.Port, Epoch: t.Epoch, Now: encodeAnswers(&t.Now), Hour: encodeAnswers(&t.Hour),
		})
	}
	return out
}

func encodeAnswers(a *chandler.Answers) *chandlerv1.Answers {
	if *a == (chandler.Answers{}) {
		return nil
	}
	return &chandlerv1.Answers{Classes: a.Classes[:], Latency: a.Latency[:]}
}

// TrafficFromProto checks and translates counts of answers.
func TrafficFromProto(list []*chandlerv1.Traffic) ([]chandler.Traffic, error) {
	if err := checkLen("traffic", len(list), MaxTraffic); err != nil {
		return nil, err
	}
	type place struct {
		mode chandler.Mode
		port uint32
	}
	seen := map[place]bool{}
	var out []chandler.Traffic
	for _, m := range list {
		t := chandler.Traffic{Port: m.GetPort(), Epoch: m.GetEpoch()}
		var err error
		if t.Mode, err = direction(m.GetMode()); err != nil {
			return nil, fmt.Errorf("traffic: %w", err)
		}
		if at := (place{t.Mode, t.Port}); seen[at] {
			return nil, fmt.Errorf("traffic of port %d is told twice", t.Port)
		} else {
			seen[at] = true
		}
		if len(t.Epoch) > maxEpoch || !chandler.IsPlain(t.Epoch) {
			return nil, errors.New("an epoch of traffic is not plain and short")
		}
		if err := errors.Join(decodeAnswers(m.GetNow(), &t.Now), decodeAnswers(m.GetHour(), &t.Hour)); err != nil {
			return nil, err
		}
		out = append(out, t)
	}
	return out, nil
}

// decodeAnswers accepts all the counts or none. None is so great that sums of them
// could overflow.
func decodeAnswers(m *chandlerv1.Answers, a *chandler.Answers) error {
	for _, list := range []struct {
		from []uint64
		to   []uint64
	}{{m.GetClasses(), a.Classes[:]}, {m.GetLatency(), a.Latency[:]}} {
		if len(list.from) != 0 && len(list.from) != len(list.to) {
			return fmt.Errorf("%d counts of answers where there are %d", len(list.from), len(list.to))
		}
		for _, n := range list.from {
			if n > maxCount {
				return fmt.Errorf("%d answers are out of range", n)
			}
		}
		copy(list.to, list.from)
	}
	return nil
}

// said is what a message says of the proxy as a whole.
func said(m interface {
	GetFacts() *chandlerv1.Facts
	GetTraffic() []*chandlerv1.Traffic
}) (*chandler.Facts, []chandler.Traffic, error) {
	f, err := FactsFromProto(m.GetFacts())
	if err != nil {
		return nil, nil, err
	}
	t, err := TrafficFromProto(m.GetTraffic())
	return f, t, err
}

// The shortest and the longest interval at which traffic is told.
const (
	MinInterval = time.Second
	MaxInterval = time.Hour
)

// IntervalToProto translates how often traffic is to be told, or within what time; zero:
// not at all, or at once.
func IntervalToProto(d time.Duration) *durationpb.Duration {
	if d <= 0 {
		return nil
	}
	return durationpb.New(d)
}

// MaxSpread is within what time a fleet reports at most.
const MaxSpread = time.Second

// SpreadFromProto bounds within what time an agent is to report; zero: at once.
func SpreadFromProto(m *durationpb.Duration) time.Duration {
	if m.CheckValid() != nil {
		return 0
	}
	return min(max(m.AsDuration(), 0), MaxSpread)
}

// IntervalFromProto bounds how often traffic is to be told; zero: not at all.
func IntervalFromProto(m *durationpb.Duration) time.Duration {
	d := m.AsDuration()
	if m.CheckValid() != nil || d <= 0 {
		return 0
	}
	return min(max(d, MinInterval), MaxInterval)
}

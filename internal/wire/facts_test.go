package wire

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"pgregory.net/rapid"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

var (
	genDirection = rapid.SampledFrom([]chandler.Mode{chandler.ModeClient, chandler.ModeServer})
	genSlot      = rapid.Custom(func(t *rapid.T) chandler.Slot {
		return chandler.Slot{
			Name: shown(genName.Draw(t, "name")), Type: rapid.SampledFrom([]chandler.FilterType{chandler.HTTP, chandler.Network}).Draw(t, "type"),
			Phase: rapid.SampledFrom(chandler.Phases()).Draw(t, "phase"),
			Members: listOf(rapid.Custom(func(t *rapid.T) chandler.SlotMember {
				return chandler.SlotMember{Key: genKey.Draw(t, "key"), Release: genRelease.Draw(t, "release"), StandIn: rapid.SampledFrom(
					[]chandler.StandIn{chandler.StandInNone, chandler.StandInPass, chandler.StandInDeny}).Draw(t, "standin")}
			})).Draw(t, "members"),
		}
	})
	genFacts = rapid.Custom(func(t *rapid.T) *chandler.Facts {
		if rapid.Bool().Draw(t, "none") {
			return nil
		}
		return &chandler.Facts{
			Slots: rapid.Bool().Draw(t, "slots"), More: rapid.Bool().Draw(t, "more"),
			Store: chandler.StoreUse{Modules: rapid.IntRange(0, 1000).Draw(t, "modules"), Bytes: rapid.Int64Min(0).Draw(t, "bytes"), Limit: rapid.Int64Min(0).Draw(t, "limit")},
			Listeners: listOf(rapid.Custom(func(t *rapid.T) chandler.Listener {
				return chandler.Listener{
					Name: shown(genName.Draw(t, "name")), Address: shown(genName.Draw(t, "address")), Port: rapid.Uint32().Draw(t, "port"),
					Mode: genDirection.Draw(t, "mode"), Slots: listOf(genSlot).Draw(t, "slots"),
				}
			})).Draw(t, "listeners"),
			Bypassed: listOf(rapid.Custom(func(t *rapid.T) chandler.Bypass {
				return chandler.Bypass{Key: genKey.Draw(t, "key"), Reason: strings.TrimSpace(genText.Draw(t, "reason")), At: genTime.Draw(t, "at")}
			})).Draw(t, "bypassed"),
		}
	})
	genAnswers = rapid.Custom(func(t *rapid.T) (a chandler.Answers) {
		for i := range a.Classes {
			a.Classes[i] = rapid.Uint64Max(maxCount).Draw(t, "class")
		}
		for i := range a.Latency {
			a.Latency[i] = rapid.Uint64Max(maxCount).Draw(t, "latency")
		}
		return a
	})
	genTraffic = rapid.Custom(func(t *rapid.T) []chandler.Traffic {
		var list []chandler.Traffic
		for port := range rapid.Uint32Max(3).Draw(t, "places") {
			list = append(list, chandler.Traffic{
				Mode: genDirection.Draw(t, "mode"), Port: port, Epoch: fmt.Sprint(rapid.Uint64().Draw(t, "epoch")),
				Now: genAnswers.Draw(t, "now"), Hour: genAnswers.Draw(t, "hour"),
			})
		}
		return list
	})
)

// What is over the limits is left out by who tells, and More says so; who is told
// otherwise refuses.
func TestFactsHaveAnEnd(t *testing.T) {
	t.Parallel()
	members := func(n int) (out []chandler.SlotMember) {
		for i := range n {
			out = append(out, chandler.SlotMember{Key: chandler.Key{Kind: "k", Namespace: "n", Name: fmt.Sprint(i)}})
		}
		return out
	}
	listeners := func(n, slots, each int) (out []chandler.Listener) {
		for range n {
			l := chandler.Listener{Name: "l", Mode: chandler.ModeServer}
			for range slots {
				l.Slots = append(l.Slots, chandler.Slot{Name: "s", Type: chandler.HTTP, Members: members(each)})
			}
			out = append(out, l)
		}
		return out
	}
	for name, c := range map[string]struct {
		listeners []chandler.Listener
		more      bool
	}{
		"all that may be":    {listeners(MaxListeners, MaxSlots/MaxListeners, MaxMembers/MaxSlots), false},
		"too many listeners": {listeners(MaxListeners+1, 0, 0), true},
		"too many slots":     {listeners(2, MaxSlots/2+1, 0), true},
		"too many members":   {listeners(1, 2, MaxMembers/2+1), true},
	} {
		f, err := FactsFromProto(FactsToProto(&chandler.Facts{Listeners: c.listeners}))
		if err != nil || f.More != c.more {
			t.Errorf("%s: %v, more %v", name, err, f != nil && f.More)
		}
	}

	slot := func(n int) *chandlerv1.Slot {
		s := encodeSlot(chandler.Slot{Name: "s", Type: chandler.HTTP, Members: members(n)}, n)
		return s
	}
	server := chandlerv1.Mode_MODE_SERVER
	for name, m := range map[string]*chandlerv1.Facts{
		"listeners":     {Listeners: make([]*chandlerv1.Listener, MaxListeners+1)},
		"slots":         {Listeners: []*chandlerv1.Listener{{Mode: server, Slots: make([]*chandlerv1.Slot, MaxSlots+1)}}},
		"members":       {Listeners: []*chandlerv1.Listener{{Mode: server, Slots: []*chandlerv1.Slot{slot(MaxMembers), slot(1)}}}},
		"bypassed":      {Bypassed: make([]*chandlerv1.Bypass, maxList+1)},
		"no plugin":     {Bypassed: []*chandlerv1.Bypass{{}}},
		"any mode":      {Listeners: []*chandlerv1.Listener{{}}},
		"a long name":   {Listeners: []*chandlerv1.Listener{{Mode: server, Name: strings.Repeat("x", MaxName+1)}}},
		"a bad name":    {Listeners: []*chandlerv1.Listener{{Mode: server, Name: "\x1b[2J"}}},
		"a bad address": {Listeners: []*chandlerv1.Listener{{Mode: server, Address: "\n"}}},
		"a bad slot":    {Listeners: []*chandlerv1.Listener{{Mode: server, Slots: []*chandlerv1.Slot{{Name: "\n"}}}}},
		"a bad phase":   {Listeners: []*chandlerv1.Listener{{Mode: server, Slots: []*chandlerv1.Slot{{Type: 1, Phase: 99}}}}},
		"a huge store":  {StoreBytes: 1 << 63},
	} {
		if _, err := FactsFromProto(m); err == nil || len(err.Error()) > 1<<10 {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTrafficHasAnEnd(t *testing.T) {
	t.Parallel()
	server := chandlerv1.Mode_MODE_SERVER
	for name, list := range map[string][]*chandlerv1.Traffic{
		"places":       make([]*chandlerv1.Traffic, MaxTraffic+1),
		"twice":        {{Mode: server, Port: 1}, {Mode: server, Port: 1}},
		"any mode":     {{}},
		"a long epoch": {{Mode: server, Epoch: strings.Repeat("x", maxEpoch+1)}},
		"a bad epoch":  {{Mode: server, Epoch: "\n"}},
		"classes":      {{Mode: server, Now: &chandlerv1.Answers{Classes: make([]uint64, 6)}}},
		"latency":      {{Mode: server, Hour: &chandlerv1.Answers{Latency: make([]uint64, 3)}}},
		"huge":         {{Mode: server, Now: &chandlerv1.Answers{Classes: []uint64{0, 1 << 60, 0, 0, 0}}}},
	} {
		if _, err := TrafficFromProto(list); err == nil || len(err.Error()) > 1<<10 {
			t.Errorf("%s: %v", name, err)
		}
	}
	var many []chandler.Traffic
	for port := range uint32(MaxTraffic + 9) {
		many = append(many, chandler.Traffic{Mode: chandler.ModeClient, Port: port})
	}
	if got, err := TrafficFromProto(TrafficToProto(many)); err != nil || len(got) != MaxTraffic {
		t.Errorf("%d places, %v", len(got), err)
	}
}

func TestIntervalIsBounded(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ sent, heard time.Duration }{
		{0, 0}, {-time.Second, 0}, {time.Millisecond, MinInterval}, {15 * time.Second, 15 * time.Second}, {48 * time.Hour, MaxInterval},
	} {
		if got := IntervalFromProto(IntervalToProto(c.sent)); got != c.heard {
			t.Errorf("%v is heard as %v", c.sent, got)
		}
	}
	if got := IntervalFromProto(&durationpb.Duration{Seconds: 1 << 62, Nanos: -7}); got != 0 {
		t.Errorf("what is no duration is heard as %v", got)
	}
}

package attach

import (
	"slices"
	"testing"

	"chandler.dev/chandler"
)

func TestSlotNames(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]Slot{
		"chandler/authn/client/8080":       {Phase: chandler.PhaseAuthn, Mode: chandler.ModeClient, Port: 8080},
		"chandler/authz/server/0":          {Phase: chandler.PhaseAuthz, Mode: chandler.ModeServer, Port: 0},
		"chandler/stats/client/65535":      {Phase: chandler.PhaseStats, Mode: chandler.ModeClient, Port: 65535},
		"chandler/unspecified/server/9080": {Phase: chandler.PhaseUnspecified, Mode: chandler.ModeServer, Port: 9080},
		"chandler/authn/client/80/http/WasmPlugin/ns/a.b": {Phase: chandler.PhaseAuthn, Mode: chandler.ModeClient, Port: 80,
			Plugin: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: "a.b"}},
		"chandler/stats/server/0/network/TrafficExtension/ns/a": {Phase: chandler.PhaseStats, Mode: chandler.ModeServer, Network: true,
			Plugin: chandler.Key{Kind: chandler.KindTrafficExtension, Namespace: "ns", Name: "a"}},
	} {
		if s.Name() != name {
			t.Errorf("%+v is called %s, want %s", s, s.Name(), name)
		}
		if got, ok := ParseSlot(name); !ok || got != s {
			t.Errorf("%s is read as %+v, %v", name, got, ok)
		}
	}
	for _, name := range []string{"", "chandler", "chandler/authn/client", "chandler/authn/any/80", "chandler/AUTHN/client/80", "chandler/authn/client/080", "chandler/authn/client/-1", "x/authn/client/80", "chandler/authn/client/80/",
		"chandler/authn/client/80/http", "chandler/authn/client/80/tcp/WasmPlugin/ns/a", "chandler/authn/client/80/http/WasmPlugin/ns"} {
		if s, ok := ParseSlot(name); ok {
			t.Errorf("%q is read as %+v", name, s)
		}
	}
}

func TestSlotOrder(t *testing.T) {
	t.Parallel()
	want := []Slot{
		{Phase: chandler.PhaseAuthn, Mode: chandler.ModeClient, Port: 80},
		{Phase: chandler.PhaseAuthz, Mode: chandler.ModeClient, Port: 80},
		{Phase: chandler.PhaseStats, Mode: chandler.ModeClient, Port: 80},
		{Phase: chandler.PhaseUnspecified, Mode: chandler.ModeClient, Port: 80},
		{Phase: chandler.PhaseAuthn, Mode: chandler.ModeClient, Port: 443},
		{Phase: chandler.PhaseAuthn, Mode: chandler.ModeServer, Port: 0},
	}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, Slot.Compare)
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}

func TestSlotHolds(t *testing.T) {
	t.Parallel()
	client80 := Slot{Phase: chandler.PhaseAuthn, Mode: chandler.ModeClient, Port: 80}
	server80 := Slot{Phase: chandler.PhaseAuthn, Mode: chandler.ModeServer, Port: 80}
	pipe := Slot{Phase: chandler.PhaseAuthn, Mode: chandler.ModeClient, Port: 0}
	type match = chandler.Match
	for _, c := range []struct {
		name    string
		match   []match
		in, out []Slot
	}{
		{"no match is all traffic", nil, []Slot{client80, server80, pipe}, nil},
		{"an entry without anything is all traffic", []match{{}}, []Slot{client80, server80, pipe}, nil},
		{"a mode", []match{{Mode: chandler.ModeServer}}, []Slot{server80}, []Slot{client80, pipe}},
		{"a port", []match{{Ports: []uint32{443, 80}}}, []Slot{client80, server80}, []Slot{pipe}},
		{"mode and port", []match{{Mode: chandler.ModeClient, Ports: []uint32{80}}}, []Slot{client80}, []Slot{server80, pipe}},
		{"entries are alternatives", []match{{Mode: chandler.ModeClient, Ports: []uint32{443}}, {Mode: chandler.ModeServer}}, []Slot{server80}, []Slot{client80}},
	} {
		a := &chandler.Attachment{Key: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: "a"},
			Behaviour: chandler.Behaviour{Type: chandler.HTTP, Phase: chandler.PhaseAuthn, Match: c.match}}
		for _, s := range c.in {
			if !s.Holds(a) {
				t.Errorf("%s: %s must hold it", c.name, s.Name())
			}
			if (Slot{Phase: chandler.PhaseStats, Mode: s.Mode, Port: s.Port}).Holds(a) {
				t.Errorf("%s: held by another phase's slot", c.name)
			}
		}
		for _, s := range c.out {
			if s.Holds(a) {
				t.Errorf("%s: %s must not hold it", c.name, s.Name())
			}
		}
		network := *a
		network.Type = chandler.Network
		if client80.Holds(&network) {
			t.Errorf("%s: an HTTP slot holds a network plugin", c.name)
		}
		for _, s := range append(c.in, c.out...) {
			in := slices.Contains(c.in, s)
			if own, ok := (Site{s.Mode, s.Port, true}).Slot(&network); ok != in || own.Holds(a) {
				t.Errorf("%s: of its own at %v: %v, %v", c.name, s, own, ok)
			}
			other := network
			other.Name = "other"
			if own, _ := (Site{s.Mode, s.Port, true}).Slot(&network); own.Holds(&other) {
				t.Errorf("%s: a slot of one plugin holds another", c.name)
			}
		}
	}
}

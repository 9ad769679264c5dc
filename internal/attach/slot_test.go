package attach

import (
	"slices"
	"testing"

	"chandler.dev/chandler"
)

func TestSlotNames(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]Slot{
		"chandler/authn/client/8080":       {chandler.PhaseAuthn, chandler.ModeClient, 8080},
		"chandler/authz/server/0":          {chandler.PhaseAuthz, chandler.ModeServer, 0},
		"chandler/stats/client/65535":      {chandler.PhaseStats, chandler.ModeClient, 65535},
		"chandler/unspecified/server/9080": {chandler.PhaseUnspecified, chandler.ModeServer, 9080},
	} {
		if s.Name() != name {
			t.Errorf("%+v is called %s, want %s", s, s.Name(), name)
		}
		if got, ok := ParseSlot(name); !ok || got != s {
			t.Errorf("%s is read as %+v, %v", name, got, ok)
		}
	}
	for _, name := range []string{"", "chandler", "chandler/authn/client", "chandler/authn/any/80", "chandler/AUTHN/client/80", "chandler/authn/client/080", "chandler/authn/client/-1", "x/authn/client/80", "chandler/authn/client/80/"} {
		if s, ok := ParseSlot(name); ok {
			t.Errorf("%q is read as %+v", name, s)
		}
	}
}

func TestSlotOrder(t *testing.T) {
	t.Parallel()
	want := []Slot{
		{chandler.PhaseAuthn, chandler.ModeClient, 80},
		{chandler.PhaseAuthz, chandler.ModeClient, 80},
		{chandler.PhaseStats, chandler.ModeClient, 80},
		{chandler.PhaseUnspecified, chandler.ModeClient, 80},
		{chandler.PhaseAuthn, chandler.ModeClient, 443},
		{chandler.PhaseAuthn, chandler.ModeServer, 0},
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
	client80 := Slot{chandler.PhaseAuthn, chandler.ModeClient, 80}
	server80 := Slot{chandler.PhaseAuthn, chandler.ModeServer, 80}
	pipe := Slot{chandler.PhaseAuthn, chandler.ModeClient, 0}
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
		a := &chandler.Attachment{Behaviour: chandler.Behaviour{Type: chandler.HTTP, Phase: chandler.PhaseAuthn, Match: c.match}}
		for _, s := range c.in {
			if !s.Holds(a) {
				t.Errorf("%s: %s must hold it", c.name, s.Name())
			}
			if (Slot{chandler.PhaseStats, s.Mode, s.Port}).Holds(a) {
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
	}
}

package agent

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/testenv/clock"
)

// Every wait of the agent (deadlines, next tries, what is held against a plugin) is
// of a clock that never jumps: after a bit of everything no time of its state is
// without one. Nothing expires because the clock is set, and nothing is frozen.
func TestFault_F43_StateKeepsMonotonicTime(t *testing.T) {
	t.Parallel()
	sl := attach.Slot{Phase: chandler.PhaseAuthn, Mode: chandler.ModeClient, Port: 8080}
	s := NewState(Settings{Slots: []attach.Slot{sl}, Features: []string{chandler.FeatureHTTP}})
	version := func(name, v string) Version {
		return Version{Version: v, Attachment: chandler.Attachment{
			Key: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: name}, UID: name, Created: time.Unix(1, 0),
			Behaviour: chandler.Behaviour{Phase: chandler.PhaseAuthn, FailStrategy: chandler.FailClose},
			Program:   chandler.Program{Module: &chandler.Module{Digest: chandler.Digest[chandler.ModuleDigest]([]byte(v)), Size: 1}},
		}}
	}
	var pushed Push
	step := func(ev Event) {
		t.Helper()
		for _, e := range s.Step(ev, time.Now()) {
			if p, ok := e.(Push); ok {
				pushed = p
			}
		}
		if err := clock.Kept(s, "Created"); err != nil {
			t.Errorf("after %T: %v", ev, err)
		}
		if at := s.Wake(); !at.IsZero() && clock.Kept(at) != nil {
			t.Errorf("after %T: to be woken by the wall clock", ev)
		}
	}
	good, denied, bad, gone := version("good", "g1"), version("denied", "d1"), version("bad", "b1"), version("gone", "x1")
	step(Restored{Envoy: "e", Versions: []Version{good}, Denied: []Version{denied}})
	step(Assigned{Changed: []Version{bad, gone}})
	step(EnvoyStarted{Envoy: "e"})
	step(Subscribed{Slot: sl.Name()})
	for _, v := range []Version{good, bad} {
		src := source(&v)
		step(Loaded{Source: src, Digest: src.Digest, Path: "/store/" + src.Digest.Hex(), Size: 1})
	}
	for _, temporary := range []bool{true, false} {
		src := source(&gone)
		step(Loaded{Source: src, Err: &LoadError{Problem: chandler.Problem{Code: chandler.CodeFetchFailed}, Temporary: temporary, RetryAfter: time.Minute}})
	}
	step(Acked{Slot: pushed.Slot, Version: pushed.Version})
	step(ListenersOpen{})
	step(Nacked{Slot: pushed.Slot, Version: pushed.Version, Message: "Unable to create Wasm plugin " + bad.Key.String()})
	step(Acked{Slot: pushed.Slot, Version: pushed.Version})
	step(Trapped{Counts: map[chandler.Key]VMFaults{good.Key: {Reloads: 3}}})
	step(Lost{Digest: source(&good).Digest})
	step(EnvoyEnded{Message: "gone", Next: time.Now().Add(time.Second)})
	step(Tick{})

	times := 0
	for _, p := range s.plugins {
		for _, at := range []time.Time{p.deadline, p.nextTry, p.trapped, p.since} {
			if !at.IsZero() {
				times++
			}
		}
	}
	if rejected := s.plugins[bad.Key].nextTry; times < 6 || rejected.IsZero() || s.plugins[good.Key].trapped.IsZero() {
		t.Errorf("the test shows little: %d times, rejected until %v", times, rejected)
	}
}

// What the agent keeps on disk has no time in it but that of creation, which orders
// plugins and is waited for by nobody.
func TestFault_F43_NoTimeOnDisk(t *testing.T) {
	t.Parallel()
	for _, path := range times("", reflect.TypeFor[lastGoodFile](), nil) {
		if !slices.Contains([]string{".Versions.Attachment.Created", ".Denied.Attachment.Created"}, path) {
			t.Errorf("the last good set holds a time: %s", path)
		}
	}
}

// times gives the paths of a type's fields that hold a time.
func times(path string, typ reflect.Type, found []string) []string {
	switch {
	case typ == reflect.TypeFor[time.Time]():
		return append(found, path)
	case typ.Kind() == reflect.Struct:
		for i := range typ.NumField() {
			found = times(path+"."+typ.Field(i).Name, typ.Field(i).Type, found)
		}
	case typ.Kind() == reflect.Pointer, typ.Kind() == reflect.Slice, typ.Kind() == reflect.Map:
		return times(path, typ.Elem(), found)
	}
	return found
}

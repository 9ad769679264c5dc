package agent

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
)

func outs(keys ...chandler.Key) Bypassed {
	var ev Bypassed
	for _, key := range keys {
		ev.Plugins = append(ev.Plugins, chandler.Bypass{Key: key, Reason: "it burns", At: time.Unix(1_700_000_000, 0)})
	}
	return ev
}

// A plugin that is taken out leaves its slot, whatever stands there for it, and says so;
// put back it is in force at once, in its newest version.
func TestBypassTakesOut(t *testing.T) {
	t.Parallel()
	p, a := serving(t), version("a")
	p.assign(a)
	p.loaded(a)
	p.ackAll()
	p.step(outs(a.Key))
	if push := p.sent(); len(push.Wasm) != 0 {
		t.Fatalf("pushed %v", push.Wasm)
	}
	p.wantState(a, chandler.StateFailed, string(a.Release), chandler.StandInNone, chandler.CodeBypassed) // until Envoy says that it is out
	p.ackAll()
	st := p.wantState(a, chandler.StateFailed, "", chandler.StandInPass, chandler.CodeBypassed)
	if !strings.Contains(st.Message, "it burns") || !strings.Contains(st.Message, "2023-11-14") {
		t.Errorf("it says %q", st.Message)
	}
	if why := p.s.Readiness(); why != nil {
		t.Errorf("not ready: %v", why)
	}
	if len(p.saved.Versions) != 1 {
		t.Errorf("the last good set has %d plugins", len(p.saved.Versions))
	}

	// Versions come and are not put in force, also not by the next agent.
	b := version("b", func(v *Version) { v.Key, v.UID, v.Sequence = a.Key, a.UID, a.Sequence+1 })
	p.assign(b)
	p.loaded(b)
	if len(p.pushes) != 0 {
		t.Errorf("pushed %v", p.pushes)
	}
	next := newProxy(t)
	next.step(outs(a.Key))
	next.step(Restored(*p.saved))
	next.start("envoy-1", false)
	next.loaded(a)
	for len(next.pushes) > 0 {
		if len(next.sent().Wasm) != 0 {
			t.Errorf("the next agent pushed %v", next.sent().Wasm)
		}
		next.ack()
	}

	p.step(Bypassed{})
	if push := p.sent(); len(push.Wasm) != 1 {
		t.Fatalf("put back, pushed %v", push.Wasm)
	}
	p.ackAll()
	p.wantState(b, chandler.StateInForce, string(b.Release), chandler.StandInNone, "")
}

// A denial that stands in for a plugin goes with it.
func TestBypassOfADenial(t *testing.T) {
	t.Parallel()
	p, a := serving(t), version("a")
	p.assign(a)
	p.loadFails(a, chandler.CodeFetchFailed, true)
	p.pass(DefaultFetchDeadline)
	p.ackAll()
	p.wantState(a, chandler.StateFailed, "", chandler.StandInDeny, chandler.CodeFetchFailed)
	p.step(outs(a.Key))
	p.ackAll()
	p.wantState(a, chandler.StateFailed, "", chandler.StandInPass, chandler.CodeBypassed)
	p.step(Bypassed{})
	p.ackAll()
	p.wantState(a, chandler.StateFailed, "", chandler.StandInDeny, chandler.CodeFetchFailed)
}

// An Envoy that was left behind and runs what the agent does not know of keeps it until
// the control plane is heard; but not what is taken out.
func TestBypassOfALeftEnvoy(t *testing.T) {
	t.Parallel()
	p, a := serving(t), version("a")
	p.assign(a)
	p.loaded(a)
	p.ackAll()
	next := newProxy(t)
	next.step(Restored(*p.saved))
	next.step(EnvoyStarted{Envoy: "envoy-1", Open: true})
	next.step(Subscribed{Slot: authn, Version: "of another agent"})
	next.loaded(a)
	if len(next.pushes) != 0 {
		t.Fatalf("pushed %v before the control plane is heard", next.pushes)
	}
	next.step(outs(a.Key))
	if push := next.sent(); push.Slot != authn || len(push.Wasm) != 0 {
		t.Errorf("pushed %v to %s", push.Wasm, push.Slot)
	}
}

// Orders are files: they outlive who gave them, and what cannot be read is not taken
// for an order that was taken back.
func TestBypassFiles(t *testing.T) {
	t.Parallel()
	dir, key := t.TempDir(), chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: "a"}
	other := chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: "b"}
	var log bytes.Buffer
	d := bypassDir{dir: dir, log: slog.New(slog.NewTextHandler(&log, nil))}
	look := func(want ...chandler.Key) {
		t.Helper()
		got, changed := d.look()
		if !changed || len(got) != len(want) {
			t.Fatalf("changed %v: %v, want %v", changed, got, want)
		}
		for _, key := range want {
			if d.orders[key].Reason != "it burns" || d.orders[key].By != "ann" {
				t.Errorf("%v: %+v", key, d.orders[key])
			}
		}
	}
	quiet := func() {
		t.Helper()
		if got, changed := d.look(); changed {
			t.Errorf("it changed to %v", got)
		}
	}
	order := func(key chandler.Key) BypassOrder {
		return BypassOrder{Bypass: chandler.Bypass{Key: key, Reason: "it burns", At: time.Unix(1_700_000_000, 0)}, By: "ann"}
	}
	quiet()
	if err := WriteBypass(dir, order(key)); err != nil {
		t.Fatal(err)
	}
	look(key)
	quiet()
	if err := WriteBypass(dir, order(other)); err != nil {
		t.Fatal(err)
	}
	look(key, other)
	if st, err := os.Stat(bypassPath(dir, key)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode: %v, %v", st.Mode(), err)
	}

	// One that becomes unreadable still holds, and is complained about once.
	path := bypassPath(dir, other)
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		quiet()
	}
	if n := strings.Count(log.String(), "level=ERROR"); n != 1 || len(d.orders) != 2 {
		t.Errorf("%d complaints, %d orders", n, len(d.orders))
	}
	if err := RemoveBypass(dir, other); err != nil {
		t.Fatal(err)
	}
	look(key)
	if err := RemoveBypass(dir, key); err != nil {
		t.Fatal(err)
	}
	look()
	if err := RemoveBypass(dir, key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("taken back twice: %v", err)
	}
	if list, err := ListBypasses(dir); err != nil || len(list) != 0 {
		t.Errorf("left: %v, %v", list, err)
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "bypass")); err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}

// What another program wrote is no order.
func TestBypassFilesOfOthers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Mkdir(bypassesDir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"later.json": `{"format": 2, "kind": "WasmPlugin", "namespace": "ns", "name": "a"}`, "empty.json": "", "no.json": `{"format": 1}`,
		"slash.json": `{"format": 1, "kind": "a/b", "namespace": "ns", "name": "a"}`, "ctl.json": `{"format": 1, "kind": "k", "namespace": "n\u001b", "name": "a"}`,
		"big.json": `{"format": 1, "reason": "` + strings.Repeat("x", maxBypass) + `"}`, "note.txt": "mine",
	} {
		writeFile(t, filepath.Join(bypassesDir(dir), name), []byte(text))
	}
	list, err := ListBypasses(dir)
	if len(list) != 0 || err == nil || strings.Count(err.Error(), "\n") != 5 || strings.Contains(err.Error(), "note.txt") {
		t.Errorf("%v, %v", list, err)
	}
}

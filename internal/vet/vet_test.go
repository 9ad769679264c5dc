package vet_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/sandbox"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/vet"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// envoy says what it is told to, nearly a second after it was asked.
type envoy struct {
	version string
	says    func(config string) (*chandler.Problem, error)

	mu         sync.Mutex
	asked      int
	now, atOne int
}

func (e *envoy) Version() string { return e.version }

func (e *envoy) Name() string { return chandler.JudgeEnvoy }
func (e *envoy) Weak() string { return "" }

func (e *envoy) Judge(ctx context.Context, c sandbox.Case) (*chandler.Problem, error) {
	e.mu.Lock()
	e.asked++
	e.now++
	e.atOne = max(e.atOne, e.now)
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.now--
	}()
	if c.Attachment.FailStrategy != chandler.FailClose {
		return nil, errors.New("a failure would not be one")
	}
	select {
	case <-time.After(900 * time.Millisecond): // less than after which turns change
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if e.says == nil {
		return nil, nil
	}
	return e.says(string(c.Attachment.Config))
}

func release(config string) *chandler.Release {
	r := &chandler.Release{Key: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: "p"}}
	r.Program.Module = &chandler.Module{Digest: "sha256:ab", Size: 1}
	r.Config, r.FailStrategy = []byte(config), chandler.FailOpen
	return r
}

func request(config string) vet.Request {
	return vet.Request{Release: release(config), Path: "m.wasm"}
}

func refuse(string) (*chandler.Problem, error) {
	return chandler.Problemf(chandler.CodeWasmConfigure, "", "", "no"), nil
}

// Every Envoy is asked once for the same, however many ask, and a restart asks none.
func TestAskedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		old, young := &envoy{version: "1.36.0"}, &envoy{version: "1.40.0"}
		v := vet.New(vet.Config{Judges: []vet.Judge{old, young}})
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				said, err := v.Vet(t.Context(), request("a"))
				if err != nil || len(said) != 2 || said[0].EnvoyVersion != "1.36.0" || said[1].EnvoyVersion != "1.40.0" || said[0].Judge != chandler.JudgeEnvoy {
					t.Errorf("it says %v, %v", said, err)
				}
			})
		}
		all.Wait()
		if old.asked != 1 || young.asked != 1 {
			t.Errorf("asked %d and %d times", old.asked, young.asked)
		}
		recorded := release("a")
		recorded.Verdicts, _ = v.Vet(t.Context(), request("a"))
		next := vet.New(vet.Config{Judges: []vet.Judge{old, young}})
		next.Know([]chandler.Release{*recorded})
		if _, err := next.Vet(t.Context(), request("a")); err != nil || old.asked+young.asked != 2 {
			t.Errorf("after a restart %d were asked (%v)", old.asked+young.asked-2, err)
		}
		if _, err := v.Vet(t.Context(), request("b")); err != nil || young.asked != 2 {
			t.Errorf("for another configuration %d were asked (%v)", young.asked-1, err)
		}
	})
}

// A refusal by one is a refusal, and remembered; what may be the machine's fault is
// not.
func TestRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		says  func(string) (*chandler.Problem, error)
		code  chandler.Code
		asked int // of two
	}{
		"refused": {refuse, chandler.CodeWasmConfigure, 1},
		"no end": {func(string) (*chandler.Problem, error) {
			return chandler.Problemf(chandler.CodeWasmTimeout, "", "", "no end"), nil
		}, chandler.CodeWasmTimeout, 2},
		"crashed": {func(string) (*chandler.Problem, error) { return nil, errors.New("SIGSEGV") }, "", 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				good, bad := &envoy{version: "1.40.0"}, &envoy{version: "1.36.0", says: c.says}
				v := vet.New(vet.Config{Judges: []vet.Judge{good, bad}})
				for range 2 {
					_, err := v.Vet(t.Context(), request("a"))
					var p *chandler.Problem
					if errors.As(err, &p); err == nil || (p == nil) != (c.code == "") || p != nil && p.Code != c.code {
						t.Errorf("it says %v", err)
					}
				}
				if bad.asked != c.asked || good.asked != 1 {
					t.Errorf("asked %d and %d times, want %d and 1", bad.asked, good.asked, c.asked)
				}
			})
		})
	}
}

// Trials are few at a time; who no longer waits leaves, and whoever waited with him
// gets an answer all the same.
func TestTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		e := &envoy{version: "1.40.0"}
		v := vet.New(vet.Config{Judges: []vet.Judge{e}, Trials: 2})
		impatient, leave := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			if _, err := v.Vet(impatient, request("x")); !errors.Is(err, context.Canceled) {
				t.Errorf("who left is told %v", err)
			}
		})
		synctest.Wait()
		for _, config := range []string{"x", "a", "b", "c", "d", "e"} {
			all.Go(func() {
				if _, err := v.Vet(t.Context(), request(config)); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		leave()
		all.Wait()
		if e.atOne != 2 || e.asked != 7 {
			t.Errorf("%d at a time, %d in all", e.atOne, e.asked)
		}
	})
}

// A file on the proxies' machines is judged by nobody.
func TestFileIsUnvetted(t *testing.T) {
	t.Parallel()
	v := vet.New(vet.Config{Judges: []vet.Judge{&envoy{says: refuse}}})
	r := release("a")
	r.Program = chandler.Program{File: &chandler.LocalFile{Path: "/m.wasm"}}
	if said, err := v.Vet(t.Context(), vet.Request{Release: r}); err != nil || said != nil {
		t.Errorf("it says %v, %v", said, err)
	}
}

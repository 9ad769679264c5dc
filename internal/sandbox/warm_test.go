package sandbox_test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/sandbox"
	"chandler.dev/chandler/internal/testenv/module"
)

// counting is a sandbox that counts the verdicts of Envoys that were kept.
func counting(t *testing.T, cfg sandbox.Config) (*sandbox.Sandbox, *atomic.Int64) {
	t.Helper()
	warm := &atomic.Int64{}
	cfg.Judged = func(kept bool) {
		if kept {
			warm.Add(1)
		}
	}
	return open(t, cfg), warm
}

// reconfigured is the case with another configuration.
func reconfigured(c sandbox.Case, config string) sandbox.Case {
	a := *c.Attachment
	a.Config = []byte(config)
	c.Attachment = &a
	return c
}

// warmed judges the case until an Envoy is kept that answers. A machine that stands still
// for as long as a verdict may take is no one's fault.
func warmed(t *testing.T, s *sandbox.Sandbox, warm *atomic.Int64, c sandbox.Case) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Minute)
	for i := 0; warm.Load() == 0; i++ {
		if p, err := s.Judge(t.Context(), reconfigured(c, fmt.Sprint(i))); err != nil || code(p) != "" && code(p) != chandler.CodeWasmTimeout {
			t.Fatal(p, err)
		}
		if time.Now().After(deadline) {
			t.Fatal("no Envoy is kept")
		}
	}
}

// Another configuration of a module is judged by an Envoy that holds it, in the words
// of the plugin, as often as it comes.
func TestWarm(t *testing.T) {
	t.Parallel()
	s, warm := counting(t, sandbox.Config{WarmTime: patient})
	good := plugin(t, module.Append(), "a")
	warmed(t, s, warm, good)
	before := warm.Load()
	for i := range 20 {
		words := fmt.Sprintf("!no %d", i)
		p, err := s.Judge(t.Context(), reconfigured(good, words))
		if err != nil || code(p) != chandler.CodeWasmConfigure || !strings.Contains(p.Message, "refuses it: "+words) {
			t.Errorf("%s: it says %v, %v", words, p, err)
		}
		if again, err := s.Judge(t.Context(), reconfigured(good, words)); err != nil || code(again) != code(p) {
			t.Errorf("%s, once more: it says %v, %v", words, again, err)
		}
		if p, err := s.Judge(t.Context(), reconfigured(good, fmt.Sprintf("yes %d", i))); err != nil || p != nil {
			t.Errorf("it says %v, %v", p, err)
		}
	}
	if n := warm.Load() - before; n != 60 {
		t.Errorf("%d of 60 verdicts came from an Envoy that was kept", n)
	}
}

// An Envoy that is kept and comes to no end, crashes, or takes too much memory is
// ended, and the plugin is tried as if there had been none. Then there is one again.
func TestFault_F72_F73_F74_WarmEnds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		does func(*module.Code)
		code chandler.Code
		time time.Duration
	}{
		"loops":   {module.Loop, chandler.CodeWasmTimeout, 5 * time.Second},
		"grows":   {module.Grow, chandler.CodeWasmMemory, patient},
		"crashes": {module.CallGRPC, chandler.CodeWasmCrash, patient},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, warm := counting(t, sandbox.Config{Time: c.time, Memory: 64 << 20})
			moody := plugin(t, module.Append(module.Moody('?', c.does)), "a")
			warmed(t, s, warm, moody)
			before := warm.Load()
			if p, err := s.Judge(t.Context(), reconfigured(moody, "?")); err != nil || code(p) != c.code {
				t.Errorf("it says %v, %v, want %s", p, err, c.code)
			}
			if warm.Load() != before {
				t.Error("an Envoy that was kept gave the verdict")
			}
			warm.Store(0)
			warmed(t, s, warm, moody)
		})
	}
}

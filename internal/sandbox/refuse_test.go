package sandbox_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/proxywasm"
	"chandler.dev/chandler/internal/sandbox"
	"chandler.dev/chandler/internal/testenv/module"
)

// refused holds a refusal, and tells the table of refusals its code.
func refused(t *testing.T, s *sandbox.Sandbox, c sandbox.Case, code chandler.Code, text string) {
	t.Helper()
	p, err := s.Judge(t.Context(), c)
	if err != nil || p == nil || p.Code != code || !strings.Contains(p.Message, text) || p.Hint == "" {
		t.Errorf("it says %+v (%v), want %s: %s", p, err, code, text)
		return
	}
	t.Attr("refusal", string(p.Code))
}

func TestRefuse_B73_StartTraps(t *testing.T) {
	t.Parallel()
	refused(t, open(t, sandbox.Config{}), plugin(t, module.TrapStart(), ""), chandler.CodeWasmStart, "Function: _initialize failed: Uncaught RuntimeError: unreachable")
}

func TestRefuse_B73_StartLoops(t *testing.T) {
	t.Parallel()
	refused(t, open(t, sandbox.Config{Time: time.Second}), plugin(t, module.LoopStart(), ""), chandler.CodeWasmTimeout, "within 1s")
}

func TestRefuse_B73_StartExits(t *testing.T) {
	t.Parallel()
	refused(t, open(t, sandbox.Config{}), plugin(t, module.ExitStart(3), ""), chandler.CodeWasmStart, "_initialize")
}

// Only logging, WASI and what Go's runtime needs may be called while a module starts.
func TestRefuse_B73_StartCallsTheHost(t *testing.T) {
	t.Parallel()
	ints := []byte{module.I32, module.I32}
	refused(t, open(t, sandbox.Config{}), plugin(t, module.CallStart(module.Import{Module: "env", Name: "proxy_get_metric", Params: ints, Results: ints[:1]}), ""), chandler.CodeWasmStart, "restricted_callback")
}

func TestRefuse_B75_GrowsInStart(t *testing.T) {
	t.Parallel()
	refused(t, open(t, sandbox.Config{Memory: 64 << 20}), plugin(t, module.GrowStart(), ""), chandler.CodeWasmMemory, "grew past 64 MiB")
}

// What Envoy's runtime has not is refused before any Envoy sees it; of 64-bit memory
// Envoy would take the module, and crash at the first byte that it hands over.
// What its runtime has is taken: it is Envoy that is asked.
func TestRefuse_B77_Features(t *testing.T) {
	t.Parallel()
	s, host := open(t, sandbox.Config{}), openHost(t, sandbox.Config{})
	for name, c := range features() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := proxywasm.Inspect(bytes.NewReader(c.module), int64(len(c.module)))
			if p, _ := err.(*chandler.Problem); c.static != (p != nil) || p != nil && p.Code != chandler.CodeWasmFeature {
				t.Errorf("the static check says %v", err)
			}
			if c.static {
				t.Attr("refusal", string(chandler.CodeWasmFeature))
				return
			}
			if p, err := s.Judge(t.Context(), plugin(t, c.module, "")); err != nil || p != nil {
				t.Errorf("Envoy says %v, %v", p, err)
			}
			if p, err := host.Judge(t.Context(), plugin(t, c.module, "")); err != nil || code(p) != c.host {
				t.Errorf("the host says %v, %v", p, err)
			} else if p != nil {
				t.Attr("refusal", string(p.Code))
			}
		})
	}
}

type feature struct {
	module []byte
	static bool // the static check refuses it
	host   chandler.Code
}

// features are modules that use what came after the first version of WebAssembly.
func features() map[string]feature {
	body := func(ops ...byte) []byte { return module.Append(module.Started(func(c *module.Code) { c.Op(ops...) })) }
	return map[string]feature{
		"SIMD":       {module: body(append(append([]byte{0xfd, 0x0c}, make([]byte, 16)...), 0x1a)...)}, // v128.const, drop
		"tail calls": {module: body(0x12, 0x04)},                                                       // return_call of the ABI's function
		"exceptions": {module: body(0x1f, 0x40, 0x00, 0x0b)},                                           // try_table without a catch
		"references": {module: body(0xd0, 0x70, 0x1a)},                                                 // ref.null func, drop
		"GC":         {module: body(0x41, 0x07, 0xfb, 0x1c, 0x1a), host: chandler.CodeWasmFeature},     // i32.const 7, ref.i31, drop
		"64-bit memory": {
			module: append(module.Header(), module.RawSection(5, module.Vector([]byte{4, 1}))...), static: true,
		},
	}
}

package wasmhost_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/wasmhost"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// What the host says of modules is held against Envoy by the tests of package
// sandbox; here is what it promises to who uses it.
func TestHost(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		mod    []byte
		config string
		want   error
		said   []string
	}{
		"good":    {module.Append(), "a", nil, nil},
		"refuses": {module.Append(), "!no", wasmhost.ErrConfigure, []string{"!no"}},
		"traps":   {module.TrapStart(), "", wasmhost.ErrStart, nil},
		"grows":   {module.GrowConfigure(), "", wasmhost.ErrMemory, nil},
		"begins":  {module.Append(func(m *module.Module) { m.Pages = 513 }), "", wasmhost.ErrMemory, nil},
		"garbage": {[]byte("\x00asm\x01\x00\x00\x00\xff"), "", wasmhost.ErrCompile, nil},
		"restricted": {module.CallStart(module.Import{Module: "env", Name: "proxy_done", Results: []byte{module.I32}}), "",
			wasmhost.ErrStart, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var said []string
			h, err := wasmhost.New(t.Context(), wasmhost.Config{ABI: "0.2.1", Memory: 32 << 20, Log: func(_ wasmhost.Level, text string) {
				said = append(said, text)
			}}, c.mod)
			if err == nil {
				err = h.Configure(t.Context(), wasmhost.Plugin{Name: "p", Config: []byte(c.config)})
				if err := h.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}
			if !errors.Is(err, c.want) || !slices.Equal(said, c.said) {
				t.Errorf("%v, said %q", err, said)
			}
		})
	}
}

// Its context ends a module that comes to no end.
func TestHostEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	path := filepath.Join(t.TempDir(), "m.wasm")
	if err := os.WriteFile(path, module.LoopConfigure(), 0o600); err != nil {
		t.Fatal(err)
	}
	if p, err := wasmhost.Try(ctx, wasmhost.Trial{Module: path, Memory: 32 << 20}); p != nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, %v", p, err)
	}
}

// A child's life: a trial in, a verdict out.
func TestServe(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	trial := wasmhost.Trial{Module: filepath.Join(dir, "m.wasm"), Memory: 32 << 20}
	b, err := json.Marshal(trial)
	if err := errors.Join(err, os.WriteFile(trial.Module, module.RefuseConfigure("no thanks"), 0o600), os.WriteFile(filepath.Join(dir, "t"), b, 0o600)); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := wasmhost.Serve(t.Context(), filepath.Join(dir, "t"), &out); err != nil {
		t.Fatal(err)
	}
	var said wasmhost.Verdict
	if err := json.Unmarshal(out.Bytes(), &said); err != nil || !said.Judged || said.Problem == nil || said.Problem.Code != chandler.CodeWasmConfigure {
		t.Errorf("%s %v", out.Bytes(), err)
	}
	if err := wasmhost.Serve(t.Context(), filepath.Join(dir, "none"), &out); err == nil {
		t.Error("there was no trial")
	}
}

package sandbox_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/sandbox"
	"chandler.dev/chandler/internal/testenv/executable"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/wasmhost"
)

// TestMain is the host, too, in which plugins are tried without an Envoy.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "judge" {
		file := ""
		if len(os.Args) > 3 {
			file = os.Args[3]
		}
		if err := wasmhost.Serve(context.Background(), file, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	leaks.Main(m)
}

// patient is what a child may take where nothing is tested of that: what comes of a plugin
// comes however slow the machine is.
const patient = 5 * time.Minute

func openHost(t *testing.T, cfg sandbox.Config) *sandbox.Host {
	t.Helper()
	cfg.Time = cmp.Or(cfg.Time, patient)
	h, err := sandbox.OpenHost(t.Context(), cfg, os.Args[0], "judge", "-")
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func open(t *testing.T, cfg sandbox.Config) *sandbox.Sandbox {
	t.Helper()
	cfg.Time, cfg.Envoy = cmp.Or(cfg.Time, patient), cmp.Or(cfg.Envoy, module.Envoy(t))
	s, err := sandbox.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// plugin is a member that runs mod.
func plugin(t *testing.T, mod []byte, config string) sandbox.Case {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.wasm")
	if err := os.WriteFile(path, mod, 0o600); err != nil {
		t.Fatal(err)
	}
	a := &chandler.Attachment{Key: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: "p"}}
	a.Program.Module = &chandler.Module{Digest: chandler.Digest[chandler.ModuleDigest](mod), Size: int64(len(mod))}
	a.Config = []byte(config)
	return sandbox.Case{Member: attach.Member{Attachment: a, ModulePath: path}}
}

// The verdicts are Envoy's, with a code for machines and the plugin's own words.
func TestJudge(t *testing.T) {
	t.Parallel()
	s := open(t, sandbox.Config{})
	if s.Version() == "" || s.Weak() != "" {
		t.Errorf("version %q, weak: %s", s.Version(), s.Weak())
	}
	network := func(c sandbox.Case) sandbox.Case {
		c.Attachment.Type = chandler.Network
		return c
	}
	lua := func(code string) sandbox.Case {
		c := plugin(t, nil, "")
		c.Attachment.Program = chandler.Program{Lua: &chandler.Lua{InlineCode: code}}
		return c
	}
	judge := func(name string, code chandler.Code, text string) func(sandbox.Case) {
		return func(c sandbox.Case) {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				p, err := s.Judge(t.Context(), c)
				switch {
				case err != nil:
					t.Fatal(err)
				case p == nil && code != "", p != nil && (p.Code != code || !strings.Contains(p.Message, text) || p.Hint == ""):
					t.Errorf("it says %+v, want %s: %s", p, code, text)
				}
			})
		}
	}
	judge("good", "", "")(plugin(t, module.Append(), "a"))
	judge("good, of the network", "", "")(network(plugin(t, module.Append(), "a")))
	judge("refuses its configuration", chandler.CodeWasmConfigure, "refuses it: the moon is wrong")(plugin(t, module.RefuseConfigure("the moon is wrong"), ""))
	judge("speaks in Envoy's voice", chandler.CodeWasmConfigure, "refuses it: x: error|wasm|Failed to create new Wasm instance")(
		plugin(t, module.RefuseConfigure("x: error|wasm|Failed to create new Wasm instance"), ""))
	judge("traps at its start", chandler.CodeWasmStart, "Function: _initialize failed: Uncaught RuntimeError: unreachable")(plugin(t, module.TrapStart(), ""))
	judge("missing import", chandler.CodeWasmImport, "env.proxy_no_such_call")(plugin(t, module.MissingImport(), ""))
	judge("another ABI", chandler.CodeWasmABI, "unknown Proxy-Wasm ABI")(plugin(t, module.BadABI(), ""))
	judge("no malloc", chandler.CodeWasmExport, "malloc")(plugin(t, module.NoMalloc(), ""))
	judge("truncated", chandler.CodeWasmParse, "corrupted")(plugin(t, module.Truncate(module.Append()), ""))
	judge("good Lua", "", "")(lua("function envoy_on_request(h) end"))
	judge("bad Lua", chandler.CodeLuaSyntax, "refuses it: script load error: ")(lua("function function"))
}

// A plugin that comes to no end is ended, and so is what waits for it.
func TestFault_F72_Loop(t *testing.T) {
	t.Parallel()
	s := open(t, sandbox.Config{Time: time.Second})
	c := plugin(t, module.LoopConfigure(), "")
	p, err := s.Judge(t.Context(), c)
	if err != nil || p == nil || p.Code != chandler.CodeWasmTimeout || !strings.Contains(p.Message, "within 1s") {
		t.Errorf("it says %v, %v", p, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if p, err := s.Judge(ctx, c); p != nil || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who does not wait any longer is told %v, %v", p, err)
	}
}

// One that takes all the memory it can get is ended long before it has it.
func TestFault_F73_Memory(t *testing.T) {
	t.Parallel()
	s := open(t, sandbox.Config{Memory: 64 << 20})
	c := plugin(t, module.GrowConfigure(), "")
	p, err := s.Judge(t.Context(), c)
	if err != nil || p == nil || p.Code != chandler.CodeWasmMemory || !strings.Contains(p.Message, "64 MiB") {
		t.Errorf("it says %v, %v", p, err)
	}
}

// An Envoy that crashes, or ends without its word, says nothing of the plugin.
func TestFault_F74_Crash(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"exit 139", "sh -c 'kill -SEGV $$' || exit", "exit 0"} {
		s := open(t, sandbox.Config{Envoy: imposter(t, "echo dying; "+end)})
		c := plugin(t, module.Append(), "")
		if p, err := s.Judge(t.Context(), c); p != nil || err == nil || !strings.Contains(err.Error(), "gave no verdict") {
			t.Errorf("%s: it says %v, %v", end, p, err)
		}
	}
}

// imposter is an Envoy by its version that does something else.
func imposter(t *testing.T, does string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "envoy")
	text := fmt.Sprintf("#!/bin/sh\ncase $1 in --version) exec %s --version;; esac\n%s\n", module.Envoy(t), does)
	executable.Write(t, path, text)
	return path
}

// A child has nothing of our environment, no network, no privileges, and what it
// says is bounded.
func TestConfined(t *testing.T) {
	t.Setenv("A_SECRET", "of-ours")
	seen := filepath.Join(t.TempDir(), "seen")
	s := open(t, sandbox.Config{Envoy: imposter(t, "{ env; id -u; cat /proc/net/dev; cat /proc/self/status; } >"+seen+"; yes 'x|y|words' | head -c 10000000; exit 1")})
	c := plugin(t, module.Append(), "")
	p, err := s.Judge(t.Context(), c)
	if err != nil || p == nil || len(p.Message) > 1000 {
		t.Errorf("it says %v, %v", p, err)
	}
	text, err := os.ReadFile(seen)
	if err != nil {
		t.Fatal(err)
	}
	if out := string(text); strings.Contains(out, "of-ours") || !strings.Contains(out, "\n65534\n") || strings.Contains(out, "eth0") || !strings.Contains(out, "CapEff:\t0000000000000000") {
		t.Errorf("a child sees\n%s", out)
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	t.Parallel()
	for _, path := range []string{filepath.Join(t.TempDir(), "none"), "/bin/true"} {
		if _, err := sandbox.Open(t.Context(), sandbox.Config{Envoy: path}); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

package proxywasm_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/proxywasm"
	"chandler.dev/chandler/internal/testenv/module"
)

// loads asks the real Envoy.
func loads(t *testing.T, envoy string, b []byte) (bool, string) {
	t.Helper()
	ok, log, err := module.Validate(t, envoy, b, "", time.Minute)
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	return ok, log
}

// Every refusal but those marked stricter is one of Envoy's too: the static check
// never keeps a plugin from a proxy that would have taken it without saying so.
func TestEnvoyRefusesWhatIsRefused(t *testing.T) {
	t.Parallel()
	envoy := module.Envoy(t)
	for _, c := range refusals() {
		t.Run(c.row+" "+c.name, func(t *testing.T) {
			t.Parallel()
			if ok, log := loads(t, envoy, c.module); ok != c.stricter {
				t.Errorf("Envoy loads it: %v, want %v\n%s", ok, c.stricter, log)
			}
		})
	}
}

// What Inspect accepts Envoy loads, but for what only running shows.
func TestEnvoyLoadsWhatIsAccepted(t *testing.T) {
	t.Parallel()
	envoy := module.Envoy(t)
	table := []byte{0x70, 0, 2}
	for name, c := range map[string]struct {
		module []byte
		runs   bool
	}{
		"smallest":               {plugin(), true},
		"append":                 {module.Append(), true},
		"0.2.0":                  {module.Append(module.ABI("0.2.0")), true},
		"0.1.0":                  {module.Append(module.ABI("0.1.0")), true},
		"custom section":         {module.Append(module.WithSection("v", []byte("2"))), true},
		"names":                  {module.Append(module.WithSection("name", []byte{0, 2, 1, 'm', 1, 4, 1, 0, 1, 'f'})), true},
		"custom section first":   {cat(module.Header(), module.RawSection(0, module.Name("x")), plugin()[8:]), true},
		"custom section at last": {cat(plugin(), module.RawSection(0, module.Name("x"))), true},
		"old name of malloc": {plugin(module.RawSection(7, module.Vector(abiExport,
			cat(module.Name("proxy_on_memory_allocate"), []byte{0, 1}), cat(module.Name("memory"), []byte{2, 0})))), true},
		"memory from the host": {plugin([]byte{5, 0}, module.RawSection(2, module.Vector(cat(module.Name("env"), module.Name("memory"), []byte{2, 0, 1}))),
			module.RawSection(7, module.Vector(abiExport, cat(module.Name("malloc"), []byte{0, 1})))), true},
		"data to the last byte": {plugin(module.RawSection(11, module.Vector(cat([]byte{0, 0x41}, module.Int(65_530), []byte{0x0b}, module.Name("123456"))))), true},
		"elements": {plugin(module.RawSection(4, module.Vector(table)),
			module.RawSection(9, module.Vector(cat([]byte{0, 0x41, 0, 0x0b}, module.Vector([]byte{0}, []byte{0}))))), true},
		"passive segments": {plugin(module.RawSection(4, module.Vector(table)), module.RawSection(12, []byte{1}),
			module.RawSection(9, module.Vector([]byte{1, 0, 1, 0}, []byte{3, 0, 1, 0}, []byte{5, 0x70, 1, 0xd2, 0, 0x0b})),
			module.RawSection(11, module.Vector([]byte{1, 1, 'x'}))), true},
		"50000 locals": {plugin(bodies(module.Name(string(cat(u(1), u(49_999), []byte{0x7f, 0x41, 0, 0x0b})))...)), true},
		"globals": {plugin(module.RawSection(6, module.Vector([]byte{0x7e, 1, 0x42, 0x7f, 0x0b}, []byte{0x7d, 0, 0x43, 0, 0, 0, 0, 0x0b},
			[]byte{0x7c, 0, 0x44, 0, 0, 0, 0, 0, 0, 0, 0, 0x0b}, []byte{0x70, 0, 0xd0, 0x70, 0x0b}, []byte{0x7f, 0, 0x41, 1, 0x41, 2, 0x6a, 0x0b}))), true},
		"types of the collector": {plugin(module.RawSection(1, module.Vector(noParams, []byte{0x60, 1, 0x7f, 1, 0x7f},
			[]byte{0x4e, 2, 0x50, 0, 0x5f, 2, 0x78, 1, 0x63, 3, 0, 0x5e, 0x64, 2, 1}))), true},
		"tag":                {plugin(module.RawSection(13, module.Vector([]byte{0, 0}))), true},
		"deny":               {module.Deny(403), true},
		"trap at requests":   {module.TrapRequest(), true},
		"trap at start":      {module.TrapStart(), false},
		"refuses to be told": {module.RefuseConfigure("no"), false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := inspect(c.module); err != nil {
				t.Errorf("inspect: %v", err)
			}
			if ok, log := loads(t, envoy, c.module); ok != c.runs {
				t.Errorf("Envoy loads it: %v, want %v\n%s", ok, c.runs, log)
			}
		})
	}
}

// The table of host functions is Envoy's: a module that imports all of a version
// with their types loads, and for one more it does not.
func TestHostFunctionsAreEnvoys(t *testing.T) {
	t.Parallel()
	envoy := module.Envoy(t)
	values := func(letters string) (types []byte) {
		for _, l := range letters {
			types = append(types, map[rune]byte{'i': module.I32, 'I': module.I64}[l])
		}
		return types
	}
	for _, abi := range []string{"0.1.0", "0.2.0", "0.2.1"} {
		options := []module.Option{module.ABI(abi)}
		for name, signature := range proxywasm.HostFunctions(abi) {
			from, name, _ := strings.Cut(name, ".")
			params, results, _ := strings.Cut(signature, ">")
			options = append(options, importing(from, name, values(params), values(results)))
		}
		t.Run(abi, func(t *testing.T) {
			t.Parallel()
			b := module.Append(options...)
			if _, err := inspect(b); err != nil {
				t.Errorf("inspect: %v", err)
			}
			if ok, log := loads(t, envoy, b); !ok {
				t.Error(log)
			}
		})
	}
}

// Modules that a real toolchain built: Go's without an SDK, and the sample
// plugin with one.
func TestGoModules(t *testing.T) {
	t.Parallel()
	envoy := module.Envoy(t)
	bare := t.TempDir()
	const source = `package main

//go:wasmexport proxy_abi_version_0_2_1
func abi() {}

//go:wasmexport proxy_on_memory_allocate
func allocate(n uint32) uint32 { return 0 }

//go:wasmexport proxy_on_vm_start
func start(id, size uint32) uint32 { return 1 }

func main() {}
`
	for name, content := range map[string]string{"main.go": source, "go.mod": "module bare\n\ngo 1.26\n"} {
		if err := os.WriteFile(filepath.Join(bare, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Dir(filepath.Dir(envoy))
	for name, dir := range map[string]string{"bare": bare, "basicauth": filepath.Join(root, "plugins", "basicauth")} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			out := filepath.Join(t.TempDir(), "plugin.wasm")
			cmd := exec.Command("go", "build", "-buildmode=c-shared", "-o", out, ".")
			cmd.Dir = dir
			cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "GOWORK=off")
			if b, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("go build: %v\n%s", err, b)
			}
			b, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			m, err := inspect(b)
			if err != nil || !strings.HasPrefix(m.ABI, "0.2.") {
				t.Errorf("inspect: ABI %q, %v", m.ABI, err)
			}
			if ok, log := loads(t, envoy, b); !ok {
				t.Error(log)
			}
			// One byte less and it is no module any more.
			if _, err := inspect(b[:len(b)-1]); problem(err) == nil || problem(err).Code != chandler.CodeWasmParse {
				t.Errorf("truncated: %v", err)
			}
		})
	}
}

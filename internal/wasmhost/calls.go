package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero/api"

	"chandler.dev/chandler/internal/proxywasm"
)

// result is what a host call gives to the module.
type result uint32

// The results of Proxy-Wasm.
const (
	ok                   result = 0
	notFound             result = 1
	badArgument          result = 2
	serializationFailure result = 3
	parseFailure         result = 4
	invalidMemoryAccess  result = 6
	empty                result = 7
	casMismatch          result = 8
	internalFailure      result = 10
)

// errRestricted ends a module that calls what it may not while it starts. The text is
// Envoy's.
var errRestricted = errors.New("restricted_callback")

// atStart tells what a module may call while it starts: logging, and nearly all of
// WASI, as its libraries and Go's ask for it before anything else.
func atStart(module, name string) bool {
	if module == "env" {
		return name == "proxy_log" || name == "emscripten_notify_memory_growth"
	}
	return !slices.Contains([]string{"fd_close", "fd_read", "fd_seek", "path_open", "proc_exit", "sched_yield"}, name)
}

// call is one call of the module's to the host.
type call struct {
	h      *Host
	ctx    context.Context
	module api.Module
	args   []uint64
}

// i32 gives an argument.
func (c *call) i32(n int) uint32 { return uint32(c.args[n]) }

// bytes gives a copy of a piece of the module's memory; the arguments n and n+1 say
// which.
func (c *call) bytes(n int) ([]byte, bool) {
	b, there := c.module.Memory().Read(c.i32(n), c.i32(n+1))
	return slices.Clone(b), there
}

// put writes a number where argument n says.
func (c *call) put(n int, v uint32) bool { return c.module.Memory().WriteUint32Le(c.i32(n), v) }

func (c *call) put64(n int, v uint64) bool { return c.module.Memory().WriteUint64Le(c.i32(n), v) }

// reply hands bytes over in memory that the module allocates, and writes where they
// are to where the arguments at and at+1 say.
func (c *call) reply(at int, b []byte) result {
	var address uint32
	if len(b) > 0 {
		malloc := c.module.ExportedFunction("malloc")
		if malloc == nil {
			malloc = c.module.ExportedFunction("proxy_on_memory_allocate")
		}
		if malloc == nil {
			return invalidMemoryAccess
		}
		got, err := malloc.Call(c.ctx, uint64(len(b)))
		if err != nil {
			panic(err)
		}
		if address = uint32(got[0]); address == 0 || !c.module.Memory().Write(address, b) {
			return invalidMemoryAccess
		}
	}
	if !c.put(at, address) || !c.put(at+1, uint32(len(b))) {
		return invalidMemoryAccess
	}
	return ok
}

// provide gives the runtime the functions that Envoy has for the ABI version, and no
// others: to ask for one of another version is a missing import.
func (h *Host) provide(ctx context.Context) error {
	all := functions()
	modules := map[string][]string{}
	types := proxywasm.HostFunctions(h.cfg.ABI)
	for full := range types {
		module, name, _ := strings.Cut(full, ".")
		modules[module] = append(modules[module], name)
	}
	for module, names := range modules {
		b := h.runtime.NewHostModuleBuilder(module)
		for _, name := range names {
			does := all[name]
			if does == nil {
				return fmt.Errorf("the host lacks %s.%s", module, name)
			}
			params, results, _ := strings.Cut(types[module+"."+name], ">")
			b.NewFunctionBuilder().WithGoModuleFunction(h.guarded(module, name, len(params), does), values(params), values(results)).Export(name)
		}
		if _, err := b.Instantiate(ctx); err != nil {
			return fmt.Errorf("the host's own module %s: %w", module, err)
		}
	}
	return nil
}

func values(letters string) (types []api.ValueType) {
	for _, l := range letters {
		if l == 'I' {
			types = append(types, api.ValueTypeI64)
		} else {
			types = append(types, api.ValueTypeI32)
		}
	}
	return types
}

// guarded keeps a function from being called before its time.
func (h *Host) guarded(module, name string, params int, does func(*call) result) api.GoModuleFunc {
	return func(ctx context.Context, m api.Module, stack []uint64) {
		if h.starting && !atStart(module, name) {
			panic(errRestricted)
		}
		r := does(&call{h, ctx, m, stack[:params]})
		if len(stack) > 0 {
			stack[0] = uint64(r)
		}
	}
}

// strings of an environment, each with a zero behind it.
func (h *Host) environ() (entries [][]byte, size int) {
	names := make([]string, 0, len(h.cfg.Env))
	for name := range h.cfg.Env {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		e := []byte(name + "=" + h.cfg.Env[name] + "\x00")
		entries, size = append(entries, e), size+len(e)
	}
	return entries, size
}

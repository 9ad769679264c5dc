package wasmhost

import (
	"context"
	"errors"
	"slices"

	"github.com/tetratelabs/wazero/api"
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
	unimplemented        result = 12
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
func (c call) i32(n int) uint32 { return uint32(c.args[n]) }

// view gives a piece of the module's memory; the arguments n and n+1 say which. It
// is the module's own, and holds only until the module goes on.
func (c call) view(n int) ([]byte, bool) { return c.module.Memory().Read(c.i32(n), c.i32(n+1)) }

// bytes gives a copy of such a piece.
func (c call) bytes(n int) ([]byte, bool) {
	b, there := c.view(n)
	return slices.Clone(b), there
}

// text is such a piece as a string.
func (c call) text(n int) (string, bool) {
	b, there := c.view(n)
	return string(b), there
}

// put writes a number where argument n says.
func (c call) put(n int, v uint32) bool { return c.module.Memory().WriteUint32Le(c.i32(n), v) }

func (c call) put64(n int, v uint64) bool { return c.module.Memory().WriteUint64Le(c.i32(n), v) }

// reply hands bytes over in memory that the module allocates, and writes where they
// are to where the arguments at and at+1 say.
func (c call) reply(at int, b []byte) result {
	var address uint32
	if len(b) > 0 {
		malloc := c.h.exported("malloc")
		if malloc == nil {
			malloc = c.h.exported("proxy_on_memory_allocate")
		}
		if malloc == nil {
			return invalidMemoryAccess
		}
		stack := [1]uint64{uint64(len(b))}
		if c.h.cfg.Trace != nil {
			c.h.cfg.Trace(tellCallback("malloc", stack[:]))
		}
		if err := malloc.CallWithStack(c.ctx, stack[:]); err != nil {
			panic(err)
		}
		if address = uint32(stack[0]); address == 0 || !c.module.Memory().Write(address, b) {
			return invalidMemoryAccess
		}
	}
	if !c.put(at, address) || !c.put(at+1, uint32(len(b))) {
		return invalidMemoryAccess
	}
	return ok
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

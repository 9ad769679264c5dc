// Package wasmhost is a Proxy-Wasm host outside of Envoy, on wazero: it runs a
// module's code with the functions that Envoy gives to one of its ABI version, and
// answers them as Envoy does. A Host is one VM with its root contexts, and an Engine
// sends exchanges through one, as a connection manager with that one filter would
// (package exchange). There are no clocks and no goroutines behind it: what waits in
// Envoy is an event here, which a session lets happen when nothing else goes on.
//
// It bounds a module's memory and ends with its context, and is no sandbox all the
// same: it compiles foreign code to machine code in this very process. Whoever does
// not trust a module runs it in a child (package sandbox does, with Try).
package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/sys"
)

// Level is that of a line which a module logs, as the ABI counts them.
type Level uint32

// The levels.
const (
	LevelTrace Level = iota
	LevelDebug
	LevelInfo
	LevelWarn
	LevelError
	LevelCritical
)

// Config is what a Host works with.
type Config struct {
	// ABI is the version that the module is of, such as "0.2.1".
	ABI string
	// Memory bounds the module's linear memory, in bytes.
	Memory int64
	// Deadline bounds each function of the module's; 0: only the context does.
	Deadline time.Duration
	// Env is the VM's environment, VMConfig its configuration.
	Env      map[string]string
	VMConfig []byte
	// Clusters may be called.
	Clusters []string
	// Now is the clock that the module sees; time.Now when nil.
	Now func() time.Time
	// Log is told what the module logs; it may be nil.
	Log func(Level, string)
	// Trace is told of each call between module and host; it may be nil.
	Trace func(string)
}

// Plugin is what a root context is for.
type Plugin struct {
	Name, RootID, VMID string
	// Config is nil for none.
	Config []byte
}

// Why a module is not taken. Its own words, if any, went to Log.
var (
	ErrCompile   = errors.New("it cannot be compiled here")
	ErrStart     = errors.New("it does not start")
	ErrConfigure = errors.New("it refuses its configuration")
	ErrMemory    = errors.New("it takes too much memory")
)

// Host is one VM. It is for one goroutine.
type Host struct {
	cfg     Config
	program *program
	own     bool // the program ends with it
	module  api.Module
	memory  *memory
	exports map[string]api.Function
	stack   [8]uint64 // parameters of a callback

	ctx    hostContext
	cancel context.CancelFunc
	watch  *time.Timer
	late   atomic.Bool

	// starting: only logging, WASI and what Go's runtime needs may be called.
	starting bool
	contexts map[uint32]*scope
	lastID   uint32
	// current is the context that calls are about: the one that called is for, unless
	// the module says otherwise.
	current, called *scope
	// after is what is put off until the callback is over; answered: it asked for a
	// local response, so that nothing goes on by what it gives.
	after    []func()
	answered bool
	// failed is why the VM is of no more use.
	failed error

	clock   loop
	ticks   int // that there were
	calls   callouts
	shared  sharedData
	queues  sharedQueues
	metrics metrics
}

// scope is a context of the ABI: a root context, which is a plugin's, or the VM's own,
// whose id is 0; or that of a stream.
type scope struct {
	id     uint32
	root   *scope // of a root context it is itself
	plugin Plugin // of a root context
	stream *stream

	configuring bool // its configuration can be read
	declared    map[string]bool
	period      time.Duration
	// status and message are of what is being told in a callback.
	status   uint32
	message  string
	response *callResponse
}

// New compiles a module and starts it, as far as it does so by itself and by its
// entry functions. The error is one of the above, with what was wrong. ctx bounds
// all that the Host ever does.
func New(ctx context.Context, cfg Config, code []byte) (*Host, error) {
	p, err := compile(ctx, cfg.ABI, nil, code)
	if err != nil {
		return nil, err
	}
	h, err := p.start(ctx, cfg, &memory{limit: cfg.Memory, reserved: true})
	if err != nil {
		return nil, errors.Join(err, p.close(ctx))
	}
	h.own = true
	return h, nil
}

// start makes a VM.
func (p *program) start(ctx context.Context, cfg Config, m *memory) (*Host, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = func(Level, string) {}
	}
	vm := &scope{}
	vm.root = vm
	h := &Host{
		cfg: cfg, program: p, memory: m, starting: true, exports: map[string]api.Function{},
		contexts: map[uint32]*scope{0: vm}, current: vm, called: vm,
		shared: sharedData{values: map[string]sharedValue{}}, metrics: newMetrics(),
	}
	ctx, h.cancel = context.WithCancel(ctx)
	h.ctx = hostContext{ctx, h}
	h.watch = time.AfterFunc(time.Hour, func() { h.late.Store(true); h.cancel() })
	h.watch.Stop()
	if err := h.begin(); err != nil {
		return nil, errors.Join(h.explain(err), h.Close(ctx))
	}
	h.starting = false
	return h, nil
}

// Close gives the VM's memory back.
func (h *Host) Close(ctx context.Context) (err error) {
	h.cancel()
	h.watch.Stop()
	ctx = context.WithoutCancel(ctx)
	if h.module != nil {
		err = h.module.Close(ctx)
	}
	if h.own {
		err = errors.Join(err, h.program.close(ctx))
	}
	return err
}

// explain puts memory before what came of having none.
func (h *Host) explain(err error) error {
	if h.memory.refused {
		return fmt.Errorf("%w: it grew past %d MiB", ErrMemory, h.memory.limit>>20)
	}
	return err
}

// instantiate makes the module's memory. The runtime panics when it gets less than the
// module begins with.
func (h *Host) instantiate(ctx context.Context) (m api.Module, err error) {
	defer func() {
		if !h.memory.refused {
			return
		}
		if r := recover(); r != nil {
			err = fmt.Errorf("it begins with too much memory: %v", r)
		}
	}()
	return h.program.runtime.InstantiateModule(ctx, h.program.compiled, wazero.NewModuleConfig().WithName("").WithStartFunctions())
}

// begin instantiates the module and calls its entry functions, in Envoy's order.
func (h *Host) begin() (err error) {
	ctx := experimental.WithMemoryAllocator(&h.ctx, h.memory)
	if h.module, err = h.instantiate(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrStart, err)
	}
	entries := []string{"_start"}
	if h.exported("_initialize") != nil {
		entries = []string{"_initialize"}
		for _, main := range []string{"main", "__main_void"} {
			if h.exported(main) != nil {
				entries = append(entries, main)
				break
			}
		}
	}
	for _, name := range entries {
		var params []uint64
		if name == "main" {
			params = []uint64{0, 0}
		}
		if _, err := h.call(name, params...); err != nil {
			return fmt.Errorf("%w: %w", ErrStart, err)
		}
	}
	return nil
}

// exported gives a function that the module exports, or nil. Each is made once: it
// comes with a stack.
func (h *Host) exported(name string) api.Function {
	f, known := h.exports[name]
	if !known {
		f = h.module.ExportedFunction(name)
		h.exports[name] = f
	}
	return f
}

// call calls a function of the module; one that it does not export is as good as one
// that gives 1. After an error the VM is of no more use.
func (h *Host) call(name string, params ...uint64) (uint64, error) {
	f := h.exported(name)
	if f == nil {
		return 1, nil
	}
	if h.cfg.Deadline > 0 {
		h.watch.Reset(h.cfg.Deadline)
		defer h.watch.Stop()
	}
	if h.cfg.Trace != nil {
		h.cfg.Trace(tellCallback(name, params))
	}
	results := len(f.Definition().ResultTypes())
	stack := h.stack[:max(copy(h.stack[:], params), results)]
	err := f.CallWithStack(&h.ctx, stack)
	var exit *sys.ExitError
	switch {
	case h.late.Load() && err != nil:
		err = fmt.Errorf("%s did not come back within %s", name, h.cfg.Deadline)
	case errors.As(err, &exit):
		err = fmt.Errorf("%s ended with exit code %d", name, exit.ExitCode())
	case err != nil:
		err = fmt.Errorf("%s failed: %w", name, err)
	case results == 0:
		return 1, nil
	default:
		if h.cfg.Trace != nil {
			h.cfg.Trace(fmt.Sprintf("%s gives %d", name, uint32(stack[0])))
		}
		return stack[0], nil
	}
	h.failed = err
	if h.cfg.Trace != nil {
		first, _, _ := strings.Cut(err.Error(), "\n")
		h.cfg.Trace(first)
	}
	return 0, err
}

// in calls a function of the module for a context, and is what a callback is.
func (h *Host) in(c *scope, name string, params ...uint64) (uint64, error) {
	current, called := h.current, h.called
	h.current, h.called = c, c
	r, err := h.call(name, params...)
	h.current, h.called = current, called
	return r, err
}

// done ends a callback: what was put off is done.
func (h *Host) done() {
	h.answered = false
	for len(h.after) > 0 {
		do := h.after[0]
		h.after = h.after[1:]
		do()
	}
}

// notify is a callback that gives nothing. What a failed VM, or one without such a
// function, does not hear of is over as well.
func (h *Host) notify(c *scope, name string, params ...uint64) {
	if h.failed == nil && h.exported(name) != nil {
		_, _ = h.in(c, name, params...) // an error stays in failed
	}
	h.done()
}

// next gives a new context its id.
func (h *Host) next(c *scope) *scope {
	h.lastID++
	c.id = h.lastID
	h.contexts[c.id] = c
	return c
}

// Configure makes a root context for a plugin, starts the VM for it and hands over
// its configuration, as Envoy does for each new one. The error is one of the above.
func (h *Host) Configure(_ context.Context, p Plugin) error {
	c := h.next(&scope{plugin: p})
	c.root = c
	id := uint64(c.id)
	for _, step := range []struct {
		name        string
		size        int
		configuring bool
		err         error
	}{
		{"proxy_on_context_create", 0, true, ErrStart},
		{"proxy_on_vm_start", len(h.cfg.VMConfig), false, ErrStart},
		{"proxy_on_configure", len(p.Config), true, ErrConfigure},
	} {
		c.configuring = step.configuring
		ok, err := h.in(c, step.name, id, uint64(step.size))
		c.configuring = false
		h.done()
		if err != nil {
			return h.explain(fmt.Errorf("%w: %w", step.err, err))
		} else if ok == 0 {
			return fmt.Errorf("%w: %s gives false", step.err, step.name)
		}
	}
	return nil
}

// memory is a module's linear memory. A reserved one is made once and takes no room
// before it is used; else it grows in steps, so that many of them are cheap.
type memory struct {
	limit    int64
	reserved bool
	refused  bool // more was asked for
	bytes    []byte
}

// Allocate implements experimental.MemoryAllocator. A module has one memory here.
func (m *memory) Allocate(_, _ uint64) experimental.LinearMemory {
	if m.reserved {
		m.bytes = make([]byte, m.limit)
	}
	return m
}

// Reallocate implements experimental.LinearMemory.
func (m *memory) Reallocate(size uint64) []byte {
	if size > uint64(m.limit) {
		m.refused = true
		return nil
	}
	if size > uint64(len(m.bytes)) {
		const half = 2
		bigger := make([]byte, min(uint64(m.limit), size+size/half))
		copy(bigger, m.bytes)
		m.bytes = bigger
	}
	return m.bytes[:size:size]
}

// Free implements experimental.LinearMemory.
func (m *memory) Free() { m.bytes = nil }

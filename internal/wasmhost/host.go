// Package wasmhost is a Proxy-Wasm host outside of Envoy, on wazero: it runs a
// module's code with the functions that Envoy gives to one of its ABI version, and
// answers them as Envoy does. A Host is one VM with its root contexts. What a module
// does while it is loaded, started and configured is here; there are no streams, so
// that a call which is about one is answered as Envoy answers it outside of any.
//
// It bounds a module's memory and ends with its context, and is no sandbox all the
// same: it compiles foreign code to machine code in this very process. Whoever does
// not trust a module runs it in a child (package sandbox does, with Try).
package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"
	"github.com/tetratelabs/wazero/sys"
)

// features are those of V8 in Envoy that wazero has, too.
const features = api.CoreFeaturesV2 | experimental.CoreFeaturesTailCall | experimental.CoreFeaturesExtendedConst |
	experimental.CoreFeaturesExceptionHandling | experimental.CoreFeaturesTypedFunctionReferences

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
	// Env is the VM's environment.
	Env map[string]string
	// Now is the clock that the module sees; time.Now when nil.
	Now func() time.Time
	// Log is told what the module logs; it may be nil.
	Log func(Level, string)
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
	runtime wazero.Runtime
	module  api.Module
	memory  *memory

	// starting: only logging, WASI and what Go's runtime needs may be called.
	starting bool
	contexts map[uint32]*rootContext
	current  *rootContext
	shared   sharedData
	queues   sharedQueues
	metrics  metrics
}

// rootContext is that of a plugin, or the VM's own, whose id is 0.
type rootContext struct {
	id     uint32
	plugin Plugin
}

// buffer gives a buffer's content; false: there is none of that type.
func (c *rootContext) buffer(kind uint32) ([]byte, bool) {
	const pluginConfiguration, kinds = 7, 9
	if kind == pluginConfiguration {
		return c.plugin.Config, true
	}
	return nil, kind < kinds // those of streams, of calls and of the VM hold nothing
}

// New compiles a module and starts it, as far as it does so by itself and by its
// entry functions. The error is one of the above, with what was wrong. ctx bounds
// all that the Host ever does.
func New(ctx context.Context, cfg Config, code []byte) (*Host, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = func(Level, string) {}
	}
	h := &Host{
		cfg: cfg, memory: &memory{limit: cfg.Memory}, contexts: map[uint32]*rootContext{0: {}}, starting: true,
		shared: sharedData{}, queues: sharedQueues{}, metrics: metrics{byName: map[string]uint32{}},
		runtime: wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfig().WithCoreFeatures(features).WithCloseOnContextDone(true)),
	}
	if err := h.start(experimental.WithMemoryAllocator(ctx, h.memory), code); err != nil {
		return nil, errors.Join(h.explain(err), h.Close(ctx))
	}
	h.starting, h.current = false, h.contexts[0]
	return h, nil
}

// Close gives the VM's memory back.
func (h *Host) Close(ctx context.Context) error { return h.runtime.Close(context.WithoutCancel(ctx)) }

// explain puts memory before what came of having none.
func (h *Host) explain(err error) error {
	if h.memory.refused {
		return fmt.Errorf("%w: it grew past %d MiB", ErrMemory, h.memory.limit>>20)
	}
	return err
}

func (h *Host) start(ctx context.Context, code []byte) error {
	if err := h.provide(ctx); err != nil {
		return err
	}
	compiled, err := h.runtime.CompileModule(ctx, code)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCompile, err)
	}
	// Functions that start it are called below, in Envoy's order.
	h.module, err = h.runtime.InstantiateModule(ctx, compiled, wazero.NewModuleConfig().WithName("").WithStartFunctions())
	if err != nil {
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
		if _, err := h.call(ctx, name, params...); err != nil {
			return fmt.Errorf("%w: %w", ErrStart, err)
		}
	}
	return nil
}

// exported gives a function that the module exports, or nil.
func (h *Host) exported(name string) api.Function { return h.module.ExportedFunction(name) }

// call calls a function of the module; one that it does not export is as good as one
// that gives 1.
func (h *Host) call(ctx context.Context, name string, params ...uint64) (uint64, error) {
	f := h.exported(name)
	if f == nil {
		return 1, nil
	}
	results, err := f.Call(ctx, params...)
	var exit *sys.ExitError
	switch {
	case errors.As(err, &exit):
		return 0, fmt.Errorf("%s ended with exit code %d", name, exit.ExitCode())
	case err != nil:
		return 0, fmt.Errorf("%s failed: %w", name, err)
	case len(results) == 0:
		return 1, nil
	}
	return results[0], nil
}

// Configure makes a root context for a plugin, starts the VM for it and hands over
// its configuration, as Envoy does for each new one. The error is one of the above.
func (h *Host) Configure(ctx context.Context, p Plugin) error {
	c := &rootContext{id: uint32(len(h.contexts)), plugin: p}
	h.contexts[c.id], h.current = c, c
	id := uint64(c.id)
	if _, err := h.call(ctx, "proxy_on_context_create", id, 0); err != nil {
		return h.explain(fmt.Errorf("%w: %w", ErrStart, err))
	}
	if ok, err := h.call(ctx, "proxy_on_vm_start", id, 0); err != nil {
		return h.explain(fmt.Errorf("%w: %w", ErrStart, err))
	} else if ok == 0 {
		return fmt.Errorf("%w: proxy_on_vm_start gives false", ErrStart)
	}
	if ok, err := h.call(ctx, "proxy_on_configure", id, uint64(len(p.Config))); err != nil {
		return h.explain(fmt.Errorf("%w: %w", ErrConfigure, err))
	} else if ok == 0 {
		return fmt.Errorf("%w: proxy_on_configure gives false", ErrConfigure)
	}
	return nil
}

// memory is a module's linear memory, which takes no room before it is used.
type memory struct {
	limit   int64
	refused bool // more was asked for
	bytes   []byte
}

// Allocate implements experimental.MemoryAllocator. A module has one memory here.
func (m *memory) Allocate(_, _ uint64) experimental.LinearMemory {
	m.bytes = make([]byte, m.limit)
	return m
}

// Reallocate implements experimental.LinearMemory.
func (m *memory) Reallocate(size uint64) []byte {
	if size > uint64(m.limit) {
		m.refused = true
		return nil
	}
	return m.bytes[:size:size]
}

// Free implements experimental.LinearMemory.
func (m *memory) Free() { m.bytes = nil }

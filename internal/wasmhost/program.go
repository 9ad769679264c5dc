package wasmhost

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/experimental"

	"chandler.dev/chandler/internal/proxywasm"
)

// features are those of V8 in Envoy that wazero has, too.
const features = api.CoreFeaturesV2 | experimental.CoreFeaturesTailCall | experimental.CoreFeaturesExtendedConst |
	experimental.CoreFeaturesExceptionHandling | experimental.CoreFeaturesTypedFunctionReferences

// program is a module that was compiled, with the functions of the host that it may
// import beside it. Any number of VMs are made of one.
type program struct {
	runtime  wazero.Runtime
	compiled wazero.CompiledModule
}

// compile makes a program of a module of an ABI version. What was compiled before is
// taken from the cache, which may be nil. The error is an ErrCompile, or that a
// function is missing.
func compile(ctx context.Context, abi string, cache wazero.CompilationCache, code []byte) (*program, error) {
	cfg := wazero.NewRuntimeConfig().WithCoreFeatures(features).WithCloseOnContextDone(true)
	if cache != nil {
		cfg = cfg.WithCompilationCache(cache)
	}
	p := &program{runtime: wazero.NewRuntimeWithConfig(ctx, cfg)}
	err := provide(ctx, p.runtime, abi)
	if err == nil {
		if p.compiled, err = p.runtime.CompileModule(ctx, code); err != nil {
			err = fmt.Errorf("%w: %w", ErrCompile, err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, p.close(ctx))
	}
	return p, nil
}

func (p *program) close(ctx context.Context) error {
	return p.runtime.Close(context.WithoutCancel(ctx))
}

// provide gives the runtime the functions that Envoy has for the ABI version, and no
// others: to ask for one of another version is a missing import.
func provide(ctx context.Context, runtime wazero.Runtime, abi string) error {
	all, told := functions(), described()
	modules := map[string][]string{}
	types := proxywasm.HostFunctions(abi)
	for full := range types {
		module, name, _ := strings.Cut(full, ".")
		modules[module] = append(modules[module], name)
	}
	for module, names := range modules {
		b := runtime.NewHostModuleBuilder(module)
		for _, name := range names {
			does := all[name]
			if does == nil {
				return fmt.Errorf("the host lacks %s.%s", module, name)
			}
			params, results, _ := strings.Cut(types[module+"."+name], ">")
			b.NewFunctionBuilder().WithGoModuleFunction(guarded(module, name, len(params), told[name], does), values(params), values(results)).Export(name)
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

// hostKey is under which a call's context has the Host that it is for: the functions
// of a program are shared by its VMs.
type hostKey struct{}

// hostContext is what a VM's code is called with.
type hostContext struct {
	context.Context
	host *Host
}

func (c *hostContext) Value(key any) any {
	if _, is := key.(hostKey); is {
		return c.host
	}
	return c.Context.Value(key)
}

// guarded keeps a function from being called before its time, and tells who wants to
// know of it.
func guarded(module, name string, params int, told string, does func(call) result) api.GoModuleFunc {
	restricted := !atStart(module, name)
	return func(ctx context.Context, m api.Module, stack []uint64) {
		h := ctx.Value(hostKey{}).(*Host)
		if h.starting && restricted {
			panic(errRestricted)
		}
		c := call{h, ctx, m, stack[:params]}
		var before string
		if h.cfg.Trace != nil {
			before = c.tell(name, told)
		}
		r := does(c)
		if h.cfg.Trace != nil {
			h.cfg.Trace(before + c.tellResult(told, r))
		}
		if len(stack) > 0 {
			stack[0] = uint64(r)
		}
	}
}

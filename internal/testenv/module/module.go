// Package module makes Proxy-Wasm modules for tests, good ones and bad ones,
// as bytes: it assembles them in Go and needs no toolchain. Each is a few hundred
// bytes, so that Envoy loads it within milliseconds. What the real Envoy says of
// each is held by this package's own tests.
//
// It is for tests only and no assembler for anything else.
package module

import (
	"encoding/binary"
	"slices"
	"strings"
)

// The memory of every module: results of host calls, constants, the plugin's
// configuration, and a heap that starts again when it is used up.
const (
	resultAddress = 0
	resultSize    = 4
	names         = 16
	responseNames = 64
	text          = 256
	configuration = 4096
	heap          = 0x10000
	pages         = 4
	heapEnd       = pages * 0x10000
	configMax     = heap - configuration
)

const (
	globalHeap = iota
	globalConfigSize
)

// An Option changes a ready-made module before it is encoded.
type Option func(*Module)

// ABI sets the Proxy-Wasm version, for instance "0.1.0"; 0.2.1 is what modules
// have without it.
func ABI(version string) Option {
	return func(m *Module) {
		for i, f := range m.Funcs {
			switch {
			case strings.HasPrefix(f.Name, "proxy_abi_version_"):
				m.Funcs[i].Name = "proxy_abi_version_" + strings.ReplaceAll(version, ".", "_")
			case version == "0.1.0" && strings.HasSuffix(f.Name, "_headers"):
				m.Funcs[i].Params = ints(2) // no end_of_stream
			}
		}
	}
}

// WithSection adds a custom section, for instance to give the same module
// another digest.
func WithSection(name string, content []byte) Option {
	return func(m *Module) { m.Custom = append(m.Custom, Section{name, content}) }
}

// WithImport adds an import of a function without parameters and results.
func WithImport(from, name string) Option {
	return func(m *Module) { m.Imports = append(m.Imports, Import{Module: from, Name: name}) }
}

// Without drops the exported function of that name.
func Without(name string) Option {
	return func(m *Module) {
		m.Funcs = slices.DeleteFunc(m.Funcs, func(f Func) bool { return f.Name == name })
	}
}

// with replaces the body of an exported function.
func with(name string, body func(*Code)) Option {
	return func(m *Module) {
		for i := range m.Funcs {
			if m.Funcs[i].Name == name {
				m.Funcs[i].Body = body
			}
		}
	}
}

// Append gives a module that adds the header x-plugins to requests and
// x-plugins-response to responses, both with its plugin configuration (the first
// 60 KiB of it) as the value. A configuration that begins with "!" it logs
// at level error and refuses.
func Append(options ...Option) []byte {
	m := &Module{
		Pages:   pages,
		Globals: []int32{globalHeap: heap, globalConfigSize: 0},
		Strings: []String{{names, "x-plugins"}, {responseNames, "x-plugins-response"}},
		Imports: []Import{
			{"env", "proxy_get_buffer_bytes", ints(5), ints(1)},
			{"env", "proxy_add_header_map_value", ints(5), ints(1)},
			{"env", "proxy_log", ints(3), ints(1)},
			{"env", "proxy_send_local_response", ints(8), ints(1)},
		},
		Funcs: []Func{
			{Name: "proxy_abi_version_0_2_1"},
			{Name: "_initialize"},
			{"malloc", ints(1), ints(1), allocate},
			{"proxy_on_context_create", ints(2), nil, nil},
			{"proxy_on_vm_start", ints(2), ints(1), func(c *Code) { c.Const(1) }},
			{"proxy_on_configure", ints(2), ints(1), configure},
			{"proxy_on_request_headers", ints(3), ints(1), addHeader(0, names, len("x-plugins"))},
			{"proxy_on_response_headers", ints(3), ints(1), addHeader(2, responseNames, len("x-plugins-response"))},
		},
	}
	for _, o := range options {
		o(m)
	}
	return m.Encode()
}

func ints(n int) []byte { return slices.Repeat([]byte{I32}, n) }

// allocate is malloc: it goes through the heap and starts again at its end. What
// does not fit at all traps.
func allocate(c *Code) {
	c.Param(0)
	c.Const(heapEnd - heap)
	c.Op(opGreater)
	c.If(func() { c.Op(opUnreachable) })
	c.Global(globalHeap)
	c.Param(0)
	c.Op(opAdd)
	c.Const(heapEnd)
	c.Op(opGreater)
	c.If(func() { c.Const(heap); c.SetGlobal(globalHeap) })
	c.Global(globalHeap) // the result
	c.Global(globalHeap)
	c.Param(0)
	c.Op(opAdd)
	c.Const(7)
	c.Op(opAdd)
	c.Const(-8)
	c.Op(opAnd)
	c.SetGlobal(globalHeap)
}

func configure(c *Code) {
	readConfiguration(c)
	c.Const(configuration)
	c.Op(opLoad8, 0x00, 0x00)
	c.Const('!')
	c.Op(opEqual)
	c.If(func() {
		logError(c, func() { c.Const(configuration); c.Global(globalConfigSize) })
		c.Return(0)
	})
	c.Const(1)
}

// readConfiguration has the configuration put into its place; without one the
// function returns true.
func readConfiguration(c *Code) {
	const pluginConfiguration = 7
	c.Const(0)
	c.SetGlobal(globalConfigSize)
	c.Param(1)
	c.Op(opEqualZero)
	c.If(func() { c.Return(1) })
	c.Const(pluginConfiguration, 0, configMax, resultAddress, resultSize)
	c.Call("proxy_get_buffer_bytes")
	c.If(func() { c.Return(0) })
	c.Const(configuration)
	c.Load(resultAddress)
	c.Load(resultSize)
	c.Op(0xfc, 0x0a, 0x00, 0x00) // memory.copy
	c.Load(resultSize)
	c.SetGlobal(globalConfigSize)
}

func logError(c *Code, what func()) {
	c.Const(4)
	what()
	c.Call("proxy_log")
	c.Op(opDrop)
}

func addHeader(headerMap, name int64, length int) func(*Code) {
	return func(c *Code) {
		c.Const(headerMap, name, int64(length), configuration)
		c.Global(globalConfigSize)
		c.Call("proxy_add_header_map_value")
		c.Op(opDrop)
		c.Const(0) // continue
	}
}

// Prefix gives a network module that puts its plugin configuration (the first 60
// KiB of it) before every piece of data that a client sends.
func Prefix(options ...Option) []byte {
	const downstream = 2 // the buffer
	network := func(m *Module) {
		m.Imports = append(m.Imports, Import{"env", "proxy_set_buffer_bytes", ints(5), ints(1)})
		m.Funcs = append(m.Funcs,
			Func{"proxy_on_new_connection", ints(1), ints(1), func(c *Code) { c.Const(0) }},
			Func{"proxy_on_downstream_data", ints(3), ints(1), func(c *Code) {
				c.Const(downstream, 0, 0, configuration)
				c.Global(globalConfigSize)
				c.Call("proxy_set_buffer_bytes")
				c.Op(opDrop)
				c.Const(0) // continue
			}})
	}
	all := []Option{Without("proxy_on_request_headers"), Without("proxy_on_response_headers"), network}
	return Append(append(all, options...)...)
}

// DenyBody is the body of what Deny answers.
const DenyBody = "denied by the module\n"

// Deny gives a module that answers every request itself, with the status.
func Deny(status int, options ...Option) []byte {
	deny := with("proxy_on_request_headers", func(c *Code) {
		c.Const(int64(status), 0, 0, text, int64(len(DenyBody)), 0, 0, -1)
		c.Call("proxy_send_local_response")
		c.Op(opDrop)
		c.Const(1) // stop here
	})
	return Append(append([]Option{withText(DenyBody), deny}, options...)...)
}

// Call gives a module that calls a cluster at every request, without waiting for the
// answer; where Envoy does not let it, it answers the request with status 500 plus the
// number that it was given for a reason (10: internal failure).
func Call(cluster string, options ...Option) []byte {
	const headers = 1024 // where they are in memory
	var pairs, texts []byte
	for _, h := range [][2]string{{":method", "GET"}, {":path", "/called"}, {":authority", "called"}} {
		pairs = binary.LittleEndian.AppendUint32(pairs, uint32(len(h[0])))
		pairs = binary.LittleEndian.AppendUint32(pairs, uint32(len(h[1])))
		texts = append(texts, h[0]+"\x00"+h[1]+"\x00"...)
	}
	list := string(binary.LittleEndian.AppendUint32(nil, 3)) + string(pairs) + string(texts)
	calls := func(m *Module) {
		m.Imports = append(m.Imports, Import{"env", "proxy_http_call", ints(10), ints(1)})
		m.Strings = append(m.Strings, String{headers, list})
	}
	call := with("proxy_on_request_headers", func(c *Code) {
		c.Const(500, text, int64(len(cluster)), headers, int64(len(list)), 0, 0, 0, 0, 1000, resultAddress)
		c.Call("proxy_http_call")
		c.Op(opAdd)
		c.SetGlobal(globalConfigSize)
		c.Global(globalConfigSize)
		c.Const(500)
		c.Op(opGreater)
		c.If(func() {
			c.Global(globalConfigSize)
			c.Const(0, 0, text, 0, 0, 0, -1)
			c.Call("proxy_send_local_response")
			c.Op(opDrop)
			c.Return(1) // stop here
		})
		c.Const(0) // continue
	})
	return Append(append([]Option{withText(cluster), calls, call, Without("proxy_on_response_headers")}, options...)...)
}

func withText(s string) Option {
	return func(m *Module) { m.Strings = append(m.Strings, String{text, s}) }
}

// RefuseConfigure gives a module that refuses every configuration, the missing
// one too, and says why at level error.
func RefuseConfigure(why string, options ...Option) []byte {
	refuse := with("proxy_on_configure", func(c *Code) {
		logError(c, func() { c.Const(text, int64(len(why))) })
		c.Const(0)
	})
	return Append(append([]Option{withText(why), refuse}, options...)...)
}

// TellConfigure gives a module that logs its configuration at level error, and
// refuses it.
func TellConfigure(options ...Option) []byte {
	tell := with("proxy_on_configure", func(c *Code) {
		readConfiguration(c)
		logError(c, func() { c.Const(configuration); c.Global(globalConfigSize) })
		c.Const(0)
	})
	return Append(append([]Option{tell}, options...)...)
}

// Share gives a module that adds what is shared under one key to requests, as the
// header x-plugins, and then shares its configuration under that key.
func Share(options ...Option) []byte {
	const version = 8 // of what is shared
	share := func(m *Module) {
		m.Imports = append(m.Imports, Import{"env", "proxy_get_shared_data", ints(5), ints(1)}, Import{"env", "proxy_set_shared_data", ints(5), ints(1)})
		with("proxy_on_request_headers", func(c *Code) {
			key := int64(len("x-plugins"))
			c.Const(names, key, resultAddress, resultSize, version)
			c.Call("proxy_get_shared_data")
			c.Op(opEqualZero)
			c.If(func() {
				c.Const(0, names, key)
				c.Load(resultAddress)
				c.Load(resultSize)
				c.Call("proxy_add_header_map_value")
				c.Op(opDrop)
			})
			c.Const(names, key, configuration)
			c.Global(globalConfigSize)
			c.Const(0)
			c.Call("proxy_set_shared_data")
			c.Op(opDrop)
			c.Const(0) // continue
		})(m)
	}
	return Append(append([]Option{share}, options...)...)
}

// TrapStart gives a module that traps when it is started.
func TrapStart(options ...Option) []byte { return trap("_initialize", options) }

// TrapRequest gives a module that traps at every request.
func TrapRequest(options ...Option) []byte { return trap("proxy_on_request_headers", options) }

// TrapUnconfigured gives a module that does as Append's, but traps at every
// request when it has no configuration.
func TrapUnconfigured(options ...Option) []byte {
	request := with("proxy_on_request_headers", func(c *Code) {
		c.Global(globalConfigSize)
		c.Op(opEqualZero)
		c.If(func() { c.Op(opUnreachable) })
		addHeader(0, names, len("x-plugins"))(c)
	})
	return Append(append([]Option{request}, options...)...)
}

// Started gives a module something to do when it is started.
func Started(body func(*Code)) Option { return with("_initialize", body) }

func trap(function string, options []Option) []byte {
	return Append(append([]Option{with(function, func(c *Code) { c.Op(opUnreachable) })}, options...)...)
}

// Moody has a module do something when its configuration begins with a letter.
func Moody(letter byte, does func(*Code)) Option {
	return func(m *Module) {
		importing(grpcCall)(m)
		for i := range m.Funcs {
			if m.Funcs[i].Name != "proxy_on_configure" {
				continue
			}
			before := m.Funcs[i].Body
			m.Funcs[i].Body = func(c *Code) {
				c.Const(7, 0, 1, resultAddress, resultSize)
				c.Call("proxy_get_buffer_bytes")
				c.Op(opDrop)
				c.Load(resultAddress)
				c.Op(opLoad8, 0x00, 0x00)
				c.Const(int64(letter))
				c.Op(opEqual)
				c.If(func() { does(c) })
				before(c)
			}
		}
	}
}

// Loop comes to no end.
func Loop(c *Code) { c.Op(opLoop, 0x40, opBranch, 0x00, opEnd, opUnreachable) }

// Grow takes and fills memory for as long as there is any.
func Grow(c *Code) {
	const step, pageSize = 16 << 20, 64 << 10
	memoryGrow, memoryFill := []byte{0x40, 0x00}, []byte{0xfc, 0x0b, 0x00}
	c.Op(opLoop, 0x40)
	c.Const(step / pageSize)
	c.Op(memoryGrow...)
	c.Const(pageSize)
	c.Op(opMultiply)
	c.Const(1)
	c.Const(step)
	c.Op(memoryFill...)
	c.Op(opBranch, 0x00, opEnd, opUnreachable)
}

// grpcCall is the function of the host that CallGRPC calls.
var grpcCall = Import{Module: "env", Name: "proxy_grpc_call", Params: ints(12), Results: ints(1)}

// CallGRPC calls a service of no name, which Envoy 1.40 does not survive while a
// plugin is configured.
func CallGRPC(c *Code) {
	callZeros(c, grpcCall)
	c.Op(opDrop)
}

// LoopConfigure gives a module that never comes back from its configuration.
func LoopConfigure(options ...Option) []byte { return loop("proxy_on_configure", options) }

// LoopRequest gives a module that never comes back from a request's headers.
func LoopRequest(options ...Option) []byte { return loop("proxy_on_request_headers", options) }

// LoopStart gives a module that never comes back when it is started.
func LoopStart(options ...Option) []byte { return loop("_initialize", options) }

func loop(function string, options []Option) []byte {
	return Append(append([]Option{with(function, Loop)}, options...)...)
}

// ExitStart gives a module that ends with an exit code when it is started.
func ExitStart(code int, options ...Option) []byte {
	const from, call = "wasi_snapshot_preview1", "proc_exit"
	exit := func(m *Module) { m.Imports = append(m.Imports, Import{from, call, ints(1), nil}) }
	start := with("_initialize", func(c *Code) { c.Const(int64(code)); c.Call(call) })
	return Append(append([]Option{exit, start}, options...)...)
}

// CallStart gives a module that calls a function of the host with zeros when it is
// started.
func CallStart(call Import, options ...Option) []byte {
	start := with("_initialize", func(c *Code) {
		callZeros(c, call)
		for range call.Results {
			c.Op(opDrop)
		}
	})
	return Append(append([]Option{importing(call), start}, options...)...)
}

// CallConfigure gives a module that calls functions of the host with zeros, one after
// the other, when it is configured, and refuses the configuration with what they gave
// in its log: a letter for each, A for 0, B for 1 and so on, and "?" for nothing.
func CallConfigure(calls []Import, options ...Option) []byte {
	configure := with("proxy_on_configure", func(c *Code) {
		for i, call := range calls {
			callZeros(c, call)
			if len(call.Results) == 0 {
				continue
			}
			c.Const('A')
			c.Op(opAdd)
			c.SetGlobal(globalConfigSize) // a place to keep it
			c.Const(text + int64(i))
			c.Global(globalConfigSize)
			c.Op(opStore8, 0x00, 0x00)
		}
		logError(c, func() { c.Const(text, int64(len(calls))) })
		c.Const(0)
	})
	return Append(append([]Option{importing(calls...), withText(strings.Repeat("?", len(calls))), configure}, options...)...)
}

// importing adds the imports that a module does not have yet.
func importing(calls ...Import) Option {
	return func(m *Module) {
		for _, call := range calls {
			if !slices.ContainsFunc(m.Imports, func(im Import) bool { return im.Module == call.Module && im.Name == call.Name }) {
				m.Imports = append(m.Imports, call)
			}
		}
	}
}

func callZeros(c *Code, call Import) {
	for _, p := range call.Params {
		if p == I64 {
			c.Op(0x42, 0x00)
		} else {
			c.Const(0)
		}
	}
	c.Call(call.Name)
}

// GrowConfigure gives a module that takes and fills memory for as long as there is
// any, when it is configured.
func GrowConfigure(options ...Option) []byte { return grow("proxy_on_configure", options) }

// GrowStart gives a module that does so when it is started.
func GrowStart(options ...Option) []byte { return grow("_initialize", options) }

func grow(function string, options []Option) []byte {
	return Append(append([]Option{with(function, Grow)}, options...)...)
}

// MissingImport gives a module that wants a host function that no Envoy has.
func MissingImport(options ...Option) []byte {
	return Append(append([]Option{WithImport("env", "proxy_no_such_call")}, options...)...)
}

// BadABI gives a module of a Proxy-Wasm version that no Envoy knows.
func BadABI(options ...Option) []byte { return Append(append([]Option{ABI("0.9.9")}, options...)...) }

// NoMalloc gives a module that the host cannot hand anything to.
func NoMalloc(options ...Option) []byte {
	return Append(append([]Option{Without("malloc")}, options...)...)
}

// Truncate gives the first two thirds of a module.
func Truncate(m []byte) []byte { return slices.Clone(m[:len(m)*2/3]) }

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

func trap(function string, options []Option) []byte {
	return Append(append([]Option{with(function, func(c *Code) { c.Op(opUnreachable) })}, options...)...)
}

// LoopConfigure gives a module that never comes back from its configuration.
func LoopConfigure(options ...Option) []byte {
	loop := with("proxy_on_configure", func(c *Code) { c.Op(opLoop, 0x40, opBranch, 0x00, opEnd, opUnreachable) })
	return Append(append([]Option{loop}, options...)...)
}

// GrowConfigure gives a module that takes and fills memory for as long as there is
// any, when it is configured.
func GrowConfigure(options ...Option) []byte {
	const step, pageSize = 16 << 20, 64 << 10
	memoryGrow, memoryFill := []byte{0x40, 0x00}, []byte{0xfc, 0x0b, 0x00}
	grow := with("proxy_on_configure", func(c *Code) {
		c.Op(opLoop, 0x40)
		c.Const(step / pageSize)
		c.Op(memoryGrow...)
		c.Const(pageSize)
		c.Op(opMultiply)
		c.Const(1)
		c.Const(step)
		c.Op(memoryFill...)
		c.Op(opBranch, 0x00, opEnd, opUnreachable)
	})
	return Append(append([]Option{grow}, options...)...)
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

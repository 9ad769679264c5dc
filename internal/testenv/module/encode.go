package module

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Value types.
const (
	I32 byte = 0x7f
	I64 byte = 0x7e
)

// Module is a WebAssembly module to be encoded. Every value in it is an i32.
type Module struct {
	Imports []Import
	Funcs   []Func
	// Pages is the initial size of the memory; zero is a module without memory.
	Pages   uint32
	Globals []int32 // mutable, with their initial values
	Strings []String
	Custom  []Section
}

// Import is a function that the host must provide.
type Import struct {
	Module, Name    string
	Params, Results []byte
}

// Func is a function; one without a name is not exported.
type Func struct {
	Name            string
	Params, Results []byte
	Body            func(*Code)
}

// String is a piece of memory that is there from the start.
type String struct {
	At   int32
	Text string
}

// Section is a custom section.
type Section struct {
	Name  string
	Bytes []byte
}

// Header is what every core module starts with.
func Header() []byte { return []byte("\x00asm\x01\x00\x00\x00") }

// Uint encodes n in LEB128.
func Uint(n uint64) []byte { return binary.AppendUvarint(nil, n) }

// Int encodes n in signed LEB128.
func Int(n int64) []byte {
	var b []byte
	for {
		low := byte(n & 0x7f)
		n >>= 7
		if (n == 0 && low&0x40 == 0) || (n == -1 && low&0x40 != 0) {
			return append(b, low)
		}
		b = append(b, low|0x80)
	}
}

// Name encodes a name: its length and its bytes.
func Name(s string) []byte { return append(Uint(uint64(len(s))), s...) }

// Vector encodes the number of items and the items.
func Vector(items ...[]byte) []byte { return append(Uint(uint64(len(items))), join(items)...) }

// RawSection encodes a section: its id, its length and its content.
func RawSection(id byte, content ...[]byte) []byte {
	c := join(content)
	return append(append([]byte{id}, Uint(uint64(len(c)))...), c...)
}

func join(parts [][]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

// Encode gives the module's bytes. Sections without content are left out.
func (m *Module) Encode() []byte {
	var types, imports, funcs, globals, exports, bodies, texts [][]byte
	typeOf := func(params, results []byte) []byte {
		types = append(types, join([][]byte{{0x60}, Name(string(params)), Name(string(results))}))
		return Uint(uint64(len(types) - 1))
	}
	for _, i := range m.Imports {
		imports = append(imports, join([][]byte{Name(i.Module), Name(i.Name), {0x00}, typeOf(i.Params, i.Results)}))
	}
	for n, f := range m.Funcs {
		funcs = append(funcs, typeOf(f.Params, f.Results))
		if f.Name != "" {
			exports = append(exports, join([][]byte{Name(f.Name), {0x00}, Uint(uint64(len(imports) + n))}))
		}
		c := &Code{module: m, b: Vector()} // no locals
		if f.Body != nil {
			f.Body(c)
		}
		bodies = append(bodies, Name(string(append(c.b, 0x0b))))
	}
	for _, g := range m.Globals {
		globals = append(globals, join([][]byte{{I32, 0x01, 0x41}, Int(int64(g)), {0x0b}}))
	}
	for _, s := range m.Strings {
		texts = append(texts, join([][]byte{{0x00, 0x41}, Int(int64(s.At)), {0x0b}, Name(s.Text)}))
	}
	var memory [][]byte
	if m.Pages > 0 {
		memory = [][]byte{append([]byte{0x00}, Uint(uint64(m.Pages))...)}
		exports = append(exports, append(Name("memory"), 0x02, 0x00))
	}

	b := Header()
	for _, s := range []struct {
		id    byte
		items [][]byte
	}{{1, types}, {2, imports}, {3, funcs}, {5, memory}, {6, globals}, {7, exports}, {10, bodies}, {11, texts}} {
		if len(s.items) > 0 {
			b = append(b, RawSection(s.id, Vector(s.items...))...)
		}
	}
	for _, c := range m.Custom {
		b = append(b, RawSection(0, Name(c.Name), c.Bytes)...)
	}
	return b
}

// Code is the body of a function in the making.
type Code struct {
	module *Module
	b      []byte
}

// Op appends plain opcodes.
func (c *Code) Op(codes ...byte) { c.b = append(c.b, codes...) }

// Const pushes each of ns.
func (c *Code) Const(ns ...int64) {
	for _, n := range ns {
		if n > math.MaxInt32 { // an i32 is written with its sign
			n = int64(int32(uint32(n)))
		}
		c.Op(0x41)
		c.Op(Int(n)...)
	}
}

// Param pushes the n-th parameter.
func (c *Code) Param(n uint64) { c.Op(append([]byte{0x20}, Uint(n)...)...) }

// Global pushes the n-th global.
func (c *Code) Global(n uint64) { c.Op(append([]byte{0x23}, Uint(n)...)...) }

// SetGlobal pops into the n-th global.
func (c *Code) SetGlobal(n uint64) { c.Op(append([]byte{0x24}, Uint(n)...)...) }

// Load pushes the i32 in memory at the address.
func (c *Code) Load(at int64) {
	c.Const(at)
	c.Op(0x28, 0x02, 0x00)
}

// If runs then when the popped value is not zero.
func (c *Code) If(then func()) {
	c.Op(0x04, 0x40)
	then()
	c.Op(0x0b)
}

// Return ends the function with n.
func (c *Code) Return(n int64) {
	c.Const(n)
	c.Op(0x0f)
}

// Call calls the import or function of that name.
func (c *Code) Call(name string) {
	for i, im := range c.module.Imports {
		if im.Name == name {
			c.Op(append([]byte{0x10}, Uint(uint64(i))...)...)
			return
		}
	}
	for i, f := range c.module.Funcs {
		if f.Name == name {
			c.Op(append([]byte{0x10}, Uint(uint64(len(c.module.Imports)+i))...)...)
			return
		}
	}
	panic(fmt.Sprintf("module: no function %q to call", name))
}

// Opcodes that have no method.
const (
	opUnreachable byte = 0x00
	opLoop        byte = 0x03
	opBranch      byte = 0x0c
	opEnd         byte = 0x0b
	opDrop        byte = 0x1a
	opSelect      byte = 0x1b
	opLoad8       byte = 0x2d
	opStore8      byte = 0x3a
	opEqualZero   byte = 0x45
	opEqual       byte = 0x46
	opGreater     byte = 0x4b // unsigned
	opAdd         byte = 0x6a
	opMultiply    byte = 0x6c
	opAnd         byte = 0x71
	opShiftRight  byte = 0x76 // unsigned
	opReturn      byte = 0x0f
	opStore       byte = 0x36
)

package module

import (
	"slices"
	"strings"
)

// A Script is a module that does what it says in its callbacks, and logs at level
// info what comes of it, so that hosts can be compared. In each callback that it has
// the module logs the callback's name and its parameters, and then, for each call of
// the host, the call's number in the script, its result, and what it gave.
type Script struct {
	ABI string // "0.2.1" if empty
	// On has the callbacks, by their names. The n-th call of one does the n-th turn,
	// and the last one again and again.
	On map[string][]Turn
}

// Turn is what a callback does once.
type Turn struct {
	Does []Host
	// Gives is the result of the callback, if it has one; Waits is what it gives instead,
	// if not 0, for a piece of a body that is not the last.
	Gives, Waits int64
	// Traps: it comes to no result. Loops: it comes to no end.
	Traps, Loops bool
}

// Host is a call of the host. Arguments are int (i32), int64 (i64), string (an
// address and a size), Pairs (likewise), or one of the Outs. A call that is not of
// module env is written "module.name".
type Host struct {
	Call string
	Args []any
}

// Do is a call of the host.
func Do(call string, args ...any) Host { return Host{call, args} }

// Pairs are names and values in turn.
type Pairs []string

// Out is a place for what the host gives, which is logged.
type Out int

// What the host gives: bytes (where they are and how many), or a number.
const (
	OutBytes Out = iota
	OutNumber
	OutLong
	// Token is the number that the last call gave for an OutNumber, handed to the host.
	Token
)

// The memory of a script's module: places for results, the line that is logged, and
// its constants.
const (
	scriptOut    = 32
	scriptToken  = 80
	scriptLine   = 0x1000
	scriptTexts  = 0x4000
	scriptHeap   = 0x20000
	scriptEnd    = 0x40000
	scriptShown  = 1024 // bytes of what is given
	scriptPages  = 4
	lineEnd      = 1 // the global that has the end of the line
	position     = 2 // the global for a loop
	turnsGlobals = 3 // the first of the counters
)

// script is one in the making.
type script struct {
	*Module
	at int64 // where the next constant goes
}

// Encode gives the module's bytes.
func (s Script) Encode() []byte {
	abi := s.ABI
	if abi == "" {
		abi = "0.2.1"
	}
	m := &script{&Module{Pages: scriptPages, Globals: []int32{scriptHeap, scriptLine, 0}}, scriptTexts}
	names := make([]string, 0, len(s.On))
	for name := range s.On {
		names = append(names, name)
	}
	slices.Sort(names)
	importing(Import{"env", "proxy_log", ints(3), ints(1)})(m.Module)
	for _, name := range names {
		m.Globals = append(m.Globals, 0)
		for _, t := range s.On[name] {
			for _, h := range t.Does {
				importing(h.imported())(m.Module)
			}
		}
	}
	m.Funcs = []Func{
		{Name: "proxy_abi_version_" + strings.ReplaceAll(abi, ".", "_")},
		{Name: "_initialize"},
		{"malloc", ints(1), ints(1), scriptAllocate},
		{"hex", ints(1), nil, appendHex},
		{"bytes", ints(2), nil, appendBytes},
	}
	for i, name := range names {
		params, results := signatureOf(name, abi)
		m.Funcs = append(m.Funcs, Func{name, ints(params), ints(results), m.callback(name, params, results, uint64(turnsGlobals+i), s.On[name])})
	}
	return m.Encode()
}

// signatureOf gives how many parameters and results a callback has.
func signatureOf(name, abi string) (params, results int) {
	switch strings.TrimPrefix(name, "proxy_") {
	case "on_context_create":
		return 2, 0
	case "on_tick", "on_log", "on_delete":
		return 1, 0
	case "on_done":
		return 1, 1
	case "on_http_call_response":
		return 5, 0
	case "on_queue_ready":
		return 2, 0
	case "on_grpc_close":
		return 3, 0
	case "on_request_headers", "on_response_headers":
		if abi != "0.1.0" {
			return 3, 1
		}
	case "on_request_body", "on_response_body":
		return 3, 1
	}
	return 2, 1
}

func (h Host) imported() Import {
	from, name, apart := strings.Cut(h.Call, ".")
	if !apart {
		from, name = "env", h.Call
	}
	im := Import{Module: from, Name: name, Results: ints(1)}
	for _, a := range h.Args {
		switch a := a.(type) {
		case int64:
			im.Params = append(im.Params, I64)
		case string, Pairs:
			im.Params = append(im.Params, I32, I32)
		case Out:
			im.Params = append(im.Params, I32)
			if a == OutBytes {
				im.Params = append(im.Params, I32)
			}
		default:
			im.Params = append(im.Params, I32)
		}
	}
	return im
}

// text puts a constant into memory.
func (m *script) text(s string) (at int64) {
	for _, there := range m.Strings {
		if there.Text == s {
			return int64(there.At)
		}
	}
	at = m.at
	m.Strings = append(m.Strings, String{int32(at), s})
	m.at += int64(len(s)) + 8
	return at
}

// callback is the body of one.
func (m *script) callback(name string, params, results int, count uint64, turns []Turn) func(*Code) {
	return func(c *Code) {
		m.say(c, strings.TrimPrefix(name, "proxy_"))
		for n := range params {
			c.Param(uint64(n))
			c.Call("hex")
		}
		logLine(c)
		c.Global(count)
		c.Const(1)
		c.Op(opAdd)
		c.SetGlobal(count)
		for i, t := range turns {
			turn := func() {
				for n, h := range t.Does {
					m.do(c, n, h)
				}
				if t.Waits != 0 && params == 3 {
					c.Param(2)
					c.Op(opEqualZero)
					c.If(func() { c.Return(t.Waits) })
				}
				switch {
				case t.Loops:
					Loop(c)
				case t.Traps:
					c.Op(opUnreachable)
				case results > 0:
					c.Return(t.Gives)
				default:
					c.Op(opReturn)
				}
			}
			if i == len(turns)-1 {
				turn()
				break
			}
			c.Global(count)
			c.Const(int64(i + 1))
			c.Op(opEqual)
			c.If(turn)
		}
		if len(turns) == 0 && results > 0 {
			c.Const(0)
		}
	}
}

// say begins a line with a text.
func (m *script) say(c *Code, s string) {
	c.Const(scriptLine)
	c.SetGlobal(lineEnd)
	c.Const(m.text(s), int64(len(s)))
	c.Call("bytes")
}

// logLine logs the line.
func logLine(c *Code) {
	c.Const(2, scriptLine)
	c.Global(lineEnd)
	c.Const(-scriptLine)
	c.Op(opAdd)
	c.Call("proxy_log")
	c.Op(opDrop)
}

// do calls the host and logs what came of it.
func (m *script) do(c *Code, n int, h Host) {
	im := h.imported()
	m.say(c, " "+string(rune('0'+n/10))+string(rune('0'+n%10))+" "+strings.TrimPrefix(im.Name, "proxy_"))
	out := int64(scriptOut)
	for at := out; at < scriptToken; at += 4 { // what nobody writes to is zero
		c.Const(at, 0)
		c.Op(opStore, 0x02, 0x00)
	}
	for _, a := range h.Args {
		switch a := a.(type) {
		case int:
			c.Const(int64(a))
		case int64:
			c.Op(append([]byte{0x42}, Int(a)...)...)
		case string:
			c.Const(m.text(a), int64(len(a)))
		case Pairs:
			s := a.encode()
			c.Const(m.text(s), int64(len(s)))
		case Out:
			switch a {
			case Token:
				c.Load(scriptToken)
			case OutBytes:
				c.Const(out, out+4)
				out += 8
			default:
				c.Const(out)
				out += 8
			}
		}
	}
	c.Call(im.Name)
	c.Call("hex")
	out = scriptOut
	for _, a := range h.Args {
		switch a {
		case OutBytes:
			c.Load(out)
			c.Load(out + 4)
			c.Call("bytes")
			out += 8
		case OutNumber:
			c.Load(out)
			c.Call("hex")
			c.Const(scriptToken)
			c.Load(out)
			c.Op(opStore, 0x02, 0x00)
			out += 8
		case OutLong:
			c.Load(out)
			c.Call("hex")
			c.Load(out + 4)
			c.Call("hex")
			out += 8
		}
	}
	logLine(c)
}

func (p Pairs) encode() string {
	word := func(n int) string { return string([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)}) }
	sizes, texts := word(len(p)/2), ""
	for _, s := range p {
		sizes, texts = sizes+word(len(s)), texts+s+"\x00"
	}
	return sizes + texts
}

// scriptAllocate is malloc for scripts: it never gives anything back.
func scriptAllocate(c *Code) {
	c.Global(globalHeap)
	c.Global(globalHeap)
	c.Param(0)
	c.Op(opAdd)
	c.Const(7)
	c.Op(opAdd)
	c.Const(-8)
	c.Op(opAnd)
	c.SetGlobal(globalHeap)
	c.Global(globalHeap)
	c.Const(scriptEnd)
	c.Op(opGreater)
	c.If(func() { c.Op(opUnreachable) })
}

// appendHex appends a space and a number in hexadecimal, without zeros at its front.
func appendHex(c *Code) {
	appendByte(c, func() { c.Const(' ') })
	for shift := int64(28); shift >= 0; shift -= 4 {
		digit := func() {
			nibble := func() { c.Param(0); c.Const(shift); c.Op(opShiftRight); c.Const(15); c.Op(opAnd) }
			appendByte(c, func() {
				nibble()
				c.Const('0')
				c.Op(opAdd)
				nibble()
				c.Const(9)
				c.Op(opGreater)
				c.Const('a' - '9' - 1)
				c.Op(opMultiply)
				c.Op(opAdd)
			})
		}
		if shift == 0 {
			digit()
			break
		}
		c.Param(0)
		c.Const(shift)
		c.Op(opShiftRight)
		c.If(digit)
	}
}

func appendByte(c *Code, what func()) {
	c.Global(lineEnd)
	what()
	c.Op(opStore8, 0x00, 0x00)
	c.Global(lineEnd)
	c.Const(1)
	c.Op(opAdd)
	c.SetGlobal(lineEnd)
}

// appendBytes appends a space and a piece of memory, as far as there is room for it.
// What cannot be printed is a dot.
func appendBytes(c *Code) {
	c.Param(1)
	c.Const(scriptShown)
	c.Op(opGreater)
	c.If(func() {
		appendByte(c, func() { c.Const('~') })
		c.Op(opReturn)
	})
	appendByte(c, func() { c.Const(' ') })
	c.Const(0)
	c.SetGlobal(position)
	c.Op(opLoop, 0x40)
	c.Param(1)
	c.Global(position)
	c.Op(opGreater)
	c.If(func() {
		load := func() { c.Param(0); c.Global(position); c.Op(opAdd); c.Op(opLoad8, 0x00, 0x00) }
		appendByte(c, func() {
			load()
			c.Const('.')
			load()
			c.Const(' ' - 1)
			c.Op(opGreater)
			c.Op(opSelect)
		})
		c.Global(position)
		c.Const(1)
		c.Op(opAdd)
		c.SetGlobal(position)
		c.Op(opBranch, 0x01)
	})
	c.Op(opEnd)
}

// Package proxywasm reads a .wasm file and tells whether it can be a Proxy-Wasm
// plugin: header, sections, limits, the version of the ABI, what it imports and
// exports. It is the static check, which needs no Envoy and takes milliseconds.
//
// It runs nothing and does not look at the instructions of functions; whether a
// module starts and takes its configuration is for package sandbox to find out.
// It reads as a stream with little memory, whatever the file claims of itself.
// What it accepts and refuses agrees with the real Envoy; a test holds that.
package proxywasm

import (
	"errors"
	"fmt"
	"io"
	"time"

	"chandler.dev/chandler"
)

// EnvoyVersion is the version whose host functions and callbacks are known here.
const EnvoyVersion = "1.40"

// Module is what was found in a file.
type Module struct {
	// ABI is the Proxy-Wasm version, for instance "0.2.1".
	ABI  string
	Size int64
	// Functions counts those that the module defines itself.
	Functions int
	Imports   []Import
	// Exports and Custom hold the first MaxListed only.
	Exports []Export
	Custom  []Section
	// CustomBytes is the size of all custom sections together.
	CustomBytes int64
	// CodeBytes is the size of the code section, which an Envoy has to compile.
	CodeBytes int64
	// Warnings are about what Envoy takes but the author should know of.
	Warnings []chandler.Problem
}

// MaxListed is how many exports and custom sections a Module names.
const MaxListed = 1000

// Import is something that the module wants from the host.
type Import struct {
	Module, Name string
	Kind         Kind
	// Type is the signature of a function, for instance "(i32 i32) -> i32".
	Type string

	signature signature
}

// Export is something that the module offers to the host.
type Export struct {
	Name string
	Kind Kind
	// Type is the signature of a function.
	Type string

	signature signature
}

// Section is a custom section.
type Section struct {
	Name string
	Size int64
}

// Kind is what an import or export is.
type Kind byte

// The kinds, with WebAssembly's own numbers.
const (
	KindFunction Kind = iota
	KindTable
	KindMemory
	KindGlobal
	KindTag
)

func (k Kind) String() string {
	if names := [...]string{"function", "table", "memory", "global", "tag"}; int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind 0x%02x", byte(k))
}

// Inspect reads the module of size bytes that r holds. A module that Envoy would
// not load, or that is refused here for its own reasons (FAULTS B51 to B76), is a
// *chandler.Problem: the first one found, without a field. Any other error is
// one of r.
//
// The time is linear in size. The memory is some 64 KiB, plus what an accepted
// module has in types, functions and exports, less than 16 MiB at worst.
func Inspect(r io.ReaderAt, size int64) (m Module, err error) {
	defer func() {
		// The parser gives up from deep inside by a panic of this one type.
		switch stop := recover().(type) {
		case nil:
		case giveUp:
			m, err = Module{}, stop.error
		default:
			panic(stop)
		}
	}()
	p := &parser{
		input:    newInput(r, size, 64<<10),
		again:    newInput(r, size, 256),
		exported: map[string]Export{}, asked: askedFor(), dataCount: -1,
	}
	p.module.Size = size
	p.parse()
	if problem := p.judge(); problem != nil {
		return Module{}, problem
	}
	return p.module, nil
}

// giveUp carries the error that ends the parser.
type giveUp struct{ error }

func refuse(code chandler.Code, hint, format string, args ...any) {
	panic(giveUp{chandler.Problemf(code, "", hint, format, args...)})
}

// rebuild is the hint for a file that is no whole module.
const rebuild = "build the module again and look at how it was copied"

// malformed refuses what breaks the format of WebAssembly.
func malformed(format string, args ...any) {
	refuse(chandler.CodeWasmParse, rebuild, format, args...)
}

// input reads a file through one buffer, never past limit.
type input struct {
	r      io.ReaderAt
	size   int64
	off    int64 // of the next byte
	limit  int64 // the end of what is being read
	within string
	buf    []byte
	start  int64 // buf[:have] is the file from start
	have   int
}

func newInput(r io.ReaderAt, size int64, buffer int) input {
	return input{r: r, size: size, limit: size, within: "module", buf: make([]byte, buffer)}
}

func (in *input) left() int64 { return in.limit - in.off }

func (in *input) byte() byte {
	if in.off >= in.limit {
		malformed("%s ends too early, at 0x%x", in.within, in.limit)
	}
	if in.off < in.start || in.off >= in.start+int64(in.have) {
		in.fill()
	}
	b := in.buf[in.off-in.start]
	in.off++
	return b
}

func (in *input) fill() {
	want := min(int64(len(in.buf)), in.size-in.off)
	n, err := in.r.ReadAt(in.buf[:want], in.off)
	if int64(n) < want {
		if err == nil || errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // the file shrank
		}
		panic(giveUp{fmt.Errorf("read module at %d: %w", in.off, err)})
	}
	in.start, in.have = in.off, n
}

// skip passes by n bytes without reading them.
func (in *input) skip(n int64, what string) {
	if n > in.left() {
		malformed("%s at 0x%x runs %d bytes past the end of %s", what, in.off, n-in.left(), in.within)
	}
	in.off += n
}

// leb reads an integer of at most that many bits in LEB128, signed or not. One
// that is longer than need be in bytes beyond its bits is refused, as by Envoy.
func (in *input) leb(bits uint, signed bool) int64 {
	at := in.off
	var v uint64
	for shift := uint(0); ; shift += 7 {
		b := in.byte()
		v |= uint64(b&0x7f) << shift
		if used := bits - shift; used <= 7 { // the last byte there may be
			spare := int8((b & 0x7f) >> used)
			if signed { // the spare bits repeat the sign
				spare = int8(b<<1) >> used
			}
			if b&0x80 != 0 || (spare != 0 && (!signed || spare != -1)) {
				malformed("number at 0x%x is longer than %d bits", at, bits)
			}
		}
		if b&0x80 == 0 {
			if signed && b&0x40 != 0 && shift+7 < 64 {
				v |= ^uint64(0) << (shift + 7)
			}
			return int64(v)
		}
	}
}

func (in *input) u32() uint32 { return uint32(in.leb(32, false)) }

// count reads the number of items that follow, each of at least one byte.
func (in *input) count(what string) uint32 {
	n := in.u32()
	if int64(n) > in.left() {
		refuse(chandler.CodeWasmCount, rebuild, "%s claims %d %s in %d bytes", in.within, n, what, in.left())
	}
	return n
}

// atMost refuses more than limit items.
func atMost(n, limit uint32, what string) {
	if n > limit {
		refuse(chandler.CodeWasmLimit, "build a smaller module", "module has %d %s, limit %d", n, what, limit)
	}
}

// maxName is Envoy's limit of a name in bytes.
const maxName = 100_000

// name reads a name of which no more than keep bytes are wanted; full tells
// whether these are all.
func (in *input) name(what string, keep int) (s string, full bool) {
	n := in.u32()
	if n > maxName {
		refuse(chandler.CodeWasmLimit, rebuild, "%s at 0x%x has %d bytes, limit %d", what, in.off, n, maxName)
	}
	if int64(n) > in.left() {
		malformed("%s at 0x%x runs %d bytes past the end of %s", what, in.off, int64(n)-in.left(), in.within)
	}
	b := make([]byte, min(int(n), keep))
	for i := range b {
		b[i] = in.byte()
	}
	in.off += int64(n) - int64(len(b))
	return string(b), int(n) == len(b)
}

// PredictLoad estimates how long an Envoy takes to compile so many bytes of code, on a
// core of a server of today: V8 compiles a module before it first runs, and that is
// nearly all of the time it takes to load: about a second for a megabyte. A Go module of
// 2.6 MB, of which 1.6 MB are code, takes 1.3 to 2 s; one in C of 10 KB, milliseconds. It
// is a prediction: the same for the same bytes, whatever the machine is doing.
func PredictLoad(code int64) time.Duration {
	const perByte = time.Microsecond
	return (time.Duration(code) * perByte).Round(time.Millisecond)
}

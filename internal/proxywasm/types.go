package proxywasm

import (
	"math"

	"chandler.dev/chandler"
)

func (p *parser) typeSection() {
	n := p.count("types")
	atMost(n, maxItems, "types")
	for range n {
		if p.peek() != 0x4e {
			p.subType()
			continue
		}
		p.byte() // a group of types that name each other
		for range p.count("types in a group") {
			p.subType()
		}
	}
}

func (p *parser) subType() {
	atMost(uint32(len(p.types)+1), maxItems, "types")
	if b := p.peek(); b == 0x50 || b == 0x4f {
		p.byte()
		for range p.count("supertypes") {
			p.u32()
		}
	}
	p.types = append(p.types, uint32(p.off)) // files are smaller than 1 GiB
	switch at, form := p.off, p.byte(); form {
	case 0x60:
		p.valueTypes("parameters")
		p.valueTypes("results")
	case 0x5f:
		for range p.count("fields") {
			p.field()
		}
	case 0x5e:
		p.field()
	default:
		malformed("unknown form of type 0x%02x at 0x%x", form, at)
	}
}

func (p *parser) valueTypes(what string) {
	n := p.count(what)
	atMost(n, maxParams, what)
	for range n {
		p.valueType()
	}
}

func (p *parser) field() {
	if b := p.peek(); b == 0x78 || b == 0x77 {
		p.byte()
	} else {
		p.valueType()
	}
	p.mutability()
}

func (in *input) peek() byte {
	b := in.byte()
	in.off--
	return b
}

func (p *parser) mutability() {
	if b := p.byte(); b > 1 {
		malformed("mutability at 0x%x is 0x%02x", p.off-1, b)
	}
}

// valueType reads a type of value and gives its first byte.
func (in *input) valueType() byte {
	at, b := in.off, in.byte()
	switch {
	case b >= 0x7b && b <= 0x7f, b >= 0x69 && b <= 0x74:
	case b == 0x63 || b == 0x64:
		in.leb(33, true)
	default:
		malformed("unknown type of value 0x%02x at 0x%x", b, at)
	}
	return b
}

func (p *parser) typeIndex() uint32 {
	at, i := p.off, p.u32()
	if i >= uint32(len(p.types)) {
		malformed("type %d at 0x%x is not there, there are %d", i, at, len(p.types))
	}
	return i
}

// signature reads a function type again, from where it stands. One that is longer
// than that of any host function is cut, with a mark, so that it equals none.
func (p *parser) signature(index uint32) signature {
	const keep = 32
	in := &p.again
	in.off = int64(p.types[index])
	if in.byte() != 0x60 {
		malformed("type %d is not of a function", index)
	}
	var s []byte
	for i := range 2 {
		if i == 1 {
			s = append(s, '>')
		}
		for n := range in.u32() {
			switch l := letter(in.valueType()); {
			case n < keep:
				s = append(s, l)
			case n == keep:
				s = append(s, '?')
			}
		}
	}
	return signature(s)
}

// limits reads the initial size of a table or memory and the greatest one, with
// what the flags say of it.
func (p *parser) limits(flagsAllowed byte) (initial, most uint64, flags byte) {
	at := p.off
	flags = p.byte()
	if flags&^flagsAllowed != 0 {
		malformed("flags 0x%02x at 0x%x are unknown", flags, at)
	}
	bits := uint(32)
	if flags&4 != 0 {
		bits = 64
	}
	initial, most = uint64(p.leb(bits, false)), math.MaxUint64
	if flags&1 != 0 {
		if most = uint64(p.leb(bits, false)); most < initial {
			malformed("limit %d at 0x%x is under the initial size %d", most, at, initial)
		}
	}
	return initial, most, flags
}

func (p *parser) tableType() {
	if b := p.valueType(); letter(b) != '?' || b == 0x7b {
		malformed("table at 0x%x holds no references", p.off-1)
	}
	initial, _, _ := p.limits(1 | 4)
	p.tables = append(p.tables, initial)
	if n := len(p.tables); n > maxTables {
		refuse(chandler.CodeWasmTable, "build with one table", "module has %d tables, limit %d", n, maxTables)
	}
	total := uint64(0)
	for _, t := range p.tables {
		if total += min(t, maxTableSize+1); total > maxTableSize {
			refuse(chandler.CodeWasmTable, "build with a smaller table", "table starts at %d entries, limit %d for all tables", initial, maxTableSize)
		}
	}
}

func (p *parser) tableSection() {
	for range p.count("tables") {
		if p.peek() != 0x40 {
			p.tableType()
			continue
		}
		p.byte()
		if p.byte() != 0 {
			malformed("table at 0x%x is of an unknown form", p.off-2)
		}
		p.tableType()
		p.constant()
	}
}

func (p *parser) memoryType() {
	initial, most, flags := p.limits(1 | 2 | 4)
	if flags&4 != 0 {
		refuse(chandler.CodeWasmFeature, "build for wasm32", "memory has 64-bit addresses; Proxy-Wasm has 32")
	}
	if flags&2 != 0 && flags&1 == 0 {
		malformed("shared memory before 0x%x has no limit", p.off)
	}
	if flags&1 != 0 && most > maxMemoryPages {
		refuse(chandler.CodeWasmLimit, "build with a smaller memory", "memory may grow to %d pages, limit %d", most, maxMemoryPages)
	}
	if initial > maxMemoryPages {
		refuse(chandler.CodeWasmLimit, "build with a smaller memory", "memory starts at %d pages, limit %d", initial, maxMemoryPages)
	}
	p.memories = append(p.memories, initial)
	atMost(uint32(len(p.memories)), maxMemories, "memories")
}

func (p *parser) memorySection() {
	for range p.count("memories") {
		p.memoryType()
	}
}

func (p *parser) globalSection() {
	n := p.count("globals")
	atMost(n, maxItems, "globals")
	for range n {
		p.valueType()
		p.mutability()
		p.constant()
		p.globals++
	}
}

func (p *parser) tagType() {
	if p.byte() != 0 {
		malformed("tag at 0x%x is of an unknown form", p.off-1)
	}
	p.typeIndex()
	p.tags++
}

func (p *parser) tagSection() {
	n := p.count("tags")
	atMost(n, maxItems, "tags")
	for range n {
		p.tagType()
	}
}

// constant reads a constant expression. When it is one number its value is given.
func (p *parser) constant() (value int64, known bool) {
	for instructions := 0; ; instructions++ {
		at, op := p.off, p.byte()
		switch op {
		case 0x0b:
			return value, known && instructions == 1
		case 0x41:
			value, known = p.leb(32, true), true
		case 0x42:
			value, known = p.leb(64, true), true
		case 0x43:
			p.skip(4, "constant")
		case 0x44:
			p.skip(8, "constant")
		case 0x23, 0xd2: // a global, a function
			p.u32()
		case 0xd0:
			p.leb(33, true)
		case 0x6a, 0x6b, 0x6c, 0x7c, 0x7d, 0x7e: // sums and products
		case 0xfd:
			if p.u32() != 12 {
				malformed("instruction at 0x%x is not allowed in a constant", at)
			}
			p.skip(16, "constant")
		case 0xfb:
			p.constantObject(at)
		default:
			malformed("instruction 0x%02x at 0x%x is not allowed in a constant", op, at)
		}
	}
}

// constantObject reads the instructions that make objects of the collector.
func (p *parser) constantObject(at int64) {
	switch p.u32() {
	case 0, 1, 6, 7:
		p.u32()
	case 8:
		p.u32()
		p.u32()
	case 0x1a, 0x1b, 0x1c:
	default:
		malformed("instruction at 0x%x is not allowed in a constant", at)
	}
}

// fits refuses an active segment that ends outside of what it fills: an instance
// is never made of such a module.
func (p *parser) fits(kind string, number uint32, offset, length int64, into string, index uint32, size uint64) {
	if offset &= math.MaxUint32; uint64(offset)+uint64(length) > size {
		refuse(chandler.CodeWasmSegment, rebuild, "%s segment %d ends outside %s %d: %d of %d",
			kind, number, into, index, offset+length, size)
	}
}

func (p *parser) elementSection() {
	n := p.count("segments")
	atMost(n, maxItems, "element segments")
	for i := range n {
		at, flags := p.off, p.u32()
		if flags > 7 {
			malformed("element segment %d at 0x%x is of unknown form %d", i, at, flags)
		}
		active, table, offset, known := flags&1 == 0, uint32(0), int64(0), false
		if active {
			if flags&2 != 0 {
				table = p.u32()
			}
			if table >= uint32(len(p.tables)) {
				malformed("element segment %d is for table %d of %d", i, table, len(p.tables))
			}
			offset, known = p.constant()
		}
		if flags&3 != 0 { // what it holds
			if flags&4 != 0 {
				p.valueType()
			} else if p.byte() != 0 {
				malformed("element segment %d at 0x%x does not hold functions", i, at)
			}
		}
		items := p.count("elements")
		atMost(items, maxItems*10, "elements in one segment")
		for range items {
			if flags&4 != 0 {
				p.constant()
			} else {
				p.function("element segment")
			}
		}
		if known {
			p.fits("element", i, offset, int64(items), "table", table, p.tables[table])
		}
	}
}

func (p *parser) dataCountSection() { p.dataCount = int64(p.u32()) }

func (p *parser) dataSection() {
	n := p.count("segments")
	atMost(n, maxSegments, "data segments")
	if p.dataCount >= 0 && int64(n) != p.dataCount {
		malformed("data section has %d segments, data count section says %d", n, p.dataCount)
	}
	p.dataCount = -1
	for i := range n {
		at, flags := p.off, p.u32()
		if flags > 2 {
			malformed("data segment %d at 0x%x is of unknown form %d", i, at, flags)
		}
		memory, offset, known := uint32(0), int64(0), false
		if flags != 1 {
			if flags == 2 {
				memory = p.u32()
			}
			if memory >= uint32(len(p.memories)) {
				malformed("data segment %d is for memory %d of %d", i, memory, len(p.memories))
			}
			offset, known = p.constant()
		}
		length := int64(p.u32())
		p.skip(length, "data segment")
		if known {
			p.fits("data", i, offset, length, "memory", memory, p.memories[memory]*pageSize)
		}
	}
}

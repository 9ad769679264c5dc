package proxywasm

import (
	"bytes"
	"hash/maphash"
	"strings"
	"unicode/utf8"

	"chandler.dev/chandler"
)

// Limits: those of Envoy's V8, or smaller where no plugin comes near (FAULTS B65
// and B67).
const (
	maxModule      = 1 << 30
	maxItems       = 1_000_000
	maxFunctions   = 100_000
	maxImports     = 10_000
	maxExports     = 100_000
	maxParams      = 1000
	maxBody        = 7_654_321
	maxLocals      = 50_000
	maxTables      = 100
	maxTableSize   = 1_000_000 // of all tables together
	maxMemories    = 1
	maxMemoryPages = 65536
	maxSegments    = 100_000
	pageSize       = 65536
	maxCustom      = 32 << 20 // bytes of custom sections
)

// parser takes a file apart. It knows WebAssembly and nothing of Proxy-Wasm.
type parser struct {
	input
	module Module

	// types has for each type where its composite type begins in the file, and
	// again reads the few that matter once more from there.
	types []uint32
	again input
	// functions has the type of each function: those imported, those defined.
	functions []uint32
	defined   uint32
	tables    []uint64 // the initial sizes
	memories  []uint64 // the initial sizes in pages
	globals   uint32
	tags      uint32

	abis     []Export // exports named after a version of the ABI
	exported map[string]Export
	asked    map[string]signature // the names that exported may have
	memory   bool                 // one is exported

	dataCount   int64  // segments that are announced and not yet seen; -1: none
	precompiled string // a custom section with machine code
	sawCode     bool
	sawNames    bool
}

// sectionName names a section by its id.
func sectionName(id byte) string {
	names := [...]string{"custom", "type", "import", "function", "table", "memory", "global", "export", "start",
		"element", "code", "data", "data count", "tag"}
	if int(id) < len(names) {
		return names[id] + " section"
	}
	return ""
}

// rank is the place of a section in the order that the format prescribes.
func rank(id byte) int {
	return bytes.IndexByte([]byte{0, 1, 2, 3, 4, 5, 13, 6, 7, 8, 9, 12, 10, 11}, id)
}

func (p *parser) parse() {
	p.header()
	readers := [...]func(){p.custom, p.typeSection, p.importSection, p.functionSection, p.tableSection, p.memorySection,
		p.globalSection, p.exportSection, p.startSection, p.elementSection, p.codeSection, p.dataSection, p.dataCountSection, p.tagSection}
	last := 0
	for p.off < p.size {
		at := p.off
		p.limit, p.within = p.size, "module"
		id := p.byte()
		known := int(id) < len(readers)
		if p.sawCode && (!known || id != 0 && rank(id) <= last && !p.sectionFits() || id == 0 && p.left() > 0 && p.peek() == 0) {
			refuse(chandler.CodeWasmTrailing, "cut the file after its last section, or "+rebuild,
				"%d bytes follow the last section, at 0x%x", p.size-at, at)
		}
		switch {
		case !known:
			malformed("unknown section 0x%02x at 0x%x", id, at)
		case id != 0 && rank(id) == last:
			malformed("second %s at 0x%x", sectionName(id), at)
		case id != 0 && rank(id) < last:
			malformed("%s at 0x%x is out of order", sectionName(id), at)
		case id != 0:
			last = rank(id)
		}
		size := int64(p.u32())
		if over := size - p.left(); over > 0 {
			malformed("%s at 0x%x runs %d bytes past the end of the file", sectionName(id), at, over)
		}
		end := p.off + size
		p.limit, p.within = end, sectionName(id)
		readers[id]()
		if p.off != end {
			malformed("%s at 0x%x has %d bytes too many", sectionName(id), at, end-p.off)
		}
	}
	p.consistent()
}

// sectionFits tells whether the length that follows fits into the file: what
// follows the last section seldom looks like another one.
func (p *parser) sectionFits() bool {
	defer func(at int64) { p.off = at }(p.off)
	n := uint64(0)
	for shift := 0; shift < 35 && p.off < p.size; shift += 7 {
		b := p.byte()
		n |= uint64(b&0x7f) << shift
		if b&0x80 == 0 {
			return n <= uint64(p.size-p.off)
		}
	}
	return false
}

// header reads the first eight bytes.
func (p *parser) header() {
	const magic = "\x00asm"
	if p.size == 0 {
		refuse(chandler.CodeWasmEmpty, rebuild, "module is empty")
	}
	if p.size > maxModule {
		refuse(chandler.CodeWasmLimit, "build a smaller module", "module has %d bytes, limit %d", p.size, maxModule)
	}
	p.within = "header"
	var b [8]byte
	n := min(p.size, 8)
	for i := range n {
		b[i] = p.byte()
	}
	if n < 8 || string(b[:4]) != magic {
		hint, what := foreign(b[:n])
		refuse(chandler.CodeWasmMagic, hint, "file of %d bytes starts with %s; not Wasm%s",
			p.size, chandler.Quote(string(b[:n])), what)
	}
	switch version := string(b[4:]); version {
	case "\x01\x00\x00\x00":
	case "\x0d\x00\x01\x00":
		refuse(chandler.CodeWasmComponent, "build a core module, for instance for wasm32-wasip1 instead of wasm32-wasip2",
			"file is a WebAssembly component; Envoy runs core modules")
	default:
		refuse(chandler.CodeWasmVersion, "build for version 1 of the binary format", "WebAssembly version is %s, want 1", chandler.Quote(version))
	}
}

// foreign tells what a file that is no module may be instead.
func foreign(b []byte) (hint, what string) {
	const isCode = "use the .wasm file that the build wrote"
	for _, f := range []struct{ prefix, what, hint string }{
		{"\x00asm", " but the beginning of it", rebuild},
		{"\x7fELF", " but a Linux program", "build the plugin for wasm32-wasip1 (Go: GOOS=wasip1 GOARCH=wasm)"},
		{"\x1f\x8b", " but gzip", "unpack it"},
		{"\x28\xb5\x2f\xfd", " but zstd", "unpack it"},
		{"PK\x03\x04", " but a zip archive", "unpack it"},
		{"(module", " but its text format", "translate it with wat2wasm"},
		{"<", " but a page of HTML or XML", "look at the url: the server answers with a page"},
		{"{", " but JSON", "look at the url: the server answers with a document"},
		{"version ", " but a pointer of Git LFS", "fetch the file itself with git lfs pull"},
	} {
		if bytes.HasPrefix(b, []byte(f.prefix)) {
			return f.hint, f.what
		}
	}
	return isCode, ""
}

func (p *parser) custom() {
	at, total := p.off, p.left()
	name, full := p.name("name of a custom section", 256)
	if !full {
		name += "..."
	}
	p.module.CustomBytes += total
	if strings.Contains(name, "precompiled_") && p.precompiled == "" {
		p.precompiled = name
	}
	if len(p.module.Custom) < MaxListed {
		p.module.Custom = append(p.module.Custom, Section{name, p.limit - p.off})
	}
	if name == "name" && !p.sawNames {
		p.sawNames = true // Envoy reads the first one only
		p.functionNames(at)
	}
	p.off = p.limit
}

// functionNames reads what Envoy reads of the name section, because it refuses a
// module whose names it cannot read.
func (p *parser) functionNames(at int64) {
	for p.left() > 0 {
		id, size := p.byte(), int64(p.u32())
		if size > p.left() {
			malformed("name section at 0x%x runs %d bytes past its end", at, size-p.left())
		}
		end := p.off + size
		if id == 1 {
			for range p.count("functions") {
				p.u32()
				p.skip(int64(p.u32()), "name of a function")
			}
			if p.off != end {
				malformed("names of functions at 0x%x do not end where they should", at)
			}
		}
		p.off = end
	}
}

func (p *parser) importSection() {
	n := p.count("imports")
	atMost(n, maxImports, "imports")
	for range n {
		im := Import{Module: p.text("module of an import"), Name: p.text("name of an import"), Kind: Kind(p.byte())}
		switch im.Kind {
		case KindFunction:
			index := p.typeIndex()
			p.functions = append(p.functions, index)
			im.signature = p.signature(index)
			im.Type = im.signature.String()
		case KindTable:
			p.tableType()
		case KindMemory:
			p.memoryType()
		case KindGlobal:
			p.valueType()
			p.mutability()
			p.globals++
		case KindTag:
			p.tagType()
		default:
			malformed("import at 0x%x is of unknown kind 0x%02x", p.off-1, byte(im.Kind))
		}
		p.module.Imports = append(p.module.Imports, im)
	}
}

// text reads a name that must be UTF-8. One that is longer than any with a
// meaning is cut, with a mark, so that it equals none.
func (p *parser) text(what string) string {
	at := p.off
	s, full := p.name(what, 256)
	if !full {
		return s + "..."
	}
	if !utf8.ValidString(s) {
		malformed("%s at 0x%x is not UTF-8", what, at)
	}
	return s
}

func (p *parser) functionSection() {
	p.defined = p.count("functions")
	atMost(p.defined, maxFunctions, "functions")
	for range p.defined {
		p.functions = append(p.functions, p.typeIndex())
	}
	p.module.Functions = int(p.defined)
}

func (p *parser) exportSection() {
	n := p.count("exports")
	atMost(n, maxExports, "exports")
	seed := maphash.MakeSeed()
	seen := map[uint64]struct{}{}
	for range n {
		at := p.off
		hash, name := p.hashedName(seed)
		if _, twice := seen[hash]; twice {
			malformed("export %s at 0x%x is there twice", chandler.Quote(name), at)
		}
		seen[hash] = struct{}{}
		e, index := Export{Name: name, Kind: Kind(p.byte())}, p.u32()
		there := 0
		switch e.Kind {
		case KindFunction:
			there = len(p.functions)
		case KindTable:
			there = len(p.tables)
		case KindMemory:
			there = len(p.memories)
			p.memory = true
		case KindGlobal:
			there = int(p.globals)
		case KindTag:
			there = int(p.tags)
		default:
			malformed("export %s at 0x%x is of unknown kind 0x%02x", chandler.Quote(name), at, byte(e.Kind))
		}
		if int64(index) >= int64(there) {
			malformed("export %s at 0x%x is %v %d of %d", chandler.Quote(name), at, e.Kind, index, there)
		}
		p.keep(e, index)
	}
}

// hashedName reads the name of an export and hashes all of it.
func (p *parser) hashedName(seed maphash.Seed) (uint64, string) {
	at := p.off
	name := p.text("name of an export")
	var h maphash.Hash
	h.SetSeed(seed)
	end := p.off
	for p.off = at; p.off < end; {
		_ = h.WriteByte(p.byte())
	}
	return h.Sum64(), name
}

// keep notes an export if Proxy-Wasm or people may ask for it.
func (p *parser) keep(e Export, index uint32) {
	const maxABIs = 8
	_, asked := p.asked[e.Name]
	abi := strings.HasPrefix(e.Name, abiPrefix) && len(p.abis) < maxABIs
	listed := len(p.module.Exports) < MaxListed
	if e.Kind == KindFunction && (asked || abi || listed) {
		e.signature = p.signature(p.functions[index])
		e.Type = e.signature.String()
	}
	if asked {
		p.exported[e.Name] = e
	}
	if abi {
		p.abis = append(p.abis, e)
	}
	if listed {
		p.module.Exports = append(p.module.Exports, e)
	}
}

// function checks the index of a function among all.
func (p *parser) function(what string) {
	if index := p.u32(); int64(index) >= int64(len(p.functions)) {
		malformed("%s names function %d of %d", what, index, len(p.functions))
	}
}

func (p *parser) startSection() { p.function("start section") }

func (p *parser) codeSection() {
	n := p.count("functions")
	if n != p.defined {
		malformed("code section has %d functions, function section %d", n, p.defined)
	}
	section := p.limit
	p.module.CodeBytes = p.left()
	for i := range n {
		size := int64(p.u32())
		number := len(p.functions) - int(n) + int(i)
		switch {
		case size > maxBody:
			refuse(chandler.CodeWasmLimit, "split the function", "function %d has %d bytes, limit %d", number, size, maxBody)
		case size > p.left():
			malformed("function %d at 0x%x runs %d bytes past the end of the code section", number, p.off, size-p.left())
		case size == 0:
			malformed("function %d at 0x%x is empty", number, p.off)
		}
		end := p.off + size
		p.limit, p.within = end, "function"
		locals := uint64(0)
		for range p.count("groups of locals") {
			locals += uint64(p.u32())
			p.valueType()
			if locals > maxLocals {
				refuse(chandler.CodeWasmLocals, "build with optimisation, or split the function",
					"function %d has %d locals, limit %d", number, locals, maxLocals)
			}
		}
		p.limit, p.off, p.within = section, end, "code section"
	}
	p.sawCode = true
}

// consistent checks what only the end of the file shows.
func (p *parser) consistent() {
	if p.defined > 0 && !p.sawCode {
		malformed("code section is missing for %d functions", p.defined)
	}
	if p.dataCount > 0 {
		malformed("data section is missing for %d segments", p.dataCount)
	}
	if p.module.CustomBytes > maxCustom {
		refuse(chandler.CodeWasmSection, "strip the module (wasm-tools strip, or -s when linking)",
			"custom sections have %d bytes, limit %d", p.module.CustomBytes, maxCustom)
	}
}

package proxywasm_test

import (
	"bytes"
	"slices"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/module"
)

// refusal is a module that is refused, and the golden text of the refusal.
type refusal struct {
	row, name string
	module    []byte
	code      chandler.Code
	text      string
	// stricter: Envoy would take it.
	stricter bool
}

func cat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

// raw is a module of whole sections that are written by hand.
func raw(sections ...[]byte) []byte { return cat(append([][]byte{module.Header()}, sections...)...) }

func u(n uint64) []byte { return module.Uint(n) }

var (
	noParams  = []byte{0x60, 0, 0}
	abiExport = cat(module.Name("proxy_abi_version_0_2_1"), []byte{0, 0})
)

// plugin is the smallest plugin that Envoy takes: one function that is the ABI
// version, one that is malloc, and one page of memory. A section that is given
// replaces the plugin's own with that id; those without content are left out.
func plugin(replace ...[]byte) []byte {
	body := func(code ...byte) []byte { return module.Name(string(append([]byte{0}, append(code, 0x0b)...))) }
	sections := map[byte][]byte{
		1:  module.RawSection(1, module.Vector(noParams, []byte{0x60, 1, 0x7f, 1, 0x7f})),
		3:  module.RawSection(3, module.Vector([]byte{0}, []byte{1})),
		5:  module.RawSection(5, module.Vector([]byte{0, 1})),
		7:  module.RawSection(7, module.Vector(abiExport, cat(module.Name("malloc"), []byte{0, 1}), cat(module.Name("memory"), []byte{2, 0}))),
		10: module.RawSection(10, module.Vector(body(), body(0x41, 0))),
	}
	for _, s := range replace {
		sections[s[0]] = s
	}
	b := module.Header()
	for _, id := range []byte{1, 2, 3, 4, 5, 13, 6, 7, 8, 9, 12, 10, 11, 0} {
		if s := sections[id]; len(s) > 2 || len(s) == 2 && s[1] != 0 {
			b = append(b, s...)
		}
	}
	return b
}

func bodies(second ...byte) []byte {
	return module.RawSection(10, module.Vector(module.Name("\x00\x0b"), second))
}

func importing(from, name string, params, results []byte) module.Option {
	return func(m *module.Module) {
		m.Imports = append(m.Imports, module.Import{Module: from, Name: name, Params: params, Results: results})
	}
}

func exporting(name string, params, results []byte) module.Option {
	return func(m *module.Module) {
		module.Without(name)(m)
		m.Funcs = append(m.Funcs, module.Func{Name: name, Params: params, Results: results, Body: func(c *module.Code) { c.Op(0) }})
	}
}

func refusals() []refusal {
	return slices.Concat(refusedFormat(), refusedLimits(), refusedRules())
}

const again = "; build the module again and look at how it was copied"

func refusedFormat() []refusal {
	good := plugin()
	return []refusal{
		{"B51", "empty", nil, chandler.CodeWasmEmpty, "module is empty" + again, false},

		{"B59", "zeros", cat(good, make([]byte, 12)), chandler.CodeWasmTrailing,
			"12 bytes follow the last section, at 0x57; cut the file after its last section, or build the module again and look at how it was copied", false},
		{"B59", "a line feed", cat(good, []byte("\n")), chandler.CodeWasmTrailing,
			"1 bytes follow the last section, at 0x57; cut the file after its last section, or build the module again and look at how it was copied", false},
		{"B59", "text", cat(good, []byte("hello")), chandler.CodeWasmTrailing,
			"5 bytes follow the last section, at 0x57; cut the file after its last section, or build the module again and look at how it was copied", false},

		{"B60", "HTML", []byte("<!DOCTYPE html>"), chandler.CodeWasmMagic,
			`file of 15 bytes starts with "<!DOCTYP"; not Wasm but a page of HTML or XML; look at the url: the server answers with a page`, false},
		{"B60", "text format", []byte("(module)"), chandler.CodeWasmMagic,
			`file of 8 bytes starts with "(module)"; not Wasm but its text format; translate it with wat2wasm`, false},
		{"B60", "ELF", []byte("\x7fELF\x02\x01\x01\x00\x00"), chandler.CodeWasmMagic,
			`file of 9 bytes starts with "\x7fELF\x02\x01\x01\x00"; not Wasm but a Linux program; build the plugin for wasm32-wasip1 (Go: GOOS=wasip1 GOARCH=wasm)`, false},
		{"B60", "gzip", []byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00"), chandler.CodeWasmMagic,
			`file of 9 bytes starts with "\x1f\x8b\b\x00\x00\x00\x00\x00"; not Wasm but gzip; unpack it`, false},
		{"B60", "five bytes", module.Header()[:5], chandler.CodeWasmMagic,
			`file of 5 bytes starts with "\x00asm\x01"; not Wasm but the beginning of it` + again, false},
		{"B60", "anything", []byte("anything else"), chandler.CodeWasmMagic,
			`file of 13 bytes starts with "anything"; not Wasm; use the .wasm file that the build wrote`, false},

		{"B61", "version 2", []byte("\x00asm\x02\x00\x00\x00"), chandler.CodeWasmVersion,
			`WebAssembly version is "\x02\x00\x00\x00", want 1; build for version 1 of the binary format`, false},
		{"B61", "component", []byte("\x00asm\x0d\x00\x01\x00"), chandler.CodeWasmComponent,
			"file is a WebAssembly component; Envoy runs core modules; build a core module, for instance for wasm32-wasip1 instead of wasm32-wasip2", false},

		{"B62", "truncated section", good[:len(good)-4], chandler.CodeWasmParse, "code section at 0x4c runs 4 bytes past the end of the file" + again, false},
		{"B62", "truncated length", good[:0x4d], chandler.CodeWasmParse, "module ends too early, at 0x4d" + again, false},
		{"B62", "overlong number", raw([]byte{1, 0x81, 0x80, 0x80, 0x80, 0x80, 0x00, 0}), chandler.CodeWasmParse,
			"number at 0x9 is longer than 32 bits" + again, false},
		{"B62", "number with spare bits", raw([]byte{1, 0x81, 0x80, 0x80, 0x80, 0x10, 0}), chandler.CodeWasmParse,
			"number at 0x9 is longer than 32 bits" + again, false},
		{"B62", "order", raw(module.RawSection(3, []byte{0}), module.RawSection(1, []byte{0})), chandler.CodeWasmParse,
			"type section at 0xb is out of order" + again, false},
		{"B62", "duplicate section", raw(module.RawSection(1, []byte{0}), module.RawSection(1, []byte{0})), chandler.CodeWasmParse,
			"second type section at 0xb" + again, false},
		{"B62", "duplicate code section", cat(good, bodies(u(2)...)), chandler.CodeWasmParse, "second code section at 0x57" + again, false},
		{"B62", "unknown section", raw([]byte{99, 0}), chandler.CodeWasmParse, "unknown section 0x63 at 0x8" + again, false},
		{"B62", "section with bytes to spare", raw(module.RawSection(1, []byte{0, 0})), chandler.CodeWasmParse,
			"type section at 0x8 has 1 bytes too many" + again, false},
		{"B62", "item over the end", raw(module.RawSection(1, []byte{1, 0x60, 5, 0x7f})), chandler.CodeWasmCount,
			"type section claims 5 parameters in 1 bytes" + again, false},
		{"B62", "no code", plugin([]byte{10, 0}), chandler.CodeWasmParse, "code section is missing for 2 functions" + again, false},
		{"B62", "other number of bodies", plugin(module.RawSection(10, module.Vector(module.Name("\x00\x0b")))), chandler.CodeWasmParse,
			"code section has 1 functions, function section 2" + again, false},
		{"B62", "name not UTF-8", module.Append(importing("env", "\xff", nil, nil)), chandler.CodeWasmParse,
			"name of an import at 0xd2 is not UTF-8" + again, false},
		{"B62", "export twice", plugin(module.RawSection(7, module.Vector(abiExport, abiExport))), chandler.CodeWasmParse,
			`export "proxy_abi_version_0_2_1" at 0x3a is there twice` + again, false},
		{"B62", "export of nothing", plugin(module.RawSection(7, module.Vector(cat(module.Name("malloc"), []byte{0, 9})))), chandler.CodeWasmParse,
			`export "malloc" at 0x20 is function 9 of 2` + again, false},
		{"B62", "names", module.Append(module.WithSection("name", []byte{1, 3, 1, 0, 9})), chandler.CodeWasmParse,
			"name of a function at 0x297 runs 9 bytes past the end of custom section" + again, false},

		{"B63", "types", raw(module.RawSection(1, u(1<<32-1), make([]byte, 6))), chandler.CodeWasmCount,
			"type section claims 4294967295 types in 6 bytes" + again, false},
		{"B63", "locals", plugin(bodies(module.Name(string(cat(u(1<<32-1), []byte{1, 0x7f, 0x0b})))...)), chandler.CodeWasmCount,
			"function claims 4294967295 groups of locals in 3 bytes" + again, false},
	}
}

func refusedLimits() []refusal {
	const smaller = "; build a smaller module"
	locals := func(n uint64) []byte {
		return plugin(bodies(module.Name(string(cat(u(1), u(n), []byte{0x7f, 0x41, 0, 0x0b})))...))
	}
	table := func(initial ...uint64) []byte {
		var tables [][]byte
		for _, n := range initial {
			tables = append(tables, cat([]byte{0x70, 0}, u(n)))
		}
		return plugin(module.RawSection(4, module.Vector(tables...)))
	}
	memory := func(limits ...byte) []byte { return plugin(module.RawSection(5, module.Vector(limits))) }
	data := func(offset int64, length int) []byte {
		return plugin(module.RawSection(11, module.Vector(cat([]byte{0, 0x41}, module.Int(offset), []byte{0x0b}, module.Name(strings.Repeat("x", length))))))
	}
	return []refusal{
		{"B64", "4 Gi", locals(1<<32 - 1), chandler.CodeWasmLocals,
			"function 1 has 4294967295 locals, limit 50000; build with optimisation, or split the function", false},
		{"B64", "one too many", locals(50_001), chandler.CodeWasmLocals,
			"function 1 has 50001 locals, limit 50000; build with optimisation, or split the function", false},

		{"B65", "functions", plugin(module.RawSection(3, u(120_000), make([]byte, 120_000))), chandler.CodeWasmLimit,
			"module has 120000 functions, limit 100000" + smaller, false},
		{"B65", "imports", plugin(module.RawSection(2, u(10_001), make([]byte, 10_001))), chandler.CodeWasmLimit,
			"module has 10001 imports, limit 10000" + smaller, false},
		{"B65", "exports", plugin(module.RawSection(7, u(100_001), make([]byte, 100_001))), chandler.CodeWasmLimit,
			"module has 100001 exports, limit 100000" + smaller, false},
		{"B65", "types", plugin(module.RawSection(1, u(1_000_001), make([]byte, 1_000_001))), chandler.CodeWasmLimit,
			"module has 1000001 types, limit 1000000" + smaller, false},
		{"B65", "body", plugin(bodies(module.Name(string(cat([]byte{0}, bytes.Repeat([]byte{1}, 7_654_321), []byte{0x0b})))...)), chandler.CodeWasmLimit,
			"function 1 has 7654323 bytes, limit 7654321; split the function", false},
		{"B65", "memory", memory(cat([]byte{0}, u(65537))...), chandler.CodeWasmLimit,
			"memory starts at 65537 pages, limit 65536; build with a smaller memory", false},
		{"B65", "growth", memory(cat([]byte{1, 1}, u(65537))...), chandler.CodeWasmLimit,
			"memory may grow to 65537 pages, limit 65536; build with a smaller memory", false},
		{"B65", "two memories", plugin(module.RawSection(5, module.Vector([]byte{0, 1}, []byte{0, 1}))), chandler.CodeWasmLimit,
			"module has 2 memories, limit 1" + smaller, true},
		{"B65", "name", raw(module.RawSection(2, u(1), u(100_001), make([]byte, 100_001))), chandler.CodeWasmLimit,
			"module of an import at 0x10 has 100001 bytes, limit 100000" + again, false},

		{"B67", "size", table(1 << 27), chandler.CodeWasmTable,
			"table starts at 134217728 entries, limit 1000000 for all tables; build with a smaller table", false},
		{"B67", "size of several", table(600_000, 600_000), chandler.CodeWasmTable,
			"table starts at 600000 entries, limit 1000000 for all tables; build with a smaller table", true},
		{"B67", "many", table(slices.Repeat([]uint64{1}, 101)...), chandler.CodeWasmTable,
			"module has 101 tables, limit 100; build with one table", true},

		{"B68", "data", data(65_530, 7), chandler.CodeWasmSegment,
			"data segment 0 ends outside memory 0: 65537 of 65536" + again, false},
		{"B68", "data at -1", data(-1, 1), chandler.CodeWasmSegment,
			"data segment 0 ends outside memory 0: 4294967296 of 65536" + again, false},
		{"B68", "nothing behind the end", data(65_537, 0), chandler.CodeWasmSegment,
			"data segment 0 ends outside memory 0: 65537 of 65536" + again, false},
		{"B68", "elements", plugin(module.RawSection(4, module.Vector([]byte{0x70, 0, 2})),
			module.RawSection(9, module.Vector(cat([]byte{0, 0x41, 1, 0x0b}, module.Vector([]byte{0}, []byte{0}))))), chandler.CodeWasmSegment,
			"element segment 0 ends outside table 0: 3 of 2" + again, false},
	}
}

func refusedRules() []refusal {
	const (
		sdk     = "; build the plugin with a Proxy-Wasm SDK for ABI 0.2.1"
		version = "; build with an SDK for this version of the ABI"
		reactor = "; build the plugin with a Proxy-Wasm SDK, as a reactor (-mexec-model=reactor, -buildmode=c-shared)"
	)
	i32 := []byte{module.I32}
	imported := func(from, name string) []byte { return module.Append(module.WithImport(from, name)) }
	export := func(items ...[]byte) []byte { return module.RawSection(7, module.Vector(items...)) }
	malloc, memory := cat(module.Name("malloc"), []byte{0, 1}), cat(module.Name("memory"), []byte{2, 0})
	return []refusal{
		{"B69", "WASI", imported("wasi_snapshot_preview1", "proc_raise"), chandler.CodeWasmImport,
			"Envoy 1.40 does not provide wasi_snapshot_preview1.proc_raise to a module of ABI 0.2.1; leave out what needs this call of the operating system", false},
		{"B69", "host call", module.MissingImport(), chandler.CodeWasmImport,
			"Envoy 1.40 does not provide env.proxy_no_such_call to a module of ABI 0.2.1; the host call belongs to another proxy or version; build with a standard Proxy-Wasm SDK", false},
		{"B69", "C++", imported("env", "_ZN4absl12lts_202401166StrCatERKNS0_8AlphaNumES3_"), chandler.CodeWasmImport,
			"Envoy 1.40 does not provide env._ZN4absl12lts_202401166StrCatERKNS0_8AlphaNumES3_ to a module of ABI 0.2.1; " +
				"not a Proxy-Wasm host call but the function absl::lts_20240116::StrCat: probably an object file was not linked", false},
		{"B69", "C", imported("env", "strlcpy"), chandler.CodeWasmImport,
			"Envoy 1.40 does not provide env.strlcpy to a module of ABI 0.2.1; not a Proxy-Wasm host call: probably an object file was not linked", false},
		{"B69", "browser", imported("gojs", "runtime.ticks"), chandler.CodeWasmImport,
			"Envoy 1.40 does not provide gojs.runtime.ticks to a module of ABI 0.2.1; the module was built for the browser; build with GOOS=wasip1 GOARCH=wasm -buildmode=c-shared", false},
		{"B69", "other ABI", imported("env", "proxy_clear_route_cache"), chandler.CodeWasmImport,
			"Envoy 1.40 does not provide env.proxy_clear_route_cache to a module of ABI 0.2.1; it is a host call of ABI 0.1.0; build with an SDK for one version of the ABI", false},
		{"B69", "newer ABI", module.Append(module.ABI("0.2.0"), importing("env", "proxy_get_log_level", i32, i32)), chandler.CodeWasmImport,
			"Envoy 1.40 does not provide env.proxy_get_log_level to a module of ABI 0.2.0; it is a host call of ABI 0.2.1; build with an SDK for one version of the ABI", false},
		{"B69", "several", module.Append(module.WithImport("env", "a"), module.WithImport("env", "b"), module.WithImport("env", "c")), chandler.CodeWasmImport,
			"Envoy 1.40 does not provide env.a to a module of ABI 0.2.1, nor 2 other imports as they are wanted; not a Proxy-Wasm host call: probably an object file was not linked", false},
		{"B69", "type", module.Append(importing("env", "proxy_get_log_level", []byte{module.I64}, nil)), chandler.CodeWasmImport,
			"env.proxy_get_log_level is imported as (i64); Envoy 1.40 has (i32) -> i32" + version, false},
		{"B69", "global", plugin(module.RawSection(2, module.Vector(cat(module.Name("env"), module.Name("g"), []byte{3, 0x7f, 0})))), chandler.CodeWasmImport,
			"env.g is imported as a global; Envoy provides functions only; define it in the module", false},
		{"B69", "name with control characters", imported("env", "a\x1b[31m"), chandler.CodeWasmImport,
			`Envoy 1.40 does not provide "env.a\x1b[31m" to a module of ABI 0.2.1; not a Proxy-Wasm host call: probably an object file was not linked`, false},

		{"B70", "none", module.Append(module.Without("proxy_abi_version_0_2_1")), chandler.CodeWasmABI,
			"no proxy_abi_version_0_2_x function export; not a Proxy-Wasm module" + sdk, false},
		{"B70", "unknown", module.BadABI(), chandler.CodeWasmABI,
			`module exports "proxy_abi_version_0_9_9"; Envoy 1.40 knows the ABI versions 0.1.0, 0.2.0, 0.2.1` + sdk, false},
		{"B70", "of another proxy", module.Append(module.ABI("0.2.100")), chandler.CodeWasmABI,
			`module exports "proxy_abi_version_0_2_100"; Envoy 1.40 knows the ABI versions 0.1.0, 0.2.0, 0.2.1` + sdk, false},
		{"B70", "not a function", plugin(export(cat(module.Name("proxy_abi_version_0_2_1"), []byte{2, 0}), malloc, memory)), chandler.CodeWasmABI,
			`module exports "proxy_abi_version_0_2_1", which is a memory and not a function; Envoy 1.40 knows the ABI versions 0.1.0, 0.2.0, 0.2.1` + sdk, false},

		{"B71", "two", plugin(export(abiExport, cat(module.Name("proxy_abi_version_0_2_0"), []byte{0, 0}), malloc, memory)), chandler.CodeWasmABI,
			"module exports the ABI versions 0.2.1 and 0.2.0; keep one: link one SDK only", true},

		{"B72", "malloc", module.NoMalloc(), chandler.CodeWasmExport,
			"neither malloc nor proxy_on_memory_allocate is exported as a function" + reactor, false},
		{"B72", "malloc is a memory", plugin(export(abiExport, cat(module.Name("malloc"), []byte{2, 0}))), chandler.CodeWasmExport,
			"neither malloc nor proxy_on_memory_allocate is exported as a function" + reactor, false},
		// Envoy loads it, and would crash at the first byte that it hands over.
		{"B72", "memory", plugin(export(abiExport, malloc)), chandler.CodeWasmExport, "no memory is exported" + reactor, true},
		{"B72", "type of malloc", module.Append(exporting("malloc", []byte{module.I64}, i32)), chandler.CodeWasmExport,
			"malloc is exported as (i64) -> i32; Envoy 1.40 calls it as (i32) -> i32 in ABI 0.2.1" + version, false},
		{"B72", "type of a callback", module.Append(exporting("proxy_on_request_headers", []byte{module.I32, module.I32}, i32)), chandler.CodeWasmExport,
			"proxy_on_request_headers is exported as (i32 i32) -> i32; Envoy 1.40 calls it as (i32 i32 i32) -> i32 in ABI 0.2.1" + version, false},
		{"B72", "type of an entry", module.Append(exporting("_initialize", i32, nil)), chandler.CodeWasmExport,
			"_initialize is exported as (i32); Envoy 1.40 calls it as () in ABI 0.2.1" + version, false},

		{"B76", "precompiled", module.Append(module.WithSection("precompiled_wee8_v14", []byte("code"))), chandler.CodeWasmSection,
			`custom section "precompiled_wee8_v14" holds precompiled code, which is not accepted; publish the module without it: machine code from outside is not run`, true},
		{"B76", "size", module.Append(module.WithSection(".debug_info", make([]byte, 60<<20))), chandler.CodeWasmSection,
			"custom sections have 62914572 bytes, limit 33554432; strip the module (wasm-tools strip, or -s when linking)", true},

		{"B77", "64-bit memory", plugin(module.RawSection(5, module.Vector([]byte{4, 1}))), chandler.CodeWasmFeature,
			"memory has 64-bit addresses; Proxy-Wasm has 32; build for wasm32", true},
	}
}

package proxywasm

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"chandler.dev/chandler"
)

const abiPrefix = "proxy_abi_version_"

// judge applies the rules of Proxy-Wasm to a well-formed module.
func (p *parser) judge() *chandler.Problem {
	for _, rule := range []func() *chandler.Problem{p.judgeCustom, p.judgeABI, p.judgeImports, p.judgeExports} {
		if problem := rule(); problem != nil {
			return problem
		}
	}
	return nil
}

func (p *parser) warn(code chandler.Code, hint, format string, args ...any) {
	p.module.Warnings = append(p.module.Warnings, *chandler.Problemf(code, "", hint, format, args...))
}

func (p *parser) judgeCustom() *chandler.Problem {
	if name := p.precompiled; name != "" {
		return chandler.Problemf(chandler.CodeWasmSection, "",
			"publish the module without it: machine code from outside is not run",
			"custom section %s holds precompiled code, which is not accepted", chandler.Quote(name))
	}
	const worthTelling = 1 << 20
	if n := p.module.CustomBytes; n > worthTelling && n > p.module.Size/2 {
		p.warn(chandler.CodeWasmSection, "strip the module (wasm-tools strip, or -s when linking)",
			"custom sections, which Envoy does not run, are %d of %d bytes", n, p.module.Size)
	}
	return nil
}

// judgeABI finds the version that the module is written for.
func (p *parser) judgeABI() *chandler.Problem {
	const hint = "build the plugin with a Proxy-Wasm SDK for ABI 0.2.1"
	var known, others []string
	for _, e := range p.abis {
		version := strings.ReplaceAll(strings.TrimPrefix(e.Name, abiPrefix), "_", ".")
		switch {
		case e.Kind != KindFunction:
			others = append(others, fmt.Sprintf("%s, which is a %v and not a function", chandler.Quote(e.Name), e.Kind))
		case slices.Contains(abiVersions(), version):
			known = append(known, version)
		default:
			others = append(others, chandler.Quote(e.Name))
		}
	}
	switch {
	case len(known) == 1:
		p.module.ABI = known[0]
	case len(known) > 1:
		return chandler.Problemf(chandler.CodeWasmABI, "", "keep one: link one SDK only",
			"module exports the ABI versions %s", strings.Join(known, " and "))
	case len(others) > 0:
		return chandler.Problemf(chandler.CodeWasmABI, "", hint,
			"module exports %s; Envoy %s knows the ABI versions %s", others[0], EnvoyVersion, strings.Join(abiVersions(), ", "))
	default:
		return chandler.Problemf(chandler.CodeWasmABI, "", hint,
			"no %s0_2_x function export; not a Proxy-Wasm module", abiPrefix)
	}
	if p.module.ABI == "0.1.0" {
		p.warn(chandler.CodeWasmABI, "build with a current SDK", "module is of ABI 0.1.0, which is old and does not tell where a request ends")
	}
	return nil
}

// judgeImports checks that Envoy has all that the module wants.
func (p *parser) judgeImports() *chandler.Problem {
	host := hostFunctions(p.module.ABI)
	var first *chandler.Problem
	wrong := 0
	for _, im := range p.module.Imports {
		if im.Kind == KindMemory || im.Kind == KindTable {
			continue // Envoy makes one
		}
		want, there := host[im.Module+"."+im.Name]
		if there && im.Kind == KindFunction && im.signature == want {
			continue
		}
		if wrong++; wrong > 1 {
			continue
		}
		name := importName(im)
		switch {
		case there && im.Kind == KindFunction:
			first = chandler.Problemf(chandler.CodeWasmImport, "", "build with an SDK for this version of the ABI",
				"%s is imported as %s; Envoy %s has %v", name, im.Type, EnvoyVersion, want)
		case im.Kind != KindFunction:
			first = chandler.Problemf(chandler.CodeWasmImport, "", "define it in the module",
				"%s is imported as a %v; Envoy provides functions only", name, im.Kind)
		default:
			first = chandler.Problemf(chandler.CodeWasmImport, "", p.missing(im),
				"Envoy %s does not provide %s to a module of ABI %s", EnvoyVersion, name, p.module.ABI)
		}
	}
	if wrong > 1 {
		first.Message += fmt.Sprintf(", nor %d other imports as they are wanted", wrong-1)
	}
	return first
}

func importName(im Import) string {
	name := chandler.Quote(im.Module + "." + im.Name)
	if plain := strings.Trim(name, `"`); plain == im.Module+"."+im.Name {
		return plain
	}
	return name
}

// missing tells what an unknown import may come from.
func (p *parser) missing(im Import) string {
	if name, ok := demangle(im.Name); ok {
		return "not a Proxy-Wasm host call but the function " + chandler.Printable(name, chandler.MaxQuoted) + ": probably an object file was not linked"
	}
	for _, abi := range abiVersions() {
		if _, there := hostFunctions(abi)[im.Module+"."+im.Name]; there {
			return "it is a host call of ABI " + abi + "; build with an SDK for one version of the ABI"
		}
	}
	switch {
	case im.Module == "go" || im.Module == "gojs":
		return "the module was built for the browser; build with GOOS=wasip1 GOARCH=wasm -buildmode=c-shared"
	case strings.HasPrefix(im.Module, "__wbindgen"):
		return "the module was built for the browser; build for wasm32-wasip1 without wasm-bindgen"
	case strings.HasPrefix(im.Module, "wasi"):
		return "leave out what needs this call of the operating system"
	case strings.HasPrefix(im.Name, "proxy_"):
		return "the host call belongs to another proxy or version; build with a standard Proxy-Wasm SDK"
	}
	return "not a Proxy-Wasm host call: probably an object file was not linked"
}

// judgeExports checks that Envoy can call the module and hand it bytes.
func (p *parser) judgeExports() *chandler.Problem {
	has := func(name string) bool { return p.exported[name].Kind == KindFunction && p.exported[name].Name != "" }
	const hint = "build the plugin with a Proxy-Wasm SDK, as a reactor (-mexec-model=reactor, -buildmode=c-shared)"
	if !has("malloc") && !has("proxy_on_memory_allocate") {
		return chandler.Problemf(chandler.CodeWasmExport, "", hint, "neither malloc nor proxy_on_memory_allocate is exported as a function")
	}
	imported := slices.ContainsFunc(p.module.Imports, func(im Import) bool { return im.Kind == KindMemory })
	if !p.memory && !imported {
		return chandler.Problemf(chandler.CodeWasmExport, "", hint, "no memory is exported")
	}
	want := checkedExports(p.module.ABI, has)
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if e := p.exported[name]; has(name) && e.signature != want[name] {
			return chandler.Problemf(chandler.CodeWasmExport, "", "build with an SDK for this version of the ABI",
				"%s is exported as %s; Envoy %s calls it as %v in ABI %s", name, e.Type, EnvoyVersion, want[name], p.module.ABI)
		}
	}
	return nil
}

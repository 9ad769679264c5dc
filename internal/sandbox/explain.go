package sandbox

import (
	"bytes"
	"strings"

	"chandler.dev/chandler"
)

// logFormat is one that no plugin's text can be taken for: lines of a plugin come
// as text of Envoy's own lines.
const logFormat = "%l|%n|%v"

const (
	maxSaid  = 3   // lines of the plugin's own that are told
	maxWords = 512 // bytes of each
)

// A complaint is a text of Envoy's log, and what it means.
var complaints = []struct {
	text string
	code chandler.Code
	hint string
}{
	{"due to a missing import", chandler.CodeWasmImport, "build the plugin for the host functions that this Envoy has"},
	{"due to an import type mismatch", chandler.CodeWasmImport, "build the plugin for the host functions that this Envoy has"},
	{"Missing or unknown Proxy-Wasm ABI version", chandler.CodeWasmABI, "build the plugin for ABI 0.1.0, 0.2.0 or 0.2.1"},
	{"Bad function signature for", chandler.CodeWasmExport, "export callbacks as the ABI has them"},
	{"is missing malloc function", chandler.CodeWasmExport, "export malloc or proxy_on_memory_allocate"},
	{"Failed to parse corrupted Wasm module", chandler.CodeWasmParse, "push the module that the compiler made, uncompressed"},
	{"Failed to load Wasm bytecode", chandler.CodeWasmParse, "push the module that the compiler made"},
	{"Failed to configure base Wasm plugin", chandler.CodeWasmConfigure, "correct pluginConfig"},
	{"Failed to start base Wasm", chandler.CodeWasmStart, "see what the plugin does when its VM starts"},
	{"Failed to initialize Wasm code", chandler.CodeWasmStart, "see what the plugin does when its VM starts"},
	{"Failed to create new Wasm instance", chandler.CodeWasmStart, "see what the plugin does when its VM starts"},
	{"script load error", chandler.CodeLuaSyntax, "correct the script"},
}

// explain makes a problem of the log of an Envoy that refused: what kind it is by
// Envoy's words, and in the plugin's own words why, if it said anything.
func explain(out []byte, version string) *chandler.Problem {
	p := Explain(out)
	p.Message = "Envoy " + version + " refuses it: " + p.Message
	return p
}

// Explain does so for any Envoy's log that is written in the format level|logger|text.
func Explain(out []byte) *chandler.Problem {
	p := &chandler.Problem{Code: chandler.CodeRejected, Hint: "see what Envoy says"}
	var said, why []string
	found := len(complaints)
	for line := range bytes.Lines(out) {
		_, text, ok := strings.Cut(strings.TrimSpace(string(line)), "|")
		logger, text, ok2 := strings.Cut(text, "|")
		if !ok || !ok2 {
			continue
		}
		text = withoutFile(text)
		if own, ok := strings.CutPrefix(text, "wasm log"); logger == "wasm" && ok {
			if _, words, ok := strings.Cut(own, ": "); ok {
				said = append(said, chandler.Printable(words, maxWords))
			}
			continue
		}
		for i := range complaints {
			if strings.Contains(text, complaints[i].text) {
				found = min(found, i)
				why = append(why, text)
			}
		}
		if strings.HasPrefix(text, "Function: ") {
			why = append([]string{text}, why...)
		}
	}
	if found < len(complaints) {
		p.Code, p.Hint = complaints[found].code, complaints[found].hint
	}
	words := said[max(0, len(said)-maxSaid):]
	if len(words) == 0 {
		words = why[:min(1, len(why))]
	}
	if len(words) == 0 {
		words = []string{withoutFile(string(last(out)))}
	}
	p.Message = chandler.Printable(strings.Join(words, "; "), maxSaid*maxWords)
	return p
}

// withoutFile leaves out the name of the file that Envoy was given, which tells
// nobody anything.
func withoutFile(text string) string {
	if _, what, ok := strings.Cut(text, "error initializing configuration '"); ok {
		if _, why, ok := strings.Cut(what, "': "); ok {
			return why
		}
	}
	return text
}

// last is the last line.
func last(out []byte) []byte {
	out = bytes.TrimSpace(out)
	return out[bytes.LastIndexByte(out, '\n')+1:]
}

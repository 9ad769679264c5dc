package scaffold_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"chandler.dev/chandler/internal/author/build"
	"chandler.dev/chandler/internal/author/scaffold"
	"chandler.dev/chandler/internal/proxywasm"
	"chandler.dev/chandler/internal/testenv/compilers"
	"chandler.dev/chandler/internal/wasmhost"
)

// compiled builds C against the header, with nothing beside it.
func compiled(t *testing.T, source string) *build.Result {
	t.Helper()
	dir := t.TempDir()
	files, err := scaffold.Files("probe", "probe", build.C)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"proxy_wasm.h", "proxy_wasm_json.h"} {
		if err := os.WriteFile(filepath.Join(dir, name), files[name], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "probe.c"), []byte(source), 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	r, err := build.Build(t.Context(), build.Config{Dir: dir, Environ: compilers.Environ(t, "zig"), Talk: &said})
	if err != nil {
		t.Fatalf("%v\n%s", err, said.Bytes())
	}
	if said.Len() > 0 {
		t.Errorf("the compiler warns:\n%s", said.Bytes())
	}
	return r
}

// The header has every function that Envoy offers to a module of ABI 0.2.1, with its
// type: the static check would refuse another one.
func TestHeaderHasTheWholeABI(t *testing.T) {
	t.Parallel()
	var want []string
	var b strings.Builder
	b.WriteString("#define PROXY_WASM_IMPLEMENTATION\n#include \"proxy_wasm.h\"\nvoid *volatile sink;\nbool proxy_on_vm_start(uint32_t root, size_t size) {\n  (void)root, (void)size;\n")
	for _, name := range slices.Sorted(maps.Keys(proxywasm.HostFunctions("0.2.1"))) {
		if name, ok := strings.CutPrefix(name, "env."); ok && strings.HasPrefix(name, "proxy_") {
			want = append(want, name)
			fmt.Fprintf(&b, "  sink = (void *)%s;\n", name)
		}
	}
	b.WriteString("  return true;\n}\n")
	if len(want) < 30 {
		t.Fatalf("only %d functions", len(want))
	}
	if got := compiled(t, b.String()).Imports(); !slices.Equal(got, want) {
		t.Errorf("imports %v\nwant    %v", got, want)
	}
}

// probe is a module that is configured again and again.
type probe struct {
	host *wasmhost.Host
	said []string
}

func newProbe(t *testing.T) *probe {
	t.Helper()
	source, err := os.ReadFile("testdata/probe.c")
	if err != nil {
		t.Fatal(err)
	}
	r := compiled(t, string(source))
	code, err := os.ReadFile(r.File)
	if err != nil {
		t.Fatal(err)
	}
	p := &probe{}
	cfg := wasmhost.Config{ABI: r.Module.ABI, Memory: 16 << 20, Log: func(_ wasmhost.Level, text string) { p.said = append(p.said, text) }}
	if p.host, err = wasmhost.New(t.Context(), cfg, code); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.host.Close(t.Context()) })
	return p
}

// ask configures, and gives what was logged; not ok: it was refused.
func (p *probe) ask(t *testing.T, text string) (said string, ok bool) {
	p.said = nil
	err := p.host.Configure(t.Context(), wasmhost.Plugin{Name: "p", VMID: "p", Config: []byte(text)})
	if err != nil && !errors.Is(err, wasmhost.ErrConfigure) {
		t.Fatalf("%q: %v", text, err)
	}
	return strings.Join(p.said, ""), err == nil
}

// dump writes a value as the probe does; not ok: it is none by RFC 8259.
func dump(text string) (string, bool) {
	if !json.Valid([]byte(text)) || !utf8.ValidString(text) {
		return "", false
	}
	var b strings.Builder
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var open []json.Delim
	inName := false
	for {
		token, err := d.Token()
		if err == io.EOF {
			return b.String(), true
		}
		if err != nil {
			return "", false
		}
		ended := true
		switch v := token.(type) {
		case json.Delim:
			b.WriteString(v.String())
			if v == '{' || v == '[' {
				open, inName, ended = append(open, v), v == '{', false
			} else {
				open, inName = open[:len(open)-1], false // a name came next, had it gone on
			}
		case string:
			b.WriteString("s" + hex.EncodeToString([]byte(v)))
		case json.Number:
			b.WriteString("n" + v.String())
			if n, err := strconv.ParseInt(v.String(), 10, 64); err == nil {
				fmt.Fprintf(&b, "=%d", n)
			}
		case bool:
			b.WriteString(map[bool]string{true: "t", false: "f"}[v])
		case nil:
			b.WriteString("z")
		}
		switch {
		case !ended || len(open) == 0:
		case inName:
			inName = false
		default:
			b.WriteString(",")
			inName = open[len(open)-1] == '{'
		}
	}
}

// The reader of JSON takes what RFC 8259 calls JSON and nothing else, and reads it as
// encoding/json does.
func TestJSON(t *testing.T) {
	t.Parallel()
	p := newProbe(t)
	same := func(t *testing.T, text string) string {
		want, wantOK := dump(text)
		got, ok := p.ask(t, "j"+text)
		if ok != wantOK || got != want {
			return fmt.Sprintf("%q: %q (%v), want %q (%v)", text, got, ok, want, wantOK)
		}
		return ""
	}
	for _, text := range []string{
		``, ` `, `{}`, `[]`, `{} `, ` [ ] `, `null`, `nul`, `truefalse`, `[1,]`, `[,1]`, `{,}`, `{"a":1,}`, `{"a"}`, `{"a":}`, `{a:1}`, `{1:1}`, `[1 2]`, `[1]2`, `[`, `]`, `{`, `}`, `[}`, `{]`,
		`[[1],[2,[]],{}]`, `{"a":{"b":[{"c":null}]},"a":2}`, `"`, `"a`, `"\`, `"\"`, `"\x"`, `"\u12"`, `"\u12G4"`, `"\u0000\u001f\u20ac\ud83d\ude00"`, `"\ud83d"`, `"\ud83dx"`, `"\ude00\ud83d\u0041"`,
		`"\"\\\/\b\f\n\r\t"`, "\"\x00\"", "\"\n\"", "\"\x7f\"", "\"\xff\"", "\"\xc0\xaf\"", "\"\xed\xa0\x80\"", "\"\xf4\x90\x80\x80\"", "\"\xe2\x82\"", "\"€😀\"", "\ufeff{}", "{}\x00",
		`0`, `-0`, `-`, `00`, `01`, `1.`, `.1`, `1.5`, `1e5`, `1E+05`, `1e`, `1e+`, `+1`, `0x1`, `NaN`, `9223372036854775807`, `9223372036854775808`, `-9223372036854775808`, `-9223372036854775809`, `123456789012345678901234567890`,
		strings.Repeat("[", 64) + strings.Repeat("]", 64), strings.Repeat(`{"a":`, 64) + "1" + strings.Repeat("}", 64),
	} {
		if wrong := same(t, text); wrong != "" {
			t.Error(wrong)
		}
	}
	if _, ok := p.ask(t, "j"+strings.Repeat("[", 65)+strings.Repeat("]", 65)); ok {
		t.Error("65 levels are taken")
	}
	value := anyJSON(3)
	rapid.Check(t, func(rt *rapid.T) {
		text, err := json.Marshal(value.Draw(rt, "value"))
		if err != nil {
			rt.Fatal(err)
		}
		// Some are broken in one place.
		if len(text) > 0 && rapid.Bool().Draw(rt, "broken") {
			at := rapid.IntRange(0, len(text)-1).Draw(rt, "at")
			text = append(text[:at:at], append([]byte(rapid.SampledFrom([]string{"", ",", "]", "}", "\"", "\\", "0", "\xc3", ":", "\\u00", "e"}).Draw(rt, "with")), text[at+1:]...)...)
		}
		if wrong := same(t, string(text)); wrong != "" {
			rt.Fatal(wrong)
		}
	})
}

// anyJSON makes values of so many levels.
func anyJSON(levels int) *rapid.Generator[any] {
	scalars := []*rapid.Generator[any]{
		rapid.Just[any](nil), rapid.Bool().AsAny(), rapid.String().AsAny(), rapid.Int64().AsAny(), rapid.Float64Range(-1e9, 1e9).AsAny(),
	}
	if levels == 0 {
		return rapid.OneOf(scalars...)
	}
	return rapid.OneOf(append(scalars,
		rapid.SliceOfN(anyJSON(levels-1), 0, 4).AsAny(),
		rapid.MapOfN(rapid.String(), anyJSON(levels-1), 0, 4).AsAny(),
	)...)
}

// What is kept by context is found again, whatever else came and went.
func TestKeep(t *testing.T) {
	t.Parallel()
	p := newProbe(t)
	kept := map[uint32]uint32{} // over all that is asked: the module lives on
	rapid.Check(t, func(rt *rapid.T) {
		var steps [][]uint32
		var want strings.Builder
		for range rapid.IntRange(1, 200).Draw(rt, "steps") {
			// Few that come again and again, and many that come once, as streams do.
			context := rapid.OneOf(rapid.Uint32Range(1, 20), rapid.Uint32Min(1)).Draw(rt, "context")
			if rapid.Bool().Draw(rt, "ask") {
				steps = append(steps, []uint32{context})
				fmt.Fprintf(&want, "%d ", kept[context])
				continue
			}
			state := rapid.OneOf(rapid.Just(uint32(0)), rapid.Uint32()).Draw(rt, "state")
			steps = append(steps, []uint32{context, state})
			kept[context] = state
		}
		text, err := json.Marshal(steps)
		if err != nil {
			rt.Fatal(err)
		}
		got, ok := p.ask(t, "k"+string(text))
		if !ok || strings.TrimSpace(got) != strings.TrimSpace(want.String()) {
			rt.Fatalf("%s:\n%s, want\n%s", text, got, want.String())
		}
	})
}

package proxywasm_test

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/proxywasm"
	"chandler.dev/chandler/internal/testenv/module"
	row "chandler.dev/chandler/internal/testenv/refusal"
)

func inspect(b []byte) (proxywasm.Module, error) {
	return proxywasm.Inspect(bytes.NewReader(b), int64(len(b)))
}

func problem(err error) *chandler.Problem {
	var p *chandler.Problem
	errors.As(err, &p)
	return p
}

func refused(t *testing.T, number string) {
	none := true
	for _, c := range refusals() {
		if c.row != number {
			continue
		}
		none = false
		cases := t
		t.Run(c.name, func(t *testing.T) {
			seen := row.Begin(cases)
			_, err := inspect(c.module)
			p := problem(err)
			if p == nil {
				t.Fatalf("got %v, want a problem", err)
			}
			seen.Saw(p.Code, p.Error())
			if p.Code != c.code || p.Error() != c.text {
				t.Errorf("got  %s: %s\nwant %s: %s", p.Code, p.Error(), c.code, c.text)
			}
			if p.Hint == "" {
				t.Error("no hint")
			}
		})
	}
	if none {
		t.Error("no case of this row")
	}
}

func TestRefuse_B51(t *testing.T) { refused(t, "B51") }
func TestRefuse_B59(t *testing.T) { refused(t, "B59") }
func TestRefuse_B60(t *testing.T) { refused(t, "B60") }
func TestRefuse_B61(t *testing.T) { refused(t, "B61") }
func TestRefuse_B62(t *testing.T) { refused(t, "B62") }
func TestRefuse_B63(t *testing.T) { refused(t, "B63") }
func TestRefuse_B64(t *testing.T) { refused(t, "B64") }
func TestRefuse_B65(t *testing.T) { refused(t, "B65") }
func TestRefuse_B67(t *testing.T) { refused(t, "B67") }
func TestRefuse_B68(t *testing.T) { refused(t, "B68") }
func TestRefuse_B69(t *testing.T) { refused(t, "B69") }
func TestRefuse_B70(t *testing.T) { refused(t, "B70") }
func TestRefuse_B71(t *testing.T) { refused(t, "B71") }
func TestRefuse_B72(t *testing.T) { refused(t, "B72") }
func TestRefuse_B76(t *testing.T) { refused(t, "B76") }
func TestRefuse_B77(t *testing.T) { refused(t, "B77") }

// ABI 0.1.0 alone is taken, with a warning.
func TestRefuse_B71_OldABI(t *testing.T) {
	b := module.Append(module.ABI("0.1.0"))
	seen := row.Begin(t)
	m, err := inspect(b)
	if err != nil || len(m.Warnings) != 1 || m.Warnings[0].Code != chandler.CodeWasmABI {
		t.Fatalf("%v %v", m.Warnings, err)
	}
	seen.Warned(m.Warnings[0].Code, m.Warnings[0].Error())
	both := module.Append(module.ABI("0.1.0"), exporting("proxy_abi_version_0_2_0", nil, nil))
	seen = row.Begin(t)
	_, err = inspect(both)
	p := problem(err)
	if p == nil || p.Code != chandler.CodeWasmABI {
		t.Fatalf("got %v", err)
	}
	seen.Saw(p.Code, p.Error())
}

func TestAccepted(t *testing.T) {
	t.Parallel()
	b := module.Append(module.WithSection("producers", []byte("me")))
	m, err := inspect(b)
	if err != nil {
		t.Fatal(err)
	}
	if m.ABI != "0.2.1" || m.Size != int64(len(b)) || m.Functions != 8 || len(m.Warnings) != 0 {
		t.Errorf("%+v", m)
	}
	if len(m.Imports) != 4 || m.Imports[2].Name != "proxy_log" || m.Imports[2].Type != "(i32 i32 i32) -> i32" {
		t.Errorf("imports %+v", m.Imports)
	}
	if i := slices.IndexFunc(m.Exports, func(e proxywasm.Export) bool { return e.Name == "memory" }); i < 0 || m.Exports[i].Kind != proxywasm.KindMemory {
		t.Errorf("exports %+v", m.Exports)
	}
	if len(m.Custom) != 1 || m.Custom[0] != (proxywasm.Section{Name: "producers", Size: 2}) {
		t.Errorf("custom sections %+v", m.Custom)
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	m, err := inspect(module.Append(module.ABI("0.1.0"), module.WithSection(".debug_info", make([]byte, 2<<20))))
	if err != nil {
		t.Fatal(err)
	}
	var codes []chandler.Code
	for _, w := range m.Warnings {
		codes = append(codes, w.Code)
	}
	if m.ABI != "0.1.0" || !slices.Equal(codes, []chandler.Code{chandler.CodeWasmSection, chandler.CodeWasmABI}) {
		t.Errorf("ABI %s, warnings %v", m.ABI, codes)
	}
}

// A reader that fails or shrinks is no fault of the module.
func TestReaderErrors(t *testing.T) {
	t.Parallel()
	b := module.Append()
	broken := errors.New("input/output error")
	for _, r := range []io.ReaderAt{bytes.NewReader(b[:20]), failing{broken}} {
		if _, err := proxywasm.Inspect(r, int64(len(b))); err == nil || problem(err) != nil ||
			!errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
	}
}

type failing struct{ error }

func (f failing) ReadAt([]byte, int64) (int, error) { return 0, f.error }

// What is cheap to claim must not be dear to read.
func TestMemoryIsBounded(t *testing.T) {
	names := func(n int) []byte { // exports of one function under names of 6 bytes
		items := make([][]byte, n)
		for i := range items {
			items[i] = cat(module.Name(string([]byte{'a' + byte(i%26), 'a' + byte(i/26%26), 'a' + byte(i/676%26), 'a' + byte(i/17576)})), []byte{0, 0})
		}
		return module.RawSection(7, module.Vector(items...))
	}
	wide := cat([]byte{0x60}, u(1000), bytes.Repeat([]byte{0x7f}, 1000), []byte{0}) // one type of 1000 parameters
	wanted := cat(module.Name("env"), module.Name(strings.Repeat("x", 300)), []byte{0, 0})
	for name, b := range map[string][]byte{
		"types":   plugin(module.RawSection(1, u(1_000_000), bytes.Repeat(noParams, 1_000_000))),
		"exports": plugin(names(100_000)),
		"imports": plugin(module.RawSection(1, module.Vector(wide)), module.RawSection(2, u(10_000), bytes.Repeat(wanted, 10_000))),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, _ = inspect(b)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 40<<20 { // with what growing slices leave behind
			t.Errorf("%s: %d bytes for %d", name, n, len(b))
		}
	}
}

func FuzzInspect(f *testing.F) {
	for _, b := range [][]byte{plugin(), module.Append(), module.Append(module.ABI("0.1.0")), module.Truncate(module.Append()), module.MissingImport()} {
		f.Add(b)
	}
	for _, c := range refusals() {
		if len(c.module) < 4096 {
			f.Add(c.module)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		start := time.Now()
		m, err := inspect(b)
		if took := time.Since(start); took > 20*time.Second {
			t.Fatalf("%d bytes took %v", len(b), took)
		}
		if err == nil {
			if m.ABI == "" {
				t.Fatal("accepted without an ABI")
			}
			return
		}
		p := problem(err)
		if p == nil || p.Code == "" || p.Message == "" || p.Hint == "" {
			t.Fatalf("not a whole problem: %#v", err)
		}
		if len(p.Error()) > 2048 || chandler.Printable(p.Error(), 4096) != p.Error() {
			t.Fatalf("not fit to be shown: %q", p.Error())
		}
	})
}

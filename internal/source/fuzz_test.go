package source

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/durable/crashfs"
)

// FuzzState: the file of an object's state is read as it was written, or put aside
// as it is.
func FuzzState(f *testing.F) {
	key := chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: "p"}
	e := newEntry(key, time.Unix(1_700_000_000, 0))
	e.Generation, e.Manifest, e.Valid = 3, "a: 1\n", &validText{Generation: 2, Manifest: "b: 1\n"}
	b, err := json.Marshal(e)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{b, b[:50], bytes.Replace(b, []byte(`"p"`), []byte(`"q"`), 1), []byte(`{"Format":2}`), nil} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		fsys := crashfs.New()
		if err := durable.Mkdir(fsys, "/d"); err != nil {
			t.Fatal(err)
		}
		name := "/d/" + stem(key) + entrySuffix
		if err := durable.Write(fsys, name, content); err != nil {
			t.Fatal(err)
		}
		l := ledger{fsys, "/d"}
		all, err := l.load(slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if len(all) == 0 {
			if kept, err := durable.Read(fsys, name+".aside", maxEntry); err != nil || !bytes.Equal(kept, content) {
				t.Fatalf("kept %q of %q: %v", kept, content, err)
			}
			return
		}
		for key, e := range all {
			if stem(key)+entrySuffix != stem(e.Key)+entrySuffix || e.UID == "" {
				t.Fatalf("%+v", e)
			}
			if p := e.lastValid(); p != nil && (p.Key != e.Key || p.UID != e.UID) {
				t.Fatalf("%+v of %+v", p, e)
			}
			if err := l.put(e); err != nil {
				t.Fatal(err)
			}
			again, err := l.load(slog.New(slog.DiscardHandler))
			first, _ := json.Marshal(e)
			second, _ := json.Marshal(again[key])
			if err != nil || !bytes.Equal(first, second) {
				t.Fatalf("%s\nthen %s %v", first, second, err)
			}
		}
	})
}

// FuzzSplit: the documents of a stream are parts of it, in order, each with the line
// that it begins at; and a rewritten JSON text means the same.
func FuzzSplit(f *testing.F) {
	for _, s := range []string{"a: 1\n---\nb: 2\n", "---\n# nothing\n...\n--- x\n", "\ufeffa: 1\r\n---\r\n", `{"a":"\/\ud83d\ude00\u2028"}`, `[{"a":"\ud800"}]`, "%YAML 1.2\n---\na"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, manifest []byte) {
		rest, line := bytes.TrimPrefix(manifest, []byte("\ufeff")), 1
		for _, c := range split(manifest) {
			at := bytes.Index(rest, c.text)
			if at < 0 {
				t.Fatalf("%q is no part of %q", c.text, rest)
			}
			for line < c.line {
				end := bytes.IndexByte(rest, '\n')
				if end < 0 {
					t.Fatalf("%q begins at line %d, which there is not", c.text, c.line)
				}
				rest, line = rest[end+1:], line+1
			}
			if !bytes.HasPrefix(rest, c.text) {
				t.Fatalf("%q does not begin at line %d", c.text, c.line)
			}
			if !hasContent(c.text) {
				t.Fatalf("%q holds nothing", c.text)
			}
			rest, line = rest[len(c.text):], line+bytes.Count(c.text, []byte("\n"))
		}
		if trimmed := bytes.TrimSpace(manifest); json.Valid(trimmed) && (trimmed[0] == '{' || trimmed[0] == '[') {
			var a, b any
			errA, errB := json.Unmarshal(trimmed, &a), json.Unmarshal(jsonAsYAML(trimmed), &b)
			if errA == nil && (errB != nil || !sameValue(a, b)) {
				t.Fatalf("%q became %q: %v", trimmed, jsonAsYAML(trimmed), errB)
			}
		}
	})
}

func sameValue(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y) && !strings.Contains(string(x), "\x00")
}

package agent

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/durable/crashfs"
)

// FuzzLastGood: what is on disk is read as the set that was written, or kept aside
// as it is; never lost, and never half.
func FuzzLastGood(f *testing.F) {
	v := version("a")
	b, err := json.Marshal(lastGoodFile{Format: lastGoodFormat, Envoy: "1.40.0", Versions: []Version{v}, Denied: []Version{v}})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{b, b[:len(b)/2], []byte(`{"format":2}`), []byte(`{"format":1,"versions":[null,{}]}`), []byte(`{"format":1,"denied":[]}`), nil} {
		f.Add(seed)
	}
	// As it is written: no list and an empty one are the same there.
	written := func(ev Restored) []byte {
		b, err := json.Marshal(lastGoodFile{Envoy: ev.Envoy, Versions: ev.Versions, Denied: ev.Denied})
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		fsys := crashfs.New()
		if err := durable.Mkdir(fsys, "/d"); err != nil {
			t.Fatal(err)
		}
		if err := durable.Write(fsys, lastGoodPath("/d"), content); err != nil {
			t.Fatal(err)
		}
		ev, ok, err := loadLastGood(fsys, "/d")
		if ok {
			if err := saveLastGood(fsys, "/d", SaveLastGood(ev)); err != nil {
				t.Fatal(err)
			}
			again, ok, err := loadLastGood(fsys, "/d")
			first, second := written(ev), written(again)
			if !ok || err != nil || !bytes.Equal(first, second) {
				t.Fatalf("%s\nthen %s %v", first, second, err)
			}
			return
		}
		if err == nil {
			t.Fatal("a file that is there was passed over without a word")
		}
		entries, err := fsys.ReadDir("/d")
		if err != nil || len(entries) != 1 || entries[0].Name() == "lastgood" {
			t.Fatalf("kept: %v %v", entries, err)
		}
		if kept, err := durable.Read(fsys, "/d/"+entries[0].Name(), lastGoodLimit); err != nil || !bytes.Equal(kept, content) {
			t.Fatalf("kept %q of %q: %v", kept, content, err)
		}
	})
}

// FuzzEnvoyLog: however Envoy's log comes, its lines are the same, bounded, and the
// reason that is found in them is fit to be shown.
func FuzzEnvoyLog(f *testing.F) {
	f.Add([]byte(wasmError("wasm log WasmPlugin/ns/a: bad configuration")+rejectedLine), uint8(7))
	f.Add([]byte("[x][1][error][wasm] [f] Wasm VM failed \x1b[31m\xff\n\n\n"), uint8(1))
	f.Add([]byte(strings.Repeat("x", 3*logLineLimit)), uint8(255))
	f.Fuzz(func(t *testing.T, text []byte, step uint8) {
		whole, parts := &envoyLog{}, &envoyLog{}
		whole.take(text)
		for chunk := range slices.Chunk(text, int(step)+1) {
			parts.take(chunk)
		}
		if whole.count != parts.count || !slices.Equal(whole.lines, parts.lines) || !bytes.Equal(whole.partial, parts.partial) {
			t.Fatalf("%q in parts of %d: %q and %q", text, step+1, whole.lines, parts.lines)
		}
		for _, line := range append(whole.lines, string(whole.partial)) {
			if len(line) > logLineLimit {
				t.Fatalf("a line of %d bytes", len(line))
			}
		}
		if len(whole.lines) >= 2*logLinesKept {
			t.Fatalf("%d lines are kept", len(whole.lines))
		}
		reason := reasonIn(whole.lines, "Unable to create Wasm plugin WasmPlugin/ns/a")
		if len(reason) > reasonLimit+64 || !utf8.ValidString(reason) || strings.ContainsFunc(reason, func(r rune) bool { return r < ' ' }) {
			t.Fatalf("not fit to be shown: %q", reason)
		}
	})
}

// FuzzEnvoyArgs: what the agent starts Envoy with says what the user's arguments
// say, and is read again as the same.
func FuzzEnvoyArgs(f *testing.F) {
	for _, s := range []string{"-c\nx.yaml", "--config-yaml\na: b\n--log-level\ndebug", "-c=x\n--config-path\ny", "--mode\nvalidate", "-c", "--log-path=-\n-c\na.pb", "-c\n\n--service-node=n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, lines string) {
		args := strings.Split(lines, "\n")
		a, err := parseEnvoyArgs(args)
		if err != nil {
			if len(err.Error()) > 4<<10+len(lines) {
				t.Fatalf("%d bytes of reason", len(err.Error()))
			}
			return
		}
		if a.configPath == "" && a.configYAML == "" {
			t.Fatalf("%q names no configuration", args)
		}
		b, err := parseEnvoyArgs(a.commandLine("/d/bootstrap.yaml", "45", true))
		if err != nil {
			t.Fatalf("%q: %v", args, err)
		}
		if b.configPath != "/d/bootstrap.yaml" || b.configYAML != "" || b.logPath != a.logPath || b.serviceNode != a.serviceNode || b.serviceCluster != a.serviceCluster {
			t.Fatalf("%q became %+v", args, b)
		}
		if !strings.HasSuffix("\n"+strings.Join(b.rest, "\n"), strings.Join(append([]string{""}, a.rest...), "\n")) {
			t.Fatalf("%q of %q became %q", a.rest, args, b.rest)
		}
	})
}

// FuzzTraps: whatever is among Envoy's statistics, only plugins are counted, by what
// their own lines say.
func FuzzTraps(f *testing.F) {
	f.Add("wasm.WasmPlugin/ns/a.vm_reload_success: 2\nwasm.WasmPlugin/ns/a.vm_reload_failure: 1\n")
	f.Add("wasm.: 1\nwasm: 1\nvm_reload_success: 1\nwasm.a/b/c.d.x: -1\n: \n")
	f.Fuzz(func(t *testing.T, text string) {
		var sum, most uint64
		for _, n := range countTraps(readStats(text)) {
			sum += n.Reloads + n.Refused
		}
		for _, n := range readStats(text) {
			most += uint64(max(n, 0))
		}
		if sum > most {
			t.Fatalf("%d traps of %d", sum, most)
		}
		for key := range countTraps(readStats(text)) {
			if back, ok := chandler.ParseKey(key.String()); !ok || back != key || !strings.Contains(text, "wasm."+key.String()+".") {
				t.Fatalf("%+v is no plugin of %q", key, text)
			}
		}
	})
}

// FuzzAnswers: whatever is among Envoy's statistics, what is counted was said.
func FuzzAnswers(f *testing.F) {
	f.Add("http.a.b.downstream_rq_2xx: 5\nhttp.a.b.downstream_rq_time: B0.5(0,3) B1.8e+06(0,2)\n")
	f.Add("http.downstream_rq_9xx: 5\nhttp.a.downstream_rq_time: B(,) B1(1) B-1(0,1) BNaN(0,2) No recorded values\nhttp.a.downstream_rq_: 1")
	f.Fuzz(func(t *testing.T, text string) {
		for prefix, a := range readAnswers(text) {
			if a != (chandler.Answers{}) && !strings.Contains(text, "http."+prefix+".downstream_rq_") {
				t.Fatalf("%+v is not of %q", a, text)
			}
			if again, ok := plus(a, a).Since(&a); ok && again != a {
				t.Fatalf("%+v became %+v", a, again)
			}
		}
	})
}

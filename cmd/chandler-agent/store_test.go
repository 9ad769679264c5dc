package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/agent"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/ports"
)

// local runs a command that looks at an agent, with standard input.
func local(t *testing.T, stdin []byte, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	c := console{env: map[string]string{}, stdin: bytes.NewReader(stdin), stdout: &out, stderr: &errs}
	switch args[0] {
	case "store":
		code = runStore(c, args[1:])
	case "bypass":
		code = runBypass(c, args[1:])
	default:
		code = runStatus(c, args[1:])
	}
	return code, out.String(), errs.String()
}

// nobody is an address at which nothing answers.
func nobody(t *testing.T) string {
	t.Helper()
	addr, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// A node is seeded, looked at and cleaned up without an agent.
func TestStoreWithoutAgent(t *testing.T) {
	t.Parallel()
	data, from := filepath.Join(t.TempDir(), "data"), t.TempDir()
	write := func(name string, b []byte) string {
		t.Helper()
		path := filepath.Join(from, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	one, two, three := module.Append(), module.Deny(401), module.Deny(403)
	write("one.wasm", one)
	write("deep/two.wasm", two)
	write("notes.txt", []byte("not a module"))
	digest := func(b []byte) string { return string(chandler.Digest[chandler.ModuleDigest](b)) }

	if code, out, errs := local(t, nil, "store", "ls", "--data", data); code != 0 || strings.Count(out, "\n") != 1 || errs != "" {
		t.Errorf("ls of nothing: %d %q %q", code, out, errs)
	}
	if code, _, errs := local(t, nil, "store", "trim", "--data", data); code != 1 || !strings.Contains(errs, "no such file") {
		t.Errorf("trim of nothing: %d %q", code, errs)
	}
	code, out, errs := local(t, three, "store", "import", from, "--data", data, "-")
	if code != 0 || !strings.Contains(out, digest(one)) || !strings.Contains(out, digest(two)) || !strings.Contains(out, digest(three)) || strings.Count(out, "\n") != 3 {
		t.Fatalf("import: %d %q %q", code, out, errs)
	}
	bad := write("bad.wasm", module.BadABI())
	code, out, errs = local(t, nil, "store", "import", bad, "--data", data)
	if code != 3 || out != "" || !strings.Contains(errs, "ABI") || !strings.Contains(errs, "not imported: 1 of 1 module") {
		t.Errorf("import of what cannot run: %d %q %q", code, out, errs)
	}

	if err := durable.Write(durable.OS(), filepath.Join(data, "lastgood"), []byte(`{"format":1,"versions":[{"Kind":"WasmPlugin","Namespace":"ns","Name":"a","Program":{"Module":{"Digest":"`+digest(one)+`"}}}]}`)); err != nil {
		t.Fatal(err)
	}
	var list []agent.StoredModule
	code, out, _ = local(t, nil, "store", "ls", "--data", data, "-o", "json")
	if err := json.Unmarshal([]byte(out), &list); err != nil || code != 0 || len(list) != 3 {
		t.Fatalf("ls: %d %v %s", code, err, out)
	}
	for _, m := range list {
		if users := strings.Join(m.Plugins, " "); (string(m.Digest) == digest(one)) != (users == "WasmPlugin/ns/a") || m.Used.IsZero() {
			t.Errorf("%+v", m)
		}
	}
	if code, out, errs = local(t, nil, "store", "verify", "--data", data); code != 0 || out != "" || !strings.Contains(errs, "3 modules checked, 0 corrupt") {
		t.Errorf("verify: %d %q %q", code, out, errs)
	}
	if code, out, errs = local(t, nil, "store", "trim", "--data", data, "--max-bytes", "1GiB"); code != 0 || out != "" || !strings.Contains(errs, "0 modules") {
		t.Errorf("trim to more than there is: %d %q %q", code, out, errs)
	}
	code, out, _ = local(t, nil, "store", "trim", "--data", data)
	if code != 0 || strings.Contains(out, digest(one)) || !strings.Contains(out, digest(two)) || !strings.Contains(out, digest(three)) {
		t.Errorf("trim: %d %q", code, out)
	}
	file := filepath.Join(data, "modules", strings.TrimPrefix(digest(one), "sha256:")+".wasm")
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errs = local(t, nil, "store", "verify", "--data", data); code != 3 || !strings.Contains(out, digest(one)) || !strings.Contains(errs, "1 corrupt") {
		t.Errorf("verify of what is corrupt: %d %q %q", code, out, errs)
	}
}

// What is needed is not known when the last good set cannot be read: nothing is
// dropped.
func TestTrimWithoutLastGood(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	if code, _, errs := local(t, module.Append(), "store", "import", "-", "--data", data); code != 0 {
		t.Fatal(errs)
	}
	if err := os.WriteFile(filepath.Join(data, "lastgood"), []byte(`{"format":99}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := local(t, nil, "store", "trim", "--data", data); code != 1 || out != "" || !strings.Contains(errs, "format is 99") {
		t.Errorf("trim: %d %q %q", code, out, errs)
	}
}

// While an agent has the directory it is asked, and without its address the
// command says so.
func TestStoreBesideAnAgent(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	lock, err := durable.Lock(data)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	asked, runsOn := make(chan string, 1), data
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/status" {
			_ = json.NewEncoder(w).Encode(agent.Status{Data: runsOn})
			return
		}
		asked <- r.Method + " " + r.URL.String()
		_ = json.NewEncoder(w).Encode(agent.StoreReport{Modules: []agent.StoredModule{{Digest: "sha256:1", Size: 2048}}, Bytes: 2048, Left: 1 << 20})
	}))
	defer srv.Close()
	admin := strings.TrimPrefix(srv.URL, "http://")
	code, out, errs := local(t, nil, "store", "trim", "--data", data, "--admin", admin, "--dry-run", "--max-bytes=1kB")
	if got := <-asked; code != 0 || got != "POST /store/trim?dry_run=true&max_bytes=1000" || !strings.Contains(out, "sha256:1") || !strings.Contains(errs, "1 module of 2.0 KiB would be dropped, 1.0 MiB stay") {
		t.Errorf("trim: %d %q %q, asked %s", code, out, errs, got)
	}
	if code, out, _ = local(t, nil, "store", "verify", "--data", data, "--admin", admin); code != 3 || <-asked != "POST /store/verify?" || out == "" {
		t.Errorf("verify: %d %q", code, out)
	}
	runsOn = t.TempDir()
	if code, _, errs = local(t, nil, "store", "trim", "--data", data, "--admin", admin); code != 1 || len(asked) > 0 || !strings.Contains(errs, "runs on "+runsOn) {
		t.Errorf("trim by way of an agent of another directory: %d %q", code, errs)
	}
	if code, _, errs = local(t, nil, "store", "verify", "--data", data, "--admin", nobody(t)); code != 1 || !strings.Contains(errs, "an agent runs on this directory") || !strings.Contains(errs, "--admin") {
		t.Errorf("verify without an address: %d %q", code, errs)
	}
	if code, _, errs = local(t, module.Append(), "store", "import", "-", "--data", data); code != 1 || !strings.Contains(errs, "stop it") {
		t.Errorf("import: %d %q", code, errs)
	}
}

func TestStatus(t *testing.T) {
	t.Parallel()
	var st agent.Status
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(st) }))
	defer srv.Close()
	admin := strings.TrimPrefix(srv.URL, "http://")
	in := agent.PluginStatus{PluginRef: agent.PluginRef{Kind: "WasmPlugin", Namespace: "ns", Name: "a"}, Generation: 2, State: chandler.StateInForce}
	out := agent.PluginStatus{PluginRef: agent.PluginRef{Kind: "WasmPlugin", Namespace: "ns", Name: "b"}, State: chandler.StateFailed, InForce: "r1", Reason: chandler.CodeFetchFailed,
		Message: "no\x1b[2Jroute", Attempt: 4, NextTry: time.Now().Add(time.Hour)}
	for _, c := range []struct {
		name string
		st   agent.Status
		code int
		want []string
	}{
		{"all is well", agent.Status{Node: "ns/n", Ready: true, Envoy: agent.EnvoyStatus{Version: "1.40.0", PID: 17}, Control: agent.ControlStatus{Connected: true, Address: "c:1"},
			Store: agent.StoreStatus{Modules: 1, Bytes: 1536, Max: 1 << 30}, Plugins: []agent.PluginStatus{in}},
			0, []string{"1.40.0, pid 17", "connected to c:1", "1 module, 1.5 KiB of 1.0 GiB", "InForce"}},
		{"one fails", agent.Status{Ready: true, Envoy: agent.EnvoyStatus{PID: 17}, Plugins: []agent.PluginStatus{in, out}},
			3, []string{"Failed", "the version before", "FetchFailed: no [2Jroute (attempt 4, next try in ", "not connected"}},
		{"what stands in slots", agent.Status{Ready: true, Envoy: agent.EnvoyStatus{PID: 17}, Plugins: []agent.PluginStatus{in}, Listeners: []agent.ListenerStatus{
			{Name: "web\x1b", Address: "0.0.0.0:80", Mode: chandler.ModeServer, Slots: []agent.SlotStatus{
				{Type: chandler.HTTP, Phase: chandler.PhaseAuthn, Members: []agent.MemberStatus{{PluginRef: agent.PluginRef{Namespace: "ns", Name: "b"}, Release: "0123456789abcdef"}, {PluginRef: agent.PluginRef{Namespace: "ns", Name: "a"}, StandIn: chandler.StandInDeny}}},
				{Type: chandler.HTTP, Phase: chandler.PhaseStats},
				{Type: chandler.Network, Members: []agent.MemberStatus{{PluginRef: agent.PluginRef{Namespace: "ns", Name: "c"}, StandIn: chandler.StandInPass}}},
			}},
			{Name: "idle", Mode: chandler.ModeClient, Warnings: []string{"it has\x1b no router"}},
		}}, 0, []string{"it has  no router", "web", "AUTHN                  ns/b 0123456789ab, ns/a (denied)", "UNSPECIFIED (network)  ns/c (left out)", "idle      -           CLIENT  -"}},
		{"taken out by hand", agent.Status{Ready: true, Envoy: agent.EnvoyStatus{PID: 17}, Bypassed: []agent.BypassStatus{{PluginRef: agent.PluginRef{Kind: "WasmPlugin", Namespace: "ns", Name: "x"}, Reason: "it\x1b burns"}}},
			3, []string{"BYPASSED  ns/x (WasmPlugin) is taken out on this machine", "it  burns"}},
		{"no Envoy", agent.Status{Unready: []string{"envoy is not running"}, Envoy: agent.EnvoyStatus{Version: "1.40.0", Down: "signal 9", NextTry: time.Now().Add(time.Hour)}},
			3, []string{"1.40.0 is not running: signal 9, next try in"}},
	} {
		st = c.st
		code, text, errs := local(t, nil, "status", "--admin", admin)
		if code != c.code || errs != "" {
			t.Errorf("%s: %d %q", c.name, code, errs)
		}
		for _, w := range c.want {
			if !strings.Contains(text, w) {
				t.Errorf("%s: no %q in\n%s", c.name, w, text)
			}
		}
		var back agent.Status
		if code, text, _ := local(t, nil, "status", "--admin", admin, "-o", "json"); code != c.code || json.Unmarshal([]byte(text), &back) != nil || back.OK() != (code == 0) {
			t.Errorf("%s as JSON: %d %s", c.name, code, text)
		}
	}
	if code, _, errs := local(t, nil, "status", "--admin", nobody(t)); code != 1 || !strings.Contains(errs, "cannot be asked") {
		t.Errorf("without an agent: %d %q", code, errs)
	}
}

func TestMistakesOfCommands(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"store"}, 2, "ls, verify, trim or import"},
		{[]string{"store", "sweep"}, 2, `"sweep"`},
		{[]string{"store", "ls", "-o", "xml"}, 2, "table or json"},
		{[]string{"store", "ls", "all"}, 2, "give ls"},
		{[]string{"store", "import"}, 2, "what to import"},
		{[]string{"store", "trim", "--max-bytes", "much"}, 2, "not a size"},
		{[]string{"store", "--data", "x"}, 2, "give ls"},
		{[]string{"status", "now"}, 2, "no arguments"},
		{[]string{"status", "--data", "x"}, 2, "data"},
		{[]string{"bypass", "a", "b", "--reason", "x"}, 2, "one plugin"},
		{[]string{"bypass", "a"}, 2, "--reason"},
		{[]string{"bypass", "a", "--reason", "x", "--undo"}, 2, "--reason"},
		{[]string{"bypass", "--undo"}, 2, "which plugin"},
		{[]string{"bypass", "a", "--reason", strings.Repeat("x", 2000)}, 2, "limit"},
		{[]string{"bypass", "a", "--reason", "x", "--data", "/nonexistent"}, 1, "not the directory of an agent"},
	} {
		if code, out, errs := local(t, nil, c.args...); code != c.code || out != "" || !strings.Contains(errs, c.want) {
			t.Errorf("%v: %d %q %q, want %d and %q", c.args, code, out, errs, c.code, c.want)
		}
	}
	for _, args := range [][]string{{"store", "--help"}, {"store", "trim", "-h"}, {"status", "--help"}, {"bypass", "--help"}} {
		if code, out, errs := local(t, nil, args...); code != 0 || !strings.Contains(out, "Usage:") || !strings.Contains(out, "-admin") || errs != "" {
			t.Errorf("%v: %d %q %q", args, code, out, errs)
		}
	}
}

package main

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/ports"
	"chandler.dev/chandler/internal/testenv/registry"
	"chandler.dev/chandler/internal/testenv/swarm"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"chandler": main, pluginName: main})
}

// scriptSchema is what plugin:schema carries.
const scriptSchema = `{"title": "Sample", "type": "object", "additionalProperties": false, "required": ["rules"], "properties": {
  "rules": {"type": "array", "items": {"type": "object", "properties": {
    "prefix": {"type": "string", "description": "Paths that are guarded."},
    "password": {"type": "string", "writeOnly": true}}}}}}`

// TestScript runs testdata/script/*.txtar: the command as a user types it. Each
// script has a registry at $REGISTRY with the images plugin:v1, plugin:broken and
// plugin:schema, which carries a schema, two free addresses, $LISTEN and $CHANDLER_SERVER,
// and what authors gives.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			reg, err := registry.Start(registry.Config{})
			if err != nil {
				return err
			}
			env.Defer(reg.Close)
			client := fetch.New(fetch.Config{Dir: env.WorkDir})
			defer client.Close()
			for tag, mod := range map[string][]byte{"v1": module.Append(), "abi": module.BadABI(), "import": module.MissingImport()} {
				if _, err := client.Push(context.Background(), reg.Addr+"/plugin:"+tag, mod, fetch.PushOptions{}); err != nil {
					return err
				}
			}
			if _, err := client.Push(context.Background(), reg.Addr+"/plugin:schema", module.Append(), fetch.PushOptions{Documents: fetch.Documents{Schema: []byte(scriptSchema)}}); err != nil {
				return err
			}
			if err := authors(t, env); err != nil {
				return err
			}
			env.Setenv("REGISTRY", reg.Addr)
			env.Setenv("HOME", env.WorkDir) // where a control plane leaves word of its socket
			for _, name := range []string{"LISTEN", "CHANDLER_SERVER"} {
				addr, err := ports.Free()
				if err != nil {
					return err
				}
				env.Setenv(name, addr)
			}
			_, port, err := net.SplitHostPort(env.Getenv("CHANDLER_SERVER"))
			env.Setenv("PORT", port)
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"serve": serveInScript,
			"subst": substitute,
			"retry": retry,
			"logs":  logs,
			"move":  move,
			"swarm": swarmInScript,
			"proxy": proxyInScript,
			"code":  code,
		},
	})
}

// swarmInScript has agents join, default/agent-0 and so on: "swarm 5". Whatever denies
// with 503 denies everything there.
func swarmInScript(ts *testscript.TestScript, _ bool, args []string) {
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	bad := chandler.Digest[chandler.ModuleDigest](module.Deny(503))
	agents := swarm.New(swarm.Config{
		Target: ts.Getenv("LISTEN"), Agents: n, Rate: 200, History: time.Hour,
		Conduct: func(_ chandler.Node, a *chandler.Attachment) swarm.Conduct {
			if m := a.Program.Module; m != nil && m.Digest == bad {
				return swarm.Conduct{Answers: swarm.Denies()}
			}
			return swarm.Conduct{}
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- agents.Run(ctx) }()
	ts.Defer(func() { cancel(); <-done })
}

// move has the tag plugin:TAG mean a module that denies with a status.
func move(ts *testscript.TestScript, _ bool, args []string) {
	status, err := strconv.Atoi(args[1])
	ts.Check(err)
	client := fetch.New(fetch.Config{Dir: ts.MkAbs(".")})
	defer client.Close()
	_, err = client.Push(context.Background(), ts.Getenv("REGISTRY")+"/plugin:"+args[0], module.Deny(status), fetch.PushOptions{})
	ts.Check(err)
}

// authors sets up what scripts for authors of plugins have: modules in files, $CHANDLER
// for when PATH has nothing in it, and $REAL_ENVOY, which is not in PATH.
func authors(t *testing.T, env *testscript.Env) error {
	chandler, err := exec.LookPath("chandler")
	if err != nil {
		return err
	}
	env.Setenv("CHANDLER", chandler)
	env.Setenv("REAL_ENVOY", module.Envoy(t))
	modules := filepath.Join(env.WorkDir, "modules")
	env.Setenv("MODULES", modules)
	if err := os.Mkdir(modules, 0o700); err != nil {
		return err
	}
	for name, mod := range map[string][]byte{
		"modules/deny.wasm": module.Deny(403), "modules/refuse.wasm": module.RefuseConfigure("the moon is wrong"),
		"modules/plugin.wasm": module.Append(), "modules/bad.wasm": module.BadABI(),
		"modules/mangled.wasm": module.Append(module.WithImport("env", "_ZN4absl16numbers_internal17safe_strto64_baseE")),
	} {
		if err := os.WriteFile(filepath.Join(env.WorkDir, name), mod, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// serveInScript starts "chandler serve" with more flags, waits until it answers,
// and stops it with the script. "! serve" stops it now.
func serveInScript(ts *testscript.TestScript, neg bool, args []string) {
	if neg {
		ts.Fatalf("serve cannot be negated")
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	log, err := os.OpenFile(ts.MkAbs("serve.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ts.Check(err)
	e := &env{getenv: ts.Getenv, stdout: log, stderr: log}
	root := rootCommand(e)
	root.SetArgs(append([]string{"serve", "--no-vet", "--data", ts.MkAbs("data"), "--listen", ts.Getenv("LISTEN"), "--admin", ts.Getenv("CHANDLER_SERVER")}, args...))
	go func() {
		done <- root.ExecuteContext(ctx)
		log.Close()
	}()
	ts.Defer(func() {
		cancel()
		if err := <-done; err != nil {
			ts.Logf("serve: %v", err)
		}
	})
	deadline := time.Now().Add(20 * time.Second)
	for {
		resp, err := http.Get("http://" + ts.Getenv("CHANDLER_SERVER") + "/healthz/ready")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return // before that the resources may not have been read
			}
		}
		select {
		case err := <-done:
			done <- err
			ts.Fatalf("serve ended: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			ts.Fatalf("serve is not ready: %v", err)
		}
	}
}

// retry runs "chandler COMMAND" until its output holds a text.
func retry(ts *testscript.TestScript, _ bool, args []string) {
	deadline := time.Now().Add(20 * time.Second)
	for {
		var out bytes.Buffer
		_ = run(append([]string{"chandler"}, strings.Fields(args[0])...), ts.Getenv, strings.NewReader(""), &out, &out)
		if strings.Contains(out.String(), args[1]) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("chandler %s never said %q: %s", args[0], args[1], out.String())
		}
		time.Sleep(10 * time.Millisecond) // between looks at a condition
	}
}

// logs waits until the log of "chandler serve" holds a text.
func logs(ts *testscript.TestScript, _ bool, args []string) {
	deadline := time.Now().Add(20 * time.Second)
	for !strings.Contains(ts.ReadFile("serve.log"), args[0]) {
		if time.Now().After(deadline) {
			ts.Fatalf("the log never said %q: %s", args[0], ts.ReadFile("serve.log"))
		}
		time.Sleep(10 * time.Millisecond) // between looks at a condition
	}
}

// substitute replaces $VARIABLES in files.
func substitute(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		text := os.Expand(ts.ReadFile(name), ts.Getenv)
		ts.Check(os.WriteFile(ts.MkAbs(name), []byte(text), 0o600))
	}
}

func TestAge(t *testing.T) {
	if got := age(nil); got != "-" {
		t.Errorf("no time: %q", got)
	}
	for d, want := range map[time.Duration]string{5 * time.Second: "5s", 3 * time.Minute: "3m", 5 * time.Hour: "5h", 72 * time.Hour: "3d"} {
		if got := ageOf(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
}

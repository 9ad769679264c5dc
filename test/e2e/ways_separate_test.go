package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"chandler.dev/chandler/internal/agent"
	"chandler.dev/chandler/internal/testenv/executable"
	"chandler.dev/chandler/internal/testenv/module"
)

// apart is an Envoy and an agent that do not start each other, on a folder that both see.
// As root each is of a user of its own, and one group is what they have in common.
type apart struct {
	t           *testing.T
	w           *world
	dir         string
	data        string
	config      string // the user's file
	bootstrap   string // what Envoy is started with
	program     string // the agent's
	binary      string // Envoy's
	admin       string // the agent's
	group       int
	agentUser   *syscall.SysProcAttr
	envoyUser   *syscall.SysProcAttr
	agent       *process
	envoy       *process
	envoysSoFar int
	more        []string // Envoy arguments
}

func standApart(t *testing.T, w *world, config string) *apart {
	t.Helper()
	ap := &apart{t: t, w: w, dir: t.TempDir(), group: os.Getgid(), admin: loopback(freePort(t))}
	ap.program, ap.binary = filepath.Join(built, "chandler-agent"), envoyBinary(t)
	if os.Getuid() == 0 {
		ap.group = 4240
		ap.agentUser = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4241, Gid: 4241, Groups: []uint32{4240}}}
		ap.envoyUser = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4242, Gid: 4242, Groups: []uint32{4240}}}
		ap.program, ap.binary = reachable(t, ap.dir, ap.program), reachable(t, ap.dir, ap.binary)
		for _, dir := range []string{ap.dir, filepath.Dir(ap.dir)} {
			if err := os.Chmod(dir, 0o711); err != nil {
				t.Fatal(err)
			}
		}
	}
	ap.config, ap.data = filepath.Join(ap.dir, "envoy.yaml"), filepath.Join(ap.dir, "shared")
	ap.bootstrap = filepath.Join(ap.data, "bootstrap.yaml")
	if err := os.WriteFile(ap.config, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(ap.data, 0o755); err != nil {
		t.Fatal(err)
	}
	if ap.agentUser != nil {
		if err := os.Chown(ap.data, 4241, 4241); err != nil {
			t.Fatal(err)
		}
	}
	return ap
}

// reachable gives a program in a folder that other users can enter.
func reachable(t *testing.T, dir, program string) string {
	t.Helper()
	to := filepath.Join(dir, filepath.Base(program))
	b, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	executable.Write(t, to, string(b))
	if err := os.Chmod(to, 0o755); err != nil {
		t.Fatal(err)
	}
	return to
}

// writeBootstrap runs chandler-agent bootstrap.
func (ap *apart) writeBootstrap() {
	ap.t.Helper()
	cmd := exec.Command(ap.program, "bootstrap", "-c", ap.config, "-o", ap.bootstrap, "--data", ap.data, "--namespace", "edge", "--node", "a",
		"--data-group", strconv.Itoa(ap.group), "--envoy", ap.binary)
	cmd.Dir = ap.dir
	cmd.SysProcAttr = ap.agentUser
	if out, err := cmd.CombinedOutput(); err != nil {
		ap.t.Fatalf("bootstrap: %v\n%s", err, out)
	}
}

func (ap *apart) startAgent() {
	ap.t.Helper()
	cmd := exec.Command(ap.program, "run", "--no-child", "--control", ap.w.listen, "--data", ap.data, "--namespace", "edge", "--node", "a",
		"--data-group", strconv.Itoa(ap.group), "--admin", ap.admin, "--", "-c", ap.config)
	cmd.Args = append(cmd.Args, ap.more...)
	cmd.Dir = ap.dir
	cmd.SysProcAttr = ap.agentUser
	ap.agent = run(ap.t, filepath.Join(ap.dir, "agent.log"), cmd)
}

func (ap *apart) startEnvoy() {
	ap.t.Helper()
	ap.envoysSoFar++
	cmd := exec.Command(ap.binary, "-c", ap.bootstrap, "--disable-hot-restart", "--concurrency", "1")
	cmd.Args = append(cmd.Args, ap.more...)
	cmd.Dir = ap.dir
	cmd.SysProcAttr = ap.envoyUser
	ap.envoy = run(ap.t, filepath.Join(ap.dir, fmt.Sprintf("envoy-%d.log", ap.envoysSoFar)), cmd)
}

func (ap *apart) kill(p *process) {
	_ = p.cmd.Process.Kill()
	<-p.done
}

func (ap *apart) awaitReady() {
	ap.t.Helper()
	eventually(ap.t, 60*time.Second, "agent ready", func() (bool, string) { return status("http://" + ap.admin + "/healthz/ready") })
}

func (ap *apart) status() (st agent.Status) {
	ap.t.Helper()
	resp, err := http.Get("http://" + ap.admin + "/status")
	if err != nil {
		ap.t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&st); err != nil {
		ap.t.Fatal(err)
	}
	return st
}

// has checks a file's group and permissions.
func (ap *apart) has(path string, mode fs.FileMode) {
	ap.t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		ap.t.Error(err)
		return
	}
	if gid := int(st.Sys().(*syscall.Stat_t).Gid); gid != ap.group || st.Mode().Perm() != mode {
		ap.t.Errorf("%s is of the group %d with mode %v, want %d and %v", path, gid, st.Mode(), ap.group, mode)
	}
}

// Each may begin, end and begin again as it likes: what is in force stays so, the status
// says what is known, and what is not.
func TestWaysSeparate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	ap := standApart(t, w, w.gateway(listener{port: port, name: "in"}))
	ap.writeBootstrap()

	// Envoy before its agent: it waits for it.
	ap.startEnvoy()
	eventually(t, 20*time.Second, "Envoy waits", func() (bool, string) {
		log, err := os.ReadFile(ap.envoy.log)
		return strings.Contains(string(log), "starting main dispatch loop"), fmt.Sprint(err)
	})
	if _, err := request(fresh, http.MethodGet, port, "/", nil); err == nil {
		t.Error("it serves before anybody told which plugins belong here")
	}
	ap.startAgent()
	ap.awaitReady()
	walk(t, w, port, "why is in Envoy's own log, which this agent does not read")
	w.apply(plugin("p", w.push("append:v1", module.Append()), tag("one")))
	sees(t, port, "one")

	// What Envoy needs is the group's to read, and nothing else is.
	modules, err := filepath.Glob(filepath.Join(ap.data, "modules", "*.wasm"))
	if err != nil || len(modules) == 0 {
		t.Fatal("there are no modules")
	}
	for path, mode := range map[string]fs.FileMode{
		modules[0]: 0o640, filepath.Join(ap.data, "modules"): 0o750, ap.data: 0o750, ap.bootstrap: 0o640,
		filepath.Join(ap.data, "envoy"): 0o750, filepath.Join(ap.data, "envoy", "listeners.yaml"): 0o640,
		filepath.Join(ap.data, "envoy", "ads.sock"): 0o660, filepath.Join(ap.data, "envoy", "admin"): 0o770, filepath.Join(ap.data, "envoy", "admin", "admin.sock"): 0o660,
	} {
		ap.has(path, mode)
	}
	if st, err := os.Stat(filepath.Join(ap.data, "lastgood")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the last good set, which may hold secrets: %v, %v", st.Mode(), err)
	}
	if st := ap.status(); !st.Envoy.Separate || !st.Envoy.Running() || st.Envoy.PID != 0 || st.Envoy.Adopted || st.Envoy.Version == "" {
		t.Errorf("%+v", st.Envoy)
	}

	// The agent goes and comes, in either way, and Envoy's clients see nothing of it.
	l := startLoad(port, 2, 1, matching("one|two|three"))
	for i, end := range []func(){func() { _ = ap.agent.stop() }, func() { ap.kill(ap.agent) }} {
		end()
		next := []string{"two", "three"}[i]
		w.submit(plugin("p", w.push("append:v1", module.Append()), tag(next)))
		ap.startAgent()
		sees(t, port, next)
		ap.awaitReady()
	}
	ap.writeBootstrap() // while all runs
	sees(t, port, "three")
	unharmed(t, l)

	// Envoy goes: that is told, and that nobody knows how.
	ap.kill(ap.envoy)
	eventually(t, 10*time.Second, "the agent says so", func() (bool, string) {
		st := ap.status()
		return !st.Ready && !st.Envoy.Running() && strings.Contains(st.Envoy.Down, "no Envoy answers at unix://"), fmt.Sprintf("%+v", st.Envoy)
	})
	w.tells("p", "EnvoyDown", "did not start it")
	// It comes back, and serves nobody without its plugin; then with no pause between.
	for range 2 {
		ap.startEnvoy()
		opens(t, port, "three")
		ap.awaitReady()
		ap.kill(ap.envoy)
	}
	ap.startEnvoy()
	opens(t, port, "three")
	ap.awaitReady()
	w.apply(plugin("p", w.push("append:v1", module.Append()), tag("four")))
	sees(t, port, "four")

	// Other listeners in the user's file count with the next agent, and Envoy serves on; none
	// opens before its plugins.
	second := freePort(t)
	if err := os.WriteFile(ap.config, []byte(w.gateway(listener{port: port, name: "in"}, listener{port: second, name: "second"})), 0o644); err != nil {
		t.Fatal(err)
	}
	l = startLoad(port, 2, 1, matching("four"))
	ap.kill(ap.agent)
	ap.startAgent()
	opens(t, second, "four")
	unharmed(t, l)

	// Both at once, without a control plane.
	if err := w.control.stop(); err != nil {
		t.Error(err)
	}
	ap.kill(ap.agent)
	ap.kill(ap.envoy)
	ap.startEnvoy()
	ap.startAgent()
	opens(t, port, "four")
	ap.awaitReady()
}

// opens waits for the first answer, which must have gone through these plugins.
func opens(t *testing.T, port int, want string) {
	t.Helper()
	eventually(t, 30*time.Second, "the listener opens", func() (bool, string) {
		a, err := request(fresh, http.MethodGet, port, "/", nil)
		if err != nil {
			return false, err.Error()
		}
		if got := strings.Join(appended(a), ","); a.code != 200 || got != want {
			t.Errorf("the first answer: status %d, tags %s, want %s", a.code, got, want)
		}
		return true, ""
	})
}

// With a log that both can get at, the reason of a refusal is told as of a child.
func TestWaysSeparateLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	ap := standApart(t, w, w.gateway(listener{port: port, name: "in"}))
	ap.more = []string{"--log-path", filepath.Join(ap.data, "envoy", "admin", "envoy.log")}
	ap.writeBootstrap()
	ap.startEnvoy()
	ap.startAgent()
	ap.awaitReady()
	walk(t, w, port, "the moon is wrong")
}

// A plugin that has its slot in the listeners: whoever begins anew, no connection goes
// without it.
func TestWaysSeparateNetwork(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	config, ports := tcpGateway(t)
	ap := standApart(t, w, config)
	ap.writeBootstrap()
	url := w.push("prefix", module.Prefix())
	w.submit(networkPlugin("prefix", url, "1"))
	ap.startAgent() // before its Envoy
	eventually(t, 20*time.Second, "the agent waits", func() (bool, string) {
		return status("http://" + ap.admin + "/healthz/live")
	})
	ap.startEnvoy()
	ap.awaitReady()
	ports.everywhereSays(t, prefix("1")+"hello")
	w.apply(networkPlugin("prefix", url, "2"))
	ports.everywhereSays(t, prefix("2")+"hello")
	for range 2 {
		ap.kill(ap.envoy)
		ap.startEnvoy()
		eventually(t, 30*time.Second, "the listener opens", func() (bool, string) {
			conn, err := dialTCP(ports.plain, "")
			if err != nil {
				return false, err.Error()
			}
			defer conn.Close()
			if got := say(conn, "hello"); got != prefix("2")+"hello" {
				t.Errorf("the first connection says %q", got)
			}
			return true, ""
		})
		ap.awaitReady()
	}

	// The file of the listeners is lost: they are written anew, and no connection is served
	// without what was in force.
	ap.kill(ap.agent)
	if err := os.Remove(filepath.Join(ap.data, "envoy", "listeners.yaml")); err != nil {
		t.Fatal(err)
	}
	ap.startAgent()
	for until := time.Now().Add(3 * time.Second); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		conn, err := dialTCP(ports.plain, "")
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second)) // the machine may be busy
		if got := say(conn, "hello"); got != prefix("2")+"hello" {
			t.Errorf("without a file of listeners a connection says %q", got)
		}
		conn.Close()
	}
	ap.awaitReady()

	ap.kill(ap.agent)
	w.submit(networkPlugin("other", w.push("other", module.Prefix()), "3", "priority: 5"))
	ap.startAgent()
	eventually(t, 30*time.Second, "the second plugin is in force", func() (bool, string) {
		got := said(t, ports.plain, "")
		return got == prefix("2")+prefix("3")+"hello" || got == prefix("3")+prefix("2")+"hello", got
	})
	if out, ok := w.cli("", "delete", "wasmplugins.extensions.istio.io", "-n", "edge", "prefix"); !ok {
		t.Fatal(out)
	}
	eventually(t, 30*time.Second, "the first is not any more", func() (bool, string) {
		got := said(t, ports.plain, "")
		return got == prefix("3")+"hello", got
	})
}

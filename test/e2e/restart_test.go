package e2e

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// kill ends a process as a crash would, and takes it off the clean-up.
func (p *process) kill(t testing.TB) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.done
	p.err = nil
}

// envoy gives the number of the Envoy that the agent said it runs, last.
func (p *proxy) envoy(t testing.TB) int {
	t.Helper()
	log, err := os.ReadFile(p.log)
	if err != nil {
		t.Fatal(err)
	}
	all := envoyPid.FindAllSubmatch(log, -1)
	if all == nil {
		t.Fatalf("the agent does not tell Envoy's pid:\n%s", log)
	}
	pid, err := strconv.Atoi(string(all[len(all)-1][1]))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// restart starts an agent again, as it was started before.
func (p *proxy) restart() {
	p.process = start(p.w.t, p.log, p.cmd.Path, p.cmd.Args[1:]...)
}

// stopped waits for the end of a process that is no child of the test.
func stopped(t testing.TB, pid int) {
	t.Helper()
	eventually(t, 20*time.Second, fmt.Sprintf("process %d is gone", pid), func() (bool, string) {
		return syscall.Kill(pid, 0) != nil, "it runs"
	})
}

// The agent is killed and started again under load: its Envoy serves on, is
// taken over, and no request and no connection notices.
func TestFault_F1_EnvoyOutlivesItsAgent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append())
	w.apply(plugin("p", url, tag("one")))
	sees(t, port, "one")
	envoy := p.envoy(t)
	const keep = 4
	l := startLoad(port, keep, 1, func(a answer) error {
		if a.code != http.StatusOK || len(appended(a)) != 1 {
			return fmt.Errorf("status %d, tags %v", a.code, appended(a))
		}
		return nil
	})
	asked := w.registry.Counts()
	for round := range 3 {
		p.kill(t)
		sees(t, port, tagOf(round))
		p.restart()
		p.awaitReady()
		if now := p.envoy(t); now != envoy {
			t.Fatalf("round %d: Envoy is %d and was %d", round, now, envoy)
		}
		sees(t, port, tagOf(round))
		w.apply(plugin("p", url, tag(tagOf(round+1))))
		sees(t, port, tagOf(round+1))
	}
	l.end()
	if len(l.wrong) > 0 || l.closed.Load() > 0 {
		t.Errorf("of %d requests %d ended a kept connection; wrong: %v",
			l.answers.Load(), l.closed.Load(), l.wrong)
	}
	if w.registry.Counts() != asked {
		t.Error("the registry was asked again")
	}
}

func tagOf(round int) string { return []string{"one", "two", "three", "four"}[round] }

// Everything else is gone, and agent and Envoy are killed: started again, the
// first request that is answered is answered by the plugin.
func TestFault_F7_OfflineRestart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("deny", w.push("deny:v1", module.Deny(401)), "phase: AUTHN") + "---\n" +
		plugin("p", w.push("append:v1", module.Append()), tag("p")))
	if err := w.control.stop(); err != nil {
		t.Fatal(err)
	}
	w.registry.Close()
	envoy := p.envoy(t)
	p.kill(t)
	if err := syscall.Kill(envoy, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	stopped(t, envoy)
	p.restart()
	eventually(t, 20*time.Second, "an answer", func() (bool, string) {
		a, err := request(fresh, http.MethodGet, port, "/", nil)
		if err != nil {
			return false, err.Error()
		}
		if a.code != 401 {
			t.Fatalf("the first answer is %d; the plugin would have said 401", a.code)
		}
		return true, ""
	})
	p.awaitReady()
}

// A node that knows nothing and reaches nobody keeps its listeners shut.
func TestFreshNodeKeepsShut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if err := w.control.stop(); err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	p := w.startAgent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	eventually(t, 20*time.Second, "the agent answers", func() (bool, string) {
		_, why := status("http://" + p.admin + "/healthz/ready")
		return strings.Contains(why, "listeners are not active"), why
	})
	if a, err := request(fresh, http.MethodGet, port, "/", nil); err == nil {
		t.Errorf("it answers %d before it knows its plugins", a.code)
	}
	w.startControl()
	p.awaitReady()
	if a := get(t, port, "/"); a.code != 200 {
		t.Errorf("status %d", a.code)
	}
}

// An agent that is told to leave its Envoy does; another configuration is not
// adopted but replaces it.
func TestLeaveAndReplaceEnvoy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port, other := freePort(t), freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	args := p.cmd.Args
	i := slices.Index(args, "--")
	p.cmd.Args = slices.Concat(args[:i:i], []string{"--leave-envoy"}, args[i:])
	p.restart()
	p.awaitReady()
	envoy := p.envoy(t)
	if err := p.stop(); err != nil {
		t.Fatal(err)
	}
	if a := get(t, port, "/"); a.code != 200 {
		t.Errorf("the Envoy that was left answers %d", a.code)
	}
	config := w.gateway(listener{port: other, name: "in"})
	if err := os.WriteFile(filepath.Join(p.dir, "envoy.yaml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	p.cmd.Args = args
	p.restart()
	p.awaitReady()
	stopped(t, envoy)
	if a := get(t, other, "/"); a.code != 200 {
		t.Errorf("the new Envoy answers %d", a.code)
	}
}

package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/module"
)

// tapped is an agent whose control plane's words pass through a tap.
func tappedAgent(w *world, config string, flags ...string) (*tap, *proxy) {
	tp := newTap(w.t, w.listen)
	return tp, w.agent(node{name: "a", flags: append([]string{"--control", tp.addr}, flags...)}, config)
}

// slots writes what stands in listeners, one a line.
func slots(f *chandler.Facts) string {
	var b strings.Builder
	if f == nil {
		return "no facts"
	}
	for _, l := range f.Listeners {
		for _, s := range l.Slots {
			for _, m := range s.Members {
				fmt.Fprintf(&b, "%s %s %s %s %s%s; ", l.Name, s.Type, s.Phase, m.Name, m.Release.Short(), m.StandIn)
			}
		}
	}
	return b.String()
}

// What an agent tells of its proxy is what stands there, in order, stand-ins included.
func TestFactsAreWhatStands(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	one, two := freePort(t), freePort(t)
	began := time.Now()
	tp, _ := tappedAgent(w, w.gateway(listener{port: one, name: "in", direction: "INBOUND"}, listener{port: two, name: "out"}))
	if first := tp.all()[0]; first.Facts == nil || !first.Full {
		t.Errorf("the first report has no facts: %+v", first)
	}
	url := w.push("append:v1", module.Append())
	w.apply(plugin("low", url, tag("low")) + "---\n" + plugin("high", url, tag("high"), "priority: 7"))
	w.apply(plugin("authn", url, tag("authn"), "phase: AUTHN", "match: [{mode: SERVER}]"))
	sees(t, one, "authn", "high", "low")
	low, high, authn := tp.state("low").InForce.Short(), tp.state("high").InForce.Short(), tp.state("authn").InForce.Short()
	want := fmt.Sprintf("in HTTP AUTHN authn %[3]s; in HTTP  high %[2]s; in HTTP  low %[1]s; out HTTP  high %[2]s; out HTTP  low %[1]s; ", low, high, authn)
	eventually(t, 5*time.Second, "facts say what stands", func() (bool, string) { got := slots(tp.facts()); return got == want, got + "\nwant " + want })
	f, shared := tp.facts(), *envoyFlag == "" // the oldest Envoy knows none
	places := map[bool]int{true: 4, false: 3}[shared]
	if f.Slots != shared || len(f.Listeners) != 2 || f.Store.Modules != 1 || f.Store.Limit == 0 || f.Store.Bytes == 0 {
		t.Errorf("facts %+v", f)
	}
	if l := f.Listeners[0]; l.Mode != chandler.ModeServer || l.Port != uint32(one) || l.Address != loopback(one) || len(l.Slots) != places {
		t.Errorf("listener %+v", l)
	}
	// A denial stands in for what Envoy refuses.
	w.submit(plugin("authn", w.push("bad:v1", module.TrapStart()), "phase: AUTHN", "match: [{mode: SERVER}]"))
	w.submit(plugin("bad", w.push("bad:v1", module.TrapStart()), "phase: AUTHZ"))
	eventually(t, healed, "the denial is told", func() (bool, string) {
		got := slots(tp.facts())
		return strings.Contains(got, "in HTTP AUTHZ bad "+string(chandler.StandInDeny)) && strings.Contains(got, "in HTTP AUTHN authn "+authn), got
	})
	// Facts alone are told once a second at most.
	alone := 0
	for _, r := range tp.all() {
		if r.Facts != nil && len(r.States)+len(r.Removed)+len(r.Traffic) == 0 {
			alone++
		}
	}
	if seconds := int(time.Since(began).Seconds()); alone > seconds+1 {
		t.Errorf("facts alone were told %d times in %d seconds", alone, seconds)
	}
}

// What is told of traffic is what was sent; nothing is told while nobody asks.
func TestTrafficIsWhatWasSent(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port, idle := freePort(t), freePort(t)
	config := w.gateway(listener{port: port, name: "in", direction: "INBOUND"}, listener{port: idle, name: "other"})
	config = strings.Replace(config, "stat_prefix: gateway", "stat_prefix: in.bound", 1)
	tp, p := tappedAgent(w, config, "--restart", "on-failure")
	w.apply(plugin("p", w.push("deny:v1", module.Deny(401)), "failStrategy: FAIL_OPEN"))
	var sent [5]uint64 // by class
	ask := func() answer {
		a := get(t, port, "/")
		sent[a.code/100-1]++
		return a
	}
	for range 13 {
		if a := ask(); a.code != http.StatusUnauthorized {
			t.Fatalf("status %d", a.code)
		}
	}
	if out, ok := w.cli("", "delete", "wasmplugin", "p", "-n", "edge"); !ok {
		t.Fatal(out)
	}
	eventually(t, 20*time.Second, "it is detached", func() (bool, string) { a := ask(); return a.code == http.StatusOK, fmt.Sprint(a.code) })
	for range 20 {
		ask()
	}
	if got := tp.traffic(); got != nil {
		t.Errorf("told, though nobody asked: %+v", got)
	}
	tp.ask(time.Second)
	var first []chandler.Traffic
	eventually(t, 20*time.Second, "the counts are those of what was sent", func() (bool, string) {
		first = tp.traffic()
		if len(first) != 2 {
			return false, fmt.Sprintf("%+v", first)
		}
		in, out := first[0], first[1]
		times := uint64(0)
		for _, n := range in.Now.Latency {
			times += n
		}
		c := in.Now.Classes
		ok := in.Mode == chandler.ModeServer && in.Port == uint32(port) && c == sent && c == in.Hour.Classes &&
			times == c[1]+c[3] && in.Hour.Latency == in.Now.Latency && out.Mode == chandler.ModeClient && out.Now == (chandler.Answers{})
		return ok, fmt.Sprintf("%+v; sent %v", first, sent)
	})
	// Told again and again, until nobody asks.
	n := len(tp.all())
	eventually(t, 10*time.Second, "it is told again", func() (bool, string) { return len(tp.all()) >= n+2, fmt.Sprint(len(tp.all()), n) })

	// Another Envoy counts anew; the hour does not forget.
	crash(t, p.envoy(t))
	sees(t, port)
	eventually(t, 20*time.Second, "another Envoy is another epoch", func() (bool, string) {
		now := tp.traffic()
		return now[0].Epoch != first[0].Epoch && now[0].Now.Classes[3] == 0 && now[0].Hour.Classes[3] == sent[3], fmt.Sprintf("%+v", now)
	})
	tp.ask(0)
	var since time.Time
	eventually(t, 10*time.Second, "it falls silent", func() (bool, string) {
		all := tp.all()
		last := all[len(all)-1].at
		if last != since {
			since = last
		}
		return time.Since(since) > 3*time.Second, "it talks"
	})
}

// A plugin whose VM traps under FAIL_CLOSE, the default, is told to do so.
func TestTrapsUnderFailClose(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	tp, p := tappedAgent(w, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("p", w.push("traps:v1", module.TrapRequest())) + "---\n" + plugin("whole", w.push("append:v1", module.Append()), tag("w")))
	eventually(t, 20*time.Second, "the trap is told", func() (bool, string) {
		if a := get(t, port, "/"); a.code != http.StatusServiceUnavailable {
			t.Errorf("status %d", a.code)
		}
		st := tp.state("p")
		return st.VMTraps > 0 && st.Reason == chandler.CodeVMTrap, fmt.Sprintf("%+v", st)
	})
	if st := tp.state("whole"); st.VMTraps != 0 || st.Reason != "" {
		t.Errorf("its neighbour: %+v", st)
	}
	metric := `chandler_agent_plugin_vm_traps_total{name="p",namespace="edge"} `
	if got := grep(fetchText(t, "http://"+p.admin+"/metrics"), metric); got == "" || strings.HasSuffix(got, " 0\n") {
		t.Errorf("the metric says %q", got)
	}
}

// So is one under FAIL_OPEN, when it is the only one: Envoy counts nothing of it, but
// says in its log that something failed.
func TestTrapsUnderFailOpen(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	tp, _ := tappedAgent(w, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("p", w.push("traps:v1", module.TrapRequest()), "failStrategy: FAIL_OPEN"))
	if a := get(t, port, "/"); a.code != http.StatusServiceUnavailable {
		t.Errorf("status %d", a.code)
	}
	eventually(t, 20*time.Second, "the trap is told", func() (bool, string) {
		st := tp.state("p")
		return st.VMTraps == 1 && st.Reason == chandler.CodeVMTrap, fmt.Sprintf("%+v", st)
	})
	if a := get(t, port, "/"); a.code != http.StatusOK {
		t.Errorf("status %d, it is passed by", a.code)
	}
}

// crash ends an Envoy as a fault of its own would.
func crash(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// agentCLI runs a command of chandler-agent and gives its output and exit code.
func (p *proxy) agentCLI(args ...string) (string, int) {
	cmd := exec.Command(filepath.Join(built, "chandler-agent"), append(args, "--admin", p.admin)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	_ = cmd.Run()
	return out.String(), cmd.ProcessState.ExitCode()
}

// With the control plane gone and under load a plugin is taken out on its machine in two
// seconds, no request fails, and it stays out over restarts of agent and Envoy, until
// it is put back.
func TestBypass(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a", flags: []string{"--restart", "on-failure"}}, w.gateway(listener{port: port, name: "in"}))
	url := w.push("append:v1", module.Append())
	w.apply(plugin("p", url, tag("p")) + "---\n" + plugin("q", url, tag("q"), "priority: 3"))
	sees(t, port, "q", "p")
	data := filepath.Join(p.dir, "data")
	if err := w.control.stop(); err != nil {
		t.Fatal(err)
	}
	l := startLoad(port, 4, 2, func(a answer) error {
		if tags := appended(a); a.code != http.StatusOK || len(tags) == 0 || tags[0] != "q" {
			return fmt.Errorf("status %d, tags %v", a.code, tags)
		}
		return nil
	})
	began := time.Now()
	if out, code := p.agentCLI("bypass", "p", "--reason", "it burns", "--data", data); code != 0 || !strings.Contains(out, "WasmPlugin/edge/p is taken out") {
		t.Fatalf("exit code %d: %s", code, out)
	}
	sees(t, port, "q")
	if took := time.Since(began); took > patience(atOnce) {
		t.Errorf("it took %s", took)
	}
	out, code := p.agentCLI("status")
	if code != 3 || !strings.Contains(out, "edge/p (WasmPlugin) is taken out on this machine") || !strings.Contains(out, "it burns") {
		t.Errorf("exit code %d, status says:\n%s", code, out)
	}
	if got := grep(fetchText(t, "http://"+p.admin+"/metrics"), "chandler_agent_bypassed 1"); got == "" {
		t.Errorf("the metric says %q", got)
	}

	// The agent is killed and comes back, with an Envoy that it left behind.
	p.kill(t)
	p.restart()
	p.awaitReady()
	sees(t, port, "q")
	harmless(t, l)
	// Then Envoy ends, too.
	crash(t, p.envoy(t))
	eventually(t, 30*time.Second, "another Envoy serves", func() (bool, string) {
		a, err := request(fresh, http.MethodGet, port, "/", nil)
		return err == nil && a.code == http.StatusOK && len(appended(a)) == 1, fmt.Sprint(a, err)
	})
	sees(t, port, "q")

	// The control plane comes back and says what it likes.
	w.startControl()
	w.submit(plugin("p", url, tag("again")))
	eventually(t, 20*time.Second, "the control plane knows", func() (bool, string) {
		out, _ := w.cli("", "describe", "wasmplugin", "p", "-n", "edge")
		return strings.Contains(out, "Bypassed") && strings.Contains(out, "it burns"), out
	})
	sees(t, port, "q")
	began = time.Now()
	if out, code := p.agentCLI("bypass", "p", "--undo", "--data", data); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	sees(t, port, "q", "again")
	if took := time.Since(began); took > patience(atOnce) {
		t.Errorf("to put it back took %s", took)
	}
	eventually(t, 5*time.Second, "status is quiet", func() (bool, string) {
		out, code := p.agentCLI("status")
		return code == 0 && !strings.Contains(out, "BYPASSED"), out
	})
}

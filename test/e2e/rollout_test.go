package e2e

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/swarm"
)

// fleet is a control plane with two real Envoys and twenty scripted agents, for whom
// plugin edge/p is. One of the Envoys and two of the agents are canaries.
type fleet struct {
	*world
	t             *testing.T
	canary, other *gateway
	tap           *tap // of what the other reports
	swarm         *swarm.Swarm
	rollouts      chandlerv1connect.RolloutsClient
}

// gateway is a real proxy with its port.
type gateway struct {
	*proxy
	port int
}

const (
	scripted         = 20
	scriptedCanaries = 2
	everyone         = scripted + 2
)

var edgeP = chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "edge", Name: "p"}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := &fleet{world: newWorld(t), t: t}
	f.rollouts = chandlerv1connect.NewRolloutsClient(http.DefaultClient, "http://"+f.admin)
	f.tap = newTap(t, f.listen)
	envoy := func(n node) *gateway {
		port := freePort(t)
		return &gateway{f.agent(n, f.gateway(listener{port: port, name: "in"})), port}
	}
	f.canary = envoy(node{name: "canary", labels: []string{"canary=true"}})
	f.other = envoy(node{name: "other", flags: []string{"--control", f.tap.addr}})

	f.swarm = swarm.New(swarm.Config{
		Target: f.listen, Agents: scripted, Fetch: true, History: time.Hour, Rate: 50,
		// Slow ones among them, so that what counts of the Envoys' latency is not how busy
		// the machine is.
		Usual: &swarm.Answers{ClientErrors: 0.02, ServerErrors: 0.001, Typical: 8 * time.Millisecond, Slow: 800 * time.Millisecond},
		Node: func(i int) chandler.Node {
			n := chandler.Node{Namespace: "edge", Name: fmt.Sprintf("agent-%d", i), Labels: map[string]string{}}
			if i < scriptedCanaries {
				n.Labels["canary"] = "true"
			}
			return n
		},
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f.swarm.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	eventually(t, 30*time.Second, "the swarm is connected", func() (bool, string) {
		n := f.swarm.Connected()
		return n == scripted, fmt.Sprint(n)
	})
	return f
}

// stepped is edge/p with a plan: canaries first, then half of all, then everyone.
func stepped(url string, interval time.Duration, more ...string) string {
	return strings.Replace(plugin("p", url, more...), "namespace: edge}",
		fmt.Sprintf(`namespace: edge, annotations: {chandler.dev/rollout: "canary=true,50%%,100%%", chandler.dev/rollout-interval: %s}}`, interval), 1)
}

// rollout is where that of edge/p is; nil: there is none, or nobody answers.
func (f *fleet) rollout() *chandlerv1.Rollout {
	res, err := f.rollouts.ListRollouts(f.t.Context(), connect.NewRequest(&chandlerv1.ListRolloutsRequest{Namespace: "edge", Name: "p"}))
	if err != nil || len(res.Msg.Rollouts) == 0 {
		return nil
	}
	return res.Msg.Rollouts[0]
}

// await waits until the rollout is as it should be, and gives it.
func (f *fleet) await(within time.Duration, what string, holds func(*chandlerv1.Rollout) bool) *chandlerv1.Rollout {
	f.t.Helper()
	var r *chandlerv1.Rollout
	eventually(f.t, within, what, func() (bool, string) {
		r = f.rollout()
		return r != nil && holds(r), fmt.Sprint(r)
	})
	return r
}

// everywhere waits until a release that is not old is in force on all proxies, and
// gives it.
func (f *fleet) everywhere(within time.Duration, old, tag string) string {
	f.t.Helper()
	r := f.await(within, tag+" is everywhere", func(r *chandlerv1.Rollout) bool {
		return r.State == string(chandler.RolloutHealthy) && r.To != old && r.Updated == everyone && f.scriptedHave(r.To) == scripted
	})
	sees(f.t, f.canary.port, tag)
	sees(f.t, f.other.port, tag)
	return r.To
}

// scriptedHave is on how many of the scripted agents a release is in force.
func (f *fleet) scriptedHave(release string) int {
	return f.swarm.InForce(edgeP)[chandler.ReleaseID(release)]
}

// says runs a command until what it says matches all of some patterns, line by line.
// healthy is whether it then ends so.
func (f *fleet) says(healthy bool, args []string, patterns ...string) {
	f.t.Helper()
	eventually(f.t, 20*time.Second, fmt.Sprintf("chandler %v says %q", args, patterns), func() (bool, string) {
		out, ok := f.cli("", args...)
		return ok == healthy && !slices.ContainsFunc(patterns, func(p string) bool {
			return !regexp.MustCompile("(?m)" + p).MatchString(out)
		}), fmt.Sprintf("well: %v\n%s", ok, out)
	})
}

// command is one about edge/p.
func command(words ...string) []string { return append(words, "p", "-n", "edge") }

// give gives an order about edge/p.
func (f *fleet) give(words ...string) {
	f.t.Helper()
	if out, ok := f.cli("", words...); !ok {
		f.t.Fatalf("chandler %v: %s", words, out)
	}
}

// served judges answers: well, and with one of these tags.
func served(tags ...string) func(answer) error {
	return func(a answer) error {
		if got := strings.Join(appended(a), " "); a.code != http.StatusOK || !slices.Contains(tags, got) {
			return fmt.Errorf("status %d, tags %q", a.code, got)
		}
		return nil
	}
}

// dumpedTags watches what an Envoy's own dump has, until what it gives is called, which
// gives all tags that were seen.
func dumpedTags(t *testing.T, p *proxy) (stop func() []string) {
	ctx, cancel := context.WithCancel(t.Context())
	seen, envoy := map[string]bool{}, p.envoyAdmin()
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for ctx.Err() == nil {
			maps.Copy(seen, inDump(ctx, envoy))
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	})
	return func() []string { cancel(); wg.Wait(); return slices.Sorted(maps.Keys(seen)) }
}

// A good release comes to everyone, step by step. Releases that trap on requests are
// stopped at the first step and taken back by themselves within two intervals, those who
// were not chosen never are told of them (a module may stand by on their disks), and every
// command tells the story.
func TestRollout(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	one := f.push("p:v1", module.Append())
	mod := module.Append(module.WithSection("build", []byte("2")))
	two := f.push("p:v2", mod)
	f.apply(plugin("p", one, tag("one")))
	first := f.everywhere(20*time.Second, "", "one")
	others := startLoad(f.other.port, 2, 1, served("one", "two"))
	canaries := startLoad(f.canary.port, 2, 1, served("one", "two"))

	const interval = 3 * time.Second
	began := time.Now()
	f.submit(stepped(two, interval, tag("two")))
	f.await(20*time.Second, "the canaries have it", func(r *chandlerv1.Rollout) bool {
		return r.To != first && (r.Step > 0 || r.Chosen == 1+scriptedCanaries && r.Updated == r.Chosen)
	})
	got := appended(get(t, f.other.port, "/"))
	if r := f.rollout(); r != nil && r.State == string(chandler.RolloutProgressing) && r.Step == 0 && !slices.Equal(got, []string{"one"}) {
		t.Errorf("the other serves %v in the first step", got) // a busy machine may be past it
	}
	second := f.everywhere(90*time.Second, first, "two")
	if took := time.Since(began); took < 3*interval {
		t.Errorf("it went through three steps in %v", took)
	}
	harmless(t, canaries)
	f.says(true, command("events"),
		`RolloutStarted .*release `+second[:12]+` in steps canary=true, 50%, 100%, from release `+first[:12],
		`RolloutStep .*step 1 of 3 \(canary=true\): 3 of 22 proxies`, `RolloutStep .*step 2 of 3 \(50%\): 1[1-4] of 22 proxies`,
		`RolloutStep .*step 3 of 3 \(100%\): 22 of 22 proxies`, `RolloutDone .*everyone has release `+second[:12])
	f.says(true, command("rollout", "status"), `^Status: +✔ Healthy$`, `^  Updated: +22$`)
	f.says(true, command("status"), `^edge/agent-19 +InForce +yes +yes +yes +`+short(mod))

	for _, strategy := range []string{"FAIL_CLOSE", "FAIL_RELOAD"} {
		f.takesBack(strategy, second, mod)
	}
	harmless(t, others)
}

// short is how commands tell a module's digest.
func short(mod []byte) string { return chandler.Digest[chandler.ModuleDigest](mod).Hex()[:12] }

// takesBack rolls out what traps, to a fleet that has a good release, and its module.
func (f *fleet) takesBack(strategy, good string, goodModule []byte) {
	t, id := f.t, strings.ToLower(strings.ReplaceAll(strategy, "_", "-"))
	t.Helper()
	bad := module.TrapRequest(module.WithSection("build", []byte(strategy)))
	url := f.push("p:"+id, bad)
	canaries := startLoad(f.canary.port, 2, 1, func(answer) error { return nil }) // it is to suffer
	ofOther, ofCanary := dumpedTags(t, f.other.proxy), dumpedTags(t, f.canary.proxy)

	const interval = 8 * time.Second
	began := time.Now()
	f.submit(stepped(url, interval, "failStrategy: "+strategy, tag(id)))
	r := f.await(2*interval, strategy+" is taken back", func(r *chandlerv1.Rollout) bool {
		return r.State == string(chandler.RolloutDegraded) && r.To == good && len(r.History) > 0 && r.History[0].Outcome == "RolledBack" &&
			r.History[0].Resolved.GetModuleDigest() == string(chandler.Digest[chandler.ModuleDigest](bad)) && f.scriptedHave(good) == scripted
	})
	sees(t, f.canary.port, "two")
	if took := time.Since(began); took > patience(2*interval) {
		t.Errorf("%s: it was taken back after %v", strategy, took)
	} else {
		t.Logf("%s: taken back after %v: %s", strategy, took, r.Message)
	}
	canaries.end()

	release := r.History[0].Release
	if n := f.swarm.Told(edgeP)[chandler.ReleaseID(release)]; n != scriptedCanaries {
		t.Errorf("%s: %d scripted agents were told of it", strategy, n)
	}
	for _, report := range f.tap.all() {
		for _, s := range report.States {
			if string(s.Release) == release || string(s.InForce) == release {
				t.Errorf("%s: the other was told: %+v", strategy, s)
			}
		}
	}
	if st := f.tap.state("p"); string(st.InForce) != good {
		t.Errorf("%s: the other's last word is %+v", strategy, st)
	}
	if tags := ofCanary(); !slices.Contains(tags, id) {
		t.Errorf("%s: the canary's dump had %v", strategy, tags)
	}
	if tags := ofOther(); !slices.Equal(tags, []string{"two"}) {
		t.Errorf("%s: the other's dump had %v", strategy, tags)
	}
	f.tellsOfRollback(release, good, bad, goodModule)
}

// tellsOfRollback holds what commands say against what was.
func (f *fleet) tellsOfRollback(release, good string, bad, goodModule []byte) {
	f.t.Helper()
	const measured = `(server-errors: [0-9.]+% of [0-9]+ requests, the others [0-9.]+%|traps: VMs failed [0-9]+ times while serving)`
	f.says(false, []string{"status", "-n", "edge", "-o", "wide"}, `^edge +p +22/22 +`+short(goodModule)+` .*RolloutFailed .*the release was taken back: .*`+measured)
	row := ` +InForce +yes +yes +yes +` + short(goodModule) + ` `
	f.says(false, command("status"), `^edge/canary`+row, `^edge/other`+row, `^edge/agent-0`+row)
	f.says(false, command("rollout", "status"), `^Status: +✖ Degraded$`, `^Message: +GateFailed: .*`+measured, `^Release: +`+good[:12],
		`^(server-errors|traps) +Failed `, `^rejections +Holds `)
	f.says(true, command("rollout", "history"), `^`+release[:12]+` .*`+short(bad)+` .*RolledBack .*`+measured, `^`+good[:12]+` .*`+short(goodModule)+` .*InForce`)
	f.says(true, command("events"), `Warning +RolledBack +WasmPlugin edge/p .*`+measured+`.*: back to release `+good[:12])
	for _, name := range []string{"canary", "other"} {
		f.says(false, []string{"why", "p", "-n", "edge", "--node", "edge/" + name},
			`^WasmPlugin edge/p is in force \(release `+good[:12]+`\) on edge/`+name+`: .*taken back: .*`+measured+`.*the proxy has release `+good[:12])
	}
	page := "http://" + f.admin + "/dashboard/rollouts/WasmPlugin/edge/p"
	for _, pattern := range []string{`>Degraded</span>`, `<strong>GateFailed</strong> .*` + measured, `<code title="` + release + `">` + release[:12] + `</code>[^/]*</th>\n.*\n.*\n.*RolledBack`, `id="g-server-errors"`, `back to release ` + good[:12]} {
		eventually(f.t, 20*time.Second, "the dashboard tells "+pattern, func() (bool, string) {
			text := fetchText(f.t, page)
			return regexp.MustCompile(pattern).MatchString(text), text
		})
	}
}

// A control plane that is killed in the middle of each step goes on where it was.
func TestRolloutOutlivesItsControlPlane(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	url := f.push("p:v1", module.Append())
	f.apply(plugin("p", url, tag("one")))
	first := f.everywhere(20*time.Second, "", "one")
	loads := []*load{startLoad(f.canary.port, 2, 1, served("one", "two")), startLoad(f.other.port, 2, 1, served("one", "two"))}
	f.submit(stepped(url, busy()*2*time.Second, tag("two")))
	kills := 0
	for step := uint32(0); step < 3; step++ {
		before := f.await(60*time.Second, fmt.Sprintf("step %d is in force", step), func(r *chandlerv1.Rollout) bool {
			return r.To != first && (r.State == string(chandler.RolloutHealthy) || r.Step >= step && r.Chosen > 0 && r.Updated == r.Chosen)
		})
		if before.State == string(chandler.RolloutHealthy) {
			break // a busy machine came too late for the last step
		}
		step, kills = before.Step, kills+1
		f.control.kill(t)
		f.startControl()
		after := f.await(20*time.Second, "the control plane knows of the rollout", func(r *chandlerv1.Rollout) bool { return r.Proxies > 0 })
		again := after.Step == step && after.From == first && after.Since.AsTime().Equal(before.Since.AsTime())
		if after.To != before.To || after.Step <= step && !again {
			t.Errorf("killed at\n%v\nit goes on at\n%v", before, after)
		}
	}
	if kills < 2 {
		t.Errorf("it was killed %d times only", kills)
	}
	second := f.everywhere(90*time.Second, first, "two")
	for _, a := range f.swarm.Agents() {
		if told := a.Told(edgeP); !slices.Equal(told, []chandler.ReleaseID{chandler.ReleaseID(first), chandler.ReleaseID(second)}) {
			t.Errorf("%s was told %v", a.Node().Name, told)
		}
	}
	for _, l := range loads {
		harmless(t, l)
	}
	if h := f.rollout().History; len(h) != 2 || h[0].Release != second || h[0].Outcome != "InForce" || h[1].Outcome != "Superseded" {
		t.Errorf("history: %v", h)
	}
}

// An undo puts everyone back at once and holds, over a restart too, until the resource is
// changed.
func TestUndoPins(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	url := f.push("p:v1", module.Append())
	f.apply(plugin("p", url, tag("one")))
	first := f.everywhere(20*time.Second, "", "one")
	f.apply(plugin("p", url, tag("two")))
	second := f.everywhere(20*time.Second, first, "two")
	pinned := func() {
		t.Helper()
		f.await(20*time.Second, "the first is pinned everywhere", func(r *chandlerv1.Rollout) bool {
			return r.Pinned && r.To == first && r.Updated == everyone && f.scriptedHave(first) == scripted
		})
		sees(t, f.canary.port, "one")
		sees(t, f.other.port, "one")
	}
	loads := []*load{startLoad(f.canary.port, 2, 1, served("one", "two", "three")), startLoad(f.other.port, 2, 1, served("one", "two", "three"))}
	f.give(command("rollout", "undo", "--reason", "two is odd")...)
	pinned()
	f.control.kill(t)
	f.startControl()
	pinned()
	f.says(false, command("rollout", "status"), `^Status: +॥ Paused PINNED$`, `held at release `+first[:12]+` by an undo`)
	f.says(false, []string{"status", "-n", "edge"}, `^edge +p +22/22 .* Pinned$`)
	f.says(true, command("rollout", "history"), `^`+first[:12]+` .*InForce .*undo: two is odd`, `^`+second[:12]+` .*Undone .*two is odd`)
	f.says(false, []string{"why", "p", "-n", "edge", "--node", "edge/other"}, `is in force \(release `+first[:12]+`\) .*pinned .*by an undo`)

	f.apply(plugin("p", url, tag("three")))
	third := f.everywhere(20*time.Second, first, "three")
	if r := f.rollout(); r.Pinned || third == second {
		t.Errorf("after a change: %v", r)
	}
	f.says(true, command("rollout", "status"), `^Status: +✔ Healthy$`)
	for _, l := range loads {
		harmless(t, l)
	}
}

// Under load a plugin is taken out of real proxies in two seconds, and no request
// fails; it stays out when control plane, agent and resource change, until it is put back,
// everywhere or where it was said.
func TestDisable(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	url := f.push("p:v1", module.Append())
	f.apply(plugin("p", url, tag("p")) + "---\n" + plugin("q", url, tag("q"), "priority: 3"))
	f.bothServe("q p")

	const reason = "it burns, INC-7"
	f.within("q", "q p", command("disable", "--reason", reason)...)
	f.says(false, []string{"status", "-n", "edge", "-o", "wide"}, `^edge +p .* Disabled .*taken out everywhere by .*: `+reason, `^edge +q +22/22 `)
	f.says(true, command("rollout", "status"), `^Status: .* DISABLED$`, `^Disabled: +everywhere by .* ago: `+reason)
	f.says(true, command("events"), `Warning +Disabled +WasmPlugin edge/p .*taken out everywhere: `+reason)
	f.says(false, []string{"why", "p", "-n", "edge", "--node", "edge/other"}, `^WasmPlugin edge/p is not on edge/other: disabled by .*: `+reason)

	// Nobody forgets it: not an agent that starts alone, not the control plane, not by
	// another word of the resource.
	loads := []*load{startLoad(f.canary.port, 2, 1, served("q")), startLoad(f.other.port, 2, 1, served("q"))}
	f.control.kill(t)
	f.canary.kill(t)
	f.canary.restart()
	f.canary.awaitReady()
	f.startControl()
	f.await(30*time.Second, "the proxies are back", func(r *chandlerv1.Rollout) bool { return len(r.Disabled) == 1 })
	f.submit(plugin("p", url, tag("again")))
	f.await(20*time.Second, "the change is known", func(r *chandlerv1.Rollout) bool { return r.Generation == 2 && len(r.Disabled) == 1 })
	f.apply(plugin("q", url, tag("q"), "priority: 4")) // agents have heard what came before it
	f.bothServe("q")
	for _, l := range loads {
		harmless(t, l)
	}
	f.within("q again", "q", command("enable")...)

	// On one proxy only.
	loads = []*load{startLoad(f.other.port, 2, 1, served("q again"))}
	began := time.Now()
	f.give(command("disable", "--node", "edge/canary", "--reason", reason)...)
	sees(t, f.canary.port, "q")
	f.soon(began)
	f.says(false, []string{"status", "-n", "edge", "-o", "wide"}, `taken out on edge/canary by .*: `+reason)
	f.give(command("enable", "--node", "edge/canary")...)
	f.bothServe("q again")
	harmless(t, loads[0])
	f.says(true, []string{"status", "-n", "edge"}, `^edge +p +22/22 .*Programmed$`)
}

// bothServe waits until both Envoys' requests get these tags, which stand with spaces
// between.
func (f *fleet) bothServe(tags string) {
	f.t.Helper()
	sees(f.t, f.canary.port, strings.Fields(tags)...)
	sees(f.t, f.other.port, strings.Fields(tags)...)
}

// within gives an order under load, after which at once requests get other tags
// and none fails.
func (f *fleet) within(tags, before string, order ...string) {
	f.t.Helper()
	loads := []*load{startLoad(f.canary.port, 2, 1, served(before, tags)), startLoad(f.other.port, 2, 1, served(before, tags))}
	for _, l := range loads {
		eventually(f.t, 20*time.Second, "the load runs", func() (bool, string) {
			n := l.answers.Load()
			return n >= 100, fmt.Sprintf("%d requests", n)
		})
	}
	began := time.Now()
	f.give(order...)
	f.bothServe(tags)
	f.soon(began)
	for _, l := range loads {
		harmless(f.t, l)
	}
}

// soon tells when something took longer than such an order may.
func (f *fleet) soon(began time.Time) {
	f.t.Helper()
	if took := time.Since(began); took > patience(atOnce) {
		f.t.Errorf("it took %v", took)
	}
}

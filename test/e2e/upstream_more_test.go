//go:build upstream

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxy "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/upstream"
)

// Also where the agent is called envoy, and where somebody else starts Envoy, it stands in
// the stream; each of the two begins anew as it likes, and with the control plane away.
func TestUpstreamWays(t *testing.T) {
	t.Parallel()
	t.Run("called envoy", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		u := w.under(upstream.Variant{Delta: true})
		dir := t.TempDir()
		config := withoutLine(u.Bootstrap("", ""), "node:", "admin:")
		pa := w.startAsEnvoy(t, dir, config)
		adminAt(t, pa.address)
		walk(t, w, u.port, "the moon is wrong")
		w.apply(plugin("p", w.push("append:v1", module.Append()), tag("one")))
		sees(t, u.port, "one")
		keptBy(t, filepath.Join(dir, "data"), "c")
		u.Stop()
		_ = pa.cmd.Process.Kill() // and Envoy with it
		<-pa.done
		free(t, u.port, 10*time.Second)
		w.startAsEnvoy(t, dir, config)
		opens(t, u.port, "one")
		u.Start()
		u.set()
		u.marked()
	})
	t.Run("separate", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		u := w.under(upstream.Variant{})
		ap := standApart(t, w, withoutLine(u.Bootstrap("somebody", ""), "admin:"))
		ap.writeBootstrap()
		ap.startEnvoy()
		ap.startAgent()
		ap.awaitReady()
		walk(t, w, u.port, "why is in Envoy's own log, which this agent does not read")
		w.apply(plugin("p", w.push("append:v1", module.Append()), tag("one")))
		sees(t, u.port, "one")
		l := startLoad(u.port, 2, 1, matching("one|two"))
		ap.kill(ap.agent)
		w.submit(plugin("p", w.push("append:v1", module.Append()), tag("two")))
		ap.startAgent()
		sees(t, u.port, "two")
		w.apply(plugin("p", w.push("append:v1", module.Append()), tag("two"))) // the agent knows it, too
		u.set()
		u.marked()
		unharmed(t, l)
		keptBy(t, ap.data, "c")
		u.Stop()
		ap.kill(ap.agent)
		ap.kill(ap.envoy)
		ap.startEnvoy()
		ap.startAgent()
		opens(t, u.port, "two")
		ap.awaitReady()
		u.Start()
		u.set()
		u.marked()
	})
}

// withoutLine takes lines out that begin so.
func withoutLine(text string, begins ...string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		out := false
		for _, begin := range begins {
			out = out || strings.HasPrefix(line, begin)
		}
		if !out {
			b.WriteString(line)
		}
	}
	return b.String()
}

// A plugin with a slot in the listeners themselves: those of the control plane do not open
// before it, drain for it as those of a file do, and not for an agent that begins anew.
func TestUpstreamNetwork(t *testing.T) {
	t.Parallel()
	for _, v := range []upstream.Variant{{}, {Delta: true, Separate: true}} {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			u := w.under(v)
			port, second, echo := freePort(t), freePort(t), echoServer(t)
			b := u.agent(node{name: "a", flags: []string{"--restart", "on-failure"}})
			url := w.push("prefix", module.Prefix())
			match := fmt.Sprintf("match: [{ports: [{number: %d}, {number: %d}]}]", port, second)
			w.submit(networkPlugin("prefix", url, "1", match))
			w.tells("prefix", "NoListener")
			u.set(u.tcp(t, "tcp", port, echo))
			opensTCP(t, port, prefix("1")+"hello")
			open, err := dialTCP(port, "")
			if err != nil {
				t.Fatal(err)
			}
			defer open.Close()
			say(open, "hello")
			keptBy(t, filepath.Join(b.dir, "data"), "echo")
			envoy, modified := b.envoy(t), b.modified(t)
			b.kill(t)
			b.restart()
			b.awaitReady()
			if b.envoy(t) != envoy {
				t.Error("Envoy was not taken over")
			}
			if got := said(t, port, ""); got != prefix("1")+"hello" {
				t.Errorf("behind another agent a connection says %q", got)
			}
			w.apply(networkPlugin("prefix", url, "2", match))
			if n := b.modified(t); n != modified {
				t.Errorf("for another agent %d listeners were changed", n-modified)
			}
			if got := said(t, port, ""); got != prefix("2")+"hello" {
				t.Errorf("after an update a connection says %q", got)
			}
			u.set(u.tcp(t, "tcp", port, echo), u.tcp(t, "second", second, echo))
			opensTCP(t, second, prefix("2")+"hello")
			if got := say(open, "again"); !strings.HasSuffix(got, "again") {
				t.Errorf("a connection from before was closed; it says %q", got)
			}
			// Envoy ends, and the next one is served by the same agent alone.
			u.marked()
			u.Stop()
			if err := syscall.Kill(envoy, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			stopped(t, envoy)
			for _, p := range []int{port, second} {
				opensTCP(t, p, prefix("2")+"hello")
			}
			b.awaitReady()
			b.arrives(t)
		})
	}
}

// tcp is a listener that proxies connections to an echo.
func (u *ownPlane) tcp(t *testing.T, name string, port, echo int) upstream.Resources {
	t.Helper()
	proxy, err := anypb.New(&tcpproxy.TcpProxy{StatPrefix: "tcp", ClusterSpecifier: &tcpproxy.TcpProxy_Cluster{Cluster: "echo"}})
	if err != nil {
		t.Fatal(err)
	}
	l := u.variant.Listener(name, loopback(port), "r")
	l.FilterChains = []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{Name: "tcp", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: proxy}}}}}
	if name != "tcp" {
		return upstream.Resources{l}
	}
	return upstream.Resources{l, u.variant.Cluster("echo"), upstream.Backend("echo", loopback(echo))}
}

// modified is how often Envoy has changed a listener.
func (b *beneath) modified(t *testing.T) (n int) {
	t.Helper()
	text := string(b.ask(t, "/stats?filter=listener_manager.listener_modified"))
	if _, err := fmt.Sscanf(text, "listener_manager.listener_modified: %d", &n); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return n
}

// opensTCP waits until connections say that; no listener opens without its plugin.
func opensTCP(t *testing.T, port int, want string) {
	t.Helper()
	eventually(t, 20*time.Second, "the listener opens", func() (bool, string) {
		conn, err := dialTCP(port, "")
		if err != nil {
			return false, err.Error()
		}
		defer conn.Close()
		got := say(conn, "hello")
		if got != want && got != "" { // closed is denied
			t.Errorf("it opens with %q", got)
		}
		return got == want, got
	})
}

// A thousand listeners with routes and clusters of their own, of which some change all the
// time, while a plugin comes, changes and goes: no request is refused, on no listener, no
// connection of a listener that stays is closed, and in the end Envoy has what there is.
func TestUpstreamChanges(t *testing.T) {
	for _, v := range upstream.Variants { // one after the other: each takes much of a machine
		t.Run(v.String(), func(t *testing.T) { changes(t, v) })
	}
}

// How many listeners there are, how many stay, and how many are changed at once.
const sites, staying, changed = 1000, 10, 50

func changes(t *testing.T, v upstream.Variant) {
	began := time.Now()
	w := newWorld(t)
	u := w.under(v)
	dir := t.TempDir()
	site := upstream.NewSite(v, sites, dir, strings.TrimPrefix(w.upstream.URL, "http://"), 1)
	site.Stay(staying)
	u.set(site.Resources())
	b := u.agent(node{name: "a"})
	u.marked()
	t.Logf("%d listeners serve after %v", sites, time.Since(began).Round(time.Second))
	loads := []*load{startLoad(u.port, 2, 1, matching("|one|two"))}
	for i := range staying {
		loads = append(loads, startLoadAt(dialing("unix", site.Socket(i)), 1, 0, matching("|one|two")))
	}
	url := w.push("append:v1", module.Append())
	change := func(want ...string) {
		t.Helper()
		site.Change(changed)
		u.set(site.Resources())
		sees(t, u.port, want...)
		u.marked()
	}
	rounds := 2 // in which the plugin comes and goes
	if v.Separate {
		rounds = 1 // every cluster and route has a stream of its own, which takes its time
	}
	for range rounds {
		for _, name := range []string{"one", "two"} {
			w.submit(plugin("p", url, tag(name)))
			change(name)
		}
		if out, ok := w.cli("", "delete", "wasmplugin", "p", "-n", "edge"); !ok {
			t.Fatal(out)
		}
		change()
	}
	w.apply(plugin("p", url, tag("one")))
	sees(t, u.port, "one")
	for _, l := range loads {
		unharmed(t, l)
	}
	b.arrives(t)
	for i := 0; i < sites; i += 100 {
		if a := via(t, site.Socket(i)); a.headers.Get("x-mark") != site.Mark(i) || !slices.Equal(appended(a), []string{"one"}) {
			t.Errorf("through listener %d: mark %q, tags %v", i, a.headers.Get("x-mark"), appended(a))
		}
	}
	t.Logf("all of it took %v", time.Since(began).Round(time.Second))
}

// An Envoy that takes no listener with slots in it, as it is older than the bootstrap was
// written for: traffic goes on as without an agent, and the plugin says that it is passed by.
func TestUpstreamRefusesSlots(t *testing.T) {
	t.Parallel()
	oldest := filepath.Join("..", "..", ".tools", "envoy-oldest")
	if _, err := os.Stat(oldest); err != nil {
		t.Fatal("make e2e-upstream brings the older Envoy that this needs")
	}
	for _, v := range []upstream.Variant{{}, {Delta: true}} {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			u := w.under(v)
			ap := standApart(t, w, withoutLine(u.Bootstrap("somebody", ""), "admin:"))
			ap.writeBootstrap()
			if ap.binary = oldest; ap.envoyUser != nil {
				ap.binary = reachable(t, ap.dir, oldest)
			}
			if path, err := filepath.Abs(ap.binary); err == nil {
				ap.binary = path
			}
			ap.startEnvoy()
			eventually(t, 20*time.Second, "Envoy is there", func() (bool, string) {
				log, err := os.ReadFile(ap.envoy.log)
				return strings.Contains(string(log), "starting main dispatch loop"), fmt.Sprint(err)
			})
			ap.startAgent()
			u.marked()
			w.submit(plugin("p", w.push("append:v1", module.Append()), tag("one")))
			w.tells("p", "runs without plugins, as Envoy refuses it with them")
			sees(t, u.port)
			u.set()
			u.marked()
			if why := u.Nacked(upstream.Listeners, "1"); why != "" {
				t.Errorf("the control plane hears %q of slots, which are not its own", why)
			}
			l := startLoad(u.port, 2, 1, matching(""))
			u.set(u.tcp(t, "tcp", freePort(t), echoServer(t)))
			u.marked()
			unharmed(t, l)
		})
	}
}

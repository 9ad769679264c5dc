package e2e

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
)

// guarded is a configuration by which the sample plugin guards one path, so that others
// are answered as without it. n tells configurations apart.
func guarded(n int) string {
	return fmt.Sprintf(`{"basic_auth_rules":[{"credentials":["ok:test"],"prefix":"/guarded","request_methods":["GET"]}],"realm":"r%d"}`, n)
}

// BenchmarkHarm attaches the sample plugin under load (eight kept connections and two
// clients that connect anew for each request), changes its configuration and its module
// and detaches it. Reported are the requests in all, those that failed, and the kept
// connections that the proxy ended.
func BenchmarkHarm(b *testing.B) {
	w, admin, port := loaded(b)
	mod := sample(b)
	urls := []string{w.push("basic:v1", mod), w.push("basic:v2", numbered(mod, 2))}
	l := startLoad(port, 8, 2, func(a answer) error {
		if a.code != http.StatusOK {
			return fmt.Errorf("status %d", a.code)
		}
		return nil
	})
	ask := func(what string, holds func(answer) bool) {
		eventually(b, time.Minute, what, func() (bool, string) {
			a, err := request(fresh, http.MethodGet, port, "/guarded", nil)
			return err == nil && holds(a), fmt.Sprint(a.code, err)
		})
	}
	n := 0
	change := func(url string) {
		n++
		apply(b, admin, plugin("p", url, "pluginConfig: "+guarded(n)))
		ask("the change", func(a answer) bool { return showsRealm(a, n) })
	}
	for b.Loop() {
		change(urls[0]) // attach
		change(urls[0]) // another configuration
		change(urls[1]) // another module
		if out, ok := w.cli("", "delete", "wasmplugin", "p", "-n", "edge"); !ok {
			b.Fatal(out)
		}
		ask("the detach", func(a answer) bool { return a.code == http.StatusOK })
	}
	l.report(b)
}

// BenchmarkWrongTag edits the url of a plugin that guards everything, under load, to a
// tag that does not exist, and waits two seconds more than the control plane needs to
// find out. Wrong is every answer that is not the plugin's.
func BenchmarkWrongTag(b *testing.B) {
	w, admin, port := loaded(b)
	url := w.push("basic:v1", sample(b))
	w.apply(plugin("p", url, "pluginConfig: "+realmConfig(0)))
	awaitRealm(b, fresh, port, 0)
	l := startLoad(port, 8, 2, func(a answer) error {
		if !showsRealm(a, 0) {
			return fmt.Errorf("status %d without the plugin's realm", a.code)
		}
		return nil
	})
	for b.Loop() {
		before := w.registry.Counts().ManifestHead + w.registry.Counts().ManifestGet
		apply(b, admin, plugin("p", url+"-which-is-not-there", "pluginConfig: "+realmConfig(1)))
		eventually(b, time.Minute, "the tag is asked for", func() (bool, string) {
			return w.registry.Counts().ManifestHead+w.registry.Counts().ManifestGet > before, "it is not"
		})
		time.Sleep(2 * time.Second) // the time in which harm would show
		apply(b, admin, plugin("p", url, "pluginConfig: "+realmConfig(0)))
	}
	l.report(b)
}

// report ends a load and says what it met.
func (l *load) report(b *testing.B) {
	b.Helper()
	l.end()
	if l.answers.Load() < 500 {
		b.Errorf("only %d requests: the load noticed little", l.answers.Load())
	}
	for _, why := range l.wrong {
		b.Log(why)
	}
	b.ReportMetric(float64(l.answers.Load()), "requests")
	b.ReportMetric(float64(l.failed.Load()), "failed")
	b.ReportMetric(float64(l.closed.Load()), "closed")
}

// loaded is a world with one gateway, which a load can be put on.
func loaded(b *testing.B) (w *world, admin chandlerv1connect.AdminClient, port int) {
	w, port = newWorld(b), freePort(b)
	w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	return w, w.client(), port
}

package e2e

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"slices"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/registry"
	"chandler.dev/chandler/internal/testenv/swarm"
)

// downTime is how long the registry is gone: longer than the longest pause between two
// tries, so that what is measured is that pause, and not the first ones.
const downTime = 7 * time.Second

// BenchmarkRegistryReturns times from the moment in which a registry answers again,
// after the first fetch of a plugin's module and others after it have failed, until the
// plugin decides requests. The median and the worst are reported.
func BenchmarkRegistryReturns(b *testing.B) {
	w, admin, port := loaded(b)
	var took []time.Duration
	for i := 1; b.Loop(); i++ {
		url, before := w.push(fmt.Sprintf("deny:v%d", i), module.Deny(400+i)), asked(w.registry)
		w.registry.Fail(func(*http.Request) (int, bool) { return 0, true })
		apply(b, admin, plugin("p", url))
		eventually(b, time.Minute, "a fetch fails", func() (bool, string) { return asked(w.registry) > before, "none was tried" })
		time.Sleep(downTime)
		if a := get(b, port, "/"); a.code != http.StatusOK && a.code != http.StatusForbidden && a.code != http.StatusServiceUnavailable {
			b.Fatalf("status %d before the module can be there", a.code)
		}
		w.registry.Fail(nil)
		begin := time.Now()
		awaitAnswer(b, fresh, port, "the plugin", func(a answer) bool { return a.code == 400+i })
		took = append(took, time.Since(begin))
		if out, ok := w.cli("", "delete", "wasmplugin", "p", "-n", "edge"); !ok {
			b.Fatal(out)
		}
		awaitAnswer(b, fresh, port, "the end of the plugin", func(a answer) bool { return a.code == http.StatusOK })
	}
	b.ReportMetric(median(took), "median-ms")
	b.ReportMetric(inMilliseconds(slices.Max(took)), "worst-ms")
}

// asked is how many requests a registry had, of those that fetch.
func asked(r *registry.Registry) int {
	c := r.Counts()
	return c.ManifestHead + c.ManifestGet + c.BlobGet + c.Token + c.Other
}

// BenchmarkRegistryRequests counts what a registry is asked until the sample plugin is
// in force on 1, 10 and 100 agents, each of which has the module brought to it.
func BenchmarkRegistryRequests(b *testing.B) {
	for _, agents := range []int{1, 10, 100} {
		b.Run(fmt.Sprint("agents=", agents), func(b *testing.B) { registryRequests(b, agents) })
	}
}

func registryRequests(b *testing.B, agents int) {
	w, mod := newWorld(b), sample(b)
	admin := w.client()
	fleet := swarm.New(swarm.Config{Target: w.listen, Agents: agents, Fetch: true, Node: func(i int) chandler.Node {
		return chandler.Node{Namespace: "edge", Name: fmt.Sprint("agent-", i)}
	}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- fleet.Run(ctx) }()
	b.Cleanup(func() { cancel(); <-done })
	eventually(b, time.Minute, "connected", func() (bool, string) { return fleet.Connected() == agents, fmt.Sprint(fleet.Connected()) })
	key := chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "edge", Name: "p"}
	var asks int
	var sent int64
	for n := 1; b.Loop(); n++ {
		url := w.push(fmt.Sprint("basic:v", n), numbered(mod, n))
		old := fleet.InForce(key)
		before, beforeBytes := asked(w.registry), w.registry.Counts().BlobBytes
		apply(b, admin, plugin("p", url))
		eventually(b, time.Minute, "in force everywhere", func() (bool, string) {
			in := fleet.InForce(key)
			for release, on := range in {
				if release != "" && old[release] == 0 && on == agents {
					return true, ""
				}
			}
			return false, fmt.Sprint(in)
		})
		asks, sent = max(asks, asked(w.registry)-before), max(sent, w.registry.Counts().BlobBytes-beforeBytes)
	}
	b.ReportMetric(float64(asks), "requests")
	b.ReportMetric(downloads(sent, mod), "downloads")
	b.ReportMetric(float64(sent)/1e6, "MB")
}

// downloads is how often a module was sent, of so many bytes. (Requests for blobs say
// less: artifacts have small ones beside the module.)
func downloads(sent int64, mod []byte) float64 {
	return math.Round(100*float64(sent)/float64(len(mod))) / 100
}

// BenchmarkTenPlugins times from the application of ten plugins with one url, whose
// module nobody has, until a request is decided by all of them, and counts the
// downloads.
func BenchmarkTenPlugins(b *testing.B) {
	w, admin, port := loaded(b)
	const plugins = 10
	var took []time.Duration
	var sent int64
	var mod []byte
	for i := 0; b.Loop(); i++ {
		mod = module.Append(module.WithSection("build", fmt.Appendf(make([]byte, 64<<10), "%09d", i)))
		url, before := w.push(fmt.Sprint("append:v", i), mod), w.registry.Counts().BlobBytes
		manifest, want := "", []string{}
		for p := range plugins {
			want = append(want, fmt.Sprintf("%d-%d", i, p))
			manifest += plugin(fmt.Sprint("p", p), url, fmt.Sprint("priority: ", plugins-p), tag(want[p])) + "---\n"
		}
		begin := time.Now()
		apply(b, admin, manifest)
		awaitAnswer(b, fresh, port, "all ten", func(a answer) bool { return slices.Equal(appended(a), want) })
		took = append(took, time.Since(begin))
		sent = max(sent, w.registry.Counts().BlobBytes-before)
	}
	b.ReportMetric(median(took), "median-ms")
	b.ReportMetric(downloads(sent, mod), "downloads")
}

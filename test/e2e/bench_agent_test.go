package e2e

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// BenchmarkAgentMemory reads what the kernel says of an agent's resident memory: with
// one plugin in force and nothing to do, and at most while a module of 64 MB is brought
// and put in force.
func BenchmarkAgentMemory(b *testing.B) {
	w := newWorld(b)
	port := freePort(b)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("p", w.push("append:v1", module.Append()), tag("small")))
	url := w.push("append:large", padded(63<<20))
	var idle, pulling float64
	for b.Loop() {
		time.Sleep(5 * time.Second) // what the start left behind is given back by then
		idle = max(idle, resident(b, p, "VmRSS"))
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", p.cmd.Process.Pid), []byte("5"), 0); err != nil {
			b.Fatal(err)
		}
		w.apply(plugin("p", url, tag("large")))
		pulling = max(pulling, resident(b, p, "VmHWM"))
		w.apply(plugin("p", w.push("append:v1", module.Append()), tag("small")))
	}
	b.ReportMetric(idle, "idle-MB")
	b.ReportMetric(pulling, "pulling-MB")
}

// padded is a module with so many bytes of data more, which do not compress.
func padded(size int) []byte {
	const page = 64 << 10
	padding := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{}).Read(padding)
	return module.Append(func(m *module.Module) {
		m.Strings = append(m.Strings, module.String{At: int32(m.Pages) * page, Text: string(padding)})
		m.Pages += uint32(size/page + 1)
	})
}

// resident reads a line of /proc/PID/status.
func resident(b *testing.B, p *proxy, line string) float64 {
	b.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		b.Fatal(err)
	}
	for l := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(l, line+":"); ok {
			kib, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 64)
			if err != nil {
				b.Fatal(err)
			}
			return kib * 1024 / 1e6
		}
	}
	b.Fatalf("no %s in %s", line, status)
	return 0
}

// BenchmarkManagers times a change of one plugin's configuration until requests through
// every connection manager of an Envoy are decided by it: with 1, 10 and 40 of them, and
// with 1 and 10 plugins in their slot.
func BenchmarkManagers(b *testing.B) {
	for _, managers := range []int{1, 10, 40} {
		for _, plugins := range []int{1, 10} {
			b.Run(fmt.Sprintf("managers=%d/plugins=%d", managers, plugins), func(b *testing.B) { changeManagers(b, managers, plugins) })
		}
	}
}

func changeManagers(b *testing.B, managers, plugins int) {
	w := newWorld(b)
	var listeners []listener
	for i := range managers {
		listeners = append(listeners, listener{port: freePort(b), name: fmt.Sprint("in-", i)})
	}
	w.agent(node{name: "a"}, w.gateway(listeners...))
	url, admin := w.push("append:v1", module.Append()), w.client()
	for p := 1; p < plugins; p++ {
		w.apply(plugin(fmt.Sprint("p", p), url, tag(fmt.Sprint("p", p))))
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 1}
	b.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	var took []time.Duration
	change := func(i int) {
		want := fmt.Sprint("v", i)
		begin := time.Now()
		apply(b, admin, plugin("p0", url, "priority: 100", tag(want)))
		for _, l := range listeners {
			awaitAnswer(b, client, l.port, want, func(a answer) bool {
				tags := appended(a)
				return len(tags) == plugins && tags[0] == want
			})
		}
		took = append(took, time.Since(begin))
	}
	change(0)
	change(1)
	took = nil
	for i := 2; b.Loop(); i++ {
		change(i)
	}
	b.ReportMetric(median(took), "change-ms")
}

package swarm_test

import (
	"runtime"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/swarm"
)

// BenchmarkAgents measures what a thousand agents take until a change is in force on all
// of them, and the memory of both sides for each.
func BenchmarkAgents(b *testing.B) {
	const agents = 1000
	p := newPlane(b)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	fleet := swarm.New(swarm.Config{Target: p.target, Agents: agents, Rate: 10, History: time.Hour})
	began := time.Now()
	run(b, fleet.Run)
	p.apply(0)
	eventually(b, "in force", func() bool { return p.status().InForce == agents })
	connected := time.Since(began)
	runtime.GC()
	runtime.ReadMemStats(&after)
	n := 0
	for b.Loop() {
		n++
		p.apply(n)
		eventually(b, "in force", func() bool { return p.status().InForce == agents })
	}
	b.ReportMetric(float64(connected.Milliseconds()), "ms-to-connect")
	b.ReportMetric(float64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse)/agents/1024, "KiB-each-both-sides")
}

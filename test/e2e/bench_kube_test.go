//go:build kube

package e2e

import (
	"testing"
	"time"
)

// BenchmarkKubeConfigChange times a change of a plugin's configuration from the
// moment in which the user's command has ended until the next request is decided by
// it: kubectl apply with a real API server and, in turn, chandler apply without. The
// medians of both are reported, and their difference, which is what Kubernetes adds.
func BenchmarkKubeConfigChange(b *testing.B) {
	mod := sample(b)
	subject := func(w *world, apply func(string)) *subject {
		port := freePort(b)
		w.agent(node{name: "gw"}, w.gateway(listener{port: port, name: "in"}))
		url := w.push("basic:v1", mod)
		return newSubject(b, port, func(i int) { apply(plugin("p", url, "pluginConfig: "+realmConfig(i))) })
	}
	c := newCluster(b)
	alone := newWorld(b)
	without, with := subject(alone, alone.submit), subject(kubeWorld(b, c), c.apply)
	without.follow(b, 0)
	with.follow(b, 0)
	for i := 1; b.Loop(); i++ {
		without.follow(b, i)
		with.follow(b, i)
	}
	b.ReportMetric(without.median(), "alone-ms")
	b.ReportMetric(with.median(), "kube-ms")
	b.ReportMetric(with.median()-without.median(), "added-ms")
}

// follow is change, timed from the end of the command.
func (s *subject) follow(b *testing.B, i int) {
	s.apply(i)
	begin := time.Now()
	awaitRealm(b, s.client, s.port, i)
	if i > 0 {
		s.took = append(s.took, time.Since(begin))
	}
}

package e2e

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

// The agent is killed somewhere between an edit and its ACK, again and again, and
// the next one takes Envoy over: requests see versions in their order, and the
// last one stays.
func TestFault_F4_AgentKilledInAnUpdate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a"}, w.gateway(listener{port: port, name: "in"}))
	urls := []string{w.push("append:v0", build(0)), w.push("append:v1", build(1))}
	edit := func(n int) {
		t.Helper()
		w.edit("p", plugin("p", urls[n/2%2], tag(fmt.Sprintf("n%d", n))))
	}
	edit(0)
	sees(t, port, "n0")
	o := watchOrder(port)
	random := rand.New(rand.NewPCG(3, 4))
	const rounds = 8
	for n := 1; n <= rounds; n++ {
		edit(n)
		<-time.After(time.Duration(random.IntN(100)) * time.Millisecond) // somewhere in the update
		p.kill(t)
		p.restart()
		p.awaitReady()
	}
	heals(t, port, fmt.Sprintf("n%d", rounds))
	o.check(t)
}

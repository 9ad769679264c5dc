package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
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

// A bit of a stored module flips, and then its file is deleted, while its plugin
// runs: the scrub finds both, the module is fetched again, and traffic notices
// nothing.
func TestFault_F17_F18_ScrubWhileItRuns(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	port := freePort(t)
	p := w.agent(node{name: "a", flags: []string{"--scrub", "100ms"}}, w.gateway(listener{port: port, name: "in"}))
	w.apply(plugin("p", w.push("append:v1", module.Append()), tag("n0")))
	o := watchOrder(port)
	whole := wholeModules(t, p.modules())
	if len(whole) != 1 {
		t.Fatalf("stored: %v", whole)
	}
	was, err := os.ReadFile(whole[0])
	if err != nil {
		t.Fatal(err)
	}
	again := func() {
		t.Helper()
		eventually(t, 20*time.Second, "the module is there again", func() (bool, string) {
			now, err := os.ReadFile(whole[0])
			return err == nil && bytes.Equal(now, was), fmt.Sprintf("%d bytes, %v", len(now), err)
		})
	}
	b := bytes.Clone(was)
	b[len(b)/2] ^= 1
	f, err := os.OpenFile(whole[0], os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	again()
	if err := os.Remove(whole[0]); err != nil {
		t.Fatal(err)
	}
	again()
	o.check(t)
	has(t, port, "n0")
}

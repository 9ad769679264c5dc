package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// How an Envoy is pressed: so many clients, each of which asks again when it has its
// answer, and how long; and then one by itself, for the latency without a queue.
const (
	pressing = 16
	pressFor = 1500 * time.Millisecond
	aloneFor = time.Second
)

// BenchmarkTraffic is what slots and plugins cost requests, of an Envoy with one worker
// that answers them itself: as it is ("plain"), under an agent and without a plugin
// ("empty"), with the sample plugin in a slot ("slot") and, without an agent, in its
// listener ("listener"). The plugin, a Go module, looks at every request and lets it
// pass. The four take turns, each time another one first; the medians of the rounds are
// reported.
func BenchmarkTraffic(b *testing.B) {
	mod := sample(b)
	static, inListener := staticPlugin(b, mod, guarded(0))
	runEnvoy(b, static)
	plain := freePort(b)
	file := filepath.Join(b.TempDir(), "envoy.yaml")
	if err := os.WriteFile(file, []byte(directGateway(plain)), 0o600); err != nil {
		b.Fatal(err)
	}
	runEnvoy(b, file)
	w, empty, slot := newWorld(b), freePort(b), freePort(b)
	w.agent(node{name: "empty"}, directGateway(empty))
	w.agent(node{name: "slot", labels: []string{"has=plugin"}}, directGateway(slot))
	w.apply(plugin("p", w.push("basic:v1", mod), "selector: {matchLabels: {has: plugin}}", "pluginConfig: "+guarded(0)))

	contenders := []*contender{{name: "plain", port: plain}, {name: "empty", port: empty}, {name: "slot", port: slot}, {name: "listener", port: inListener}}
	for _, l := range contenders {
		eventually(b, time.Minute, l.name+" answers", func() (bool, string) {
			a, err := request(fresh, "GET", l.port, "/", nil)
			return err == nil && a.code == 200, fmt.Sprint(a.code, err)
		})
		press(b, l.port, pressing, 500*time.Millisecond) // warm
	}
	for i := 0; b.Loop(); i++ {
		for turn := range contenders {
			contenders[(turn+i)%len(contenders)].round(b)
		}
	}
	for _, l := range contenders {
		b.ReportMetric(middle(l.rates), l.name+"-rps")
		b.ReportMetric(middle(l.p50), l.name+"-p50-us")
		b.ReportMetric(middle(l.p99), l.name+"-p99-us")
	}
}

// runEnvoy runs an Envoy with a file until the end of the test.
func runEnvoy(b *testing.B, file string) {
	b.Helper()
	cmd := exec.Command(envoyBinary(b), "-c", file, "--use-dynamic-base-id", "--concurrency", "1", "-l", "off")
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
}

// contender is an Envoy and what it did in each round.
type contender struct {
	name            string
	port            int
	rates, p50, p99 []float64 // a second; microseconds
}

func (l *contender) round(b *testing.B) {
	b.Helper()
	l.rates = append(l.rates, float64(len(press(b, l.port, pressing, pressFor)))/pressFor.Seconds())
	took := press(b, l.port, 1, aloneFor)
	slices.Sort(took)
	l.p50 = append(l.p50, float64(took[len(took)/2].Nanoseconds())/1e3)
	l.p99 = append(l.p99, float64(took[len(took)*99/100].Nanoseconds())/1e3)
}

// press asks for a while and gives how long each answer took.
func press(b *testing.B, port, clients int, during time.Duration) []time.Duration {
	b.Helper()
	var mu sync.Mutex
	var all []time.Duration
	var wg sync.WaitGroup
	end := time.Now().Add(during)
	for range clients {
		wg.Go(func() {
			took, err := pressAlone(port, end)
			mu.Lock()
			defer mu.Unlock()
			all = append(all, took...)
			if err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	if len(all) == 0 {
		b.Fatal("there was no answer")
	}
	return all
}

// pressAlone is one client on one connection. It knows that answers have no body, and
// so takes less of the machine than Go's own client does.
func pressAlone(port int, end time.Time) ([]time.Duration, error) {
	conn, err := net.Dial("tcp", loopback(port))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(end.Add(10 * time.Second)); err != nil {
		return nil, err
	}
	var took []time.Duration
	request, answer := []byte("GET / HTTP/1.1\r\nHost: bench\r\n\r\n"), make([]byte, 8<<10)
	for begin := time.Now(); begin.Before(end); {
		if _, err := conn.Write(request); err != nil {
			return took, err
		}
		n := 0
		for !bytes.HasSuffix(answer[:n], []byte("\r\n\r\n")) {
			more, err := conn.Read(answer[n:])
			if err != nil {
				return took, err
			}
			n += more
		}
		if !bytes.HasPrefix(answer, []byte("HTTP/1.1 200 ")) {
			return took, fmt.Errorf("an answer begins with %q", answer[:min(n, 40)])
		}
		now := time.Now()
		took = append(took, now.Sub(begin))
		begin = now
	}
	return took, nil
}

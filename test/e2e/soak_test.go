package e2e

import (
	"bytes"
	"encoding/base64"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

var (
	soakFor  = flag.Duration("soak", 20*time.Second, "how long TestFault_F77 injects faults")
	soakSeed = flag.Uint64("soak-seed", 0, "which faults, in which order; 0: others each time")
)

// Two proxies under load while everything around them fails at random: no request
// but those of a killed Envoy fails, none goes past a plugin, no version gives way
// to an older one, and after every cure all proxies have the newest. Memory, open
// files, goroutines and disk are as they were at the beginning.
func TestFault_F77_RandomFaults(t *testing.T) {
	seed := *soakSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("seed %d", seed)
	s := newSoak(t, rand.New(rand.NewPCG(seed, 0)))
	s.settle()
	begin, faults := time.Now(), 0
	for time.Since(begin) < *soakFor && !t.Failed() {
		for range 1 + s.dice.IntN(4) {
			s.fault()
			faults++
			s.wait(500)
		}
		s.cure()
		s.settle()
		s.measure()
	}
	requests := s.end()
	t.Logf("%d faults, %d versions, %d requests in %s", faults, s.version, requests, time.Since(begin).Round(time.Second))
	s.flat()
}

// soak is the world that faults happen to.
type soak struct {
	*testing.T
	w       *world
	dice    *rand.Rand
	gate    *gate
	url     string
	version int // the newest that was written
	proxies []*soaked
	samples map[string][]float64
	paused  *soaked
	away    bool // the control plane
}

// soaked is a proxy under load.
type soaked struct {
	*proxy
	port int
	// down counts up when Envoy is killed and when it serves again, so it is odd in
	// between.
	down     atomic.Int64
	requests atomic.Int64
	stop     chan struct{}
	done     sync.WaitGroup
	mu       sync.Mutex
	newest   int
	kept     int // the newest that is surely on disk
	wrong    []string
}

func newSoak(t *testing.T, dice *rand.Rand) *soak {
	s := &soak{T: t, w: newWorld(t), dice: dice, samples: map[string][]float64{}}
	s.gate = s.w.gate()
	s.url = s.gate.url(s.w, s.w.push("append:v1", module.Append()))
	s.w.edit("guard", plugin("guard", s.url, tag("guard"), "phase: AUTHN"))
	s.edit(s.url)
	for _, name := range []string{"a", "b"} {
		port := freePort(t)
		p := &soaked{proxy: s.w.agent(node{name: name}, s.w.gateway(listener{port: port, name: "in"})), port: port, stop: make(chan struct{})}
		s.proxies = append(s.proxies, p)
	}
	s.settle()
	for _, p := range s.proxies {
		p.done.Go(p.load)
	}
	return s
}

// edit writes the next version of the plugin.
func (s *soak) edit(url string) {
	s.version++
	s.w.edit("p", plugin("p", url, tag("n"+strconv.Itoa(s.version))))
}

func (s *soak) wait(most int) {
	<-time.After(time.Duration(s.dice.IntN(most)) * time.Millisecond)
}

// load asks for as long as the test runs, 25 times a second.
func (p *soaked) load() {
	transport := &http.Transport{MaxIdleConnsPerHost: 1}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: time.Minute}
	tick := time.NewTicker(40 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
		down := p.down.Load()
		a, err := request(client, http.MethodGet, p.port, "/", nil)
		p.requests.Add(1)
		if down%2 == 1 || p.down.Load() != down {
			continue // Envoy was killed
		}
		if err == nil {
			err = p.judge(a)
		}
		if err != nil {
			p.mu.Lock()
			if len(p.wrong) < 10 {
				p.wrong = append(p.wrong, time.Now().Format(time.TimeOnly)+" "+err.Error())
			}
			p.mu.Unlock()
		}
	}
}

// judge wants both plugins in an answer, and no version before one seen already.
func (p *soaked) judge(a answer) error {
	tags := appended(a)
	if a.code != http.StatusOK || len(tags) != 2 || tags[0] != "guard" {
		return fmt.Errorf("status %d, tags %v", a.code, tags)
	}
	n, err := strconv.Atoi(strings.TrimPrefix(tags[1], "n"))
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if n < p.newest {
		return fmt.Errorf("version %d after %d", n, p.newest)
	}
	p.newest = n
	return nil
}

// fault injects one.
func (s *soak) fault() {
	s.Helper()
	p := s.proxies[s.dice.IntN(len(s.proxies))]
	if p == s.paused {
		return
	}
	switch n := s.dice.IntN(20); {
	case n < 8:
		s.edit(s.url)
	case n < 10: // it cannot be resolved; the one before stays
		s.edit(s.url + "-none")
	case n < 12:
		s.gate.rule.Store(&rule{all: true, answer: func(rw http.ResponseWriter, _ *http.Request) {
			rw.WriteHeader(http.StatusServiceUnavailable)
		}})
	case n < 14:
		if !s.away {
			s.w.control.kill(s)
			s.away = true
		}
	case n < 16:
		p.kill(s)
		s.wait(300)
		p.restart()
	case n < 17: // the machine's end; what Envoy took last may not be on disk
		p.down.Add(1)
		p.killAll(s)
		p.forget()
		p.restart()
		s.back(p)
	case n < 18 && s.paused == nil:
		p.signal(s.T, syscall.SIGSTOP)
		s.paused = p
	default: // a module that is fetched, of a digest of its own
		s.edit(s.gate.url(s.w, s.w.push("append:b"+strconv.Itoa(s.version), build(s.version))))
	}
}

// back waits until a proxy whose Envoy was killed serves its last good set.
func (s *soak) back(p *soaked) {
	s.Helper()
	eventually(s, 30*time.Second, "Envoy serves again", func() (bool, string) {
		a, err := request(fresh, http.MethodGet, p.port, "/", nil)
		if err != nil {
			return false, err.Error()
		}
		// The machine may have ended between Envoy's ACK and the writing of the last
		// good set, which then is one version behind.
		p.mu.Lock()
		p.newest--
		p.mu.Unlock()
		if err := p.judge(a); err != nil {
			s.Fatalf("the first answer of a new Envoy: %v", err)
		}
		return true, ""
	})
	p.down.Add(1)
}

// forget is what the machine's end does to what was seen: it goes back to what was
// on disk, and not further.
func (p *soaked) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.newest = p.kept
}

// cure ends every fault.
func (s *soak) cure() {
	s.Helper()
	s.gate.open()
	if s.paused != nil {
		s.paused.signal(s.T, syscall.SIGCONT)
		s.paused = nil
	}
	if s.away {
		s.w.startControl()
		s.away = false
	}
	s.edit(s.url)
}

// settle waits until all proxies run the newest version, and have it on disk.
func (s *soak) settle() {
	s.Helper()
	config := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, `{"tag":"n%d"}`, s.version))
	for _, p := range s.proxies {
		eventually(s, 30*time.Second, fmt.Sprintf("version %d in force on port %d", s.version, p.port), func() (bool, string) {
			a, err := request(fresh, http.MethodGet, p.port, "/", nil)
			if err != nil {
				return false, err.Error()
			}
			return slices.Equal(appended(a), []string{"guard", "n" + strconv.Itoa(s.version)}), fmt.Sprintf("status %d, tags %v", a.code, appended(a))
		})
		eventually(s, 10*time.Second, "the last good set is saved", func() (bool, string) {
			b, err := os.ReadFile(filepath.Join(p.dir, "data", "lastgood"))
			return err == nil && bytes.Contains(b, []byte(config)), fmt.Sprint(err)
		})
		p.kept = s.version
	}
}

// measure notes what the processes hold.
func (s *soak) measure() {
	s.Helper()
	s.sample("control plane", s.w.control, "http://"+s.w.admin+"/metrics", filepath.Join(s.w.dir, "control"))
	for _, p := range s.proxies {
		p.awaitReady()
		s.sample("agent", p.process, "http://"+p.admin+"/metrics", filepath.Join(p.dir, "data"))
	}
}

func (s *soak) sample(who string, p *process, metrics, dir string) {
	s.Helper()
	note := func(what string, n float64) {
		s.samples[who+" "+what] = append(s.samples[who+" "+what], n)
	}
	for line := range strings.Lines(fetchText(s, metrics)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.ParseFloat(value, 64)
		if err == nil && slices.Contains([]string{"process_resident_memory_bytes", "process_open_fds", "go_goroutines"}, name) {
			note(name, n)
		}
	}
	var bytes, files float64
	_ = filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil // it went as we looked
		}
		if st, err := e.Info(); err == nil && !strings.HasPrefix(e.Name(), "envoy.log") { // kept small by the agent
			bytes, files = bytes+float64(st.Size()), files+1
		}
		return nil
	})
	note("disk bytes", bytes)
	note("disk files", files)
}

// end stops the load and gives the number of its requests.
func (s *soak) end() int64 {
	s.Helper()
	var n int64
	for i, p := range s.proxies {
		close(p.stop)
		p.done.Wait()
		n += p.requests.Load()
		if len(p.wrong) > 0 {
			s.Errorf("proxy %d: of %d requests some went wrong: %s", i, p.requests.Load(), strings.Join(p.wrong, "; "))
		}
	}
	return n
}

// flat compares the last third of every sample with the first: what grows with
// time and not with use would show. Modules may come and go within the store's
// budget, so the disk is left out while there are few samples.
func (s *soak) flat() {
	s.Helper()
	for name, all := range s.samples {
		third := len(all) / 3
		if third == 0 {
			continue
		}
		first, last := middle(all[:third]), middle(all[len(all)-third:])
		s.Logf("%-45s first third %.0f, last third %.0f, at most %.0f", name, first, last, slices.Max(all))
		if strings.Contains(name, "disk") || third < 10 {
			continue
		}
		if last > 1.5*first+20 {
			s.Errorf("%s grows: from %.0f to %.0f", name, first, last)
		}
	}
}

func middle(all []float64) float64 {
	all = slices.Sorted(slices.Values(all))
	return all[len(all)/2]
}

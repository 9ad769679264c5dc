package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
	"chandler.dev/chandler/internal/testenv/module"
)

var (
	truthFor  = flag.Duration("truth", 15*time.Second, "how long TestStatusNeverClaimsWhatIsNot goes on")
	truthSeed = flag.Uint64("truth-seed", 0, "which faults, in which order; 0: others each time")
)

const (
	sampleEvery = 100 * time.Millisecond
	mayLack     = time.Second // what is claimed
	mostViolate = 10          // that are told
)

// Plugins come, change, break and go, and Envoys, agents and the control plane are killed
// and started again, while status is held against each Envoy's own dump of what it has:
// it never claims in force what that has lacked for more than a second. What is claimed in
// two looks, one after the other, was claimed between them, when a dump shows what there is;
// what comes and goes between two dumps is seen by neither. (An agent that is frozen while
// its Envoy dies can tell nobody; that is not among the faults.)
func TestStatusNeverClaimsWhatIsNot(t *testing.T) {
	seed := cmp.Or(*truthSeed, uint64(time.Now().UnixNano()))
	t.Logf("seed %d", seed)
	c := newChaos(t, rand.New(rand.NewPCG(seed, 0)))
	watched := c.watch()
	faults := 0
	for begin := time.Now(); time.Since(begin) < *truthFor; faults++ {
		c.fault()
		<-time.After(time.Duration(c.dice.IntN(400)) * time.Millisecond)
	}
	c.cure()
	watched()
	c.judge()
	t.Logf("%d faults, %d versions, %d looks at status, %d at dumps", faults, c.version, len(c.looks), len(c.proxies[0].dumps)+len(c.proxies[1].dumps))
}

// chaos is a world that is sampled.
type chaos struct {
	*testing.T
	w       *world
	dice    *rand.Rand
	url     string
	version int
	wanted  map[string]string // tags by plugin; empty: it is gone, or broken
	proxies []*dumped

	mu      sync.Mutex
	looks   []look
	tags    map[string]string // of releases, by id
	outages []outage
}

// dumped is a proxy whose Envoy is asked what it has.
type dumped struct {
	*proxy
	name  string
	dumps []dump
}

// dump is what an Envoy said it has: tags, "PLUGIN-VERSION".
type dump struct {
	at   time.Time // when it was asked
	told time.Time // when it had answered
	tags map[string]bool
}

// look is what status claimed: releases by node and plugin.
type look struct {
	asked, told time.Time
	claims      map[[2]string]string
	wrong       string // against itself
}

// outage is a time in which somebody could not tell; node is empty for the control
// plane.
type outage struct {
	node       string
	begin, end time.Time
}

var truthPlugins = []string{"p", "q", "r"}

func newChaos(t *testing.T, dice *rand.Rand) *chaos {
	c := &chaos{T: t, w: newWorld(t), dice: dice, wanted: map[string]string{}, tags: map[string]string{}}
	c.url = c.w.push("append:v1", module.Append(choosy))
	for _, name := range truthPlugins {
		c.edit(name)
	}
	for _, name := range []string{"a", "b"} {
		n := node{name: name, flags: []string{"--restart", "on-failure"}}
		c.proxies = append(c.proxies, &dumped{proxy: c.w.agent(n, c.w.gateway(listener{port: freePort(t), name: "in"})), name: name})
	}
	return c
}

// edit writes the next version of a plugin.
func (c *chaos) edit(name string) {
	c.version++
	c.wanted[name] = fmt.Sprintf("%s-%04d", name, c.version)
	c.w.edit(name, plugin(name, c.url, tag(c.wanted[name])))
}

func (c *chaos) fault() {
	c.Helper()
	p, name := c.proxies[c.dice.IntN(len(c.proxies))], truthPlugins[c.dice.IntN(len(truthPlugins))]
	switch n := c.dice.IntN(20); {
	case n < 8:
		c.edit(name)
	case n < 10: // proxies refuse it
		c.w.edit(name, plugin(name, c.url, tag(tooLong)))
		c.wanted[name] = ""
	case n < 11: // it cannot be resolved
		c.w.edit(name, plugin(name, c.url+"-none", tag("none")))
		c.wanted[name] = ""
	case n < 13:
		if err := os.Remove(filepath.Join(c.w.plugins, name+".yaml")); err != nil && !os.IsNotExist(err) {
			c.Fatal(err)
		}
		c.wanted[name] = ""
	case n < 15: // Envoy alone; its agent starts another one
		_ = syscall.Kill(p.envoy(c), syscall.SIGKILL) // it may be dead already
	case n < 17: // the agent alone; Envoy serves on
		end := c.outage(p.name)
		p.kill(c)
		<-time.After(time.Duration(c.dice.IntN(300)) * time.Millisecond)
		p.restart()
		p.awaitLive()
		end()
	case n < 18:
		end := c.outage(p.name)
		envoy := p.envoy(c)
		p.kill(c)
		_ = syscall.Kill(envoy, syscall.SIGKILL)
		p.restart()
		p.awaitLive()
		end()
	default:
		end := c.outage("")
		c.w.control.kill(c)
		<-time.After(time.Duration(c.dice.IntN(500)) * time.Millisecond)
		c.w.startControl()
		end()
	}
}

// awaitLive waits until an agent runs; with a plugin that is refused it is not ready.
func (p *dumped) awaitLive() {
	p.w.t.Helper()
	eventually(p.w.t, 30*time.Second, "the agent runs", func() (bool, string) { return status("http://" + p.admin + "/healthz/live") })
}

// outage notes a time in which nobody can tell of a node, and the moment after it in
// which they find each other again.
func (c *chaos) outage(node string) (end func()) {
	begin := time.Now()
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.outages = append(c.outages, outage{node, begin, time.Now().Add(2 * time.Second)})
	}
}

// cure makes every plugin good again and waits until dumps and status say so.
func (c *chaos) cure() {
	c.Helper()
	for _, name := range truthPlugins {
		c.edit(name)
	}
	eventually(c, 60*time.Second, "all is in force, and said to be", func() (bool, string) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if len(c.looks) == 0 {
			return false, "nobody looked"
		}
		last := c.looks[len(c.looks)-1]
		for _, p := range c.proxies {
			if len(p.dumps) == 0 {
				return false, "no dump"
			}
			has := p.dumps[len(p.dumps)-1].tags
			for name, tag := range c.wanted {
				if said := c.tags[last.claims[[2]string{p.name, name}]]; !has[tag] || said != tag {
					return false, fmt.Sprintf("%s: wants %s, status says %q, the dump has %v", p.name, tag, said, has)
				}
			}
		}
		return true, ""
	})
}

// watch samples status and dumps until what it gives is called.
func (c *chaos) watch() (stop func()) {
	ctx, cancel := context.WithCancel(c.Context())
	var wg sync.WaitGroup
	every := func(f func(ctx context.Context)) {
		wg.Go(func() {
			tick := time.NewTicker(sampleEvery)
			defer tick.Stop()
			for ctx.Err() == nil {
				f(ctx)
				select {
				case <-ctx.Done():
				case <-tick.C:
				}
			}
		})
	}
	client := c.w.client()
	every(func(ctx context.Context) { c.look(ctx, client) })
	for _, p := range c.proxies {
		envoy := p.envoyAdmin()
		every(func(ctx context.Context) {
			d := dump{at: time.Now(), tags: inDump(ctx, envoy)}
			d.told = time.Now()
			c.mu.Lock()
			defer c.mu.Unlock()
			p.dumps = append(p.dumps, d)
		})
	}
	return func() { cancel(); wg.Wait() }
}

// envoyAdmin is a way to the Envoy itself.
func (p *proxy) envoyAdmin() *http.Client {
	socket := filepath.Join(p.dir, "data", "envoy", "admin.sock")
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
}

// inDump asks an Envoy for the tags in what it has; one that does not answer has none.
func inDump(ctx context.Context, envoy *http.Client) map[string]bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://envoy/config_dump?resource=ecds_filters", nil)
	if err != nil {
		return nil
	}
	resp, err := envoy.Do(req)
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	var page struct {
		Configs []struct {
			Filter json.RawMessage `json:"ecds_filter"` // not error_state, which has what was refused
		}
	}
	if json.NewDecoder(resp.Body).Decode(&page) != nil {
		return nil
	}
	tags := map[string]bool{}
	for _, config := range page.Configs {
		_, rest, ok := strings.Cut(string(config.Filter), `{\"tag\":\"`)
		for ; ok; _, rest, ok = strings.Cut(rest, `{\"tag\":\"`) {
			tag, _, _ := strings.Cut(rest, `\"`)
			tags[tag] = true
		}
	}
	return tags
}

// look asks for what "chandler status -o json" shows.
func (c *chaos) look(ctx context.Context, client chandlerv1connect.AdminClient) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	l := look{asked: time.Now(), claims: map[[2]string]string{}}
	resp, err := client.List(ctx, connect.NewRequest(&chandlerv1.ListRequest{Proxies: true}))
	if err != nil {
		return
	}
	l.told = time.Now()
	for _, o := range resp.Msg.Objects {
		target, counted := o.Status.GetResolved().GetRelease(), 0
		for _, p := range o.Status.Proxies {
			if p.Connected && p.InForce != "" && p.Reason != string(chandler.CodeEnvoyDown) {
				l.claims[[2]string{p.Node, o.Ref.Name}] = p.InForce
				if p.InForce == target {
					counted++
				}
			}
		}
		if n := int(o.Status.InForce); n > counted {
			l.wrong = fmt.Sprintf("%s counts %d in force, and %d lines say so", o.Ref.Name, n, counted)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, release := range l.claims {
		if c.tags[release] == "" {
			c.tags[release] = c.tagOf(release)
		}
	}
	c.looks = append(c.looks, l)
}

// tagOf reads from its record what a release writes.
func (c *chaos) tagOf(release string) string {
	text, err := os.ReadFile(filepath.Join(c.w.dir, "control", "records", "releases", release+".json"))
	if err != nil {
		return ""
	}
	var r struct{ Config []byte }
	var config struct{ Tag string }
	if json.Unmarshal(text, &r) != nil || json.Unmarshal(r.Config, &config) != nil {
		return ""
	}
	return config.Tag
}

// judge holds what was claimed against what there was.
func (c *chaos) judge() {
	c.Helper()
	violations, claims, unknown := 0, 0, 0
	violate := func(format string, args ...any) {
		if violations++; violations <= mostViolate {
			c.Errorf(format, args...)
		}
	}
	for i, l := range c.looks {
		if l.wrong != "" {
			violate("%s: %s", l.told.Format(time.StampMilli), l.wrong)
		}
		for _, p := range c.proxies {
			for _, name := range truthPlugins {
				at := [2]string{p.name, name}
				release, ok := l.claims[at]
				tag := c.tags[release]
				switch {
				case !ok:
					continue
				case tag == "":
					unknown++ // its record was deleted before we read it
					continue
				}
				claims++
				if i == 0 || c.looks[i-1].claims[at] != release {
					continue
				}
				if lacked := p.lacked(tag, c.looks[i-1].told, l.asked); lacked > mayLack {
					violate("%s: status claims %s in force on %s, whose Envoy has lacked it for %s: %s",
						l.told.Format(time.StampMilli), tag, p.name, lacked.Round(time.Millisecond), c.around(p, tag, l.told))
				}
			}
		}
	}
	if violations > mostViolate {
		c.Errorf("... and %d more", violations-mostViolate)
	}
	if claims < 100 || unknown > claims/10 {
		c.Errorf("%d claims were judged, %d could not be", claims, unknown)
	}
	came, went := c.lags()
	for what, lags := range map[string][]time.Duration{"from in the dump to status says so": came, "from gone there to status says so": went} {
		if len(lags) == 0 {
			c.Errorf("no lag was measured %s", what)
			continue
		}
		slices.Sort(lags)
		c.Logf("lag %s: p50 %s, p99 %s, of %d (looks are %s apart)", what,
			lags[len(lags)/2].Round(time.Millisecond), lags[len(lags)*99/100].Round(time.Millisecond), len(lags), sampleEvery)
	}
	c.Logf("%d claims, %d of releases whose record was gone", claims, unknown)
}

// lacked is for how long a tag had not been in the dump when a time ended, if a dump within
// that time shows so.
func (p *dumped) lacked(tag string, from, to time.Time) time.Duration {
	last, shown := p.dumps[0].at, false
	for _, d := range p.dumps {
		switch {
		case d.told.After(to):
		case d.tags[tag]:
			last, shown = d.told, false
		case d.at.After(from):
			shown = true
		}
	}
	if !shown {
		return 0
	}
	return to.Sub(last)
}

// around tells what was seen in the second before and after a moment: dumps that have (+)
// or lack (-) a tag, and looks at status that claim it (!) or not (.).
func (c *chaos) around(p *dumped, tag string, at time.Time) string {
	seen := map[time.Time]string{}
	sign := func(holds bool, yes, no string) string {
		if holds {
			return yes
		}
		return no
	}
	name, _, _ := strings.Cut(tag, "-")
	for _, d := range p.dumps {
		seen[d.at] = sign(d.tags[tag], "+", "-")
	}
	for _, l := range c.looks {
		seen[l.told] = sign(c.tags[l.claims[[2]string{p.name, name}]] == tag, "!", ".")
	}
	var b strings.Builder
	for _, when := range slices.SortedFunc(maps.Keys(seen), time.Time.Compare) {
		if d := when.Sub(at); d.Abs() < time.Second {
			fmt.Fprintf(&b, " %d%s", d.Milliseconds(), seen[when])
		}
	}
	return b.String()
}

// lags gives how long after the dump status said that something is in force, or is not
// any more, where nothing stood between them.
func (c *chaos) lags() (came, went []time.Duration) {
	for _, p := range c.proxies {
		for i := 1; i < len(p.dumps); i++ {
			before, now := p.dumps[i-1], p.dumps[i]
			for tag := range now.tags {
				if !before.tags[tag] {
					if lag, ok := c.lag(p, tag, now.at, true); ok {
						came = append(came, lag)
					}
				}
			}
			for tag := range before.tags {
				if !now.tags[tag] {
					if lag, ok := c.lag(p, tag, now.at, false); ok {
						went = append(went, lag)
					}
				}
			}
		}
	}
	return came, went
}

// lag is how long after a moment status first says of a tag what is so then; false when
// it never did, or could not.
func (c *chaos) lag(p *dumped, tag string, at time.Time, want bool) (time.Duration, bool) {
	name, _, _ := strings.Cut(tag, "-")
	for _, l := range c.looks {
		if l.told.Before(at) {
			continue
		}
		if c.tags[l.claims[[2]string{p.name, name}]] == tag != want {
			continue
		}
		return max(0, l.asked.Sub(at)), !c.disturbed(p.name, at, l.told)
	}
	return 0, false
}

func (c *chaos) disturbed(node string, from, to time.Time) bool {
	return slices.ContainsFunc(c.outages, func(o outage) bool {
		return (o.node == "" || o.node == node) && o.begin.Before(to) && o.end.After(from)
	})
}

// The judge of TestStatusNeverClaimsWhatIsNot condemns what was claimed after it was gone
// for longer than a second, and nothing that may have been there.
func TestTruthJudge(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	p := &dumped{}
	for ms := 0; ms < 5000; ms += 100 {
		p.dumps = append(p.dumps, dump{at: at(ms), told: at(ms + 10), tags: map[string]bool{"p-1": ms >= 1000 && ms < 2000}})
	}
	for what, c := range map[string]struct {
		from, to int
		lacked   bool
	}{
		"there":                    {1450, 1550, false},
		"gone a moment ago":        {2450, 2550, false},
		"gone for long":            {3450, 3550, true},
		"never there yet":          {950, 1050, false}, // it came between
		"not there":                {350, 450, false},  // for less than a second
		"no dump between the two":  {3415, 3495, false},
		"after a time without any": {4995, 5050, false},
	} {
		if lacked := p.lacked("p-1", at(c.from), at(c.to)); lacked > mayLack != c.lacked {
			t.Errorf("%s: lacked for %s", what, lacked)
		}
	}
}

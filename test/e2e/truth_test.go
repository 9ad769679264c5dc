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
// and started again, while status, and the dashboard as it is asked for and as it follows in
// a browser, are held against each Envoy's own dump of what it has: they never claim in force
// what that has lacked for more than a second in which the machine ran. What is claimed in two looks, one after the
// other, was claimed between them, when a dump shows what there is; what comes and goes
// between two dumps is seen by neither. (An agent that is frozen while its Envoy dies can
// tell nobody; that is not among the faults.)
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
	c.calm()
	c.cure() // nothing stands between this change and what is said of it: it gives lags, whatever the faults were
	watched()
	for _, v := range c.voices {
		c.judge(v)
	}
	t.Logf("%d faults, %d versions, %d looks at dumps", faults, c.version, len(c.proxies[0].dumps)+len(c.proxies[1].dumps))
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

	voices  []*voice
	browser *browser
	pulse   *pulse

	mu      sync.Mutex        // for looks, too
	tags    map[string]string // of releases, by what is short for them
	outages []outage
}

// voice is something that says what is in force.
type voice struct {
	name  string
	ask   func(ctx context.Context) (look, bool) // false: it says nothing
	looks []look
}

// dumped is a proxy whose Envoy is asked what it has.
type dumped struct {
	*proxy
	name  string
	dumps []dump
}

// dump is what an Envoy said it has: tags, "PLUGIN-VERSION".
type dump struct {
	at   time.Time       // when it was asked
	told time.Time       // when it had answered
	tags map[string]bool // nil: it did not
}

// look is what was claimed: releases, in short, by node and plugin.
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
	c := &chaos{T: t, w: newWorld(t), dice: dice, pulse: newPulse(t), wanted: map[string]string{}, tags: map[string]string{}}
	c.url = c.w.push("append:v1", module.Append(choosy))
	for _, name := range truthPlugins {
		c.edit(name)
	}
	for _, name := range []string{"a", "b"} {
		n := node{name: name, flags: []string{"--restart", "on-failure"}}
		c.proxies = append(c.proxies, &dumped{proxy: c.w.agent(n, c.w.gateway(listener{port: freePort(t), name: "in"})), name: name})
	}
	client, browser := c.w.client(), newBrowser("http://"+c.w.admin+"/dashboard/")
	c.voices = []*voice{
		{name: "status", ask: func(ctx context.Context) (look, bool) { return lookAtStatus(ctx, client) }},
		{name: "the dashboard", ask: browser.open},
		{name: "the dashboard that follows", ask: func(context.Context) (look, bool) { return browser.shown() }},
	}
	c.browser = browser
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

// cure makes every plugin good, in a new version, and waits until dumps and status say so.
func (c *chaos) cure() {
	c.Helper()
	for _, name := range truthPlugins {
		c.edit(name)
	}
	eventually(c, 60*time.Second, "all is in force, and said to be", func() (bool, string) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, v := range c.voices {
			if len(v.looks) == 0 {
				return false, "nobody looked at " + v.name
			}
			last := v.looks[len(v.looks)-1]
			for _, p := range c.proxies {
				if len(p.dumps) == 0 {
					return false, "no dump"
				}
				has := p.dumps[len(p.dumps)-1].tags
				for name, tag := range c.wanted {
					if said := c.tags[last.claims[[2]string{p.name, name}]]; !has[tag] || said != tag {
						return false, fmt.Sprintf("%s: wants %s, %s says %q, the dump has %v", p.name, tag, v.name, said, has)
					}
				}
			}
		}
		return true, ""
	})
}

// calm waits until the last outage is over for everybody.
func (c *chaos) calm() {
	for _, o := range c.outages {
		<-time.After(time.Until(o.end))
	}
}

// watch samples what is said, and dumps, until what it gives is called.
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
	wg.Go(func() { c.browser.follow(ctx) })
	every(func(context.Context) {
		if err := c.pulse.beat(time.Now); err != nil {
			c.Error(err)
		}
	})
	for _, v := range c.voices {
		every(func(ctx context.Context) { c.look(ctx, v) })
	}
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
	return &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
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

// look asks a voice.
func (c *chaos) look(ctx context.Context, v *voice) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	l, ok := v.ask(ctx)
	if !ok {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, release := range l.claims {
		if c.tags[release] == "" {
			c.tags[release] = c.tagOf(release)
		}
	}
	v.looks = append(v.looks, l)
}

// lookAtStatus asks for what "chandler status -o json" shows.
func lookAtStatus(ctx context.Context, client chandlerv1connect.AdminClient) (look, bool) {
	l := look{asked: time.Now(), claims: map[[2]string]string{}}
	resp, err := client.List(ctx, connect.NewRequest(&chandlerv1.ListRequest{Proxies: true}))
	if err != nil {
		return l, false
	}
	l.told = time.Now()
	for _, o := range resp.Msg.Objects {
		target, counted := o.Status.GetResolved().GetRelease(), 0
		for _, p := range o.Status.Proxies {
			if p.Connected && p.InForce != "" && p.Reason != string(chandler.CodeEnvoyDown) {
				l.claims[[2]string{p.Node, o.Ref.Name}] = chandler.ReleaseID(p.InForce).Short()
				if p.InForce == target {
					counted++
				}
			}
		}
		if n := int(o.Status.InForce); n > counted {
			l.wrong = fmt.Sprintf("%s counts %d in force, and %d lines say so", o.Ref.Name, n, counted)
		}
	}
	return l, true
}

// tagOf reads from its record what a release writes.
func (c *chaos) tagOf(release string) string {
	paths, err := filepath.Glob(filepath.Join(c.w.dir, "control", "records", "releases", release+"*.json"))
	if err != nil || len(paths) != 1 {
		return ""
	}
	text, err := os.ReadFile(paths[0])
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
func (c *chaos) judge(v *voice) {
	c.Helper()
	violations, claims, unknown := 0, 0, 0
	violate := func(format string, args ...any) {
		if violations++; violations <= mostViolate {
			c.Errorf(format, args...)
		}
	}
	first := map[[2]string]time.Time{} // when what is claimed was claimed first
	for i, l := range v.looks {
		if l.wrong != "" {
			violate("%s: %s: %s", l.told.Format(time.StampMilli), v.name, l.wrong)
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
				if i == 0 || v.looks[i-1].claims[at] != release {
					first[at] = l.told
					continue
				}
				lacked := p.lacked(tag, first[at], v.looks[i-1].told, l.asked)
				if lacked-c.pulse.stood(l.asked.Add(-lacked), l.asked) > mayLack {
					violate("%s: %s claims %s in force on %s, whose Envoy has lacked it for %s: %s",
						l.told.Format(time.StampMilli), v.name, tag, p.name, lacked.Round(time.Millisecond), c.around(v, p, tag, l.told))
				}
			}
		}
	}
	if violations > mostViolate {
		c.Errorf("... and %d more", violations-mostViolate)
	}
	if claims < 100 || unknown > claims/10 {
		c.Errorf("%s: %d claims were judged, %d could not be", v.name, claims, unknown)
	}
	came, went := c.lags(v)
	for what, lags := range map[string][]time.Duration{"in the dump": came, "gone there": went} {
		if len(lags) == 0 {
			c.Errorf("%s: no lag was measured from %s", v.name, what)
			continue
		}
		slices.Sort(lags)
		c.Logf("lag from %s to %s says so: p50 %s, p99 %s, of %d (looks are %s apart)", what, v.name,
			lags[len(lags)/2].Round(time.Millisecond), lags[len(lags)*99/100].Round(time.Millisecond), len(lags), sampleEvery)
	}
	c.Logf("%s: %d looks, %d claims, %d of releases whose record was gone", v.name, len(v.looks), claims, unknown)
}

// lacked is for how long a tag had not been in the dump when a time ended, if a dump within
// that time shows so. It may have been there unseen, between two dumps, when it was first
// claimed; after that, in each gap between dumps, it was not.
func (p *dumped) lacked(tag string, claimed, from, to time.Time) time.Duration {
	last, shown := claimed, false
	for _, d := range p.dumps {
		switch {
		case d.told.After(to):
		case d.tags[tag]:
			last, shown = later(last, d.told), false
		case d.at.After(from):
			shown = true
		}
	}
	if !shown {
		return 0
	}
	return to.Sub(last)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// around tells what was seen in the second before and after a moment: dumps that have (+)
// or lack (-) a tag, or that failed (x), and looks that claim it (!) or not (.).
func (c *chaos) around(v *voice, p *dumped, tag string, at time.Time) string {
	seen := map[time.Time]string{}
	sign := func(holds bool, yes, no string) string {
		if holds {
			return yes
		}
		return no
	}
	name, _, _ := strings.Cut(tag, "-")
	for _, d := range p.dumps {
		seen[d.at] = sign(d.tags[tag], "+", sign(d.tags == nil, "x", "-"))
	}
	for _, l := range v.looks {
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

// lags gives how long after the dump a voice said that something is in force, or is not
// any more, where nothing stood between them.
func (c *chaos) lags(v *voice) (came, went []time.Duration) {
	for _, p := range c.proxies {
		for i := 1; i < len(p.dumps); i++ {
			before, now := p.dumps[i-1], p.dumps[i]
			for tag := range now.tags {
				if !before.tags[tag] {
					if lag, ok := c.lag(v, p, tag, now.at, true); ok {
						came = append(came, lag)
					}
				}
			}
			for tag := range before.tags {
				if !now.tags[tag] {
					if lag, ok := c.lag(v, p, tag, now.at, false); ok {
						went = append(went, lag)
					}
				}
			}
		}
	}
	return came, went
}

// lag is how long after a moment a voice first says of a tag what is so then; false when
// it never did, or could not, or was overtaken by the next change.
func (c *chaos) lag(v *voice, p *dumped, tag string, at time.Time, want bool) (time.Duration, bool) {
	name, _, _ := strings.Cut(tag, "-")
	for _, l := range v.looks {
		if l.told.Before(at) {
			continue
		}
		if c.tags[l.claims[[2]string{p.name, name}]] == tag != want {
			continue
		}
		lag, ok := max(0, l.asked.Sub(at)), !c.disturbed(p.name, at, l.told) && p.stays(tag, want, at, l.asked)
		if ok && lag > mayLack {
			c.Logf("%s took %s to say that %s has %s: %t: %s", v.name, lag.Round(time.Millisecond), p.name, tag, want, c.around(v, p, tag, l.told))
		}
		return lag, ok
	}
	return 0, false
}

// stays tells whether all dumps within a time have a tag, or all lack it.
func (p *dumped) stays(tag string, has bool, from, to time.Time) bool {
	return !slices.ContainsFunc(p.dumps, func(d dump) bool {
		return !d.at.Before(from) && d.told.Before(to) && d.tags[tag] != has
	})
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
		claimed, from, to int
		lacked            bool
	}{
		"there":                      {1050, 1450, 1550, false},
		"gone a moment ago":          {1050, 2450, 2550, false},
		"gone for long":              {1050, 3450, 3550, true},
		"claimed before it is there": {950, 950, 1050, false}, // it came between
		"not there for a moment":     {350, 350, 450, false},
		"never there again":          {2550, 3450, 3550, false}, // perhaps it was, when it was claimed first
		"never there for long":       {2550, 3550, 3650, true},
		"no dump between the two":    {1050, 3415, 3495, false},
		"after a time without any":   {1050, 4995, 5050, false},
	} {
		if lacked := p.lacked("p-1", at(c.claimed), at(c.from), at(c.to)); lacked > mayLack != c.lacked {
			t.Errorf("%s: lacked for %s", what, lacked)
		}
	}
}

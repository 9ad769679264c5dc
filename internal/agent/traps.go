package agent

import (
	"context"
	"strings"
	"time"

	"chandler.dev/chandler"
)

// Envoy counts, plugin by plugin, the VMs that it made anew after a fault: under
// FAIL_RELOAD, and so under FAIL_CLOSE, which is composed as one with a back-off of a
// minute. Of a VM that stays dead, as under FAIL_OPEN, it counts nothing that could be
// told to be of one plugin (1.40); there its log is read (faultLog).

// How often Envoy is asked, when a plugin is in force that it would make anew: often
// for some time after its log told of a fault, as it counts with the next request only;
// else seldom, as the log may be off.
const (
	trapInterval = 5 * time.Second
	trapSeldom   = 30 * time.Second
	trapFollow   = 2 * time.Minute
)

// watchTraps tells of faults until ctx ends. It leaves Envoy alone while a push is
// under way, as its admin interface waits for that.
func (a *Agent) watchTraps(ctx context.Context) {
	tick := time.NewTicker(trapInterval)
	defer tick.Stop()
	var asked, faulted time.Time
	var told loggedFaults
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		v := a.view.Load()
		if v == nil || v.pushing {
			continue
		}
		now, ev := time.Now(), Trapped{Logged: a.envoyLog.faulted()}
		if !ev.Logged.equal(told) {
			faulted = now
		}
		if v.counted && (now.Sub(asked) >= trapSeldom || now.Sub(faulted) <= trapFollow) {
			asked = now
			poll, cancel := context.WithTimeout(ctx, trapInterval)
			ev.Counts, _ = a.envoyAdmin.traps(poll) // else at the next look
			cancel()
		}
		if len(ev.Counts) > 0 || !ev.Logged.equal(told) {
			told = ev.Logged
			a.send(ctx, message{event: ev})
		}
	}
}

// VMFaults is what Envoy has counted of one plugin since it began: VMs that it made
// anew, and requests that it refused as it was too soon for that.
type VMFaults struct{ Reloads, Refused uint64 }

// vmFaults finds faults in those counts: one before each reload, and one since the last
// reload if requests were refused.
type vmFaults struct {
	seen VMFaults
	dead *Version // whose fault is counted, but not its reload; nil: none
}

// grown tells how many faults are new, of a plugin with a version in force.
func (f *vmFaults) grown(seen VMFaults, inForce *Version) uint64 {
	if seen.Reloads < f.seen.Reloads || seen.Refused < f.seen.Refused {
		*f = vmFaults{} // another Envoy
	}
	reloads, refused := seen.Reloads-f.seen.Reloads, seen.Refused-f.seen.Refused
	f.seen = seen
	switch {
	case reloads > 0 && f.dead != nil:
		f.dead = nil
		return reloads - 1
	case reloads > 0:
		return reloads
	case refused > 0 && inForce != nil && f.dead != inForce:
		f.dead = inForce
		return 1
	}
	return 0
}

// trapped counts faults against their plugins.
func (s *State) trapped(ev Trapped, now time.Time) {
	s.logged(ev.Logged, now)
	for key, seen := range ev.Counts {
		p := s.plugins[key]
		if p == nil {
			continue
		}
		if n := p.vms.grown(seen, p.good); n > 0 {
			p.traps, p.trapped = p.traps+n, now
		}
	}
}

// logged counts the faults of the log against plugins that Envoy does not count itself:
// those that it names, and those without a name if there is only one plugin whose they
// can be.
func (s *State) logged(now loggedFaults, at time.Time) {
	count := func(p *plugin, n uint64) {
		if n > 0 && p != nil && p.good != nil && p.good.FailStrategy == chandler.FailOpen {
			p.traps, p.trapped = p.traps+n, at
		}
	}
	for key, n := range now.named {
		count(s.plugins[key], n-s.faults.named[key])
	}
	count(s.onlyModule(), now.unnamed-s.faults.unnamed)
	s.faults = now
}

// onlyModule is the plugin that alone runs a module in this Envoy; nil when there are
// several, or may be of the user's own.
func (s *State) onlyModule() *plugin {
	var only *plugin
	for _, p := range s.plugins {
		switch {
		case p.good == nil || source(p.good) == Source{}:
		case only != nil:
			return nil
		default:
			only = p
		}
	}
	if s.set.OwnModules {
		return nil
	}
	return only
}

// traps asks Envoy what it has counted of plugins whose VMs failed.
func (c *adminClient) traps(ctx context.Context) (map[chandler.Key]VMFaults, error) {
	stats, err := c.stats(ctx, `^wasm\..*\.vm_reload_(success|failure|backoff)$`)
	return countTraps(stats), err
}

// countTraps adds up what statistics of the form wasm.PLUGIN.vm_reload_... say.
func countTraps(stats map[string]int64) map[chandler.Key]VMFaults {
	counts := map[chandler.Key]VMFaults{}
	for name, value := range stats {
		plugin, ok := strings.CutPrefix(name, "wasm.")
		end := strings.LastIndexByte(plugin, '.')
		if !ok || end < 0 || value <= 0 {
			continue
		}
		key, ok := chandler.ParseKey(plugin[:end])
		if !ok {
			continue
		}
		n := counts[key]
		if strings.HasSuffix(plugin, "_backoff") {
			n.Refused += uint64(value)
		} else {
			n.Reloads += uint64(value)
		}
		counts[key] = n
	}
	return counts
}

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
// told to be of one plugin, and its log does not name it (1.40).

// How often Envoy is asked, when a plugin is in force that it would make anew: often
// for some time after its log told of a fault, as it counts only with a later request;
// else seldom, as the log may be off.
const (
	trapInterval = 5 * time.Second
	trapSeldom   = 30 * time.Second
	trapFollow   = 2 * time.Minute
)

// watchTraps asks until ctx ends. It leaves Envoy alone while a push is under
// way, as its admin interface waits for that.
func (a *Agent) watchTraps(ctx context.Context) {
	tick := time.NewTicker(trapInterval)
	defer tick.Stop()
	var asked, faulted time.Time
	for faults := int64(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		if n := a.envoyLog.faults.Load(); n != faults {
			faults, faulted = n, now
		}
		v := a.view.Load()
		if v == nil || v.pushing || !v.counted || now.Sub(asked) < trapSeldom && now.Sub(faulted) > trapFollow {
			continue
		}
		asked = now
		poll, cancel := context.WithTimeout(ctx, trapInterval)
		counts, err := a.envoyAdmin.traps(poll)
		cancel()
		if err == nil && len(counts) > 0 {
			a.send(ctx, message{event: Trapped{Counts: counts}})
		}
	}
}

// isFault tells whether a line of Envoy's log is about a fault of some plugin's VM while
// it served.
func isFault(line string) bool {
	_, text, ok := strings.Cut(line, "[wasm]")
	return ok && strings.Contains(text, "Function: proxy_on_") && strings.Contains(text, " failed: ")
}

// traps tells of which plugins' VMs Envoy had to make new ones, and how often.
func (c *adminClient) traps(ctx context.Context) (map[chandler.Key]uint64, error) {
	stats, err := c.stats(ctx, `^wasm\..*\.vm_reload_(success|failure)$`)
	if err != nil {
		return nil, err
	}
	return countTraps(stats), nil
}

// countTraps adds up what statistics of the form wasm.PLUGIN.vm_reload_... say.
func countTraps(stats map[string]int64) map[chandler.Key]uint64 {
	counts := map[chandler.Key]uint64{}
	for name, value := range stats {
		plugin, ok := strings.CutPrefix(name, "wasm.")
		end := strings.LastIndexByte(plugin, '.')
		if !ok || end < 0 || value <= 0 {
			continue
		}
		if key, ok := chandler.ParseKey(plugin[:end]); ok {
			counts[key] += uint64(value)
		}
	}
	return counts
}

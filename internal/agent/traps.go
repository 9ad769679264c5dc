package agent

import (
	"context"
	"strings"
	"time"

	"chandler.dev/chandler"
)

// Envoy counts, plugin by plugin, the VMs that it made anew after a fault, which
// it does under FAIL_RELOAD. Of a VM that stays dead it counts nothing that could
// be told to be of one plugin, and its log does not name it (1.40).

// trapInterval is how often Envoy is asked, when a plugin is in force that it
// would make anew.
const trapInterval = 5 * time.Second

// watchTraps asks until ctx ends. It leaves Envoy alone while a push is under
// way, as its admin interface waits for that.
func (a *Agent) watchTraps(ctx context.Context) {
	tick := time.NewTicker(trapInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if v := a.view.Load(); v == nil || v.pushing || !v.reloads {
			continue
		}
		poll, cancel := context.WithTimeout(ctx, trapInterval)
		counts, err := a.envoyAdmin.traps(poll)
		cancel()
		if err == nil && len(counts) > 0 {
			a.send(ctx, message{event: Trapped{Counts: counts}})
		}
	}
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

package agent

import (
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"

	"chandler.dev/chandler"
)

// gathered are the agent's metrics by name.
func gathered(t *testing.T, a *Agent) map[string]*dto.MetricFamily {
	t.Helper()
	families, err := a.cfg.Metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]*dto.MetricFamily{}
	for _, f := range families {
		by[f.GetName()] = f
	}
	return by
}

// How long plugins take into force is told apart by whether the module is another one.
func TestAttachDuration(t *testing.T) {
	t.Parallel()
	a := bareAgent(t)
	counts := func(module, config uint64) {
		t.Helper()
		for _, m := range gathered(t, a)["chandler_agent_attach_duration_seconds"].GetMetric() {
			want := map[string]uint64{attachedModule: module, attachedConfig: config}[m.GetLabel()[0].GetValue()]
			if h := m.GetHistogram(); h.GetSampleCount() != want || want > 0 && h.GetSampleSum() <= 0 {
				t.Errorf("%v, want %d", m, want)
			}
		}
	}
	one := version("a")
	again := version("a2", func(v *Version) { v.Key, v.UID, v.Sequence, v.Program = one.Key, one.UID, one.Sequence+1, one.Program })
	next := version("a3", func(v *Version) { v.Key, v.UID, v.Sequence = one.Key, one.UID, one.Sequence+2 })
	now := time.Now()
	gone, removed := version("gone"), Assigned{}
	removed.Removed = append(removed.Removed, gone.Key)
	for _, c := range []struct {
		ev             Assigned
		module, config uint64
	}{
		{Assigned{Changed: []Version{one}}, 1, 0},
		{Assigned{Changed: []Version{one}}, 1, 0}, // told again at a reconnect
		{Assigned{Changed: []Version{again}}, 1, 1},
		{Assigned{Changed: []Version{next}}, 2, 1},
		{Assigned{Changed: []Version{gone}}, 2, 1},
		{removed, 2, 1},
	} {
		a.attaches(c.ev, now.Add(-time.Second))
		// As if all were in force at once, but for the one that is gone.
		for i := range c.ev.Changed {
			v := &c.ev.Changed[i]
			a.state.plugins[v.Key] = &plugin{want: v, good: v, state: chandler.StateInForce}
			if v.Key == gone.Key {
				delete(a.state.plugins, v.Key)
			}
		}
		a.attached(now)
		counts(c.module, c.config)
	}
	if len(a.attaching) != 0 {
		t.Errorf("never to be in force: %v", a.attaching)
	}
}

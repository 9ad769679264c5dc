package e2e

import (
	"os"
	"testing"
	"time"
)

// pulse are the moments at which something small got its turn on the machine, which is all
// the time while that runs: a write is on disk, as everybody's who is judged has to be.
type pulse struct {
	file  *os.File
	beats []time.Time
}

func newPulse(t testing.TB) *pulse {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "pulse-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return &pulse{file: f}
}

func (p *pulse) beat(now func() time.Time) error {
	if _, err := p.file.WriteAt([]byte{0}, 0); err != nil {
		return err
	}
	if err := p.file.Sync(); err != nil {
		return err
	}
	p.beats = append(p.beats, now())
	return nil
}

// stood is for how long within a time the machine stood still: what beats came late.
func (p *pulse) stood(from, to time.Time) (still time.Duration) {
	for i := 1; i < len(p.beats); i++ {
		begin, end := later(from, p.beats[i-1].Add(sampleEvery)), p.beats[i]
		if end.After(to) {
			end = to
		}
		still += max(0, end.Sub(begin))
	}
	return still
}

// Beats that come late are time in which the machine stood still, as far as it is asked for.
func TestPulse(t *testing.T) {
	t.Parallel()
	begin := time.Now()
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	p := newPulse(t)
	for _, ms := range []int{0, 100, 200, 900, 1000, 1200} {
		if err := p.beat(func() time.Time { return at(ms) }); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ from, to, want int }{{0, 200, 0}, {0, 1000, 600}, {0, 2000, 700}, {0, 500, 200}, {600, 2000, 400}, {500, 600, 100}, {900, 1100, 0}} {
		if got := p.stood(at(c.from), at(c.to)); got != time.Duration(c.want)*time.Millisecond {
			t.Errorf("from %d to %d it stood still for %s, want %d ms", c.from, c.to, got, c.want)
		}
	}
}

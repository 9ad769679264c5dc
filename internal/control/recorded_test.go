package control

import (
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/record/recordtest"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/source"
)

// loaded is a control plane's loop that has read its records and does not run.
func loaded(t *testing.T, records record.Store) *loop {
	t.Helper()
	c, err := New(Config{Records: records, Resolver: resolve.New(resolve.Config{})})
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// A rollout record that is seen before the release it names changes nothing until
// that is there: the release before never goes out under the new sequence.
func TestRolloutAheadOfItsRelease(t *testing.T) {
	t.Parallel()
	records := record.NewMemory()
	one, two := recordtest.Release(1), recordtest.Release(2)
	if err := records.PutRelease(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	if _, err := records.SwapRollout(t.Context(), nil, recordtest.Rollout(1)); err != nil {
		t.Fatal(err)
	}
	l := loaded(t, records)
	next := recordtest.Rollout(2)
	next.Previous, next.Revision = one.ID, 2
	l.recorded(record.Change{Rollout: &next})
	if at := l.course("u", nil); at.target == nil || at.target.ID != one.ID || at.sequence != 1 {
		t.Errorf("before its release is there: %+v", at)
	}
	l.recorded(record.Change{Release: &two})
	if at := l.course("u", nil); at.target == nil || at.target.ID != two.ID || at.sequence != 2 || len(l.ahead) != 0 {
		t.Errorf("with it: %+v, ahead %v", at, l.ahead)
	}
	older := recordtest.Rollout(1)
	l.recorded(record.Change{Rollout: &older})
	if at := l.course("u", nil); at.sequence != 2 {
		t.Errorf("an older one won: %+v", at)
	}
}

// The releases that a rollout remembers are kept, and so is one that it does not name
// yet, however many there are: its record may be seen before the rollout's. What was
// passed over goes.
func TestReleaseAheadOfItsRollout(t *testing.T) {
	t.Parallel()
	l := loaded(t, record.NewMemory())
	began := recordtest.Release(0).ResolvedAt
	see := func(generation int) chandler.Release {
		r := recordtest.Release(int64(generation))
		r.ResolvedAt = began.Add(time.Duration(generation) * time.Minute)
		l.recorded(record.Change{Release: &r})
		return r
	}
	l.byUID["u"] = &source.Object{}
	ro := recordtest.Rollout(1)
	for n := range keepReleases {
		r := see(n + 1)
		ro.Sequence, ro.Release, ro.UpdatedAt, ro.Revision = uint64(n+1), r.ID, r.ResolvedAt.Add(time.Second), uint64(n+1)
		ro.Note(chandler.HistoricRelease{Release: r.ID, At: ro.UpdatedAt})
	}
	l.recorded(record.Change{Rollout: &ro})
	coming := see(keepReleases + 1)
	if old := l.rubbish(began.Add(time.Hour)); len(old.releases) > 0 {
		t.Errorf("generation %d is rubbish, of %d that are seen and %d that are remembered", old.releases[0].Generation, len(l.releases), len(ro.History))
	}
	ro.UpdatedAt = coming.ResolvedAt.Add(time.Second) // it went on, and elsewhere
	ro.Revision++
	l.recorded(record.Change{Rollout: &ro})
	if old := l.rubbish(began.Add(time.Hour)); len(old.releases) != 1 || old.releases[0].ID != coming.ID {
		t.Errorf("of what was passed over, %d are rubbish", len(old.releases))
	}
}

package control

import (
	"testing"

	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/record/recordtest"
	"chandler.dev/chandler/internal/resolve"
)

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
	c, err := New(Config{Records: records, Resolver: resolve.New(resolve.Config{})})
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
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

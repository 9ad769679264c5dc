package clock_test

import (
	"slices"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/clock"
)

func TestWall(t *testing.T) {
	t.Parallel()
	type inner struct{ at, never time.Time }
	v := struct {
		good, bad inner
		list      []*inner
		m         map[string]any
		Created   time.Time
	}{
		good: inner{at: time.Now().Add(-time.Hour)}, bad: inner{at: time.Now().UTC(), never: time.Time{}},
		list:    []*inner{nil, {at: time.Now().Round(0)}},
		m:       map[string]any{"x": inner{at: time.Unix(1, 0)}, "y": time.Now()},
		Created: time.Unix(1, 0),
	}
	want := []string{".bad.at", ".list[].at", ".m[].at"}
	if got := clock.Wall(&v, "Created"); !slices.Equal(got, want) {
		t.Errorf("found %v, want %v", got, want)
	}
	if clock.Kept(&v) == nil || clock.Kept(v.good) != nil {
		t.Error("Kept does not say what Wall does")
	}
}

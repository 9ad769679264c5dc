// Package recordtest holds the tests that every record.Store passes. It is for
// tests only.
package recordtest

import (
	"errors"
	"reflect"
	"sync"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/rollout"
)

// Release gives a release of one plugin of namespace "ns", its own for each
// generation.
func Release(generation int64) chandler.Release {
	return chandler.Release{
		Key: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: "p"}, UID: "u", Generation: generation,
		Behaviour:  chandler.Behaviour{Type: chandler.HTTP, Config: []byte(`{"a":1}`)},
		ResolvedAt: time.Unix(1_700_000_000, 0).UTC(),
	}.WithID()
}

// Rollout gives the rollout record of that plugin.
func Rollout(sequence uint64) record.Rollout {
	return record.Rollout{UID: "u", Key: Release(1).Key, Sequence: sequence, Release: Release(int64(sequence)).ID}
}

// TestStore runs the tests; open gives an empty store.
func TestStore(t *testing.T, open func(t *testing.T) record.Store) {
	t.Run("releases", func(t *testing.T) { testReleases(t, open(t)) })
	t.Run("rollouts", func(t *testing.T) { testRollouts(t, open(t)) })
	t.Run("courses", func(t *testing.T) { testCourses(t, open(t)) })
	t.Run("concurrent swaps", func(t *testing.T) { testConcurrentSwaps(t, open(t)) })
}

func testReleases(t *testing.T, s record.Store) {
	ctx := t.Context()
	a, b := Release(1), Release(2)
	for _, r := range []chandler.Release{a, b, a} {
		if err := s.PutRelease(ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	forged := a
	forged.Generation = 99
	if err := s.PutRelease(ctx, forged); err == nil {
		t.Error("a release whose id is not that of its content was kept")
	}
	got, err := s.Releases(ctx)
	if err != nil || len(got) != 2 {
		t.Fatalf("%d releases, %v; want 2", len(got), err)
	}
	for _, r := range got {
		if r.WithID().ID != r.ID || string(r.Config) != `{"a":1}` {
			t.Errorf("release came back changed: %+v", r)
		}
	}
	for range 2 {
		if err := s.DeleteRelease(ctx, a.ID); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if got, _ := s.Releases(ctx); len(got) != 1 || got[0].ID != b.ID {
		t.Errorf("after the deletion: %v", got)
	}
}

// testCourses holds that all that a rollout's record says comes back.
func testCourses(t *testing.T, s record.Store) {
	at := time.Unix(1_700_000_000, 0).UTC()
	full := Rollout(2)
	full.Course = record.Course{
		Scope:  &record.Scope{Selector: map[string]string{"a": "b"}, TargetRefs: []chandler.TargetRef{{Kind: "Service", Name: "s"}}},
		Wanted: &record.Assigned{Release: Release(3).ID, Scope: &record.Scope{}},
		Stage: &record.Stage{
			Base: record.Assigned{Release: Release(1).ID, Sequence: 1}, Order: record.Promote,
			State: rollout.State{
				Plan: chandler.RolloutPlan{Steps: []chandler.RolloutStep{{Percent: 10}, {Percent: 100}}, Interval: time.Minute, OnFailure: chandler.OnFailurePause, Margins: rollout.DefaultMargins()},
				Step: 1, Phase: chandler.RolloutPaused, Since: at, Choice: rollout.Everyone(), Reason: chandler.CodePaused, Message: "lunch",
			},
		},
		Bad:      []chandler.ReleaseID{Release(3).ID},
		Denied:   []record.Denial{{Release: Release(3).ID, Reason: chandler.CodePolicyDenied, Message: "not from there"}},
		Failure:  &record.Failure{Release: Release(3).ID, Reason: chandler.CodeGateFailed, Message: "m", Gates: []chandler.Measure{{Gate: chandler.GateTraps, Chosen: 3}}, At: at},
		Pinned:   true,
		Disabled: []chandler.Disablement{{Node: "ns/n", Reason: "r", By: "b", At: at}},
		History:  []chandler.HistoricRelease{{Release: Release(2).ID, Generation: 2, Sequence: 2, At: at, Outcome: record.InForce}},
		Kept:     &record.Kept{Created: at, FirstAttach: chandler.FirstAttachDeny, Stays: true},
	}
	stored, err := s.SwapRollout(t.Context(), nil, full)
	if err != nil {
		t.Fatal(err)
	}
	if got := only(t, s); !reflect.DeepEqual(got.Course, full.Course) || !reflect.DeepEqual(got.Course, stored.Course) {
		t.Errorf("came back as %+v, want %+v", got.Course, full.Course)
	}
}

func testRollouts(t *testing.T, s record.Store) {
	ctx := t.Context()
	if _, err := s.SwapRollout(ctx, nil, Rollout(1)); err != nil {
		t.Fatal(err)
	}
	first := only(t, s)
	if _, err := s.SwapRollout(ctx, nil, Rollout(2)); !errors.Is(err, record.ErrConflict) {
		t.Errorf("a second creation: %v, want a conflict", err)
	}
	if _, err := s.SwapRollout(ctx, &first, Rollout(2)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.SwapRollout(ctx, &first, Rollout(3)); !errors.Is(err, record.ErrConflict) {
		t.Errorf("a swap from what is no longer there: %v, want a conflict", err)
	}
	if got := only(t, s); got.Sequence != 2 {
		t.Errorf("sequence %d, want 2", got.Sequence)
	}
	if err := s.DeleteRollout(ctx, "u"); err != nil {
		t.Fatal(err)
	}
	second := Rollout(2)
	if _, err := s.SwapRollout(ctx, &second, Rollout(3)); !errors.Is(err, record.ErrConflict) {
		t.Errorf("a swap from a deleted record: %v, want a conflict", err)
	}
}

func only(t *testing.T, s record.Store) record.Rollout {
	t.Helper()
	all, err := s.Rollouts(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("rollouts: %v, %v; want one", all, err)
	}
	return all[0]
}

// Of many who swap from the same record one wins.
func testConcurrentSwaps(t *testing.T, s record.Store) {
	ctx := t.Context()
	if _, err := s.SwapRollout(ctx, nil, Rollout(1)); err != nil {
		t.Fatal(err)
	}
	known := only(t, s)
	var mu sync.Mutex
	won := 0
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			_, err := s.SwapRollout(ctx, &known, Rollout(uint64(2+i)))
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				won++
			} else if !errors.Is(err, record.ErrConflict) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 {
		t.Errorf("%d swaps won, want 1", won)
	}
}

package kube

import (
	"reflect"
	"testing"
	"time"

	"chandler.dev/chandler"
)

// So is what it says of a rollout, and whatever else somebody wrote there is none.
func TestRolloutInStatus(t *testing.T) {
	t.Parallel()
	two := &chandler.RolloutPlan{Steps: make([]chandler.RolloutStep, 2)}
	for _, r := range []*chandler.Rollout{
		nil,
		{State: chandler.RolloutProgressing, Plan: two, Disabled: []chandler.Disablement{}},
		{State: chandler.RolloutPaused, Plan: two, Step: 1, Pinned: true, Disabled: make([]chandler.Disablement, 2)},
		{State: chandler.RolloutHealthy, Disabled: []chandler.Disablement{}},
	} {
		if got := newRolloutJSON(r).told(); !reflect.DeepEqual(got, r) {
			t.Errorf("got %+v, want %+v", got, r)
		}
	}
	for _, step := range []string{"0/2", "3/2", "-1/2", "1/99999999", "1", "x/y", ""} {
		if got := (&rolloutJSON{Step: step, Disabled: -1}).told(); got.Plan != nil || len(got.Disabled) > 0 {
			t.Errorf("%q is read as %+v", step, got)
		}
	}
}

// What a resource's status says of a release is read back from it.
func TestReleaseInStatus(t *testing.T) {
	t.Parallel()
	r := chandler.Release{
		Reference: "oci://reg.example/a:v1", Artifact: "sha256:aa", Blob: "sha256:bb", ABI: "0.2.1", ResolvedAt: time.Date(2026, 11, 28, 6, 0, 0, 0, time.UTC),
		Program: chandler.Program{Module: &chandler.Module{Digest: "sha256:cc", Size: 7}},
		Schema:  &chandler.ConfigSchema{Digest: "sha256:dd"},
	}
	f := newStatusFields(&chandler.Status{Release: &r})
	if got := f.told().Release; !reflect.DeepEqual(got, &r) {
		t.Errorf("got %+v, want %+v", got, r)
	}
	r.Schema = nil
	if f = newStatusFields(&chandler.Status{Release: &r}); f.Chandler.SchemaDigest != "" || f.told().Release.Schema != nil {
		t.Errorf("a schema is told where there is none: %+v", f.Chandler)
	}
}

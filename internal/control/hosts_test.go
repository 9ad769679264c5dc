package control_test

import (
	"fmt"
	"testing"
	"testing/synctest"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/module"
)

// A host that does not answer is asked by one plugin at a time: all say why they
// wait, plugins of other hosts do not notice, and when it answers all are
// resolved without a further wait.
func TestOneProberAHost(t *testing.T) {
	t.Parallel()
	synctest.Test(t, oneProberAHost)
}

func oneProberAHost(t *testing.T) {
	const plugins = 40
	r := newRig(t)
	r.set("auth:v1", module.Append())
	away := &fetch.Error{Problem: chandler.Problem{Code: chandler.CodeFetchFailed, Message: "away.example: the connection is refused"}, Temporary: true, HostWide: true}
	r.hostFails("away.example", away)
	for i := range plugins {
		r.apply(fmt.Sprintf("p%d", i), "oci://away.example/auth:v1", nil)
	}
	for i := range plugins {
		name := fmt.Sprintf("p%d", i)
		r.await(name, chandler.ConditionResolvedRefs, "False FetchFailed")
		if st := r.status(name); st.NextTry.IsZero() || st.Attempt == 0 {
			t.Errorf("%s: attempt %d, next try %v", name, st.Attempt, st.NextTry)
		}
	}
	r.apply("here", "oci://reg.example/auth:v1", nil)
	r.await("here", chandler.ConditionResolvedRefs, "True Resolved")

	// The first few ask side by side, before it is known that the host is away; then
	// there is at most one a back-off, of which the longest is three seconds.
	if n := r.count(); n > plugins {
		t.Errorf("%d plugins asked %d times", plugins, n)
	}
	r.hostFails("away.example", nil)
	for i := range plugins {
		r.await(fmt.Sprintf("p%d", i), chandler.ConditionResolvedRefs, "True Resolved")
	}
}

package access

import (
	"errors"
	"testing"
)

func TestSightAsksOnceAndStopsAtAnError(t *testing.T) {
	t.Parallel()
	asked := map[question]int{}
	away := errors.New("nobody can be asked")
	s := NewSight(func(v Verb, namespace string) (bool, error) {
		asked[question{v, namespace}]++
		if namespace == "lost" {
			return true, away
		}
		return v == Read || namespace == "edge", nil
	})
	for range 3 {
		if !s.May(List, "edge") || s.May(List, "shop") || !s.May(Read, "shop") || s.Everywhere(List) || !s.Everywhere(Read) {
			t.Fatal("it does not say what was answered")
		}
	}
	for q, n := range asked {
		if n != 1 {
			t.Errorf("%v was asked %d times", q, n)
		}
	}
	if asked[question{Read, "shop"}] != 0 {
		t.Error("what is allowed everywhere was asked of one namespace")
	}
	if s.Err() != nil || s.May(List, "lost") || !errors.Is(s.Err(), away) {
		t.Error(s.Err())
	}
	if s.May(List, "edge") || s.May(Read, "shop") {
		t.Error("after an error something is allowed")
	}
}

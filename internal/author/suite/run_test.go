package suite

import (
	"context"
	"testing"

	"chandler.dev/chandler/internal/exchange"
)

// hurried is an engine on a busy machine: in its first sessions a tick too many passes, and
// what the plugin does then is not what is expected.
type hurried struct {
	*fake
	sessions int
	starts   int
	always   bool // what is not expected comes without such a tick, too
}

type hurriedSession struct {
	*fakeSession
	extra, wrong bool
}

func (h *hurried) Start(ctx context.Context, s exchange.Setup) (exchange.Session, error) {
	session, err := h.fake.Start(ctx, s)
	if err != nil {
		return nil, err
	}
	h.starts++
	extra := h.starts <= h.sessions
	return &hurriedSession{session.(*fakeSession), extra, extra || h.always}, nil
}

func (s *hurriedSession) Do(ctx context.Context, e exchange.Exchange) (*exchange.Outcome, error) {
	o, err := s.fakeSession.Do(ctx, e)
	if s.wrong {
		o.Response = &exchange.Message{Headers: []exchange.Header{{Name: ":status", Value: "503"}}}
	}
	return o, err
}

func (s *hurriedSession) Extra() int {
	if s.extra {
		return 1
	}
	return 0
}

// A case that fails while more ticks pass than it asks for is run again, so often and no
// more; one that fails without is not.
func TestExtraTicks(t *testing.T) {
	t.Parallel()
	tests := load(t, "cases: [{name: a, request: /, expect: 200}]")
	for name, c := range map[string]struct {
		engine  *hurried
		verdict Verdict
		starts  int
	}{
		"none":              {&hurried{fake: good("a")}, Passed, 1},
		"in the first two":  {&hurried{fake: good("a"), sessions: 2}, Passed, 3},
		"in every one":      {&hurried{fake: good("a"), sessions: 100}, Failed, tries},
		"it fails without":  {&hurried{fake: good("a"), always: true}, Failed, 1},
		"it fails with one": {&hurried{fake: good("a"), sessions: 1, always: true}, Failed, 2},
	} {
		r := run(t, tests, c.engine, good("b"))[0]
		if r.Verdict != c.verdict || c.engine.starts != c.starts || c.engine.closed != c.starts || len(r.Runs) != 2 {
			t.Errorf("%s: %s after %d runs, %d closed: %+v", name, r.Verdict, c.engine.starts, c.engine.closed, r)
		}
	}
}

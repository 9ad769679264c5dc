package agent

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"chandler.dev/chandler"
)

// The log tells of a plugin once what is wrong with it, again when that or its outcome is
// another, and when it is well.
func TestLogTellsOfFailures(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	told := failures{}
	key := chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "edge", Name: "auth"}
	failed := chandler.AttachmentState{Key: key, Release: "0123456789abcdef", State: chandler.StateFailed, Reason: chandler.CodeFileMissing, Message: "no such file"}
	fetching, denied, updated, bypassed, good := failed, failed, failed, failed, failed
	fetching.State, fetching.Reason = chandler.StateFetching, ""
	denied.StandIn = chandler.StandInDeny
	updated.Reason, updated.InForce = chandler.CodeFetchFailed, "fedcba9876543210"
	bypassed.Reason = chandler.CodeBypassed
	good.State, good.Reason, good.InForce = chandler.StateInForce, "", good.Release
	for _, step := range []struct {
		name string
		st   *chandler.AttachmentState
		want string
	}{
		{"being fetched", &fetching, ""},
		{"missing", &failed, `level=WARN msg="a plugin cannot be put in force" plugin=WasmPlugin/edge/auth release=0123456789ab instead="traffic goes on as before" reason=FileMissing message="no such file"`},
		{"missing still", &failed, ""},
		{"past the deadline", &denied, `instead="requests are refused" reason=FileMissing`},
		{"another reason, a release before", &updated, `instead="release fedcba987654" reason=FetchFailed`},
		{"tried once more", &fetching, ""},
		{"in vain", &updated, ""},
		{"in force", &good, `level=INFO msg="a plugin is in force again" plugin=WasmPlugin/edge/auth release=0123456789ab`},
		{"in force still", &good, ""},
		{"bypassed", &bypassed, ""},
		{"missing again", &failed, "reason=FileMissing"},
		{"not for this proxy", nil, ""},
		{"back, and missing", &failed, "reason=FileMissing"},
	} {
		out.Reset()
		report := map[chandler.Key]chandler.AttachmentState{}
		if step.st != nil {
			report[key] = *step.st
		}
		told.tell(log, report)
		if got := out.String(); !strings.Contains(got, step.want) || (step.want == "") != (got == "") {
			t.Errorf("%s: the log has %q, want %q", step.name, got, step.want)
		}
	}
}

// onWrite is called with what a log says.
type onWrite func(line string)

func (f onWrite) Write(b []byte) (int, error) { f(string(b)); return len(b), nil }

// What the log tells of is on the admin page by then, for who looks there because of it.
func TestToldIsShown(t *testing.T) {
	t.Parallel()
	a, v := bareAgent(t), version("a")
	told := 0
	a.log = slog.New(slog.NewTextHandler(onWrite(func(line string) {
		told++
		if shown := a.view.Load().report; len(shown) != 1 || shown[0].Reason != chandler.CodeFetchFailed {
			t.Errorf("the log says %sshown is %+v", line, shown)
		}
	}), nil))
	a.step(t.Context(), message{event: EnvoyStarted{Envoy: "e", Open: true}})
	a.step(t.Context(), message{event: Subscribed{Slot: authn}})
	a.step(t.Context(), message{event: Assigned{Changed: []Version{v}}})
	a.loader.wait()
	<-a.inbox // there is no control plane
	a.step(t.Context(), message{event: Loaded{Source: source(&v), Err: &LoadError{Problem: chandler.Problem{Code: chandler.CodeFetchFailed}}}})
	if told != 1 {
		t.Errorf("the log told %d things", told)
	}
}

package web

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/control"
)

// helm is rollouts of two namespaces, and what was ordered.
type helm struct {
	orders []string
	err    error
}

func (h *helm) Rollout(key chandler.Key, _ chandler.Node) (chandler.Rollout, bool, bool) {
	return underWay(key).Rollout, true, true
}

func (h *helm) Rollouts(context.Context) ([]control.RolloutView, error) {
	var all []control.RolloutView
	for _, namespace := range []string{"edge", "shop"} {
		all = append(all, underWay(chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: namespace, Name: "auth"}))
	}
	return all, h.err
}

func underWay(key chandler.Key) control.RolloutView {
	return control.RolloutView{Rollout: chandler.Rollout{
		Key: key, State: chandler.RolloutProgressing, From: "old", To: "new", Step: 1, Since: time.Unix(1000, 0),
		Plan:  &chandler.RolloutPlan{Steps: []chandler.RolloutStep{{Percent: 10}, {Labels: map[string]string{"a": "b"}}, {Percent: 100}}, Interval: time.Minute},
		Gates: []chandler.Measure{{Gate: chandler.GateSuccess, Result: chandler.GateHolds, Chosen: 0.5, Others: 0.25, HasOthers: true}},
	}}
}

func (h *helm) FirstStage(*chandler.Plugin) (control.FirstStage, bool) {
	return control.FirstStage{}, false
}

func (h *helm) Steer(_ context.Context, s control.Steering) (control.RolloutView, error) {
	h.orders = append(h.orders, strings.Join([]string{string(s.Verb), s.Key.String(), s.Release, s.By, s.Why}, "|"))
	return underWay(s.Key), h.err
}

func (h *helm) Disable(_ context.Context, k chandler.Key, d chandler.Disablement) (control.RolloutView, error) {
	h.orders = append(h.orders, strings.Join([]string{"disable", k.String(), d.Target(), d.By, d.Reason}, "|"))
	return underWay(k), h.err
}

func (h *helm) Enable(_ context.Context, k chandler.Key, d chandler.Disablement) (control.RolloutView, error) {
	h.orders = append(h.orders, strings.Join([]string{"enable", k.String(), d.Target(), d.By}, "|"))
	return underWay(k), h.err
}

// as asks the service as somebody who shows a token.
func (s *served) rolloutsAs(who, method, body string) (int, string) {
	s.t.Helper()
	return s.with(&http.Transport{DisableKeepAlives: true}, "http://"+s.addr+"/chandler.v1.Rollouts/"+method, body, showing(who))
}

func TestRolloutsAreForThoseWhoMay(t *testing.T) {
	t.Parallel()
	h := &helm{}
	s := serve(t, Config{Control: fakeControl{}, Rollouts: h, Grants: granted(tokenOf("looks", access.Viewer, "edge"), tokenOf("steers", access.Operator, "edge"))})

	code, text := s.rolloutsAs("looks", "ListRollouts", `{"namespace":"edge"}`)
	for _, want := range []string{`"namespace":"edge"`, `"steps":["10%","a=b","100%"]`, `"from":"old"`, `"interval":"60s"`, `"others":0.25`} {
		if code != http.StatusOK || !strings.Contains(strings.ReplaceAll(text, " ", ""), want) {
			t.Errorf("%d, %s: lacks %s", code, text, want)
		}
	}
	if strings.Contains(text, "shop") || strings.Contains(text, `"before"`) {
		t.Errorf("says too much: %s", text)
	}
	service := &rollouts{Config{Rollouts: h}}
	seen, err := afar(t, "viewer", chandlerv1connect.RolloutsListRolloutsProcedure, service.ListRollouts, &chandlerv1.ListRolloutsRequest{})
	if err != nil || len(seen.Rollouts) != 1 || seen.Rollouts[0].Ref.Namespace != "edge" {
		t.Errorf("from another machine: %v, %v", seen, err)
	}
	order := `{"ref":{"kind":"WasmPlugin","namespace":"edge","name":"auth"},"verb":"VERB_UNDO","release":"01234567","why":"lunch"}`
	for who, want := range map[string]int{"looks": http.StatusForbidden, "nobody": http.StatusUnauthorized} {
		if code, text := s.rolloutsAs(who, "Steer", order); code != want || len(h.orders) != 0 {
			t.Errorf("%s: %d %s, orders %v", who, code, text, h.orders)
		}
	}
	if code, text := s.rolloutsAs("steers", "Disable", `{"ref":{"namespace":"shop","name":"auth"},"reason":"x"}`); code != http.StatusForbidden || len(h.orders) != 0 {
		t.Errorf("in another namespace: %d %s", code, text)
	}
	for method, body := range map[string]string{
		"Steer": `{"ref":{"namespace":"edge","name":"auth"}}`, "Disable": `{"ref":{"namespace":"edge","name":"auth"}}`,
		"Enable": `{"ref":{"namespace":"edge","name":"auth"},"node":"gw"}`,
	} {
		if code, text := s.rolloutsAs("steers", method, body); code != http.StatusBadRequest || len(h.orders) != 0 {
			t.Errorf("%s %s: %d %s", method, body, code, text)
		}
	}
	if code, text := s.rolloutsAs("steers", "Steer", order); code != http.StatusOK {
		t.Errorf("%d %s", code, text)
	}
	if code, text := s.rolloutsAs("steers", "Disable", `{"ref":{"namespace":"edge","name":"auth"},"labels":{"a":"b"},"reason":" INC-1 "}`); code != http.StatusOK {
		t.Errorf("%d %s", code, text)
	}
	if code, text := s.rolloutsAs("steers", "Enable", `{"ref":{"namespace":"edge","name":"auth"},"node":"edge/gw"}`); code != http.StatusOK {
		t.Errorf("%d %s", code, text)
	}
	want := "undo|WasmPlugin/edge/auth|01234567|steers|lunch\ndisable|WasmPlugin/edge/auth|a=b|steers|INC-1\nenable|WasmPlugin/edge/auth|edge/gw|steers"
	if got := strings.Join(h.orders, "\n"); got != want {
		t.Errorf("ordered\n%s\nwant\n%s", got, want)
	}
	for _, line := range []string{"does=Steer order=undo release=01234567 why=lunch", "does=Disable proxies=a=b why=INC-1", "who=steers"} {
		if !strings.Contains(strings.ReplaceAll(s.log.String(), `"`, ""), line) {
			t.Errorf("the log lacks %s:\n%s", line, s.log)
		}
	}
}

func TestWhyAnOrderWasNotCarriedOut(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]string{control.ErrNoPlugin: "not_found", control.ErrNotNow: "failed_precondition", context.DeadlineExceeded: "deadline_exceeded", http.ErrBodyNotAllowed: "unavailable"} {
		s := serve(t, Config{Control: fakeControl{}, Rollouts: &helm{err: err}, Grants: granted(tokenOf("steers", access.Operator, "*"))})
		if _, text := s.rolloutsAs("steers", "Steer", `{"ref":{"namespace":"edge","name":"auth"},"verb":"VERB_ABORT"}`); !strings.Contains(text, want) || !strings.Contains(text, err.Error()) {
			t.Errorf("%v became %s", err, text)
		}
	}
}

package config

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/rollout"
)

func written(t *testing.T, content string) (*File, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "chandler.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(path)
}

// The plugin's own plan wins, then the first rule that names it.
func TestRolloutFor(t *testing.T) {
	t.Parallel()
	f, err := written(t, `
rollouts:
- namespaces: [shop, "team-*"]
  selector: {tier: edge}
  steps: ["canary=true", "10%"]
  interval: 5m
  onFailure: pause
  requests: 1000
  margins: {success: 0%, redirects: 1%, clientErrors: 2.5%, serverErrors: 0.1%, latency: 1.2, latencyFloor: 5ms}
- namespaces: [shop]
  steps: ["25%"]
- selector: {tier: core}
  steps: [1]
`)
	var e *Error
	if !errors.As(err, &e) || len(e.Mistakes) != 1 || e.Mistakes[0].Line != 13 {
		t.Fatalf("a step that is no text: %v", err)
	}
	f, err = written(t, `
rollouts:
- namespaces: [shop, "team-*"]
  selector: {tier: edge}
  steps: ["canary=true", "10%"]
  interval: 5m
  onFailure: pause
  requests: 1000
  margins: {success: 0%, redirects: 1%, clientErrors: 2.5%, serverErrors: 0.1%, latency: 1.2, latencyFloor: 5ms}
- namespaces: [shop]
  steps: ["25%"]
- selector: {tier: core}
  steps: ["1"]
`)
	if err != nil {
		t.Fatal(err)
	}
	of := func(namespace, tier string) *chandler.RolloutPlan {
		return f.RolloutFor(&chandler.Plugin{Key: chandler.Key{Namespace: namespace, Name: "p"}, Labels: map[string]string{"tier": tier}})
	}
	margins := chandler.Margins{
		Requests: 1000, Redirect: 0.01, ClientError: 0.025, ServerError: 0.001, Latency: 1.2, LatencyFloor: 5 * time.Millisecond,
	}
	for _, place := range []string{"shop", "team-a"} {
		if p := of(place, "edge"); p == nil || len(p.Steps) != 3 || p.Interval != 5*time.Minute || p.OnFailure != chandler.OnFailurePause || p.Margins != margins {
			t.Errorf("%s: %+v", place, p)
		}
	}
	if p := of("shop", "other"); p == nil || len(p.Steps) != 2 || p.Interval != time.Minute || p.OnFailure != chandler.OnFailureRollback || p.Margins != rollout.DefaultMargins() {
		t.Errorf("%+v", p)
	}
	if p := of("bank", "core"); p == nil || p.Steps[0].Count != 1 {
		t.Errorf("%+v", p)
	}
	if p := of("bank", "edge"); p != nil {
		t.Errorf("%+v", p)
	}
	own := &chandler.RolloutPlan{}
	if p := f.RolloutFor(&chandler.Plugin{Key: chandler.Key{Namespace: "shop"}, Rollout: own}); p != own {
		t.Errorf("%+v", p)
	}
	if p := new(File).RolloutFor(&chandler.Plugin{}); p != nil {
		t.Errorf("%+v", p)
	}
}

func TestRolloutMistakes(t *testing.T) {
	t.Parallel()
	for rule, field := range map[string]string{
		`{namespaces: [shop]}`:                                  "rollouts[0].steps",
		`{steps: []}`:                                           "rollouts[0].steps",
		`{steps: ["50%", "10%"]}`:                               "rollouts[0].steps",
		`{steps: ["10%"], namespaces: []}`:                      "rollouts[0].namespaces",
		`{steps: ["10%"], namespaces: ["Shop"]}`:                "rollouts[0].namespaces[0]",
		`{steps: ["10%"], namespaces: ["[a]"]}`:                 "rollouts[0].namespaces[0]",
		`{steps: ["10%"], interval: 0s}`:                        "rollouts[0].interval",
		`{steps: ["10%"], interval: 200h}`:                      "rollouts[0].interval",
		`{steps: ["10%"], onFailure: hope}`:                     "rollouts[0].onFailure",
		`{steps: ["10%"], requests: 0}`:                         "rollouts[0].requests",
		`{steps: ["10%"], requests: 1000001}`:                   "rollouts[0].requests",
		`{steps: ["10%"], step: 1}`:                             "rollouts[0].step",
		`{steps: ["10%"], margins: {serverErrors: 0.01}}`:       "rollouts[0].margins.serverErrors",
		`{steps: ["10%"], margins: {serverErrors: 101%}}`:       "rollouts[0].margins.serverErrors",
		`{steps: ["10%"], margins: {serverErrors: -1%}}`:        "rollouts[0].margins.serverErrors",
		`{steps: ["10%"], margins: {serverErrors: NaN%}}`:       "rollouts[0].margins.serverErrors",
		`{steps: ["10%"], margins: {latency: 0.9}}`:             "rollouts[0].margins.latency",
		`{steps: ["10%"], margins: {latency: fast}}`:            "rollouts[0].margins.latency",
		`{steps: ["10%"], margins: {latencyFloor: 2m}}`:         "rollouts[0].margins.latencyFloor",
		`{steps: ["10%"], selector: {tier: edge, tier: other}}`: "rollouts[0].selector.tier",
	} {
		_, err := written(t, "rollouts:\n- "+rule+"\n")
		var e *Error
		if !errors.As(err, &e) || len(e.Mistakes) != 1 || e.Mistakes[0].Problem.Field != field || e.Mistakes[0].Problem.Hint == "" {
			t.Errorf("%s: %v", rule, err)
		}
	}
}

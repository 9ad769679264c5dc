package source_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source"
)

// rolled is a plugin with annotations, each on a line.
func rolled(annotations string) source.Document {
	doc := strings.Replace(wasmPlugin("url: a"), "  name: p\n", "  name: p\n  annotations:\n    "+strings.ReplaceAll(annotations, "\n", "\n    ")+"\n", 1)
	return source.Decode([]byte(doc), "ns")[0]
}

func TestRollout(t *testing.T) {
	t.Parallel()
	d := rolled("chandler.dev/rollout: 10%,canary=true\nchandler.dev/rollout-interval: 5m\nchandler.dev/rollout-on-failure: pause")
	if d.Plugin == nil || d.Plugin.Rollout == nil || len(d.Warnings) != 0 {
		t.Fatalf("%+v", d)
	}
	p := d.Plugin.Rollout
	steps := []chandler.RolloutStep{{Percent: 10}, {Labels: map[string]string{"canary": "true"}}, {Percent: 100}}
	if !reflect.DeepEqual(p.Steps, steps) || p.Interval != 5*time.Minute || p.OnFailure != chandler.OnFailurePause || p.Margins.Requests != 100 {
		t.Errorf("%+v", p)
	}
	if d := rolled("other: x"); d.Plugin == nil || d.Plugin.Rollout != nil {
		t.Errorf("%+v", d)
	}
	shown := string(source.Redact([]byte(strings.Replace(wasmPlugin("url: a"), "  name: p\n", "  name: p\n  annotations: {chandler.dev/rollout: 10%}\n", 1))))
	if !strings.Contains(shown, "10%") {
		t.Errorf("the steps are no secret:\n%s", shown)
	}
}

// A plugin whose steps cannot be read is refused: it would go to everyone at once.
func TestRolloutMistakes(t *testing.T) {
	t.Parallel()
	d := rolled("chandler.dev/rollout: fast\nchandler.dev/rollout-interval: soon\nchandler.dev/rollout-on-failure: hope")
	if d.Plugin != nil || len(d.Problems) != 3 {
		t.Fatalf("%+v", d.Problems)
	}
	for i, want := range []string{"rollout", "rollout-interval", "rollout-on-failure"} {
		if p := d.Problems[i]; p.Field != `metadata.annotations["chandler.dev/`+want+`"]` || p.Hint == "" {
			t.Errorf("%+v", p)
		}
	}
	if d := rolled("chandler.dev/rollot: 10%"); d.Plugin == nil || len(d.Warnings) != 1 || d.Warnings[0].Hint != "did you mean chandler.dev/rollout?" {
		t.Errorf("%+v", d)
	}
}

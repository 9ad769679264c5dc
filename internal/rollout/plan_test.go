package rollout_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/rollout"
)

func TestParse(t *testing.T) {
	t.Parallel()
	text := func(p *chandler.RolloutPlan) string {
		var steps []string
		for _, s := range p.Steps {
			steps = append(steps, s.String())
		}
		return strings.Join(steps, ",") + " " + p.Interval.String() + " " + string(p.OnFailure)
	}
	for _, c := range []struct{ steps, interval, onFailure, want string }{
		{"10%,50%,100%", "", "", "10%,50%,100% 1m0s rollback"},
		{" 1, 5 ,20%", "5m", "pause", "1,5,20%,100% 5m0s pause"},
		{"canary=true", "1s", "rollback", "canary=true,100% 1s rollback"},
		{"ring=0, ring=1,ring=2", "", "", "ring=0,ring=1,ring=2,100% 1m0s rollback"},
		{"zone=b+app.kubernetes.io/name=gw,50%", "", "", "app.kubernetes.io/name=gw+zone=b,50%,100% 1m0s rollback"},
		{"canary=", "", "", "canary=,100% 1m0s rollback"},
		{"100%", "", "", "100% 1m0s rollback"},
	} {
		annotations := map[string]string{chandler.AnnotationRollout: c.steps}
		if c.interval != "" {
			annotations[chandler.AnnotationRolloutInterval] = c.interval
		}
		if c.onFailure != "" {
			annotations[chandler.AnnotationRolloutOnFailure] = c.onFailure
		}
		p, problems := rollout.Parse(annotations)
		if len(problems) > 0 || text(p) != c.want || p.Margins != rollout.DefaultMargins() {
			t.Errorf("%+v: %+v %v", c, p, problems)
		}
	}
	if p, problems := rollout.Parse(map[string]string{"chandler.dev/probe": "x"}); p != nil || problems != nil {
		t.Error(p, problems)
	}
}

func TestParseProblems(t *testing.T) {
	t.Parallel()
	const steps, interval, onFailure = chandler.AnnotationRollout, chandler.AnnotationRolloutInterval, chandler.AnnotationRolloutOnFailure
	for _, c := range []struct{ annotation, text, want string }{
		{steps, "", `step "" is neither`},
		{steps, "10%,", `step "" is neither`},
		{steps, "fast", `step "fast" is neither`},
		{steps, "0%", "not from 1% to 100%"},
		{steps, "101%", "not from 1% to 100%"},
		{steps, "1.5%", "neither"},
		{steps, "-1", "neither"},
		{steps, "0", "not from 1 to"},
		{steps, "1000001", "not from 1 to"},
		{steps, "99999999999999999999", "neither"},
		{steps, "50%,10%", `step "10%" comes after 50%`},
		{steps, "5,5", `step "5" comes after 5`},
		{steps, "100%,5", `step "5" comes after 100%`},
		{steps, "100%,100%", "comes after 100%"},
		{steps, "a=b,a=b", `step "a=b" comes after a=b`},
		{steps, "a=b+c", `at "c"`},
		{steps, "a=b+a=c", `label "a" twice`},
		{steps, "=b", `at "=b"`},
		{steps, "a b=c", "at"},
		{steps, "a=" + strings.Repeat("x", 64), "at"},
		{steps, "a=1+b=1+c=1+d=1+e=1+f=1+g=1+h=1+i=1", "more than 8 labels"},
		{steps, "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20", "more than 20 steps"},
		{steps, strings.Repeat("1", 5000), "bytes, limit"},
		{interval, "fast", `interval "fast" is none`},
		{interval, "10", "is none"},
		{interval, "999ms", "is none"},
		{interval, "169h", "is none"},
		{interval, "-5m", "is none"},
		{onFailure, "Rollback", `"Rollback" is unknown`},
		{onFailure, "", `"" is unknown`},
	} {
		annotations := map[string]string{steps: "10%"}
		annotations[c.annotation] = c.text
		p, problems := rollout.Parse(annotations)
		if p != nil || len(problems) != 1 || problems[0].Field != `metadata.annotations["`+c.annotation+`"]` ||
			!strings.Contains(problems[0].Message, c.want) || problems[0].Hint == "" || len(problems[0].Error()) > 1000 {
			t.Errorf("%s=%q: %+v", c.annotation, c.text, problems)
		}
	}
	if _, problems := rollout.Parse(map[string]string{interval: "5m", onFailure: "pause"}); len(problems) != 2 {
		t.Error("an interval without steps:", problems)
	}
}

// FuzzParse: a plan that is taken is within its bounds, ends with everyone, and is read
// as the same from what it prints.
func FuzzParse(f *testing.F) {
	f.Add("10%,50%,100%", "1m", "rollback")
	f.Add("1,a=b+c=d,ring=2,7%", "5s", "pause")
	f.Fuzz(func(t *testing.T, steps, interval, onFailure string) {
		p, problems := rollout.Parse(map[string]string{
			chandler.AnnotationRollout: steps, chandler.AnnotationRolloutInterval: interval, chandler.AnnotationRolloutOnFailure: onFailure,
		})
		if (p == nil) != (len(problems) > 0) {
			t.Fatal(p, problems)
		}
		if p == nil {
			return
		}
		if n := len(p.Steps); n == 0 || n > rollout.MaxSteps || !p.Steps[n-1].Everyone() {
			t.Fatal(p.Steps)
		}
		var printed []string
		for i, s := range p.Steps {
			if i < len(p.Steps)-1 && s.Everyone() {
				t.Fatal(p.Steps)
			}
			printed = append(printed, s.String())
		}
		again, problems := rollout.Parse(map[string]string{
			chandler.AnnotationRollout: strings.Join(printed, ","), chandler.AnnotationRolloutInterval: p.Interval.String(), chandler.AnnotationRolloutOnFailure: string(p.OnFailure),
		})
		if len(problems) > 0 || !reflect.DeepEqual(again, p) {
			t.Fatal(printed, again, problems)
		}
		if p.Interval < time.Second || p.Interval > rollout.MaxInterval {
			t.Fatal(p.Interval)
		}
	})
}

package status

import (
	"fmt"
	"strings"

	"chandler.dev/chandler"
)

// steered says why not everyone has, or is to have, what the resource means, although
// that is known; an empty code: everyone is.
func steered(r *chandler.Rollout) (chandler.Code, string) {
	switch {
	case r == nil:
		return "", ""
	case len(r.Disabled) > 0:
		return chandler.CodeDisabled, disabled(r.Disabled)
	case r.Pinned:
		return chandler.CodePinned, "an earlier release is held until the resource is changed, or somebody unpins it"
	case r.State == chandler.RolloutDegraded && r.Reason == chandler.CodeRolloutAborted:
		return chandler.CodeRolloutAborted, "the release was taken back by an order: " + r.Message
	case r.State == chandler.RolloutDegraded:
		return chandler.CodeRolloutFailed, "the release was taken back: " + r.Message
	case r.State == chandler.RolloutPaused:
		return chandler.CodeRolloutPaused, step(r) + " waits for somebody's word: " + r.Message
	case r.State == chandler.RolloutProgressing:
		return chandler.CodeRolloutProgressing, fmt.Sprintf("%s has come to %d of the %d chosen", step(r), r.Updated, r.Chosen)
	}
	return "", ""
}

// step says where a rollout is.
func step(r *chandler.Rollout) string {
	steps := len(r.Plan.Steps)
	at := min(r.Step+1, steps)
	return fmt.Sprintf("step %d of %d (%s)", at, steps, r.Plan.Steps[at-1])
}

// disabled says by which orders a plugin is taken out.
func disabled(orders []chandler.Disablement) string {
	var all []string
	for i := range orders {
		d := &orders[i]
		where := "everywhere"
		if d.Node != "" || len(d.Labels) > 0 {
			where = "on " + d.Target()
		}
		all = append(all, fmt.Sprintf("taken out %s by %s: %s", where, d.By, d.Reason))
	}
	return strings.Join(all, "; ")
}

// Incomplete says of a release that it cannot be given to anybody anew: the values of
// secrets that belong to its configuration are others by now.
func Incomplete(r *chandler.Release) chandler.Problem {
	var from []string
	for _, f := range r.ConfigFrom {
		from = append(from, "secret/"+f.Name+"#"+f.Key)
	}
	without := "who has nothing of it refuses requests"
	if r.FailStrategy == chandler.FailOpen {
		without = "who has nothing of it goes without"
	}
	return chandler.Problem{
		Code: chandler.CodeSecretChanged,
		Message: fmt.Sprintf("release %s cannot be given to proxies: it was made with values of %s that are not there any more, and the control plane, which keeps none on its disk, has begun anew since; who has something of the plugin keeps that, %s",
			r.ID.Short(), strings.Join(from, ", "), without),
		Hint: "put the values back, or go on to what the resource says (chandler rollout promote --full, retry or unpin)",
	}
}

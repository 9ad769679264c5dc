package wire

import (
	"google.golang.org/protobuf/types/known/durationpb"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

// RolloutToProto translates a rollout for the admin API; releases are those that are
// recorded.
func RolloutToProto(r *chandler.Rollout, releases []*chandler.Release) *chandlerv1.Rollout {
	m := &chandlerv1.Rollout{
		Ref: &chandlerv1.ObjectRef{Kind: r.Kind, Namespace: r.Namespace, Name: r.Name}, Uid: r.UID, Generation: r.Generation,
		State: string(r.State), Reason: string(r.Reason), Message: r.Message, From: string(r.From), To: string(r.To),
		Step: uint32(max(r.Step, 0)), Since: encodeTime(r.Since), Next: encodeTime(r.Next),
		Proxies: uint32(r.Proxies), Chosen: uint32(r.Chosen), Updated: uint32(r.Updated), Pinned: r.Pinned,
	}
	if r.Plan != nil {
		m.OnFailure, m.Steps = string(r.Plan.OnFailure), steps(r.Plan)
	}
	if p := r.Ahead; p != nil {
		m.Ahead = &chandlerv1.RolloutPlan{
			Steps: steps(p), Interval: durationpb.New(p.Interval), OnFailure: string(p.OnFailure),
			OtherMargins: len(p.Steps) > 0 && r.Plan != nil && p.Margins != r.Plan.Margins,
		}
	}
	for _, g := range r.Gates {
		measure := &chandlerv1.GateMeasure{
			Gate: string(g.Gate), Result: string(g.Result), Message: g.Message, Chosen: g.Chosen, Limit: g.Limit,
		}
		if g.HasOthers {
			measure.Others = &g.Others
		}
		if g.HasBefore {
			measure.Before = &g.Before
		}
		m.Gates = append(m.Gates, measure)
	}
	for _, d := range r.Disabled {
		m.Disabled = append(m.Disabled, &chandlerv1.Disablement{Node: d.Node, Labels: d.Labels, Reason: d.Reason, By: d.By, At: encodeTime(d.At)})
	}
	byID := map[chandler.ReleaseID]*chandler.Release{}
	for _, release := range releases {
		byID[release.ID] = release
	}
	for _, h := range r.History {
		m.History = append(m.History, &chandlerv1.HistoricRelease{
			Release: string(h.Release), Generation: h.Generation, Sequence: h.Sequence, At: encodeTime(h.At),
			Outcome: h.Outcome, By: h.By, Why: h.Why, Resolved: encodeResolved(byID[h.Release]),
		})
	}
	return m
}

// steps are those of a plan as they are written.
func steps(p *chandler.RolloutPlan) (all []string) {
	for _, s := range p.Steps {
		all = append(all, s.String())
	}
	return all
}

// encodeSummary is what a status tells of a rollout.
func encodeSummary(r *chandler.Rollout) *chandlerv1.RolloutSummary {
	if r == nil {
		return nil
	}
	m := &chandlerv1.RolloutSummary{
		State: string(r.State), Reason: string(r.Reason), Message: r.Message, Pinned: r.Pinned, Disabled: uint32(len(r.Disabled)),
	}
	if r.Plan != nil {
		m.Steps = uint32(len(r.Plan.Steps))
		if r.Step < len(r.Plan.Steps) {
			m.Step = uint32(r.Step + 1)
		}
	}
	return m
}

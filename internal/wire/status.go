package wire

import (
	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

// StatusToProto translates a status for the admin API: up to
// chandler.MaxFailures failing proxies, and every proxy when asked for.
func StatusToProto(s *chandler.Status, proxies bool) *chandlerv1.Status {
	m := &chandlerv1.Status{
		ObservedGeneration: s.ObservedGeneration,
		Resolved:           encodeResolved(s.Release),
		Desired:            uint32(s.Desired),
		InForce:            uint32(s.InForce),
		Failed:             uint32(s.Failed),
		Problems:           ProblemsToProto(s.Problems),
		Warnings:           ProblemsToProto(s.Warnings),
		Attempt:            s.Attempt,
		NextTry:            encodeTime(s.NextTry),
		Rollout:            encodeSummary(s.Rollout),
	}
	for _, c := range s.Conditions {
		m.Conditions = append(m.Conditions, &chandlerv1.Condition{
			Type:               string(c.Type),
			Status:             string(c.Status),
			Reason:             string(c.Reason),
			Message:            c.Message,
			ObservedGeneration: c.ObservedGeneration,
			LastTransition:     encodeTime(c.LastTransition),
		})
	}
	for i := range s.Proxies {
		p := &s.Proxies[i]
		if p.State.Failing() && len(m.Failures) < chandler.MaxFailures {
			m.Failures = append(m.Failures, encodeProxy(p))
		}
		if proxies {
			m.Proxies = append(m.Proxies, encodeProxy(p))
		}
	}
	return m
}

func encodeResolved(r *chandler.Release) *chandlerv1.Resolved {
	if r == nil {
		return nil
	}
	m := &chandlerv1.Resolved{
		Reference:      r.ShownReference(),
		ArtifactDigest: string(r.Artifact),
		BlobDigest:     string(r.Blob),
		Abi:            r.ABI,
		At:             encodeTime(r.ResolvedAt),
		Release:        string(r.ID),
	}
	if why := r.SchemaUnusable(); r.Schema != nil || why != "" {
		m.Schema = &chandlerv1.ConfigSchema{Unusable: why}
	}
	if r.Schema != nil {
		m.Schema.Digest, m.Schema.Size = string(r.Schema.Digest), uint64(max(r.Schema.Size, 0))
	}
	switch p := r.Program; {
	case p.Module != nil:
		m.ModuleDigest, m.Size = string(p.Module.Digest), uint64(max(p.Module.Size, 0))
	case p.File != nil:
		m.ModuleDigest = string(p.File.Digest)
	}
	return m
}

// ProxyStatusToProto translates a proxy's line in the status of a plugin.
func ProxyStatusToProto(p *chandler.ProxyStatus) *chandlerv1.ProxyStatus { return encodeProxy(p) }

func encodeProxy(p *chandler.ProxyStatus) *chandlerv1.ProxyStatus {
	return &chandlerv1.ProxyStatus{
		Node:      p.Node,
		Namespace: p.Namespace,
		State:     string(p.State),
		Release:   string(p.Release),
		InForce:   string(p.InForce),
		Reason:    string(p.Reason),
		Message:   p.Message,
		Attempt:   p.Attempt,
		NextTry:   encodeTime(p.NextTry),
		Since:     encodeTime(p.Since),
		Connected: p.Connected,

		AgentVersion: p.AgentVersion,
		EnvoyVersion: p.EnvoyVersion,
		StandIn:      string(p.StandIn),
	}
}

// ProblemsToProto translates problems for the admin API.
func ProblemsToProto(ps []chandler.Problem) []*chandlerv1.Problem {
	var out []*chandlerv1.Problem
	for _, p := range ps {
		out = append(out, &chandlerv1.Problem{Code: string(p.Code), Field: p.Field, Message: p.Message, Hint: p.Hint})
	}
	return out
}

// ProblemsFromProto translates problems of the admin API, for showing.
func ProblemsFromProto(ps []*chandlerv1.Problem) []chandler.Problem {
	var out []chandler.Problem
	for _, p := range ps {
		out = append(out, chandler.Problem{Code: chandler.Code(p.GetCode()), Field: p.GetField(), Message: p.GetMessage(), Hint: p.GetHint()})
	}
	return out
}

package web

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/explain"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/wire"
)

// Limits of answers about the fleet.
const (
	usualEvents = 200
	mostEvents  = 2000
	// mostPreviewed is of how many objects of a manifest it is said what they change on
	// proxies.
	mostPreviewed = 100
)

// fleet is the service of that name.
type fleet struct{ cfg Config }

func (f *fleet) objects(ctx context.Context) ([]control.ObjectView, error) {
	views, err := f.cfg.Control.Objects(ctx)
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	return views, nil
}

// ListProxies implements the service. It gives the proxies of namespaces that the caller
// may see, and of their plugins those of such namespaces.
func (f *fleet) ListProxies(ctx context.Context, req *connect.Request[chandlerv1.ListProxiesRequest]) (*connect.Response[chandlerv1.ListProxiesResponse], error) {
	views, err := f.objects(ctx)
	if err != nil {
		return nil, err
	}
	sight := callerOf(ctx).sight(ctx)
	res := &chandlerv1.ListProxiesResponse{}
	byNode := map[string]*chandlerv1.Proxy{}
	for _, p := range f.cfg.Control.Proxies() {
		if wantsProxy(req.Msg, p.Node) && sight.May(access.List, p.Namespace) {
			m := proxyToProto(&p, req.Msg.Details, sight)
			res.Proxies, byNode[p.ID()] = append(res.Proxies, m), m
		}
	}
	for i := range views {
		v := &views[i]
		if !sight.May(access.List, v.Namespace) {
			continue
		}
		for j := range v.Status.Proxies {
			p := &v.Status.Proxies[j]
			if m := byNode[p.Namespace+"/"+p.Node]; m != nil {
				countPlugin(m, v, p, req.Msg.Details)
			}
		}
	}
	return connect.NewResponse(res), sight.Err()
}

func wantsProxy(req *chandlerv1.ListProxiesRequest, n chandler.Node) bool {
	return wants(req.Namespace, n.Namespace) && wants(req.Name, n.Name) && chandler.HasLabels(n.Labels, req.Labels)
}

func proxyToProto(p *control.ProxyView, details bool, sight *access.Sight) *chandlerv1.Proxy {
	m := &chandlerv1.Proxy{
		Namespace: p.Namespace, Name: p.Name, Labels: p.Labels, Connected: p.Connected, Since: moment(p.Since),
		AgentVersion: p.AgentVersion, EnvoyVersion: p.EnvoyVersion, Features: p.Features,
	}
	if p.Facts == nil {
		return m
	}
	facts := *p.Facts
	if !details {
		facts.Listeners = nil
	}
	m.Facts = wire.FactsToProto(&facts)
	m.Facts.Bypassed = slices.DeleteFunc(m.Facts.Bypassed, func(b *chandlerv1.Bypass) bool { return !sight.May(access.List, b.GetPlugin().GetNamespace()) })
	for _, l := range m.Facts.Listeners {
		for _, s := range l.Slots {
			s.Members = slices.DeleteFunc(s.Members, func(x *chandlerv1.SlotMember) bool { return !sight.May(access.List, x.GetPlugin().GetNamespace()) })
		}
	}
	return m
}

// countPlugin adds a plugin to what a proxy has.
func countPlugin(m *chandlerv1.Proxy, v *control.ObjectView, p *chandler.ProxyStatus, details bool) {
	if details {
		m.Plugins = append(m.Plugins, &chandlerv1.ProxyPlugin{Ref: refToProto(v.Key), Status: proxyStatusToProto(v, p)})
	}
	current := p.Wanted != "" && p.Release == p.Wanted
	if p.Nothing || current && p.State == chandler.StateUnmatched {
		return
	}
	m.Desired++
	switch {
	case current && p.State == chandler.StateInForce && p.InForce == p.Release && p.Reason != chandler.CodeEnvoyDown:
		m.InForce++
	case current && p.State.Failing():
		m.Failed++
	}
}

// proxyStatusToProto is a proxy's line of an object, with the digest of what is in force
// there.
func proxyStatusToProto(v *control.ObjectView, p *chandler.ProxyStatus) *chandlerv1.ProxyStatus {
	m := wire.ProxyStatusToProto(p)
	m.Digest = digestIn(v, p.InForce)
	return m
}

// digestIn gives the digest of the module of a release of an object; empty: it is not
// known, or has none.
func digestIn(v *control.ObjectView, id chandler.ReleaseID) string {
	r := v.Status.Release
	if r == nil || r.ID != id {
		i := slices.IndexFunc(v.History, func(r *chandler.Release) bool { return r.ID == id })
		if i < 0 {
			return ""
		}
		r = v.History[i]
	}
	switch {
	case r.Program.Module != nil:
		return string(r.Program.Module.Digest)
	case r.Program.File != nil:
		return string(r.Program.File.Digest)
	}
	return ""
}

// Explain implements the service. Its rule sees to it that the caller may see both.
func (f *fleet) Explain(ctx context.Context, req *connect.Request[chandlerv1.ExplainRequest]) (*connect.Response[chandlerv1.ExplainResponse], error) {
	views, err := f.objects(ctx)
	if err != nil {
		return nil, err
	}
	ref := req.Msg.Ref
	in := explain.Input{
		Key: keyOf(ref), Node: req.Msg.Node, Root: f.cfg.Control.RootNamespace(), Withhold: f.cfg.Control.Withholds(),
	}
	for i := range views {
		v := &views[i]
		if v.Namespace == in.Key.Namespace && v.Name == in.Key.Name && (ref.GetKind() == "" && in.Object == nil || v.Kind == ref.GetKind()) {
			in.Key, in.Object = v.Key, explainable(v)
		}
	}
	for _, p := range f.cfg.Control.Proxies() {
		if p.ID() == in.Node {
			in.Proxy = &explain.Proxy{Node: p.Node, Connected: p.Connected, Since: p.Since, Facts: p.Facts}
			if s, ok := p.States[in.Key]; ok {
				in.Proxy.State = &s
			}
		}
	}
	if f.cfg.Rollouts != nil && in.Object != nil && in.Proxy != nil {
		if r, chosen, ok := f.cfg.Rollouts.Rollout(in.Key, in.Proxy.Node); ok {
			in.Rollout, in.Chosen = &r, chosen
		}
	}
	a := explain.Explain(in)
	res := &chandlerv1.ExplainResponse{Verdict: a.Verdict, AsWanted: a.AsWanted}
	for _, c := range a.Checks {
		res.Checks = append(res.Checks, &chandlerv1.Check{Name: c.Name, Holds: c.Holds, Message: c.Message})
	}
	return connect.NewResponse(res), nil
}

func explainable(v *control.ObjectView) *explain.Object {
	o := &explain.Object{
		Generation: v.Generation, Plugin: v.Plugin, Problems: v.Problems, Against: v.Against,
		Detached: v.Detached, Denied: v.Denied, Release: v.Status.Release, History: v.History,
	}
	for _, c := range v.Status.Conditions {
		if c.Type == chandler.ConditionResolvedRefs {
			o.Resolved = c
		}
	}
	return o
}

// Preview implements the service.
func (f *fleet) Preview(ctx context.Context, req *connect.Request[chandlerv1.PreviewRequest]) (*connect.Response[chandlerv1.PreviewResponse], error) {
	views, err := f.objects(ctx)
	if err != nil {
		return nil, err
	}
	docs := source.Decode(req.Msg.Manifest, req.Msg.Namespace)
	results, err := f.results(ctx, req.Msg, docs, views)
	if err != nil {
		return nil, err
	}
	p := newPreview(ctx, &f.cfg, views)
	res := &chandlerv1.PreviewResponse{}
	for i := range min(len(docs), len(results)) {
		res.Objects = append(res.Objects, p.object(&docs[i], results[i], i < mostPreviewed))
	}
	return connect.NewResponse(res), p.sight.Err()
}

// results are what applying the manifest would say; where others keep the objects, what
// is to be seen from here.
func (f *fleet) results(ctx context.Context, req *chandlerv1.PreviewRequest, docs []source.Document, views []control.ObjectView) ([]source.Result, error) {
	if f.cfg.Editor != nil {
		results, err := f.cfg.Editor.Apply(ctx, source.ApplyRequest{Manifest: req.Manifest, Namespace: req.Namespace, DryRun: true})
		if err != nil {
			return nil, connect.NewError(connect.CodeInternal, err)
		}
		return results, nil
	}
	byKey := map[chandler.Key]*control.ObjectView{}
	for i := range views {
		byKey[views[i].Key] = &views[i]
	}
	results := make([]source.Result, 0, len(docs))
	for i := range docs {
		r := source.Result{Key: docs[i].Key, Action: source.Created, Generation: 1, Problems: docs[i].Problems, Warnings: docs[i].Warnings}
		if v := byKey[docs[i].Key]; v != nil {
			r.Action, r.Generation = source.Configured, v.Generation+1
			if explain.Diff("", r.Namespace, v.Manifest, docs[i].Manifest) == "" {
				r.Action, r.Generation = source.Unchanged, v.Generation
			}
		}
		if len(r.Problems) > 0 {
			r.Action = source.Refused
		}
		results = append(results, r)
	}
	return results, nil
}

// ListEvents implements the service. It gives those about plugins and proxies of
// namespaces that the caller may see; those about neither are for who may see all.
func (f *fleet) ListEvents(ctx context.Context, req *connect.Request[chandlerv1.ListEventsRequest]) (*connect.Response[chandlerv1.ListEventsResponse], error) {
	limit := int(min(cmp.Or(req.Msg.Limit, usualEvents), mostEvents))
	sight := callerOf(ctx).sight(ctx)
	all, _ := f.cfg.Control.Events(req.Msg.After)
	res := &chandlerv1.ListEventsResponse{}
	for i := len(all) - 1; i >= 0 && len(res.Events) < limit; i-- {
		if e := &all[i]; wantsEvent(req.Msg, e) && sight.May(access.List, cmp.Or(e.Namespace(), access.Everywhere)) {
			res.Events = append(res.Events, eventToProto(e))
		}
	}
	slices.Reverse(res.Events)
	return connect.NewResponse(res), sight.Err()
}

func wantsEvent(req *chandlerv1.ListEventsRequest, e *chandler.Event) bool {
	return wants(req.Kind, e.Key.Kind) && wants(req.Namespace, e.Namespace()) && wants(req.Name, e.Key.Name) && wants(req.Node, e.Node)
}

func eventToProto(e *chandler.Event) *chandlerv1.Event {
	m := &chandlerv1.Event{
		Id: e.ID, At: timestamppb.New(e.At), Node: e.Node, Reason: string(e.Reason), Warning: e.Warning, Message: e.Message, By: e.By,
	}
	if e.Key != (chandler.Key{}) {
		m.Ref = refToProto(e.Key)
	}
	return m
}

// GetSetup implements the service.
func (f *fleet) GetSetup(context.Context, *connect.Request[chandlerv1.GetSetupRequest]) (*connect.Response[chandlerv1.GetSetupResponse], error) {
	if f.cfg.Setup == nil {
		return nil, connect.NewError(connect.CodeUnimplemented, errors.New("this control plane does not say how it was set up"))
	}
	return connect.NewResponse(f.cfg.Setup()), nil
}

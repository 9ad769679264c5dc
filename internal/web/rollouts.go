package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/wire"
)

// Rollouts is how far changes of plugins have come, and who steers that.
type Rollouts interface {
	// Rollout gives where that of a plugin is, and whether it has come to a proxy; not
	// ok: there is none, and everyone is to have the newest release.
	Rollout(key chandler.Key, n chandler.Node) (r chandler.Rollout, chosen, ok bool)
	// Rollouts gives all that are recorded, by their keys.
	Rollouts(context.Context) ([]control.RolloutView, error)
	// FirstStage gives whom a change to what a plugin says would come to first; not ok: to
	// everyone at once.
	FirstStage(*chandler.Plugin) (control.FirstStage, bool)
	// Steer, Disable and Enable give orders. The errors wrap control.ErrNoPlugin or
	// control.ErrNotNow when it is the order that is wrong.
	Steer(context.Context, control.Steering) (control.RolloutView, error)
	Disable(context.Context, chandler.Key, chandler.Disablement) (control.RolloutView, error)
	Enable(context.Context, chandler.Key, chandler.Disablement) (control.RolloutView, error)
}

// maxWhy bounds a reason, in characters.
const maxWhy = 512

// rollouts is the service of that name.
type rollouts struct{ cfg Config }

// ListRollouts implements the service. It gives those that the caller may see.
func (s *rollouts) ListRollouts(ctx context.Context, req *connect.Request[chandlerv1.ListRolloutsRequest]) (*connect.Response[chandlerv1.ListRolloutsResponse], error) {
	views, err := s.cfg.Rollouts.Rollouts(ctx)
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	sight := callerOf(ctx).sight(ctx)
	res := &chandlerv1.ListRolloutsResponse{}
	for i := range views {
		v, m := &views[i], req.Msg
		if wants(m.Kind, v.Kind) && wants(m.Namespace, v.Namespace) && wants(m.Name, v.Name) && sight.May(access.List, v.Namespace) {
			res.Rollouts = append(res.Rollouts, rolloutToProto(v))
		}
	}
	return connect.NewResponse(res), sight.Err()
}

// verbs are the orders by their names on the wire.
var verbs = map[chandlerv1.SteerRequest_Verb]control.Verb{
	chandlerv1.SteerRequest_VERB_PROMOTE: control.Promote, chandlerv1.SteerRequest_VERB_PROMOTE_FULL: control.PromoteFull,
	chandlerv1.SteerRequest_VERB_ABORT: control.Abort, chandlerv1.SteerRequest_VERB_UNDO: control.Undo,
	chandlerv1.SteerRequest_VERB_RETRY: control.Retry, chandlerv1.SteerRequest_VERB_UNPIN: control.Unpin,
	chandlerv1.SteerRequest_VERB_PAUSE: control.Pause, chandlerv1.SteerRequest_VERB_RESUME: control.Resume,
}

// Steer implements the service.
func (s *rollouts) Steer(ctx context.Context, req *connect.Request[chandlerv1.SteerRequest]) (*connect.Response[chandlerv1.SteerResponse], error) {
	verb, ok := verbs[req.Msg.Verb]
	if !ok {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("the request says nothing that is to be done (verb)"))
	}
	if err := words(req.Msg.Why, req.Msg.Release); err != nil {
		return nil, err
	}
	view, err := s.cfg.Rollouts.Steer(ctx, control.Steering{
		Key: keyOf(req.Msg.GetRef()), Verb: verb, Release: req.Msg.Release, By: callerOf(ctx).name, Why: req.Msg.Why,
	})
	if err != nil {
		return nil, notSteered(err)
	}
	return connect.NewResponse(&chandlerv1.SteerResponse{Rollout: rolloutToProto(&view)}), nil
}

// Disable implements the service.
func (s *rollouts) Disable(ctx context.Context, req *connect.Request[chandlerv1.DisableRequest]) (*connect.Response[chandlerv1.DisableResponse], error) {
	d, err := disablement(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	if d.Reason = strings.TrimSpace(req.Msg.Reason); d.Reason == "" {
		return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("say why (reason): others will read it"))
	}
	if err := words(d.Reason); err != nil {
		return nil, err
	}
	view, err := s.cfg.Rollouts.Disable(ctx, keyOf(req.Msg.GetRef()), d)
	if err != nil {
		return nil, notSteered(err)
	}
	return connect.NewResponse(&chandlerv1.DisableResponse{Rollout: rolloutToProto(&view)}), nil
}

// Enable implements the service.
func (s *rollouts) Enable(ctx context.Context, req *connect.Request[chandlerv1.EnableRequest]) (*connect.Response[chandlerv1.EnableResponse], error) {
	d, err := disablement(ctx, req.Msg)
	if err != nil {
		return nil, err
	}
	view, err := s.cfg.Rollouts.Enable(ctx, keyOf(req.Msg.GetRef()), d)
	if err != nil {
		return nil, notSteered(err)
	}
	return connect.NewResponse(&chandlerv1.EnableResponse{Rollout: rolloutToProto(&view)}), nil
}

// disablement reads whom an order is about.
func disablement(ctx context.Context, req interface {
	GetNode() string
	GetLabels() map[string]string
}) (chandler.Disablement, error) {
	d := chandler.Disablement{Node: req.GetNode(), Labels: req.GetLabels(), By: callerOf(ctx).name}
	if err := d.Check(); err != nil {
		return d, connect.NewError(connect.CodeInvalidArgument, err)
	}
	return d, nil
}

// words bounds what somebody says.
func words(all ...string) error {
	for _, w := range all {
		if utf8.RuneCountInString(w) > maxWhy {
			return connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("a reason of more than %d characters", maxWhy))
		}
	}
	return nil
}

func keyOf(ref *chandlerv1.ObjectRef) chandler.Key {
	return chandler.Key{Kind: cmp.Or(ref.GetKind(), chandler.KindWasmPlugin), Namespace: ref.GetNamespace(), Name: ref.GetName()}
}

// notSteered says in the words of the protocol why an order was not carried out.
func notSteered(err error) error {
	switch {
	case errors.Is(err, control.ErrNoPlugin):
		return connect.NewError(connect.CodeNotFound, err)
	case errors.Is(err, control.ErrNotNow):
		return connect.NewError(connect.CodeFailedPrecondition, err)
	case errors.Is(err, context.DeadlineExceeded):
		return connect.NewError(connect.CodeDeadlineExceeded, err)
	}
	return connect.NewError(connect.CodeUnavailable, err)
}

func rolloutToProto(v *control.RolloutView) *chandlerv1.Rollout {
	m := wire.RolloutToProto(&v.Rollout, v.Releases)
	if v.Gone && m.Message == "" {
		m.Message = "its resource is gone; it is being taken out"
	}
	if v.Plan != nil {
		m.Interval = durationpb.New(v.Plan.Interval)
	}
	return m
}

// steeredRef are the namespaces of an order.
func steeredRef(request any) []string {
	req, ok := request.(interface{ GetRef() *chandlerv1.ObjectRef })
	if !ok {
		return []string{access.Everywhere}
	}
	return []string{req.GetRef().GetNamespace()}
}

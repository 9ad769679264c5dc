package web

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/enrol"
)

// Nodes are the machines that are enrolled with a token.
type Nodes interface {
	CreateToken(req enrol.TokenRequest) (enrol.Token, enrol.TokenState, error)
	// Nodes and Tokens give those of a namespace; empty: all.
	Nodes(namespace string) []enrol.NodeState
	Tokens(namespace string) []enrol.TokenState
	// Revoke gives false for a node that is not enrolled.
	Revoke(namespace, name, by string) (bool, error)
}

func (a *admin) nodes() (Nodes, error) {
	if a.cfg.Nodes == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("machines are not enrolled here: start chandler serve with --enrol-ca-cert and --enrol-ca-key"))
	}
	return a.cfg.Nodes, nil
}

// CreateNodeToken implements the service.
func (a *admin) CreateNodeToken(ctx context.Context, req *connect.Request[chandlerv1.CreateNodeTokenRequest]) (*connect.Response[chandlerv1.CreateNodeTokenResponse], error) {
	nodes, err := a.nodes()
	if err != nil {
		return nil, err
	}
	token, state, err := nodes.CreateToken(enrol.TokenRequest{
		Namespace: req.Msg.Namespace, Name: req.Msg.Name, Labels: req.Msg.Labels, TTL: req.Msg.Ttl.AsDuration(), By: callerOf(ctx).name,
	})
	if err != nil {
		return nil, refused(err)
	}
	return connect.NewResponse(&chandlerv1.CreateNodeTokenResponse{
		Token: token.String(), Id: state.ID, Expires: timestamppb.New(state.Expires), Pinned: token.Pinned(),
	}), nil
}

// ListNodes implements the service.
func (a *admin) ListNodes(_ context.Context, req *connect.Request[chandlerv1.ListNodesRequest]) (*connect.Response[chandlerv1.ListNodesResponse], error) {
	nodes, err := a.nodes()
	if err != nil {
		return nil, err
	}
	res := &chandlerv1.ListNodesResponse{}
	for _, n := range nodes.Nodes(req.Msg.Namespace) {
		res.Nodes = append(res.Nodes, &chandlerv1.EnrolledNode{
			Namespace: n.Namespace, Name: n.Name, Labels: n.Labels, Enrolled: timestamppb.New(n.Enrolled), Expires: timestamppb.New(n.Until),
			TokenId: n.Token, MadeBy: n.MadeBy, Revoked: moment(n.Revoked), RevokedBy: n.RevokedBy,
		})
	}
	for _, t := range nodes.Tokens(req.Msg.Namespace) {
		res.Tokens = append(res.Tokens, &chandlerv1.NodeToken{
			Id: t.ID, Namespace: t.Namespace, Name: t.Name, Labels: t.Labels, Created: timestamppb.New(t.Created), Expires: timestamppb.New(t.Expires),
			MadeBy: t.MadeBy, SpentFor: t.SpentFor,
		})
	}
	return connect.NewResponse(res), nil
}

// RevokeNode implements the service.
func (a *admin) RevokeNode(ctx context.Context, req *connect.Request[chandlerv1.RevokeNodeRequest]) (*connect.Response[chandlerv1.RevokeNodeResponse], error) {
	nodes, err := a.nodes()
	if err != nil {
		return nil, err
	}
	ok, err := nodes.Revoke(req.Msg.Namespace, req.Msg.Name, callerOf(ctx).name)
	switch {
	case err != nil:
		return nil, refused(err)
	case !ok:
		return nil, connect.NewError(connect.CodeNotFound, errors.New("no such node is enrolled"))
	}
	return connect.NewResponse(&chandlerv1.RevokeNodeResponse{}), nil
}

func refused(err error) error {
	var p *chandler.Problem
	if errors.As(err, &p) {
		return connect.NewError(connect.CodeInvalidArgument, p)
	}
	return connect.NewError(connect.CodeInternal, err)
}

// moment is a time, or nothing for none.
func moment(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

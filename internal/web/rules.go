package web

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/source"
)

// rule says what a procedure needs.
type rule struct {
	verb access.Verb
	// namespaces are those that a request is about; an empty one is all of them.
	// Without it the procedure itself leaves out what its caller may not see.
	namespaces func(request any) []string
}

// rules has every procedure of the service. One that is not here is for nobody.
var rules = map[string]rule{
	chandlerv1connect.AdminApplyProcedure:           {access.Edit, applied},
	chandlerv1connect.AdminDeleteProcedure:          {access.Edit, deleted},
	chandlerv1connect.AdminListProcedure:            {access.List, nil},
	chandlerv1connect.AdminCreateNodeTokenProcedure: {access.Enrol, ofNodes},
	chandlerv1connect.AdminListNodesProcedure:       {access.Enrol, ofNodes},
	chandlerv1connect.AdminRevokeNodeProcedure:      {access.Enrol, ofNodes},

	chandlerv1connect.RolloutsListRolloutsProcedure: {access.List, nil},
	chandlerv1connect.RolloutsSteerProcedure:        {access.Steer, steeredRef},
	chandlerv1connect.RolloutsDisableProcedure:      {access.Steer, steeredRef},
	chandlerv1connect.RolloutsEnableProcedure:       {access.Steer, steeredRef},

	chandlerv1connect.FleetListProxiesProcedure: {access.List, nil},
	chandlerv1connect.FleetExplainProcedure:     {access.List, explained},
	chandlerv1connect.FleetPreviewProcedure:     {access.Edit, applied},
	chandlerv1connect.FleetListEventsProcedure:  {access.List, nil},
	chandlerv1connect.FleetGetSetupProcedure:    {access.Debug, everywhere},
}

// ofNodes is the namespace that a request about nodes names; without one it is about
// all of them.
func ofNodes(request any) []string {
	if req, ok := request.(interface{ GetNamespace() string }); ok && req.GetNamespace() != "" {
		return []string{req.GetNamespace()}
	}
	return []string{access.Everywhere}
}

// applied are the namespaces of a manifest. A document that names nothing that can
// be made out is of none, and is refused for it later.
func applied(request any) []string {
	req, ok := request.(interface {
		GetManifest() []byte
		GetNamespace() string
	})
	if !ok {
		return []string{access.Everywhere}
	}
	var all []string
	for _, doc := range source.Decode(req.GetManifest(), req.GetNamespace()) {
		if doc.Namespace != "" {
			all = append(all, doc.Namespace)
		}
	}
	return all
}

// explained are the namespaces of a plugin and of a proxy: whoever may not see the one
// or the other learns nothing of how they are to each other.
func explained(request any) []string {
	req, ok := request.(*chandlerv1.ExplainRequest)
	if !ok {
		return []string{access.Everywhere}
	}
	namespace, _, _ := strings.Cut(req.Node, "/")
	return []string{req.GetRef().GetNamespace(), namespace}
}

func everywhere(any) []string { return []string{access.Everywhere} }

func deleted(request any) []string {
	req, ok := request.(*chandlerv1.DeleteRequest)
	if !ok {
		return nil
	}
	var all []string
	for _, ref := range req.Refs {
		all = append(all, ref.GetNamespace())
	}
	return all
}

// interceptor keeps the rules, writes down what was changed, and warns of answers that
// are not about the whole fleet.
type interceptor struct {
	log     *slog.Logger
	now     func() time.Time
	emit    func(chandler.Event)
	partial func() string

	mu     sync.Mutex
	logged time.Time
	quiet  int // refusals since that were not logged
}

// WrapUnary implements connect.Interceptor.
func (i *interceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		c := callerOf(ctx)
		verb, err := permit(ctx, c, req.Spec().Procedure, req.Any())
		if err != nil {
			i.refused(c, verb, err)
			return nil, err
		}
		partial := i.partial() // before it is found out what there is to say
		res, err := next(ctx, req)
		if partial != "" && err == nil && req.Spec().IdempotencyLevel == connect.IdempotencyNoSideEffects {
			res.Header().Set("Warning", "299 chandler "+strconv.Quote(partial)) // as Kubernetes warns
		}
		if verb != access.List && verb != access.Read && req.Spec().IdempotencyLevel != connect.IdempotencyNoSideEffects {
			i.changed(c, verb, req, res, err)
		}
		return res, err
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (i *interceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor. There is no streaming
// procedure, and no rule for one.
func (i *interceptor) WrapStreamingHandler(connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(context.Context, connect.StreamingHandlerConn) error { return errNoRule() }
}

func errNoRule() error {
	return connect.NewError(connect.CodePermissionDenied, errors.New("nothing says who may call this procedure, so nobody may"))
}

// permit tells whether a caller may call a procedure with a request.
func permit(ctx context.Context, c *caller, procedure string, request any) (access.Verb, error) {
	rule, ok := rules[procedure]
	switch {
	case !ok:
		return "", errNoRule()
	case c.own:
		return rule.verb, nil
	case rule.namespaces == nil:
		if c.grants.Somewhere(rule.verb) || c.account != nil {
			return rule.verb, nil // the procedure shows what is theirs
		}
		return rule.verb, c.may(ctx, rule.verb, access.Everywhere)
	}
	if ok, err := c.allowed(ctx, rule.verb, access.Everywhere); ok || err != nil {
		return rule.verb, err
	}
	if c.account == nil && !c.grants.Somewhere(rule.verb) {
		return rule.verb, c.may(ctx, rule.verb, access.Everywhere)
	}
	namespaces := rule.namespaces(request)
	slices.Sort(namespaces)
	for _, n := range slices.Compact(namespaces) {
		if err := c.may(ctx, rule.verb, cmp.Or(n, access.Everywhere)); err != nil {
			return rule.verb, err
		}
	}
	return rule.verb, nil
}

// refused logs one refusal a second at most, as anybody can cause any number.
func (i *interceptor) refused(c *caller, verb access.Verb, err error) {
	now := i.now()
	i.mu.Lock()
	if now.Sub(i.logged) < time.Second {
		i.quiet++
		i.mu.Unlock()
		return
	}
	quiet := i.quiet
	i.logged, i.quiet = now, 0
	i.mu.Unlock()
	message := fmt.Sprintf("%s from %s may not %s: %s", c.name, c.from, cmp.Or(string(verb), "ask"), err)
	if quiet > 0 {
		message += fmt.Sprintf(" (and %d more before)", quiet)
	}
	i.emit(chandler.Event{Reason: chandler.EventDenied, Warning: true, Message: message, By: c.name})
	i.log.Warn("a request to the admin port is refused", "who", c.name, "from", c.from, "does", verb, "reason", err.Error(), "not_logged_before", quiet)
}

// maxChanges is how many objects of one request are logged one by one.
const maxChanges = 1000

// changed writes down what became of a request: who, from where, which object. No
// value of the object itself is in it.
func (i *interceptor) changed(c *caller, verb access.Verb, req connect.AnyRequest, res connect.AnyResponse, err error) {
	if r, ok := req.Any().(interface{ GetDryRun() bool }); ok && r.GetDryRun() {
		return
	}
	_, procedure, _ := strings.Cut(strings.TrimPrefix(req.Spec().Procedure, "/"), "/")
	log := i.log.With("who", c.name, "from", c.from, "does", procedure)
	if err != nil {
		log.Warn("a change failed", "error", err)
		return
	}
	results, ok := res.Any().(interface {
		GetResults() []*chandlerv1.ObjectResult
	})
	if !ok {
		object := ""
		if r, ok := req.Any().(interface{ GetNamespace() string }); ok {
			object = r.GetNamespace() + "/"
		}
		if r, ok := req.Any().(interface{ GetName() string }); ok {
			object += r.GetName()
		}
		if r, ok := req.Any().(interface{ GetRef() *chandlerv1.ObjectRef }); ok {
			object = r.GetRef().GetKind() + " " + r.GetRef().GetNamespace() + "/" + r.GetRef().GetName()
			log = log.With(spoken(req.Any())...)
		}
		log.Info("changed", "object", chandler.Printable(object, 512), "verb", verb)
		i.tell(c, req.Any(), res.Any())
		return
	}
	all := results.GetResults()
	for n, r := range all {
		if n == maxChanges {
			log.Info("changed", "and_more", len(all)-n)
			return
		}
		var codes []string
		for _, p := range r.Problems {
			codes = append(codes, p.Code)
		}
		object := "none that can be made out"
		if ref := r.GetRef(); ref.GetName() != "" {
			object = chandler.Printable(ref.GetKind()+" "+ref.GetNamespace()+"/"+ref.GetName(), 512)
			i.tellSecret(c, r)
		}
		log.Info("changed", "object", object,
			"result", strings.ToLower(strings.TrimPrefix(r.Action.String(), "ACTION_")), "generation", r.Generation, "problems", strings.Join(slices.Compact(codes), ","))
	}
}

// tellSecret tells of a change of a secret. Of plugins the control plane tells itself,
// as it sees all changes of those, whoever makes them.
func (i *interceptor) tellSecret(c *caller, r *chandlerv1.ObjectResult) {
	if r.Ref.Kind != source.KindSecret {
		return
	}
	e := chandler.Event{Key: chandler.Key{Kind: r.Ref.Kind, Namespace: r.Ref.Namespace, Name: r.Ref.Name}, By: c.name}
	switch r.Action {
	case chandlerv1.Action_ACTION_CREATED:
		e.Reason, e.Message = chandler.EventApplied, "created"
	case chandlerv1.Action_ACTION_CONFIGURED:
		e.Reason, e.Message = chandler.EventApplied, "changed"
	case chandlerv1.Action_ACTION_DELETED:
		e.Reason, e.Message = chandler.EventDeleted, "deleted"
	default:
		return
	}
	i.emit(e)
}

// tell tells of what was done about machines.
func (i *interceptor) tell(c *caller, request, answer any) {
	switch req := request.(type) {
	case *chandlerv1.CreateNodeTokenRequest:
		id := ""
		if res, ok := answer.(*chandlerv1.CreateNodeTokenResponse); ok {
			id = res.Id
		}
		i.emit(chandler.Event{Node: req.Namespace + "/" + cmp.Or(req.Name, "*"), Reason: chandler.EventTokenMade, By: c.name, Message: "token " + id + " was made, with which a machine is enrolled"})
	case *chandlerv1.RevokeNodeRequest:
		i.emit(chandler.Event{Node: req.Namespace + "/" + req.Name, Reason: chandler.EventRevoked, Warning: true, By: c.name, Message: "the machine is revoked"})
	}
}

// spoken is what an order says, for the log.
func spoken(request any) []any {
	var said []any
	if r, ok := request.(*chandlerv1.SteerRequest); ok {
		said = append(said, "order", string(verbs[r.Verb]), "release", chandler.Printable(r.Release, 64), "why", chandler.Printable(r.Why, maxWhy))
	}
	if r, ok := request.(interface {
		GetNode() string
		GetLabels() map[string]string
	}); ok {
		d := chandler.Disablement{Node: r.GetNode(), Labels: r.GetLabels()}
		said = append(said, "proxies", chandler.Printable(cmp.Or(d.Target(), "all"), 512))
	}
	if r, ok := request.(interface{ GetReason() string }); ok {
		said = append(said, "why", chandler.Printable(r.GetReason(), maxWhy))
	}
	return said
}

// Package web is the control plane's face for people and their tools: the admin
// API over Connect (gRPC, gRPC-Web and JSON from one handler), the dashboard, health
// and metrics.
//
// It translates and bounds, and lets nobody see or do more than package access
// allows (gate.go, rules.go). What an object means is the source's matter, what is
// true of it the control plane's.
package web

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"google.golang.org/protobuf/types/known/timestamppb"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/schema"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/wire"
)

// maxRequest bounds a request to the API; a manifest may hold many objects.
const maxRequest = 16 << 20

// Config is what the handler shows, and to whom. Its zero value of the latter lets
// this machine look, without values of configuration, and nobody change anything.
type Config struct {
	Control Control
	// Editor takes edits; nil: the objects are edited elsewhere.
	Editor source.Editor
	// ReadOnly says where, in words, when Editor is nil.
	ReadOnly string
	// Nodes are the machines that are enrolled; nil: none are.
	Nodes   Nodes
	Metrics prometheus.Gatherer
	// Tracer gets a trace of every apply, within that of the caller if they say one
	// (traceparent); nil: nobody does.
	Tracer trace.Tracer
	// Rollouts tells how far a change of a plugin has come; nil: changes go to everyone
	// at once.
	Rollouts Rollouts
	// Admit tells what the operator's policy has against a plugin; nil: nothing.
	Admit func(*chandler.Plugin) []chandler.Problem
	// Setup says how this control plane was set up, without secrets; nil: nobody does.
	Setup func() *chandlerv1.GetSetupResponse

	// Imports gives what a module wants of its host, for the dashboard; false: that is
	// not known here. nil: it never is.
	Imports func(chandler.ModuleDigest) ([]string, bool)

	// UID is the user who, beside root, may do all over a socket (ListenSocket).
	UID int
	// Grants are those of the operator's file as it is now; nil: there are none.
	Grants func() []access.Grant
	// Reviewer judges tokens that no grant names; nil: nobody does.
	Reviewer Reviewer
	// Verify verifies a client certificate's chain by the authorities that are
	// trusted now; nil: none are believed.
	Verify func(chain []*x509.Certificate) error
	// Hosts are names of this server, beside those of this machine for itself.
	Hosts []string
	// Debug shows the control plane's own profiles to those who may see them.
	Debug bool
	// Now is the clock, time.Now when nil.
	Now func() time.Time
	// Log gets a line for every change.
	Log *slog.Logger
}

// Control is the part of the control plane that is shown.
type Control interface {
	// Objects gives the objects with their status, read at one moment.
	Objects(ctx context.Context) ([]control.ObjectView, error)
	// Changed gives a channel that is closed when Objects, Proxies or rollouts may say
	// something else.
	Changed() <-chan struct{}
	// Broken gives the files in which the source could not make out everything.
	Broken() []source.Broken
	// Ready tells why agents are not answered yet; nil when they are.
	Ready() error
	// Partial says what is not known here, as another replica leads; empty: nothing.
	Partial() string

	// Proxies gives all proxies that are known, by namespace and name.
	Proxies() []control.ProxyView
	// RootNamespace is that whose plugins are for all, and Withholds tells whether
	// releases are kept from Envoys in which nobody tried them.
	RootNamespace() string
	Withholds() bool

	// Events gives those behind one, oldest first, and what is closed with the next.
	Events(after uint64) ([]chandler.Event, <-chan struct{})
	Emit(chandler.Event)
	// Acting has events of changes to these plugins say who made them, until it is over.
	Acting(who string, keys []chandler.Key) (over func())
}

// Handler gives the handler of the admin port, for Serve.
//
//	/dashboard/            the dashboard, to which / leads
//	/chandler.v1.Admin/    the API, with /chandler.v1.Fleet/ and /chandler.v1.Rollouts/
//	/healthz/live, /ready  health
//	/metrics               Prometheus
//	/debug/pprof/          when Config.Debug
func Handler(cfg Config) http.Handler {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Tracer == nil {
		cfg.Tracer = noop.Tracer{}
	}
	rules := &interceptor{log: cfg.Log, now: cfg.Now, emit: cfg.Control.Emit, partial: cfg.Control.Partial}
	g := &gate{cfg: cfg, rules: rules, words: connect.NewErrorWriter()}
	mux := http.NewServeMux()
	options := connect.WithHandlerOptions(connect.WithReadMaxBytes(maxRequest), connect.WithInterceptors(rules))
	path, api := chandlerv1connect.NewAdminHandler(&admin{cfg}, options)
	mux.Handle(path, g.known(api))
	path, api = chandlerv1connect.NewFleetHandler(&fleet{cfg}, options)
	mux.Handle(path, g.known(api))
	if cfg.Rollouts != nil {
		path, api = chandlerv1connect.NewRolloutsHandler(&rollouts{cfg}, options)
		mux.Handle(path, g.known(api))
	}
	mux.HandleFunc("GET /healthz/live", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "live") })
	mux.HandleFunc("GET /healthz/ready", func(w http.ResponseWriter, _ *http.Request) {
		if err := cfg.Control.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{}))
	g.pages(mux)
	if cfg.Debug {
		mux.Handle("/debug/pprof/", g.profiles())
	}
	return g.addressed(mux)
}

// admin is the service of the API.
type admin struct{ cfg Config }

func (a *admin) editor() (source.Editor, error) {
	if a.cfg.Editor == nil {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New(a.cfg.ReadOnly))
	}
	return a.cfg.Editor, nil
}

// Apply implements the service.
func (a *admin) Apply(ctx context.Context, req *connect.Request[chandlerv1.ApplyRequest]) (*connect.Response[chandlerv1.ApplyResponse], error) {
	editor, err := a.editor()
	if err != nil {
		return nil, err
	}
	if !req.Msg.DryRun {
		defer a.cfg.Control.Acting(callerOf(ctx).name, keysOf(req.Msg.Manifest, req.Msg.Namespace))()
	}
	ctx, span := a.cfg.Tracer.Start(propagation.TraceContext{}.Extract(ctx, propagation.HeaderCarrier(req.Header())), "apply")
	defer span.End()
	results, err := editor.Apply(ctx, source.ApplyRequest{
		Manifest: req.Msg.Manifest, DryRun: req.Msg.DryRun, Namespace: req.Msg.Namespace,
	})
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	return connect.NewResponse(&chandlerv1.ApplyResponse{Results: resultsToProto(results)}), nil
}

// Delete implements the service.
func (a *admin) Delete(ctx context.Context, req *connect.Request[chandlerv1.DeleteRequest]) (*connect.Response[chandlerv1.DeleteResponse], error) {
	editor, err := a.editor()
	if err != nil {
		return nil, err
	}
	keys := make([]chandler.Key, 0, len(req.Msg.Refs))
	for _, ref := range req.Msg.Refs {
		keys = append(keys, chandler.Key{Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name})
	}
	defer a.cfg.Control.Acting(callerOf(ctx).name, keys)()
	results, err := editor.Delete(ctx, keys)
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	return connect.NewResponse(&chandlerv1.DeleteResponse{Results: resultsToProto(results)}), nil
}

// List implements the service. It gives what the caller may see.
func (a *admin) List(ctx context.Context, req *connect.Request[chandlerv1.ListRequest]) (*connect.Response[chandlerv1.ListResponse], error) {
	views, err := a.cfg.Control.Objects(ctx)
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	c := callerOf(ctx)
	res := &chandlerv1.ListResponse{}
	if res.Objects, err = c.shown(ctx, Select(views, req.Msg)); err != nil {
		return nil, err
	}
	all, err := c.allowed(ctx, access.List, access.Everywhere)
	if err != nil || !all {
		return connect.NewResponse(res), err
	}
	for _, b := range a.cfg.Control.Broken() {
		res.Broken = append(res.Broken, &chandlerv1.BrokenFile{Path: b.Path, Problems: wire.ProblemsToProto(b.Problems)})
	}
	return connect.NewResponse(res), nil
}

// shown leaves out the objects that a caller may not see, and of the others the
// values of configuration that they may not read.
func (c *caller) shown(ctx context.Context, objects []*chandlerv1.Object) ([]*chandlerv1.Object, error) {
	sight := c.sight(ctx)
	var shown []*chandlerv1.Object
	for _, o := range objects {
		if !sight.May(access.List, o.Ref.Namespace) {
			continue
		}
		if !sight.May(access.Read, o.Ref.Namespace) {
			o.Manifest, o.Redacted = source.Redact(o.Manifest), true
		}
		shown = append(shown, o)
	}
	return shown, sight.Err()
}

// Select gives what a request asks for of the objects, as the API gives them.
func Select(views []control.ObjectView, req *chandlerv1.ListRequest) []*chandlerv1.Object {
	var out []*chandlerv1.Object
	for i := range views {
		if selected(req, &views[i].Object) {
			out = append(out, objectToProto(&views[i], req))
		}
	}
	return out
}

// selected tells whether a request asks for an object; empty fields match all.
func selected(req *chandlerv1.ListRequest, o *source.Object) bool {
	return wants(req.Kind, o.Kind) && wants(req.Namespace, o.Namespace) && wants(req.Name, o.Name) && chandler.HasLabels(o.Labels, req.Labels)
}

// wants tells whether a field of a request asks for what there is; an empty one does for
// all.
func wants(field, is string) bool { return field == "" || field == is }

func objectToProto(v *control.ObjectView, req *chandlerv1.ListRequest) *chandlerv1.Object {
	o := &v.Object
	m := &chandlerv1.Object{
		Ref: refToProto(o.Key), Uid: o.UID, Generation: o.Generation, Created: timestamppb.New(o.Created),
		Labels: o.Labels, Manifest: o.Manifest, Origin: o.Origin, Status: wire.StatusToProto(&v.Status, req.Proxies),
	}
	for i := range m.Status.Proxies {
		m.Status.Proxies[i].Digest = digestIn(v, v.Status.Proxies[i].InForce)
	}
	if v.Hidden != nil {
		m.Manifest, m.Hidden = source.Hide(o.Manifest, v.Hidden)
	}
	if s := m.Status.Resolved.GetSchema(); s != nil && v.Schema != nil && req.Schemas {
		outline(s, v.Schema)
	}
	if p := o.Plugin; p != nil {
		m.Phase = string(p.Phase)
		if p.Wasm != nil {
			m.Url = p.Wasm.Reference.Redacted()
		}
	}
	return m
}

// outline says what there is to configure.
func outline(m *chandlerv1.ConfigSchema, s *schema.Schema) {
	list, more := s.Outline()
	m.Title, m.Description, m.More = s.Title, s.Description, more
	for _, p := range list {
		m.Properties = append(m.Properties, &chandlerv1.ConfigProperty{
			Path: p.Path, Type: p.Type, Description: p.Description, Required: p.Required, WriteOnly: p.WriteOnly,
		})
	}
}

func refToProto(key chandler.Key) *chandlerv1.ObjectRef {
	return &chandlerv1.ObjectRef{Kind: key.Kind, Namespace: key.Namespace, Name: key.Name}
}

func resultsToProto(results []source.Result) []*chandlerv1.ObjectResult {
	out := make([]*chandlerv1.ObjectResult, 0, len(results))
	for _, r := range results {
		out = append(out, &chandlerv1.ObjectResult{
			Ref: refToProto(r.Key), Action: actions[r.Action], Generation: r.Generation,
			Problems: wire.ProblemsToProto(r.Problems), Warnings: wire.ProblemsToProto(r.Warnings),
		})
	}
	return out
}

var actions = map[source.Action]chandlerv1.Action{
	source.Created:    chandlerv1.Action_ACTION_CREATED,
	source.Configured: chandlerv1.Action_ACTION_CONFIGURED,
	source.Unchanged:  chandlerv1.Action_ACTION_UNCHANGED,
	source.Deleted:    chandlerv1.Action_ACTION_DELETED,
	source.Refused:    chandlerv1.Action_ACTION_REFUSED,
	source.NotFound:   chandlerv1.Action_ACTION_NOT_FOUND,
}

// Package web is the control plane's face for people and their tools: the admin
// API over Connect (gRPC, gRPC-Web and JSON from one handler), health and
// metrics.
//
// It translates and bounds, and decides nothing: what an object means is the
// source's matter, what is true of it the control plane's. It has no
// authentication of its own and belongs on loopback.
package web

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/protobuf/types/known/timestamppb"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/wire"
)

// maxRequest bounds a request to the API; a manifest may hold many objects.
const maxRequest = 16 << 20

// Config is what the handler shows.
type Config struct {
	Control Control
	// Editor takes edits; nil: the objects are edited elsewhere.
	Editor source.Editor
	// ReadOnly says where, in words, when Editor is nil.
	ReadOnly string
	// Nodes are the machines that are enrolled; nil: none are.
	Nodes   Nodes
	Metrics prometheus.Gatherer
}

// Control is the part of the control plane that is shown.
type Control interface {
	// Objects gives the objects with their status, read at one moment.
	Objects(ctx context.Context) ([]control.ObjectView, error)
	// Broken gives the files in which the source could not make out everything.
	Broken() []source.Broken
	// Ready tells why agents are not answered yet; nil when they are.
	Ready() error
}

// Handler gives the handler of the admin port.
//
//	/chandler.v1.Admin/    the API
//	/healthz/live, /ready  health
//	/metrics               Prometheus
func Handler(cfg Config) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(chandlerv1connect.NewAdminHandler(&admin{cfg}, connect.WithReadMaxBytes(maxRequest)))
	mux.HandleFunc("GET /healthz/live", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "live") })
	mux.HandleFunc("GET /healthz/ready", func(w http.ResponseWriter, _ *http.Request) {
		if err := cfg.Control.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(cfg.Metrics, promhttp.HandlerOpts{}))
	return mux
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
	results, err := editor.Delete(ctx, keys)
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, err)
	}
	return connect.NewResponse(&chandlerv1.DeleteResponse{Results: resultsToProto(results)}), nil
}

// List implements the service.
func (a *admin) List(ctx context.Context, req *connect.Request[chandlerv1.ListRequest]) (*connect.Response[chandlerv1.ListResponse], error) {
	views, err := a.cfg.Control.Objects(ctx)
	if err != nil {
		return nil, connect.NewError(connect.CodeUnavailable, err)
	}
	res := &chandlerv1.ListResponse{Objects: Select(views, req.Msg)}
	for _, b := range a.cfg.Control.Broken() {
		res.Broken = append(res.Broken, &chandlerv1.BrokenFile{Path: b.Path, Problems: wire.ProblemsToProto(b.Problems)})
	}
	return connect.NewResponse(res), nil
}

// Select gives what a request asks for of the objects, as the API gives them.
func Select(views []control.ObjectView, req *chandlerv1.ListRequest) []*chandlerv1.Object {
	var out []*chandlerv1.Object
	for i := range views {
		if selected(req, &views[i].Object) {
			out = append(out, objectToProto(&views[i], req.Proxies))
		}
	}
	return out
}

// selected tells whether a request asks for an object; empty fields match all.
func selected(req *chandlerv1.ListRequest, o *source.Object) bool {
	if req.Kind != "" && req.Kind != o.Kind || req.Namespace != "" && req.Namespace != o.Namespace || req.Name != "" && req.Name != o.Name {
		return false
	}
	for key, value := range req.Labels {
		if got, ok := o.Labels[key]; !ok || got != value {
			return false
		}
	}
	return true
}

func objectToProto(v *control.ObjectView, proxies bool) *chandlerv1.Object {
	o := &v.Object
	m := &chandlerv1.Object{
		Ref: refToProto(o.Key), Uid: o.UID, Generation: o.Generation, Created: timestamppb.New(o.Created),
		Labels: o.Labels, Manifest: o.Manifest, Origin: o.Origin, Status: wire.StatusToProto(&v.Status, proxies),
	}
	if p := o.Plugin; p != nil {
		m.Phase = string(p.Phase)
		if p.Wasm != nil {
			m.Url = p.Wasm.Reference.Redacted()
		}
	}
	return m
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

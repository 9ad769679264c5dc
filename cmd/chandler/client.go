package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

const defaultServer = "127.0.0.1:9911"

// clientFlags adds the flags of a command that talks to a control plane.
func (e *env) clientFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&e.server, "server", e.usualServer(), "admin address of the control plane, or unix:// and the path of its socket (or CHANDLER_SERVER)")
	e.shown.add(cmd.Flags(), e.getenv)
	e.timeoutFlag(cmd)
}

func (e *env) usualServer() string { return cmp.Or(e.getenv("CHANDLER_SERVER"), defaultServer) }

func (e *env) timeoutFlag(cmd *cobra.Command) {
	cmd.Flags().DurationVar(&e.timeout, "timeout", 30*time.Second, "how long to wait for an answer")
}

// scopeFlags adds the flags that choose objects; of the namespace where they are usually
// looked for.
func (e *env) scopeFlags(cmd *cobra.Command, usual string) {
	cmd.Flags().StringVarP(&e.namespace, "namespace", "n", "", "namespace (default "+usual+")")
	cmd.Flags().BoolVarP(&e.all, "all-namespaces", "A", false, "objects of all namespaces")
	cmd.Flags().StringVarP(&e.labels, "selector", "l", "", "labels the objects must have, KEY=VALUE[,KEY=VALUE]")
}

// usualNamespace is the one that is meant when none is said, in words: kubectl's, or
// otherwise this.
func (e *env) usualNamespace(otherwise string) string {
	if e.plugin {
		return "that of the context"
	}
	return otherwise
}

func (e *env) outputFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&e.output, "output", "o", "table", "table, wide, json, yaml or name")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if !slices.Contains([]string{"table", "wide", "json", "yaml", "name"}, e.output) {
			return usagef("--output %s: one of table, wide, json, yaml, name", e.output)
		}
		return nil
	}
}

// call bounds a request and says in plain words when nobody answers.
func call[Req, Res any](ctx context.Context, e *env, f func(context.Context, *connect.Request[Req]) (*connect.Response[Res], error), req *Req) (*Res, error) {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	res, err := f(ctx, connect.NewRequest(req))
	if err == nil {
		e.warned(res.Header().Get("Warning"))
		return res.Msg, nil
	}
	var exit *exitError
	var dial *net.OpError
	switch {
	case errors.As(err, &exit):
		return nil, exit
	case errors.As(err, &dial) && errors.Is(dial, fs.ErrPermission):
		return nil, fmt.Errorf("%s is for the control plane's own user and root", e.server)
	case errors.As(err, &dial) && dial.Op == "dial":
		return nil, fmt.Errorf("no control plane at %s: %v; is \"chandler serve\" running there (--server, CHANDLER_SERVER)?", e.server, dial.Err)
	case connect.CodeOf(err) == connect.CodeDeadlineExceeded:
		return nil, &exitError{code: exitTimeout, text: fmt.Sprintf("%s did not answer within %s", e.server, e.timeout)}
	}
	var ce *connect.Error
	switch {
	case errors.As(err, &ce) && ce.Code() == connect.CodeUnimplemented && !connect.IsWireError(err):
		return nil, fmt.Errorf("what answers at %s is no control plane, or an older one (%s); --server or CHANDLER_SERVER says where one is", e.server, ce.Message())
	case ce != nil:
		return nil, errors.New(ce.Message())
	}
	return nil, err
}

// warned tells, once, what a control plane warns of: `299 chandler "its words"`.
func (e *env) warned(header string) {
	_, quoted, ok := strings.Cut(header, " chandler ")
	text, err := strconv.Unquote(quoted)
	if !ok || err != nil || text == e.warning {
		return
	}
	e.warning = text
	fmt.Fprintln(e.stderr, "Warning:", chandler.Printable(text, 512))
}

// kinds are the spellings of a kind on the command line.
var kinds = map[string]string{
	"wasmplugin": chandler.KindWasmPlugin, "wasmplugins": chandler.KindWasmPlugin,
	"wasmplugins.extensions.istio.io": chandler.KindWasmPlugin, "wp": chandler.KindWasmPlugin,
	"trafficextension": chandler.KindTrafficExtension, "trafficextensions": chandler.KindTrafficExtension,
	"trafficextensions.extensions.istio.io": chandler.KindTrafficExtension,
}

func parseKind(s string) (string, error) {
	if kind, ok := kinds[strings.ToLower(s)]; ok {
		return kind, nil
	}
	return "", usagef("%q is no kind that is known; use wasmplugin or trafficextension", s)
}

// arg is the n-th argument of a command; empty when it is not given.
func arg(args []string, n int) string {
	if n < len(args) {
		return args[n]
	}
	return ""
}

// listRequest is what the scope flags ask for: plugins of a kind, or of both. A name is
// looked for as find does; of all namespaces together it may be several plugins'.
func (e *env) listRequest(ctx context.Context, kind, name string, defaultAll bool) (*chandlerv1.ListRequest, error) {
	labels, err := e.labelPairs()
	if err != nil {
		return nil, err
	}
	req := &chandlerv1.ListRequest{Name: name, Labels: labels}
	if kind != "" {
		if req.Kind, err = parseKind(kind); err != nil {
			return nil, err
		}
	}
	switch {
	case e.all:
	case name != "":
		ref, err := e.find(ctx, kind, name, e.written)
		if err != nil {
			return nil, err
		}
		req.Kind, req.Namespace, req.Name = ref.Kind, ref.Namespace, ref.Name
	case e.namespace != "" || !defaultAll || e.clustered():
		req.Namespace, err = e.chosenNamespace()
	}
	return req, err
}

// labelPairs reads --selector.
func (e *env) labelPairs() (map[string]string, error) {
	pairs := map[string]string{}
	for pair := range strings.SplitSeq(e.labels, ",") {
		if pair == "" {
			continue
		}
		key, value, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, usagef("--selector: %q is not KEY=VALUE", pair)
		}
		pairs[key] = value
	}
	return pairs, nil
}

// chosenNamespace is the one that is asked for, or else the cluster's context's, or
// else "default".
func (e *env) chosenNamespace() (string, error) {
	if e.namespace != "" || !e.clustered() {
		return cmp.Or(e.namespace, "default"), nil
	}
	client, err := e.cluster()
	if err != nil {
		return "", err
	}
	return client.Namespace(), nil
}

// listed asks for objects where the flags say.
func (e *env) listed(ctx context.Context, req *chandlerv1.ListRequest) (*chandlerv1.ListResponse, error) {
	switch {
	case !e.clustered():
	case e.server != e.usualServer() && !e.plugin:
		return nil, usagef("--server names a control plane, and --kubeconfig and --context a cluster; say one of them")
	default:
		return e.listCluster(ctx, req)
	}
	return call(ctx, e, e.admin().List, req)
}

// list gives the objects asked for. A name that is not there is an error that
// says where it would be found.
func (e *env) list(ctx context.Context, req *chandlerv1.ListRequest) ([]*chandlerv1.Object, error) {
	res, err := e.listed(ctx, req)
	if err != nil {
		return nil, err
	}
	if len(res.Objects) > 0 || req.Name == "" {
		e.broken, e.scope = res.Broken, req.Namespace
		return res.Objects, nil
	}
	return nil, notFound(ctx, req, e.written)
}

// refName is the name kubectl would print.
func refName(ref *chandlerv1.ObjectRef) string {
	if ref.GetName() == "" {
		return "a document without a name"
	}
	return strings.ToLower(ref.GetKind()) + ".extensions.istio.io/" + ref.GetName()
}

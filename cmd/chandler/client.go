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

// scopeFlags adds the flags that choose objects.
func (e *env) scopeFlags(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&e.namespace, "namespace", "n", "", "namespace (default "+e.usualNamespace()+")")
	cmd.Flags().BoolVarP(&e.all, "all-namespaces", "A", false, "objects of all namespaces")
	cmd.Flags().StringVarP(&e.labels, "selector", "l", "", "labels the objects must have, KEY=VALUE[,KEY=VALUE]")
}

// usualNamespace is the one that is meant when none is said, in words.
func (e *env) usualNamespace() string {
	if e.plugin {
		return "that of the context"
	}
	return `"default"`
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
	if errors.As(err, &ce) {
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

// listRequest is what the scope flags and the arguments [KIND [NAME]] ask for.
func (e *env) listRequest(args []string, defaultAll bool) (*chandlerv1.ListRequest, error) {
	req := &chandlerv1.ListRequest{}
	if len(args) > 0 {
		kind, err := parseKind(args[0])
		if err != nil {
			return nil, err
		}
		req.Kind = kind
	}
	if len(args) > 1 {
		req.Name = args[1]
	}
	if len(args) > 2 {
		return nil, usagef("unexpected argument %q", args[2])
	}
	if e.clustered() && e.server != e.usualServer() && !e.plugin {
		return nil, usagef("--server names a control plane, and --kubeconfig and --context a cluster; say one of them")
	}
	if !e.all && (e.namespace != "" || !defaultAll || e.clustered()) {
		var err error
		if req.Namespace, err = e.chosenNamespace(); err != nil {
			return nil, err
		}
	}
	var err error
	req.Labels, err = e.labelPairs()
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
	if e.clustered() {
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
	err = fmt.Errorf("%s %q not found in namespace %q", strings.ToLower(cmp.Or(req.Kind, "plugin")), req.Name, req.Namespace)
	elsewhere, listErr := e.listed(ctx, &chandlerv1.ListRequest{Kind: req.Kind, Name: req.Name})
	if listErr == nil && len(elsewhere.Objects) > 0 {
		err = fmt.Errorf("%w; there is one in namespace %q (-n)", err, elsewhere.Objects[0].Ref.Namespace)
	}
	return nil, err
}

// refName is the name kubectl would print.
func refName(ref *chandlerv1.ObjectRef) string {
	return strings.ToLower(ref.GetKind()) + ".extensions.istio.io/" + ref.GetName()
}

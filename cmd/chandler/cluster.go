package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/source/kube"
	"chandler.dev/chandler/internal/web"
)

// pluginName is the name under which kubectl finds the command, as "kubectl
// chandler".
const pluginName = "kubectl-chandler"

// isPlugin tells whether the command was called under that name.
func isPlugin(program string) bool {
	return strings.HasPrefix(filepath.Base(program), pluginName)
}

// readerFlags adds the flags of a command that reads plugins: from a control plane,
// or from the API server of a cluster.
func (e *env) readerFlags(cmd *cobra.Command) {
	about := ""
	if e.plugin {
		e.timeoutFlag(cmd)
	} else {
		e.clientFlags(cmd)
		about = "read the cluster, not a control plane: "
	}
	e.clusterFlags(cmd, about)
}

// clusterFlags adds the flags that name a cluster, and what they are about.
func (e *env) clusterFlags(cmd *cobra.Command, about string) {
	cmd.Flags().StringVar(&e.kubeconfig, "kubeconfig", "", about+"file that says how to reach the API server (or KUBECONFIG)")
	cmd.Flags().StringVar(&e.context, "context", "", about+"context of the kubeconfig file")
}

// clustered tells whether plugins are read from a cluster.
func (e *env) clustered() bool { return e.plugin || e.kubeconfig != "" || e.context != "" }

// cluster gives the client of the cluster that the flags name.
func (e *env) cluster() (*kube.Client, error) {
	if e.client != nil {
		return e.client, nil
	}
	kube.LogTo(slog.New(slog.DiscardHandler)) // errors say it all
	client, err := kube.Connect(e.kubeconfig, e.context, pluginName+"/"+version)
	if err != nil {
		return nil, err
	}
	e.client = client
	return client, nil
}

// listCluster is the control plane's List as far as the API server can tell.
func (e *env) listCluster(ctx context.Context, req *chandlerv1.ListRequest) (*chandlerv1.ListResponse, error) {
	client, err := e.cluster()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	views, err := client.Shown(ctx, kube.Query{Kind: req.Kind, Namespace: req.Namespace, Name: req.Name, Labels: req.Labels})
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, e.noAnswer()
	}
	if err != nil {
		return nil, err
	}
	return &chandlerv1.ListResponse{Objects: web.Select(views, req)}, nil
}

func (e *env) noAnswer() error {
	return &exitError{code: exitTimeout, text: fmt.Sprintf("the API server did not answer within %s", e.timeout)}
}

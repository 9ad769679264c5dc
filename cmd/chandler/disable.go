package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

func disableCommand(e *env) *cobra.Command {
	var kind, node, reason string
	cmd := &cobra.Command{
		Use:   "disable NAME",
		Short: "Take a plugin out of all proxies, or of some, at once",
		Long: `Take a plugin out of all proxies, or of some, at once: in an emergency.

Its resource is not edited. The order holds until "enable", also when the control plane
starts anew and when the resource is changed; status and log say who gave it. When the
control plane cannot be reached: chandler-agent bypass NAME, on the machine.`,
		Example: `  chandler disable basic-auth --reason 'denies everyone'
  chandler disable basic-auth --node edge/gw-3 --reason 'INC-1234'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return usagef("say why with --reason: others will read it")
			}
			ref, err := e.find(cmd.Context(), kind, args[0], e.distributed)
			if err != nil {
				return err
			}
			req := &chandlerv1.DisableRequest{Ref: ref, Reason: reason}
			if req.Node, req.Labels, err = e.chosenProxies(cmd.Context(), node); err != nil {
				return err
			}
			res, err := call(cmd.Context(), e, e.rollouts().Disable, req)
			if err != nil {
				return err
			}
			return e.steered(res.Rollout, "disabled "+whereOf(req))
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "why; needed")
	e.someProxies(cmd, &node)
	e.pluginFlags(cmd, &kind)
	return cmd
}

func enableCommand(e *env) *cobra.Command {
	var kind, node string
	cmd := &cobra.Command{
		Use:   "enable NAME",
		Short: "Put a plugin back that was disabled",
		Long: `Put a plugin back that was disabled: end the order about the proxy or the labels that
are given, or all orders about it.`,
		Example: "  chandler enable basic-auth",
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := e.find(cmd.Context(), kind, args[0], e.distributed)
			if err != nil {
				return err
			}
			req := &chandlerv1.EnableRequest{Ref: ref}
			if req.Node, req.Labels, err = e.chosenProxies(cmd.Context(), node); err != nil {
				return err
			}
			res, err := call(cmd.Context(), e, e.rollouts().Enable, req)
			if err != nil {
				return err
			}
			return e.steered(res.Rollout, "enabled "+whereOf(req))
		},
	}
	e.someProxies(cmd, &node)
	e.pluginFlags(cmd, &kind)
	return cmd
}

// someProxies adds the flags that say which proxies an order is about.
func (e *env) someProxies(cmd *cobra.Command, node *string) {
	cmd.Flags().StringVar(node, "node", "", "only on this proxy, NAMESPACE/NAME, or the NAME of one that is there")
	cmd.Flags().StringVarP(&e.labels, "selector", "l", "", "only on proxies with these labels, KEY=VALUE[,KEY=VALUE]")
}

// chosenProxies are those that the flags of someProxies name. With its namespace a proxy
// is named that may not be there yet.
func (e *env) chosenProxies(ctx context.Context, node string) (id string, labels map[string]string, err error) {
	if labels, err = e.labelPairs(); err != nil {
		return "", nil, err
	}
	if node == "" {
		return "", labels, nil
	}
	id, err = e.nodeID(ctx, node)
	return id, labels, err
}

func whereOf(req interface {
	GetNode() string
	GetLabels() map[string]string
}) string {
	if where := targetOf(&chandlerv1.Disablement{Node: req.GetNode(), Labels: req.GetLabels()}); where != "" {
		return "on " + where
	}
	return "everywhere"
}

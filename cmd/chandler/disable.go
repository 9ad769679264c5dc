package main

import (
	"cmp"
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
		Example: `  chandler disable basic-auth -n istio-system --reason 'denies everyone'
  chandler disable basic-auth --node edge/gw-3 --reason 'INC-1234'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if strings.TrimSpace(reason) == "" {
				return usagef("say why with --reason: others will read it")
			}
			ref, err := e.ref(kind, args[0])
			if err != nil {
				return err
			}
			req := &chandlerv1.DisableRequest{Ref: ref, Node: e.nodeID(node), Reason: reason}
			if req.Labels, err = e.labelPairs(); err != nil {
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
		Example: "  chandler enable basic-auth -n istio-system",
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := e.ref(kind, args[0])
			if err != nil {
				return err
			}
			req := &chandlerv1.EnableRequest{Ref: ref, Node: e.nodeID(node)}
			if req.Labels, err = e.labelPairs(); err != nil {
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
	cmd.Flags().StringVar(node, "node", "", "only on this proxy, NAME or NAMESPACE/NAME; the plugin's namespace when none is said")
	cmd.Flags().StringVarP(&e.labels, "selector", "l", "", "only on proxies with these labels, KEY=VALUE[,KEY=VALUE]")
}

// nodeID completes the name of a proxy with the namespace.
func (e *env) nodeID(node string) string {
	if node == "" || strings.Contains(node, "/") {
		return node
	}
	return cmp.Or(e.namespace, "default") + "/" + node
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

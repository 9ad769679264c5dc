package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/enrol"
)

func nodeCommand(e *env) *cobra.Command {
	cmd := e.oneNodeCommand()
	if e.plugin { // machines of a cluster are not enrolled
		cmd.Short = "What is attached to a proxy, in which order"
		return cmd
	}
	token := &cobra.Command{
		Use: "token", Short: "Tokens to enrol machines with", Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	token.AddCommand(nodeTokenCreateCommand(e))
	cmd.AddCommand(token, nodeListCommand(e), nodeRevokeCommand(e))
	return cmd
}

func nodeTokenCreateCommand(e *env) *cobra.Command {
	req := &chandlerv1.CreateNodeTokenRequest{}
	var labels []string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a token with which one machine is enrolled, once",
		Long: `Make a token with which one machine is enrolled, once.

The token goes to standard output and is shown this one time. What it says of the
machine holds for as long as the machine stays enrolled: its namespace and all its
labels; the agent there may claim no other. Keep it like a password until it is spent.`,
		Example: `  chandler node token create --namespace edge --name 'edge-*' --label app=edge >token
  ssh edge-1 'umask 077; cat >/var/lib/chandler-agent/token' <token`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var err error
			if req.Labels, err = pairs("--label", labels); err != nil {
				return err
			}
			req.Ttl = durationpb.New(ttl)
			return e.createNodeToken(cmd.Context(), req)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&req.Namespace, "namespace", "n", "", "namespace of the machine; needed")
	flags.StringVar(&req.Name, "name", "", "name that the machine may have, * for any characters; any without this flag")
	flags.StringArrayVar(&labels, "label", nil, "label of the machine, KEY=VALUE; may be given several times, and none but these may be claimed")
	flags.DurationVar(&ttl, "ttl", enrol.DefaultTTL, "how long the token is good, unless it is spent before")
	e.clientFlags(cmd)
	return cmd
}

func (e *env) createNodeToken(ctx context.Context, req *chandlerv1.CreateNodeTokenRequest) error {
	res, err := call(ctx, e, e.admin().CreateNodeToken, req)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stderr, "token %s for one node of %s, good until %s\n", res.Id, req.Namespace, res.Expires.AsTime().Local().Format(time.RFC3339))
	if !res.Pinned {
		fmt.Fprintln(e.stderr, "the agent needs --tls-ca too: the control plane does not know the authority of its own certificate (--enrol-server-ca)")
	}
	_, err = fmt.Fprintln(e.stdout, res.Token)
	return err
}

func nodeListCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the machines that are enrolled",
		Example: `  chandler node list -A
  chandler node list -n edge -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			req := &chandlerv1.ListNodesRequest{Namespace: cmp.Or(e.namespace, "default")}
			if e.all {
				req.Namespace = ""
			}
			return e.listNodes(cmd.Context(), req)
		},
	}
	cmd.Flags().StringVarP(&e.namespace, "namespace", "n", "", `namespace (default "default")`)
	cmd.Flags().BoolVarP(&e.all, "all-namespaces", "A", false, "machines of all namespaces")
	cmd.Flags().StringVarP(&e.output, "output", "o", "table", "table or json")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if !slices.Contains([]string{"table", "json"}, e.output) {
			return usagef("--output %s: one of table, json", e.output)
		}
		return nil
	}
	e.clientFlags(cmd)
	return cmd
}

func (e *env) listNodes(ctx context.Context, req *chandlerv1.ListNodesRequest) error {
	res, err := call(ctx, e, e.admin().ListNodes, req)
	if err != nil {
		return err
	}
	if e.output == "json" {
		b, err := protojson.Marshal(res)
		if err != nil {
			return err
		}
		var tidy any // protojson's own spaces differ from build to build
		if err := json.Unmarshal(b, &tidy); err != nil {
			return err
		}
		if b, err = json.MarshalIndent(tidy, "", "  "); err != nil {
			return err
		}
		_, err = fmt.Fprintln(e.stdout, string(b))
		return err
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "NAMESPACE\tNAME\tSTATE\tUNTIL\tLABELS\tMADE BY")
	for _, n := range res.Nodes {
		state := "enrolled"
		switch {
		case n.Revoked != nil:
			state = "revoked"
		case n.Expires.AsTime().Before(time.Now()):
			state = "expired"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", n.Namespace, n.Name, state, n.Expires.AsTime().Local().Format(time.RFC3339), joined(n.Labels), cmp.Or(n.MadeBy, "-"))
	}
	for _, t := range res.Tokens {
		if t.SpentFor == "" {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", t.Namespace, cmp.Or(t.Name, "*"), "token "+t.Id, t.Expires.AsTime().Local().Format(time.RFC3339), joined(t.Labels), cmp.Or(t.MadeBy, "-"))
		}
	}
	return w.Flush()
}

// joined writes labels as on the command line.
func joined(labels map[string]string) string {
	var all []string
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		all = append(all, key+"="+labels[key])
	}
	return cmp.Or(strings.Join(all, ","), "-")
}

// pairs reads KEY=VALUE.
func pairs(flag string, given []string) (map[string]string, error) {
	out := map[string]string{}
	for _, pair := range given {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, usagef("%s: %q is not KEY=VALUE", flag, pair)
		}
		out[key] = value
	}
	return out, nil
}

func nodeRevokeCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "revoke NAME",
		Short: "Revoke a machine that is enrolled",
		Long: `Revoke a machine that is enrolled: its connections end at once, and its certificate
is not renewed. Its Envoy serves on with what it has. It comes back with another token.`,
		Example: `  chandler node revoke edge-1 -n edge`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("revoke needs the NAME of one node")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			req := &chandlerv1.RevokeNodeRequest{Namespace: cmp.Or(e.namespace, "default"), Name: args[0]}
			if _, err := call(cmd.Context(), e, e.admin().RevokeNode, req); err != nil {
				return fmt.Errorf("node %q in namespace %q: %w", req.Name, req.Namespace, err)
			}
			_, err := fmt.Fprintf(e.stdout, "node %s/%s revoked\n", req.Namespace, req.Name)
			return err
		},
	}
	cmd.Flags().StringVarP(&e.namespace, "namespace", "n", "", `namespace of the machine (default "default")`)
	e.clientFlags(cmd)
	return cmd
}

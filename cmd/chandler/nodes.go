package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/author/inspect"
)

// planeFlags adds the flags of a command that only a control plane can answer. Called by
// kubectl it has to be told where that is, as the API server knows no proxies.
func (e *env) planeFlags(cmd *cobra.Command) {
	e.clientFlags(cmd)
	if !e.plugin {
		return
	}
	cmd.Flags().Lookup("server").DefValue = ""
	check := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		if !cmd.Flags().Changed("server") && e.getenv("CHANDLER_SERVER") == "" {
			return usagef("the API server knows no proxies; ask the control plane: kubectl port-forward -n chandler-system deployment/chandler 9911, "+
				"then %s --server %s --token-file FILE (kubectl create token ACCOUNT --audience chandler-admin)", cmd.CommandPath(), defaultServer)
		}
		if check != nil {
			return check(cmd, args)
		}
		return nil
	}
}

func nodesCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "nodes",
		Short: "The proxies, and how their plugins fare",
		Long: `The proxies, and how their plugins fare: READY is how many are in force of those that
are to be there. The exit code is 3 when one fails on a proxy that is connected.`,
		Example: `  chandler nodes
  chandler nodes -n edge -l app=edge -o wide`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			labels, err := e.labelPairs()
			if err != nil {
				return err
			}
			req := &chandlerv1.ListProxiesRequest{Namespace: e.namespace, Labels: labels, Details: e.output == "json" || e.output == "yaml"}
			if e.all {
				req.Namespace = ""
			}
			res, err := call(cmd.Context(), e, e.fleet().ListProxies, req)
			if err != nil {
				return err
			}
			return e.printNodes(res, req.Namespace)
		},
	}
	cmd.Flags().StringVarP(&e.namespace, "namespace", "n", "", "namespace (default all)")
	cmd.Flags().BoolVarP(&e.all, "all-namespaces", "A", false, "proxies of all namespaces")
	cmd.Flags().StringVarP(&e.labels, "selector", "l", "", "labels the proxies must have, KEY=VALUE[,KEY=VALUE]")
	e.outputFlag(cmd)
	e.planeFlags(cmd)
	return cmd
}

func (e *env) printNodes(res *chandlerv1.ListProxiesResponse, namespace string) error {
	if done, err := e.printMessage(res); done || err != nil {
		return err
	}
	switch {
	case e.output == "name":
		for _, p := range res.Proxies {
			fmt.Fprintln(e.stdout, p.Namespace+"/"+p.Name)
		}
	case len(res.Proxies) == 0 && namespace != "":
		fmt.Fprintf(e.stderr, "No proxies found in namespace %q; -A looks in all.\n", namespace)
	case len(res.Proxies) == 0:
		fmt.Fprintln(e.stderr, "No proxies found.")
	default:
		w := tabwriter.NewWriter(e.stdout, 0, 4, 3, ' ', 0)
		e.nodesTable(w, res.Proxies)
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(res.Proxies, func(p *chandlerv1.Proxy) bool { return p.Connected && p.Failed > 0 }) {
		return &exitError{code: exitUnhealthy}
	}
	return nil
}

func (e *env) nodesTable(w io.Writer, proxies []*chandlerv1.Proxy) {
	wide := e.output == "wide"
	row(w, wide, []string{"NAMESPACE", "NAME", "READY", "FAILED", "CONNECTED", "SINCE", "ENVOY"}, "AGENT", "MODE", "STORE", "LABELS")
	for _, p := range proxies {
		connected := "yes"
		if !p.Connected {
			connected = "no"
		}
		row(w, wide, []string{
			p.Namespace, p.Name, fmt.Sprintf("%d/%d", p.InForce, p.Desired), fmt.Sprint(p.Failed), connected, age(p.Since), dash(p.EnvoyVersion),
		}, dash(p.AgentVersion), modeOf(p), storeOf(p.Facts), joined(p.Labels))
	}
}

// modeOf is how plugins come to a proxy.
func modeOf(p *chandlerv1.Proxy) string {
	switch {
	case p.Facts == nil:
		return "-"
	case p.Facts.Slots:
		return "slots"
	}
	return "listener"
}

// storeOf is how full a proxy's store is.
func storeOf(f *chandlerv1.Facts) string {
	if f == nil {
		return "-"
	}
	text := chandler.Count(f.StoreModules, "module", "modules") + ", " + inspect.SizeText(int64(f.StoreBytes))
	if f.StoreLimit > 0 {
		text += " of " + inspect.SizeText(int64(f.StoreLimit))
	}
	return text
}

// printMessage prints an answer as JSON or YAML, if that is asked for.
func (e *env) printMessage(m proto.Message) (done bool, err error) {
	if e.output != "json" && e.output != "yaml" {
		return false, nil
	}
	b, err := protojson.Marshal(m)
	if err != nil {
		return false, err
	}
	var tidy any // protojson's own spaces differ from build to build
	if err := json.Unmarshal(b, &tidy); err != nil {
		return false, err
	}
	if e.output == "yaml" {
		enc := yaml.NewEncoder(e.exact)
		enc.SetIndent(2)
		return true, cmp.Or(enc.Encode(tidy), enc.Close())
	}
	enc := json.NewEncoder(e.stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return true, enc.Encode(tidy)
}

// oneNodeCommand shows a proxy. Its subcommands are about machines that are enrolled; a
// proxy that is called as one of them is meant by NAMESPACE/NAME.
func (e *env) oneNodeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "node [NAMESPACE/]NAME",
		Short: "What is attached to a proxy, in which order; enrol and revoke machines",
		Long: `What is attached to a proxy: the plugins in each slot of each listener, in the order in
which requests meet them, as Envoy acknowledged them, and how each plugin fares there.
Without a namespace the proxy is looked for in all.

The subcommands enrol machines that have no certificate of their own, list and revoke
them. A proxy whose name is that of a subcommand is shown by NAMESPACE/NAME. A token is
for one machine, once: the agent there makes a key, trades the token for a certificate
(chandler-agent --enrol-token-file FILE), and renews it by itself.

The exit code is 3 when a plugin fails there.`,
		Example: `  chandler node edge-1
  chandler node edge/edge-1 -o json`,
		Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			if len(args) > 1 {
				return usagef("unexpected argument %q", args[1])
			}
			p, err := e.findProxy(cmd.Context(), args[0], e.namespace, true)
			if err != nil {
				return err
			}
			return e.printNode(p)
		},
	}
	cmd.Flags().StringVarP(&e.namespace, "namespace", "n", "", "namespace of the proxy (default any)")
	e.outputFlag(cmd)
	e.planeFlags(cmd)
	return cmd
}

// findProxy finds the one of that name, which may have its namespace before it.
func (e *env) findProxy(ctx context.Context, name, namespace string, details bool) (*chandlerv1.Proxy, error) {
	namespace, name, err := splitName("proxy", name, namespace)
	if err != nil {
		return nil, err
	}
	res, err := call(ctx, e, e.fleet().ListProxies, &chandlerv1.ListProxiesRequest{Namespace: namespace, Name: name, Details: details})
	switch {
	case err != nil:
		return nil, err
	case len(res.Proxies) == 1:
		return res.Proxies[0], nil
	case len(res.Proxies) > 1:
		var all []string
		for _, p := range res.Proxies {
			all = append(all, p.Namespace+"/"+p.Name)
		}
		return nil, usagef("several proxies are called %s: %s; say which", name, strings.Join(all, ", "))
	case namespace != "":
		return nil, fmt.Errorf("proxy %q not found in namespace %q; chandler nodes -A lists all", name, namespace)
	}
	return nil, fmt.Errorf("proxy %q not found; chandler nodes lists all", name)
}

// nodeID is NAMESPACE/NAME of the proxy that is called so, or by its name alone.
func (e *env) nodeID(ctx context.Context, node string) (string, error) {
	if strings.Contains(node, "/") {
		return node, nil
	}
	p, err := e.findProxy(ctx, node, "", false)
	if err != nil {
		return "", err
	}
	return p.Namespace + "/" + p.Name, nil
}

func (e *env) printNode(p *chandlerv1.Proxy) error {
	done, err := e.printMessage(p)
	switch {
	case err != nil:
		return err
	case done:
	case e.output == "name":
		fmt.Fprintln(e.stdout, p.Namespace+"/"+p.Name)
	default:
		e.showNode(p)
	}
	if p.Failed > 0 {
		return &exitError{code: exitUnhealthy}
	}
	return nil
}

func (e *env) showNode(p *chandlerv1.Proxy) {
	w := tabwriter.NewWriter(e.stdout, 0, 4, 2, ' ', 0)
	line := func(name, value string) { fmt.Fprintf(w, "%s:\t%s\n", name, value) }
	line("Name", p.Name)
	line("Namespace", p.Namespace)
	line("Labels", joined(p.Labels))
	connected := "yes, for "
	if !p.Connected {
		connected = "no, for "
	}
	line("Connected", connected+age(p.Since))
	line("Agent", dash(p.AgentVersion))
	line("Envoy", dash(p.EnvoyVersion))
	line("Mode", modeOf(p))
	line("Store", storeOf(p.Facts))
	line("Plugins", fmt.Sprintf("%d desired, %d in force, %d failed", p.Desired, p.InForce, p.Failed))
	w.Flush()
	if len(p.Plugins) > 0 {
		w := tabwriter.NewWriter(e.stdout, 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "  NAMESPACE\tNAME\tKIND\tSTATE\tIN FORCE\tDIGEST\tSINCE\tNEXT TRY\tREASON\tMESSAGE")
		for _, x := range p.Plugins {
			_, _, inForce := progress(x.Status)
			fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", x.Ref.Namespace, x.Ref.Name, x.Ref.Kind, stateOf(x.Status), inForce,
				shortDigest(x.Status.Digest), age(x.Status.Since), until(x.Status.NextTry), dash(x.Status.Reason), dash(said(x.Status)))
		}
		w.Flush()
	}
	for _, b := range p.Facts.GetBypassed() {
		fmt.Fprintf(e.stdout, "Bypassed on the machine: %s, for %s: %s\n", spellPlugin(b.Plugin), age(b.At), b.Reason)
	}
	e.showListeners(p.Facts)
}

func (e *env) showListeners(f *chandlerv1.Facts) {
	if f == nil {
		fmt.Fprintln(e.stdout, "Listeners: the agent has not told of them")
		return
	}
	fmt.Fprintln(e.stdout, "Listeners:")
	for _, l := range f.Listeners {
		fmt.Fprintf(e.stdout, "  %s  %s, %s, port %d\n", cmp.Or(l.Name, "(no name)"), dash(l.Address), strings.TrimPrefix(l.Mode.String(), "MODE_"), l.Port)
		for _, s := range l.Slots {
			e.showSlot(s)
		}
	}
	if f.More {
		fmt.Fprintln(e.stdout, "  there are more than the agent tells of")
	}
}

// showSlot lists the plugins of a slot in the order in which requests meet them.
func (e *env) showSlot(s *chandlerv1.Slot) {
	fmt.Fprintf(e.stdout, "    %s\n", s.Name)
	if len(s.Members) == 0 {
		fmt.Fprintln(e.stdout, "      (empty)")
	}
	for i, m := range s.Members {
		what := "release " + shortDigest(m.Release)
		switch m.StandIn {
		case chandlerv1.StandIn_STAND_IN_DENY:
			what = "denies in its place"
		case chandlerv1.StandIn_STAND_IN_PASS:
			what = "left out"
		}
		fmt.Fprintf(e.stdout, "      %d. %s  %s\n", i+1, spellPlugin(m.Plugin), what)
	}
}

// spellPlugin names a plugin by namespace and name, and by its kind where that is not
// the usual one.
func spellPlugin(ref interface {
	GetKind() string
	GetNamespace() string
	GetName() string
},
) string {
	name := ref.GetNamespace() + "/" + ref.GetName()
	if ref.GetKind() != chandler.KindWasmPlugin {
		name += " (" + ref.GetKind() + ")"
	}
	return name
}

func whyCommand(e *env) *cobra.Command {
	var node, kind string
	cmd := &cobra.Command{
		Use:   "why NAME --node [NAMESPACE/]NODE",
		Short: "Why a plugin is or is not on a proxy",
		Long: `Why a plugin is or is not on a proxy: what decides, in its order, to the first thing
that does not hold.

The exit code is 3 when it is not as the resource wants it to be.`,
		Example: `  chandler why basic-auth --node edge-1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) != 1:
				return usagef("why needs the NAME of one plugin")
			case node == "":
				return usagef("why needs --node NODE; chandler nodes lists them")
			}
			ref, err := e.find(cmd.Context(), kind, args[0], e.distributed)
			if err != nil {
				return err
			}
			return e.why(cmd.Context(), ref, node)
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "the proxy; without a namespace it is looked for in all")
	e.findFlags(cmd, &kind)
	e.outputFlag(cmd)
	e.planeFlags(cmd)
	return cmd
}

func (e *env) why(ctx context.Context, ref *chandlerv1.ObjectRef, node string) error {
	node, err := e.nodeID(ctx, node)
	if err != nil {
		return err
	}
	res, err := call(ctx, e, e.fleet().Explain, &chandlerv1.ExplainRequest{Ref: ref, Node: node})
	if err != nil {
		return err
	}
	if done, err := e.printMessage(res); err != nil {
		return err
	} else if !done {
		fmt.Fprintln(e.stdout, res.Verdict)
		w := tabwriter.NewWriter(e.stdout, 0, 4, 2, ' ', 0)
		for _, c := range res.Checks {
			holds := "yes"
			if !c.Holds {
				holds = "no"
			}
			fmt.Fprintf(w, "  %s\t%s\t%s\n", c.Name, holds, c.Message)
		}
		if err := w.Flush(); err != nil {
			return err
		}
	}
	if !res.AsWanted {
		return &exitError{code: exitUnhealthy}
	}
	return nil
}

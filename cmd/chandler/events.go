package main

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

func eventsCommand(e *env) *cobra.Command {
	req := &chandlerv1.ListEventsRequest{}
	var watch bool
	cmd := &cobra.Command{
		Use:   "events [NAME]",
		Short: "What happened, oldest first",
		Long: `What happened, oldest first: what was applied, promoted or disabled and by whom, what
was resolved and what came into force, what a proxy refused and why, who came and went.
With NAME only what is about that plugin. A control plane keeps some thousand events in
memory, since it began; its log has the lines of who changed what for longer.`,
		Example: `  chandler events -w
  chandler events basic-auth`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("unexpected argument %q", args[1])
			}
			name, namespace := arg(args, 0), e.namespace
			if e.all {
				namespace = ""
			}
			var err error
			if req.Namespace, req.Name, err = splitName("plugin", name, namespace); err != nil {
				return err
			}
			return e.events(cmd.Context(), req, watch)
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "go on with those that come, until interrupted")
	cmd.Flags().StringVar(&req.Node, "node", "", "only those about a proxy, NAMESPACE/NAME")
	cmd.Flags().Uint32Var(&req.Limit, "limit", 200, "the newest so many, 2000 at most")
	cmd.Flags().StringVarP(&e.namespace, "namespace", "n", "", "namespace (default all)")
	cmd.Flags().BoolVarP(&e.all, "all-namespaces", "A", false, "events of all namespaces")
	e.outputFlag(cmd)
	e.planeFlags(cmd)
	return cmd
}

func (e *env) events(ctx context.Context, req *chandlerv1.ListEventsRequest, watch bool) error {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for first := true; ; first = false {
		res, err := call(ctx, e, e.fleet().ListEvents, req)
		switch {
		case ctx.Err() != nil:
			return nil // interrupted, as it was said to be
		case err != nil:
			return err
		case len(res.Events) > 0:
			req.After = res.Events[len(res.Events)-1].Id
		}
		if err := e.printEvents(res, first, watch); err != nil || !watch {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (e *env) printEvents(res *chandlerv1.ListEventsResponse, first, watch bool) error {
	if watch && len(res.Events) == 0 {
		return nil
	}
	if done, err := e.printMessage(res); done || err != nil {
		return err
	}
	if len(res.Events) == 0 {
		fmt.Fprintln(e.stderr, "No events.")
		return nil
	}
	// Columns have widths of their own, as lines come one by one.
	const form = "%-20s  %-7s  %-18s  %-36s  %-14s  %s\n"
	if first {
		fmt.Fprintf(e.stdout, form, "TIME", "TYPE", "REASON", "ABOUT", "BY", "MESSAGE")
	}
	for _, ev := range res.Events {
		kind := "Normal"
		if ev.Warning {
			kind = "Warning"
		}
		fmt.Fprintf(e.stdout, form, ev.At.AsTime().UTC().Format(time.RFC3339), kind, ev.Reason, aboutEvent(ev), cmp.Or(ev.By, "-"), ev.Message)
	}
	return nil
}

// aboutEvent is the plugin, or the proxy, that an event is about.
func aboutEvent(ev *chandlerv1.Event) string {
	switch {
	case ev.Ref != nil:
		return ev.Ref.Kind + " " + ev.Ref.Namespace + "/" + ev.Ref.Name
	case ev.Node != "":
		return "proxy " + ev.Node
	}
	return "-"
}

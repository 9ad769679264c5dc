package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

func rolloutCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rollout",
		Short: "See and steer how a change of a plugin comes to its proxies",
		Long: `See and steer how a change of a plugin comes to its proxies.

In which steps it does, the annotation chandler.dev/rollout of the plugin says, or
"rollouts" in the control plane's file; without either it comes to all at once. No
order edits the plugin's resource: orders are in the control plane's own records.`,
		Args: unknownCommand,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		rolloutStatusCommand(e), rolloutHistoryCommand(e),
		promoteCommand(e),
		steerCommand(e, chandlerv1.SteerRequest_VERB_PAUSE, "pause", "paused", "Keep a rollout at its step", ""),
		steerCommand(e, chandlerv1.SteerRequest_VERB_RESUME, "resume", "resumed", "Have a paused rollout watch its step once more, and go on", ""),
		steerCommand(e, chandlerv1.SteerRequest_VERB_ABORT, "abort", "aborted", "Put all proxies back on the release before",
			"The release that was on its way is not put in force again until \"retry\", or until the\nplugin's resource is changed."),
		undoCommand(e),
		steerCommand(e, chandlerv1.SteerRequest_VERB_RETRY, "retry", "begun again", "Begin again with a release that was taken back", ""),
		steerCommand(e, chandlerv1.SteerRequest_VERB_UNPIN, "unpin", "unpinned", "Go on to what the resource says, after an undo", ""),
	)
	return cmd
}

// pluginFlags adds the flags of a command about one plugin.
func (e *env) pluginFlags(cmd *cobra.Command, kind *string) {
	e.findFlags(cmd, kind)
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usagef("%s needs the NAME of one plugin", cmd.Name())
		}
		return nil
	}
	e.planeFlags(cmd)
}

func rolloutStatusCommand(e *env) *cobra.Command {
	var watch bool
	var kind string
	cmd := &cobra.Command{
		Use:   "status NAME",
		Short: "Where a rollout is, and what is measured",
		Long: `Where a rollout is, and what is measured: the proxies that have the release (NEW),
those that do not (OTHERS), and the former in the hour before they had it (BEFORE).

The exit code is 3 when the rollout is paused or its release was taken back. With
--watch the command ends with the rollout, or with code 4 after --timeout, if that is
given.`,
		Example: "  chandler rollout status basic-auth --watch",
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := e.find(cmd.Context(), kind, args[0], e.distributed)
			if err != nil {
				return err
			}
			if watch {
				limit := time.Duration(0)
				if cmd.Flags().Changed("timeout") {
					limit = e.timeout
				}
				return e.watchRollout(cmd.Context(), ref, limit)
			}
			r, err := e.rollout(cmd.Context(), ref)
			if err != nil {
				return err
			}
			if err := e.printRollout(r); err != nil {
				return err
			}
			return verdictOf(r)
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "print again whenever something changes, until the rollout is over, paused or taken back")
	e.outputFlag(cmd)
	e.pluginFlags(cmd, &kind)
	return cmd
}

// rollout asks for one rollout, which there has to be.
func (e *env) rollout(ctx context.Context, ref *chandlerv1.ObjectRef) (*chandlerv1.Rollout, error) {
	req := &chandlerv1.ListRolloutsRequest{Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name}
	res, err := call(ctx, e, e.rollouts().ListRollouts, req)
	if err != nil {
		return nil, err
	}
	if len(res.Rollouts) == 0 {
		return nil, fmt.Errorf("nothing was rolled out of %s %q in namespace %q", strings.ToLower(ref.Kind), ref.Name, ref.Namespace)
	}
	return res.Rollouts[0], nil
}

// resolving tells whether it is still being found out what the resource of a plugin means:
// until that is known its rollout is the one before, or none.
func (e *env) resolving(ctx context.Context, ref *chandlerv1.ObjectRef) (bool, error) {
	res, err := call(ctx, e, e.admin().List, &chandlerv1.ListRequest{Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name})
	return slices.ContainsFunc(res.GetObjects(), func(o *chandlerv1.Object) bool {
		return condition(o.Status, chandler.ConditionResolvedRefs).Reason == string(chandler.CodeResolving)
	}), err
}

// verdictOf is the exit code that a rollout's state has.
func verdictOf(r *chandlerv1.Rollout) error {
	switch chandler.RolloutState(r.State) {
	case chandler.RolloutPaused, chandler.RolloutDegraded:
		return &exitError{code: exitUnhealthy}
	}
	return nil
}

// watchRollout prints the rollout of what the resource says now until it comes to a rest.
func (e *env) watchRollout(ctx context.Context, ref *chandlerv1.ObjectRef, limit time.Duration) error {
	outer := ctx
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	var shown *chandlerv1.Rollout
	for {
		resolving, err := e.resolving(ctx, ref) // first: the answer after it knows what that led to
		var now *chandlerv1.Rollout
		if err == nil && !resolving {
			now, err = e.rollout(ctx, ref)
		}
		if now != nil && !proto.Equal(shown, now) {
			if shown != nil && e.output != "name" {
				fmt.Fprintln(e.stdout)
			}
			shown, err = now, e.printRollout(now)
		}
		switch {
		case outer.Err() != nil:
			return nil // interrupted, as it was said to be
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			return &exitError{code: exitTimeout, text: fmt.Sprintf("the rollout is not over after %s", limit)}
		case err != nil:
			return err
		case now != nil && now.State != string(chandler.RolloutProgressing):
			return verdictOf(now)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// icons are those of Argo Rollouts.
var icons = map[chandler.RolloutState]string{
	chandler.RolloutHealthy: "✔", chandler.RolloutProgressing: "◌", chandler.RolloutPaused: "॥", chandler.RolloutDegraded: "✖",
}

func (e *env) printRollout(r *chandlerv1.Rollout) error {
	if e.output == "name" {
		_, err := fmt.Fprintln(e.stdout, refName(r.Ref))
		return err
	}
	if done, err := e.printMessage(r); done || err != nil {
		return err
	}
	w := tabwriter.NewWriter(e.stdout, 0, 4, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(w, name+":\t"+format+"\n", args...) }
	line("Name", "%s", r.Ref.Name)
	line("Namespace", "%s", r.Ref.Namespace)
	line("Kind", "%s", r.Ref.Kind)
	line("Status", "%s %s", icons[chandler.RolloutState(r.State)], stateAndMarks(r))
	if r.Message != "" {
		line("Message", "%s", reasoned(r))
	}
	if len(r.Steps) == 0 {
		line("Strategy", "all at once")
	} else {
		line("Strategy", "steps")
		line("  Step", "%d/%d (%s)", min(int(r.Step)+1, len(r.Steps)), len(r.Steps), strings.Join(r.Steps, ", "))
		line("  Interval", "%s", r.Interval.AsDuration())
		line("  On failure", "%s", r.OnFailure)
	}
	if r.Ahead != nil {
		line("Next change", "%s; the plan was changed after this rollout began", planned(r.Ahead))
	}
	if r.From != r.To {
		line("From", "%s", release(r.From))
	}
	line("Release", "%s", release(r.To))
	line("Since", "%s", age(r.Since))
	if r.Next.IsValid() && r.Next.GetSeconds() > 0 {
		line("Next step", "in %s at the earliest", until(r.Next))
	}
	line("Proxies", "")
	line("  Selected", "%d", r.Proxies)
	line("  Chosen", "%d", r.Chosen)
	line("  Updated", "%d", r.Updated)
	for _, d := range r.Disabled {
		line("Disabled", "%s by %s %s ago: %s", cmp.Or(targetOf(d), "everywhere"), cmp.Or(d.By, "-"), age(d.At), d.Reason)
	}
	if err := w.Flush(); err != nil || len(r.Gates) == 0 {
		return err
	}
	fmt.Fprintln(e.stdout)
	gateTable(w, r.Gates)
	return w.Flush()
}

// planned says how a change comes to proxies.
func planned(p *chandlerv1.RolloutPlan) string {
	if len(p.Steps) == 0 {
		return "to all at once"
	}
	text := fmt.Sprintf("in steps %s, each of %s, on failure %s", strings.Join(p.Steps, ", "), p.Interval.AsDuration(), p.OnFailure)
	if p.OtherMargins {
		text += ", with other margins"
	}
	return text
}

// marks are what is loud about a rollout.
func marks(pinned bool, disabled int) string {
	switch {
	case pinned && disabled > 0:
		return "PINNED DISABLED"
	case pinned:
		return "PINNED"
	case disabled > 0:
		return "DISABLED"
	}
	return ""
}

// stateAndMarks is the state of a rollout with what is loud about it.
func stateAndMarks(r *chandlerv1.Rollout) string {
	return strings.TrimSpace(r.State + " " + marks(r.Pinned, len(r.Disabled)))
}

func reasoned(r *chandlerv1.Rollout) string {
	if r.Reason == "" {
		return r.Message
	}
	return r.Reason + ": " + r.Message
}

func release(id string) string {
	if id == "" {
		return "nothing"
	}
	return chandler.ReleaseID(id).Short()
}

func targetOf(d *chandlerv1.Disablement) string {
	order := chandler.Disablement{Node: d.Node, Labels: d.Labels}
	return order.Target()
}

// compared are the gates that hold the new release against something.
var compared = map[chandler.Gate]bool{
	chandler.GateSuccess: true, chandler.GateRedirect: true, chandler.GateClientError: true, chandler.GateServerError: true, chandler.GateLatency: true,
}

func gateTable(w io.Writer, gates []*chandlerv1.GateMeasure) {
	fmt.Fprintln(w, "GATE\tRESULT\tNEW\tOTHERS\tBEFORE\tLIMIT\tMESSAGE")
	for _, g := range gates {
		others, before, limit := "-", "-", figure(g.Gate, g.Limit)
		if g.Others != nil {
			others = figure(g.Gate, *g.Others)
		}
		if g.Before != nil {
			before = figure(g.Gate, *g.Before)
		}
		if g.Others == nil && g.Before == nil && compared[chandler.Gate(g.Gate)] {
			limit = "-" // it follows from what is compared
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", g.Gate, g.Result, figure(g.Gate, g.Chosen), others, before, limit, dash(g.Message))
	}
}

// figure writes what a gate measures: a share, a time or a count.
func figure(gate string, v float64) string {
	switch chandler.Gate(gate) {
	case chandler.GateSuccess, chandler.GateRedirect, chandler.GateClientError, chandler.GateServerError:
		return fmt.Sprintf("%.2f%%", 100*v)
	case chandler.GateLatency:
		return time.Duration(v * float64(time.Second)).Round(10 * time.Microsecond).String()
	}
	return fmt.Sprintf("%g", v)
}

func rolloutHistoryCommand(e *env) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:   "history NAME",
		Short: "The last ten releases, and what became of them",
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := e.find(cmd.Context(), kind, args[0], e.distributed)
			if err != nil {
				return err
			}
			r, err := e.rollout(cmd.Context(), ref)
			if err != nil {
				return err
			}
			if e.output == "name" {
				for _, h := range r.History {
					fmt.Fprintln(e.stdout, h.Release)
				}
				return nil
			}
			if done, err := e.printMessage(&chandlerv1.Rollout{Ref: r.Ref, Uid: r.Uid, History: r.History}); done || err != nil {
				return err
			}
			w := tabwriter.NewWriter(e.stdout, 0, 4, 3, ' ', 0)
			row(w, false, []string{"RELEASE", "GENERATION", "DIGEST", "AGE", "OUTCOME", "BY", "WHY"})
			for _, h := range r.History {
				row(w, false, []string{
					release(h.Release), fmt.Sprint(h.Generation), shortDigest(h.Resolved.GetModuleDigest()), age(h.At),
					cmp.Or(h.Outcome, string(chandler.RolloutProgressing)), dash(h.By), dash(h.Why),
				})
			}
			return w.Flush()
		},
	}
	e.outputFlag(cmd)
	e.pluginFlags(cmd, &kind)
	return cmd
}

// steerCommand is an order without anything of its own.
func steerCommand(e *env, verb chandlerv1.SteerRequest_Verb, use, done, short, long string) *cobra.Command {
	req := &chandlerv1.SteerRequest{Verb: verb}
	return e.steering(req, &cobra.Command{Use: use + " NAME", Short: short, Long: strings.TrimSpace(short + ".\n\n" + long)}, func() string { return done })
}

// steering completes a command that gives an order.
func (e *env) steering(req *chandlerv1.SteerRequest, cmd *cobra.Command, done func() string) *cobra.Command {
	var kind string
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var err error
		if req.Ref, err = e.find(cmd.Context(), kind, args[0], e.distributed); err != nil {
			return err
		}
		res, err := call(cmd.Context(), e, e.rollouts().Steer, req)
		if err != nil {
			return err
		}
		return e.steered(res.Rollout, done())
	}
	cmd.Flags().StringVar(&req.Why, "reason", "", "why, for the history and the log")
	e.pluginFlags(cmd, &kind)
	return cmd
}

// steered says what an order came to.
func (e *env) steered(r *chandlerv1.Rollout, done string) error {
	_, err := fmt.Fprintf(e.stdout, "%s %s/%s %s: %s, %s on %d of %s\n",
		strings.ToLower(r.Ref.Kind), r.Ref.Namespace, r.Ref.Name, done, stateAndMarks(r), release(r.To), r.Updated, chandler.Count(r.Proxies, "proxy", "proxies"))
	return err
}

func promoteCommand(e *env) *cobra.Command {
	req := &chandlerv1.SteerRequest{Verb: chandlerv1.SteerRequest_VERB_PROMOTE}
	cmd := &cobra.Command{
		Use: "promote NAME", Short: "Go on to the next step, whatever the gates say",
		Long: "Go on to the next step, whatever the gates say; with --full, to all proxies at once.",
	}
	full := cmd.Flags().Bool("full", false, "to all proxies at once")
	done := func() string {
		if *full {
			return "promoted in full"
		}
		return "promoted"
	}
	cmd = e.steering(req, cmd, done)
	give := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if *full {
			req.Verb = chandlerv1.SteerRequest_VERB_PROMOTE_FULL
		}
		return give(cmd, args)
	}
	return cmd
}

func undoCommand(e *env) *cobra.Command {
	req := &chandlerv1.SteerRequest{Verb: chandlerv1.SteerRequest_VERB_UNDO}
	cmd := &cobra.Command{
		Use: "undo NAME", Short: "Put all proxies back on an earlier release, and keep them there",
		Long: `Put all proxies back on an earlier release, at once, and keep them there: the
release is PINNED until the plugin's resource is changed, or until "unpin".`,
		Example: "  chandler rollout undo basic-auth --to 3f1c9a07d2e4",
	}
	cmd.Flags().StringVar(&req.Release, "to", "", "the release, at least eight digits of it (see history); the one before without it")
	return e.steering(req, cmd, func() string { return "undone" })
}

package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

func diffCommand(e *env) *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "diff -f FILE|-",
		Short: "What a file would change, in the resources and on proxies",
		Long: `What applying a file would change: the resources as a unified diff, and on which
proxies, in which slots of which listeners something would be another, with the plugins
there in their order before and after; of a plugin that is rolled out in steps also which
proxies would be first. Nothing is changed.

The exit code is 0 when there is no difference, 3 when there is, and 1 when a resource is
refused or nobody can be asked.`,
		Example: `  chandler diff -f basic-auth.yaml`,
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return usagef("diff needs -f FILE, or -f - for standard input")
			}
			manifest, err := e.read(files)
			if err != nil {
				return err
			}
			res, err := e.preview(cmd.Context(), manifest)
			if err != nil {
				return err
			}
			done, err := e.printMessage(res)
			if err != nil {
				return err
			}
			if !done {
				for _, o := range res.Objects {
					e.printDiff(o)
				}
			}
			return verdict(res, true)
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder, or - for standard input; may be given several times")
	cmd.Flags().StringVarP(&e.namespace, "namespace", "n", "", "namespace of documents that name none (default \"default\")")
	cmd.Flags().StringVarP(&e.output, "output", "o", "table", "table, json or yaml")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if !slices.Contains([]string{"table", "json", "yaml"}, e.output) {
			return usagef("--output %s: one of table, json, yaml", e.output)
		}
		return nil
	}
	e.planeFlags(cmd)
	return cmd
}

// preview asks what applying a manifest would do.
func (e *env) preview(ctx context.Context, manifest []byte) (*chandlerv1.PreviewResponse, error) {
	return call(ctx, e, e.fleet().Preview, &chandlerv1.PreviewRequest{Manifest: manifest, Namespace: e.namespace})
}

// verdict is how a command ends that has shown a preview; with differences, if that is
// what it was asked for.
func verdict(res *chandlerv1.PreviewResponse, asked bool) error {
	refused, differs := 0, false
	for _, o := range res.Objects {
		switch o.Result.Action {
		case chandlerv1.Action_ACTION_REFUSED:
			refused++
		case chandlerv1.Action_ACTION_UNCHANGED:
		default:
			differs = true
		}
	}
	switch {
	case refused > 0:
		return &exitError{code: exitFailed, text: fmt.Sprintf("%d of %d refused", refused, len(res.Objects))}
	case len(res.Objects) == 0:
		return &exitError{code: exitFailed, text: "there is no object in it"}
	case asked && differs:
		return &exitError{code: exitUnhealthy}
	}
	return nil
}

// dryRun is apply --dry-run=server.
func (e *env) dryRun(ctx context.Context, manifest []byte) error {
	res, err := e.preview(ctx, manifest)
	if err != nil {
		return err
	}
	for _, o := range res.Objects {
		e.printResult(refName(o.Result.Ref), o.Result, " (server dry run)")
		e.printEffects(o)
	}
	return verdict(res, false)
}

// printDiff is for diff: the difference, and what it does.
func (e *env) printDiff(o *chandlerv1.ObjectPreview) {
	if o.Result.Action == chandlerv1.Action_ACTION_REFUSED {
		e.printResult(refName(o.Result.Ref), o.Result, "")
		return
	}
	for _, p := range o.Result.Warnings {
		e.printProblem("warning: ", p)
	}
	switch {
	case o.Diff != "":
		fmt.Fprint(e.stdout, o.Diff)
	case o.Result.Action != chandlerv1.Action_ACTION_UNCHANGED:
		fmt.Fprintf(e.stdout, "%s would be %s: what differs is not shown\n", refName(o.Result.Ref), actions[o.Result.Action])
	}
	e.printEffects(o)
}

// printEffects says what changes on proxies.
func (e *env) printEffects(o *chandlerv1.ObjectPreview) {
	for _, p := range o.Proxies {
		fmt.Fprintf(e.stdout, "  proxy %s: %s\n", p.Node, p.Change)
		for _, s := range p.Slots {
			fmt.Fprintf(e.stdout, "    listener %s, slot %s\n", s.Listener, s.Slot)
			fmt.Fprintf(e.stdout, "      before: %s\n", inOrder(s.Before))
			fmt.Fprintf(e.stdout, "      after:  %s\n", inOrder(s.After))
		}
	}
	if o.More {
		fmt.Fprintln(e.stdout, "  and more proxies, which are not told of")
	}
	if o.First != nil {
		fmt.Fprintf(e.stdout, "  first stage (%s): %s\n", o.First.Step, firstStage(o.First))
	}
}

// firstStage says whom a change comes to first.
func firstStage(f *chandlerv1.FirstStage) string {
	text := fmt.Sprintf("%d of %s", f.Proxies, chandler.Count(f.Selected, "proxy", "proxies"))
	switch more := int(f.Proxies) - len(f.Nodes); {
	case f.Undecided:
		return text + "; which ones is decided when it is created"
	case len(f.Nodes) == 0:
		return text
	case more > 0:
		return fmt.Sprintf("%s: %s and %d more", text, strings.Join(f.Nodes, ", "), more)
	}
	return text + ": " + strings.Join(f.Nodes, ", ")
}

// inOrder are plugins in the order in which requests meet them.
func inOrder(refs []*chandlerv1.ObjectRef) string {
	if len(refs) == 0 {
		return "(none)"
	}
	var all []string
	for _, ref := range refs {
		all = append(all, ref.Namespace+"/"+ref.Name)
	}
	return strings.Join(all, " -> ")
}

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/wire"
)

// maxManifest bounds what is read for one apply.
const maxManifest = 16 << 20

func applyCommand(e *env) *cobra.Command {
	var files []string
	var wait bool
	var dryRun string
	cmd := &cobra.Command{
		Use:   "apply -f FILE|-",
		Short: "Create or change plugins",
		Long: `Create or change plugins from YAML or JSON, several documents a file.

What is wrong with a resource is said at once. Resolving its module and putting
it in force go on behind it; --wait waits until every selected proxy runs it, or
says why not. --dry-run=server also says on which proxies and in which slots something would
change, and in which order the plugins would stand there.`,
		Example: `  chandler apply -f basic-auth.yaml --wait
  cat *.yaml | chandler apply -f -`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(files) == 0 {
				return usagef("apply needs -f FILE, or -f - for standard input")
			}
			texts, err := e.readEach(files)
			if err != nil {
				return err
			}
			return e.apply(cmd.Context(), texts, dryRun, wait)
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder, or - for standard input; may be given several times")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until it is in force everywhere, or say why not")
	cmd.Flags().StringVar(&dryRun, "dry-run", "none", "none, client (check here) or server (check there, say what would change, change nothing)")
	cmd.Flags().StringVarP(&e.namespace, "namespace", "n", "", "namespace of documents that name none (default \"default\")")
	e.clientFlags(cmd)
	return cmd
}

// written is what a file says.
type written struct {
	name string
	text []byte
}

// read joins files into one manifest of several documents.
func (e *env) read(files []string) ([]byte, error) {
	texts, err := e.readEach(files)
	return oneManifest(texts), err
}

func oneManifest(texts []written) []byte {
	var all []byte
	for _, t := range texts {
		if len(all) > 0 {
			all = append(all, "\n---\n"...)
		}
		all = append(all, t.text...)
	}
	return all
}

func (e *env) readEach(files []string) ([]written, error) {
	var all []written
	size := 0
	add := func(name string, r io.Reader) error {
		b, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		if size += len(b); size > maxManifest {
			return fmt.Errorf("%s: more than %d bytes in one apply", name, maxManifest)
		}
		all = append(all, written{name, b})
		return nil
	}
	for _, name := range files {
		if name == "-" {
			if err := add("standard input", e.stdin); err != nil {
				return nil, err
			}
			continue
		}
		if err := eachManifest(name, add); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// eachManifest reads one file, or every manifest of a folder.
func eachManifest(name string, add func(string, io.Reader) error) error {
	return filepath.WalkDir(name, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if ext := filepath.Ext(path); path != name && ext != ".yaml" && ext != ".yml" && ext != ".json" {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		return add(path, f)
	})
}

func (e *env) apply(ctx context.Context, texts []written, dryRun string, wait bool) error {
	manifest := oneManifest(texts)
	var results []*chandlerv1.ObjectResult
	suffix := ""
	switch dryRun {
	case "none":
		res, err := call(ctx, e, e.admin().Apply, &chandlerv1.ApplyRequest{Manifest: manifest, Namespace: e.namespace})
		if err != nil {
			return err
		}
		results = res.Results
	case "server":
		return e.dryRun(ctx, manifest)
	case "client":
		results, suffix = e.judge(manifest), " (dry run)"
	default:
		return usagef("--dry-run %s: one of none, client, server", dryRun)
	}
	refused := 0
	names := e.nameAll(texts, results)
	for i, r := range results {
		if !e.printResult(names[i], r, suffix) {
			refused++
		}
	}
	switch {
	case refused > 0:
		return &exitError{code: exitFailed, text: fmt.Sprintf("%d of %d refused", refused, len(results))}
	case len(results) == 0:
		return &exitError{code: exitFailed, text: "there is no object in it"}
	case wait && dryRun == "none":
		return e.wait(ctx, results)
	}
	return nil
}

// nameAll gives what each result is called. A document without a name is called by its place
// in its file, and its problems, which count lines from the beginning of all files, are told
// as that file alone has them.
func (e *env) nameAll(texts []written, results []*chandlerv1.ObjectResult) []string {
	names := make([]string, len(results))
	unnamed := func(r *chandlerv1.ObjectResult) bool { return r.Ref.GetName() == "" }
	var docs []source.Document
	var places []string
	for _, t := range texts {
		if !slices.ContainsFunc(results, unnamed) {
			break // nobody is to be told of them
		}
		for _, d := range source.Decode(t.text, cmp.Or(e.namespace, "default")) {
			docs, places = append(docs, d), append(places, fmt.Sprintf("%s, document at line %d,", t.name, d.Line))
		}
	}
	for i, r := range results {
		names[i] = refName(r.Ref)
		if unnamed(r) && len(docs) == len(results) {
			names[i], r.Problems = places[i], wire.ProblemsToProto(docs[i].Problems)
		}
	}
	return names
}

// judge checks a manifest without a control plane.
func (e *env) judge(manifest []byte) []*chandlerv1.ObjectResult {
	namespace := e.namespace
	if namespace == "" {
		namespace = "default"
	}
	var results []*chandlerv1.ObjectResult
	for _, doc := range source.Decode(manifest, namespace) {
		r := &chandlerv1.ObjectResult{
			Ref:      &chandlerv1.ObjectRef{Kind: doc.Kind, Namespace: doc.Namespace, Name: doc.Name},
			Problems: wire.ProblemsToProto(doc.Problems), Warnings: wire.ProblemsToProto(doc.Warnings),
		}
		if len(doc.Problems) > 0 {
			r.Action = chandlerv1.Action_ACTION_REFUSED
		}
		results = append(results, r)
	}
	return results
}

// actions are the words for what was done.
var actions = map[chandlerv1.Action]string{
	chandlerv1.Action_ACTION_UNSPECIFIED: "valid",
	chandlerv1.Action_ACTION_CREATED:     "created",
	chandlerv1.Action_ACTION_CONFIGURED:  "configured",
	chandlerv1.Action_ACTION_UNCHANGED:   "unchanged",
	chandlerv1.Action_ACTION_DELETED:     "deleted",
	chandlerv1.Action_ACTION_REFUSED:     "refused",
	chandlerv1.Action_ACTION_NOT_FOUND:   "not found",
}

// printResult tells what became of an object, and whether that is success.
func (e *env) printResult(name string, r *chandlerv1.ObjectResult, suffix string) bool {
	ok := r.Action != chandlerv1.Action_ACTION_REFUSED && r.Action != chandlerv1.Action_ACTION_NOT_FOUND
	out := e.stdout
	if !ok {
		out = e.stderr
	}
	fmt.Fprintf(out, "%s %s%s\n", name, actions[r.Action], suffix)
	for _, p := range r.Problems {
		e.printProblem("", p)
	}
	for _, p := range r.Warnings {
		e.printProblem("warning: ", p)
	}
	return ok
}

func (e *env) printProblem(prefix string, p *chandlerv1.Problem) {
	field := p.Field
	if field != "" {
		field += ": "
	}
	fmt.Fprintf(e.stderr, "  %s%s%s (%s)\n", prefix, field, p.Message, p.Code)
	if p.Hint != "" {
		fmt.Fprintf(e.stderr, "    %s\n", p.Hint)
	}
}

// pollInterval is how often wait looks again.
const pollInterval = 20 * time.Millisecond

// wait looks at the applied objects until each is in force everywhere, or has a
// reason not to be that will not pass by itself.
func (e *env) wait(ctx context.Context, results []*chandlerv1.ObjectResult) error {
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	failed := false
	for _, r := range results {
		if r.Ref.Kind == "Secret" {
			continue
		}
		ok, err := e.waitFor(ctx, r)
		if err != nil {
			return err
		}
		failed = failed || !ok
	}
	if failed {
		return &exitError{code: exitFailed}
	}
	return nil
}

func (e *env) waitFor(ctx context.Context, r *chandlerv1.ObjectResult) (ok bool, err error) {
	req := &chandlerv1.ListRequest{Kind: r.Ref.Kind, Namespace: r.Ref.Namespace, Name: r.Ref.Name}
	last := "nothing is known of it yet"
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		objects, err := e.list(ctx, req)
		if ctx.Err() == nil && err != nil {
			return false, err
		}
		if len(objects) == 1 {
			outcome, text := judgeStatus(objects[0], r.Generation)
			if outcome != pending {
				fmt.Fprintf(e.stdout, "%s %s\n", refName(r.Ref), text)
				return outcome == succeeded, nil
			}
			last = text
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return false, &exitError{code: exitFailed, text: fmt.Sprintf("interrupted; %s is applied: %s", refName(r.Ref), last)}
			}
			return false, &exitError{code: exitTimeout, text: fmt.Sprintf("%s after %s: %s", refName(r.Ref), e.timeout, last)}
		case <-tick.C:
		}
	}
}

type outcome int

const (
	pending outcome = iota
	succeeded
	refused
)

// passing are reasons that time may mend, so waiting goes on.
var passing = map[string]bool{
	string(chandler.CodeFetchFailed): true, string(chandler.CodeFetchShort): true,
	string(chandler.CodeControlUnreachable): true, string(chandler.CodeDeadlinePassed): true, string(chandler.CodeResolving): true,
	string(chandler.CodeProgressing): true, string(chandler.CodeEnvoyDown): true, string(chandler.CodeRolloutProgressing): true,
}

// judgeStatus tells whether a generation has come to an end, and which.
func judgeStatus(o *chandlerv1.Object, generation int64) (outcome, string) {
	st := o.GetStatus()
	if st.GetObservedGeneration() < generation {
		return pending, "not looked at yet"
	}
	for _, c := range st.Conditions {
		if c.Type == string(chandler.ConditionReady) {
			continue
		}
		text := fmt.Sprintf("%s=%s: %s: %s", c.Type, c.Status, c.Reason, c.Message)
		switch {
		case c.Status == string(chandler.False) && !passing[c.Reason]:
			return refused, text
		case c.Reason == string(chandler.CodeNoProxies), c.Reason == string(chandler.CodeNoListener):
			return succeeded, "resolved; " + c.Message
		case c.Status != string(chandler.True):
			return pending, text
		}
	}
	return succeeded, fmt.Sprintf("in force on %d of %s", st.InForce, chandler.Count(st.Desired, "proxy", "proxies"))
}

func deleteCommand(e *env) *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:     "delete -f FILE | KIND NAME...",
		Short:   "Remove plugins",
		Example: "  chandler delete wasmplugin basic-auth -n istio-system",
		RunE: func(cmd *cobra.Command, args []string) error {
			refs, err := e.deleteRefs(files, args)
			if err != nil {
				return err
			}
			res, err := call(cmd.Context(), e, e.admin().Delete, &chandlerv1.DeleteRequest{Refs: refs})
			if err != nil {
				return err
			}
			failed := false
			for _, r := range res.Results {
				failed = !e.printResult(refName(r.Ref), r, "") || failed
			}
			if failed {
				return &exitError{code: exitFailed}
			}
			return nil
		},
	}
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder, or - for standard input, whose objects are removed")
	cmd.Flags().StringVarP(&e.namespace, "namespace", "n", "", `namespace (default "default")`)
	e.clientFlags(cmd)
	return cmd
}

func (e *env) deleteRefs(files, args []string) ([]*chandlerv1.ObjectRef, error) {
	var refs []*chandlerv1.ObjectRef
	namespace := e.namespace
	if namespace == "" {
		namespace = "default"
	}
	if len(files) > 0 && len(args) > 0 || len(files) == 0 && len(args) < 2 {
		return nil, usagef("delete needs -f FILE, or KIND NAME")
	}
	if len(args) > 0 {
		kind, err := parseKind(args[0])
		if err != nil {
			return nil, err
		}
		for _, name := range args[1:] {
			refs = append(refs, &chandlerv1.ObjectRef{Kind: kind, Namespace: namespace, Name: name})
		}
		return refs, nil
	}
	manifest, err := e.read(files)
	if err != nil {
		return nil, err
	}
	for _, doc := range source.Decode(manifest, namespace) {
		ref := &chandlerv1.ObjectRef{Kind: doc.Kind, Namespace: doc.Namespace, Name: doc.Name}
		if strings.TrimSpace(ref.Name) == "" {
			return nil, usagef("a document in it has no name")
		}
		refs = append(refs, ref)
	}
	return refs, nil
}

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/types/known/timestamppb"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

func getCommand(e *env) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "get [KIND [NAME]]",
		Short:   "List plugins as they were written",
		Example: "  chandler get -A\n  chandler get wasmplugin basic-auth -o yaml",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 2 {
				return usagef("unexpected argument %q", args[2])
			}
			req, err := e.listRequest(cmd.Context(), arg(args, 0), arg(args, 1), false)
			if err != nil {
				return err
			}
			objects, err := e.list(cmd.Context(), req)
			if err != nil {
				return err
			}
			return e.print(objects, func(w io.Writer) { e.getTable(w, objects) })
		},
	}
	e.scopeFlags(cmd, e.usualNamespace(`"default"; a NAME is looked for in all`))
	e.readerFlags(cmd)
	e.outputFlag(cmd)
	return cmd
}

func (e *env) getTable(w io.Writer, objects []*chandlerv1.Object) {
	wide := e.output == "wide"
	row(w, wide, []string{"NAMESPACE", "KIND", "NAME", "PHASE", "READY", "AGE", "URL"}, "DIGEST", "ORIGIN")
	for _, o := range objects {
		row(w, wide, []string{
			o.Ref.Namespace, o.Ref.Kind, o.Ref.Name, dash(o.Phase), ready(o.Status), age(o.Created), dash(o.Url),
		}, dash(o.Status.GetResolved().GetModuleDigest()), dash(o.Origin))
	}
}

// row writes one line of a table, with more columns when it is wide.
func row(w io.Writer, wide bool, columns []string, more ...string) {
	if wide {
		columns = append(columns, more...)
	}
	fmt.Fprintln(w, strings.Join(columns, "\t"))
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func ready(st *chandlerv1.Status) string {
	return fmt.Sprintf("%d/%d", st.GetInForce(), st.GetDesired())
}

// age is how long ago something was, as kubectl writes it.
func age(t *timestamppb.Timestamp) string {
	if !t.IsValid() || t.GetSeconds() == 0 {
		return "-"
	}
	return ageOf(time.Since(t.AsTime()))
}

func ageOf(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// print writes objects in the chosen form; table draws the two tables.
func (e *env) print(objects []*chandlerv1.Object, table func(io.Writer)) error {
	switch e.output {
	case "name":
		for _, o := range objects {
			fmt.Fprintln(e.stdout, refName(o.Ref))
		}
		return nil
	case "json", "yaml":
		e.tellRedacted(objects)
		return e.printDocuments(objects)
	}
	defer e.printBroken()
	if len(objects) == 0 {
		fmt.Fprintln(e.stderr, e.nothing())
		return nil
	}
	w := tabwriter.NewWriter(e.stdout, 0, 4, 3, ' ', 0)
	table(w)
	return w.Flush()
}

// tellRedacted says once that values are not shown, and what to do.
func (e *env) tellRedacted(objects []*chandlerv1.Object) {
	if !e.toldHidden && slices.ContainsFunc(objects, func(o *chandlerv1.Object) bool { return o.Hidden && !o.Redacted }) {
		e.toldHidden = true
		fmt.Fprintln(e.stderr, "chandler: values that are write-only by the schema of their module's configuration are not shown to anybody")
	}
	if e.told || !slices.ContainsFunc(objects, func(o *chandlerv1.Object) bool { return o.Redacted }) {
		return
	}
	e.told = true
	fmt.Fprintln(e.stderr, "chandler: values of configuration are not shown, because nothing was shown that allows to read them; "+
		"ask as the control plane's own user or root over its socket (--server unix:///...), or with --token-file or --tls-cert")
}

// nothing says that nothing was found, and where it was looked for.
func (e *env) nothing() string {
	if e.scope == "" {
		return "No plugins found."
	}
	return fmt.Sprintf("No plugins found in namespace %q; -A looks in all.", e.scope)
}

// printBroken tells of files that cannot be read, so that nobody takes a table
// for the whole truth.
func (e *env) printBroken() {
	for _, b := range e.broken {
		fmt.Fprintf(e.stderr, "warning: %s cannot be taken in whole:\n", b.Path)
		for _, p := range b.Problems {
			e.printProblem("", p)
		}
	}
}

func (e *env) printDocuments(objects []*chandlerv1.Object) error {
	docs := make([]map[string]any, 0, len(objects))
	for _, o := range objects {
		doc, err := document(o)
		if err != nil {
			return err
		}
		docs = append(docs, doc)
	}
	if e.output == "yaml" {
		enc := yaml.NewEncoder(e.exact)
		enc.SetIndent(2)
		for _, doc := range docs {
			if err := enc.Encode(doc); err != nil {
				return err
			}
		}
		return enc.Close()
	}
	enc := json.NewEncoder(e.stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if len(docs) == 1 {
		return enc.Encode(docs[0])
	}
	return enc.Encode(map[string]any{"apiVersion": "v1", "kind": "List", "items": docs})
}

// document is the object as Kubernetes would show it: as written, with what the
// control plane adds to the metadata, and its status.
func document(o *chandlerv1.Object) (map[string]any, error) {
	doc := map[string]any{}
	if err := yaml.Unmarshal(o.Manifest, &doc); err != nil {
		return nil, fmt.Errorf("%s: %w", refName(o.Ref), err)
	}
	meta, ok := doc["metadata"].(map[string]any)
	if !ok {
		meta = map[string]any{}
		doc["metadata"] = meta
	}
	meta["namespace"] = o.Ref.Namespace
	meta["uid"] = o.Uid
	meta["generation"] = o.Generation
	meta["creationTimestamp"] = stamp(o.Created)
	doc["status"] = statusDocument(o.Status)
	return doc, nil
}

// statusDocument has the shape of the resource's status on Kubernetes, and more in
// it: the resource says nothing that changes while nothing happens.
func statusDocument(st *chandlerv1.Status) map[string]any {
	var conditions []map[string]any
	for _, c := range st.GetConditions() {
		conditions = append(conditions, map[string]any{
			"type": c.Type, "status": c.Status, "reason": c.Reason, "message": c.Message,
			"observedGeneration": c.ObservedGeneration, "lastTransitionTime": stamp(c.LastTransition),
		})
	}
	own := map[string]any{
		"ready":   ready(st),
		"proxies": map[string]any{"desired": st.GetDesired(), "inForce": st.GetInForce(), "failed": st.GetFailed()},
	}
	if r := st.GetResolved(); r != nil {
		maps.Copy(own, told(map[string]any{
			"reference": r.Reference, "artifactDigest": r.ArtifactDigest, "blobDigest": r.BlobDigest, "moduleDigest": r.ModuleDigest,
			"schemaDigest": r.Schema.GetDigest(), "size": r.Size, "abi": r.Abi, "resolvedAt": stamp(r.At), "release": r.Release,
		}))
	}
	if st.GetAttempt() > 0 {
		own["attempt"], own["nextTry"] = st.Attempt, stamp(st.NextTry)
	}
	if r := st.GetRollout(); r != nil {
		own["rollout"] = rolloutDocument(r)
	}
	own["failures"] = proxyDocuments(st.GetFailures())
	if len(st.GetProxies()) > 0 {
		own["proxyStates"] = proxyDocuments(st.Proxies)
	}
	return map[string]any{"observedGeneration": st.GetObservedGeneration(), "conditions": conditions, "chandler": own}
}

func rolloutDocument(r *chandlerv1.RolloutSummary) map[string]any {
	doc := map[string]any{"state": r.State, "step": stepOf(r), "disabled": r.Disabled}
	if r.Pinned {
		doc["pinned"] = true
	}
	return told(doc)
}

func proxyDocuments(proxies []*chandlerv1.ProxyStatus) []map[string]any {
	docs := []map[string]any{}
	for _, p := range proxies {
		docs = append(docs, told(map[string]any{
			"node": p.Namespace + "/" + p.Node, "state": p.State, "release": p.Release, "inForce": p.InForce,
			"reason": p.Reason, "message": p.Message, "attempt": p.Attempt, "nextTry": stamp(p.NextTry), "since": stamp(p.Since),
			"connected": p.Connected, "digest": p.Digest, "standIn": p.StandIn, "agentVersion": p.AgentVersion, "envoyVersion": p.EnvoyVersion,
		}))
	}
	return docs
}

// told leaves out what is not known.
func told(doc map[string]any) map[string]any {
	maps.DeleteFunc(doc, func(_ string, v any) bool { return v == nil || v == "" || v == uint32(0) || v == uint64(0) })
	return doc
}

func stamp(t *timestamppb.Timestamp) any {
	if !t.IsValid() || t.GetSeconds() <= 0 {
		return nil
	}
	return t.AsTime().UTC().Format(time.RFC3339)
}

// condition finds one of the conditions.
func condition(st *chandlerv1.Status, kind chandler.ConditionType) *chandlerv1.Condition {
	for _, c := range st.GetConditions() {
		if c.Type == string(kind) {
			return c
		}
	}
	return &chandlerv1.Condition{Type: string(kind), Status: string(chandler.Unknown)}
}

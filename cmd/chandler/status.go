package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/source"
)

func statusCommand(e *env) *cobra.Command {
	var watch bool
	var kind string
	cmd := &cobra.Command{
		Use:   "status [NAME]",
		Short: "What is in force where",
		Long: `What is in force where: a line a plugin, or with NAME a line a proxy, and one for
the control plane while it cannot resolve the plugin. READY is on how many proxies the
newest release is in force, of those that are to have it; DIGEST is its module's, and in
the line of a proxy that of the module which is in force there. -o wide says why,
and where a rollout is.
A cluster's resources name no more than ten proxies, those on which the plugin fails.

The exit code is 3 when something is not as it should be.`,
		Example: `  chandler status -o wide
  chandler status basic-auth -w`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usagef("unexpected argument %q", args[1])
			}
			req, err := e.listRequest(cmd.Context(), kind, arg(args, 0), true)
			if err != nil {
				return err
			}
			req.Proxies = len(args) == 1
			if watch {
				return e.watch(cmd.Context(), req)
			}
			objects, err := e.list(cmd.Context(), req)
			if err != nil {
				return err
			}
			if err := e.printStatus(objects, req.Proxies); err != nil {
				return err
			}
			if len(e.broken) > 0 || slices.ContainsFunc(objects, func(o *chandlerv1.Object) bool { return !healthy(o) }) {
				return &exitError{code: exitUnhealthy}
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show again whenever something changes, until interrupted: in place on a terminal, else one below the other")
	e.scopeFlags(cmd, e.usualNamespace("any"))
	kindFlag(cmd, &kind)
	e.readerFlags(cmd)
	e.outputFlag(cmd)
	return cmd
}

func (e *env) printStatus(objects []*chandlerv1.Object, proxies bool) error {
	if proxies && !e.clustered() && (e.output == "table" || e.output == "wide") {
		defer e.sayWhy(objects)
	}
	return e.print(objects, func(w io.Writer) {
		switch {
		case !proxies:
			e.statusTable(w, objects)
		case !e.clustered():
			e.proxyTable(w, objects)
		default: // a resource names failing proxies, and no others
			e.statusTable(w, objects)
			if slices.ContainsFunc(objects, func(o *chandlerv1.Object) bool { return len(o.Status.GetProxies()) > 0 }) {
				fmt.Fprintln(w)
				e.proxyTable(w, objects)
			}
		}
	})
}

// nextSteps are the commands that go on from a state that no proxy's line explains.
var nextSteps = map[chandler.Code]string{
	chandler.CodeDisabled: "enable", chandler.CodePinned: "rollout unpin",
	chandler.CodeRolloutProgressing: "rollout status", chandler.CodeRolloutPaused: "rollout status",
	chandler.CodeRolloutFailed: "rollout status", chandler.CodeRolloutAborted: "rollout status",
}

// sayWhy says what the lines of proxies do not: why a plugin is not everywhere as its
// resource has it although each of them is well, and what shows or changes that.
func (e *env) sayWhy(objects []*chandlerv1.Object) {
	for _, o := range objects {
		state, reason := summary(o)
		if reason == "-" || o.Status.GetAttempt() > 0 || slices.ContainsFunc(o.Status.GetProxies(), func(p *chandlerv1.ProxyStatus) bool { return p.Reason != "" }) {
			continue
		}
		fmt.Fprintf(e.stderr, "%s: %s\n", state, reason)
		if next := nextSteps[chandler.Code(state)]; next != "" {
			fmt.Fprintf(e.stderr, "  next: chandler %s %s/%s\n", next, o.Ref.Namespace, o.Ref.Name)
		}
	}
}

// How often watch looks again: at a control plane, and at an API server, which is
// everybody's.
const (
	watchInterval        = 500 * time.Millisecond
	watchClusterInterval = 2 * time.Second
)

// watch prints what list gives, and again when something in it has changed.
func (e *env) watch(ctx context.Context, req *chandlerv1.ListRequest) error {
	interval := watchInterval
	if e.clustered() {
		interval = watchClusterInterval
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	var shown *chandlerv1.ListResponse
	for {
		objects, err := e.list(ctx, req)
		if ctx.Err() != nil {
			return nil // interrupted, as it was said to be
		}
		if err != nil {
			return err
		}
		now := &chandlerv1.ListResponse{Objects: objects, Broken: e.broken}
		if !proto.Equal(shown, now) {
			e.nextLook(shown == nil)
			shown = now
			if err := e.printStatus(objects, req.Proxies); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// nextLook begins another look of a watch: over the one before on a terminal, and
// otherwise below it.
func (e *env) nextLook(first bool) {
	switch {
	case e.screen != nil:
		fmt.Fprint(e.screen, "\x1b[H\x1b[2J")
	case !first:
		fmt.Fprintln(e.stdout)
	}
}

// healthy tells whether a plugin is as it should be, wherever it should be; one
// that no proxy needs is.
func healthy(o *chandlerv1.Object) bool {
	st := o.Status
	return observed(o) && condition(st, chandler.ConditionReady).Status != string(chandler.False) && st.GetInForce() == st.GetDesired()
}

func (e *env) statusTable(w io.Writer, objects []*chandlerv1.Object) {
	wide := e.output == "wide"
	row(w, wide, []string{"NAMESPACE", "NAME", "READY", "DIGEST", "PHASE", "AGE", "STATE"}, "ROLLOUT", "NEXT TRY", "REASON")
	for _, o := range objects {
		state, reason := summary(o)
		row(w, wide, []string{
			o.Ref.Namespace, o.Ref.Name, ready(o.Status), shortDigest(o.Status.GetResolved().GetModuleDigest()),
			dash(o.Phase), age(o.Created), state,
		}, dash(rolloutOf(o.Status.GetRollout())), until(o.Status.GetNextTry()), reason)
	}
}

// rolloutOf is where a rollout is, in one cell: "Progressing 1/3", "Paused 2/3 PINNED".
func rolloutOf(r *chandlerv1.RolloutSummary) string {
	if r == nil {
		return ""
	}
	return strings.Join(slices.DeleteFunc([]string{r.State, stepOf(r), marks(r.Pinned, int(r.Disabled))}, func(s string) bool { return s == "" }), " ")
}

// stepOf is the step at which a rollout is, as 1/3; empty when none is under way.
func stepOf(r *chandlerv1.RolloutSummary) string {
	if r.Step == 0 {
		return ""
	}
	return fmt.Sprintf("%d/%d", r.Step, r.Steps)
}

// observed tells whether the status is about the object as it is; on a cluster it
// may be of one before.
func observed(o *chandlerv1.Object) bool { return o.Status.GetObservedGeneration() >= o.Generation }

// notObserved says so of a resource of a cluster, and why it may be for ever.
func notObserved(o *chandlerv1.Object) string {
	const said = "no control plane has said anything of it as it is written now; "
	if _, ok := o.Labels["istio.io/rev"]; ok {
		return said + "is one running?"
	}
	return said + "where Istio is, chandler looks after those labelled istio.io/rev: chandler"
}

// summary is the condition that says most, the first one that is not true, and
// why; that all is well needs no words.
func summary(o *chandlerv1.Object) (state, reason string) {
	if !observed(o) {
		return "NotObserved", notObserved(o)
	}
	st := o.Status
	for _, kind := range []chandler.ConditionType{
		chandler.ConditionAccepted, chandler.ConditionResolvedRefs, chandler.ConditionProgrammed,
	} {
		if c := condition(st, kind); c.Status != string(chandler.True) {
			return dash(c.Reason), dash(c.Message)
		}
	}
	return condition(st, chandler.ConditionProgrammed).Reason, "-"
}

func shortDigest(d string) string {
	hex := strings.TrimPrefix(d, "sha256:")
	return dash(hex[:min(len(hex), 12)])
}

func (e *env) proxyTable(w io.Writer, objects []*chandlerv1.Object) {
	line := func(columns []string, release, agent, envoy, message string) {
		if e.output == "wide" {
			columns = append(columns, release, agent, envoy)
		}
		row(w, false, append(columns, message))
	}
	line([]string{"NODE", "STATE", "PULLED", "LOADED", "IN FORCE", "DIGEST", "SINCE", "NEXT TRY", "REASON"}, "RELEASE", "AGENT", "ENVOY", "MESSAGE")
	for _, o := range objects {
		if st := o.Status; st.GetAttempt() > 0 { // it is stuck before any proxy
			c := condition(st, chandler.ConditionResolvedRefs)
			line([]string{
				"control plane", string(chandler.StateFailed), "-", "-", "-", "-", age(c.LastTransition), until(st.NextTry), dash(c.Reason),
			}, "-", "-", "-", fmt.Sprintf("%s (attempt %d)", c.Message, st.Attempt))
		}
		for _, p := range o.Status.GetProxies() {
			pulled, loaded, inForce := progress(p)
			line([]string{
				p.Namespace + "/" + p.Node, stateOf(p), pulled, loaded, inForce, shortDigest(digestOf(o, p)), age(p.Since), until(p.NextTry), dash(p.Reason),
			}, shortDigest(p.Release), dash(p.AgentVersion), dash(p.EnvoyVersion), dash(said(p)))
		}
	}
}

// stateOf is the state of a plugin on a proxy; of one that is not connected, the last
// that it said.
func stateOf(p *chandlerv1.ProxyStatus) string {
	if !p.Connected {
		return p.State + " (disconnected)"
	}
	return p.State
}

// progress is how far a proxy is with the release that it is to have: whether its module
// is on disk, whether Envoy runs it, and what decides requests.
func progress(p *chandlerv1.ProxyStatus) (pulled, loaded, inForce string) {
	pulled, loaded, inForce = "no", "no", "no"
	down := p.Reason == string(chandler.CodeEnvoyDown)
	switch chandler.State(p.State) {
	case chandler.StateReady, chandler.StateRejected:
		pulled = "yes"
	case chandler.StateInForce:
		pulled = "yes"
		if !down {
			loaded = "yes"
		}
	case chandler.StateUnmatched:
		return "-", "-", "-"
	}
	switch {
	case down:
	case p.InForce != "" && p.InForce == p.Release && p.State == string(chandler.StateInForce):
		inForce = "yes"
	case p.InForce != "":
		inForce = "previous"
	case p.StandIn == string(chandler.StandInDeny):
		inForce = "denied"
	case p.StandIn == string(chandler.StandInPass):
		inForce = "left out"
	}
	return pulled, loaded, inForce
}

// digestOf is that of the module in force on a proxy.
func digestOf(o *chandlerv1.Object, p *chandlerv1.ProxyStatus) string {
	if r := o.GetStatus().GetResolved(); p.Digest == "" && p.InForce != "" && p.InForce == r.GetRelease() {
		return r.GetModuleDigest()
	}
	return p.Digest
}

// until is how long it is to a time.
func until(t *timestamppb.Timestamp) string {
	if !t.IsValid() || t.GetSeconds() <= 0 {
		return "-"
	}
	return max(0, time.Until(t.AsTime())).Round(time.Second).String()
}

// said is what a proxy says of a plugin, and when it tries again.
func said(p *chandlerv1.ProxyStatus) string {
	if p.Attempt > 0 && p.NextTry.GetSeconds() > 0 {
		return fmt.Sprintf("%s (attempt %d, next in %s)", p.Message, p.Attempt, until(p.NextTry))
	}
	return p.Message
}

func describeCommand(e *env) *cobra.Command {
	var config bool
	cmd := &cobra.Command{
		Use:   "describe KIND NAME",
		Short: "All that is known of a plugin, and why it is as it is",
		Long: `All that is known of a plugin, and why it is as it is.

Of its configuration the fields are shown, and not their values, as these can be
secret and what describe says is often passed on; --show-config shows the values
to those who may read them.`,
		Example: "  chandler describe wasmplugin basic-auth",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usagef("describe needs KIND NAME")
			}
			req, err := e.listRequest(cmd.Context(), args[0], args[1], false)
			if err != nil {
				return err
			}
			req.Proxies, req.Schemas = true, true
			objects, err := e.list(cmd.Context(), req)
			if err != nil {
				return err
			}
			for _, o := range objects {
				e.describe(o, config)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&config, "show-config", false, "show the values of the plugin's configuration")
	cmd.Flags().StringVarP(&e.namespace, "namespace", "n", "", "namespace (default "+e.usualNamespace("any")+")")
	cmd.Flags().BoolVarP(&e.all, "all-namespaces", "A", false, "objects of all namespaces")
	e.readerFlags(cmd)
	return cmd
}

func (e *env) describe(o *chandlerv1.Object, config bool) {
	w := tabwriter.NewWriter(e.stdout, 0, 4, 2, ' ', 0)
	defer w.Flush()
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%s:\t%s\n", name, value)
		}
	}
	line("Name", o.Ref.Name)
	line("Namespace", o.Ref.Namespace)
	line("Kind", o.Ref.Kind)
	line("UID", o.Uid)
	generation := fmt.Sprint(o.Generation)
	if !observed(o) {
		generation += fmt.Sprintf(" (what follows is of generation %d: %s)", o.Status.GetObservedGeneration(), notObserved(o))
	}
	line("Generation", generation)
	line("Created", fmt.Sprint(stamp(o.Created)))
	line("Origin", o.Origin)
	line("Phase", o.Phase)
	line("URL", o.Url)
	st := o.Status
	if r := st.GetResolved(); r != nil {
		line("Resolved", r.Reference)
		line("  Artifact", r.ArtifactDigest)
		line("  Blob", r.BlobDigest)
		line("  Module", r.ModuleDigest)
		if r.Size > 0 {
			line("  Size", fmt.Sprintf("%d bytes", r.Size))
		}
		line("  ABI", r.Abi)
		line("  Schema", r.Schema.GetDigest())
		line("  At", fmt.Sprint(stamp(r.At)))
		line("  Release", r.Release)
	}
	line("Rollout", rolloutOf(st.GetRollout()))
	if st.GetAttempt() > 0 {
		line("Attempt", fmt.Sprintf("%d, next in %s", st.Attempt, until(st.NextTry)))
	}
	w.Flush()
	e.describeConfiguration(o, config)
	e.describeSchema(st.GetResolved().GetSchema())
	e.describeConditions(st)
	e.describeProblems("Problems", st.GetProblems())
	e.describeProblems("Warnings", st.GetWarnings())
	e.describeProxies(st)
}

// describeConfiguration shows what a plugin is given, or only its fields.
func (e *env) describeConfiguration(o *chandlerv1.Object, values bool) {
	manifest := o.Manifest
	if values {
		e.tellRedacted([]*chandlerv1.Object{o})
	} else {
		manifest = source.Redact(manifest)
	}
	var doc struct {
		Spec struct {
			given `yaml:",inline"`
			Wasm  given
		}
	}
	if err := yaml.Unmarshal(manifest, &doc); err != nil {
		return // why it cannot be read is among the problems
	}
	g := doc.Spec.given
	if g.PluginConfig == nil && g.VMConfig == nil {
		g = doc.Spec.Wasm
	}
	text, err := yaml.Marshal(g)
	if err != nil || g.PluginConfig == nil && g.VMConfig == nil {
		return
	}
	fmt.Fprintln(e.stdout, "Configuration:")
	for line := range strings.Lines(string(text)) {
		fmt.Fprint(e.stdout, "  ", line)
	}
}

// describeSchema shows what there is to configure.
func (e *env) describeSchema(s *chandlerv1.ConfigSchema) {
	if len(s.GetProperties()) == 0 {
		return
	}
	title := "Schema"
	if s.Title != "" {
		title += " (" + s.Title + ")"
	}
	fmt.Fprintln(e.stdout, title+":")
	w := tabwriter.NewWriter(e.stdout, 0, 4, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintln(w, "  FIELD\tTYPE\tNEEDED\tWHAT IT IS")
	for _, p := range s.Properties {
		needed, what := "-", p.Description
		if p.Required {
			needed = "yes"
		}
		if p.WriteOnly {
			what = strings.TrimSpace("(never shown) " + what)
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\n", p.Path, dash(p.Type), needed, dash(what))
	}
	if s.More {
		fmt.Fprintln(w, "  ...\t\t\t")
	}
}

// given is what a plugin is given by its resource.
type given struct {
	PluginConfig any `yaml:"pluginConfig,omitempty"`
	VMConfig     any `yaml:"vmConfig,omitempty"`
}

func (e *env) describeConditions(st *chandlerv1.Status) {
	fmt.Fprintln(e.stdout, "Conditions:")
	w := tabwriter.NewWriter(e.stdout, 0, 4, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintln(w, "  TYPE\tSTATUS\tREASON\tAGE\tMESSAGE")
	for _, c := range st.GetConditions() {
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\n", c.Type, c.Status, c.Reason, age(c.LastTransition), c.Message)
	}
}

func (e *env) describeProblems(title string, problems []*chandlerv1.Problem) {
	if len(problems) == 0 {
		return
	}
	fmt.Fprintln(e.stdout, title+":")
	for _, p := range problems {
		field := p.Field
		if field != "" {
			field += ": "
		}
		fmt.Fprintf(e.stdout, "  %s%s (%s)\n", field, p.Message, p.Code)
		if p.Hint != "" {
			fmt.Fprintf(e.stdout, "    %s\n", p.Hint)
		}
	}
}

func (e *env) describeProxies(st *chandlerv1.Status) {
	fmt.Fprintf(e.stdout, "Proxies: %d desired, %d in force, %d failed\n", st.GetDesired(), st.GetInForce(), st.GetFailed())
	if len(st.GetProxies()) == 0 {
		return
	}
	w := tabwriter.NewWriter(e.stdout, 0, 4, 2, ' ', 0)
	defer w.Flush()
	fmt.Fprintln(w, "  NODE\tSTATE\tIN FORCE\tREASON\tMESSAGE")
	for _, p := range st.Proxies {
		inForce := shortDigest(p.InForce)
		if p.StandIn != "" && p.InForce == "" {
			_, _, inForce = progress(p)
		}
		fmt.Fprintf(w, "  %s/%s\t%s\t%s\t%s\t%s\n", p.Namespace, p.Node, stateOf(p), inForce, dash(p.Reason), dash(said(p)))
	}
}

package control_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/wire"
)

// traced is a rig whose spans are recorded.
func traced(t *testing.T) (*rig, *tracetest.SpanRecorder) {
	t.Helper()
	spans := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(spans))
	r := &rig{
		t: t, registry: &registry{mods: map[string][]byte{}}, records: record.NewMemory(), dir: t.TempDir(), objects: map[string]source.Object{},
		settle: func(cfg *control.Config) { cfg.Tracer = provider.Tracer("test") },
	}
	r.start()
	return r, spans
}

// story gives the ended spans of a plugin's traces, "parent > name: outcome or code".
func story(spans *tracetest.SpanRecorder) []string {
	names := map[string]string{}
	for _, s := range spans.Started() {
		names[s.SpanContext().SpanID().String()] = s.Name()
	}
	var told []string
	for _, s := range spans.Ended() {
		line := s.Name()
		if s.Parent().IsValid() {
			line = names[s.Parent().SpanID().String()] + " > " + line
		}
		for _, a := range s.Attributes() {
			if a.Key == "chandler.outcome" || a.Key == "error.type" {
				line += ": " + a.Value.AsString()
			}
		}
		told = append(told, line)
	}
	slices.Sort(told)
	return told
}

// A change is one trace, which ends when the last proxy has it in force; a restart
// begins none.
func TestJourney(t *testing.T) {
	t.Parallel()
	r, spans := traced(t)
	mod := module.Append()
	r.set("auth:v1", mod)
	a, b := r.join(gateway), r.join(chandler.Node{Namespace: "istio-system", Name: "gw2"})
	eventually(t, func() bool { return gauge(t, r.metrics, "chandler_agents") == 2 }, func() string { return "both are connected" })
	r.apply("auth", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Wasm.Config = []byte(`{"password":"s3cr3t"}`) })
	for i, agent := range []*agent{a, b} {
		att, node := agent.has("auth", runs(mod)), agent.node
		if ended := story(spans); slices.Contains(ended, "change: in force") {
			t.Fatalf("it is over with %d of 2 proxies: %v", i, ended)
		}
		if err := say(t, agent.report(), wire.Report{Node: &node, Sequence: 1, Full: true, States: []chandler.AttachmentState{stateOf(att, chandler.StateInForce, 0)}}); err != nil {
			t.Fatal(err)
		}
	}
	want := []string{"change > conform", "change > put in force", "change > record", "change > resolve", "change > tell", "change: in force"}
	eventually(t, func() bool { return slices.Equal(story(spans), want) }, func() string { return fmt.Sprintf("%q", story(spans)) })
	traces := map[string]bool{}
	for _, s := range spans.Ended() {
		traces[s.SpanContext().TraceID().String()] = true
		if text := fmt.Sprint(s.Attributes(), s.Events(), s.Status()); strings.Contains(text, "s3cr3t") {
			t.Errorf("%s shows the configuration: %s", s.Name(), text)
		}
	}
	if len(traces) != 1 {
		t.Errorf("%d traces", len(traces))
	}
	r.restart()
	r.deliver()
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
	if got := story(spans); len(got) != len(want) {
		t.Errorf("the restart left a trace: %q", got)
	}
}

// What fails is told with a code and not in words, and a change that is overtaken by
// another one, or by the end of its plugin, says so.
func TestJourneyThatFails(t *testing.T) {
	t.Parallel()
	r, spans := traced(t)
	r.join(gateway) // with nobody to have it, a change is over after a while
	eventually(t, func() bool { return gauge(t, r.metrics, "chandler_agents") == 1 }, func() string { return "it is connected" })
	r.fail(&fetch.Error{Problem: chandler.Problem{Code: chandler.CodeNotFound, Message: "no such tag at https://u:s3cr3t@reg.example"}})
	r.apply("auth", "oci://reg.example/auth:v1", nil)
	r.await("auth", chandler.ConditionResolvedRefs, "False "+string(chandler.CodeNotFound))
	r.fail(nil)
	r.set("auth:v2", module.Append())
	r.apply("auth", "oci://reg.example/auth:v2", nil)
	r.await("auth", chandler.ConditionResolvedRefs, "True Resolved")
	delete(r.objects, "auth")
	r.deliver()
	want := map[string]bool{"change: superseded": true, "change: deleted": true, "change > resolve: " + string(chandler.CodeNotFound): true, "change > resolve": true}
	eventually(t, func() bool {
		got := story(spans)
		return !slices.ContainsFunc(slices.Collect(maps.Keys(want)), func(w string) bool { return !slices.Contains(got, w) })
	}, func() string { return fmt.Sprintf("%q", story(spans)) })
	for _, s := range spans.Ended() {
		all := append(slices.Clone(s.Attributes()), attribute.String("status", s.Status().Description))
		if text := fmt.Sprint(all, s.Events()); strings.Contains(text, "s3cr3t") || strings.Contains(text, "https://") {
			t.Errorf("%s shows what was said: %s", s.Name(), text)
		}
	}
}

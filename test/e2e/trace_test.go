package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler/internal/testenv/module"
)

// spans are those that a collector was sent.
type spans struct {
	mu    sync.Mutex
	all   []*tracev1.Span
	bytes bytes.Buffer
}

func (s *spans) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	req := &collector.ExportTraceServiceRequest{}
	if err != nil || proto.Unmarshal(body, req) != nil {
		http.Error(w, "unreadable", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bytes.Write(body)
	for _, of := range req.ResourceSpans {
		for _, scope := range of.ScopeSpans {
			s.all = append(s.all, scope.Spans...)
		}
	}
}

// tree gives the spans as paths of names, of the trace that has one of these.
func (s *spans) tree(of string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	byID := map[string]*tracev1.Span{} // one that was sent again is one
	var trace []byte
	for _, span := range s.all {
		byID[string(span.SpanId)] = span
		for _, a := range span.Attributes {
			if a.Value.GetStringValue() == of {
				trace = span.TraceId
			}
		}
	}
	var paths []string
	for _, span := range byID {
		if !bytes.Equal(span.TraceId, trace) {
			continue
		}
		path := span.Name
		for up := byID[string(span.ParentSpanId)]; up != nil; up = byID[string(up.ParentSpanId)] {
			path = up.Name + "/" + path
		}
		paths = append(paths, path)
	}
	slices.Sort(paths)
	return paths
}

// From apply to in force on the last proxy is one trace at the operator's collector, in
// which nothing of the configuration is. A collector that is gone holds up nothing.
func TestTraces(t *testing.T) {
	t.Parallel()
	got := &spans{}
	server := httptest.NewServer(got)
	defer server.Close()
	config := filepath.Join(t.TempDir(), "chandler.yaml")
	if err := os.WriteFile(config, []byte("strict: false\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, "--trace-endpoint", server.URL, "--config", config, "--envoy", envoyBinary(t))
	for _, name := range []string{"a", "b"} {
		w.agent(node{name: name}, w.gateway(listener{port: freePort(t), name: "in"}))
	}
	url := w.push("append:v1", module.Append())
	w.apply(plugin("traced", url, tag("s3cr3t")))
	want := []string{"apply", "apply/change"}
	for _, step := range []string{"conform", "put in force", "record", "resolve", "tell", "verify", "vet"} {
		want = append(want, "apply/change/"+step)
	}
	eventually(t, 20*time.Second, "the trace is whole", func() (bool, string) {
		tree := got.tree("traced")
		return slices.Equal(tree, want), fmt.Sprint(tree)
	})
	w.edit("watched", plugin("watched", url, tag("s3cr3t"))) // found in the folder: nobody applied it
	eventually(t, 20*time.Second, "a change of a file is a trace", func() (bool, string) {
		tree := got.tree("watched")
		return slices.Contains(tree, "change") && slices.Contains(tree, "change/put in force"), fmt.Sprint(tree)
	})
	got.mu.Lock()
	text := got.bytes.String()
	got.mu.Unlock()
	for _, secret := range []string{"s3cr3t", w.registry.Addr + "/", "oci://"} {
		if strings.Contains(text, secret) {
			t.Errorf("%q is in what the collector got", secret)
		}
	}
	server.CloseClientConnections()
	server.Close()
	w.apply(plugin("after", url, tag("after")))
}

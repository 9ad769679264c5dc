package telemetry_test

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler/internal/telemetry"
	"chandler.dev/chandler/internal/testenv/leaks"
)

func TestMain(m *testing.M) { leaks.Main(m) }

func open(t *testing.T, endpoint string) (*telemetry.Traces, *prometheus.Registry, func()) {
	t.Helper()
	reg := prometheus.NewRegistry()
	traces, err := telemetry.New(telemetry.Config{Endpoint: endpoint, Version: "v1", Registerer: reg})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); traces.Run(ctx) }()
	end := func() { cancel(); <-done }
	t.Cleanup(end)
	return traces, reg, end
}

// counts gives how many spans were sent, and how many dropped.
func counts(t *testing.T, reg *prometheus.Registry) (sent, dropped float64) {
	t.Helper()
	families, err := reg.Gather()
	if err != nil || len(families) != 1 || len(families[0].Metric) != 2 {
		t.Fatal(families, err)
	}
	for _, m := range families[0].Metric {
		if m.Label[0].GetValue() == "sent" {
			sent = m.Counter.GetValue()
		} else {
			dropped = m.Counter.GetValue()
		}
	}
	return sent, dropped
}

// What was ended before the end arrives, long texts cut short.
func TestSends(t *testing.T) {
	t.Parallel()
	synctest.Test(t, sends) // there is a moment for it, which a machine that stalls is to count as none
}

func sends(t *testing.T) {
	got := make(chan *collector.ExportTraceServiceRequest, 10)
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		req := &collector.ExportTraceServiceRequest{}
		if err := proto.Unmarshal(body, req); err != nil || r.URL.Path != "/v1/traces" {
			t.Errorf("%s: %v", r.URL, err)
		}
		got <- req
	}))
	defer server.Close()
	traces, reg, end := open(t, server.URL)
	_, span := traces.Tracer().Start(t.Context(), "one")
	span.SetAttributes(attribute.String("long", strings.Repeat("x", 1<<20)))
	span.End()
	end()
	req := <-got
	service := req.ResourceSpans[0].Resource.Attributes[0]
	one := req.ResourceSpans[0].ScopeSpans[0].Spans[0]
	if service.Key != "service.name" || service.Value.GetStringValue() != "chandler" || one.Name != "one" || len(one.Attributes[0].Value.GetStringValue()) > 512 {
		t.Errorf("%v, %v", service, one.Name)
	}
	if sent, dropped := counts(t, reg); sent != 1 || dropped != 0 {
		t.Errorf("%v sent, %v dropped", sent, dropped)
	}
}

// A collector that does not answer holds nobody up, and no more waits than is allowed.
func TestNeverInTheWay(t *testing.T) {
	t.Parallel()
	stop := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-stop }))
	defer server.Close()
	defer close(stop)
	traces, reg, end := open(t, server.URL)
	began := time.Now()
	for range 10_000 {
		_, span := traces.Tracer().Start(t.Context(), "one")
		span.End()
	}
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("10,000 spans took %s", took)
	}
	end()
	if took := time.Since(began); took > 45*time.Second {
		t.Errorf("the end took %s", took)
	}
	if sent, dropped := counts(t, reg); sent != 0 || dropped < 10_000-2048 {
		t.Errorf("%v sent, %v dropped", sent, dropped)
	}
}

// A collector that sends us elsewhere is not followed.
func TestFollowsNobody(t *testing.T) {
	t.Parallel()
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it was asked") }))
	defer other.Close()
	server := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	defer server.Close()
	traces, reg, end := open(t, server.URL)
	_, span := traces.Tracer().Start(t.Context(), "one")
	span.End()
	end()
	if sent, dropped := counts(t, reg); sent != 0 || dropped != 1 {
		t.Errorf("%v sent, %v dropped", sent, dropped)
	}
}

func TestEndpoints(t *testing.T) {
	t.Parallel()
	for endpoint, ok := range map[string]bool{
		"http://127.0.0.1:4318": true, "https://collector.example/otlp/v1/traces": true, "collector.example:4318": false,
		"grpc://collector.example:4317": false, "http://u:p@collector.example": false, "http://collector.example?key=x": false, "": false, "http://": false,
	} {
		if _, err := telemetry.New(telemetry.Config{Endpoint: endpoint}); (err == nil) != ok {
			t.Errorf("%q: %v", endpoint, err)
		}
	}
}

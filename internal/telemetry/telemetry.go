// Package telemetry sends traces to a collector of the operator's, by OTLP over HTTP. It
// is never in the way: who ends a span waits for nobody, what a collector does not take
// in time is dropped, and that is counted.
//
// What there is to trace is the business of others. Nothing of it is linked into the
// agent.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
)

// Bounds of what waits for the collector.
const (
	maxWaiting = 2048 // spans
	maxBatch   = 512
	maxText    = 512 // bytes of an attribute
	batchEvery = time.Second
	sendWithin = 10 * time.Second
	lastWords  = 3 * time.Second // at the end
	warnEvery  = time.Minute
)

// Config is what New needs.
type Config struct {
	// Endpoint is the collector's: http or https, host and port. Without a path,
	// /v1/traces is meant.
	Endpoint string
	// Version is this program's.
	Version    string
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Traces takes spans and sends them. Run sends; nothing is sent without it.
type Traces struct {
	exporter sdktrace.SpanExporter
	provider *sdktrace.TracerProvider
	waiting  chan sdktrace.ReadOnlySpan
	spans    *prometheus.CounterVec
	log      *slog.Logger
	warned   time.Time
}

// New starts nothing. The error is about the endpoint.
func New(cfg Config) (*Traces, error) {
	endpoint, err := parse(cfg.Endpoint)
	if err != nil {
		return nil, err
	}
	client := &http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, DialContext: (&net.Dialer{Timeout: sendWithin}).DialContext,
			MaxIdleConns: 1, IdleConnTimeout: time.Minute, ForceAttemptHTTP2: true,
		},
		Timeout: sendWithin,
		// The address is the operator's own; a collector names no other one.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	exporter, err := otlptracehttp.New(context.Background(),
		otlptracehttp.WithEndpointURL(endpoint), otlptracehttp.WithHTTPClient(client),
		otlptracehttp.WithRetry(otlptracehttp.RetryConfig{Enabled: true, InitialInterval: time.Second, MaxInterval: 5 * time.Second, MaxElapsedTime: sendWithin}))
	if err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	t := &Traces{
		exporter: exporter, waiting: make(chan sdktrace.ReadOnlySpan, maxWaiting), log: cfg.Log,
		spans: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "chandler_trace_spans_total", Help: "Spans of traces, by what became of them (sent, dropped: nobody took them in time).",
		}, []string{"result"}),
	}
	for _, result := range []string{"sent", "dropped"} {
		t.spans.WithLabelValues(result)
	}
	if cfg.Registerer != nil {
		if err := cfg.Registerer.Register(t.spans); err != nil {
			return nil, err
		}
	}
	limits := sdktrace.NewSpanLimits()
	limits.AttributeValueLengthLimit = maxText
	t.provider = sdktrace.NewTracerProvider(
		sdktrace.WithRawSpanLimits(limits), sdktrace.WithSampler(sdktrace.AlwaysSample()), sdktrace.WithSpanProcessor(queue{t}),
		sdktrace.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "chandler"), attribute.String("service.version", cfg.Version))))
	return t, nil
}

// parse gives the whole address. Credentials belong into the environment, where no list
// of processes shows them.
func parse(endpoint string) (string, error) {
	u, err := url.Parse(endpoint)
	switch {
	case err != nil:
		return "", errors.New("it is no URL")
	case u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return "", errors.New("it must be http://HOST:PORT or https://HOST:PORT")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return "", errors.New("it must have no credentials, query or fragment; headers come from OTEL_EXPORTER_OTLP_HEADERS")
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = "/v1/traces"
	}
	return u.String(), nil
}

// Tracer makes spans.
func (t *Traces) Tracer() trace.Tracer { return t.provider.Tracer("chandler.dev/chandler") }

// queue has spans wait until they are sent, as far as there is room.
type queue struct{ t *Traces }

// OnStart implements sdktrace.SpanProcessor.
func (queue) OnStart(context.Context, sdktrace.ReadWriteSpan) {}

// OnEnd implements sdktrace.SpanProcessor.
func (q queue) OnEnd(s sdktrace.ReadOnlySpan) {
	select {
	case q.t.waiting <- s:
	default:
		q.t.spans.WithLabelValues("dropped").Inc()
	}
}

// Shutdown implements sdktrace.SpanProcessor.
func (queue) Shutdown(context.Context) error { return nil }

// ForceFlush implements sdktrace.SpanProcessor.
func (queue) ForceFlush(context.Context) error { return nil }

// Run sends until ctx ends, and then what is still there, for a moment.
func (t *Traces) Run(ctx context.Context) {
	tick := time.NewTicker(batchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
			defer cancel()
			for len(t.waiting) > 0 && last.Err() == nil {
				t.send(last)
			}
			_ = t.exporter.Shutdown(last)
			return
		case <-tick.C:
		}
		for len(t.waiting) > 0 && ctx.Err() == nil {
			t.send(ctx)
		}
	}
}

// send sends one batch.
func (t *Traces) send(ctx context.Context) {
	var batch []sdktrace.ReadOnlySpan
	for len(batch) < maxBatch {
		select {
		case s := <-t.waiting:
			batch = append(batch, s)
			continue
		default:
		}
		break
	}
	limited, cancel := context.WithTimeout(ctx, sendWithin)
	defer cancel()
	err := t.exporter.ExportSpans(limited, batch)
	if err == nil {
		t.spans.WithLabelValues("sent").Add(float64(len(batch)))
		return
	}
	t.spans.WithLabelValues("dropped").Add(float64(len(batch)))
	if time.Since(t.warned) > warnEvery {
		t.warned = time.Now()
		t.log.Warn("the collector does not take traces", "spans", len(batch), "error", fmt.Sprint(err))
	}
}

package main

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"

	"chandler.dev/chandler/internal/telemetry"
)

// openTraces gives what traces go to; nil without an endpoint. end sends what is left,
// when all else has ended.
func openTraces(endpoint string, metrics prometheus.Registerer, log *slog.Logger) (_ trace.Tracer, end func(), _ error) {
	if endpoint == "" {
		return nil, func() {}, nil
	}
	t, err := telemetry.New(telemetry.Config{Endpoint: endpoint, Version: version, Registerer: metrics, Log: log})
	if err != nil {
		return nil, nil, usagef("--trace-endpoint: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.Run(ctx)
	}()
	log.Info("changes of plugins are traced", "collector", endpoint)
	return t.Tracer(), func() { cancel(); <-done }, nil
}

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"
)

// adminHandler serves health, metrics and what the agent reports.
//
//	/healthz/live      200 while the agent runs
//	/healthz/ready     200 when the proxy may get traffic, else 503 and why not
//	/metrics           the agent's own metrics
//	/stats/prometheus  those and Envoy's
//	/report            the state of every plugin, JSON
func (a *Agent) adminHandler(gatherer prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz/live", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "live")
	})
	mux.HandleFunc("GET /healthz/ready", func(w http.ResponseWriter, _ *http.Request) {
		view := a.view.Load()
		if view == nil || len(view.unready) > 0 {
			why := "starting"
			if view != nil {
				why = strings.Join(view.unready, "\n")
			}
			http.Error(w, why, http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	own := promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{})
	mux.Handle("GET /metrics", own)
	mux.HandleFunc("GET /stats/prometheus", func(w http.ResponseWriter, r *http.Request) {
		a.mergedStats(w, r, gatherer)
	})
	mux.HandleFunc("GET /report", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if view := a.view.Load(); view != nil {
			_ = json.NewEncoder(w).Encode(view.report)
		} else {
			_, _ = io.WriteString(w, "[]\n")
		}
	})
	return mux
}

// mergedStats writes Envoy's statistics and the agent's as one page. Names do
// not clash: Envoy's begin with envoy_.
func (a *Agent) mergedStats(w http.ResponseWriter, r *http.Request, gatherer prometheus.Gatherer) {
	families, err := gatherer.Gather()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	envoys, err := a.envoyAdmin.get(ctx, "/stats/prometheus")
	w.Header().Set("Content-Type", string(expfmt.NewFormat(expfmt.TypeTextPlain)))
	if err != nil {
		fmt.Fprintf(w, "# Envoy's own statistics are missing: %s\n", strings.ReplaceAll(err.Error(), "\n", " "))
	}
	_, _ = w.Write(envoys)
	for _, family := range families {
		if _, err := expfmt.MetricFamilyToText(w, family); err != nil {
			return
		}
	}
}

// serveHTTP serves until ctx ends.
func serveHTTP(ctx context.Context, lis net.Listener, h http.Handler) error {
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	}()
	err := srv.Serve(lis)
	if errors.Is(err, http.ErrServerClosed) {
		<-stopped
		return nil
	}
	return err
}

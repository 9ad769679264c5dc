package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"

	"chandler.dev/chandler/internal/access"
)

// adminHandler serves health, metrics and what the agent reports.
//
//	/healthz/live      200 while the agent runs
//	/healthz/ready     200 when the proxy may get traffic, else 503 and why not
//	/metrics           the agent's own metrics
//	/stats/prometheus  those and Envoy's
//	/report            the state of every plugin, JSON
//	/status            all that is known of the agent, JSON: Status
//	POST /store/verify hashes every module, JSON: StoreReport
//	POST /store/trim   drops modules nobody needs, JSON: StoreReport
//
// What is posted must come from this machine. A browser's pages of other servers
// get nothing, and neither does a name that was turned to this machine.
func (a *Agent) adminHandler(gatherer prometheus.Gatherer) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz/live", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "live")
	})
	mux.HandleFunc("GET /healthz/ready", func(w http.ResponseWriter, _ *http.Request) {
		if why := a.unready(); len(why) > 0 {
			http.Error(w, strings.Join(why, "\n"), http.StatusServiceUnavailable)
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
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, a.status()) })
	mux.HandleFunc("POST /store/verify", local(func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, VerifyStore(r.Context(), a.store))
	}))
	mux.HandleFunc("POST /store/trim", local(a.trimStore))
	return addressed(mux)
}

// addressed refuses what is meant for another server. From other machines, which
// see health and states anyway, any name will do.
func addressed(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var at netip.Addr
		if tcp, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
			at = tcp.AddrPort().Addr().Unmap()
		}
		if !access.SameOrigin(r.Host, r.Header.Get("Origin"), r.Header.Get("Sec-Fetch-Site")) || at.IsLoopback() && !access.Addressed(r.Host, at, nil) {
			http.Error(w, "the request is for another server, by its Host or Origin", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// unready tells why the proxy should get no traffic; nil when it may.
func (a *Agent) unready() []string {
	view := a.view.Load()
	switch {
	case a.draining.Load():
		return []string{"draining"}
	case view == nil:
		return []string{"starting"}
	}
	return view.unready
}

// local refuses what does not come from this machine, or comes from a page in a
// browser on it.
func local(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		if err != nil || !from.Addr().Unmap().IsLoopback() && !ownAddress(r, from.Addr()) || r.Header.Get("Origin") != "" {
			http.Error(w, "only commands on this machine may do that", http.StatusForbidden)
			return
		}
		h(w, r)
	}
}

// ownAddress tells whether a request comes from the very address it was sent to.
func ownAddress(r *http.Request, from netip.Addr) bool {
	at, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return ok && at.AddrPort().Addr().Unmap() == from.Unmap()
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	_ = enc.Encode(v) // the client is gone
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

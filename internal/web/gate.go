package web

import (
	"context"
	"errors"
	"net/http"
	"net/http/pprof"
	"strings"

	"connectrpc.com/connect"

	"chandler.dev/chandler/internal/access"
)

// gate stands before all pages.
type gate struct {
	cfg   Config
	rules *interceptor
	words *connect.ErrorWriter
}

// addressed refuses requests that are meant for another server, or come from a
// page of one: a browser on this machine asks whatever the pages that it shows want.
func (g *gate) addressed(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, socket := r.Context().Value(peerKey{}).(peer)
		anyName := socket || open(r) && !isLocal(r)
		var err error
		switch {
		case !visit(r) && !access.SameOrigin(r.Host, r.Header.Get("Origin"), r.Header.Get("Sec-Fetch-Site")):
			err = errors.New("the request comes from a page of another server (its Origin)")
		case !anyName && !access.Addressed(r.Host, localAddr(r), g.cfg.Hosts):
			err = errors.New("the request is for a server of another name (its Host); if it is one of this server, say so with --admin-host")
		default:
			next.ServeHTTP(w, r)
			return
		}
		g.refuse(w, r, &caller{name: "nobody", from: r.RemoteAddr}, "", connect.NewError(connect.CodePermissionDenied, err))
	})
}

// open tells whether a page is for everybody who can reach the port. From other
// machines it may be asked for by any name: balancers and Prometheus have their own.
func open(r *http.Request) bool {
	return r.URL.Path == "/metrics" || strings.HasPrefix(r.URL.Path, "/healthz/")
}

// known finds out who asks.
func (g *gate) known(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := g.identify(r)
		if err != nil {
			g.refuse(w, r, c, "", err)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
	})
}

// profiles are the control plane's own, for those who may debug it.
func (g *gate) profiles() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return g.known(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c := callerOf(r.Context())
		if err := c.may(r.Context(), access.Debug, access.Everywhere); err != nil {
			g.refuse(w, r, c, access.Debug, err)
			return
		}
		mux.ServeHTTP(w, r)
	}))
}

// refuse says why in the words of the protocol that is spoken.
func (g *gate) refuse(w http.ResponseWriter, r *http.Request, c *caller, verb access.Verb, err error) {
	g.rules.refused(c, verb, err)
	if g.words.IsSupported(r) {
		_ = g.words.Write(w, r, err) // the client is gone
		return
	}
	status := statusOf(err)
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer")
	}
	http.Error(w, wordsOf(err), status)
}

func statusOf(err error) int {
	switch connect.CodeOf(err) {
	case connect.CodeUnauthenticated:
		return http.StatusUnauthorized
	case connect.CodeUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusForbidden
}

// wordsOf gives an error without its code.
func wordsOf(err error) string {
	var ce *connect.Error
	if errors.As(err, &ce) {
		return ce.Message()
	}
	return err.Error()
}

package fetch

import (
	"context"
	"crypto/tls"
	"net/http"
	"sync"
	"time"

	"chandler.dev/chandler"
)

type endpointKey struct{}

// mark says in a context of which endpoint requests are: those that go there, and
// no others, go in the way that it says.
func (e Endpoint) mark(ctx context.Context) context.Context {
	if e.Scheme == "http" {
		ctx = allowPlain(ctx, e.Host)
	}
	return context.WithValue(ctx, endpointKey{}, e)
}

// routes is the default way to the network. Authorities, client certificates,
// proxy and patience are those of the endpoint that a request is of, if it goes
// there. Any other, such as one that was redirected, or goes to a token server or
// to a web server, takes those of its own host.
type routes struct {
	cfg  Config
	rest *http.Transport

	mu  sync.Mutex
	own map[routeKey]*http.Transport
}

// routeKey is what makes a transport another one. TLS settings are another pointer
// when their files have changed.
type routeKey struct {
	tls         *tls.Config
	dialTimeout time.Duration
	proxy       string
}

const maxRoutes = 64

func newRoutes(cfg Config) *routes {
	return &routes{cfg: cfg, rest: newTransport(cfg, cfg.TLS.Clone()), own: map[routeKey]*http.Transport{}}
}

func (r *routes) RoundTrip(req *http.Request) (*http.Response, error) {
	e, err := r.endpoint(req)
	if err != nil {
		return nil, err
	}
	if e.Local != nil {
		return e.Local.RoundTrip(req)
	}
	return r.transport(e).RoundTrip(req)
}

// CloseIdleConnections is called by Client.Close.
func (r *routes) CloseIdleConnections() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rest.CloseIdleConnections()
	for _, t := range r.own {
		t.CloseIdleConnections()
	}
}

func (r *routes) endpoint(req *http.Request) (Endpoint, error) {
	if e, ok := req.Context().Value(endpointKey{}).(Endpoint); ok && e.serves(req.URL) {
		return e, nil
	}
	if r.cfg.Hosts == nil {
		return Endpoint{}, nil
	}
	found, err := r.cfg.endpoints(registryHost(req.URL.Host))
	if err != nil {
		return Endpoint{}, err
	}
	for _, e := range found {
		if e.serves(req.URL) {
			return e, nil
		}
	}
	return Endpoint{}, nil
}

func (r *routes) transport(e Endpoint) *http.Transport {
	key := routeKey{tls: e.TLS, dialTimeout: e.DialTimeout}
	if e.Proxy != nil {
		key.proxy = e.Proxy.String()
	}
	if key == (routeKey{}) {
		return r.rest
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.own[key]; t != nil {
		return t
	}
	if len(r.own) >= maxRoutes {
		for _, t := range r.own {
			t.CloseIdleConnections()
		}
		clear(r.own)
	}
	cfg, secure := r.cfg, r.cfg.TLS.Clone()
	if e.TLS != nil {
		secure = e.TLS.Clone()
		if secure.RootCAs == nil && cfg.TLS != nil {
			secure.RootCAs = cfg.TLS.RootCAs
		}
	}
	if e.Proxy != nil {
		cfg.Proxy = http.ProxyURL(e.Proxy)
	}
	t := newTransport(cfg, secure)
	if e.DialTimeout > 0 {
		cfg.IdleTimeout = min(cfg.IdleTimeout, e.DialTimeout)
		t.DialContext = cfg.dial
	}
	r.own[key] = t
	return t
}

// newTransport is one way to the network. Looking a name up and connecting take
// IdleTimeout together at most.
func newTransport(cfg Config, secure *tls.Config) *http.Transport {
	return &http.Transport{
		Proxy:                  cfg.Proxy,
		DialContext:            cfg.dial,
		TLSClientConfig:        secure,
		TLSHandshakeTimeout:    cfg.IdleTimeout,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaderBytes,
		MaxIdleConns:           32,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        60 * time.Second,
		ExpectContinueTimeout:  time.Second,
	}
}

// mayBeUnpinned holds what is asked for without TLS against a strict operator's
// rule: where nobody can tell who answers, a digest must say what the answer is.
func (c *Client) mayBeUnpinned(scheme, host string, pinned bool) error {
	if scheme != "http" || pinned || c.Strict == nil || !c.Strict() {
		return nil
	}
	return refuse(chandler.CodeURLInsecure, "use https, or pin a digest and let the operator allow plain http for the host (--insecure-registry)",
		"%s: plain http needs an operator's rule for this host and a digest", chandler.Quote(host))
}

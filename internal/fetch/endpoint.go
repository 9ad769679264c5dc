package fetch

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"chandler.dev/chandler"
)

// Endpoint is one place that a registry's repositories can be had from: the
// registry itself, or a mirror that the operator has named for it.
type Endpoint struct {
	// Scheme is https, or http where the operator has written so. Empty: https, or
	// http where plain HTTP may be spoken and nothing else is.
	Scheme string
	// Host is a host, with its port if one was written.
	Host string
	// Path is that of the API, "/v2" but for servers that have it elsewhere.
	Path string
	// What the endpoint is trusted with: to give what has a digest, to say which
	// digest a tag has, to be pushed to.
	Pull, Resolve, Push bool
	// TLS has authorities, certificates to show, and whether the server's is
	// verified. It is for this endpoint and not for where that redirects to. Nil is
	// the Client's own.
	TLS *tls.Config
	// Header is sent with every request to the endpoint; it may hold secrets.
	Header http.Header
	// DialTimeout bounds the wait for a connection; zero is the Client's own.
	DialTimeout time.Duration
	// Proxy is the way there; nil is the Client's own.
	Proxy *url.URL
	// Local answers in place of a server, from this machine, and is asked as a mirror
	// is; it cannot be pushed to. Nil: there is a server.
	Local http.RoundTripper
}

// Hosts finds where a registry's repositories can be had from, in the order in
// which the places are to be asked: mirrors first, and last the registry or what
// stands in for it. None is the registry alone. *hosts.Directory is one.
type Hosts interface {
	Endpoints(registry string) ([]Endpoint, error)
}

// home is the registry itself, as it is without configuration.
func home(registry string) Endpoint {
	return Endpoint{Host: registry, Path: "/v2", Pull: true, Resolve: true, Push: true}
}

func (c Config) endpoints(registry string) ([]Endpoint, error) {
	if c.Hosts == nil {
		return []Endpoint{home(registry)}, nil
	}
	found, err := c.Hosts.Endpoints(registry)
	if err != nil {
		// Why is in the operator's log: it may name files of this machine.
		c.Log.Warn("no module can be fetched from a registry, whose hosts.toml cannot be used", "registry", registry, "error", err)
		e := temporary(chandler.CodeFetchFailed, "%s: the operator's hosts.toml for it cannot be used", chandler.Quote(registry))
		e.Problem.Hint = "let the operator mend it, the control plane's log says why; " + HintRetry
		return nil, e
	}
	if len(found) == 0 {
		found = []Endpoint{home(registry)}
	}
	return found, nil
}

// isHome tells whether the endpoint is the registry itself, to which credentials
// for the registry may go, and not a mirror.
func (e Endpoint) isHome(registry string) bool {
	return registryHost(strings.TrimSuffix(e.Host, ":443")) == registryHost(strings.TrimSuffix(registry, ":443"))
}

// serves tells whether a request to u goes to this endpoint's server.
func (e Endpoint) serves(u *url.URL) bool {
	return (e.Scheme == "" || e.Scheme == u.Scheme) && authority(u.Scheme, e.Host) == authority(u.Scheme, u.Host)
}

// authority is a host with its port.
func authority(scheme, host string) string {
	host = strings.ToLower(host)
	if u := (&url.URL{Host: host}); u.Port() == "" {
		return net.JoinHostPort(u.Hostname(), map[string]string{"http": "80", "https": "443"}[scheme])
	}
	return host
}

func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && authority(a.Scheme, a.Host) == authority(b.Scheme, b.Host)
}

// resolves are the endpoints that may say what a tag means.
func resolves(e Endpoint) bool { return e.Resolve }

// gives are the endpoints that may give what ref names: by its digest all that can
// be pulled from, as bytes are held against it; by a tag those that may resolve.
func gives(ref chandler.Reference) func(Endpoint) bool {
	return func(e Endpoint) bool { return e.Pull && (e.Resolve || ref.Digest != "") }
}

// from asks the places where ref can be had, those that fit, in turn: one that
// fails, or that gives what it should not, leads to the next. try tells with
// settled that no other place could do better.
func (c *Client) from(ctx context.Context, ref chandler.Reference, own *Credentials, fits func(Endpoint) bool, try func(*session) (settled bool, err error)) error {
	all, err := c.endpoints(ref.Host)
	if err != nil {
		return err
	}
	var failed []failure
	for _, e := range all {
		if !fits(e) || c.OnlyMirrors && e.isHome(ref.Host) {
			continue
		}
		s, err := c.sessionAt(ctx, e, ref, own, actionPull)
		settled := false
		if err == nil {
			settled, err = try(s)
		}
		if err == nil || settled || ctx.Err() != nil {
			return err
		}
		why := asError(ctx, err)
		if !e.isHome(ref.Host) {
			level := slog.LevelWarn
			if why.Problem.Code == chandler.CodeNotFound {
				level = slog.LevelDebug // few mirrors have everything
			}
			c.Log.Log(ctx, level, "a mirror fails", "registry", ref.Host, "mirror", e.Host, "error", why)
		}
		failed = append(failed, failure{e.Host, why})
	}
	if len(failed) == 0 && c.OnlyMirrors {
		return refuse(chandler.CodeNotFound, "name one in its hosts.toml", "%s: no mirror is named for it", ref.Host)
	}
	return sum(ref.Host, failed)
}

// failure is what one place had to say.
type failure struct {
	host string
	err  *Error
}

// sum makes one error of what all places said. The last one's word counts, as that
// is the registry itself; but what any of them may mend, another try may.
func sum(registry string, all []failure) error {
	if len(all) == 0 {
		return refuse(chandler.CodeNotFound, "let the operator give one of them the capabilities pull and resolve", "%s: no host of the operator's hosts.toml may give this", registry)
	}
	last := *all[len(all)-1].err
	for _, f := range all[:len(all)-1] {
		last.Problem.Message += fmt.Sprintf("; before that, %s: %s", f.host, strings.TrimPrefix(f.err.Problem.Message, f.host+": "))
		last.Temporary = last.Temporary || f.err.Temporary
		last.HostWide = last.HostWide && f.err.HostWide
	}
	return &last
}

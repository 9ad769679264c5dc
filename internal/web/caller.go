package web

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"

	"connectrpc.com/connect"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/access"
)

// Reviewer judges bearer tokens that the operator has not named, and what those
// may do whose they are.
type Reviewer interface {
	// Review tells whose a token is. The error wraps access.ErrRefused when it is
	// nobody's, and is any other when that cannot be found out now.
	Review(ctx context.Context, token string) (*access.Account, error)
	// Allow tells whether an account may do something in a namespace, or
	// access.Everywhere.
	Allow(ctx context.Context, a *access.Account, v access.Verb, namespace string) (bool, error)
}

// maxToken bounds what is taken for a token, in bytes.
const maxToken = 16 << 10

// caller is who a request comes from.
type caller struct {
	// name is for people.
	name string
	from string
	// known: somebody has shown who they are.
	known bool
	// own is the control plane's own user, or root, who may do all.
	own bool
	// here: the request comes from this machine and so may look, but not at
	// configuration.
	here    bool
	grants  access.Grants
	account *access.Account // of a cluster, whom the reviewer judges
	review  Reviewer
}

type callerKey struct{}

func callerOf(ctx context.Context) *caller {
	if c, ok := ctx.Value(callerKey{}).(*caller); ok {
		return c
	}
	return &caller{name: "nobody"} // who may do nothing
}

// identify tells who a request comes from. Somebody who shows nothing is nobody;
// what is shown and is no good is an error.
func (g *gate) identify(r *http.Request) (*caller, error) {
	c := &caller{name: "nobody", from: r.RemoteAddr}
	if p, ok := r.Context().Value(peerKey{}).(peer); ok {
		return g.peer(c, p)
	}
	c.here = isLocal(r)
	grants := g.grants()
	if shown := r.Header.Get("Authorization"); shown != "" {
		return c, g.token(r, c, grants, shown)
	}
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		return c, g.certificate(r, c, grants)
	}
	return c, nil
}

// grants are the operator's as they are now.
func (g *gate) grants() access.Grants {
	if g.cfg.Grants == nil {
		return nil
	}
	return g.cfg.Grants()
}

func (g *gate) peer(c *caller, p peer) (*caller, error) {
	c.from = "socket"
	if p.err != nil {
		return c, connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("who is at the other end of the socket cannot be told: %w", p.err))
	}
	c.name, c.known = fmt.Sprintf("uid %d", p.uid), true
	if p.uid != g.cfg.UID && p.uid != 0 {
		return c, connect.NewError(connect.CodePermissionDenied, fmt.Errorf("the socket is for the control plane's own user (uid %d) and root, not for uid %d", g.cfg.UID, p.uid))
	}
	c.own, c.here = true, true
	return c, nil
}

// token looks at a bearer token: it must not have crossed a network in the open.
func (g *gate) token(r *http.Request, c *caller, grants access.Grants, shown string) error {
	refused := func(format string, args ...any) error {
		return connect.NewError(connect.CodeUnauthenticated, fmt.Errorf(format, args...))
	}
	scheme, token, _ := strings.Cut(shown, " ")
	token = strings.TrimSpace(token)
	switch {
	case r.TLS == nil && !c.here:
		return refused("a token was shown without TLS and may have been read on the way: do not use it any more")
	case !strings.EqualFold(scheme, "Bearer") || token == "":
		return refused("the header Authorization has no bearer token")
	case len(token) > maxToken:
		return refused("the token has %d bytes; at most %d", len(token), maxToken)
	}
	if own := grants.Token(token); len(own) > 0 {
		c.name, c.known, c.grants = chandler.Printable(own[0].Name, 256), true, own
		return nil
	}
	if g.cfg.Reviewer == nil {
		return refused("the token is nobody's")
	}
	account, err := g.cfg.Reviewer.Review(r.Context(), token)
	switch {
	case errors.Is(err, access.ErrRefused):
		return refused("%w", err)
	case err != nil:
		return connect.NewError(connect.CodeUnavailable, fmt.Errorf("whose the token is cannot be found out now: %w", err))
	}
	c.name, c.known = chandler.Printable(account.User, 256), true
	c.grants, c.account, c.review = grants.Account(account), account, g.cfg.Reviewer
	return nil
}

// certificate looks at a client certificate again, as connections outlive
// certificates and authorities.
func (g *gate) certificate(r *http.Request, c *caller, grants access.Grants) error {
	if g.cfg.Verify == nil {
		return connect.NewError(connect.CodeUnauthenticated, errors.New("no authority of clients is trusted"))
	}
	if err := g.cfg.Verify(r.TLS.PeerCertificates); err != nil {
		return connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("the client certificate: %w", err))
	}
	names := certificateNames(r.TLS.PeerCertificates[0])
	if len(names) == 0 {
		return connect.NewError(connect.CodeUnauthenticated, errors.New("the client certificate has no name but its subject, which counts for nothing"))
	}
	c.name, c.known, c.grants = chandler.Printable(names[0], 256), true, grants.Certificate(names)
	if len(c.grants) > 0 {
		c.name += " (" + chandler.Printable(c.grants[0].Name, 256) + ")"
	}
	return nil
}

func certificateNames(cert *x509.Certificate) []string {
	var names []string
	for _, u := range cert.URIs {
		names = append(names, u.String())
	}
	return append(append(names, cert.DNSNames...), cert.EmailAddresses...)
}

// isLocal tells whether both ends of a connection are on loopback.
func isLocal(r *http.Request) bool {
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && from.Addr().Unmap().IsLoopback() && localAddr(r).IsLoopback()
}

// localAddr is the address that a connection was made to; none for a socket.
func localAddr(r *http.Request) netip.Addr {
	if at, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr); ok {
		return at.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}

// allowed tells whether a caller may do something in a namespace. The error is for
// when that cannot be found out.
func (c *caller) allowed(ctx context.Context, v access.Verb, namespace string) (bool, error) {
	switch {
	case c.own, c.here && v == access.List, c.grants.Allow(v, namespace):
		return true, nil
	case c.account == nil:
		return false, nil
	}
	ok, err := c.review.Allow(ctx, c.account, v, namespace)
	if err != nil {
		return false, connect.NewError(connect.CodeUnavailable, fmt.Errorf("what %s may do cannot be found out now: %w", c.name, err))
	}
	return ok, nil
}

// sight is what a caller may do, for one request.
func (c *caller) sight(ctx context.Context) *access.Sight {
	return access.NewSight(func(v access.Verb, namespace string) (bool, error) { return c.allowed(ctx, v, namespace) })
}

// may refuses what a caller may not do, in words.
func (c *caller) may(ctx context.Context, v access.Verb, namespace string) error {
	ok, err := c.allowed(ctx, v, namespace)
	switch {
	case err != nil:
		return err
	case ok:
		return nil
	case c.known:
		where := "in namespace " + chandler.Quote(namespace)
		if namespace == access.Everywhere {
			where = "in all namespaces"
		}
		return connect.NewError(connect.CodePermissionDenied, fmt.Errorf("%s may not %s %s", c.name, v, where))
	case c.here:
		return connect.NewError(connect.CodeUnauthenticated, fmt.Errorf("to %s, show who you are: with a token (--token-file), with a client certificate, "+
			"or as the control plane's own user or root over its socket (--server unix:///...)", v))
	}
	return connect.NewError(connect.CodeUnauthenticated, errors.New("from another machine, show who you are over TLS: with a token (--token-file) or a client certificate (--tls-cert, --tls-key)"))
}

package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/pflag"

	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
	"chandler.dev/chandler/internal/credential"
	"chandler.dev/chandler/internal/web"
)

// maxAnswer bounds an answer of the control plane, in bytes.
const maxAnswer = 64 << 20

// shownFlags are what a command shows to the control plane, and what it believes of
// it.
type shownFlags struct {
	token, ca, cert, key string
}

func (f *shownFlags) add(flags *pflag.FlagSet, getenv func(string) string) {
	flags.StringVar(&f.token, "token-file", getenv("CHANDLER_TOKEN_FILE"), "file of the token to show to the control plane (or CHANDLER_TOKEN_FILE)")
	flags.StringVar(&f.ca, "tls-ca", "", "authorities of the control plane's certificate, in PEM; the system's without it")
	flags.StringVar(&f.cert, "tls-cert", "", "client certificate to show to the control plane, in PEM")
	flags.StringVar(&f.key, "tls-key", "", "key of --tls-cert, in PEM")
}

// admin, fleet and rollouts are clients of the control plane's services, all over the same
// connections: a command that watches asks many times.
func (e *env) admin() chandlerv1connect.AdminClient {
	client, base := e.caller()
	return chandlerv1connect.NewAdminClient(client, base, connect.WithReadMaxBytes(maxAnswer))
}

func (e *env) fleet() chandlerv1connect.FleetClient {
	client, base := e.caller()
	return chandlerv1connect.NewFleetClient(client, base, connect.WithReadMaxBytes(maxAnswer))
}

func (e *env) rollouts() chandlerv1connect.RolloutsClient {
	client, base := e.caller()
	return chandlerv1connect.NewRolloutsClient(client, base, connect.WithReadMaxBytes(maxAnswer))
}

// caller asks the control plane that the flags name. What is wrong with them is the error
// of whatever is asked.
func (e *env) caller() (client *http.Client, base string) {
	if e.plane.client == nil {
		way, base, err := e.way()
		if err != nil {
			way, base = failing{err}, "http://nowhere"
		}
		e.plane.client, e.plane.base = &http.Client{Transport: way}, base
	}
	return e.plane.client, e.plane.base
}

// hangUp ends the connections.
func (e *env) hangUp() {
	if e.plane.client != nil {
		e.plane.client.CloseIdleConnections()
	}
}

// failing is a transport over which nothing can be sent.
type failing struct{ err error }

func (f failing) RoundTrip(*http.Request) (*http.Response, error) { return nil, f.err }

// way gives how to get to the control plane, and the base of its addresses.
func (e *env) way() (http.RoundTripper, string, error) {
	f := &e.shown
	if (f.cert == "") != (f.key == "") {
		return nil, "", usagef("--tls-cert and --tls-key belong together")
	}
	if path, ok := strings.CutPrefix(e.server, "unix://"); ok {
		return transport(nil, socketDialer(path, nil)), "http://localhost", nil
	}
	secure := f.ca != "" || f.cert != ""
	base := e.server
	if !strings.Contains(base, "://") {
		base = map[bool]string{true: "https://", false: "http://"}[secure] + base
	}
	u, err := url.Parse(base)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, "", usagef("--server %s: write HOST:PORT, https://HOST:PORT or unix:///PATH", e.server)
	}
	if secure && u.Scheme == "http" {
		return nil, "", usagef("--server %s: certificates want https://", e.server)
	}
	client := credential.NewClient(credential.Files{CA: f.ca, Cert: f.cert, Key: f.key, Token: f.token})
	if u.Scheme == "http" {
		return e.plainWay(client, u), base, nil
	}
	config, err := client.HTTP()
	if err != nil {
		return nil, "", err
	}
	return f.showing(client, transport(config, nil)), base, nil
}

// plainWay is without TLS. To this machine it is by the socket of which the control
// plane left word, unless a token is to be shown, and else by TCP.
func (e *env) plainWay(client *credential.Client, u *url.URL) http.RoundTripper {
	host, port := u.Hostname(), cmp.Or(u.Port(), "80")
	if e.shown.token != "" {
		if addr, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !addr.Unmap().IsLoopback()) {
			return failing{usagef("--server %s: a token is not shown without TLS; write https://", e.server)}
		}
		return e.shown.showing(client, transport(nil, nil))
	}
	if word := e.word(host, port); word != "" {
		return transport(nil, socketDialer(word, new(net.Dialer).DialContext))
	}
	return transport(nil, nil)
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// socketDialer connects to a socket; when nobody answers there, as otherwise says.
func socketDialer(path string, otherwise dialer) dialer {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := web.DialSocket(ctx, path)
		if err == nil || otherwise == nil {
			return conn, err
		}
		return otherwise(ctx, network, address)
	}
}

func transport(config *tls.Config, dial dialer) *http.Transport {
	t := &http.Transport{TLSClientConfig: config, DialContext: dial, ForceAttemptHTTP2: config != nil}
	if dial == nil {
		t.Proxy = http.ProxyFromEnvironment
	}
	return t
}

// showing shows the token with each request, if there is one.
func (f *shownFlags) showing(client *credential.Client, next *http.Transport) http.RoundTripper {
	if f.token == "" {
		return next
	}
	return bearer{client, next}
}

type bearer struct {
	client *credential.Client
	next   *http.Transport
}

// CloseIdleConnections is what http.Client asks for.
func (b bearer) CloseIdleConnections() { b.next.CloseIdleConnections() }

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	token, err := b.client.Bearer()
	if err != nil {
		return nil, &exitError{code: exitFailed, text: fmt.Sprintf("--token-file: %v", err)}
	}
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+token)
	return b.next.RoundTrip(r)
}

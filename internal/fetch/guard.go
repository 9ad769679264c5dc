package fetch

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"chandler.dev/chandler"
)

const (
	maxHeaderBytes = 64 << 10
	maxHeaders     = 512
	maxRedirects   = 5
)

// guard stands between the network and all that speaks HTTP here, registry
// client included. It lets plain HTTP through only where it may be, and with
// credentials only on loopback; asks for no compression and takes none; refuses
// addresses that egress denies; bounds headers; ends what is too slow; and turns
// failures and overload into *Error. An answer below 500 other than 408 and 429
// is for those above it to judge.
type guard struct {
	inner   http.RoundTripper
	egress  egress
	plain   func(host string) bool
	idle    time.Duration
	minRate int64
}

type plainKey struct{}

// allowPlain lets a request, and redirects that stay in plain HTTP, go without
// TLS to host, or anywhere with an empty one: somebody wrote http himself.
func allowPlain(ctx context.Context, host string) context.Context {
	return context.WithValue(ctx, plainKey{}, host)
}

func (g *guard) mayGo(req *http.Request) error {
	host := req.URL.Host
	if req.URL.Scheme != "https" {
		allowed, written := req.Context().Value(plainKey{}).(string)
		written = written && (allowed == "" || allowed == host)
		if req.URL.Scheme != "http" || !written && !g.plain(host) {
			return refuse(chandler.CodeTLS, "use https, or let the operator allow plain http for this host", "%s: plain http is not allowed", chandler.Quote(host))
		}
		if secretHeader(req.Header) && !isLoopback(host) {
			return refuse(chandler.CodeTLS, "give the server TLS, or use no credentials for it", "%s: credentials are not sent in plain http", chandler.Quote(host))
		}
	}
	return g.egress.literal(req.URL)
}

func secretHeader(h http.Header) bool {
	return h.Get("Authorization") != "" || h.Get("Proxy-Authorization") != "" || h.Get("Cookie") != ""
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	host := req.URL.Host
	if err := g.mayGo(req); err != nil {
		closeBody(req)
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	out := req.Clone(ctx)
	out.Header.Set("Accept-Encoding", "identity")
	out.Header.Set("User-Agent", "chandler")
	out.Header.Del("Referer") // a query may hold a secret
	body := newPacedBody(host, g.idle, g.minRate, cancel)
	body.uploading(out)
	resp, err := g.inner.RoundTrip(out)
	if err != nil {
		body.stop()
		if cause := context.Cause(ctx); cause != nil && req.Context().Err() == nil {
			err = cause
		}
		cancel(nil)
		if ctxErr := req.Context().Err(); ctxErr != nil {
			return nil, ctxErr
		}
		e := networkError(host, err)
		if req.URL.Scheme == "https" && g.plain(host) && (speaksNoTLS(err) || req.URL.Port() == "" && errors.Is(err, syscall.ECONNREFUSED)) {
			return nil, &noTLS{host, e}
		}
		return nil, e
	}
	body.answered(ctx, resp.Body)
	resp.Body = body
	resp.Request = req
	if bad := g.judge(host, resp); bad != nil {
		body.Close()
		return nil, bad
	}
	return resp, nil
}

func closeBody(req *http.Request) {
	if req.Body != nil {
		req.Body.Close()
	}
}

func (g *guard) judge(host string, resp *http.Response) *Error {
	n, size := 0, 0
	for name, values := range resp.Header {
		n += len(values)
		for _, v := range values {
			size += len(name) + len(v) + 4
		}
	}
	switch {
	case n > maxHeaders:
		return refuse(chandler.CodeHTTPHeader, "mend the server", "%s: the reply has %d headers, limit %d", host, n, maxHeaders)
	case size > maxHeaderBytes:
		return refuse(chandler.CodeHTTPHeader, "mend the server", "%s: headers of the reply are over %d bytes", host, maxHeaderBytes)
	case resp.StatusCode >= 500, resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode == http.StatusRequestTimeout:
		return statusError(host, resp.StatusCode, resp.Header)
	}
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return refuse(chandler.CodeHTTPEncoding, "serve the file as it is; a gzip file needs no Content-Encoding", "%s: the reply is encoded as %s, which was not asked for", host, chandler.Quote(enc))
	}
	return nil
}

// pacedBody ends a request whose answer, or whose body in either direction, moves
// less than minRate bytes a second within one window. An unanswered request has
// one window after its own body is sent.
type pacedBody struct {
	host    string
	window  time.Duration
	minRate int64
	cancel  context.CancelCauseFunc
	ctx     context.Context
	io.ReadCloser

	mu     sync.Mutex
	timer  *time.Timer
	moved  int64
	body   bool // something is expected to move: a body, not an answer
	closed bool
}

func newPacedBody(host string, window time.Duration, minRate int64, cancel context.CancelCauseFunc) *pacedBody {
	b := &pacedBody{host: host, window: window, minRate: minRate, cancel: cancel}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.timer = time.AfterFunc(window, b.tick)
	return b
}

func (b *pacedBody) tick() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return
	}
	least := int64(float64(b.minRate) * b.window.Seconds())
	switch {
	case b.moved >= max(least, 1):
		b.moved = 0
		b.timer.Reset(b.window)
	case b.body:
		b.cancel(temporary(chandler.CodeFetchFailed, "%s: only %d bytes came in %s, at least %d are wanted", b.host, b.moved, b.window, least))
	default:
		b.cancel(hostWide("%s: no answer in %s", b.host, b.window))
	}
}

func (b *pacedBody) move(n int) {
	b.mu.Lock()
	b.moved += int64(n)
	b.mu.Unlock()
}

// uploading counts what is sent of a request's body.
func (b *pacedBody) uploading(req *http.Request) {
	if req.Body != nil && req.Body != http.NoBody {
		req.Body = &countedUpload{ReadCloser: req.Body, move: b.move}
	}
}

type countedUpload struct {
	io.ReadCloser
	move func(int)
}

func (u *countedUpload) Read(p []byte) (int, error) {
	n, err := u.ReadCloser.Read(p)
	u.move(n)
	return n, err
}

// answered begins a new window, for the answer's body.
func (b *pacedBody) answered(ctx context.Context, body io.ReadCloser) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ctx, b.ReadCloser = ctx, body
	b.body, b.moved = true, 0
	if !b.closed {
		b.timer.Reset(b.window)
	}
}

func (b *pacedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.move(n)
	if err == io.EOF {
		b.stop()
	} else if err != nil {
		var slow *Error
		if errors.As(context.Cause(b.ctx), &slow) {
			return n, slow
		}
		if errors.Is(err, io.ErrUnexpectedEOF) {
			return n, io.ErrUnexpectedEOF // whoever knows what was promised says so
		}
		return n, networkError(b.host, err)
	}
	return n, err
}

func (b *pacedBody) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.timer.Stop()
}

func (b *pacedBody) Close() error {
	b.stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// follow is the rule on redirects: at most five, never from https to http, and
// no secret in a Referer. It makes the client's own errors fit to be shown.
func follow(req *http.Request, via []*http.Request) error {
	last := via[len(via)-1].URL
	switch {
	case len(via) > maxRedirects:
		return refuse(chandler.CodeHTTPRedirect, "mend the server, or give the final url", "%s: more than %d redirects", chandler.Quote(via[0].URL.Host), maxRedirects)
	case last.Scheme == "https" && req.URL.Scheme != "https":
		return refuse(chandler.CodeHTTPRedirect, "mend the server, or give the final url", "%s redirects from https to %s", chandler.Quote(last.Host), chandler.Quote(req.URL.Scheme))
	case req.URL.User != nil:
		return refuse(chandler.CodeHTTPRedirect, "mend the server, or give the final url", "%s redirects to a url with credentials", chandler.Quote(last.Host))
	}
	if addr, ok := hostAddress(req.URL.Hostname()); ok {
		if why := chandler.DeniedAddress(addr); why != "" {
			return refuse(chandler.CodeHTTPRedirect, "mend the server, or give the final url", "%s redirects to %s (%s)", chandler.Quote(last.Host), addr, why)
		}
	}
	req.Header.Del("Referer")
	return nil
}

// mayBePlain tells whether a registry may be spoken to without TLS.
func (c *Client) mayBePlain(host string) bool {
	return isLoopback(host) || (c.Insecure != nil && c.Insecure(host))
}

func isLoopback(host string) bool {
	name := (&url.URL{Host: host}).Hostname()
	if name == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(name)
	return err == nil && addr.IsLoopback()
}

package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"chandler.dev/chandler"
)

// Error is why a fetch failed. It never shows a secret.
type Error struct {
	Problem chandler.Problem
	// Temporary: the same request may succeed soon (network, overload, a body cut
	// short). Otherwise something has to change first, here or at the server.
	Temporary bool
	// HostWide: it is the host's trouble and not this artifact's, so that whoever
	// asks the host now gets the same: it does not answer, or sheds load.
	HostWide bool
	// RetryAfter is how long the server asks to be left alone; zero if it did not
	// say. At most an hour.
	RetryAfter time.Duration

	cause error // only the end of a context
}

func (e *Error) Error() string { return e.Problem.Error() }

// Unwrap gives the *chandler.Problem.
func (e *Error) Unwrap() error { return &e.Problem }

// Is makes errors.Is find context.Canceled and context.DeadlineExceeded.
func (e *Error) Is(target error) bool { return e.cause != nil && errors.Is(e.cause, target) }

// refuse makes a permanent error.
func refuse(code chandler.Code, hint, format string, args ...any) *Error {
	return &Error{Problem: *chandler.Problemf(code, "", hint, format, args...)}
}

// HintRetry ends the hint of an error that is temporary, as whoever fetches for a fleet tries
// again.
const HintRetry = "it is tried again by itself"

// temporary makes an error that another try may mend.
func temporary(code chandler.Code, format string, args ...any) *Error {
	return &Error{Problem: *chandler.Problemf(code, "", HintRetry, format, args...), Temporary: true}
}

// hostWide makes a temporary error of all that the host serves.
func hostWide(format string, args ...any) *Error {
	e := temporary(chandler.CodeFetchFailed, format, args...)
	e.HostWide = true
	return e
}

// asError gives any error of a pull or push as an *Error; what it does not know
// is not shown, since it may hold what must not be shown.
func asError(ctx context.Context, err error) *Error {
	var (
		known   *Error
		problem *chandler.Problem
		status  *transport.Error
		bare    *noTLS
	)
	if ctxErr := ctx.Err(); ctxErr != nil {
		e := temporary(chandler.CodeFetchFailed, "the fetch was stopped: %v", ctxErr)
		e.cause = ctxErr
		return e
	}
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &problem):
		disk := problem.Code == chandler.CodeCacheFull || problem.Code == chandler.CodeCacheUnwritable
		return &Error{Problem: *problem, Temporary: disk}
	case errors.As(err, &status):
		where := "the registry"
		if status.Request != nil {
			where = status.Request.URL.Host
		}
		return statusError(where, status.StatusCode, nil)
	case errors.As(err, &bare):
		return bare.err
	case isDisk(err):
		return diskError(err)
	}
	return otherError(err)
}

// statusError explains an answer that is not the one that was wanted.
func statusError(what string, status int, h http.Header) *Error {
	answer := fmt.Sprintf("%s: the server answers %d %s", what, status, http.StatusText(status))
	answer = strings.TrimSpace(answer)
	switch {
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return refuse(chandler.CodeUnauthorized, "give credentials that may read it, with imagePullSecret or the operator's keychain", "%s", answer)
	case status == http.StatusNotFound:
		return refuse(chandler.CodeNotFound, "correct the url, or push the module there", "%s", answer)
	case status == http.StatusTooManyRequests, status == http.StatusRequestTimeout, status >= 500:
		e := temporary(chandler.CodeFetchFailed, "%s", answer)
		e.RetryAfter = retryAfter(h)
		e.HostWide = status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable
		return e
	case status == http.StatusPartialContent:
		return refuse(chandler.CodeHTTPStatus, "mend the server", "%s without a range request", answer)
	}
	return refuse(chandler.CodeHTTPStatus, "it must answer 200; mend the url or the server", "%s", answer)
}

const maxRetryAfter = time.Hour

// retryAfter reads Retry-After: seconds, or a date, which is held against the
// server's own date so that no clock but its own counts.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if n, err := strconv.ParseUint(v, 10, 32); err == nil {
		return min(time.Duration(n)*time.Second, maxRetryAfter)
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	now, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), maxRetryAfter)
}

// noTLS is the error of a server that speaks plain HTTP only, where it may. That is
// tried then, and only what comes of it counts: so this is no *Error.
type noTLS struct {
	host string
	err  *Error
}

func (n *noTLS) Error() string { return n.err.Error() }

// networkError explains why a request got no answer, or its body broke off.
func networkError(host string, err error) *Error {
	var (
		known *Error
		dns   *net.DNSError
		addr  *net.AddrError
		cert  *tls.CertificateVerificationError
		auth  x509.UnknownAuthorityError
		name  x509.HostnameError
		alert tls.AlertError
	)
	const tlsHint = "mend the server's certificate, or give the operator's CA"
	text := err.Error() // matched against, never shown: it may hold a query
	switch {
	case errors.As(err, &known):
		return known
	case errors.As(err, &dns):
		why := "does not resolve"
		if dns.IsTimeout {
			why = "does not resolve in time"
		} else if dns.IsNotFound {
			why = "has no address"
		}
		return hostWide("%s: the name %s", host, why)
	case errors.As(err, &addr): // the resolver has an answer that is none
		return hostWide("%s: the name has no address", host)
	case speaksNoTLS(err):
		return refuse(chandler.CodeTLS, "give the server TLS, or let the operator allow plain http for this host", "%s: does not speak TLS", host)
	case errors.As(err, &auth):
		return refuse(chandler.CodeTLS, tlsHint, "%s: its certificate is of an authority that is not trusted", host)
	case errors.As(err, &name):
		return refuse(chandler.CodeTLS, tlsHint, "%s: its certificate is for another name", host)
	case errors.As(err, &cert), errors.As(err, &alert), strings.Contains(text, "tls: "):
		return refuse(chandler.CodeTLS, tlsHint, "%s: TLS is refused: %s", host, tlsReason(err))
	case errors.Is(err, syscall.ECONNREFUSED):
		return hostWide("%s: the connection is refused", host)
	case strings.Contains(text, "server response headers exceeded"):
		return refuse(chandler.CodeHTTPHeader, "mend the server", "%s: headers of the reply are over %d bytes", host, maxHeaderBytes)
	case strings.Contains(text, "too many 1xx"):
		return refuse(chandler.CodeHTTPStatus, "mend the server", "%s: too many informational answers", host)
	case strings.Contains(text, "Content-Length"):
		return refuse(chandler.CodeHTTPLength, "mend the server", "%s: the reply's Content-Length is not one number, 0 or more", host)
	case strings.Contains(text, "malformed HTTP"):
		return refuse(chandler.CodeHTTPHeader, "mend the server", "%s: the reply is not HTTP", host)
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return hostWide("%s: no answer in time", host)
	}
	return temporary(chandler.CodeFetchFailed, "%s: the connection broke off", host)
}

func speaksNoTLS(err error) bool {
	var record tls.RecordHeaderError
	return errors.As(err, &record) || strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}

func tlsReason(err error) string {
	var (
		cert  *tls.CertificateVerificationError
		alert tls.AlertError
	)
	switch {
	case errors.As(err, &cert):
		return chandler.Printable(cert.Err.Error(), 200)
	case errors.As(err, &alert):
		return alert.Error()
	}
	return "no agreement with the server"
}

// otherError is for what the registry client says in words only. Its words may
// quote a secret, so they are matched and not shown.
func otherError(err error) *Error {
	if strings.Contains(err.Error(), "redirect") {
		return refuse(chandler.CodeHTTPRedirect, "mend the server", "too many redirects")
	}
	return temporary(chandler.CodeFetchFailed, "the fetch failed: %s", kindOf(err))
}

// kindOf names an unknown error by its type, without its words.
func kindOf(err error) string {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return fmt.Sprintf("%T", err)
		}
		err = inner
	}
}

func isDisk(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.EDQUOT)
}

func diskError(err error) *Error {
	var no syscall.Errno
	why := "it cannot be written"
	if errors.As(err, &no) {
		why = no.Error()
	}
	code := chandler.CodeCacheUnwritable
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		code = chandler.CodeCacheFull
	}
	e := temporary(code, "the place for temporary files: %s", why)
	e.Problem.Hint = "free space there, or give another directory; " + HintRetry
	return e
}

package fetch

import (
	"context"
	"net/http"

	"chandler.dev/chandler"
)

// pullHTTP fetches a module from a web server.
func (c *Client) pullHTTP(ctx context.Context, req Request, sink Sink) (Artifact, error) {
	ref := req.Reference
	if ref.Scheme == chandler.SchemeHTTP {
		if err := c.mayBeUnpinned("http", ref.Host, c.mayBePlain(ref.Host) && req.SHA256 != ""); err != nil {
			return Artifact{}, err
		}
		ctx = allowPlain(ctx, "")
	}
	what := chandler.Quote(ref.Redacted())
	hr, err := http.NewRequestWithContext(ctx, http.MethodGet, ref.String(), nil)
	if err != nil {
		return Artifact{}, refuse(chandler.CodeURLSyntax, "correct the url", "the url cannot be used")
	}
	f, err := c.spool()
	if err != nil {
		return Artifact{}, err
	}
	defer f.Close()
	resp, err := c.webClient(req.Via).Do(hr)
	if err != nil {
		return Artifact{}, err
	}
	switch {
	case resp.StatusCode != http.StatusOK:
		resp.Body.Close()
		return Artifact{}, statusError(what, resp.StatusCode, resp.Header)
	case resp.ContentLength > c.MaxBlob:
		resp.Body.Close()
		return Artifact{}, c.tooLong(what)
	}
	resp.Body = c.shown(what, resp.ContentLength, resp.Body)
	b, err := download(f, resp, what, c.MaxBlob)
	if err != nil {
		return Artifact{}, err
	}
	if b.size > c.MaxBlob {
		return Artifact{}, c.tooLong(what)
	}
	var want chandler.ModuleDigest
	if req.SHA256 != "" {
		want = chandler.ModuleDigest("sha256:" + req.SHA256)
	}
	a, err := c.unpack(what, f, b, openSniffed, sink, want)
	if err != nil {
		return Artifact{}, err
	}
	a.Reference = ref.String()
	return a, nil
}

// webClient goes to web servers, by a way of the caller's if there is one.
func (c *Client) webClient(via http.RoundTripper) *http.Client {
	if via == nil {
		return &http.Client{Transport: c.base, CheckRedirect: follow}
	}
	way := *c.base
	way.inner = via
	return &http.Client{Transport: &way, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func (c *Client) tooLong(what string) *Error {
	return refuse(chandler.CodeHTTPLength, "serve a smaller module, or let the operator raise the limit", "%s: the file is over %d bytes", what, c.MaxBlob)
}

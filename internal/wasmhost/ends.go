package wasmhost

import (
	"net/http"
	"strconv"

	"chandler.dev/chandler/internal/exchange"
)

// router is a stream's end towards the upstream.
type router stream

func (r *router) onHeaders(end bool) {
	x := (*stream)(r)
	m := x.request.headers
	if x.rerouted && (!m.has("x-forwarded-proto") || !m.has(":path")) { // by which Envoy knows of requests that it has looked at
		x.localReply(localReply{status: http.StatusNotFound, grpc: -1, details: "route_not_found"})
		return
	}
	for _, name := range []string{":method", ":path"} {
		if value, _ := m.get(name); value == "" {
			x.localReply(localReply{
				status: http.StatusServiceUnavailable, body: "missing required header: " + name, grpc: -1,
				details: "filter_removed_required_request_headers{missing_required_header:_" + name + "}",
			})
			return
		}
	}
	x.routed = true
	m.set("x-envoy-expected-rq-timeout-ms", "15000")
	x.upstream.Headers = append([]exchange.Header(nil), m.fields...)
	if end {
		r.end()
	}
}

func (r *router) onData(b *body, end bool) {
	if !r.asked {
		r.upstream.Chunks = append(r.upstream.Chunks, b.bytes)
		b.bytes = nil
	}
	if end {
		r.end()
	}
}

func (r *router) onTrailers() {
	if !r.asked {
		r.upstream.Trailers = append([]exchange.Header(nil), r.request.trailers.fields...)
	}
	r.end()
}

// end has the upstream answer. One that waits for more than there is does not.
func (r *router) end() {
	if r.asked {
		return
	}
	trim(&r.upstream)
	if length, said := declared(&r.upstream); said && length > len(r.upstream.Body()) {
		(*stream)(r).localReply(localReply{
			status: http.StatusGatewayTimeout, body: "upstream request timeout", grpc: -1, details: "response_timeout",
		})
		return
	}
	r.asked = true
}

// client is a stream's end towards the client.
type client stream

func (c *client) onHeaders(end bool) {
	x := (*stream)(c)
	if status, _ := x.response.headers.get(":status"); !statusValid(status) {
		x.localReply(localReply{
			status: http.StatusBadGateway, body: "missing required header: :status", grpc: -1,
			details: "filter_removed_required_response_headers{missing_required_header:_:status}",
		})
		return
	}
	x.started = true
	c.deliver(end)
}

func statusValid(s string) bool {
	n, err := strconv.Atoi(s)
	return err == nil && n >= 100 && n < 1000
}

// deliver gives the headers to the client, with what Envoy puts to them at last.
func (c *client) deliver(end bool) {
	m := c.response.headers
	m.remove("transfer-encoding")
	m.set("date", c.host.time().UTC().Format(http.TimeFormat))
	m.set("server", "envoy")
	m.set("connection", "close") // it is for this exchange
	c.client.Headers = append([]exchange.Header(nil), m.fields...)
	if end {
		c.end()
	}
}

func (c *client) onData(b *body, end bool) {
	if !c.over {
		c.client.Chunks = append(c.client.Chunks, b.bytes)
	}
	b.bytes = nil
	if end {
		c.end()
	}
}

func (c *client) onTrailers() {
	if !c.over {
		c.client.Trailers = append([]exchange.Header(nil), c.response.trailers.fields...)
	}
	c.end()
}

func (c *client) end() {
	if c.over {
		return
	}
	c.over = true
	method, _ := c.request.headers.get(":method")
	if method == http.MethodHead {
		c.client.Chunks = nil
		return
	}
	length, said := declared(&c.client)
	c.cut = said && length != len(c.client.Body())
	trim(&c.client)
}

// declared is the length that a message says its body to have.
func declared(m *exchange.Message) (int, bool) {
	value, there := m.Get("content-length")
	n, err := strconv.Atoi(value)
	return n, there && err == nil && n >= 0
}

// trim leaves of a message what its reader takes of it in HTTP/1: a body as long as
// was said, and no trailers then.
func trim(m *exchange.Message) {
	length, said := declared(m)
	content := m.Body()
	m.Chunks = nil
	if said {
		content = content[:min(length, len(content))]
		m.Trailers = nil
	}
	if len(content) > 0 {
		m.Chunks = [][]byte{content}
	}
}

package wasmhost

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"chandler.dev/chandler/internal/exchange"
)

// stream is an exchange as one filter, and the connection manager around it, see it.
type stream struct {
	*scope
	host              *Host
	request, response lane
	began             time.Duration
	properties        map[string]string // that the exchange brings
	state             map[string][]byte // that the plugin set

	rerouted    bool // the request's headers were changed, and its route is looked for anew
	endOfStream bool // of the piece that is looked at
	logging     bool // it is over, and is being logged
	created     bool
	bare        bool // no filter stands in it
	// failing: the VM failed, and the stream was answered for it.
	failing  bool
	prepared *localReply
	details  string

	upstream exchange.Message // as far as the upstream got it
	routed   bool             // the request is on its way there
	asked    bool             // it has the whole request
	client   exchange.Message
	cut      bool
	started  bool // the client got headers
	over     bool // the client got all, or was cut off
	reset    bool
}

// localReply is an answer that no upstream gave.
type localReply struct {
	status  int
	headers []exchange.Header
	body    string
	grpc    int // less than 0: none
	details string
}

func newStream(h *Host, root *scope) *stream {
	x := &stream{host: h, scope: &scope{root: root, plugin: root.plugin}, state: map[string][]byte{}, began: h.clock.now}
	x.scope.stream = x
	x.request = lane{x: x, out: (*router)(x)}
	x.response = lane{x: x, out: (*client)(x), response: true}
	return x
}

// create tells the module of the stream.
func (x *stream) create() {
	if x.created || x.bare {
		return
	}
	x.created = true
	x.host.next(x.scope)
	x.host.notify(x.scope, "proxy_on_context_create", uint64(x.id), uint64(x.root.id))
}

// ask is a callback that decides what becomes of a piece of a message. unknown is
// what it decides by a number that there is not, and when the stream failed.
func (x *stream) ask(name string, unknown verdict, meanings []verdict, params ...uint64) verdict {
	h := x.host
	if x.bare {
		return proceed
	}
	if h.failed != nil {
		x.fail()
		return unknown
	}
	if h.exported(name) == nil {
		return proceed
	}
	r, err := h.in(x.scope, name, params...)
	v := unknown
	switch n := uint32(r); {
	case err != nil:
		x.fail()
	case h.answered, uint64(n) >= uint64(len(meanings)):
	default:
		v = meanings[n]
	}
	h.done()
	return v
}

// fail answers a stream whose VM failed.
func (x *stream) fail() {
	if x.failing {
		return
	}
	x.localReply(localReply{status: http.StatusServiceUnavailable, grpc: grpcUnavailable, details: "wasm_fail_stream"})
	x.failing = true
}

// filterHeaders shows headers to the filter.
func (x *stream) filterHeaders(l *lane, end bool) verdict {
	name := "proxy_on_request_headers"
	if l.response {
		name = "proxy_on_response_headers"
		if !x.created || x.failing {
			return proceed
		}
	} else {
		x.create()
	}
	l.seen.headers, x.endOfStream = l.headers, end
	params := []uint64{uint64(x.id), uint64(l.headers.len()), uint64(truth(end))}
	if x.host.cfg.ABI == "0.1.0" {
		params = params[:2]
	}
	v := x.ask(name, stopAll, []verdict{proceed, stopAll, proceed, stopAll, stopAll}, params...)
	if v == proceed {
		l.seen.headers = nil
	}
	return v
}

// filterData shows a piece of a body to the filter, or all that it had held back.
func (x *stream) filterData(l *lane, data *body, end bool) verdict {
	name := "proxy_on_request_body"
	if l.response {
		name = "proxy_on_response_body"
	}
	if !x.created || l.response && x.failing {
		return proceed
	}
	if l.seen.buffering {
		l.streaming = false
		l.hold(data)
		if x.over {
			return keep
		}
	}
	l.seen.body, x.endOfStream = data, end
	size := len(l.visible().bytes)
	v := x.ask(name, discard, []verdict{proceed, keep, keepStreaming, discard}, uint64(x.id), uint64(size), uint64(truth(end)))
	l.seen.buffering = v == keep
	if v == proceed {
		l.seen.body = nil
	}
	return v
}

// filterTrailers shows trailers to the filter.
func (x *stream) filterTrailers(l *lane) verdict {
	name := "proxy_on_request_trailers"
	if l.response {
		name = "proxy_on_response_trailers"
	}
	if !x.created || l.response && x.failing {
		return proceed
	}
	l.seen.trailers = l.trailers
	v := x.ask(name, stop, []verdict{proceed, stop}, uint64(x.id), uint64(l.trailers.len()))
	if v == proceed {
		l.seen.trailers = nil
	}
	return v
}

// localReply answers in the upstream's stead: through the filter when there is no
// response yet, else to the client alone, else there is only the end.
func (x *stream) localReply(r localReply) {
	if x.over {
		return
	}
	decoding := x.request.in
	if decoding {
		x.request.aborted = true
	} else if x.response.in {
		x.response.aborted = true
	}
	x.details = r.details
	switch {
	case x.started:
		x.cutOff()
	case x.response.headers != nil:
		headers, content := x.dress(r)
		x.response.headers = headers
		x.started = true
		(*client)(x).deliver(len(content) == 0)
		if len(content) > 0 {
			(*client)(x).onData(&body{bytes: content}, true)
		}
	case !decoding:
		x.answer(r)
	case x.prepared == nil:
		x.prepared = &r
	}
}

// answerPrepared gives the answer that was made in a callback, which is over now.
func (x *stream) answerPrepared() {
	if r := x.prepared; r != nil && x.response.headers == nil {
		x.prepared = nil
		x.answer(*r)
	}
}

// answer sends a local reply through the filter.
func (x *stream) answer(r localReply) {
	headers, content := x.dress(r)
	x.response.headers = headers
	x.response.onHeaders(len(content) == 0)
	if len(content) > 0 && !x.reset {
		x.response.onData(&body{bytes: content}, true)
	}
}

// dress makes a local reply's headers and body, which for gRPC is in the headers.
func (x *stream) dress(r localReply) (*headerMap, []byte) {
	m := newHeaderMap([]exchange.Header{{Name: ":status", Value: strconv.Itoa(r.status)}})
	for _, f := range r.headers {
		m.add(f.Name, f.Value)
	}
	method, _ := x.request.headers.get(":method")
	kind, _ := x.request.headers.get("content-type")
	if kind == "application/grpc" || strings.HasPrefix(kind, "application/grpc+") || strings.HasPrefix(kind, "application/grpc;") {
		m.set(":status", "200")
		m.remove("content-length")
		m.set("content-type", "application/grpc")
		if r.grpc < 0 {
			r.grpc = grpcStatus(r.status)
		}
		m.set("grpc-status", strconv.Itoa(r.grpc))
		if r.body != "" && method != http.MethodHead {
			m.set("grpc-message", percent(r.body))
		}
		return m, nil
	}
	if r.body != "" {
		m.set("content-length", strconv.Itoa(len(r.body)))
		if !m.has("content-type") {
			m.set("content-type", "text/plain")
		}
	}
	if method == http.MethodHead {
		return m, nil
	}
	return m, []byte(r.body)
}

// cutOff ends the stream without more.
func (x *stream) cutOff() { x.over, x.reset = true, true }

// tooLarge is what comes of a body of which more was to be held back than there is
// room for.
func (x *stream) tooLarge(l *lane) {
	r := localReply{status: http.StatusRequestEntityTooLarge, body: "Payload Too Large", grpc: -1, details: "request_payload_too_large"}
	if l.response {
		r = localReply{status: http.StatusInternalServerError, body: "Internal Server Error", grpc: -1, details: "response_payload_too_large"}
	}
	x.localReply(r)
}

// finish logs the stream and ends its context.
func (x *stream) finish() {
	x.over = true
	if x.bare {
		return
	}
	x.create()
	x.logging = true
	x.host.notify(x.scope, "proxy_on_log", uint64(x.id))
	x.logging = false
	x.host.notify(x.scope, "proxy_on_done", uint64(x.id))
	x.host.notify(x.scope, "proxy_on_delete", uint64(x.id))
	delete(x.host.contexts, x.id)
}

// The statuses of gRPC that are spoken of here.
const (
	grpcUnknown     = 2
	grpcUnavailable = 14
	grpcKnown       = 16 // the last
)

// grpcStatus is what an HTTP status means in gRPC.
func grpcStatus(status int) int {
	switch status {
	case http.StatusBadRequest:
		return 13
	case http.StatusUnauthorized:
		return 16
	case http.StatusForbidden:
		return 7
	case http.StatusNotFound:
		return 12
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return grpcUnavailable
	}
	return grpcUnknown
}

// percent writes a text as gRPC has messages.
func percent(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			b.WriteString("%" + strings.ToUpper(strconv.FormatUint(0x100|uint64(c), 16)[1:]))
		}
	}
	return b.String()
}

package wasmhost

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"chandler.dev/chandler/internal/exchange"
)

// callouts are the calls of a VM's to clusters. Whoever has the VM says what becomes
// of them; until then they wait.
type callouts struct {
	made    []exchange.Call
	waiting []*callout
	open    int // of which the answer is on its way
	last    uint32
	// grpc are the tokens of the streams and calls of gRPC that are open.
	grpc map[uint32]bool
}

// callout is a call that waits for its answer.
type callout struct {
	from    *scope
	token   uint32
	call    exchange.Call
	timeout time.Duration
}

// callResponse is what a plugin sees while it is told of an answer.
type callResponse struct {
	headers, trailers *headerMap
	body              []byte
}

// The kinds of calls, in the two lowest bits of their tokens.
const (
	httpCall = iota
	grpcCall
	grpcStream
	callKinds

	callBits = 2
	maxCalls = 1 << 10
	// roundTrip is what a call takes at least: longer than what is there already.
	roundTrip = time.Millisecond
)

func (k *callouts) token(kind uint32) uint32 {
	k.last++
	return k.last<<callBits | kind
}

func (c call) httpCall() result {
	cluster, there := c.text(0)
	pairs, there2 := c.view(2)
	content, there3 := c.bytes(4)
	trailerPairs, there4 := c.view(6)
	if !there || !there2 || !there3 || !there4 || !c.put(9, 0) {
		return invalidMemoryAccess
	}
	timeout := int32(c.i32(8))
	headers := newHeaderMap(unmarshal(pairs))
	if timeout < 0 || !slices.Contains(c.h.cfg.Clusters, cluster) ||
		!headers.has(":path") || !headers.has(":method") || !headers.has(":authority") {
		return badArgument
	}
	k := &c.h.calls
	if len(k.waiting) >= maxCalls || len(k.made) >= maxCalls {
		return internalFailure
	}
	if len(content) > 0 {
		headers.set("content-length", strconv.Itoa(len(content)))
	}
	message := exchange.Message{Headers: headers.fields, Trailers: unmarshal(trailerPairs)}
	if len(content) > 0 {
		message.Chunks = [][]byte{content}
	}
	o := &callout{
		from: c.h.current.root, token: k.token(httpCall), call: exchange.Call{Cluster: cluster, Request: message},
		timeout: time.Duration(timeout) * time.Millisecond,
	}
	k.made = append(k.made, o.call)
	k.waiting = append(k.waiting, o)
	c.put(9, o.token)
	return ok
}

// deliver has a call answered after a while, by the message that a cluster gave, or by
// what Envoy makes of there being none.
func (h *Host) deliver(o *callout, a *exchange.Answer) {
	var m exchange.Message
	wait := a.Delay
	switch {
	case o.timeout > 0 && a.Delay > o.timeout:
		m, wait = failedCall(http.StatusGatewayTimeout, "upstream request timeout"), o.timeout
	case a.Fails:
		m = failedCall(http.StatusServiceUnavailable, "upstream connect error or disconnect/reset before headers. reset reason: connection termination")
	default:
		m = framed(a.Message, ":status")
		m.Headers = append(m.Headers, exchange.Header{Name: "x-envoy-upstream-service-time", Value: "0"})
	}
	h.calls.open++
	h.clock.in(wait+roundTrip, func() {
		h.calls.open--
		answer := &callResponse{headers: newHeaderMap(m.Headers), body: m.Body()}
		if len(m.Trailers) > 0 {
			answer.trailers = newHeaderMap(m.Trailers)
		}
		o.from.response = answer
		// It is over before what was put off until the callback's end is done.
		h.after = append(h.after, func() { o.from.response = nil })
		h.notify(o.from, "proxy_on_http_call_response", uint64(o.from.id), uint64(o.token),
			uint64(answer.headers.len()), uint64(len(answer.body)), uint64(answer.trailers.len()))
	})
}

// failedCall is what a plugin gets of a call that nobody answered: Envoy's own answer.
func failedCall(status int, text string) exchange.Message {
	return exchange.Message{
		Headers: []exchange.Header{
			{Name: ":status", Value: strconv.Itoa(status)},
			{Name: "content-length", Value: strconv.Itoa(len(text))}, {Name: "content-type", Value: "text/plain"},
		},
		Chunks: [][]byte{[]byte(text)},
	}
}

// fits tells whether an answer is for a call.
func fits(a *exchange.Answer, o exchange.Call) bool {
	method, _ := o.Request.Get(":method")
	path, _ := o.Request.Get(":path")
	return (a.Cluster == "" || a.Cluster == o.Cluster) && (a.Method == "" || a.Method == method) && (a.Path == "" || match(a.Path, path))
}

// match compares with a pattern in which "*" is for anything.
func match(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	s, found := strings.CutPrefix(s, parts[0])
	if !found {
		return false
	}
	last := len(parts) - 1
	for _, part := range parts[1:last] {
		_, after, found := strings.Cut(s, part)
		if !found {
			return false
		}
		s = after
	}
	return strings.HasSuffix(s, parts[last])
}

// grpc opens a call or a stream of gRPC: there is nobody to answer one here, and so it
// is closed as unavailable as soon as the module is done.
func (c call) grpc(kind uint32, texts int, token int) result {
	service, there := c.text(0)
	for n := 2; n < 2*texts; n += 2 {
		_, there2 := c.view(n)
		there = there && there2
	}
	if !there {
		return invalidMemoryAccess
	}
	h := c.h
	if !slices.Contains(h.cfg.Clusters, service) {
		return parseFailure
	}
	if len(h.calls.grpc) >= maxCalls {
		return internalFailure
	}
	root, t := h.current.root, h.calls.token(kind)
	if h.calls.grpc == nil {
		h.calls.grpc = map[uint32]bool{}
	}
	h.calls.grpc[t] = true
	h.calls.open++
	h.clock.in(roundTrip, func() {
		h.calls.open--
		if !h.calls.grpc[t] {
			return // it was cancelled
		}
		delete(h.calls.grpc, t)
		root.status, root.message = grpcUnavailable, "no gRPC here"
		h.after = append(h.after, func() { root.message = "" })
		h.notify(root, "proxy_on_grpc_close", uint64(root.id), uint64(t), grpcUnavailable)
	})
	return stored(c.put(token, t))
}

// grpcEnd closes or cancels one.
func (c call) grpcEnd() result {
	t := c.i32(0)
	if kind := t & (1<<callBits - 1); kind != grpcCall && kind != grpcStream {
		return badArgument
	}
	if !c.h.calls.grpc[t] {
		return notFound
	}
	delete(c.h.calls.grpc, t)
	return ok
}

func (c call) grpcSend() result {
	t := c.i32(0)
	if _, there := c.view(1); !there {
		return invalidMemoryAccess
	}
	switch {
	case t&(1<<callBits-1) != grpcStream:
		return badArgument
	case !c.h.calls.grpc[t]:
		return notFound
	}
	return ok
}

package wasmhost

// A lane is one direction of a stream: a message on its way through the filter to
// what is behind it, the router or the client. It goes as messages go through Envoy's
// chain of filters, with its states and their corner cases, when there is one filter.
type lane struct {
	x        *stream
	response bool
	out      sink

	headers, trailers *headerMap
	// held is what was kept back of the body; it is there, and may be empty, from the
	// first time on that something was kept.
	held *body
	// complete: all of the message has come in.
	complete bool

	flow flow
	sent bool // the headers went on
	// here: what was stopped goes on with the filter itself, which has not seen it.
	here  bool
	ended bool // the filter saw the end
	// in: a callback is under way; aborted: a local response was made in one.
	in, aborted bool
	// streaming: what is held back has no limit but that no more is read then.
	streaming bool

	// seen is what the filter may look at and change.
	seen struct {
		headers, trailers *headerMap
		body              *body
		buffering         bool // it looks at what is held
	}
}

// sink is what is behind the filter.
type sink interface {
	onHeaders(end bool)
	onData(b *body, end bool)
	onTrailers()
}

// flow is whether a filter lets a message through.
type flow int

const (
	flows   flow = iota
	stopped      // what came; the next piece is shown to the filter
	stoppedAll
)

// verdict is what a filter says of a piece.
type verdict int

const (
	proceed verdict = iota
	stop            // of headers and trailers: this piece
	stopAll         // of headers: and all that follows
	keep            // of data
	keepStreaming
	discard // of data: not even keep it
)

const (
	// maxHeld is how much is held back of a body: Envoy's limit of a connection's
	// buffers, when nothing else is configured.
	maxHeld = 1 << 20
	maxBody = 64 << 20
)

// onHeaders has the headers go in.
func (l *lane) onHeaders(end bool) {
	l.complete, l.ended = end, end
	l.in = true
	v := l.x.filterHeaders(l, end)
	l.in = false
	if l.x.reset {
		return
	}
	if l.aborted {
		l.x.answerPrepared()
		v = stop
	}
	switch v {
	case stop:
		l.flow = stopped
		return
	case stopAll:
		l.flow, l.streaming = stoppedAll, true
		return
	}
	if !l.sent { // it could be told to go on in its callback
		l.sent = true
		l.out.onHeaders(end)
	}
}

// onData has a piece of the body go in.
func (l *lane) onData(data *body, end bool) {
	l.complete = l.complete || end
	if !l.response && l.x.response.complete {
		return // nobody waits for it any more
	}
	if l.flow == stoppedAll {
		l.hold(data)
		return
	}
	if l.ended {
		return
	}
	had := l.trailers != nil
	l.ended = end && !had
	l.in = true
	v := l.x.filterData(l, data, l.ended)
	l.in = false
	if l.x.reset {
		return
	}
	if l.aborted {
		l.x.answerPrepared()
		if !l.response {
			return
		}
		v = discard
	}
	added := !had && l.trailers != nil
	switch v {
	case proceed:
		if l.flow == stopped {
			l.hold(data)
			l.proceed()
			return
		}
	case keep, keepStreaming:
		l.flow, l.streaming = stopped, v == keepStreaming
		l.hold(data)
		return
	default:
		l.flow = stopped
		if data != l.held {
			data.bytes = nil
		}
		if l.complete && l.trailers == nil && l.held == nil {
			l.held = &body{} // so that there is an end to go on with
		}
		return
	}
	l.out.onData(data, end && !added)
	if added {
		l.out.onTrailers()
	}
}

// onTrailers has the trailers go in.
func (l *lane) onTrailers() {
	l.complete = true
	if !l.response && l.x.response.complete || l.flow == stoppedAll {
		return
	}
	l.in = true
	v := l.x.filterTrailers(l)
	l.in, l.ended = false, true
	if l.x.reset {
		return
	}
	if l.aborted {
		l.x.answerPrepared()
		v = stop
	}
	if v != proceed {
		if l.flow == flows {
			l.flow = stopped
		}
		return
	}
	if l.flow == stopped {
		l.proceed()
		return
	}
	l.out.onTrailers()
}

// proceed lets go on what was stopped.
func (l *lane) proceed() {
	if !l.response && l.x.response.complete || l.x.over {
		return
	}
	if l.flow == stoppedAll {
		l.here = true
	}
	l.flow = flows
	if !l.sent {
		l.sent = true
		l.out.onHeaders(l.complete && l.held == nil && l.trailers == nil)
	}
	had := l.trailers != nil
	if l.held != nil {
		end := l.complete && !had
		if l.here {
			l.onData(l.held, end)
		} else {
			l.out.onData(l.held, end)
		}
	}
	if had && !l.x.over {
		if l.here {
			l.onTrailers()
		} else {
			l.out.onTrailers()
		}
	}
	l.here = false
}

// hold keeps data back. What is too much of it is answered, unless no more of it is
// read meanwhile.
func (l *lane) hold(data *body) {
	if l.held == nil {
		l.held = &body{}
	}
	if l.held == data {
		return
	}
	l.held.take(data)
	if len(l.held.bytes) > maxHeld && !l.streaming {
		l.x.tooLarge(l)
	}
}

// full tells that no more of the body is read.
func (l *lane) full() bool { return l.held != nil && len(l.held.bytes) > maxHeld }

// mutableTrailers gives the trailers that the filter sees. Where it sees the body's
// end and there are none, they come to be.
func (l *lane) mutableTrailers() *headerMap {
	if l.seen.trailers == nil && l.seen.body != nil && l.x.endOfStream && l.trailers == nil {
		l.trailers = &headerMap{}
		l.seen.trailers = l.trailers
	}
	return l.seen.trailers
}

// visible gives the body that the filter sees, or nil.
func (l *lane) visible() *body {
	if l.seen.buffering && l.held != nil {
		return l.held
	}
	return l.seen.body
}

// Package exchange has the nouns of a plugin's test: what goes through a plugin, what
// stands around it, and what came of it. A Proxy-Wasm host of ours and a real Envoy
// run the same exchanges and give the same outcomes (package author/suite compares
// them).
//
// It runs nothing and judges nothing.
package exchange

import (
	"context"
	"strings"
	"time"
)

// Setup is a plugin to be loaded, started and configured.
type Setup struct {
	// Module is the path of its module.
	Module string
	// Name, RootID and VMID are what Envoy's configuration says. An empty VMID is
	// the name.
	Name, RootID, VMID string
	// Config is the plugin's configuration; nil: none. VMConfig is the VM's.
	Config, VMConfig []byte
	Env              map[string]string
	// Open is failStrategy FAIL_OPEN; else FAIL_CLOSE.
	Open bool
	// Clusters are the names that call-outs may go to.
	Clusters []string
	// Memory bounds the VM's linear memory, in bytes; 0: 128 MiB. Deadline bounds each
	// callback; 0: 5 s.
	Memory   int64
	Deadline time.Duration
	// Now is the clock that the plugin sees; nil: the machine's. Only a host of ours
	// can set it, and adds to it what time passes while it waits for ticks and answers.
	Now func() time.Time
	// Answers are for call-outs that no exchange makes, until Session.Answer or Do.
	Answers []Answer
	// Trace is told of each call between module and host, if the engine sees them.
	Trace func(string)
}

// Engine runs plugins.
type Engine interface {
	// Name is what people call it: "fast" or "envoy".
	Name() string
	// Start loads, starts and configures a plugin. A plugin that is refused is a
	// *Refusal; any other error is that it could not be tried.
	Start(ctx context.Context, s Setup) (Session, error)
}

// Refusal is why a plugin was not taken, with what it logged.
type Refusal struct {
	Reason string
	Logs   []Log
}

func (r *Refusal) Error() string { return r.Reason }

// Session is one VM with one plugin. It is for one goroutine.
type Session interface {
	// Do sends a request through the plugin. The error is that it could not be tried;
	// what a plugin does wrong is in the outcome.
	Do(ctx context.Context, e Exchange) (*Outcome, error)
	// Tick lets at least n ticks of the plugin's timer pass, if it set one.
	Tick(ctx context.Context, n int) error
	// Answer says what call-outs get from now on that no exchange makes; each Do says so
	// anew.
	Answer(answers []Answer)
	// Calls are those that no exchange made, since they were last asked for.
	Calls() []Call
	// Logs are the lines logged since the last call, in their order.
	Logs() []Log
	// Metrics are the counters and gauges that the plugin defined, by their names,
	// without what an engine puts before them.
	Metrics(ctx context.Context) (map[string]int64, error)
	Close() error
}

// Clocked is a session whose timer goes by the machine's clock: on a busy machine more
// ticks pass than were asked for.
type Clocked interface {
	// Extra is how many more.
	Extra() int
}

// Log is a line that a plugin logged. Levels are "trace", "debug", "info", "warn",
// "error", "critical".
type Log struct{ Level, Text string }

// Header is one field, names in lower case.
type Header struct{ Name, Value string }

// Message is a request or a response.
type Message struct {
	// Headers include :method, :path, :authority and :scheme of a request, and :status
	// of a response. A content-length is set by the engine unless Chunked.
	Headers []Header
	// Chunks are the body, piece by piece as it arrives; the engines wait between them.
	Chunks [][]byte
	// Chunked: the length is not said beforehand.
	Chunked  bool
	Trailers []Header
}

// Exchange is one request with all that stands around it.
type Exchange struct {
	Request Message
	// Upstream is what the upstream answers, once it has the whole request.
	Upstream Message
	// Answers are for call-outs: the first that fits a call and was not used up.
	Answers []Answer
	// Properties are set for the plugin to read, by their paths with dots. An engine
	// that cannot set one says so in an error.
	Properties map[string]string
}

// Answer is what a call-out gets.
type Answer struct {
	// Cluster, Method and Path are compared if not empty; Path with "*" for anything.
	Cluster, Method, Path string
	Message               Message
	Delay                 time.Duration
	// Fails: no answer comes, and the plugin hears of a failure.
	Fails bool
	// Times is how often it can be given; 0: without end.
	Times int
}

// Call is a call-out that a plugin made.
type Call struct {
	Cluster string
	Request Message
}

// Outcome is what came of an exchange.
type Outcome struct {
	// Response is what the client got; nil: the stream was reset.
	Response *Message
	// Upstream is the request as the upstream got it; nil: it did not reach it, or not to
	// its end.
	Upstream *Message
	Calls    []Call
	// Details are Envoy's response code details, where known.
	Details string
	// Trap is how the VM failed, if it did.
	Trap string
	// Cut: the response's body was not as long as its content-length, or longer.
	Cut bool
}

// Get gives the values of a field, joined with commas.
func (m *Message) Get(name string) (value string, there bool) {
	for _, h := range m.Headers {
		if h.Name == name {
			if there {
				value += ","
			}
			value, there = value+h.Value, true
		}
	}
	return value, there
}

// Body is all of the chunks.
func (m *Message) Body() []byte {
	var b []byte
	for _, c := range m.Chunks {
		b = append(b, c...)
	}
	return b
}

// Own tells of a field that proxies and servers put to messages by themselves, and
// that says nothing of what a plugin did. Engines leave these out of outcomes.
func Own(name string) bool {
	switch name {
	case "server", "date", "x-request-id", "x-forwarded-proto", "x-forwarded-for", "content-length", "transfer-encoding",
		"connection", "keep-alive", "te", "trailer", "via":
		return true
	}
	return strings.HasPrefix(name, "x-envoy-")
}

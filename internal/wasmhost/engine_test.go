package wasmhost_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"chandler.dev/chandler/internal/exchange"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/wasmhost"
)

func engine(t testing.TB, cache string) *wasmhost.Engine {
	t.Helper()
	e, err := wasmhost.NewEngine(cache)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func file(t testing.TB, mod []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.wasm")
	if err := os.WriteFile(path, mod, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// start starts a plugin, and ends it with the test.
func start(t testing.TB, e exchange.Engine, s exchange.Setup, mod []byte) exchange.Session {
	t.Helper()
	s.Module, s.Name = file(t, mod), "plugin"
	session, err := e.Start(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := session.Close(); err != nil {
			t.Error(err)
		}
	})
	return session
}

func send(t testing.TB, s exchange.Session, e exchange.Exchange) *exchange.Outcome {
	t.Helper()
	o, err := s.Do(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// lines are what was logged, but for what begins with one of some words.
func lines(s exchange.Session, without ...string) (said []string) {
	for _, l := range s.Logs() {
		text := strings.TrimSpace(l.Text)
		if !slices.ContainsFunc(without, func(w string) bool { return strings.HasPrefix(text, w) }) {
			said = append(said, text)
		}
	}
	return said
}

func status(o *exchange.Outcome) string {
	if o.Response == nil {
		return ""
	}
	s, _ := o.Response.Get(":status")
	return s
}

// What is refused is so with what the plugin said.
func TestEngineRefuses(t *testing.T) {
	t.Parallel()
	e := engine(t, "")
	for name, c := range map[string]struct {
		mod    []byte
		reason string
		said   []string
	}{
		"no module":   {[]byte("no module"), "not Wasm", nil},
		"import":      {module.MissingImport(), "proxy_no_such_call", nil},
		"its words":   {module.RefuseConfigure("the moon is wrong"), "proxy_on_configure gives false", []string{"the moon is wrong"}},
		"trap":        {module.TrapStart(), "unreachable", nil},
		"memory":      {module.GrowConfigure(), "past 32 MiB", nil},
		"no end":      {module.LoopConfigure(), "proxy_on_configure did not come back within 2s", nil},
		"no end ever": {module.LoopStart(), "_initialize did not come back within 2s", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			setup := exchange.Setup{Module: file(t, c.mod), Name: "plugin", Memory: 32 << 20}
			if strings.HasPrefix(name, "no end") {
				setup.Deadline = 2 * time.Second
			}
			_, err := e.Start(t.Context(), setup)
			var refusal *exchange.Refusal
			if !errors.As(err, &refusal) || !strings.Contains(refusal.Reason, c.reason) {
				t.Fatalf("%v, want %q", err, c.reason)
			}
			var said []string
			for _, l := range refusal.Logs {
				said = append(said, l.Text)
			}
			if !slices.Equal(said, c.said) {
				t.Errorf("said %q", said)
			}
		})
	}
	if _, err := e.Start(t.Context(), exchange.Setup{Module: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

// A callback that comes to no end is a trap, and the VM is of no more use.
func TestEngineEndsCallbacks(t *testing.T) {
	t.Parallel()
	mod := module.Script{On: map[string][]module.Turn{"proxy_on_request_headers": {{Loops: true}}}}.Encode()
	s := start(t, engine(t, ""), exchange.Setup{Deadline: 2 * time.Second}, mod)
	if o := send(t, s, get()); status(o) != "503" || !strings.Contains(o.Trap, "did not come back within 2s") || o.Upstream != nil {
		t.Errorf("%+v", o)
	}
	if o := send(t, s, get()); status(o) != "503" || o.Trap != "" || o.Details != "wasm_fail_stream" {
		t.Errorf("afterwards %+v", o)
	}
	s = start(t, engine(t, ""), exchange.Setup{}, mod)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Do(ctx, get()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("its context ends it: %v", err)
	}
}

// Sessions of one module share its code and nothing else, also side by side.
func TestEngineShares(t *testing.T) {
	t.Parallel()
	e, mod := engine(t, ""), module.Share()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			s, err := e.Start(t.Context(), exchange.Setup{Module: file(t, mod), Name: "plugin", Config: []byte("c")})
			if err != nil {
				t.Error(err)
				return
			}
			defer s.Close()
			for n, want := range []bool{false, true, true} {
				o, err := s.Do(t.Context(), get())
				if err != nil {
					t.Error(err)
					return
				}
				if _, shared := o.Upstream.Get("x-plugins"); shared != want {
					t.Errorf("request %d: shared %v", n, shared)
				}
			}
		})
	}
	all.Wait()
}

// What was compiled is there for the next engine.
func TestEngineCache(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range 2 {
		s := start(t, engine(t, dir), exchange.Setup{Config: []byte("c")}, module.Append())
		if o := send(t, s, get()); status(o) != "200" {
			t.Errorf("%+v", o)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) == 0 {
			t.Fatalf("%v %v", entries, err)
		}
	}
}

// The trace has each call in both directions, readable.
func TestEngineTraces(t *testing.T) {
	t.Parallel()
	var trace []string
	mod := module.Script{On: map[string][]module.Turn{"proxy_on_request_headers": {{Does: []module.Host{
		do("proxy_get_header_map_value", 0, ":path", module.OutBytes), do("proxy_get_header_map_value", 0, "x", module.OutBytes),
		do("proxy_get_property", "request\x00path", module.OutBytes), do("proxy_set_header_map_pairs", 2, module.Pairs{"a", "b"}),
		do("proxy_define_metric", 0, "m", module.OutNumber), do("proxy_increment_metric", module.Token, int64(2)),
		do("proxy_get_buffer_bytes", 7, 0, 3, module.OutBytes), do("proxy_set_shared_data", "k", strings.Repeat("long ", 100), 0),
	}}}}}.Encode()
	s := start(t, engine(t, ""), exchange.Setup{Trace: func(l string) { trace = append(trace, l) }}, mod)
	trace = nil
	send(t, s, get())
	said := strings.Join(trace, "\n")
	for _, want := range []string{
		"proxy_on_request_headers(2, 7, 1)\n", `proxy_get_header_map_value(request headers, ":path") = ok "/p?q=1"`,
		`proxy_get_header_map_value(request headers, "x") = not found`, `proxy_get_property("request\x00path") = ok "/p?q=1"`,
		"proxy_set_header_map_pairs(response headers, [a: b]) = bad argument", `proxy_define_metric(0, "m") = ok 4`, "proxy_increment_metric(4, 2) = ok",
		"proxy_get_buffer_bytes(plugin configuration, 0, 3) = not found", `... (500 bytes), 0) = ok`, "proxy_on_request_headers gives 0",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("no %q in\n%s", want, said)
		}
	}
}

// The clock is the one that was given, and goes on while something waits.
func TestEngineClock(t *testing.T) {
	t.Parallel()
	at := time.Unix(0, 0x1_0000_0000)
	tick := []module.Turn{{Does: []module.Host{do("proxy_get_current_time_nanoseconds", module.OutLong)}}}
	mod := module.Script{On: map[string][]module.Turn{
		"proxy_on_configure": {{Does: []module.Host{do("proxy_set_tick_period_milliseconds", 1000)}, Gives: 1}}, "proxy_on_tick": tick, "proxy_on_request_headers": tick,
	}}.Encode()
	s := start(t, engine(t, ""), exchange.Setup{Now: func() time.Time { return at }}, mod)
	s.Logs()
	send(t, s, get())
	if err := s.Tick(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	want := []string{"00 get_current_time_nanoseconds 0 0 1", "00 get_current_time_nanoseconds 0 3b9aca00 1", "00 get_current_time_nanoseconds 0 77359400 1"}
	if said := lines(s, "on_"); !slices.Equal(said, want) {
		t.Errorf("%q", said)
	}
}

// What an exchange says of its surroundings the plugin reads, as Envoy would give it.
func TestEngineProperties(t *testing.T) {
	t.Parallel()
	mod := module.Script{On: map[string][]module.Turn{"proxy_on_request_headers": {{Does: []module.Host{
		do("proxy_get_property", "source\x00address", module.OutBytes), do("proxy_get_property", "connection\x00subject_peer_certificate", module.OutBytes),
		do("proxy_get_property", "own", module.OutBytes),
	}}}}}.Encode()
	s := start(t, engine(t, ""), exchange.Setup{}, mod)
	e := get()
	e.Properties = map[string]string{"source.address": "10.0.0.1:99", "connection.subject_peer_certificate": "CN=me", "source.port": "99", "own": "mine"}
	send(t, s, e)
	if said := lines(s, "on_"); !slices.Equal(said, []string{"00 get_property 0 10.0.0.1:99", "01 get_property 0 CN=me", "02 get_property 0 mine"}) {
		t.Errorf("%q", said)
	}
	e.Properties = map[string]string{"source.port": "high"}
	if _, err := s.Do(t.Context(), e); err == nil || !strings.Contains(err.Error(), "source.port") {
		t.Errorf("a port that is none: %v", err)
	}
}

// Queues wake the context that registered them, calls are answered whoever makes them,
// and gRPC is answered as when nobody is there.
func TestEngineEvents(t *testing.T) {
	t.Parallel()
	callee := module.Pairs{":method", "GET", ":path", "/x", ":authority", "a"}
	mod := module.Script{On: map[string][]module.Turn{
		"proxy_on_configure": {{Does: []module.Host{
			do("proxy_register_shared_queue", "q", module.OutNumber), do("proxy_http_call", "callee", callee, "", module.Pairs{}, 100, module.OutNumber),
		}, Gives: 1}},
		"proxy_on_request_headers": {{Does: []module.Host{
			do("proxy_resolve_shared_queue", "", "q", module.OutNumber), do("proxy_enqueue_shared_queue", module.Token, "item"),
			do("proxy_grpc_call", "callee", "s", "m", module.Pairs{}, "", 10, module.OutNumber), do("proxy_grpc_stream", "callee", "s", "m", module.Pairs{}, module.OutNumber),
			do("proxy_grpc_send", module.Token, "x", 0), do("proxy_grpc_cancel", module.Token),
		}}},
		"proxy_on_queue_ready":        {{Does: []module.Host{do("proxy_dequeue_shared_queue", 1, module.OutBytes)}}},
		"proxy_on_http_call_response": {{Does: []module.Host{do("proxy_get_buffer_bytes", 4, 0, 100, module.OutBytes)}}},
		"proxy_on_grpc_close":         {{Does: []module.Host{do("proxy_get_status", module.OutNumber, module.OutBytes)}}},
	}}.Encode()
	answers := []exchange.Answer{{Path: "/*", Message: exchange.Message{Chunks: chunks("answer")}}}
	s := start(t, engine(t, ""), exchange.Setup{Clusters: []string{"callee"}, Answers: answers}, mod)
	if calls := s.Calls(); len(calls) != 1 || calls[0].Cluster != "callee" {
		t.Errorf("%+v", calls)
	}
	o := send(t, s, get())
	if status(o) != "200" || len(o.Calls) != 0 {
		t.Errorf("%+v", o)
	}
	want := []string{
		"on_configure 1 0", "00 register_shared_queue 0 1", "01 http_call 0 4", "on_http_call_response 1 4 3 6 0", "00 get_buffer_bytes 0 answer", "on_request_headers 2 7 1",
		"00 resolve_shared_queue 0 1", "01 enqueue_shared_queue 0", "02 grpc_call 0 9", "03 grpc_stream 0 e", "04 grpc_send 0", "05 grpc_cancel 0",
		"on_queue_ready 1 1", "00 dequeue_shared_queue 0 item", "on_grpc_close 1 9 e", "00 get_status 0 e no gRPC here",
	}
	if said := lines(s); !slices.Equal(said, want) {
		t.Errorf("%q", said)
	}
}

// Metrics are by their names.
func TestEngineMetrics(t *testing.T) {
	t.Parallel()
	mod := module.Script{On: map[string][]module.Turn{"proxy_on_request_headers": {{Does: []module.Host{
		do("proxy_define_metric", 0, "count", module.OutNumber), do("proxy_increment_metric", module.Token, int64(3)),
		do("proxy_define_metric", 1, "level", module.OutNumber), do("proxy_record_metric", module.Token, int64(7)),
	}}}}}.Encode()
	s := start(t, engine(t, ""), exchange.Setup{}, mod)
	send(t, s, get())
	send(t, s, get())
	if all, err := s.Metrics(t.Context()); err != nil || all["count"] != 6 || all["level"] != 7 || len(all) != 2 {
		t.Errorf("%v %v", all, err)
	}
}

// A stream that nothing lets go on ends, without time having passed.
func TestEngineHeldStream(t *testing.T) {
	t.Parallel()
	mod := module.Script{On: map[string][]module.Turn{"proxy_on_request_headers": {{Gives: 1}}}}.Encode()
	s := start(t, engine(t, ""), exchange.Setup{}, mod)
	begin := time.Now()
	if o := send(t, s, get()); o.Response != nil || o.Upstream != nil || !strings.Contains(o.Details, "nothing lets") {
		t.Errorf("%+v", o)
	}
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
}

// Whatever a plugin holds back of a body, and however it comes, all of it arrives.
func TestEngineKeepsBodies(t *testing.T) {
	t.Parallel()
	e := engine(t, "")
	var sessions []exchange.Session
	for _, waits := range []int64{0, 1, 2} {
		turn := []module.Turn{{Waits: waits}}
		sessions = append(sessions, start(t, e, exchange.Setup{}, module.Script{On: map[string][]module.Turn{"proxy_on_request_body": turn, "proxy_on_response_body": turn}}.Encode()))
	}
	piece := rapid.SliceOfN(rapid.Byte(), 1, 5000)
	message := rapid.Custom(func(t *rapid.T) exchange.Message {
		m := exchange.Message{Chunks: rapid.SliceOfN(piece, 0, 6).Draw(t, "chunks"), Chunked: rapid.Bool().Draw(t, "chunked")}
		if m.Chunked && rapid.Bool().Draw(t, "trailers") {
			m.Trailers = header("x-t", "1")
		}
		return m
	})
	rapid.Check(t, func(t *rapid.T) {
		x := get()
		request, response := message.Draw(t, "request"), message.Draw(t, "response")
		request.Headers, response.Headers = header(":method", "POST", ":path", "/"), header(":status", "200")
		x.Request, x.Upstream = request, response
		o, err := rapid.SampledFrom(sessions).Draw(t, "session").Do(context.Background(), x)
		if err != nil {
			t.Fatal(err)
		}
		if o.Upstream == nil || o.Response == nil || !slices.Equal(o.Upstream.Body(), request.Body()) || !slices.Equal(o.Response.Body(), response.Body()) || o.Cut {
			t.Fatalf("%+v", o)
		}
		if !slices.Equal(o.Upstream.Trailers, request.Trailers) || !slices.Equal(o.Response.Trailers, response.Trailers) {
			t.Fatalf("trailers %+v %+v", o.Upstream.Trailers, o.Response.Trailers)
		}
	})
}

func BenchmarkEngine(b *testing.B) {
	exchanges := map[string]exchange.Exchange{"get": get(), "post": post(true, "abc", "def")}
	nothing := module.Script{On: map[string][]module.Turn{}}.Encode()
	for name, mod := range map[string][]byte{"nothing": nothing, "append": module.Append()} {
		s := start(b, engine(b, ""), exchange.Setup{Config: []byte("c")}, mod)
		for what, e := range exchanges {
			b.Run(name+"/"+what, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if o := send(b, s, e); o.Response == nil {
						b.Fatal(o)
					}
				}
			})
		}
	}
}

func BenchmarkSession(b *testing.B) {
	e, path := engine(b, ""), file(b, module.Append())
	b.ReportAllocs()
	for b.Loop() {
		s, err := e.Start(b.Context(), exchange.Setup{Module: path, Name: "plugin"})
		if err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

package wasmhost_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler/internal/envoyhost"
	"chandler.dev/chandler/internal/exchange"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/wasmhost"
)

// agreement is a plugin and what is sent through it, in both hosts.
type agreement struct {
	mod    []byte
	config string
	open   bool
	sends  []exchange.Exchange
	ticks  int // that there are afterwards
	// unordered: what goes on beside each other in Envoy is in no order.
	unordered bool
	// differs are lines in which the hosts may differ, as they tell of the machine.
	differs *regexp.Regexp
}

// seen is what came of it.
type seen struct{ outcomes, logs []string }

// masked leaves out what a line tells of the machine and the moment.
func masked(s string) string {
	for pattern, mask := range map[string]string{
		`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`: "UUID",
		`\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT`:                   "DATE",
		`plugin#\d+`:                 "plugin", // Envoy's VM has a name of its own
		`/\S*/chandler-test-\d+/\w+`: "ADDRESS",
		`127\.0\.0\.1:\d+`:           "ADDRESS",
		`(x-envoy-upstream-service-time|x-envoy-expected-rq-timeout-ms)\.\d+`: "$1.N",
	} {
		s = regexp.MustCompile(pattern).ReplaceAllString(s, mask)
	}
	return s
}

// run runs an agreement in an engine.
func run(t *testing.T, e exchange.Engine, a agreement) (s seen) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.wasm")
	if err := os.WriteFile(path, a.mod, 0o600); err != nil {
		t.Fatal(err)
	}
	session, err := e.Start(t.Context(), exchange.Setup{
		Module: path, Name: "plugin", Config: []byte(a.config), Open: a.open, Clusters: []string{"callee"},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	session.Logs()
	for _, send := range a.sends {
		o, err := session.Do(t.Context(), send)
		if err != nil {
			t.Fatal(err)
		}
		s.outcomes = append(s.outcomes, told(o))
	}
	if a.ticks > 0 {
		session.Answer(a.sends[len(a.sends)-1].Answers)
	}
	if err := session.Tick(t.Context(), a.ticks); err != nil {
		t.Fatal(err)
	}
	for _, c := range session.Calls() {
		s.outcomes = append(s.outcomes, told(&exchange.Outcome{Calls: []exchange.Call{c}}))
	}
	for _, l := range session.Logs() {
		s.logs = append(s.logs, l.Level+" "+l.Text)
	}
	return s
}

// told writes an outcome as text.
func told(o *exchange.Outcome) string {
	var b strings.Builder
	write := func(what string, m *exchange.Message) {
		if m == nil {
			fmt.Fprintf(&b, "%s: none\n", what)
			return
		}
		fmt.Fprintf(&b, "%s:\n", what)
		for _, name := range []string{":status", ":method", ":path", ":authority"} {
			if value, there := m.Get(name); there {
				fmt.Fprintf(&b, "  %s: %s\n", name, value)
			}
		}
		for _, h := range m.Headers {
			if !strings.HasPrefix(h.Name, ":") && !exchange.Own(h.Name) {
				fmt.Fprintf(&b, "  %s: %s\n", h.Name, h.Value)
			}
		}
		if body := m.Body(); len(body) > 200 {
			fmt.Fprintf(&b, "  body of %d\n", len(body))
		} else if len(body) > 0 {
			fmt.Fprintf(&b, "  body %q\n", body)
		}
		for _, h := range m.Trailers {
			fmt.Fprintf(&b, "  trailer %s: %s\n", h.Name, h.Value)
		}
	}
	write("response", o.Response)
	write("upstream", o.Upstream)
	for _, c := range o.Calls {
		write("call to "+c.Cluster, &c.Request)
	}
	fmt.Fprintf(&b, "cut %v, trapped %v\n", o.Cut, o.Trap != "")
	return b.String()
}

// TestEngineAgreesWithEnvoy sends the same through the same plugins in the engine and
// in a real Envoy: what the plugins are told, call by call, what the client and the
// upstream get, and what is called, is the same.
func TestEngineAgreesWithEnvoy(t *testing.T) {
	t.Parallel()
	all := agreements()
	envoy := envoyhost.New(envoyhost.Config{Envoy: module.Envoy(t)})
	t.Cleanup(func() { _ = envoy.Close() })
	fast, err := wasmhost.NewEngine("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fast.Close() })
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t.Run(name, func(t *testing.T) {
			a := all[name]
			differences := disagree(t, envoy, fast, a)
			for range 2 {
				if len(differences) > 0 && a.answered() {
					t.Logf("once more, as it may have been the machine: %q", differences)
					differences = disagree(t, envoy, fast, a)
				}
			}
			for _, d := range differences {
				t.Error(d)
			}
		})
	}
}

// answered tells whether calls are answered after a while. In Envoy that is by the clock:
// on a machine that stands still for as long, the answer comes before what was sent first,
// while what truly differs does so each time.
func (a *agreement) answered() bool {
	return slices.ContainsFunc(a.sends, func(e exchange.Exchange) bool { return len(e.Answers) > 0 })
}

// disagree tells where the hosts differ.
func disagree(t *testing.T, envoy, fast exchange.Engine, a agreement) []string {
	t.Helper()
	want, got := run(t, envoy, a), run(t, fast, a)
	if a.unordered {
		slices.Sort(want.logs)
		slices.Sort(got.logs)
	}
	return append(compare(t, "outcome", want.outcomes, got.outcomes, nil), compare(t, "line", want.logs, got.logs, a.differs)...)
}

func compare(t *testing.T, what string, want, got []string, differs *regexp.Regexp) (differences []string) {
	t.Helper()
	for i := range max(len(want), len(got)) {
		w, g := "nothing", "nothing"
		if i < len(want) {
			w = masked(strings.ToValidUTF8(strings.ReplaceAll(want[i], "\x00", "|"), "?"))
		}
		if i < len(got) {
			g = masked(strings.ToValidUTF8(strings.ReplaceAll(got[i], "\x00", "|"), "?"))
		}
		if w != g && (differs == nil || !differs.MatchString(g)) {
			differences = append(differences, fmt.Sprintf("%s %d\nEnvoy:  %s\nengine: %s", what, i, w, g))
		} else if testing.Verbose() {
			t.Logf("%s %d: %s", what, i, g)
		}
	}
	return differences
}

// all has the callbacks of a stream, that do nothing but tell.
func all(turns map[string][]module.Turn) map[string][]module.Turn {
	on := map[string][]module.Turn{}
	for _, name := range []string{"context_create", "request_headers", "request_body", "request_trailers", "response_headers", "response_body",
		"response_trailers", "log", "done", "delete"} {
		on["proxy_on_"+name] = []module.Turn{{}}
		if name == "done" {
			on["proxy_on_done"] = []module.Turn{{Gives: 1}}
		}
	}
	for name, t := range turns {
		on["proxy_on_"+name] = t
	}
	return on
}

func script(turns map[string][]module.Turn) []byte { return module.Script{On: all(turns)}.Encode() }

func header(fields ...string) (h []exchange.Header) {
	for i := 0; i < len(fields); i += 2 {
		h = append(h, exchange.Header{Name: fields[i], Value: fields[i+1]})
	}
	return h
}

func chunks(s ...string) (b [][]byte) {
	for _, c := range s {
		b = append(b, []byte(c))
	}
	return b
}

func get(fields ...string) exchange.Exchange {
	return exchange.Exchange{
		Request:  exchange.Message{Headers: header(append([]string{":method", "GET", ":path", "/p?q=1", ":authority", "h.test", "user-agent", "t"}, fields...)...)},
		Upstream: exchange.Message{Headers: header(":status", "200", "x-up", "1"), Chunks: chunks("hello")},
	}
}

func post(chunked bool, body ...string) exchange.Exchange {
	e := get("content-type", "text/x")
	e.Request.Headers[0].Value = "POST"
	e.Request.Chunks, e.Request.Chunked = chunks(body...), chunked
	e.Upstream.Chunked = chunked
	e.Upstream.Chunks = chunks("one ", "two ", "three")
	return e
}

func agreements() map[string]agreement {
	const continues = 0
	tell := func() []module.Host {
		return []module.Host{
			module.Do("proxy_get_header_map_pairs", 0, module.OutBytes), module.Do("proxy_get_header_map_pairs", 1, module.OutBytes),
			module.Do("proxy_get_header_map_pairs", 2, module.OutBytes), module.Do("proxy_get_header_map_pairs", 3, module.OutBytes),
		}
	}
	everywhere := func(does []module.Host) map[string][]module.Turn {
		on := map[string][]module.Turn{}
		for _, name := range []string{"request_headers", "request_body", "request_trailers", "response_headers", "response_body", "response_trailers", "log"} {
			on[name] = []module.Turn{{Does: does, Gives: continues}}
		}
		return on
	}
	trailers := post(true, "a", "b")
	trailers.Request.Trailers, trailers.Upstream.Trailers = header("x-t", "1", "x-t2", "2"), header("x-u", "1")
	empty := get()
	empty.Upstream.Chunks = nil
	emptyChunked := get()
	emptyChunked.Request.Chunked, emptyChunked.Request.Headers[0].Value = true, "POST"
	emptyChunked.Upstream.Chunks, emptyChunked.Upstream.Chunked = nil, true
	head := get()
	head.Request.Headers[0].Value = "HEAD"
	sends := []exchange.Exchange{get(), post(false, "abc"), post(false, "abc", "defg"), post(true, "abc"), post(true, "abc", "defg"), trailers, empty, emptyChunked, head}
	// Each call of the host in each callback, one after the other.
	maps := func(does func(kind int) []module.Host) []module.Host {
		var all []module.Host
		for kind := range 9 {
			all = append(all, does(kind)...)
		}
		return all
	}
	both := one(get("x-a", "1", "x-a", "2"), trailers)
	table := map[string]agreement{
		"callbacks":    {mod: script(nil), sends: sends},
		"callbacks020": {mod: module.Script{ABI: "0.2.0", On: all(everywhere(tell()))}.Encode(), sends: sends},
		"callbacks010": {mod: module.Script{ABI: "0.1.0", On: all(nil)}.Encode(), sends: sends},
		"maps":         {mod: script(everywhere(tell())), sends: sends},
		"map-get": {mod: script(everywhere(maps(func(k int) []module.Host {
			return []module.Host{do("proxy_get_header_map_value", k, "x-a", module.OutBytes), do("proxy_get_header_map_value", k, ":Path", module.OutBytes),
				do("proxy_get_header_map_value", k, ":status", module.OutBytes), do("proxy_get_header_map_value", k, "", module.OutBytes)}
		}))), sends: both},
		"map-get-010": {mod: module.Script{ABI: "0.1.0", On: all(everywhere(maps(func(k int) []module.Host {
			return []module.Host{do("proxy_get_header_map_value", k, "x-a", module.OutBytes), do("proxy_get_header_map_value", k, "x-none", module.OutBytes)}
		})))}.Encode(), sends: both},
		"map-size": {mod: script(everywhere(maps(func(k int) []module.Host {
			return []module.Host{do("proxy_get_header_map_size", k, module.OutNumber)}
		}))), sends: one(get("x-a", "1"), post(false, "x")), differs: regexp.MustCompile("get_header_map_size 0")},
		"map-add": {mod: script(everywhere(append(maps(func(k int) []module.Host {
			return []module.Host{do("proxy_add_header_map_value", k, "X-Added", "v"), do("proxy_add_header_map_value", k, "x-a", "3")}
		}), tell()...))), sends: append(slices.Clone(both), post(true, "abc"), post(false, "abc"))},
		"map-replace": {mod: script(everywhere(append(maps(func(k int) []module.Host {
			return []module.Host{do("proxy_replace_header_map_value", k, "X-A", "new"), do("proxy_replace_header_map_value", k, "x-other", "o"),
				do("proxy_replace_header_map_value", k, "user-agent", "ua")}
		}), tell()...))), sends: append(slices.Clone(both), post(true, "abc"), post(false, "abc"))},
		"map-remove": {mod: script(everywhere(append(maps(func(k int) []module.Host {
			return []module.Host{do("proxy_remove_header_map_value", k, "X-A"), do("proxy_remove_header_map_value", k, "x-none"), do("proxy_remove_header_map_value", k, "user-agent")}
		}), tell()...))), sends: both},
		"map-set": {mod: script(everywhere(append(maps(func(k int) []module.Host {
			if k == 0 {
				return []module.Host{do("proxy_set_header_map_pairs", k, module.Pairs{":method", "PUT", ":path", "/set", ":authority", "other.test", ":scheme", "http", "x-set", "1", "X-Set", "2"})}
			}
			return []module.Host{do("proxy_set_header_map_pairs", k, module.Pairs{":status", "201", "x-set", "1"})}
		}), tell()...))), sends: both},
		"set-request": {mod: script(map[string][]module.Turn{
			"request_headers":  {{Does: []module.Host{do("proxy_set_header_map_pairs", 0, module.Pairs{":method", "PUT", ":path", "/set", ":authority", "other.test", ":scheme", "http", "x-set", "1", "X-Set", "2"})}}},
			"response_headers": {{Does: []module.Host{do("proxy_get_property", "response\x00code_details", module.OutBytes), do("proxy_get_header_map_pairs", 2, module.OutBytes)}}},
		}), sends: one(get())},
		"pseudo": {mod: script(map[string][]module.Turn{
			"request_headers": {{Does: append([]module.Host{do("proxy_replace_header_map_value", 0, ":path", "/new?x"), do("proxy_replace_header_map_value", 0, ":authority", "new.test"),
				do("proxy_replace_header_map_value", 0, ":method", "DELETE"), do("proxy_add_header_map_value", 0, ":path", "/more")}, tell()...)}},
			"response_headers": {{Does: []module.Host{do("proxy_replace_header_map_value", 2, ":status", "299")}}},
		}), sends: one(get())},
	}
	for _, more := range []map[string]agreement{bodies(), locals(), values(), callouts(), traps()} {
		for name, a := range more {
			table[name] = a
		}
	}
	return table
}

func one(e ...exchange.Exchange) []exchange.Exchange { return e }

func do(call string, args ...any) module.Host { return module.Do(call, args...) }

// bodies are about buffers, and about what is held back and goes on.
func bodies() map[string]agreement {
	read := func(kind int) []module.Host {
		return []module.Host{do("proxy_get_buffer_status", kind, module.OutNumber, module.OutNumber), do("proxy_get_buffer_bytes", kind, 0, 100, module.OutBytes)}
	}
	var all []module.Host
	for kind := range 10 {
		if kind != 3 {
			all = append(all, read(kind)...)
		}
	}
	all = append(all, do("proxy_get_buffer_bytes", 0, 1, 1, module.OutBytes), do("proxy_get_buffer_bytes", 1, 2, 100, module.OutBytes), do("proxy_get_buffer_bytes", 0, -1, 100, module.OutBytes))
	both := func(turns ...module.Turn) map[string][]module.Turn {
		return map[string][]module.Turn{"request_body": turns, "response_body": turns}
	}
	trailers := post(true, "abc", "def")
	trailers.Request.Trailers, trailers.Upstream.Trailers = header("x-t", "1"), header("x-u", "1")
	sends := one(post(false, "abc"), post(false, "abc", "def"), post(true, "abc", "def"), trailers, get())
	set := func(start, length int, data string) []module.Host {
		return []module.Host{do("proxy_set_buffer_bytes", 0, start, length, data), do("proxy_set_buffer_bytes", 1, start, length, data)}
	}
	does := func(h []module.Host, gives int64) module.Turn {
		return module.Turn{Does: append(slices.Clone(h), append(read(0), read(1)...)...), Gives: gives}
	}
	hold := func(h []module.Host, waits int64) module.Turn { t := does(h, 0); t.Waits = waits; return t }
	without := func(on map[string][]module.Turn) map[string][]module.Turn {
		on["request_headers"] = []module.Turn{{Does: []module.Host{do("proxy_remove_header_map_value", 0, "content-length")}}}
		on["response_headers"] = []module.Turn{{Does: []module.Host{do("proxy_remove_header_map_value", 2, "content-length")}}}
		return on
	}
	on := map[string][]module.Turn{}
	for _, name := range []string{"request_headers", "request_body", "request_trailers", "response_headers", "response_body", "response_trailers", "log", "done", "delete"} {
		on[name] = []module.Turn{{Does: all, Gives: 0}}
	}
	large := post(false, strings.Repeat("x", 1_200_000))
	table := map[string]agreement{
		"buffers":          {mod: script(on), sends: sends},
		"hold-body":        {mod: script(both(hold(nil, 1))), sends: sends},
		"hold-2":           {mod: script(both(hold(nil, 2))), sends: sends},
		"hold-discard":     {mod: script(both(hold(nil, 3))), sends: one(post(true, "abc", "def"), trailers, get())},
		"hold-once":        {mod: script(without(both(does(nil, 1), does(nil, 0)))), sends: sends},
		"set-all":          {mod: script(without(both(does(set(0, 1000, "REPLACED"), 0)))), sends: sends},
		"set-prepend":      {mod: script(without(both(does(set(0, 0, "<"), 0)))), sends: sends},
		"set-append":       {mod: script(without(both(does(set(1000, 0, ">"), 0)))), sends: sends},
		"set-middle":       {mod: script(without(both(does(set(1, 1, "-"), 0), does(set(0, 1, "-"), 0)))), sends: sends},
		"set-empty":        {mod: script(without(both(does(set(0, 1000, ""), 0)))), sends: sends},
		"set-held":         {mod: script(without(both(does(nil, 1), hold(set(0, 1000, "ALL"), 1)))), sends: sends},
		"set-same-length":  {mod: script(both(does(set(0, 1000, "XYZ"), 0), does(nil, 0))), sends: one(post(false, "abc"))},
		"set-longer-kept":  {mod: script(map[string][]module.Turn{"response_body": {does(set(0, 1000, "longer than it was"), 0), {}}}), sends: one(get())},
		"set-shorter-kept": {mod: script(map[string][]module.Turn{"response_body": {does(set(0, 1000, "X"), 0), {}}}), sends: one(get())},
		"request-longer":   {mod: script(map[string][]module.Turn{"request_body": {does(set(0, 1000, "longer than it was"), 0), {}}}), sends: one(post(false, "abc"))},
		"pause-continue":   {mod: script(map[string][]module.Turn{"request_headers": {{Does: []module.Host{do("proxy_continue_stream", 0)}, Gives: 1}}}), sends: one(get())},
		"too-large":        {mod: script(both(hold(nil, 1))), sends: one(large), differs: regexp.MustCompile(".")}, // in how many pieces it comes is the system's business

		"large-watermark": {mod: script(both(hold(nil, 2))), sends: one(post(false, strings.Repeat("x", 300_000))), differs: regexp.MustCompile(".")},
		"trailers-added": {mod: script(map[string][]module.Turn{
			"request_body":  {{}, {Does: []module.Host{do("proxy_add_header_map_value", 1, "x-new", "1"), do("proxy_get_header_map_pairs", 1, module.OutBytes)}}},
			"response_body": {{}, {}, {}, {Does: []module.Host{do("proxy_add_header_map_value", 3, "x-new", "1"), do("proxy_get_header_map_pairs", 3, module.OutBytes)}}},
		}), sends: one(post(true, "abc"))},
		"hold-trailers": {mod: script(map[string][]module.Turn{
			"request_body": {does(nil, 1)}, "response_body": {does(nil, 1)},
			"request_trailers": {does(set(0, 1000, "AT TRAILERS"), 0)}, "response_trailers": {does(set(0, 1000, "AT TRAILERS"), 0)},
		}), sends: one(trailers)},
	}
	return table
}

// locals are about answers in the upstream's stead, and streams that are closed.
func locals() map[string]agreement {
	reply := func(status int, body string, grpc int, pairs module.Pairs) []module.Host {
		return []module.Host{do("proxy_send_local_response", status, "some details", body, pairs, grpc)}
	}
	pairs := func() module.Host { return do("proxy_get_header_map_pairs", 2, module.OutBytes) }
	details := func() module.Host { return do("proxy_get_property", "response\x00code_details", module.OutBytes) }
	at := func(name string, h []module.Host, gives int64) []byte {
		on := map[string][]module.Turn{name: {{Does: h, Gives: gives}}}
		if name != "response_headers" {
			on["response_headers"] = []module.Turn{{Does: []module.Host{pairs(), details(), do("proxy_add_header_map_value", 2, "x-seen", "1")}}}
		}
		on["log"] = []module.Turn{{Does: []module.Host{pairs(), details()}}}
		return script(on)
	}
	trailing := post(true, "abc")
	trailing.Request.Trailers, trailing.Upstream.Trailers = header("x-t", "1"), header("x-u", "1")
	grpc := get("content-type", "application/grpc")
	head := get()
	head.Request.Headers[0].Value = "HEAD"
	sends := one(get(), post(false, "abc"), post(true, "abc", "def"), grpc, head)
	table := map[string]agreement{
		"local-plain":             {mod: at("request_headers", reply(403, "no\n", -1, module.Pairs{"x-why", "because", "X-Why", "again"}), 1), sends: sends},
		"local-empty":             {mod: at("request_headers", reply(401, "", -1, module.Pairs{"www-authenticate", "Basic"}), 0), sends: sends},
		"local-grpc":              {mod: at("request_headers", reply(429, "slow down: 50%", 8, nil), 1), sends: sends},
		"local-type":              {mod: at("request_headers", reply(200, "{}", -1, module.Pairs{"content-type", "application/json", "content-length", "7"}), 1), sends: sends},
		"local-twice":             {mod: at("request_headers", append(reply(403, "first", -1, nil), reply(404, "second", -1, nil)...), 1), sends: sends},
		"local-body":              {mod: at("request_body", reply(413, "large", -1, nil), 1), sends: sends},
		"local-trailer":           {mod: at("request_trailers", reply(400, "trailers", -1, nil), 1), sends: sends},
		"local-response-headers":  {mod: at("response_headers", reply(500, "hidden", -1, module.Pairs{"x-a", "1"}), 1), sends: sends},
		"local-response-continue": {mod: at("response_headers", reply(500, "", -1, module.Pairs{"x-a", "1"}), 0), sends: sends},
		"local-response-body":     {mod: at("response_body", reply(500, "hidden", -1, nil), 1), sends: one(get())},
		"local-held-response":     {mod: script(map[string][]module.Turn{"response_body": {{Gives: 1}, {Does: reply(500, "hidden", -1, nil), Gives: 1}}, "log": {{Does: []module.Host{pairs(), details()}}}}), sends: one(get())},
		"local-log":               {mod: at("log", reply(500, "late", -1, nil), 0), sends: one(get())},
		"close-request":           {mod: at("request_headers", []module.Host{do("proxy_close_stream", 0)}, 1), sends: sends},
		"close-response":          {mod: at("response_headers", []module.Host{do("proxy_close_stream", 1)}, 1), sends: sends},
		"close-others":            {mod: at("request_headers", []module.Host{do("proxy_close_stream", 2), do("proxy_close_stream", 3), do("proxy_close_stream", 4), do("proxy_continue_stream", 2), do("proxy_continue_stream", 3), do("proxy_continue_stream", 9)}, 0), sends: one(get())},
		"no-status":               {mod: at("response_headers", []module.Host{do("proxy_remove_header_map_value", 2, ":status")}, 0), sends: one(get())},
		"no-path":                 {mod: at("request_headers", []module.Host{do("proxy_remove_header_map_value", 0, ":path")}, 0), sends: one(get())},
		"no-method":               {mod: at("request_headers", []module.Host{do("proxy_remove_header_map_value", 0, ":method")}, 0), sends: one(get())},
		"no-authority":            {mod: at("request_headers", []module.Host{do("proxy_remove_header_map_value", 0, ":authority")}, 0), sends: one(get())},
	}
	return table
}

// values are about properties, and what a VM keeps.
func values() map[string]agreement {
	var reads []module.Host
	for _, path := range []string{
		"request", "request.path", "request.url_path", "request.host", "request.scheme", "request.method", "request.headers.x-a", "request.headers.X-A",
		"request.headers.none", "request.referer", "request.useragent", "request.id", "request.protocol", "request.query", "request.none", "request.path.more",
		"request.size", "request.total_size",
		"response", "response.code", "response.code_details", "response.flags", "response.headers.x-up", "response.headers.none", "response.trailers.x-u", "response.trailers.none", "response.grpc_status",
		"response.size",
		"source", "source.address", "source.none", "destination.address", "connection.mtls", "connection.requested_server_name", "connection.none",
		"connection.tls_version", "upstream", "upstream.address", "upstream.none", "upstream.transport_failure_reason",
		"upstream.tls_version", "upstream.request_attempt_count", "upstream.num_endpoints",
		"plugin_name", "plugin_root_id", "plugin_vm_id", "plugin_name.more", "none", "none.more", "", "metadata", "metadata.filter_metadata", "metadata.filter_metadata.x", "filter_state", "filter_state.x",
		"filter_state.wasm.mine", "mine", "mine.more", "xds", "xds.cluster_name", "xds.route_name", "xds.virtual_host_name", "xds.listener_direction", "xds.none", "xds.filter_chain_name", "xds.listener_metadata",
		"xds.cluster_metadata", "xds.route_metadata", "xds.upstream_host_metadata",
		"xds.node.id", "cluster_name", "route_name", "node", "node.id", "listener_direction", "listener_metadata", "cluster_metadata", "route_metadata", "upstream_host_metadata", "upstream_filter_state", "connection_termination_details",
	} {
		p := strings.ReplaceAll(path, ".", "\x00")
		if path == "filter_state.wasm.mine" {
			p = "filter_state\x00wasm.mine"
		}
		reads = append(reads, do("proxy_get_property", p, module.OutBytes))
	}
	reads = append(reads, do("proxy_get_property", "request\x00path\x00", module.OutBytes))
	there := func(paths ...string) (h []module.Host) { // of what tells of the machine only that it is there
		for _, path := range paths {
			h = append(h, do("proxy_get_property", strings.ReplaceAll(path, ".", "\x00"), module.OutNumber, 16))
		}
		return h
	}
	set := []module.Host{do("proxy_set_property", "mine", "one"), do("proxy_set_property", "mine", "two"), do("proxy_set_property", "plugin_name", "no"), do("proxy_set_property", "request\x00path", "no")}
	everywhere := func(does []module.Host) map[string][]module.Turn {
		on := map[string][]module.Turn{}
		for _, name := range []string{"request_headers", "request_body", "request_trailers", "response_headers", "response_body", "response_trailers", "log", "done", "delete"} {
			on[name] = []module.Turn{{Does: does, Gives: 0}}
		}
		return on
	}
	properties := everywhere(reads)
	properties["request_headers"] = []module.Turn{{Does: append(slices.Clone(set), reads...)}}
	trailers := post(true, "abc", "def")
	trailers.Request.Headers = append(trailers.Request.Headers, header("x-a", "1", "x-a", "2", "referer", "r")...)
	trailers.Request.Trailers, trailers.Upstream.Trailers = header("x-t", "1"), header("x-u", "1", "grpc-status", "3")
	sends := one(get("x-a", "1"), trailers)
	keeps := []module.Host{
		do("proxy_get_shared_data", "k", module.OutBytes, module.OutNumber), do("proxy_set_shared_data", "k", "v1", 0), do("proxy_get_shared_data", "k", module.OutBytes, module.OutNumber),
		do("proxy_set_shared_data", "k", "v2", 77), do("proxy_set_shared_data", "k", "v3", module.Token), do("proxy_get_shared_data", "k", module.OutBytes, module.OutNumber), do("proxy_set_shared_data", "other", "v", 5),
		do("proxy_get_shared_data", "other", module.OutBytes, module.OutNumber), do("proxy_set_shared_data", "", "", 0), do("proxy_get_shared_data", "", module.OutBytes, module.OutNumber),
		do("proxy_register_shared_queue", "q", module.OutNumber), do("proxy_dequeue_shared_queue", module.Token, module.OutBytes), do("proxy_enqueue_shared_queue", module.Token, "item"),
		do("proxy_dequeue_shared_queue", module.Token, module.OutBytes), do("proxy_enqueue_shared_queue", 999, "item"), do("proxy_dequeue_shared_queue", 999, module.OutBytes),
		do("proxy_resolve_shared_queue", "", "q", module.OutNumber), do("proxy_resolve_shared_queue", "no-vm", "q", module.OutNumber), do("proxy_resolve_shared_queue", "", "no-queue", module.OutNumber),
	}
	measures := []module.Host{
		do("proxy_define_metric", 0, "c", module.OutNumber), do("proxy_get_metric", module.Token, module.OutLong), do("proxy_increment_metric", module.Token, int64(2)), do("proxy_increment_metric", module.Token, int64(0)),
		do("proxy_increment_metric", module.Token, int64(-1)), do("proxy_record_metric", module.Token, int64(5)), do("proxy_get_metric", module.Token, module.OutLong),
		do("proxy_define_metric", 0, "c", module.OutNumber), do("proxy_get_metric", module.Token, module.OutLong),
		do("proxy_define_metric", 1, "g", module.OutNumber), do("proxy_increment_metric", module.Token, int64(7)), do("proxy_increment_metric", module.Token, int64(-3)), do("proxy_get_metric", module.Token, module.OutLong),
		do("proxy_record_metric", module.Token, int64(9)), do("proxy_get_metric", module.Token, module.OutLong),
		do("proxy_define_metric", 2, "h", module.OutNumber), do("proxy_increment_metric", module.Token, int64(7)), do("proxy_record_metric", module.Token, int64(9)), do("proxy_get_metric", module.Token, module.OutLong),
		do("proxy_define_metric", 3, "x", module.OutNumber), do("proxy_get_metric", 400, module.OutLong), do("proxy_get_metric", 401, module.OutLong), do("proxy_get_metric", 402, module.OutLong), do("proxy_get_metric", 403, module.OutLong),
		do("proxy_increment_metric", 403, int64(1)), do("proxy_increment_metric", 402, int64(1)), do("proxy_record_metric", 403, int64(1)), do("proxy_record_metric", 401, int64(1)),
	}
	others := []module.Host{
		do("proxy_get_status", module.OutNumber, module.OutBytes), do("proxy_get_log_level", module.OutNumber), do("proxy_done"), do("proxy_log", 9, "x"), do("proxy_log", 3, "a warning"), do("proxy_log", 1, "not told"),
		do("proxy_set_effective_context", 1), do("proxy_get_property", "request\x00path", module.OutBytes), do("proxy_get_header_map_value", 0, ":path", module.OutBytes), do("proxy_set_property", "a", "b"),
		do("proxy_set_effective_context", 0), do("proxy_get_property", "plugin_name", module.OutBytes), do("proxy_get_property", "plugin_vm_id", module.OutBytes), do("proxy_set_effective_context", 4711),
		do("proxy_get_buffer_bytes", 7, 0, 100, module.OutBytes), do("proxy_get_buffer_bytes", 6, 0, 100, module.OutBytes),
		do("proxy_call_foreign_function", "none", "x", module.OutBytes), do("proxy_call_foreign_function", "uncompress", "x", module.OutBytes), do("proxy_call_foreign_function", "uncompress", "x\x9cK\x04\x00\x00b\x00b", module.OutBytes),
		do("proxy_call_foreign_function", "declare_property", "x", module.OutBytes), do("proxy_call_foreign_function", "clear_route_cache", "", module.OutBytes),
		do("proxy_call_foreign_function", "set_envoy_filter_state", "x", module.OutBytes), do("proxy_call_foreign_function", "expr_evaluate", "x", 0, 0),
		do("proxy_call_foreign_function", "expr_delete", "x", 0, 0), do("proxy_call_foreign_function", "verify_signature", "x", 0, 0), do("proxy_call_foreign_function", "sign", "x", 0, 0),
		do("wasi_snapshot_preview1.fd_write", 9, 0, 0, 16), do("wasi_snapshot_preview1.clock_time_get", 9, int64(0), 16), do("wasi_snapshot_preview1.sched_yield"),
	}
	return map[string]agreement{
		"properties": {mod: script(properties), sends: sends, differs: regexp.MustCompile(`get_property 0 (\.|.)\.\.\.$`)},
		"there": {mod: script(everywhere(there("request.time", "request.duration", "request.headers_bytes", "source.port", "destination.port", "connection.id", "connection_id", "upstream.port",
			"response.total_size", "response.headers_bytes", "response.backend_latency", "upstream.cx_pool_ready_duration"))), sends: sends,
			differs: regexp.MustCompile(`get_property 0 \w+$`)},
		"shared": {mod: script(map[string][]module.Turn{"request_headers": {{Does: keeps}}, "response_headers": {{Does: keeps}}, "log": {{Does: keeps}}, "queue_ready": {{}}}), sends: one(get(), get()),
			differs: regexp.MustCompile(`shared_queue 0 \w+$|queue_ready|shared_data 0 v\d? \w+$`)},
		"metrics": {mod: script(everywhere(measures)), sends: one(get(), get())},
		"others":  {mod: script(everywhere(others)), sends: one(get(), post(true, "abc"))},
	}
}

// callouts are about calls to clusters.
func callouts() map[string]agreement {
	const patient = 20_000 // milliseconds: an answer that comes is in time on a busy machine
	call := func(name, path string, timeout int, more ...string) module.Host {
		return do("proxy_http_call", "callee", module.Pairs(append([]string{":method", "POST", ":path", path, ":authority", name}, more...)), "body", module.Pairs{}, timeout, module.OutNumber)
	}
	answered := []module.Host{
		do("proxy_get_header_map_pairs", 6, module.OutBytes), do("proxy_get_header_map_pairs", 7, module.OutBytes), do("proxy_get_buffer_bytes", 4, 0, 1000, module.OutBytes), do("proxy_get_header_map_value", 6, ":status", module.OutBytes),
		do("proxy_get_status", module.OutNumber, module.OutBytes), do("proxy_get_header_map_pairs", 0, module.OutBytes), do("proxy_set_effective_context", 2), do("proxy_get_header_map_value", 0, ":path", module.OutBytes),
		do("proxy_get_status", module.OutNumber, module.OutBytes), do("proxy_add_header_map_value", 0, "x-called", "1"),
	}
	with := func(e exchange.Exchange, a ...exchange.Answer) []exchange.Exchange {
		e.Answers = a
		return one(e)
	}
	// It takes longer than what is on its way takes to arrive.
	ok := exchange.Answer{Delay: 500 * time.Millisecond, Message: exchange.Message{Headers: header(":status", "202", "x-c", "1"), Chunks: chunks("answer")}}
	trailing := exchange.Answer{Delay: ok.Delay, Message: exchange.Message{Headers: header(":status", "200"), Chunks: chunks("answer"), Chunked: true, Trailers: header("x-ct", "1")}}
	late, failing := ok, exchange.Answer{Fails: true}
	late.Delay = 3 * time.Second
	first, second := ok, ok
	first.Path, second.Path = "/1", "/2"
	second.Message.Headers, second.Delay = header(":status", "203"), 1500*time.Millisecond
	waits := func(name string, timeout int, at string, stream int) []byte {
		goOn := append(slices.Clone(answered), do("proxy_continue_stream", stream))
		return script(map[string][]module.Turn{at: {{Does: []module.Host{call(name, "/c", timeout)}, Gives: 1}}, "http_call_response": {{Does: goOn}}})
	}
	table := map[string]agreement{}
	add := func(name string, mod []byte, sends []exchange.Exchange) {
		table[name] = agreement{mod: mod, sends: sends}
	}
	add("call-headers", waits("call-headers", patient, "request_headers", 0), with(get(), ok))
	add("call-post", waits("call-post", patient, "request_headers", 0), with(post(false, "abc", "def"), ok))
	add("call-chunked", waits("call-chunked", patient, "request_headers", 0), with(post(true, "abc", "def"), trailing))
	add("call-response", waits("call-response", patient, "response_headers", 1), with(get(), ok))
	add("call-late", waits("call-late", 300, "request_headers", 0), with(get(), late))
	add("call-failing", waits("call-failing", patient, "request_headers", 0), with(get(), failing))
	gone := script(map[string][]module.Turn{"request_headers": {{Does: []module.Host{call("call-and-go", "/c", patient)}}}, "http_call_response": {{}}})
	table["call-and-go"] = agreement{mod: gone, sends: with(get(), ok), unordered: true}
	add("call-log", script(map[string][]module.Turn{"log": {{Does: []module.Host{call("call-log", "/c", patient, "x-h", "1")}}}, "http_call_response": {{}}}), with(get(), ok))
	old := module.Pairs{":method", "POST", ":path", "/c", ":authority", "call"}
	for stream, at := range []string{"request_headers", "response_headers", "request_body", "response_body"} {
		on := map[string][]module.Turn{
			at:                   {{Does: []module.Host{do("proxy_http_call", "callee", old, "", module.Pairs{}, patient, module.OutNumber), do("proxy_clear_route_cache"), do("proxy_get_configuration", module.OutBytes)}, Gives: 1}, {Gives: 1}},
			"http_call_response": {{Does: append(slices.Clone(answered), do([]string{"proxy_continue_request", "proxy_continue_response"}[stream%2]))}},
		}
		table["call-010-"+at] = agreement{mod: module.Script{ABI: "0.1.0", On: all(on)}.Encode(), sends: with(post(true, "abc", "def"), ok)}
	}
	each := map[string][]module.Turn{"http_call_response": {{Does: answered[:4]}}}
	for _, name := range []string{"request_headers", "request_body", "request_trailers", "response_headers", "response_body", "response_trailers", "log", "done", "delete"} {
		each[name] = []module.Turn{{Does: []module.Host{call(name, "/"+name, patient, "x-from", name)}, Gives: 0}}
	}
	each["done"][0].Gives = 1
	full := post(true, "abc")
	full.Request.Trailers, full.Upstream.Trailers, full.Upstream.Chunks = header("x-t", "1"), header("x-u", "1"), chunks("one")
	table["call-everywhere"] = agreement{mod: script(each), sends: with(full, ok), unordered: true}
	table["ticks"] = agreement{mod: script(map[string][]module.Turn{
		"log": {{Does: []module.Host{do("proxy_set_tick_period_milliseconds", 1000)}}},
		"tick": {
			{Does: []module.Host{call("ticks", "/tick", patient), do("proxy_get_property", "plugin_name", module.OutBytes), do("proxy_get_header_map_value", 0, ":path", module.OutBytes)}},
			{Does: []module.Host{do("proxy_set_tick_period_milliseconds", 0)}},
		},
		"http_call_response": {{Does: answered[:5]}},
	}), sends: with(get(), ok), ticks: 2}
	add("call-two", script(map[string][]module.Turn{
		"request_headers":    {{Does: []module.Host{call("call-two", "/2", patient), call("call-two", "/1", patient)}, Gives: 1}},
		"http_call_response": {{}, {Does: []module.Host{do("proxy_set_effective_context", 2), do("proxy_continue_stream", 0)}}},
	}), with(get(), first, second))
	add("call-deny", script(map[string][]module.Turn{
		"request_headers":    {{Does: []module.Host{call("call-deny", "/c", patient)}, Gives: 1}},
		"http_call_response": {{Does: []module.Host{do("proxy_set_effective_context", 2), do("proxy_send_local_response", 403, "", "denied", module.Pairs{}, -1)}}},
	}), with(post(true, "abc"), ok))
	add("call-wrong", script(map[string][]module.Turn{"request_headers": {{Does: []module.Host{
		do("proxy_http_call", "nobody", module.Pairs{":method", "GET", ":path", "/", ":authority", "a"}, "", module.Pairs{}, 10, module.OutNumber),
		do("proxy_http_call", "callee", module.Pairs{":method", "GET", ":path", "/"}, "", module.Pairs{}, 10, module.OutNumber),
		do("proxy_http_call", "callee", module.Pairs{":method", "GET", ":authority", "a"}, "", module.Pairs{}, 10, module.OutNumber),
		do("proxy_http_call", "callee", module.Pairs{":path", "/", ":authority", "a"}, "", module.Pairs{}, 10, module.OutNumber),
		do("proxy_http_call", "callee", module.Pairs{":method", "GET", ":path", "/", ":authority", "a"}, "", module.Pairs{}, -10, module.OutNumber),
		do("proxy_http_call", "callee", "xx", "", "", 10, module.OutNumber),
		do("proxy_grpc_call", "nobody", "s", "m", module.Pairs{}, "", 10, module.OutNumber), do("proxy_grpc_stream", "nobody", "s", "m", module.Pairs{}, module.OutNumber),
		do("proxy_grpc_close", 1), do("proxy_grpc_close", 2), do("proxy_grpc_close", 3), do("proxy_grpc_close", 4), do("proxy_grpc_cancel", 1), do("proxy_grpc_cancel", 2), do("proxy_grpc_cancel", 4), do("proxy_grpc_send", 1, "x", 0), do("proxy_grpc_send", 2, "x", 0),
		do("proxy_grpc_send", 3, "x", 0),
	}}}}), one(get()))
	return table
}

func traps() map[string]agreement {
	table := map[string]agreement{}
	for _, name := range []string{"request_headers", "request_body", "request_trailers", "response_headers", "response_body", "response_trailers", "log", "done", "delete"} {
		trailers := post(true, "abc", "def")
		trailers.Request.Trailers, trailers.Upstream.Trailers = header("x-t", "1"), header("x-u", "1")
		mod := script(map[string][]module.Turn{name: {{Traps: true}}})
		table["trap-"+name] = agreement{mod: mod, sends: one(trailers, get())}
		table["trap-open-"+name] = agreement{mod: mod, open: true, sends: one(trailers, get(), get())}
	}
	return table
}

package suite

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"chandler.dev/chandler/internal/envoyhost"
	"chandler.dev/chandler/internal/exchange"
	"chandler.dev/chandler/internal/strict"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/wasmhost"
)

// scripted are plugins that do what is said here, and log what they see.
func scripted() map[string][]byte {
	do := module.Do
	turn := func(gives int64, does ...module.Host) []module.Turn { return []module.Turn{{Does: does, Gives: gives}} }
	encode := func(turns map[string][]module.Turn) []byte {
		on := map[string][]module.Turn{"proxy_on_configure": turn(1), "proxy_on_done": turn(1)}
		for _, name := range []string{"request_headers", "request_body", "request_trailers", "response_headers", "response_body", "response_trailers"} {
			on["proxy_on_"+name] = turn(0)
		}
		for name, t := range turns {
			on["proxy_on_"+name] = t
		}
		return module.Script{On: on}.Encode()
	}
	call := do("proxy_http_call", "auth", module.Pairs{":method", "POST", ":path", "/check?a=b", ":authority", "auth.example", "x-key", "k"}, "who?", module.Pairs{}, 1000, module.OutNumber)
	return map[string][]byte{
		"bodies": encode(nil),
		"calls": encode(map[string][]module.Turn{
			"request_headers":    turn(1, call),
			"http_call_response": turn(0, do("proxy_get_buffer_bytes", 4, 0, 100, module.OutBytes), do("proxy_set_effective_context", 2), do("proxy_continue_stream", 0)),
		}),
		"chains": encode(map[string][]module.Turn{
			"request_headers": turn(1, call),
			"http_call_response": {
				{Does: []module.Host{call}},
				{Does: []module.Host{do("proxy_define_metric", 0, "answers", module.OutNumber), do("proxy_increment_metric", module.Token, int64(1)),
					do("proxy_set_effective_context", 2), do("proxy_continue_stream", 0)}},
			},
		}),
		"afterwards": encode(map[string][]module.Turn{
			"log":                turn(0, call),
			"http_call_response": turn(0, do("proxy_define_metric", 0, "answers", module.OutNumber), do("proxy_increment_metric", module.Token, int64(1))),
		}),
		"later": encode(map[string][]module.Turn{"log": turn(0, call)}),
		"ticks": encode(map[string][]module.Turn{
			"configure":          turn(1, do("proxy_set_tick_period_milliseconds", 20)),
			"tick":               {{Does: []module.Host{call}}, {}},
			"http_call_response": turn(0, do("proxy_get_buffer_bytes", 4, 0, 100, module.OutBytes)),
		}),
		"metrics": encode(map[string][]module.Turn{
			"request_headers": turn(0, do("proxy_define_metric", 0, "requests.seen", module.OutNumber), do("proxy_increment_metric", module.Token, int64(2)),
				do("proxy_define_metric", 1, "level", module.OutNumber), do("proxy_record_metric", module.Token, int64(7))),
		}),
		"rewrites": encode(map[string][]module.Turn{"response_body": turn(0, do("proxy_set_buffer_bytes", 1, 0, 1000, "a longer text than before"))}),
		"overlong": encode(map[string][]module.Turn{"request_body": turn(0, do("proxy_set_buffer_bytes", 0, 0, 1000, "a longer request"))}),
		"shortens": encode(map[string][]module.Turn{"response_body": turn(0, do("proxy_set_buffer_bytes", 1, 0, 1000, "x"))}),
		"closes":   encode(map[string][]module.Turn{"request_headers": turn(0, do("proxy_close_stream", 0))}),
		"shares": encode(map[string][]module.Turn{
			"request_headers": turn(0, do("proxy_get_shared_data", "key", module.OutBytes, module.OutNumber), do("proxy_set_shared_data", "key", "value", 0)),
		}),
		"traps":   encode(map[string][]module.Turn{"request_headers": {{Traps: true}}}),
		"refuses": module.RefuseConfigure("the moon is wrong"),
		"denies":  module.Deny(403),
	}
}

// both are cases that hold on both engines, by the plugin that they are about.
var both = map[string]string{
	"bodies": `
- name: a body of which the length is said, in pieces
  request: {body: abcdefg, chunks: [3, 4]}
  upstream: {body: hello}
  expect:
    status: 200
    body: hello
    upstream: {method: POST, body: abcdefg}
    details: via_upstream
    logs:
      has: [on_request_body 2 3 0, on_request_body 2 4 0, on_request_body 2 0 1,
        on_response_body 2 5 0, on_response_body 2 0 1]
- name: chunks and trailers both ways
  request: {body: abcdefg, chunks: 2, trailers: {x-t: [a, b]}}
  upstream: {status: 201, headers: {x-up: 1}, body: hello, chunks: 5, trailers: {x-u: c}}
  expect:
    status: 201
    headers: {x-up: 1}
    onlyHeaders: [x-up]
    body: hello
    trailers: {x-u: c}
    upstream: {body: abcdefg, trailers: {x-t: [a, b]}}
    logs: {has: [on_request_trailers, {matches: on_response_trailers.*1}], absent: [on_tick]}
- name: no body, and none from the upstream
  steps:
  - {request: /, upstream: 204, expect: {status: 204, body: ""}}
  - {request: /, expect: {status: 200, body: "", logs: {absent: [on_request_body, on_response_body]}}}
  - {request: HEAD /, upstream: {body: hello}, expect: {status: 200, body: ""}}
  - {request: {method: POST, chunked: true}, upstream: {chunked: true}, expect: {status: 200, body: "", logs: on_request_body 5 0 1}}
  - {request: {scheme: https, path: "/a?b=c", authority: "h.test:8443"}, expect: {status: 200, upstream: {authority: "h.test:8443", path: "/a?b=c"}}}
`,
	"calls": `
- name: a call-out that is answered
  calls: [{cluster: auth, path: /check*, body: welcome, delay: 20ms}]
  request: /
  expect:
    status: 200
    upstream: reached
    calls: [{cluster: auth, method: POST, path: "/check?a=b", authority: auth.example, headers: {x-key: k}, body: "who?"}]
    logs: welcome
- name: one that fails
  calls: [{cluster: auth, fails: true}]
  request: /
  expect: {status: 200, calls: [{cluster: auth}], logs: on_http_call_response}
- name: one that nobody answers
  clusters: [auth]
  request: /
  expect: {status: 200, calls: [{cluster: auth}], logs: on_http_call_response}
`,
	"chains": `
- name: an answer that leads to another call-out
  calls: [{cluster: auth, body: first, times: 1}, {cluster: auth, body: second, delay: 20ms}]
  request: /
  expect: {status: 200, calls: [{cluster: auth, times: 2}], metrics: {answers: 1}}
`,
	"afterwards": `
- name: a step is over when the last answer has been dealt with
  steps:
  - {request: /, calls: [{cluster: auth, delay: 50ms}], expect: {metrics: {answers: 1}, calls: [{cluster: auth}]}}
  - {request: /, calls: [{cluster: auth}], expect: {metrics: {answers: 2}, calls: [{cluster: auth}]}}
`,
	"later": `
- name: a call-out when all is over
  calls: [{cluster: auth, delay: 20ms}]
  request: /
  expect: {status: 200, calls: [{cluster: auth, body: "who?"}]}
`,
	"ticks": `
- name: ticks and their call-outs
  steps:
  - ticks: 1
    calls: [{cluster: auth, body: welcome}]
    expect: {logs: [on_tick, welcome], calls: [{cluster: auth, body: "who?"}]}
  - {ticks: 2, request: /, expect: {status: 200, calls: [], logs: on_tick}}
`,
	"metrics": `
- name: metrics are those of the case
  steps:
  - {request: /, expect: {status: 200, metrics: {requests.seen: 2, level: 7}}}
  - {request: /, expect: {metrics: {requests.seen: ">= 4", level: "<= 7"}}}
- name: and of no other
  request: /
  expect: {metrics: {requests.seen: 2}}
`,
	"rewrites": `
- name: a body that grows past its content-length is cut
  request: /
  upstream: {body: hello}
  expect: {status: 200, cut: true}
- name: with chunks it is not
  request: /
  upstream: {body: hello, chunked: true}
  expect: {status: 200, body: {contains: a longer text than before}}
`,
	"shortens": `
- name: a body that does not come to its content-length
  request: /
  upstream: {body: hello}
  expect: {status: 200, cut: true}
`,
	"overlong": `
- name: what is behind the end of a request is nobody's
  steps:
  - {request: {body: hello}, expect: {status: 200, upstream: {method: POST, body: a lon}}}
  - {request: PUT /again, expect: {status: 200, upstream: {method: PUT, path: /again}}}
- name: with chunks all of it is there
  request: {body: hello, chunked: true}
  expect: {status: 200, upstream: {method: POST, body: {contains: a longer request}}}
`,
	"closes": `
- name: a stream that the plugin closes
  request: /
  expect: {reset: true, upstream: notReached}
`,
	"shares": `
- name: nothing is shared with an earlier case
  steps:
  - {request: /, expect: {logs: 00 get_shared_data 1}}
  - {request: /, expect: {logs: {has: [{matches: 00 get_shared_data 0.*value}]}}}
- name: nor with this one
  request: /
  expect: {logs: 00 get_shared_data 1}
`,
	"traps": `
- name: a trap is a 503, for this and for all later requests
  steps:
  - {request: /, expect: {status: 503, trap: unreachable, upstream: notReached}}
  - {request: /, expect: {status: 503, upstream: notReached}}
- name: with FAIL_OPEN later ones pass
  failStrategy: FAIL_OPEN
  steps:
  - {request: /, expect: {status: 503, trap: true}}
  - {request: /, expect: {status: 200, upstream: reached}}
`,
	"denies": `
- name: a denial, before the body is there
  request: {body: "0123456789", chunks: [5, 5]}
  expect: {status: 403, upstream: notReached, body: {matches: .}}
`,
}

// What holds on one engine holds on the other, and they agree.
func TestBothEngines(t *testing.T) {
	t.Parallel()
	real := envoyhost.New(envoyhost.Config{Envoy: module.Envoy(t)})
	t.Cleanup(func() { _ = real.Close() })
	fast, err := wasmhost.NewEngine("")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = fast.Close() })
	dir := t.TempDir()
	modules := scripted()
	for name, cases := range both {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, name+".wasm")
			if err := os.WriteFile(path, modules[name], 0o600); err != nil {
				t.Fatal(err)
			}
			f, mistakes := decode([]byte("module: "+path+"\nplugin: {name: "+name+"}\ncases:"+cases), nil)
			if len(mistakes) > 0 {
				t.Fatal(&strict.Error{Path: name, Mistakes: mistakes})
			}
			f.settle(dir)
			results, err := RunTests(t.Context(), f.Tests(), Options{Engines: []exchange.Engine{fast, real}, Trace: testing.Verbose()})
			if err != nil {
				t.Fatal(err)
			}
			for i := range results {
				if r := &results[i]; r.Verdict != Passed {
					t.Errorf("\n%s", r.Text(func(_ Verdict, s string) string { return s }, testing.Verbose()))
				}
			}
		})
	}
}

// In Envoy ticks go by the machine's clock, and the session tells how many were not asked for.
func TestEnvoyTellsOfExtraTicks(t *testing.T) {
	t.Parallel()
	real := envoyhost.New(envoyhost.Config{Envoy: module.Envoy(t)})
	t.Cleanup(func() { _ = real.Close() })
	path := filepath.Join(t.TempDir(), "ticks.wasm")
	if err := os.WriteFile(path, scripted()["ticks"], 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := real.Start(t.Context(), exchange.Setup{Module: path, Name: "ticks", Clusters: []string{"auth"}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for until := time.Now().Add(time.Minute); s.(exchange.Clocked).Extra() == 0; time.Sleep(100 * time.Millisecond) { // five periods
		if err := s.Tick(t.Context(), 1); err != nil || time.Now().After(until) {
			t.Fatalf("no tick but those that were asked for: %v", err)
		}
	}
}

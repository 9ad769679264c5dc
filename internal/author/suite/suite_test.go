package suite

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"chandler.dev/chandler/internal/exchange"
	"chandler.dev/chandler/internal/strict"
	"chandler.dev/chandler/internal/testenv/leaks"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// fake is an engine that gives what it is told to.
type fake struct {
	name    string
	refusal *exchange.Refusal
	broken  error
	outcome exchange.Outcome
	ticked  []exchange.Call
	logs    []exchange.Log
	metrics map[string]int64

	mu     sync.Mutex
	setups []exchange.Setup
	sent   []exchange.Exchange
	closed int
}

func (f *fake) Name() string { return f.name }

func (f *fake) Start(_ context.Context, s exchange.Setup) (exchange.Session, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.setups = append(f.setups, s)
	if f.refusal != nil {
		return nil, f.refusal
	}
	if f.broken != nil {
		return nil, f.broken
	}
	return &fakeSession{fake: f}, nil
}

type fakeSession struct {
	*fake
	calls []exchange.Call
}

func (s *fakeSession) Do(_ context.Context, e exchange.Exchange) (*exchange.Outcome, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, e)
	o := s.outcome
	return &o, nil
}

func (s *fakeSession) Tick(context.Context, int) error {
	s.calls = s.ticked
	return nil
}
func (s *fakeSession) Answer([]exchange.Answer) {}
func (s *fakeSession) Calls() (c []exchange.Call) {
	c, s.calls = s.calls, nil
	return c
}
func (s *fakeSession) Logs() []exchange.Log { return s.logs }
func (s *fakeSession) Metrics(context.Context) (map[string]int64, error) {
	return s.metrics, nil
}

func (s *fakeSession) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed++
	return nil
}

// good is an engine whose plugin lets all pass, after a call-out.
func good(name string) *fake {
	return &fake{
		name: name,
		outcome: exchange.Outcome{
			Response: &exchange.Message{
				Headers:  []exchange.Header{{Name: ":status", Value: "200"}, {Name: "x-a", Value: "1"}, {Name: "x-a", Value: "2"}, {Name: "date", Value: "now"}},
				Chunks:   [][]byte{[]byte(`{"a": [1,`), []byte(`2]}`)},
				Trailers: []exchange.Header{{Name: "x-t", Value: "end"}},
			},
			Upstream: &exchange.Message{Headers: []exchange.Header{{Name: ":method", Value: "POST"}, {Name: ":path", Value: "/a?b"}, {Name: ":authority", Value: "h.test"}, {Name: "x-up", Value: "u"}}},
			Calls:    []exchange.Call{{Cluster: "auth", Request: exchange.Message{Headers: []exchange.Header{{Name: ":method", Value: "GET"}, {Name: ":path", Value: "/check"}}}}},
			Details:  "said no",
		},
		logs:    []exchange.Log{{Level: "info", Text: "hello world"}, {Level: "warn", Text: "careful"}},
		metrics: map[string]int64{"n": 3},
	}
}

func load(t *testing.T, text string) []Test {
	t.Helper()
	f, mistakes := decode([]byte(text), func(name string) ([]byte, error) {
		if name == "gone" {
			return nil, errors.New("it is gone")
		}
		return []byte("content of " + name), nil
	})
	if len(mistakes) > 0 {
		t.Fatal(&strict.Error{Path: "f", Mistakes: mistakes})
	}
	f.settle("/plugins/hello")
	return f.Tests()
}

func run(t *testing.T, tests []Test, engines ...exchange.Engine) []Result {
	t.Helper()
	results, err := RunTests(t.Context(), tests, Options{Engines: engines, Parallel: 4})
	if err != nil {
		t.Fatal(err)
	}
	return results
}

func plain(_ Verdict, s string) string { return s }

// What is expected holds of what came, or else it is said what differs.
func TestExpectations(t *testing.T) {
	t.Parallel()
	for expect, want := range map[string]string{
		`{}`:  "",
		`200`: "",
		`{status: 200, headers: {X-A: [1, 2], x-b: {absent: true}}, onlyHeaders: [x-a], trailers: {x-t: end}, details: said no}`:  "",
		`{headers: {x-a: {contains: [1, "2"], matches: '^1,2$'}}, body: {json: {a: [1, 2]}, contains: '"a"', matches: '^.*$'}}`:   "",
		`{body: '{"a": [1,2]}', upstream: {method: POST, path: /a?b, authority: {contains: h}, headers: {x-up: u}, body: ""}}`:    "",
		`{upstream: reached, calls: [{cluster: auth, method: GET, path: {contains: check}}], metrics: {n: 3}, logs: hello}`:       "",
		`{logs: {has: [{matches: ^hello, level: info}, careful], absent: [{contains: hello, level: warn}]}, metrics: {n: "> 2"}}`: "",

		`401`:                                         `status: want 401, got 200 (said no)`,
		`{headers: {x-a: 1, x-b: 1}}`:                 `header x-a: want "1", got "1,2" | header x-b: want "1", got nothing`,
		`{headers: {x-a: {absent: true}}}`:            `header x-a: want not there, got "1,2"`,
		`{headers: {x-a: {matches: ^2}}}`:             `header x-a: want matches ^2, got "1,2"`,
		`{headers: {x-a: {contains: 3}}}`:             `header x-a: want with "3" in it, got "1,2"`,
		`{onlyHeaders: []}`:                           `header x-a: want not there, got "1" | header x-a: want not there, got "2"`,
		`{trailers: {x-t: begin}}`:                    `trailer x-t: want "begin", got "end"`,
		`{body: x}`:                                   `body: want "x", got "{\"a\": [1,2]}"`,
		`{body: {json: {a: [2, 1]}}}`:                 `body: want the JSON {"a":[2,1]}, got "{\"a\": [1,2]}"`,
		`{body: {file: other}}`:                       `body: want "content of other", got "{\"a\": [1,2]}"`,
		`{upstream: notReached}`:                      `upstream: want not reached, got reached with "/a?b"`,
		`{upstream: {method: GET, path: /, body: x}}`: `upstream method: want GET, got POST | upstream path: want "/", got "/a?b" | upstream body: want "x", got ""`,
		`{calls: []}`:                                 `calls: want 0, got 1: auth GET "/check"`,
		`{calls: [{cluster: auth, times: 2}]}`:        `calls: want 2, got 1: auth GET "/check"`,
		`{calls: [{cluster: other}]}`:                 `call 1 cluster: want other, got auth`,
		`{calls: [{cluster: auth, method: PUT}]}`:     `call 1 method: want PUT, got GET`,
		`{logs: goodbye}`:                             "log: want a line with \"goodbye\", got info: hello world\nwarn: careful",
		`{logs: {absent: [{matches: w.*d}]}}`:         `log: want no line with matches w.*d, got "hello world"`,
		`{metrics: {n: "< 3", m: 1}}`:                 `metric m: want 1, got nothing of that name, but n | metric n: want < 3, got 3`,
		`{details: said yes}`:                         `details: want "said_yes", got "said_no"`,
		`{trap: true}`:                                `trap: want the VM fails, got it does not`,
		`{trap: unreachable}`:                         `trap: want the VM fails, got it does not`,
		`{cut: true}`:                                 `body's length: want not as long as its content-length says, got as long as is said`,
		`{reset: true}`:                               `response: want none: the stream is reset, got status 200`,
	} {
		tests := load(t, "cases: [{name: c, request: /, expect: "+strings.NewReplacer("/a?b", `"/a?b"`).Replace(expect)+"}]")
		r := run(t, tests, good("fast"))[0]
		var got []string
		for _, f := range r.Runs[0].Failures {
			got = append(got, fmt.Sprintf("%s: want %s, got %s", f.What, f.Want, f.Got))
		}
		if all := strings.Join(got, " | "); all != want || (r.Verdict == Passed) != (want == "") {
			t.Errorf("%s:\n got %s\nwant %s", expect, all, want)
		}
	}
}

// Nobody has to ask for traps, resets and bodies that are cut.
func TestUnexpected(t *testing.T) {
	t.Parallel()
	for what, change := range map[string]func(*exchange.Outcome){
		"trap":          func(o *exchange.Outcome) { o.Trap = "unreachable" },
		"response":      func(o *exchange.Outcome) { o.Response = nil },
		"body's length": func(o *exchange.Outcome) { o.Cut = true },
	} {
		e := good("fast")
		change(&e.outcome)
		r := run(t, load(t, "cases: [{name: c, request: /}]"), e)[0]
		if r.Verdict != Failed || len(r.Runs[0].Failures) != 1 || r.Runs[0].Failures[0].What != what {
			t.Errorf("%s: %+v", what, r)
		}
	}
}

// A request is what the case says, and what the file says of all.
func TestRequests(t *testing.T) {
	t.Parallel()
	tests := load(t, `
plugin: {config: {a: 1}, env: {A: 1, B: "2"}, rootID: r}
limits: {memory: 2MiB, deadline: 3s}
defaults:
  request: {authority: a.test, headers: {x-a: 1, x-b: [2, 3]}}
  upstream: {status: 418, headers: {x-c: d}}
cases:
- {name: short, request: PUT /p}
- name: long
  config: text
  env: {B: "3"}
  now: 2026-01-31T12:00:00Z
  clusters: [more]
  failStrategy: FAIL_OPEN
  calls: [{cluster: auth, delay: 1s, status: 404, body: {no: 1}, times: 2}]
  request: {scheme: https, headers: {X-B: other}, body: {a: [1]}, chunks: 2, trailers: {x-t: 1}}
  upstream: {bodyFile: file, chunks: [3, 100]}
`)
	e := good("fast")
	run(t, tests, e)
	slices.SortFunc(e.sent, func(a, b exchange.Exchange) int { return len(a.Answers) - len(b.Answers) })
	slices.SortFunc(e.setups, func(a, b exchange.Setup) int { return len(a.Clusters) - len(b.Clusters) })
	short, long := e.sent[0], e.sent[1]
	if got, want := fmt.Sprint(short.Request), "{[{:method PUT} {:scheme http} {:authority a.test} {:path /p} {x-a 1} {x-b 2} {x-b 3}] [] false []}"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if got, want := fmt.Sprint(short.Upstream), "{[{:status 418} {x-c d}] [] false []}"; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if got, want := fmt.Sprintf("%s%s%s", long.Request.Headers, long.Request.Chunks, long.Request.Trailers), `[{:method POST} {:scheme https} {:authority a.test} {:path /} {x-a 1} {x-b other}][{"a": [1]}][{x-t 1}]`; got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	if got := fmt.Sprintf("%s", long.Upstream.Chunks); got != "[con tent of file]" {
		t.Error(got)
	}
	if a := long.Answers[0]; a.Cluster != "auth" || a.Times != 2 || string(a.Message.Body()) != `{"no":1}` || a.Delay.Seconds() != 1 {
		t.Errorf("%+v", a)
	}
	s := e.setups[0]
	if s.Module != "/plugins/hello/hello.wasm" || s.Name != "hello" || s.RootID != "r" || string(s.Config) != `{"a":1}` || s.Env["B"] != "2" || s.Open || s.Now != nil || s.Memory != 2<<20 || s.Deadline.Seconds() != 3 {
		t.Errorf("%+v", s)
	}
	s = e.setups[1]
	if string(s.Config) != "text" || s.Env["A"] != "1" || s.Env["B"] != "3" || !s.Open || s.Now().Year() != 2026 || !slices.Equal(s.Clusters, []string{"auth", "more"}) {
		t.Errorf("%+v", s)
	}
	if e.closed != 2 {
		t.Errorf("%d sessions were closed", e.closed)
	}
}

// Engines that differ fail a case although what is expected holds on each.
func TestDifferences(t *testing.T) {
	t.Parallel()
	a, b := good("fast"), good("envoy")
	response := *b.outcome.Response
	response.Headers = slices.Concat(response.Headers[:1], []exchange.Header{{Name: "x-a", Value: "1,2"}, {Name: "date", Value: "later"}, {Name: "x-b", Value: "3"}})
	response.Chunks = [][]byte{[]byte(`{"a": [1,2]}`)}
	b.outcome.Response = &response
	b.outcome.Upstream, b.outcome.Details = nil, "said_no"
	r := run(t, load(t, "cases: [{name: c, request: /, expect: 200}]"), a, b)[0]
	want := `FAIL   c
       the engines differ: response header x-b
          fast: not there
         envoy: "3"
       the engines differ: upstream
          fast: there is one
         envoy: there is none
`
	got := r.Text(plain, false)
	first, rest, _ := strings.Cut(got, "  (")
	_, rest, _ = strings.Cut(rest, "\n")
	if got = first + "\n" + rest; got != want || r.Verdict != Failed {
		t.Errorf("got %s\nwant %s", got, want)
	}
}

// A plugin is refused, or taken, and a case may leave engines out.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	const text = `
configure:
- {name: taken, config: {}, accepted: true}
- {name: refused, config: {}, refused: 'the moon', logs: wrong}
cases:
- {name: served, request: /, expect: 200}
- {name: elsewhere, request: /, skip: {fast: it is slow}}
- {name: other, request: /, engines: [envoy]}
- {name: properties, request: /, properties: {a.b: 1}}
- {name: clock, request: /, now: 2026-01-31T12:00:00Z}
- {name: ticks, ticks: 1, expect: {calls: [{cluster: auth}], logs: hello}}
`
	verdicts := func(e *fake) string {
		var all []string
		for _, r := range run(t, load(t, text), e) {
			all = append(all, r.Name+" "+string(r.Verdict))
		}
		return strings.Join(all, ", ")
	}
	refusing := good("fast")
	refusing.refusal = &exchange.Refusal{Reason: "it does", Logs: []exchange.Log{{Level: "error", Text: "the moon is wrong"}}}
	broken := good("fast")
	broken.broken = errors.New("no such file")
	serving := good("fast")
	serving.ticked = serving.outcome.Calls
	for _, c := range []struct {
		e    *fake
		want string
	}{
		{serving, "configure/taken passed, configure/refused failed, served passed, elsewhere skipped, other skipped, properties passed, clock passed, ticks passed"},
		{refusing, "configure/taken failed, configure/refused passed, served failed, elsewhere skipped, other skipped, properties failed, clock failed, ticks failed"},
		{broken, "configure/taken broken, configure/refused broken, served broken, elsewhere skipped, other skipped, properties broken, clock broken, ticks broken"},
		{good("envoy"), "configure/taken passed, configure/refused failed, served passed, elsewhere passed, other passed, properties skipped, clock skipped, ticks failed"},
	} {
		if got := verdicts(c.e); got != c.want {
			t.Errorf("%s\nwant %s", got, c.want)
		}
	}
}

// Results are told in the order of the cases, and an end is an end.
func TestOrderAndEnd(t *testing.T) {
	t.Parallel()
	var text strings.Builder
	text.WriteString("cases:\n")
	for i := range 50 {
		fmt.Fprintf(&text, "- {name: c%02d, request: /}\n", i)
	}
	tests := load(t, text.String())
	var told []string
	ctx, cancel := context.WithCancel(t.Context())
	results, err := RunTests(ctx, tests, Options{Engines: []exchange.Engine{good("fast")}, Parallel: 8, Done: func(r *Result) {
		if told = append(told, r.Name); len(told) == 20 {
			cancel()
		}
	}})
	if !slices.IsSorted(told) || len(told) < 20 || len(results) != len(told) && err == nil {
		t.Errorf("%v %d %q", err, len(results), told)
	}
}

func TestJUnit(t *testing.T) {
	t.Parallel()
	results := run(t, load(t, "cases: [{name: 'a <b>', request: /, expect: 404}, {name: b, request: /}, {name: c, request: /, engines: [envoy]}]"), good("fast"))
	var b bytes.Buffer
	if err := JUnit(&b, "hello", results); err != nil {
		t.Fatal(err)
	}
	var s junitSuite
	if err := xml.Unmarshal(b.Bytes(), &s); err != nil {
		t.Fatal(err)
	}
	if s.Tests != 3 || s.Failures != 1 || s.Skipped != 1 || s.Cases[0].Name != "a <b>" || s.Cases[0].Failure == nil ||
		!strings.Contains(s.Cases[0].Failure.Text, "want: 404") || s.Cases[1].Failure != nil || s.Cases[2].Skipped == nil {
		t.Errorf("%s", b.String())
	}
	if got := Summarise(results).String(); got != "1 passed, 1 failed, 1 skipped" {
		t.Error(got)
	}
}

// What is wrong in a file is told with its place.
func TestMistakes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"":                      "f: there are 0 cases; write configure: or cases:, see docs/authoring/test-file.md (ConfValue)",
		"cases: [{name: a}]":    "f:1:9: cases[0]: the case does nothing; write request: or steps: (ConfValue)",
		"cases: [{request: /}]": "f:1:9: cases[0].name: there is no name; say in some words what it is about (ConfValue)",
		"cases: [{name: a, request: /}, {name: a, request: /}]":                           `f:1:39: cases[1].name: there is another "a"; name each differently (ConfValue)`,
		"cases: [{name: a, request: /, steps: [{request: /}]}]":                           "f:1:38: cases[0].steps: beside steps the case has a request, ticks or expectations of its own; move them into a step (ConfValue)",
		"cases: [{name: a, steps: [{expect: 200}]}]":                                      "f:1:27: cases[0].steps[0]: the step does nothing; write request:, or ticks: (ConfValue)",
		"cases: [{name: a, ticks: 1, expect: 200}]":                                       "f:1:37: cases[0].expect: without a request there is no response; write request: (ConfValue)",
		"cases: [{name: a, request: {bodyFile: gone}}]":                                   `f:1:39: cases[0].request.bodyFile: "gone" cannot be read: it is gone (ConfValue)`,
		"cases: [{name: a, request: {body: x, bodyFile: y}}]":                             "f:1:48: cases[0].request.bodyFile: body is there as well; say one of them (ConfValue)",
		"cases: [{name: a, config: 1, configFile: y, request: /}]":                        "f:1:42: cases[0].configFile: config is there as well; say one of them (ConfValue)",
		"cases: [{name: a, request: {headers: {':path': x}}}]":                            "f:1:48: cases[0].request.headers.:path: it is no header; write path: beside headers (ConfValue)",
		"cases: [{name: a, request: {headers: {content-length: 3}}}]":                     "f:1:55: cases[0].request.headers.content-length: the engine sets it; write chunked: to say how the body is sent (ConfValue)",
		"cases: [{name: a, request: {path: x y}}]":                                        `f:1:35: cases[0].request.path: "x y" is no path; write it as it is sent, percent-encoded (ConfValue)`,
		"cases: [{name: a, request: {chunks: [0]}}]":                                      "f:1:37: cases[0].request.chunks: no piece has less than a byte; write a number of pieces, or a list of their sizes (ConfValue)",
		"cases: [{name: a, request: /, expect: 99}]":                                      "f:1:39: cases[0].expect.status: 99 is no status of a response; from 200 to 599 (ConfValue)",
		"cases: [{name: a, request: /, expect: {status: 200, reset: true}}]":              "f:1:60: cases[0].expect.reset: a stream that is reset has no response (ConfValue)",
		"cases: [{name: a, request: /, expect: {body: {matches: '('}}}]":                  "f:1:56: cases[0].expect.body.matches: missing closing ): `(`; see https://github.com/google/re2/wiki/Syntax (ConfValue)",
		"cases: [{name: a, request: /, expect: {headers: {a: {}}}}]":                      "f:1:53: cases[0].expect.headers.a: it has to say what is expected; write a value, {contains: ...}, {matches: ...} or {absent: true} (ConfValue)",
		"cases: [{name: a, request: /, expect: {metrics: {a: lots}}}]":                    "f:1:53: cases[0].expect.metrics.a: \"lots\" is no amount; write a whole number, or a comparison such as \">= 2\" (ConfValue)",
		"cases: [{name: a, request: /, expect: {upstream: never}}]":                       `f:1:50: cases[0].expect.upstream: "never" is not known here; one of reached, notReached (ConfValue)`,
		"cases: [{name: a, request: /, expect: {logs: [{level: warn}]}}]":                 "f:1:47: cases[0].expect.logs[0]: it is of any line; write contains: or matches: (ConfValue)",
		"cases: [{name: a, request: /, calls: [{status: 200}]}]":                          "f:1:39: cases[0].calls[0].cluster: there is none; write the name that the plugin calls (ConfValue)",
		"cases: [{name: a, request: /, calls: [{cluster: a, fails: true, status: 200}]}]": "f:1:59: cases[0].calls[0].fails: a call that fails has no answer (ConfValue)",
		"cases: [{name: a, request: /, skip: {wasmtime: x}}]":                             `f:1:48: cases[0].skip.wasmtime: "wasmtime" is no engine; one of fast, envoy (ConfValue)`,
		"cases: [{name: a, request: /, engines: [wasmtime]}]":                             `f:1:41: cases[0].engines[0]: "wasmtime" is not known here; one of fast, envoy (ConfValue)`,
		"configure: [{name: a, config: x}]":                                               "f:1:13: configure[0]: it has to say whether the plugin takes the configuration; write accepted: true, or refused: REGEX (ConfValue)",
		"now: tomorrow\ncases: [{name: a, request: /}]":                                   `f:1:6: now: "tomorrow" is not a time; write for example 2026-01-31T12:00:00Z (ConfValue)`,
		"limits: {memory: 5}\ncases: [{name: a, request: /}]":                             `f:1:18: limits.memory: "5" is not a size; write for example 64MiB (ConfValue)`,
		"plugin: {failStrategy: OPEN}\ncases: [{name: a, request: /}]":                    `f:1:24: plugin.failStrategy: "OPEN" is not known here; one of FAIL_CLOSE, FAIL_OPEN (ConfValue)`,
	} {
		_, mistakes := decode([]byte(text), func(string) ([]byte, error) { return nil, errors.New("it is gone") })
		if got := (&strict.Error{Path: "f", Mistakes: mistakes}).Error(); got != want {
			t.Errorf("%s\n got %s\nwant %s", text, got, want)
		}
	}
}

func TestLoad(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "hello")
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, FileName)
	for name, text := range map[string]string{path: "cases: [{name: a, request: {path: /, bodyFile: data/body}}]", filepath.Join(dir, "data", "body"): "b"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	if f.Module != filepath.Join(dir, "hello.wasm") || f.Plugin.Name != "hello" || string(f.Tests()[0].steps[0].exchange.Request.Body()) != "b" {
		t.Errorf("%+v", f)
	}
	var e *strict.Error
	if _, err := Load(filepath.Join(dir, "none")); !errors.As(err, &e) || !strings.Contains(err.Error(), "no such file") {
		t.Error(err)
	}
}

// Whatever a file holds, it is taken with tests that can be run, or its mistakes have
// places.
func FuzzDecode(f *testing.F) {
	for _, cases := range both {
		f.Add([]byte("cases:" + cases))
	}
	f.Add([]byte("configure: [{name: a, config: {a: [1]}, refused: x}]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, mistakes := decode(b, func(string) ([]byte, error) { return []byte("x"), nil })
		for _, m := range mistakes {
			if m.Line < 0 || m.Message == "" || m.Code == "" {
				t.Fatalf("%+v", m)
			}
		}
		if len(mistakes) > 0 {
			return
		}
		file.settle("/plugins/p")
		tests := file.Tests()
		if len(tests) == 0 {
			t.Fatal("no tests")
		}
		for _, test := range tests {
			if test.Name == "" || test.configure == nil && len(test.steps) == 0 {
				t.Fatalf("%+v", test)
			}
			for _, s := range test.steps {
				if s.Request == nil {
					continue
				}
				var body []byte
				if s.Request.body != nil {
					body = s.Request.body
				} else {
					body = file.Defaults.Request.body
				}
				if !bytes.Equal(s.exchange.Request.Body(), body) {
					t.Fatalf("cut otherwise than whole: %q", s.exchange.Request.Chunks)
				}
			}
		}
	})
}

// What came of requests that expect nothing is what is expected of them from then on; all
// else in the file stays.
func TestRecord(t *testing.T) {
	t.Parallel()
	const before = `# of the file
cases:
- name: plain # of the case
  request: POST /
- name: said
  request: /
  expect: 200
- name: steps
  steps:
  - {request: /, calls: [{cluster: auth}]}
  - ticks: 1
`
	const after = `# of the file
cases:
- name: plain # of the case
  request: POST /
  expect:
    status: 200
    headers:
      x-a: 1,2
    body:
      json: {"a": [1, 2]}
    trailers:
      x-t: end
    upstream: reached
    calls:
    - {cluster: auth, method: GET, path: /check}
- name: said
  request: /
  expect: 200
- name: steps
  steps:
  - {request: /, calls: [{cluster: auth}], expect: {status: 200, headers: {x-a: '1,2'}, body: {json: {"a": [1, 2]}}, trailers: {x-t: end}, upstream: reached, calls: [{cluster: auth, method: GET, path: /check}]}}
  - ticks: 1
`
	results := run(t, load(t, before), good("envoy"))
	got, filled, err := Record([]byte(before), results)
	if err != nil || filled != 2 {
		t.Fatalf("%d %v", filled, err)
	}
	if squeezed(string(got)) != squeezed(after) {
		t.Errorf("%s\nwant %s", got, after)
	}
	for _, r := range run(t, load(t, string(got)), good("fast")) {
		if r.Verdict != Passed {
			t.Error(r.Text(plain, false))
		}
	}
	if again, filled, err := Record(got, results); err != nil || filled != 0 || !bytes.Equal(again, got) {
		t.Errorf("again: %d %v", filled, err)
	}
	wrong := good("envoy")
	wrong.outcome = exchange.Outcome{Trap: "unreachable", Cut: true}
	got, _, err = Record([]byte("cases: [{name: a, request: /}]\n"), run(t, load(t, "cases: [{name: a, request: /}]"), wrong))
	if want := "cases: [{name: a, request: /, expect: {reset: true, trap: true, cut: true, upstream: notReached}}]\n"; err != nil || string(got) != want {
		t.Errorf("%v %s", err, got)
	}
}

// squeezed leaves out how lines are broken.
func squeezed(s string) string { return strings.Join(strings.Fields(s), " ") }

package agent

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

func plus(a, b chandler.Answers) chandler.Answers {
	a.Add(&b)
	return a
}

func answered(class, n uint64, slow ...uint64) chandler.Answers {
	var a chandler.Answers
	a.Classes[class-1] = n
	a.Latency[0] = n
	for _, at := range slow {
		a.Latency[0]--
		a.Latency[at]++
	}
	return a
}

// Envoy's own words, with buckets that the user chose between.
func TestReadAnswers(t *testing.T) {
	t.Parallel()
	got := readAnswers(`http.a.b.downstream_rq_1xx: 0
http.a.b.downstream_rq_2xx: 3
http.a.b.downstream_rq_5xx: 7
http.a.b.downstream_rq_time: B0.5(0,3) B1(1,2) B7(0,1) B60000(0,1) B300000(0,1) B1.8e+06(0,2)
http.none.downstream_rq_time: No recorded values
http.a.b.downstream_rq_6xx: 9
listener.http.x.downstream_rq_2xx: 9
`)
	want := chandler.Answers{Classes: [5]uint64{1: 3, 4: 7}, Latency: [chandler.LatencyBuckets]uint64{0: 3, 1: 2, 3: 1, 14: 1, 15: 3}}
	if len(got) != 2 || got["a.b"] != want || got["none"] != (chandler.Answers{}) {
		t.Errorf("read %+v\nwant %+v", got, want)
	}
}

func TestMeter(t *testing.T) {
	t.Parallel()
	layout := []attach.Listener{
		{Counted: []attach.Counted{{Stats: "one", Mode: chandler.ModeServer, Port: 80}, {Stats: "two", Mode: chandler.ModeServer, Port: 80}}},
		{Counted: []attach.Counted{{Stats: "two", Mode: chandler.ModeClient, Port: 81}}},
	}
	m := newMeter(layout)
	if m.pattern != `^http\.(one|two)\.downstream_rq_(time|[1-5]xx)$` {
		t.Errorf("pattern %s", m.pattern)
	}
	now := time.Unix(1_700_000_000, 0)
	tells := func(what string, places ...[2]chandler.Answers) {
		t.Helper()
		for i, p := range m.traffic(now) {
			if p.Now != places[i][0] || p.Hour != places[i][1] {
				t.Errorf("%s: port %d tells now %v hour %v\nwant %v", what, p.Port, p.Now, p.Hour, places[i])
			}
		}
	}
	// What an Envoy that was left behind had counted is of no known hour.
	m.take(now, "left", false, map[string]chandler.Answers{"one": answered(2, 10), "two": answered(5, 4)})
	both := plus(answered(2, 10), answered(5, 4))
	tells("left behind", [2]chandler.Answers{both, {}}, [2]chandler.Answers{answered(5, 4), {}})
	now = now.Add(time.Minute)
	m.take(now, "left", false, map[string]chandler.Answers{"one": answered(2, 13, 15), "two": answered(5, 4)})
	tells("a minute later", [2]chandler.Answers{plus(both, answered(2, 3, 15)), answered(2, 3, 15)}, [2]chandler.Answers{answered(5, 4), {}})

	// Another one has another epoch, and what it counted counts.
	before := m.traffic(now)[0].Epoch
	now = now.Add(time.Minute)
	m.take(now, "new", true, map[string]chandler.Answers{"one": answered(2, 2)})
	tells("another Envoy", [2]chandler.Answers{answered(2, 2), plus(answered(2, 3, 15), answered(2, 2))}, [2]chandler.Answers{})
	if after := m.traffic(now)[0].Epoch; after == before {
		t.Errorf("both are of epoch %s", after)
	}
	// So has one whose counters were set back.
	before = m.traffic(now)[0].Epoch
	m.take(now, "new", true, map[string]chandler.Answers{"one": answered(2, 1)})
	if after := m.traffic(now)[0].Epoch; after == before {
		t.Errorf("both are of epoch %s", after)
	}
	tells("set back", [2]chandler.Answers{answered(2, 1), plus(answered(2, 3, 15), answered(2, 3))}, [2]chandler.Answers{})

	// The hour ends, and without traffic nothing is kept.
	for range 65 {
		now = now.Add(time.Minute)
		m.take(now, "new", true, map[string]chandler.Answers{"one": answered(2, 1)})
	}
	tells("an hour later", [2]chandler.Answers{answered(2, 1), {}}, [2]chandler.Answers{})
	for i := range uint64(200) {
		now = now.Add(time.Minute)
		m.take(now, "new", true, map[string]chandler.Answers{"one": answered(2, 2+i)})
	}
	if n := len(m.places[0].hour); n > 62 {
		t.Errorf("%d minutes are kept", n)
	}
	if got := m.traffic(now)[0].Hour.Classes[1]; got < 60 || got > 62 {
		t.Errorf("%d in the last hour, one a minute", got)
	}
}

// Envoy is asked once in a minute, as often as the control plane wants to know, and
// never while a push is under way.
func TestWatchTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		a := &Agent{reporter: newReporter(chandler.Node{}), envoyAdmin: &adminClient{base: "http://envoy", http: http.Client{
			Transport: roundTrip(func(r *http.Request) string {
				if asked.Add(1); !strings.Contains(r.URL.RawQuery, "histogram_buckets=disjoint") {
					t.Errorf("asked for %s", r.URL.RawQuery)
				}
				return "http.in.downstream_rq_2xx: 3\n"
			}),
		}}}
		a.derived.Layout = []attach.Listener{{Counted: []attach.Counted{{Stats: "in", Mode: chandler.ModeServer, Port: 80}}}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); a.watchTraffic(ctx) }()
		in := func(d time.Duration) int {
			before := asked.Load()
			time.Sleep(d) // of the bubble's clock
			synctest.Wait()
			return int(asked.Load() - before)
		}
		told := func() bool { return a.reporter.current().traffic != nil }

		a.view.Store(&view{pushing: true, envoy: EnvoyStatus{PID: 1}})
		if n := in(10 * time.Minute); n != 0 {
			t.Fatalf("asked %d times while a push was under way", n)
		}
		a.view.Store(&view{envoy: EnvoyStatus{PID: 1}})
		in(2 * time.Second)
		if n := in(10 * time.Minute); n != 10 || told() {
			t.Errorf("asked %d times in ten minutes, told %v", n, told())
		}
		a.reporter.ask(5 * time.Second)
		if n := in(time.Millisecond); n != 1 || !told() {
			t.Errorf("asked %d times as soon as somebody wanted to know", n)
		}
		if n := in(time.Minute); n != 12 || !told() {
			t.Errorf("asked %d times in a minute, every five seconds", n)
		}
		a.reporter.ask(0)
		in(time.Millisecond)
		if n := in(time.Minute); n != 1 || told() {
			t.Errorf("asked %d times in a minute when nobody wants to know any more", n)
		}
		cancel()
		<-done
	})
}

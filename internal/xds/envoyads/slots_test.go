package envoyads

import (
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"
	"pgregory.net/rapid"
)

// model is an Envoy as ENVOY.md 2 found it: it remembers what it received last
// before it judges it, and acknowledges the same bytes again without a look.
type model struct {
	subscribed map[string]bool
	inForce    map[string]string // what decides requests; absent: nothing
	version    map[string]string // what it says it holds
	memory     map[string]string // what it received last
	refuses    map[string]bool
}

func newModel(refuses ...string) *model {
	m := &model{subscribed: map[string]bool{}, inForce: map[string]string{}, version: map[string]string{}, memory: map[string]string{}, refuses: map[string]bool{}}
	for _, body := range refuses {
		m.refuses[body] = true
	}
	return m
}

func (m *model) receive(slot, version, body string) answer {
	if m.memory[slot] == body {
		m.version[slot] = version
		return answer{acked: true}
	}
	m.memory[slot] = body
	if m.refuses[body] {
		return answer{message: "refused"}
	}
	m.inForce[slot], m.version[slot] = body, version
	return answer{acked: true}
}

func (m *model) forget(slot string) {
	delete(m.inForce, slot)
	delete(m.version, slot)
	delete(m.memory, slot)
}

func bodyOf(s string) *anypb.Any { return &anypb.Any{TypeUrl: TypeURL, Value: []byte(s)} }

// Whatever is set and however streams break, an Acked is never told of a content
// that does not decide requests, nothing goes out that was not set, and in the
// end the newest content that Envoy accepts is in force everywhere. The caller
// behaves as it must: after a Nacked it sets what was in force before, and when it begins
// anew it sets that first, and nothing else before it is answered.
func TestLedgerAgainstEnvoy(t *testing.T) {
	t.Parallel()
	bodies := []string{"empty", "good", "better", "bad", "worse"}
	names := []string{"a", "b", "c"}
	rapid.Check(t, func(t *rapid.T) {
		l, envoy := newLedger(), newModel("bad", "worse")
		good := map[string]string{"a": "empty", "b": "empty", "c": "empty"}
		first := map[string]bool{} // its answer is waited for
		check := func(events []Event) {
			for _, ev := range events {
				switch ev := ev.(type) {
				case Acked:
					if envoy.inForce[ev.Slot] != ev.Version {
						t.Fatalf("told %+v while %q is in force", ev, envoy.inForce[ev.Slot])
					}
					good[ev.Slot], first[ev.Slot] = ev.Version, false
				case Nacked:
					first[ev.Slot] = false
					if !envoy.refuses[ev.Version] && ev.Message != lostAnswer {
						t.Fatalf("told %+v", ev)
					}
					l.set(ev.Slot, &push{good[ev.Slot], bodyOf(good[ev.Slot])})
				}
			}
		}
		pump := func(steps int, lose bool) {
			for range steps {
				d, events := l.next()
				check(events)
				if d == nil && len(events) == 0 {
					return
				}
				if d == nil {
					continue // the caller may have set something else
				}
				if !envoy.subscribed[d.slot.name] {
					t.Fatalf("%s was sent and is not subscribed", d.slot.name)
				}
				a := envoy.receive(d.slot.name, d.version, string(d.body.Value))
				if lose {
					return // the stream breaks before the answer
				}
				check(l.answered("stale", answer{acked: true}))
				check(l.answered(d.nonce, a))
			}
		}
		connect := func() {
			l.open()
			for _, name := range names {
				if envoy.subscribed[name] {
					check(l.subscribe(name, envoy.version[name]))
				}
			}
		}
		l.open()
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				name, body := rapid.SampledFrom(names).Draw(t, "slot"), rapid.SampledFrom(bodies).Draw(t, "body")
				if first[name] || envoy.inForce[name] == "" && envoy.refuses[body] {
					return // until something is in force only what is known to be good is set
				}
				l.set(name, &push{body, bodyOf(body)})
			},
			"subscribe": func(t *rapid.T) {
				name := rapid.SampledFrom(names).Draw(t, "slot")
				if !envoy.subscribed[name] {
					envoy.subscribed[name] = true
					check(l.subscribe(name, ""))
				}
			},
			"unsubscribe": func(t *rapid.T) {
				name := rapid.SampledFrom(names).Draw(t, "slot")
				if envoy.subscribed[name] && l.sent == nil {
					envoy.subscribed[name] = false
					envoy.forget(name)
					check(l.unsubscribe(name))
				}
			},
			"answer": func(t *rapid.T) { pump(rapid.IntRange(1, 4).Draw(t, "steps"), false) },
			"break": func(t *rapid.T) {
				pump(1, true)
				connect()
			},
			"drop between streams": func(t *rapid.T) { // a listener went and came while nobody listened
				name := rapid.SampledFrom(names).Draw(t, "slot")
				envoy.forget(name)
				connect()
			},
			"agent begins anew": func(t *rapid.T) {
				l = newLedger()
				for _, name := range names {
					if first[name] = envoy.inForce[name] != ""; first[name] {
						l.set(name, &push{good[name], bodyOf(good[name])})
					}
				}
				connect()
			},
			"": func(t *rapid.T) {},
		})
		pump(1000, false)
		for _, name := range names {
			if s := l.slots[name]; envoy.subscribed[name] && s != nil && s.want != nil && envoy.inForce[name] != s.want.version {
				t.Fatalf("%s: %q is in force, %q was set", name, envoy.inForce[name], s.want.version)
			}
		}
	})
}

// An agent that begins anew beside a live Envoy knows nothing of what it refused
// last: what is in force goes out first, and only then what is new.
func TestNewAgentBesideLiveEnvoy(t *testing.T) {
	t.Parallel()
	envoy := newModel("bad")
	envoy.receive("a", "good", "good")
	envoy.receive("a", "bad", "bad")
	l := newLedger()
	l.open()
	l.set("a", &push{"good", bodyOf("good")})
	l.subscribe("a", "good")
	if d, told := l.next(); d != nil || !slices.Equal(told, []Event{Acked{"a", "good", true}}) {
		t.Fatalf("sent %v, told %v; it is in force already", d, told)
	}
	l.set("a", &push{"bad", bodyOf("bad")})
	var sent []string
	var told []Event
	for {
		d, events := l.next()
		told = append(told, events...)
		if d == nil {
			break
		}
		sent = append(sent, d.version)
		told = append(told, l.answered(d.nonce, envoy.receive("a", d.version, string(d.body.Value)))...)
	}
	if !slices.Equal(sent, []string{"good", "bad"}) || !slices.Equal(told, []Event{Nacked{"a", "bad", "refused"}}) {
		t.Fatalf("sent %v, told %v", sent, told)
	}
}

// What an Envoy said on a stream that it holds is not believed once it says on the next
// one that it holds nothing: that was another Envoy, or the slot is a new one.
func TestLastWordCounts(t *testing.T) {
	t.Parallel()
	l := newLedger()
	l.open()
	l.subscribe("a", "good")
	l.open()
	l.subscribe("a", "")
	l.set("a", &push{"good", bodyOf("good")})
	if d, told := l.next(); d == nil || told != nil {
		t.Fatalf("sent %v, told %v; nothing is in force", d, told)
	}
}

func TestQueueKeepsOrderAndPlaces(t *testing.T) {
	t.Parallel()
	l := newLedger()
	l.open()
	for _, name := range []string{"a", "b", "c"} {
		l.subscribe(name, "")
	}
	for _, set := range []string{"c1", "a1", "b1", "c2", "a2"} {
		l.set(set[:1], &push{set, bodyOf(set)})
	}
	l.set("d", &push{"d1", bodyOf("d1")}) // nobody has subscribed to it
	var sent []string
	for {
		d, _ := l.next()
		if d == nil {
			break
		}
		if again, _ := l.next(); again != nil {
			t.Fatal("two responses are under way")
		}
		if sent = append(sent, d.version); d.version == "c2" {
			l.set("c", &push{"c3", bodyOf("c3")}) // behind those that wait
		}
		l.answered(d.nonce, answer{acked: true})
	}
	if want := []string{"c2", "a2", "b1", "c3"}; fmt.Sprint(sent) != fmt.Sprint(want) {
		t.Fatalf("sent %v, want %v", sent, want)
	}
}

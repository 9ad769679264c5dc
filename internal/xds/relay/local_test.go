package relay

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

const localPrefix = "own/"

func isLocalName(name string) bool { return strings.HasPrefix(name, localPrefix) }

// owner is one that has local names, and behaves as it must: to an Envoy of which it does
// not know what it has, it gives what was in force before, and nothing else until that is
// answered; and after a refusal what was in force before that.
type owner struct {
	gives    map[string]string // by name: the content, which is the version, too
	good     map[string]string // what Envoy took last
	first    map[string]bool   // until Envoy has taken it
	wanted   map[string]bool
	reverted []string // names that are to be told changed
}

func newOwner() *owner {
	return &owner{gives: map[string]string{}, good: map[string]string{}, first: map[string]bool{}, wanted: map[string]bool{}}
}

func (o *owner) get(name string) (body []byte, version string, ok bool) {
	content, ok := o.gives[name]
	return message(name, content), content, ok
}

// beginAnew is for another process of Envoy (nil), or of the agent beside the same.
func (o *owner) beginAnew(e *envoy) {
	for name := range o.gives {
		if o.good[name] == "" {
			o.good[name] = "good"
		}
		o.gives[name], o.first[name] = o.good[name], true
	}
	if e == nil {
		clear(o.wanted)
	}
}

// set gives a name another content; false: not now.
func (o *owner) set(name, content string) bool {
	if o.first[name] || o.good[name] == "" && content[0] == 'b' {
		return false
	}
	o.gives[name] = content
	return true
}

// toldLocal takes what the owner is told, and holds it against what Envoy does.
func (w *world) toldLocal(ev LocalEvent) {
	o := w.own
	switch ev.What {
	case Subscribed:
		o.wanted[ev.Name] = true
	case Unsubscribed:
		if !o.wanted[ev.Name] {
			w.t.Fatalf("told %+v, and not that it was subscribed", ev)
		}
		delete(o.wanted, ev.Name)
	case Acked:
		if t := w.envoy.types[extensionType]; t != nil && slices.Contains(t.names, ev.Name) {
			if has, there := t.has[ev.Name]; there && has.content != ev.Version {
				w.t.Fatalf("told %+v while %q is in force", ev, has.content)
			}
		}
		o.good[ev.Name] = ev.Version
		delete(o.first, ev.Name)
	case Nacked:
		if ev.Version[0] != 'b' || ev.Words != "Unable to create "+ev.Name {
			w.t.Fatalf("told %+v, which Envoy did not say", ev)
		}
		delete(o.first, ev.Name)
		if good := o.good[ev.Name]; good != "" {
			o.gives[ev.Name] = good
			o.reverted = append(o.reverted, ev.Name)
		}
	}
}

// ownerActs does what must not be done from within the relay.
func (w *world) ownerActs() {
	for len(w.own.reverted) > 0 {
		name := w.own.reverted[0]
		w.own.reverted = w.own.reverted[1:]
		w.relay.Changed(extensionType, name)
	}
}

// checkLocal: Envoy has what the owner gives, unless that is bad.
func (w *world) checkLocal() {
	w.t.Helper()
	t := w.envoy.types[extensionType]
	if t == nil {
		return
	}
	for _, name := range t.names {
		if content, ok := w.own.gives[name]; ok && content[0] != 'b' && t.has[name].content != content {
			w.t.Fatalf("of %s Envoy has %q, want %q", name, t.has[name].content, content)
		}
	}
}

// tells is what was told of local names since the last call.
type tells []string

func (l *tells) note(ev LocalEvent) {
	text := fmt.Sprintf("%s %s=%s", ev.What, ev.Name, ev.Version)
	if ev.Current {
		text += " current"
	}
	if ev.Words != "" {
		text += ": " + ev.Words
	}
	*l = append(*l, text)
}

func (l *tells) want(t *testing.T, want ...string) {
	t.Helper()
	if !slices.Equal(*l, want) {
		t.Errorf("told %q, want %q", *l, want)
	}
	*l = nil
}

// local is a stream by hand with local names that hold what is in the map.
func newLocalTalk(t *testing.T, delta bool) (k *talk, has map[string]string, told *tells) {
	t.Helper()
	has, told = map[string]string{}, &tells{}
	k = &talk{T: t, delta: delta}
	k.Stream = New(Hooks{Local: map[string]Local{extensionType: {Prefix: localPrefix, Tell: told.note,
		Get: func(name string) ([]byte, string, bool) {
			content, ok := has[name]
			return message(name, content), "v" + content, ok
		}}}}).Open(Kind{Delta: delta}, k.now)
	return k, has, told
}

// Local names are answered when there is no upstream, one after the other; a refusal is
// told with Envoy's words, and so is a name that Envoy wants no more.
func TestLocalWithoutUpstream(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		k, has, told := newLocalTalk(t, delta)
		has["own/a"], has["own/b"] = "1", "1"
		k.want(extensionType, "own/a", "own/b", "theirs", "own/later")
		told.want(t, "subscribed own/a=", "subscribed own/b=", "subscribed own/later=")
		names := []string{"own/a", "own/b", "theirs", "own/later"}
		a := k.gets(extensionType, "own/a=1")
		k.getsNothing() // until it is answered
		k.ack(a, names...)
		k.nack(k.gets(extensionType, "own/b=1"), "no", names...)
		k.getsNothing()
		told.want(t, "acked own/a=v1", "nacked own/b=v1: no")
		has["own/later"] = "1"
		k.relay.Changed(extensionType, "own/later")
		k.ack(k.gets(extensionType, "own/later=1"), names...)
		k.relay.Changed(extensionType, "own/a", "own/b")
		k.getsNothing()
		told.want(t, "acked own/later=v1", "acked own/a=v1 current", "nacked own/b=v1 current: no")
		if delta {
			k.ask(Request{Type: extensionType, Unsubscribe: []string{"own/a"}})
		} else {
			k.want(extensionType, names[1:]...)
		}
		told.want(t, "unsubscribed own/a=")
		has["own/a"] = "2"
		k.relay.Changed(extensionType)
		k.getsNothing()

		k.Connected(k.now)
		if q := k.tells(extensionType); !slices.Equal(q.Subscribe, []string{"theirs"}) || q.Version != "" || len(q.Held) != 0 {
			t.Errorf("the upstream is asked %+v", q)
		}
		k.tellsNothing()
	})
}

// What was in force goes out after a refusal, before a listener that Envoy would not take
// otherwise; the same content is then tried anew.
func TestLocalIsRestored(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		k, has, told := newLocalTalk(t, delta)
		k.Connected(k.now)
		has["own/a"] = "1"
		k.want(listenerType)
		k.want(extensionType, "own/a")
		k.ack(k.gets(extensionType, "own/a=1"), "own/a")
		has["own/a"] = "2"
		k.relay.Changed(extensionType, "own/a")
		bad := k.gets(extensionType, "own/a=2")
		k.nack(bad, "no", "own/a")
		k.push(listenerType, "1", "l=1")
		again := k.gets(extensionType, "own/a=1")
		k.ack(k.gets(listenerType, "l=1"))
		k.ack(again, "own/a")
		k.getsNothing()
		told.want(t, "subscribed own/a=", "acked own/a=v1", "nacked own/a=v2: no")
		k.relay.Changed(extensionType, "own/a")
		k.nack(k.gets(extensionType, "own/a=2"), "no", "own/a")
		told.want(t, "nacked own/a=v2: no")
		has["own/a"] = "1"
		k.relay.Changed(extensionType, "own/a")
		k.nack(k.gets(extensionType, "own/a=1"), "not even that", "own/a")
		k.getsNothing()
		told.want(t, "nacked own/a=v1 current: not even that")
	})
}

// An upstream that is asked for everything there is hears nothing of local names either.
func TestLocalBesideAll(t *testing.T) {
	t.Parallel()
	k, has, _ := newLocalTalk(t, true)
	k.Connected(k.now)
	has["own/a"] = "1"
	k.ask(Request{Type: extensionType, Subscribe: []string{"own/a", "*"}, Held: map[string]string{"own/a": "v0", "theirs": "1"}})
	if q := k.tells(extensionType); !slices.Equal(q.Subscribe, []string{"*"}) || !slices.Equal(sorted(q.Held), []string{"theirs"}) {
		t.Errorf("the upstream is asked %+v", q)
	}
	k.push(extensionType, "1", "own/a=theirs")
	k.ack(k.gets(extensionType, "own/a=1"))
	k.getsNothing()
}

// An upstream is not asked for anything when Envoy wants local names alone, nor by the
// answers to these, and cannot send under such a name.
func TestLocalAlone(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		k, has, told := newLocalTalk(t, delta)
		k.Connected(k.now)
		has["own/a"] = "1"
		k.want(extensionType, "own/a")
		k.ack(k.gets(extensionType, "own/a=1"), "own/a")
		k.tellsNothing()
		if delta {
			k.want(extensionType, "theirs")
		} else {
			k.want(extensionType, "own/a", "theirs")
		}
		if q := k.tells(extensionType); !slices.Equal(q.Subscribe, []string{"theirs"}) {
			t.Errorf("the upstream is asked %+v", q)
		}
		nonce := k.push(extensionType, "1", "own/a=theirs", "-own/a", "theirs=1")
		k.ack(k.gets(extensionType, "theirs=1"), "own/a", "theirs")
		k.answers(extensionType, nonce, "")
		k.getsNothing()
		if len(*told) == 0 || slices.ContainsFunc(*told, func(s string) bool { return strings.Contains(s, "theirs") }) {
			t.Errorf("told %q", *told)
		}
	})
}

// While Envoy has not answered a local name, nothing else of the type goes out, and the
// other way round: so an answer is about what it names.
func TestLocalIsAlone(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		k, has, _ := newLocalTalk(t, delta)
		k.Connected(k.now)
		has["own/a"] = "1"
		names := []string{"own/a", "theirs"}
		k.want(extensionType, names...)
		own := k.gets(extensionType, "own/a=1")
		k.push(extensionType, "1", "theirs=1")
		k.getsNothing()
		if !k.Wake().IsZero() {
			t.Error("it wakes for what cannot be sent")
		}
		k.ack(own, names...)
		theirs := k.gets(extensionType, "theirs=1")
		has["own/a"] = "2"
		k.relay.Changed(extensionType, "own/a")
		k.getsNothing()
		k.ack(theirs, names...)
		k.gets(extensionType, "own/a=2")
	})
}

// Of a stream that is back, an increment says what Envoy holds; in the state of the world
// it is sent again. Another Envoy has nothing.
func TestLocalResumes(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		k, has, told := newLocalTalk(t, delta)
		has["own/a"] = "1"
		k.want(extensionType, "own/a")
		k.ack(k.gets(extensionType, "own/a=1"), "own/a")
		reopen := func(version string) {
			old := k.Stream
			k.Stream = k.relay.Open(Kind{Delta: delta}, k.now)
			q := Request{Type: extensionType, Subscribe: []string{"own/a"}}
			if delta && version != "" {
				q.Held = map[string]string{"own/a": version}
			} else if !delta {
				q.Version = version
			}
			k.ask(q)
			old.Close(k.now) // later than the next one is opened
			*told = nil
		}
		reopen("v1")
		if delta {
			k.getsNothing()
			told.want(t, "acked own/a=v1 current")
		} else {
			k.ack(k.gets(extensionType, "own/a=1"), "own/a")
			told.want(t, "acked own/a=v1")
		}
		reopen("")
		k.ack(k.gets(extensionType, "own/a=1"), "own/a")
		has["own/a"] = "2"
		k.relay.Changed(extensionType, "own/a")
		k.gets(extensionType, "own/a=2") // and nobody knows what Envoy said
		reopen("v1")
		k.getsNothingBut("own/a=1", "own/a=2")
		k.relay.Another()
		reopen("")
		k.gets(extensionType, "own/a=2")
	})
}

// getsNothingBut expects one local name's contents one after the other, and takes them.
func (k *talk) getsNothingBut(resources ...string) {
	k.Helper()
	for _, r := range resources {
		k.ack(k.gets(extensionType, r), "own/a")
	}
	k.getsNothing()
}

// What an Envoy can make the relay keep is bounded.
func TestLocalLimits(t *testing.T) {
	both(t, func(t *testing.T, delta bool) {
		k, _, _ := newLocalTalk(t, delta)
		var names []string
		for i := range maxLocals {
			names = append(names, fmt.Sprint("own/", i))
		}
		k.want(extensionType, names...)
		if err := k.FromEnvoy(Request{Type: extensionType, Subscribe: append(names, "own/more")}, k.now); err == nil {
			t.Error("one more was taken")
		}
		old := k.Stream
		k.Stream = k.relay.Open(Kind{Delta: delta}, k.now)
		old.Close(k.now)
		k.want(extensionType, "own/other")
		if err := k.FromEnvoy(Request{Type: extensionType, Subscribe: []string{"own/" + strings.Repeat("x", maxLocalName)}}, k.now); err == nil {
			t.Error("a long name was taken")
		}
	})
}

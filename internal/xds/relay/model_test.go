package relay

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"chandler.dev/chandler/internal/testenv/leaks"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// message is a resource of any type: a name and a content.
func message(name, content string) []byte {
	return appendText(appendText(nil, 1, name), 2, content)
}

func contentOf(body []byte) string {
	var text string
	_ = fields(body, func(num protowire.Number, content, _ []byte) {
		if num == 2 {
			text = string(content)
		}
	})
	return text
}

// item is a resource as an upstream sends it.
func item(delta bool, typeURL, name, version, content string) *Item {
	a := appendBytes(appendText(nil, anyType, typeURL), anyValue, message(name, content))
	raw := a
	if delta {
		raw = appendText(nil, resourceVersion, version)
		raw = appendBytes(raw, resourceBody, a)
		raw = appendText(raw, resourceName, name)
	}
	it, err := readItem(raw, delta)
	if err != nil {
		panic(err)
	}
	return it
}

// upstream is a control plane as there are many: it awaits the answer to a response
// before it sends the next one of that type, and sends once more what was refused.
type upstream struct {
	delta     bool
	resources map[string]map[string]string // by type and name: the content
	versions  map[string]int               // by type
	storms    bool
	stream    *upstreamStream
	noes      map[string]string // by type: the last words of a refusal
}

type upstreamStream struct {
	types  map[string]*upstreamType
	order  []string
	greets int // requests with a node
}

type upstreamType struct {
	names   map[string]bool
	all     bool
	has     map[string]string // what the client has, by name: the version; of a state-of-the-world client under ""
	nonce   int
	waits   bool
	pending map[string]bool // names that were asked for again
	changed bool            // other names were asked for
	noes    int
}

func newUpstream(delta bool) *upstream {
	return &upstream{delta: delta, resources: map[string]map[string]string{}, versions: map[string]int{}, noes: map[string]string{}}
}

func (u *upstream) set(typeURL, name, content string) {
	if u.resources[typeURL] == nil {
		u.resources[typeURL] = map[string]string{}
	}
	u.resources[typeURL][name] = content
	u.versions[typeURL]++
}

func (u *upstream) remove(typeURL, name string) {
	delete(u.resources[typeURL], name)
	u.versions[typeURL]++
}

// take takes a request. Names that are the owner's are not for it, in whatever form.
func (u *upstream) take(t testing.TB, q Request) {
	for _, name := range append(slices.Concat(q.Subscribe, q.Unsubscribe, sorted(q.Held)), words(q.Error)) {
		if strings.Contains(name, localPrefix) {
			t.Fatalf("the upstream is told of %q", name)
		}
	}
	if len(q.Subscribe) == 0 && q.Type == extensionType && u.stream.types[q.Type] == nil {
		t.Fatal("the upstream is asked for all extensions")
	}
	u.hear(q)
}

func (u *upstream) hear(q Request) {
	if q.Node != nil {
		u.stream.greets++
	}
	t := u.stream.types[q.Type]
	first := t == nil
	if first {
		t = &upstreamType{names: map[string]bool{}, has: map[string]string{}, pending: map[string]bool{}}
		u.stream.types[q.Type] = t
		u.stream.order = append(u.stream.order, q.Type)
		t.all = len(q.Subscribe) == 0
	}
	if q.Error != nil {
		t.noes++
		u.noes[q.Type] = words(q.Error)
	}
	if !u.delta {
		if !first && q.Nonce != strconv.Itoa(t.nonce) && t.nonce > 0 {
			return // stale: not even its names count
		}
		names := map[string]bool{}
		for _, n := range q.Subscribe {
			names[n] = true
		}
		if !first {
			t.changed = t.changed || !maps.Equal(names, t.names)
		}
		t.names, t.all, t.waits = names, t.all && len(names) == 0, false
		switch {
		case first:
			t.has[""] = q.Version
		case q.Error != nil && u.storms:
			t.has[""] = ""
		}
		return
	}
	for _, n := range q.Subscribe {
		t.names[n], t.pending[n] = true, true
		t.all = t.all || n == wildcard
	}
	for _, n := range q.Unsubscribe {
		delete(t.names, n)
		delete(t.pending, n)
		delete(t.has, n)
	}
	if first {
		maps.Copy(t.has, q.Held)
	}
	if q.Nonce == strconv.Itoa(t.nonce) {
		t.waits = false
	}
}

func (t *upstreamType) wants(name string) bool { return t.all || t.names[name] }

// say gives the next response.
func (u *upstream) say() *Response {
	for _, typeURL := range u.stream.order {
		if p := u.sayOf(typeURL); p != nil {
			return p
		}
	}
	return nil
}

func (u *upstream) sayOf(typeURL string) *Response {
	t := u.stream.types[typeURL]
	if t.waits {
		return nil
	}
	version := strconv.Itoa(u.versions[typeURL])
	p := &Response{Type: typeURL, Version: version}
	if !u.delta {
		if t.has[""] == version && !t.changed || !t.all && len(t.names) == 0 {
			return nil
		}
		for _, n := range sorted(u.resources[typeURL]) {
			if t.wants(n) {
				p.Items = append(p.Items, item(false, typeURL, n, "", u.resources[typeURL][n]))
			}
		}
		t.has[""], t.changed = version, false
	} else {
		for _, n := range sorted(u.resources[typeURL]) {
			content := u.resources[typeURL][n]
			if t.wants(n) && (t.has[n] != content || t.pending[n]) {
				p.Items = append(p.Items, item(true, typeURL, n, content, content))
				t.has[n] = content
			}
		}
		for _, n := range sorted(t.has) {
			if _, there := u.resources[typeURL][n]; !there {
				p.Removed = append(p.Removed, n)
				delete(t.has, n)
			}
		}
		clear(t.pending)
		if len(p.Items)+len(p.Removed) == 0 && t.nonce > 0 {
			return nil
		}
	}
	t.nonce++
	t.waits, p.Nonce = true, strconv.Itoa(t.nonce)
	return p
}

// envoy is one that refuses what is bad, as the real one does: of listeners and clusters
// it takes the others, and a refused extension it acknowledges when it comes again.
type envoy struct {
	t      testing.TB
	delta  bool
	types  map[string]*envoyType
	order  []string
	asks   []Request
	booted bool
}

type envoyType struct {
	all     bool
	names   []string
	has     map[string]held
	last    map[string]string // of extensions: what came last
	version string
	nonce   string
	answers int
	noes    int
}

type held struct{ version, content string }

func newEnvoy(t testing.TB, delta bool) *envoy {
	return &envoy{t: t, delta: delta, types: map[string]*envoyType{}}
}

// want subscribes; without names to everything.
func (e *envoy) want(typeURL string, names ...string) {
	t := e.types[typeURL]
	q := Request{Type: typeURL, Subscribe: names}
	if t == nil {
		t = &envoyType{has: map[string]held{}, last: map[string]string{}, all: len(names) == 0}
		e.types[typeURL] = t
		e.order = append(e.order, typeURL)
	} else {
		q.Version, q.Nonce = t.version, t.nonce
	}
	for n := range t.has {
		if !t.all && !slices.Contains(names, n) {
			delete(t.has, n)
			delete(t.last, n)
		}
	}
	if e.delta {
		q.Version, q.Nonce, q.Subscribe = "", "", nil
		for _, n := range names {
			if !slices.Contains(t.names, n) {
				q.Subscribe = append(q.Subscribe, n)
			}
		}
		for _, n := range t.names {
			if !slices.Contains(names, n) {
				q.Unsubscribe = append(q.Unsubscribe, n)
			}
		}
	}
	t.names = names
	e.ask(q)
}

func (e *envoy) ask(q Request) {
	if !e.booted {
		q.Node = []byte("node")
		e.booted = true
	}
	e.asks = append(e.asks, q)
}

// reconnect begins a stream anew.
func (e *envoy) reconnect() {
	e.asks, e.booted = nil, false
	for _, typeURL := range e.order {
		t := e.types[typeURL]
		if !t.all && len(t.names) == 0 {
			continue
		}
		t.nonce = ""
		q := Request{Type: typeURL, Subscribe: t.names}
		if !e.delta {
			q.Version = t.version
		} else if len(t.has) > 0 {
			q.Held = map[string]string{}
			for n, h := range t.has {
				q.Held[n] = h.version
			}
		}
		e.ask(q)
	}
}

// take takes a response and answers it.
func (e *envoy) take(p Response) {
	t := e.types[p.Type]
	t.answers++
	whole := p.Type == listenerType || p.Type == clusterType
	bad, next := []string{}, map[string]held{}
	for _, it := range p.Items {
		h := held{it.Version, contentOf(it.body(e.delta))}
		if p.Type == extensionType {
			if !slices.Contains(t.names, it.Name) {
				continue
			}
			if t.last[it.Name] == h.content {
				if before, there := t.has[it.Name]; there {
					t.has[it.Name] = held{h.version, before.content}
				}
				continue // taken for the same as before, whatever became of that
			}
			t.last[it.Name] = h.content
		}
		if strings.Contains(h.content, "bad") {
			bad = append(bad, it.Name)
			if !whole {
				break // what comes after it is not looked at
			}
			continue
		}
		if t.all || slices.Contains(t.names, it.Name) {
			next[it.Name] = h
		}
	}
	q := Request{Type: p.Type, Nonce: p.Nonce}
	if len(bad) > 0 {
		t.noes++
		text := "it is bad"
		switch {
		case whole:
			text = "Error adding " + strings.Join(bad, ": bad, ") + ": bad"
		case p.Type == extensionType:
			text = "Unable to create " + bad[0]
		}
		q.Error = appendText(nil, 2, text)
	} else {
		t.version = p.Version
	}
	if !e.delta && whole {
		for n := range t.has {
			if _, there := next[n]; !there && !slices.Contains(bad, n) {
				delete(t.has, n)
			}
		}
	}
	maps.Copy(t.has, next)
	for _, n := range p.Removed {
		delete(t.has, n)
	}
	t.nonce = p.Nonce
	if !e.delta {
		q.Version, q.Subscribe = t.version, t.names
	}
	e.ask(q)
}

// world is all of it, with the messages that are under way.
type world struct {
	t       testing.TB
	delta   bool
	now     time.Time
	relay   *Relay
	stream  *Stream
	up      *upstream
	envoy   *envoy
	slots   string // what the transform of listeners adds
	seen    map[string]string
	plain   map[string]bool // contents of listeners to which it adds nothing, as Envoy refused that
	held    map[string]bool // extensions that are not there yet
	shut    map[string]bool // listeners that are held
	begins  beginning
	own     *owner
	events  []Event
	toEnvoy []Response
	toUp    []Request
	fromUp  []Response
}

func newWorld(t testing.TB, delta bool) *world {
	w := &world{t: t, delta: delta, now: time.Unix(1000, 0), seen: map[string]string{}, plain: map[string]bool{}, held: map[string]bool{}, shut: map[string]bool{}, up: newUpstream(delta), envoy: newEnvoy(t, delta), own: newOwner()}
	w.relay = New(w.hooks())
	w.stream = w.relay.Open(Kind{Delta: delta}, w.now)
	return w
}

func (w *world) hooks() Hooks {
	return Hooks{
		Tell: func(ev Event) { w.events = append(w.events, ev) },
		Transforms: map[string]Transform{
			listenerType:  func(r Resource) ([]byte, bool) { return w.transform(r), !w.shut[r.Name] },
			extensionType: func(r Resource) ([]byte, bool) { return r.Body, !w.held[r.Name] },
		},
		Amend: map[string]func(string, bool, string) bool{listenerType: w.amend},
		Local: map[string]Local{extensionType: {Prefix: localPrefix, Get: w.own.get, Tell: w.toldLocal}},
	}
}

func (w *world) transform(r Resource) []byte {
	content := contentOf(r.Body)
	if w.slots == "" || w.plain[content] {
		return r.Body
	}
	w.seen[r.Name] = content
	return message(r.Name, content+w.slots)
}

// amend gives a listener that Envoy refuses without slots, unless they are new in it.
func (w *world) amend(name string, own bool, _ string) bool {
	if !own {
		w.plain[w.seen[name]] = true
	}
	return !own
}

// The steps that can happen, each if it can.

func (w *world) envoySpeaks() {
	if len(w.envoy.asks) == 0 {
		return
	}
	q := w.envoy.asks[0]
	w.envoy.asks = w.envoy.asks[1:]
	q, err := ReadRequest(q.Bytes(w.delta), w.delta) // as by wire
	if err == nil {
		err = w.stream.FromEnvoy(q, w.now)
	}
	if q.Type == listenerType && w.begins.until.IsZero() {
		w.begins.until = w.now.Add(openingPatience)
	}
	w.ownerActs()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) envoyHears() {
	if len(w.toEnvoy) == 0 {
		if p := w.stream.ToEnvoy(w.now); p != nil {
			w.toEnvoy = append(w.toEnvoy, *p)
			w.checkBeginning(p.Type)
		}
		w.ownerActs()
		return
	}
	p, err := ReadResponse(w.toEnvoy[0].Bytes(w.delta), w.delta)
	if err != nil {
		w.t.Fatal(err)
	}
	w.toEnvoy = w.toEnvoy[1:]
	w.envoy.take(p)
}

func (w *world) upstreamHears() {
	if len(w.toUp) == 0 {
		if q := w.stream.ToUpstream(); q != nil {
			w.toUp = append(w.toUp, *q)
		}
		return
	}
	w.up.take(w.t, w.toUp[0])
	w.toUp = w.toUp[1:]
}

func (w *world) upstreamSpeaks() {
	if w.up.stream == nil {
		return
	}
	if len(w.fromUp) == 0 {
		if p := w.up.say(); p != nil {
			w.fromUp = append(w.fromUp, *p)
		}
		return
	}
	b := w.fromUp[0].Bytes(w.delta)
	p, err := ScanResponse(b, w.delta)
	w.fromUp = w.fromUp[1:]
	if err == nil {
		err = w.stream.FromUpstream(p)
	}
	for i := range b {
		b[i] = 0xff // nothing of it may be kept
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) connect() {
	if w.up.stream == nil {
		w.up.stream = &upstreamStream{types: map[string]*upstreamType{}}
		w.stream.Connected(w.now)
	}
}

func (w *world) disconnect() {
	if w.up.stream != nil {
		w.up.stream, w.toUp, w.fromUp = nil, nil, nil
		w.stream.Disconnected()
	}
}

// reopen is Envoy's stream broken and begun anew, of the same Envoy or of another one.
func (w *world) reopen(anew bool) {
	// An extension's refusal that is lost with the stream nobody can know of: the same
	// Envoy will acknowledge it. Other answers are lost here.
	w.envoy.asks = slices.DeleteFunc(w.envoy.asks, func(q Request) bool { return q.Type != extensionType })
	for len(w.envoy.asks) > 0 {
		w.envoySpeaks()
	}
	w.disconnect()
	w.stream.Close(w.now)
	if anew {
		w.relay.Another()
		w.begins = beginning{is: true}
		w.own.beginAnew(nil)
		before := w.envoy
		w.envoy = newEnvoy(w.t, w.delta)
		for _, typeURL := range before.order {
			w.envoy.want(typeURL, before.types[typeURL].names...)
		}
	} else {
		w.envoy.reconnect()
	}
	w.toEnvoy = nil
	w.stream = w.relay.Open(Kind{Delta: w.delta}, w.now)
}

// restart is another relay with the memory of this one.
func (w *world) restart() {
	views := reread(w.t, w.relay.Views())
	w.relay = New(w.hooks())
	w.relay.Restore(views)
	w.begins.is = false
	w.own.beginAnew(w.envoy)
}

// settle lets everything happen until nothing does; false: it never ends.
func (w *world) settle() bool {
	for range 10_000 {
		before := w.state()
		w.envoySpeaks()
		w.envoyHears()
		w.upstreamHears()
		w.upstreamSpeaks()
		if w.state() == before && len(w.envoy.asks)+len(w.toEnvoy)+len(w.toUp)+len(w.fromUp) == 0 {
			return true
		}
	}
	return false
}

// state tells whether something happens.
func (w *world) state() [5]int {
	nonces := 0
	if w.up.stream != nil {
		for _, t := range w.up.stream.types {
			nonces += t.nonce
		}
	}
	return [5]int{len(w.envoy.asks), len(w.toEnvoy), len(w.toUp), len(w.fromUp), nonces + w.stream.nonce + w.stream.requests}
}

// has gives what Envoy has of a type.
func (w *world) has(typeURL string) map[string]string {
	found := map[string]string{}
	if t := w.envoy.types[typeURL]; t != nil {
		for n, h := range t.has {
			found[n] = h.content
		}
	}
	return found
}

// check holds what Envoy has against what the upstream has, with transforms. Of what is
// bad it has what was good before, or nothing; with all nothing is bad.
func (w *world) check(all bool) {
	w.t.Helper()
	for typeURL, t := range w.envoy.types {
		want := map[string]string{}
		got := w.has(typeURL)
		maps.DeleteFunc(got, func(n, _ string) bool { return isLocalName(n) }) // see checkLocal
		for n, content := range w.up.resources[typeURL] {
			if !t.all && !slices.Contains(t.names, n) || isLocalName(n) {
				continue
			}
			if content[0] == 'b' && !all {
				delete(got, n)
				continue
			}
			want[n] = content
			if typeURL == listenerType && !w.plain[content] {
				want[n] += w.slots
			}
		}
		if !w.delta && typeURL != listenerType && typeURL != clusterType {
			// The state of the world does not tell what is gone.
			maps.DeleteFunc(got, func(n, _ string) bool { _, there := want[n]; return !there })
		}
		if !maps.Equal(got, want) {
			w.t.Fatalf("of %s Envoy has\n%v, want\n%v", strings.TrimPrefix(typeURL, typePrefix), got, want)
		}
	}
}

package agent

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"

	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/remotewasm"
	"chandler.dev/chandler/internal/xds/relay"
)

// listenerType is the type URL of the resources in which slots are put.
const listenerType = remotewasm.ListenerType

// relayedListeners are the listeners of another control plane on their way to Envoy: what
// slots are put into them, and what Envoy made of that. The relay and the agent ask it in
// goroutines of their own; it waits for nobody.
type relayedListeners struct {
	place func(listener *anypb.Any, own []attach.Slot) (attach.Placed, error)
	// news, of one, is that something is to be looked at.
	news chan struct{}

	mu        sync.Mutex
	own       []attach.Slot // slots of one plugin
	slots     map[attach.Slot]bool
	sites     map[attach.Site]bool // those, and no others, are admitted
	listeners map[string]*relayedListener
	envoys    int               // counts them
	moved     bool              // the places are others than were told
	list      []attach.Listener // what layout gave; nil: it is to be made anew
	// Of a change of own that the agent waits for: what Envoy has not answered for, and
	// why it refuses it.
	changing bool
	awaited  map[string]bool
	refused  string
}

// relayedListener is one of them.
type relayedListener struct {
	up          []byte            // the upstream's
	plain       *chandler.Problem // Envoy refuses up with slots in it
	made, taken *relayedForm      // of up, and what Envoy took last; nil: nothing
	told        []string          // of taken, that it runs without plugins
	held        bool
	envoy       int // for which it was made
}

// relayedForm is a listener as it goes to Envoy.
type relayedForm struct {
	layout attach.Listener
	edited bool
	own    []attach.Slot     // that stand in it
	bare   *chandler.Problem // why it has no places
	// warnings are of what gets no plugins in it.
	warnings []string
}

// without tells what of a listener runs without plugins, and why.
func (f *relayedForm) without() []string {
	if f.bare != nil {
		return []string{f.bare.Error()}
	}
	return f.warnings
}

func newRelayedListeners(place func(*anypb.Any, []attach.Slot) (attach.Placed, error)) *relayedListeners {
	return &relayedListeners{place: place, news: make(chan struct{}, 1), listeners: map[string]*relayedListener{}}
}

// wake has it looked at; mu is held.
func (l *relayedListeners) wake() {
	select {
	case l.news <- struct{}{}:
	default: // it will be anyway
	}
}

// transform is the relay's: it puts slots into a listener, once it is decided which ones.
func (l *relayedListeners) transform(r relay.Resource) (body []byte, ready bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.listeners[r.Name]
	if e == nil {
		e = &relayedListener{}
		l.listeners[r.Name] = e
	}
	e.envoy = l.envoys
	if !bytes.Equal(e.up, r.Body) {
		e.up, e.plain = r.Body, nil
	}
	body, form := l.make(e)
	if e.made == nil || !reflect.DeepEqual(*e.made, *form) {
		l.moved, l.list = true, nil
		l.wake()
	}
	e.made, e.held = form, !l.admitted(&form.layout)
	return body, !e.held
}

// make gives the form in which a listener goes on.
func (l *relayedListeners) make(e *relayedListener) ([]byte, *relayedForm) {
	placed, err := l.place(&anypb.Any{TypeUrl: listenerType, Value: e.up}, l.own)
	form := &relayedForm{layout: placed.Layout}
	switch p := (*chandler.Problem)(nil); {
	case errors.As(err, &p):
		if p.Field != "api_listener" { // a library's, which nobody expects plugins in
			form.bare = notPlaced(placed.Layout.Name, p)
		}
	case e.plain != nil:
		form.bare = e.plain
	default:
		form.edited = placed.Resource.Value != nil && !bytes.Equal(placed.Resource.Value, e.up)
		form.own = slices.DeleteFunc(form.layout.InOrder(l.own), attach.Slot.Shared)
		form.warnings = few(placed.Warnings)
		return placed.Resource.Value, form
	}
	form.layout.Slots, form.layout.Sites, form.layout.Counted = nil, nil, nil
	return e.up, form
}

// maxWarnings is how many are told of one listener, whose chains may be very many.
const maxWarnings = 8

// few gives warnings, or the first ones and how many there are.
func few(warnings []string) []string {
	if n := len(warnings); n > maxWarnings {
		return append(slices.Clone(warnings[:maxWarnings]), fmt.Sprintf("and %d more of that kind", n-maxWarnings))
	}
	return warnings
}

func notPlaced(name string, p *chandler.Problem) *chandler.Problem {
	return chandler.Problemf(p.Code, p.Field, p.Hint, "the listener %s of Envoy's control plane runs without plugins: %s", chandler.Quote(name), p.Message)
}

// admitted tells whether it is decided what stands in all places of a listener.
func (l *relayedListeners) admitted(layout *attach.Listener) bool {
	return !slices.ContainsFunc(layout.Slots, func(s attach.Slot) bool { return !l.slots[s] }) &&
		!slices.ContainsFunc(layout.Sites, func(s attach.Site) bool { return !l.sites[s] })
}

// admit lets listeners go on whose places are all among those, and gives their names.
func (l *relayedListeners) admit(slots []attach.Slot, sites []attach.Site) (names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.slots, l.sites = map[attach.Slot]bool{}, map[attach.Site]bool{}
	for _, s := range slots {
		l.slots[s] = true
	}
	for _, s := range sites {
		l.sites[s] = true
	}
	for name, e := range l.listeners {
		if e.held {
			names = append(names, name)
		}
	}
	return names
}

// relist has other slots of one plugin stand in the listeners, and gives the names of those
// in which that changes something. With an Envoy there its answers are awaited.
func (l *relayedListeners) relist(own []attach.Slot, running bool) (names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.own, l.changing, l.refused, l.awaited = own, running, "", map[string]bool{}
	for name, e := range l.listeners {
		if e.made == nil || e.made.bare != nil {
			continue
		}
		then := slices.DeleteFunc(e.made.layout.InOrder(own), attach.Slot.Shared)
		if !slices.Equal(e.made.own, then) {
			names = append(names, name)
		}
		if e.taken == nil && len(then) > 0 || e.taken != nil && !slices.Equal(e.taken.own, then) {
			l.awaited[name] = running
		}
	}
	if running {
		l.wake()
	}
	return names
}

// tell is the relay's: it notes what Envoy did with listeners.
func (l *relayedListeners) tell(ev relay.Event) {
	if ev.Type != listenerType {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.moved, l.list = true, nil
	for _, name := range ev.Acked {
		if e := l.listeners[name]; e != nil && !e.held { // else it took once more what it has
			e.taken = e.made
			delete(l.awaited, name)
		}
	}
	for _, name := range slices.Concat(ev.Removed, ev.Left) {
		delete(l.listeners, name)
		delete(l.awaited, name)
	}
	for _, name := range ev.Refused {
		if e := l.listeners[name]; e != nil {
			l.refuse(name, e, ev)
		}
	}
	for name, e := range l.listeners {
		if e.envoy != l.envoys { // of an Envoy before, and not there any more
			delete(l.listeners, name)
			delete(l.awaited, name)
		}
	}
	l.dismiss()
	l.wake()
}

// dismiss takes the admission from places that no listener has any more: one that comes
// there is looked at anew, as what belongs there may be another by then.
func (l *relayedListeners) dismiss() {
	slots, sites := l.places()
	maps.DeleteFunc(l.slots, func(s attach.Slot, _ bool) bool { return !slots[s] })
	maps.DeleteFunc(l.sites, func(s attach.Site, _ bool) bool { return !sites[s] })
}

// places are those of what Envoy has and of what is on its way; mu is held.
func (l *relayedListeners) places() (map[attach.Slot]bool, map[attach.Site]bool) {
	slots, sites := map[attach.Slot]bool{}, map[attach.Site]bool{}
	for _, e := range l.listeners {
		for _, form := range []*relayedForm{e.made, e.taken} {
			if form == nil {
				continue
			}
			for _, s := range form.layout.Slots {
				slots[s] = true
			}
			for _, s := range form.layout.Sites {
				sites[s] = true
			}
		}
	}
	return slots, sites
}

// amend is the relay's: what Envoy refuses with slots in it is tried without, and only
// what it refuses then as well is its control plane's matter. Of a change of slots that is
// new in a listener which it has, that change is taken back instead, by refuse.
func (l *relayedListeners) amend(name string, ours bool, words string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.listeners[name]
	if e == nil || e.made == nil || !e.made.edited || e.plain != nil || ours && l.changing && l.awaited[name] {
		return false
	}
	delete(l.awaited, name)
	e.plain = chandler.Problemf(chandler.CodeRejected, "", "", "the listener %s of Envoy's control plane runs without plugins, as Envoy refuses it with them: %s",
		chandler.Quote(name), refusalOf(words))
	return true
}

// refuse deals with a listener that Envoy refuses whatever stands in it, or for a change
// of slots.
func (l *relayedListeners) refuse(name string, e *relayedListener, ev relay.Event) {
	if l.changing && l.awaited[name] && slices.Contains(ev.Ours, name) {
		l.refused = "the listeners cannot take it in: " + refusalOf(ev.Words)
		return
	}
	delete(l.awaited, name)
	e.made = e.taken // Envoy goes on with that
}

func refusalOf(words string) string { return chandler.Printable(listenerWords(words), reasonLimit) }

// listenerWords is what Envoy says of listeners, without what it begins with.
func listenerWords(words string) string {
	_, why, ok := strings.Cut(words, "Error adding/updating listener(s) ")
	if !ok {
		return words
	}
	return why
}

// relayedNews is what the agent is to be told of listeners.
type relayedNews struct {
	laid     *Laid // nil: the places are those that it knows
	answered bool  // there is nothing that Envoy has not answered for
	refused  string
	changing bool
	// without are listeners that Envoy has and of which something runs without plugins:
	// sentences for people.
	without []string
}

// look gives what is new.
func (l *relayedListeners) look() (n relayedNews) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n.changing, n.refused, n.answered = l.changing, l.refused, len(l.awaited) == 0
	if l.moved {
		l.moved, n.laid, n.without = false, l.laid(), l.without()
	}
	return n
}

// without gives what is to be told of listeners that Envoy took; mu is held.
func (l *relayedListeners) without() (news []string) {
	for _, name := range slices.Sorted(maps.Keys(l.listeners)) {
		e := l.listeners[name]
		if e.taken == nil || slices.Equal(e.told, e.taken.without()) {
			continue
		}
		e.told = e.taken.without()
		for _, why := range e.told {
			if e.taken.bare == nil {
				why = "in the listener " + chandler.Quote(name) + ": " + why
			}
			news = append(news, why)
		}
	}
	return news
}

// warnings gives, by the name of a listener, what of it runs without plugins.
func (l *relayedListeners) warnings() map[string][]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := map[string][]string{}
	for _, e := range l.listeners {
		if form := e.form(); form != nil {
			all[form.layout.Name] = form.without()
		}
	}
	return all
}

// settled ends the change that was awaited.
func (l *relayedListeners) settled() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changing, l.refused, l.awaited = false, "", nil
}

// laid gives all places, of what Envoy has and of what is on its way; mu is held.
func (l *relayedListeners) laid() *Laid {
	slots, sites := l.places()
	ev := &Laid{}
	for _, name := range slices.Sorted(maps.Keys(l.listeners)) {
		e := l.listeners[name]
		if form := e.form(); form != nil && form.bare != nil {
			ev.Bare = append(ev.Bare, Bare{Name: name, Mode: form.layout.Mode, Port: form.layout.Port, Why: *form.bare})
		}
	}
	ev.Slots = slices.SortedFunc(maps.Keys(slots), attach.Slot.Compare)
	ev.Sites = slices.SortedFunc(maps.Keys(sites), attach.Site.Compare)
	return ev
}

// form is what Envoy has or, if it has nothing yet, will get.
func (e *relayedListener) form() *relayedForm {
	if e.taken != nil {
		return e.taken
	}
	return e.made
}

// layout gives the listeners that Envoy has or will get, in the order of their names. It
// must not be changed.
func (l *relayedListeners) layout() []attach.Listener {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.list == nil {
		l.list = []attach.Listener{}
		for _, name := range slices.Sorted(maps.Keys(l.listeners)) {
			if form := l.listeners[name].form(); form != nil {
				l.list = append(l.list, form.layout)
			}
		}
	}
	return l.list
}

// another says that Envoy is another process: it has none of them, and may be sent others.
func (l *relayedListeners) another() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.envoys++
	l.changing, l.refused, l.awaited, l.list = false, "", nil, nil
	for _, e := range l.listeners {
		e.taken = nil
		e.plain = nil
	}
}

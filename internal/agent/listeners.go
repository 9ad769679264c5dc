package agent

import (
	"context"
	"errors"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/durable"
)

// listenersFile is a content of the file that Envoy reads its listeners from.
type listenersFile struct {
	text    []byte
	version string
	err     error // why there is none
}

// How often Envoy is asked about its listeners, and how long it may take to
// notice a new file before it is written once more.
const (
	listenersPoll     = 10 * time.Millisecond
	listenersPatience = 15 * time.Second
)

// writeListeners puts the file in place, as a whole.
func (a *Agent) writeListeners(f listenersFile) error {
	if a.derived.UpstreamListeners {
		return nil
	}
	if f.err != nil {
		return f.err
	}
	return durable.Write(a.shared(), a.derived.ListenersFile, f.text)
}

// firstListeners gives the file that an Envoy without plugins begins with. Where
// no shared slot holds its listeners shut there are none until it is known which
// plugins belong into them.
func (a *Agent) firstListeners() listenersFile {
	if a.derived.UpstreamListeners {
		return listenersFile{}
	}
	if len(a.derived.Slots) == 0 {
		return listenersFile{text: a.derived.NoListeners()}
	}
	return listenersFile{text: a.derived.Listeners, version: a.derived.ListenersVersion}
}

// listedSlots are the slots of one plugin in the listeners that an Envoy was left
// with.
func (a *Agent) listedSlots() ([]attach.Slot, error) {
	if a.derived.UpstreamListeners {
		return a.keptSlots()
	}
	text, err := a.readListeners()
	if err != nil {
		return nil, err
	}
	return attach.OwnSlots(text)
}

func (a *Agent) readListeners() ([]byte, error) { return os.ReadFile(a.derived.ListenersFile) }

// relist runs a WriteListeners: what Envoy begins with while there is none, else
// what followListeners writes next.
func (a *Agent) relist(e WriteListeners) {
	if a.relayed != nil {
		a.relistUpstream(e.Own)
		return
	}
	var file listenersFile
	file.text, file.version, file.err = a.derived.ListenersWith(e.Own)
	if !a.running() {
		a.listeners = file
		if a.cfg.NoChild { // the next one may begin at any time
			if err := a.writeListeners(file); err != nil {
				a.log.Error("the listeners for the next Envoy cannot be written", "error", err)
			}
		}
		return
	}
	select {
	case <-a.relistings: // of an Envoy that is gone
	default:
	}
	a.relistings <- file
}

// followListeners writes the listeners that are to be and tells what becomes of
// them, until ctx or the present Envoy ends; and, once, when all are active for
// the first time.
func (a *Agent) followListeners(ctx context.Context, g *errgroup.Group) {
	var f interface{ run(context.Context) } = &listenersFollower{agent: a, awaited: a.listeners.version, since: time.Now(), taken: a.adopted, open: a.adopted}
	if a.relayed != nil {
		f = &relayedFollower{agent: a, since: time.Now(), open: a.adopted}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	a.unfollow = func() {
		cancel()
		<-done
	}
	g.Go(func() error {
		defer close(done)
		defer cancel()
		f.run(ctx)
		return nil
	})
}

func (f *listenersFollower) run(ctx context.Context) {
	a := f.agent
	for {
		var again <-chan time.Time
		if f.due || f.awaited != "" || !f.open && f.taken {
			again = time.After(listenersPoll)
		}
		select {
		case <-ctx.Done():
			return
		case file := <-a.relistings:
			f.file, f.due, f.awaited = file, true, ""
		case <-again:
			f.look(ctx)
		}
	}
}

// listenersFollower is the state of followListeners.
type listenersFollower struct {
	agent *Agent
	file  listenersFile
	due   bool // file is to be written
	// awaited is the version that Envoy has not answered for; empty: none.
	awaited string
	since   time.Time
	refused int64 // how often Envoy had refused a file before this one
	mark    int64 // the end of Envoy's log then
	waits   waits
	taken   bool // one file with listeners
	open    bool // all were active once
	told    bool // that it takes long
}

// begin writes the file that is due.
func (f *listenersFollower) begin(ctx context.Context) {
	a := f.agent
	st, err := f.stat(ctx)
	if err != nil {
		return // Envoy does not answer yet
	}
	f.refused, f.mark = st.refused, a.envoyLog.mark()
	f.due, f.awaited, f.since = false, f.file.version, time.Now()
	a.metrics.listings.Inc()
	if err := a.writeListeners(f.file); err != nil {
		f.awaited = ""
		a.send(ctx, message{event: ListenersRefused{Reason: "the listeners cannot be written: " + chandler.Printable(err.Error(), reasonLimit)}})
	}
}

// stat asks Envoy, which does not answer while it compiles a module.
func (f *listenersFollower) stat(ctx context.Context) (listenersStat, error) {
	ctx, cancel := context.WithTimeout(ctx, listenersPatience)
	defer cancel()
	return f.agent.envoyAdmin.listeners(ctx)
}

// look asks what became of the file, and then whether all listeners are active.
func (f *listenersFollower) look(ctx context.Context) {
	switch {
	case f.due:
		f.begin(ctx)
		return
	case f.awaited == "":
		f.lookReady(ctx)
		return
	}
	st, err := f.stat(ctx)
	switch {
	case err != nil: // it will be asked again
	case st.refused > f.refused && !f.open:
		if f.refused = st.refused; !f.agent.cfg.NoChild { // else it goes on, and may get better ones
			f.awaited = ""
		}
		f.agent.send(ctx, message{fatal: errListenersRefused})
	case st.refused > f.refused:
		f.awaited = ""
		why := f.reason()
		f.agent.log.Warn("envoy refused a change of its listeners", "why", why)
		f.agent.send(ctx, message{event: ListenersRefused{Reason: why}})
	case st.version == f.awaited && (!f.open || st.warming == 0):
		f.awaited, f.taken = "", true
		f.agent.send(ctx, message{event: ListenersTaken{}})
	case f.file.text != nil && time.Since(f.since) > listenersPatience:
		f.agent.log.Warn("envoy has not taken in the new listeners; they are written once more")
		f.since = time.Now()
		_ = f.agent.writeListeners(f.file) // it is looked at again
	}
}

// lookReady asks whether Envoy is up and no listener waits for its slots. An Envoy
// that began without listeners says that it is ready while they still wait.
func (f *listenersFollower) lookReady(ctx context.Context) {
	poll, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if v := f.agent.view.Load(); v != nil && !f.told && time.Since(f.since) > listenersPatience {
		f.told = true
		f.agent.log.Warn("envoy has started and its listeners are not active yet", "why", strings.Join(v.unready, "; "))
	}
	f.waits.ask(ctx, f.agent, f.since)
	if st, err := f.agent.envoyAdmin.listeners(poll); err != nil || st.warming > 0 {
		return
	}
	if _, err := f.agent.envoyAdmin.get(poll, "/ready"); err == nil {
		f.open = true
		f.agent.send(ctx, message{event: ListenersOpen{}})
	}
}

// reason is what Envoy logged about the listeners that it refused.
func (f *listenersFollower) reason() string {
	const adding = "Error adding/updating listener(s) "
	for _, line := range f.agent.envoyLog.since(f.mark) {
		if _, why, ok := strings.Cut(line, adding); ok {
			return "the listeners cannot take it in: " + chandler.Printable(why, reasonLimit)
		}
	}
	return errListenersRefused.Error()
}

var errListenersRefused = errors.New("envoy refused the listeners")

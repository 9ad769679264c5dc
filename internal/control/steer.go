package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/rollout"
)

// Orders by hand move the rollout record and never the resource, which may be kept in
// a repository that would put it back. Any replica takes them: whoever leads finds them
// in the record.

// Verb is an order about a rollout.
type Verb string

// The verbs, with the words of Argo Rollouts.
const (
	Promote     Verb = "promote"
	PromoteFull Verb = "promote --full"
	Pause       Verb = "pause"
	Resume      Verb = "resume"
	Abort       Verb = "abort"
	Undo        Verb = "undo"
	Retry       Verb = "retry"
	Unpin       Verb = "unpin"
)

// Steering is an order about the rollout of a plugin.
type Steering struct {
	Key  chandler.Key
	Verb Verb
	// Release is that to go back to, of Undo: at least minPrefix digits of its id.
	// Empty: to the one before.
	Release string
	By, Why string
}

const (
	minPrefix   = 8
	maxDisabled = 64  // orders of one plugin
	maxWord     = 512 // bytes of what somebody says
)

// ErrNoPlugin is an order about a plugin that is not there, and ErrNotNow, which an
// error wraps, one that makes no sense where the rollout is.
var (
	ErrNoPlugin = errors.New("there is no such plugin")
	ErrNotNow   = errors.New("the rollout is not where that makes sense")
)

// notNow is an error that wraps ErrNotNow and says why in its own words.
type notNow string

func (e notNow) Error() string { return string(e) }
func (e notNow) Unwrap() error { return ErrNotNow }

// orderly is all that an order is judged by.
type orderly struct {
	rollout  record.Rollout
	plan     *chandler.RolloutPlan
	releases []*chandler.Release
	gone     bool
	lacks    func(chandler.ReleaseID) string // why a release cannot be given to proxies
	objects  func(chandler.ReleaseID) string // what is against giving it
	now      time.Time
}

// Steer gives an order, and gives the rollout as it is then. The error wraps ErrNotNow
// when it makes no sense.
func (c *Control) Steer(ctx context.Context, s Steering) (RolloutView, error) {
	s.Why = chandler.Printable(s.Why, maxWord)
	next, err := c.order(ctx, s.Key, func(in orderly) (record.Rollout, error) {
		if in.rollout.UID == "" {
			return in.rollout, notNow("nothing was ever rolled out of it")
		}
		return steered(in, s)
	})
	if err != nil {
		return RolloutView{}, err
	}
	c.ordered(s.Key, chandler.EventSteered, s.By, string(s.Verb)+because(s.Why)+"; "+releaseText(next.Release)+" is to be in force")
	return c.viewOf(s.Key)
}

// Disable takes a plugin out: of one proxy, of those with labels, or of all. It holds at
// once, until Enable ends it; an order about the same proxies takes the place of the one
// before.
func (c *Control) Disable(ctx context.Context, key chandler.Key, d chandler.Disablement) (RolloutView, error) {
	d.Reason = chandler.Printable(d.Reason, maxWord)
	_, err := c.order(ctx, key, func(in orderly) (record.Rollout, error) {
		ro := in.rollout
		d.At = in.now
		ro.Disabled = append(without(ro.Disabled, &d), d)
		if len(ro.Disabled) > maxDisabled {
			return ro, notNow(fmt.Sprintf("%d orders take it out already, limit %d: end some, or give one by labels", len(ro.Disabled)-1, maxDisabled))
		}
		return ro, nil
	})
	if err != nil {
		return RolloutView{}, err
	}
	c.ordered(key, chandler.EventDisabled, d.By, "taken out"+where(&d)+because(d.Reason))
	return c.viewOf(key)
}

// Enable ends the order about one proxy, or labels; which names neither: all of them.
func (c *Control) Enable(ctx context.Context, key chandler.Key, which chandler.Disablement) (RolloutView, error) {
	_, err := c.order(ctx, key, func(in orderly) (record.Rollout, error) {
		ro := in.rollout
		left := without(ro.Disabled, &which)
		if which.Target() == "" {
			left = nil
		}
		if len(left) == len(ro.Disabled) {
			return ro, notNow("no such order takes it out")
		}
		ro.Disabled = left
		return ro, nil
	})
	if err != nil {
		return RolloutView{}, err
	}
	c.ordered(key, chandler.EventEnabled, which.By, "no longer taken out"+where(&which))
	return c.viewOf(key)
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return ": " + why
}

func where(d *chandler.Disablement) string {
	if t := d.Target(); t != "" {
		return " on " + t
	}
	return " everywhere"
}

// without leaves out the orders about the same proxies as one.
func without(all []chandler.Disablement, d *chandler.Disablement) []chandler.Disablement {
	return slices.DeleteFunc(slices.Clone(all), func(o chandler.Disablement) bool { return o.Target() == d.Target() })
}

// ordered tells of an order that was carried out.
func (c *Control) ordered(key chandler.Key, what chandler.EventReason, by, message string) {
	c.Emit(chandler.Event{Key: key, Reason: what, By: by, Message: message, Warning: what == chandler.EventDisabled})
}

// find gives a plugin's entry, or its ghost's.
func (c *Control) find(key chandler.Key) (e *entry, gone bool, err error) {
	p := c.published.Load()
	if p == nil {
		return nil, false, c.Ready()
	}
	for _, e := range p.entries {
		if e.object.Key == key {
			return e, false, nil
		}
	}
	for _, e := range p.ghosts {
		if e.object.Key == key {
			return e, true, nil
		}
	}
	return nil, false, ErrNoPlugin
}

func (c *Control) viewOf(key chandler.Key) (RolloutView, error) {
	e, gone, err := c.find(key)
	if err != nil {
		return RolloutView{}, err
	}
	return c.rollout(e, c.fleet.list(), gone), nil
}

// order moves a plugin's record as change says, from where it is, and returns when this
// replica goes by it.
func (c *Control) order(ctx context.Context, key chandler.Key, change func(orderly) (record.Rollout, error)) (record.Rollout, error) {
	e, gone, err := c.find(key)
	if err != nil {
		return record.Rollout{}, err
	}
	in := orderly{rollout: *e.course.rollout, plan: c.planOf(e), releases: e.history, gone: gone, lacks: e.lacks, objects: e.objects, now: c.cfg.Now().UTC()}
	for n := 1; ; n++ {
		next, err := change(in)
		if err != nil {
			return next, err
		}
		next.UID, next.Key, next.UpdatedAt = e.object.UID, key, in.now
		var old *record.Rollout
		if in.rollout.UID != "" {
			old = &in.rollout
		}
		stored, err := c.swapExactly(ctx, old, next)
		switch {
		case err == nil:
			return *stored, c.goBy(ctx, *stored)
		case errors.Is(err, record.ErrConflict) && stored != nil && n < maxSwaps:
			in.rollout = *stored
		default:
			return next, fmt.Errorf("the order cannot be recorded: %w", err)
		}
	}
}

// goBy waits until a record is published here, or a newer one.
func (c *Control) goBy(ctx context.Context, ro record.Rollout) error {
	select {
	case c.steered <- ro:
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		changed := c.fleet.watch()
		e, _, err := c.find(ro.Key)
		if err != nil || e.object.UID != ro.UID {
			return nil // there is nothing to wait for any more
		}
		if at := e.course.rollout; at.Revision != 0 && !older(at, &ro) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// steered gives the record that an order makes of one.
func steered(in orderly, s Steering) (record.Rollout, error) {
	ro := in.rollout
	st := ro.Stage
	if st == nil && slices.Contains([]Verb{Promote, PromoteFull, Pause, Resume, Abort}, s.Verb) {
		return ro, notNow("no rollout is under way: " + resting(&ro))
	}
	if s.Verb == Promote || s.Verb == PromoteFull {
		if why := in.objects(ro.Release); why != "" {
			return ro, notNow(why)
		}
	}
	switch s.Verb {
	case Promote, Resume:
		if s.Verb == Resume && st.Phase != chandler.RolloutPaused {
			return ro, notNow("the rollout is not paused")
		}
		if st.Step == unbegun {
			return ro, notNow("its first step is about to begin")
		}
		state := st.State
		state.Phase, state.Reason, state.Message = chandler.RolloutProgressing, "", ""
		next := staged(ro, state)
		next.Stage.Order = map[Verb]record.Order{Promote: record.Promote, Resume: record.Resume}[s.Verb]
		return next, nil
	case PromoteFull:
		return arrived(ro, in.now), nil
	case Pause:
		if st.Phase == chandler.RolloutPaused {
			return ro, notNow("the rollout is paused already: " + st.Message)
		}
		return staged(ro, rollout.Halt(st.State, "paused by "+s.By+because(s.Why))), nil
	case Abort:
		if why := in.lacks(st.Base.Release); why != "" && st.Step != unbegun {
			return ro, notNow("it cannot be taken back: " + why)
		}
		why := record.Failure{Reason: chandler.CodeRolloutAborted, Message: "aborted by " + s.By + because(s.Why), At: in.now}
		return takenBack(ro, why, record.Aborted, s.By), nil
	case Retry:
		return retried(in, s)
	case Undo:
		return undone(in, s)
	case Unpin:
		return unpinned(in, s)
	}
	return ro, fmt.Errorf("%s is no order", chandler.Quote(string(s.Verb)))
}

// resting says what there is instead of a rollout under way.
func resting(ro *record.Rollout) string {
	switch {
	case ro.Pinned:
		return releaseText(ro.Release) + " is pinned"
	case ro.Failure != nil:
		return "the last one was taken back; retry begins it again"
	}
	return "everyone has " + releaseText(ro.Release)
}

// retried begins again what was taken back.
func retried(in orderly, s Steering) (record.Rollout, error) {
	ro := in.rollout
	if in.gone && ro.Kept != nil && ro.Kept.Stays {
		return leaving(ro, *ro.Kept, in.now), nil
	}
	if ro.Wanted == nil || !slices.Contains(ro.Bad, ro.Wanted.Release) || ro.Pinned {
		return ro, notNow("nothing was taken back that could be tried again: " + resting(&ro))
	}
	id := ro.Wanted.Release
	if why := in.objects(id); why != "" {
		return ro, notNow(why)
	}
	ro.Bad = slices.DeleteFunc(slices.Clone(ro.Bad), func(b chandler.ReleaseID) bool { return b == id })
	to := goal{release: id, generation: ro.Generation, scope: ro.Wanted.Scope, by: s.By, why: "retry" + because(s.Why)}
	return bound(ro, to, in.plan, in.now), nil
}

// undone goes back to an earlier release, for everyone at once, and stays there.
func undone(in orderly, s Steering) (record.Rollout, error) {
	ro := in.rollout
	if in.gone {
		return ro, notNow("its resource is gone; abort keeps the plugin where it is")
	}
	to, err := earlier(in, s.Release)
	if err != nil {
		return ro, err
	}
	if why := cmp.Or(in.objects(to.ID), in.lacks(to.ID)); why != "" {
		return ro, notNow(why)
	}
	wanted := ro.Wanted
	if wanted == nil {
		wanted = &record.Assigned{Release: ro.Release, Scope: ro.Scope}
	}
	if ro.Stage == nil {
		ro.Outcome(ro.Release, record.Undone, s.By, s.Why)
	} else {
		ro.Outcome(ro.Release, record.Aborted, s.By, s.Why)
	}
	scope := wanted.Scope
	if base := everyones(&in.rollout); base.Release == to.ID {
		scope = base.Scope
	}
	ro = bound(ro, goal{release: to.ID, generation: to.Generation, scope: scope, by: s.By, why: "undo" + because(s.Why)}, nil, in.now)
	if ro.Pinned = true; wanted.Release != to.ID {
		ro.Wanted, ro.Failure = wanted, in.rollout.Failure
	}
	return ro, nil
}

// earlier finds the release that an undo goes back to.
func earlier(in orderly, prefix string) (*chandler.Release, error) {
	ro := &in.rollout
	if prefix != "" {
		if len(prefix) < minPrefix {
			return nil, notNow(fmt.Sprintf("%s is too short for a release: give at least %d digits", chandler.Quote(prefix), minPrefix))
		}
		for _, r := range in.releases {
			if strings.HasPrefix(string(r.ID), prefix) {
				return r, nil
			}
		}
		return nil, notNow("no release of its history that is still recorded begins with " + chandler.Quote(prefix))
	}
	known := func(id chandler.ReleaseID) *chandler.Release {
		i := slices.IndexFunc(in.releases, func(r *chandler.Release) bool { return r.ID == id })
		if id == "" || i < 0 {
			return nil
		}
		return in.releases[i]
	}
	if ro.Stage != nil {
		if r := known(ro.Stage.Base.Release); r != nil {
			return r, nil
		}
		return nil, notNow("there was no release before this one; abort takes it back")
	}
	for _, h := range ro.History {
		if r := known(h.Release); r != nil && h.Release != ro.Release && (h.Outcome == record.InForce || h.Outcome == record.Superseded) {
			return r, nil
		}
	}
	if r := known(ro.Previous); r != nil && len(ro.History) == 0 {
		return r, nil
	}
	return nil, notNow("no earlier release is recorded to go back to")
}

// unpinned goes on to what the resource means.
func unpinned(in orderly, s Steering) (record.Rollout, error) {
	ro := in.rollout
	if !ro.Pinned {
		return ro, notNow("nothing is pinned")
	}
	ro.Pinned = false
	if ro.Wanted == nil || slices.Contains(ro.Bad, ro.Wanted.Release) {
		return ro, nil
	}
	if why := in.objects(ro.Wanted.Release); why != "" {
		return ro, notNow(why)
	}
	to := goal{release: ro.Wanted.Release, generation: ro.Generation, scope: ro.Wanted.Scope, by: s.By, why: "unpin" + because(s.Why)}
	return bound(ro, to, in.plan, in.now), nil
}

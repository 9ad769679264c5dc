package kube

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
)

var (
	testKey = chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: "p"}
	began   = time.Unix(1_700_000_000, 0).UTC()
)

// about gives a status by its conditions: "True Accepted", "True Resolved" and so on.
func about(generation int64, accepted, resolved, programmed, ready string) statusFields {
	f := statusFields{ObservedGeneration: generation, Chandler: &details{Ready: "1/1"}}
	for i, c := range []string{accepted, resolved, programmed, ready} {
		is, why, _ := strings.Cut(c, " ")
		why, message, _ := strings.Cut(why, ": ")
		f.Conditions = append(f.Conditions, conditionJSON{
			Type:   []chandler.ConditionType{chandler.ConditionAccepted, chandler.ConditionResolvedRefs, chandler.ConditionProgrammed, chandler.ConditionReady}[i],
			Status: chandler.ConditionStatus(is), Reason: chandler.Code(why), Message: message, ObservedGeneration: generation, LastTransitionTime: stamp(began),
		})
	}
	return f
}

func good(generation int64) statusFields {
	return about(generation, "True Accepted", "True Resolved: it", "True Programmed", "True Ready")
}

func onTheWay(generation int64) statusFields {
	return about(generation, "True Accepted", "True Resolved: it", "False Progressing", "False Progressing")
}

// clerk drives a ledger by a clock of its own.
type clerk struct {
	t *testing.T
	*ledger
	now     time.Time
	version uint64
}

func newClerk(t *testing.T) *clerk {
	return &clerk{t: t, ledger: newLedger(), now: began}
}

func (c *clerk) wants(uid string, f statusFields) {
	c.want(map[chandler.Key]wanted{testKey: {uid, f, f.text()}})
}

func (c *clerk) shows(uid string, f statusFields) {
	c.version++
	c.see(testKey, &sighted{uid, c.version, f})
}

// after lets time pass, and gives the write that is due then, or nil.
func (c *clerk) after(d time.Duration) *write {
	c.t.Helper()
	c.now = c.now.Add(d)
	writes, _ := c.due(c.now, 8)
	if len(writes) > 1 {
		c.t.Fatalf("%d writes", len(writes))
	}
	if len(writes) == 0 {
		return nil
	}
	return &writes[0]
}

// lands is a write that goes well; the cluster keeps what keep gives.
func (c *clerk) lands(w *write, keep func(*statusFields)) []turn {
	c.t.Helper()
	if w == nil {
		c.t.Fatal("no write")
	}
	f := w.fields
	if keep != nil {
		keep(&f)
	}
	c.version++
	now := &sighted{w.uid, c.version, f}
	turns := c.done(written{write: *w, shown: now}, c.now)
	c.see(testKey, now)
	return turns
}

func (c *clerk) nothing(d time.Duration, why string) {
	c.t.Helper()
	if w := c.after(d); w != nil {
		c.t.Errorf("%s: a write of %s", why, w.fields.text())
	}
}

// The first is written at once, then one a second, and the newest wins.
func TestWritesArePaced(t *testing.T) {
	t.Parallel()
	c := newClerk(t)
	c.shows("u", statusFields{})
	c.wants("u", good(1))
	first := c.after(0)
	c.wants("u", good(2))
	c.nothing(5*time.Second, "one is under way")
	c.lands(first, nil)
	second := c.after(0)
	if second == nil || second.fields.ObservedGeneration != 2 {
		t.Fatalf("then %+v", second)
	}
	c.lands(second, nil)
	for i := range 10 {
		c.wants("u", good(int64(3+i)))
		c.nothing(90*time.Millisecond, "within the second")
	}
	if third := c.after(100 * time.Millisecond); third == nil || third.fields.ObservedGeneration != 12 {
		t.Errorf("after the second %+v", third)
	}
}

// What is as it was is not written: not after an answer, not after a restart, not
// where the cluster does not keep all of it, and not for others' fields.
func TestNothingIsWrittenTwice(t *testing.T) {
	t.Parallel()
	c := newClerk(t)
	c.shows("u", statusFields{})
	c.wants("u", good(1))
	c.lands(c.after(0), func(f *statusFields) { f.Chandler = nil })
	c.nothing(time.Minute, "a definition that does not keep all fields")
	c.shows("u", c.subjects[testKey].shown.fields)
	c.nothing(time.Minute, "a change elsewhere in the resource")
	c.wants("u", good(1))
	c.nothing(time.Minute, "the same again")

	c = newClerk(t) // after a restart, at a time of its own
	c.shows("u", good(1))
	now := good(1)
	for i := range now.Conditions {
		now.Conditions[i].LastTransitionTime = stamp(began.Add(time.Hour))
	}
	c.wants("u", now)
	c.nothing(time.Minute, "what the cluster shows")
	c.shows("u", statusFields{})
	if w := c.after(0); w == nil {
		t.Error("a status that was wiped stays so")
	}
}

// Nothing is written to a resource of another uid, to none, and when nothing is
// known.
func TestNothingIsWrittenToOthers(t *testing.T) {
	t.Parallel()
	c := newClerk(t)
	c.wants("u", good(1))
	c.nothing(time.Minute, "no resource")
	c.shows("other", statusFields{})
	c.nothing(time.Minute, "another uid")
	c.shows("u", statusFields{})
	c.want(nil)
	c.nothing(time.Minute, "nothing is known")
	c.wants("u", good(1))
	w := c.after(0)
	c.see(testKey, nil)
	c.want(nil)
	if turns := c.done(written{write: *w, err: errors.New("not found")}, c.now); turns != nil || len(c.subjects)+len(c.open)+c.busy != 0 {
		t.Errorf("left of a deleted resource: %d subjects, %d open, %d busy, %v", len(c.subjects), len(c.open), c.busy, turns)
	}
}

// A write that fails is tried again, less and less often, and with what is true
// by then.
func TestFailedWrites(t *testing.T) {
	t.Parallel()
	c := newClerk(t)
	c.shows("u", statusFields{})
	c.wants("u", good(1))
	w := c.after(0)
	for _, wait := range []time.Duration{1, 2, 4, 8, 16, 30, 30} {
		c.done(written{write: *w, err: errors.New("away")}, c.now)
		c.nothing(wait*time.Second-time.Millisecond, "before its time")
		c.wants("u", good(w.fields.ObservedGeneration+1))
		if w = c.after(time.Millisecond); w == nil {
			t.Fatalf("no try after %d s", wait)
		}
	}
	c.lands(w, nil)
	if w.fields.ObservedGeneration != 8 {
		t.Errorf("written is generation %d", w.fields.ObservedGeneration)
	}
	c.wants("u", good(9))
	c.lands(c.after(time.Second), nil) // as if nothing had been
}

// What is about to be over waits a moment, and a plugin that goes well is written
// once.
func TestOnItsWayWaits(t *testing.T) {
	t.Parallel()
	c := newClerk(t)
	c.shows("u", statusFields{})
	c.wants("u", about(1, "True Accepted", "Unknown Resolving", "Unknown Resolving", "Unknown Resolving"))
	c.nothing(0, "resolving")
	c.wants("u", onTheWay(1))
	c.nothing(onItsWay-time.Millisecond, "on its way")
	if w := c.after(time.Millisecond); w == nil {
		t.Error("it waits without end")
	}

	c = newClerk(t)
	c.shows("u", statusFields{})
	c.wants("u", onTheWay(1))
	c.nothing(time.Millisecond, "on its way")
	c.wants("u", good(1))
	c.lands(c.after(0), nil)
	c.nothing(time.Minute, "it is there")
}

// No more than the limit are under way, and the others follow.
func TestWritesAreBounded(t *testing.T) {
	t.Parallel()
	l := newLedger()
	all := map[chandler.Key]wanted{}
	for i := range 20 {
		k := testKey
		k.Name = strings.Repeat("p", i+1)
		all[k] = wanted{"u", good(1), good(1).text()}
		l.see(k, &sighted{"u", 1, statusFields{}})
	}
	l.want(all)
	begun := 0
	for {
		writes, _ := l.due(began, 8)
		if begun += len(writes); len(writes) == 0 {
			break
		}
		if l.busy > 8 {
			t.Fatalf("%d under way", l.busy)
		}
		for _, w := range writes {
			l.done(written{write: w, shown: &sighted{"u", 2, w.fields}}, began)
		}
	}
	if begun != 20 || l.busy != 0 {
		t.Errorf("%d written, %d under way", begun, l.busy)
	}
}

// Events are told at turns, each once.
func TestTurns(t *testing.T) {
	t.Parallel()
	refused := about(2, "False SpecValue: no", "True Resolved: it", "False SpecValue", "False SpecValue")
	unresolved := about(2, "True Accepted", "False NotFound: no such tag", "False NotFound", "False NotFound")
	rejected := about(2, "True Accepted", "True Resolved: other", "False Rejected: Envoy says no", "False Rejected")
	retrying := about(2, "True Accepted", "True Resolved: other", "False Progressing", "False Progressing")
	trapped := about(1, "True Accepted", "True Resolved: it", "True Programmed", "False VMTrap: it faults")
	for name, c := range map[string]struct {
		steps []statusFields
		want  []string
	}{
		"good":              {[]statusFields{{}, good(1)}, []string{"Resolved", "Programmed"}},
		"slow":              {[]statusFields{{}, onTheWay(1), good(1)}, []string{"Resolved", "Programmed"}},
		"as it was":         {[]statusFields{good(1), good(1)}, nil},
		"a restart":         {[]statusFields{good(1), onTheWay(1), good(1)}, nil},
		"a proxy joins":     {[]statusFields{{}, good(1), onTheWay(1), good(1)}, []string{"Resolved", "Programmed"}},
		"configured":        {[]statusFields{good(1), good(2)}, []string{"Programmed"}},
		"invalid":           {[]statusFields{good(1), refused, refused}, []string{"!SpecValue"}},
		"invalid and cured": {[]statusFields{good(1), refused, good(3)}, []string{"!SpecValue", "Programmed"}},
		"not found":         {[]statusFields{good(1), unresolved, good(2)}, []string{"!NotFound", "Programmed"}},
		"rejected":          {[]statusFields{good(1), rejected, retrying, rejected, retrying, rejected}, []string{"Resolved", "!Rejected"}},
		"rejected and cured": {[]statusFields{good(1), rejected, about(2, "True Accepted", "True Resolved: other", "True Programmed", "True Ready")},
			[]string{"Resolved", "!Rejected", "Programmed"}},
		"faults":                {[]statusFields{good(1), trapped, trapped, good(1), trapped}, []string{"!VMTrap", "!VMTrap"}},
		"rejected, a restart":   {[]statusFields{rejected, retrying, rejected}, nil},
		"on its way, restart":   {[]statusFields{onTheWay(1), good(1)}, []string{"Programmed"}},
		"nobody to be in force": {[]statusFields{good(1), about(1, "True Accepted", "True Resolved: it", "Unknown NoProxies", "Unknown NoProxies"), good(1)}, nil},
	} {
		var ts turns
		var got []string
		for i := 1; i < len(c.steps); i++ {
			for _, e := range ts.of(&c.steps[i-1], &c.steps[i], began) {
				mark := ""
				if e.warning {
					mark = "!"
				}
				got = append(got, mark+string(e.reason))
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: told %v, want %v", name, got, c.want)
		}
	}
}

// However often a plugin turns, its Events are few.
func TestTurnsAreBounded(t *testing.T) {
	t.Parallel()
	var ts turns
	n, now := 0, began
	for g := int64(1); g < 1000; g++ {
		before, after := good(g), good(g+1)
		n += len(ts.of(&before, &after, now))
		now = now.Add(time.Second)
	}
	if n < turnBurst || n > turnBurst+17 {
		t.Errorf("%d Events in 1000 s", n)
	}
}

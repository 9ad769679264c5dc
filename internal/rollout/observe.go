package rollout

import (
	"slices"
	"time"

	"chandler.dev/chandler"
)

// Observed is what is known, at one moment, of the proxies that a plugin selects.
// Those from which somebody took it out are not among them.
type Observed struct {
	UID  string
	Type chandler.FilterType
	// Heard is since when this control plane hears of proxies: it waits a while for
	// those that were connected before. Zero: for ever.
	Heard   time.Time
	Proxies []Proxy
}

// Proxy is one of them.
type Proxy struct {
	chandler.Node
	Connected bool
	Since     time.Time // when it last came or went
	// InForce: the new release decides requests there; or, when it is being taken
	// out, nothing does. Refused: its Envoy does not take it. Message says why it is
	// not in force, for people.
	InForce bool
	Refused bool
	Message string
	// Keeps: it has been given the new release. Agents take nothing older, so one whose
	// labels are others by now, and which the step no longer chooses, has it to the end.
	Keeps bool
	// Traps are faults of the plugin's VM, as the agent counts them.
	Traps uint64
	// Traffic is of the listeners that the plugin is about; see Concerned.
	Traffic []chandler.Traffic
}

// Read takes in what an agent says of the plugin; told is false when it says nothing.
// to is the new release, empty when it is being taken out, and sequence the least that
// the assignment of it has.
func (p *Proxy) Read(to chandler.ReleaseID, sequence uint64, said chandler.AttachmentState, told bool) {
	if p.Traps = said.VMTraps; to == "" {
		p.InForce = !told
		return
	}
	if !told || said.Release != to || said.Sequence < sequence {
		return
	}
	p.Keeps = true
	p.InForce = said.InForce == to || said.State == chandler.StateUnmatched
	p.Refused = said.State == chandler.StateRejected
	if !p.InForce && said.Reason != "" {
		p.Message = string(said.Reason) + ": " + said.Message
	}
}

// Concerned gives the traffic that a plugin with these matches has to do with.
func Concerned(match []chandler.Match, all []chandler.Traffic) []chandler.Traffic {
	if len(match) == 0 {
		return all
	}
	var some []chandler.Traffic
	for _, t := range all {
		if slices.ContainsFunc(match, func(m chandler.Match) bool {
			return (m.Mode == chandler.ModeAny || m.Mode == t.Mode) && (len(m.Ports) == 0 || slices.Contains(m.Ports, t.Port))
		}) {
			some = append(some, t)
		}
	}
	return some
}

// There gives the nodes among which a step chooses: who is connected, and who went so
// lately that it may be back at once. Were only the few left that an outage spares, "one
// of them" would be a place far up in the order, and all below it would be chosen with it.
func (o *Observed) There(plan *chandler.RolloutPlan, now time.Time) []chandler.Node {
	var nodes []chandler.Node
	for i := range o.Proxies {
		if p := &o.Proxies[i]; p.Connected || now.Before(p.Since.Add(returns(plan))) {
			nodes = append(nodes, p.Node)
		}
	}
	return nodes
}

// Reunited tells whether who is not there is really away, and a step may choose.
func (o *Observed) Reunited(plan *chandler.RolloutPlan, now time.Time) bool {
	return !now.Before(o.Heard.Add(returns(plan)))
}

// returns is how long it takes at most until an agent is back.
func returns(plan *chandler.RolloutPlan) time.Duration { return min(reunion, plan.Interval) }

// view is Observed, by side. Only who is connected counts.
type view struct {
	Observed
	chosen    []*Proxy // those with the release in force
	lacking   []*Proxy // those chosen without
	others    []*Proxy
	listening bool // some listener answers HTTP
}

func (s *State) look(o Observed) view {
	v := view{Observed: o}
	for i := range o.Proxies {
		p := &o.Proxies[i]
		if !p.Connected {
			continue
		}
		v.listening = v.listening || len(p.Traffic) > 0
		switch {
		case !p.Keeps && !s.Choice.Has(o.UID, p.Node):
			v.others = append(v.others, p)
		case p.InForce:
			v.chosen = append(v.chosen, p)
		default:
			v.lacking = append(v.lacking, p)
		}
	}
	return v
}

// Side is what the proxies on one side did since the step began.
//
// They are counted in groups, whose members are known by a hash only: so a few
// hundred numbers do for ten thousand proxies. When the members of a group are others
// than before, or one's counters began anew, it is counted from then on, and what was
// between is left out: a count is never more than what was.
type Side struct {
	Seen   Count
	Groups map[int]Group `json:",omitempty"`
}

// Count is of answers and faults.
type Count struct {
	Traps uint64
	chandler.Answers
}

// Group is some proxies of a side.
type Group struct {
	// Members is who they are, since At.
	Members uint64 `json:",string"`
	At      time.Time
	// Settled: Base, their counters when they were read last, is all of this release.
	Settled bool
	Base    Count
}

// groups is how many there are.
const groups = 32

// settle is how long the counters of a proxy lag behind what it has in force: what it
// says first may be of the release before.
const settle = 6 * time.Second

// observe counts what was done since the last look.
func (s *State) observe(v view, now time.Time) {
	if all := len(v.chosen) + len(v.lacking); all > 0 {
		s.Members = max(s.Members, all)
		if len(v.lacking) == 0 {
			if s.Whole = now; s.Watched.IsZero() {
				s.Watched = now
			}
		}
	}
	s.Chosen.take(v.chosen, now, min(settle, s.Plan.Interval/4))
	s.Others.take(v.others, now, 0)
}

// take reads a side's counters.
func (s *Side) take(proxies []*Proxy, now time.Time, lag time.Duration) {
	was := s.Groups
	s.Groups = map[int]Group{}
	for _, p := range proxies {
		at, who := identity(p)
		g := s.Groups[at]
		g.Members += who
		g.Base.Traps += p.Traps
		for i := range p.Traffic {
			g.Base.Add(&p.Traffic[i].Now)
		}
		s.Groups[at] = g
	}
	for at, g := range s.Groups {
		before, known := was[at]
		grown, ok := g.Base.since(&before.Base)
		if !known || !ok || before.Members != g.Members {
			g.At, g.Settled = now, lag == 0
		} else if g.At, g.Settled = before.At, before.Settled || !now.Before(before.At.Add(lag)); before.Settled {
			s.Seen.Traps += grown.Traps
			s.Seen.Add(&grown.Answers)
		}
		s.Groups[at] = g
	}
}

// identity gives a proxy's group, and a number that is another one when its counters
// began anew. The numbers of a group's members are added up, in any order.
func identity(p *Proxy) (group int, who uint64) {
	id := fnv(offset).with(p.Namespace).with(p.Name)
	who = uint64(id)
	for i := range p.Traffic {
		t := &p.Traffic[i]
		who += uint64((id ^ fnv(t.Port)).with(string(t.Mode)).with(t.Epoch))
	}
	return int(id % groups), who
}

// fnv is the hash FNV-1a of what it was made with.
type fnv uint64

const (
	offset = 14695981039346656037
	prime  = 1099511628211
)

// with takes a text in, and its end.
func (h fnv) with(s string) fnv {
	for i := range len(s) {
		h = (h ^ fnv(s[i])) * prime
	}
	return (h ^ 0xff) * prime
}

// since gives what was done since before; false: some counter went back.
func (c *Count) since(before *Count) (grown Count, ok bool) {
	grown.Answers, ok = c.Answers.Since(&before.Answers)
	grown.Traps = c.Traps - before.Traps
	return grown, ok && c.Traps >= before.Traps
}

func total(counts []uint64) (n uint64) {
	for _, c := range counts {
		n += c
	}
	return n
}

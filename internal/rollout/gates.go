package rollout

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"chandler.dev/chandler"
)

// measure looks at every gate. Who has heard of proxies for a moment only concludes
// nothing from answers that it has not seen.
func (s *State) measure(v view, now time.Time) []chandler.Measure {
	measures := []chandler.Measure{s.inForce(v, now), refused(v), s.traps(v)}
	if v.Type == chandler.Network && !v.listening {
		return measures // what it is about does not answer HTTP
	}
	over, m := s.over(v, now) && !now.Before(v.Heard.Add(reunion)), s.Plan.Margins
	for _, g := range []share{
		{chandler.GateSuccess, 2, -1, m.Success},
		{chandler.GateRedirect, 3, 1, m.Redirect},
		{chandler.GateClientError, 4, 1, m.ClientError},
		{chandler.GateServerError, 5, 1, m.ServerError},
	} {
		measures = append(measures, s.compare(v, g.Gate, over, g.of, g.weigh, g.tell))
	}
	slow := latency{m}
	return append(measures, s.compare(v, chandler.GateLatency, over, slow.of, slow.weigh, slow.tell))
}

// inForce holds when all that are chosen and connected have the release.
func (s *State) inForce(v view, now time.Time) chandler.Measure {
	has, all := len(v.chosen), len(v.chosen)+len(v.lacking)
	m := chandler.Measure{Gate: chandler.GateInForce, Chosen: float64(has), Limit: float64(all), Result: chandler.GateHolds}
	begun := latest(s.Since, s.Whole, v.Heard)
	late := now.After(begun.Add(max(deadline, s.Plan.Interval)))
	switch {
	case all == 0 && len(v.others) == 0:
		m.Result, m.Message = chandler.GateWaiting, "no proxy is connected"
	case all == 0 && s.Members == 0 && v.Reunited(&s.Plan, now) && count(v.UID, v.There(&s.Plan, now), s.Choice) == 0:
		m.Result, m.Message = chandler.GateInconclusive, "no proxy that is connected has "+s.Plan.Steps[s.Step].String()
	case all == 0 && late:
		m.Result, m.Message = chandler.GateInconclusive, "none of the proxies that have it is connected"
	case all == 0:
		m.Result, m.Message = chandler.GateWaiting, "none of the proxies that are to have it is connected"
	case len(v.lacking) > 0:
		m.Result, m.Message = chandler.GateWaiting, fmt.Sprintf("in force on %d of %d", has, all)
		if late {
			m.Result = chandler.GateFailed
			m.Message += fmt.Sprintf(" after %v: %s", now.Sub(begun).Round(time.Second), named(v.lacking))
		}
	default:
		m.Message = fmt.Sprintf("in force on %d of %d", has, all)
	}
	return m
}

// refused fails as soon as an Envoy does not take the release. A fetch that fails is
// tried again, and is a matter of the deadline.
func refused(v view) chandler.Measure {
	m := chandler.Measure{Gate: chandler.GateRejections, Result: chandler.GateHolds, Message: "no Envoy refused it"}
	var who []*Proxy
	for _, p := range v.lacking {
		if p.Refused {
			who = append(who, p)
		}
	}
	if len(who) > 0 {
		m.Chosen, m.Result, m.Message = float64(len(who)), chandler.GateFailed, "refused: "+named(who)
	}
	return m
}

// traps fails as soon as a VM does.
func (s *State) traps(v view) chandler.Measure {
	m := chandler.Measure{
		Gate: chandler.GateTraps, Result: chandler.GateHolds, Message: "no VM failed",
		Chosen: float64(s.Chosen.Seen.Traps), Others: float64(s.Others.Seen.Traps), HasOthers: len(v.others) > 0,
	}
	if n := s.Chosen.Seen.Traps; n > 0 {
		m.Result, m.Message = chandler.GateFailed, "VMs failed "+chandler.Count(n, "time", "times")+" while serving"
	}
	return m
}

// verdict is what comes of a comparison.
type verdict int

const (
	asGood  verdict = iota
	unclear         // worse, and that may be chance
	worse
)

// compare holds what the chosen proxies answered against the others in the same time and
// against their own hour before. It fails what is clearly worse than both, or than the
// one that there is. What is worse than one of them only may have another cause, and is
// for people to look at.
func (s *State) compare(v view, gate chandler.Gate, over bool, of func(*chandler.Answers) (float64, uint64),
	weigh func(chosen, base *chandler.Answers) (verdict, float64), tell func(float64) string,
) chandler.Measure {
	m := chandler.Measure{Gate: gate, Result: chandler.GateWaiting}
	if over {
		m.Result = chandler.GateInconclusive
	}
	least := max(1, s.Plan.Margins.Requests)
	chosen, others := &s.Chosen.Seen.Answers, &s.Others.Seen.Answers
	var n, nOthers, nBefore uint64
	m.Chosen, n = of(chosen)
	m.Others, nOthers = of(others)
	m.Before, nBefore = of(&s.Before)
	m.HasOthers, m.HasBefore = nOthers >= least && len(v.others) > 0, nBefore >= least
	if n < least {
		m.HasOthers, m.HasBefore = false, false
		m.Message = fmt.Sprintf("%d of the %s that it takes", n, requests(least))
		return m
	}
	if !m.HasOthers && !m.HasBefore {
		m.Message = fmt.Sprintf("%s, and nothing to compare it with: %s to the others, %d in the hour before", tell(m.Chosen), requests(nOthers), nBefore)
		return m
	}
	var found []verdict
	against := func(ok bool, base *chandler.Answers) {
		if ok {
			is, limit := weigh(chosen, base)
			if len(found) == 0 || gate == chandler.GateSuccess && limit < m.Limit || gate != chandler.GateSuccess && limit > m.Limit {
				m.Limit = limit
			}
			found = append(found, is)
		}
	}
	against(m.HasOthers, others)
	against(m.HasBefore, &s.Before)
	m.Message = said(&m, n, tell)
	switch waiting := len(v.others) > 0 && !m.HasOthers && !over; {
	case slices.Max(found) == asGood && !waiting:
		m.Result = chandler.GateHolds
	case slices.Min(found) == worse && !waiting:
		m.Result = chandler.GateFailed
	case slices.Max(found) == worse && over:
		m.Message += "; it is worse than one of them only"
	case over && slices.Max(found) == unclear:
		m.Message += "; of so few requests that may be chance"
	}
	return m
}

// said tells a comparison in one line.
func said(m *chandler.Measure, n uint64, tell func(float64) string) string {
	parts := []string{fmt.Sprintf("%s of %s", tell(m.Chosen), requests(n))}
	if m.HasOthers {
		parts = append(parts, "the others "+tell(m.Others))
	}
	if m.HasBefore {
		parts = append(parts, "in the hour before "+tell(m.Before))
	}
	return strings.Join(parts, ", ") + ", limit " + tell(m.Limit)
}

// doubt is how many standard errors a difference has to be over a margin, to be none of
// chance. It is looked at again and again, so three are not too many.
const doubt = 3

// share is the part of answers of a class.
type share struct {
	chandler.Gate
	class  int
	sign   float64 // 1: more is worse
	margin float64
}

func (g share) of(a *chandler.Answers) (float64, uint64) {
	n := total(a.Classes[:])
	return float64(a.Classes[g.class-1]) / float64(max(n, 1)), n
}

func (g share) weigh(chosen, base *chandler.Answers) (verdict, float64) {
	is, n := g.of(chosen)
	was, m := g.of(base)
	limit := was + g.sign*g.margin
	over := g.sign * (is - limit)
	switch {
	case over <= 0:
		return asGood, limit
	case over > doubt*math.Sqrt(variance(is, n)+variance(was, m)):
		return worse, limit
	}
	return unclear, limit
}

func (share) tell(part float64) string { return fmt.Sprintf("%.1f%%", 100*part) }

// variance is that of a share that was seen in n requests; none is never quite none.
func variance(share float64, n uint64) float64 {
	size := float64(n) + 2
	p := (share*float64(n) + 1) / size
	return p * (1 - p) / size
}

// latency is the time within which 99 of 100 requests are answered.
type latency struct{ chandler.Margins }

const p99 = 0.99

func (latency) of(a *chandler.Answers) (float64, uint64) {
	return Quantile(a, p99).Seconds(), total(a.Latency[:])
}

// weigh takes as clear what is over the limit even when, by chance, more slow requests
// than one of a hundred were seen.
func (g latency) weigh(chosen, base *chandler.Answers) (verdict, float64) {
	was := Quantile(base, p99)
	limit := max(time.Duration(float64(was)*g.Latency), was+g.LatencyFloor)
	chance := doubt * math.Sqrt(p99*(1-p99)/float64(total(chosen.Latency[:])))
	switch {
	case Quantile(chosen, p99) <= limit:
		return asGood, limit.Seconds()
	case Quantile(chosen, p99-chance) > limit:
		return worse, limit.Seconds()
	}
	return unclear, limit.Seconds()
}

func (latency) tell(seconds float64) string {
	return fmt.Sprintf("p99 %.3g ms", 1000*seconds)
}

// Quantile estimates within what time a part of the requests was answered, as if
// those in a bucket were spread evenly in it. Of those beyond the last bound it is known
// only that they took longer.
func Quantile(a *chandler.Answers, part float64) time.Duration {
	bounds := chandler.LatencyBounds()
	want := part * float64(total(a.Latency[:]))
	if want <= 0 {
		return 0
	}
	var below float64
	var lower time.Duration
	for i, bound := range bounds {
		in := float64(a.Latency[i])
		if in > 0 && below+in >= want {
			return lower + time.Duration(float64(bound-lower)*(want-below)/in)
		}
		below, lower = below+in, bound
	}
	return lower
}

// those gives the messages of the gates with a result, in one line: one that several have
// in a row once.
func those(measures []chandler.Measure, result chandler.GateResult) string {
	text, last := "", ""
	for _, m := range slices.Backward(measures) {
		switch {
		case m.Result != result:
			continue
		case text == "":
			text = string(m.Gate) + ": " + m.Message
		case m.Message == last:
			text = string(m.Gate) + ", " + text
		default:
			text = string(m.Gate) + ": " + m.Message + "; " + text
		}
		last = m.Message
	}
	return text
}

func requests(n uint64) string { return chandler.Count(n, "request", "requests") }

// maxNamed is how many proxies a message names.
const maxNamed = 3

func named(proxies []*Proxy) string {
	slices.SortFunc(proxies, func(a, b *Proxy) int { return strings.Compare(a.ID(), b.ID()) })
	var all []string
	for _, p := range proxies[:min(len(proxies), maxNamed)] {
		name := p.ID()
		if p.Message != "" {
			name += " (" + chandler.Printable(p.Message, 200) + ")"
		}
		all = append(all, name)
	}
	if more := len(proxies) - maxNamed; more > 0 {
		all = append(all, fmt.Sprintf("%d more", more))
	}
	return strings.Join(all, ", ")
}

func latest(times ...time.Time) time.Time {
	return slices.MaxFunc(times, time.Time.Compare)
}

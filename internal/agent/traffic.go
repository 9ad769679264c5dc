package agent

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/wire"
)

// Envoy counts answers by the stat_prefix of its connection managers. What is counted
// under a prefix is told of every mode and port that has a manager of that prefix: of
// several that share one Envoy keeps no times of their own. Its counters are current;
// the times are up to a period of stats_flush_interval behind, five seconds if the user
// says nothing else.

// How often Envoy is asked while nobody wants to know, so that there is an hour to
// compare with; how soon again when it could not be; how long it may take.
const (
	trafficMinute   = time.Minute
	trafficRetry    = time.Second
	trafficPatience = 5 * time.Second
)

// maxFilter bounds the pattern by which Envoy picks statistics: it is in a URL.
const maxFilter = 8 << 10

// meter keeps what was answered in each mode and port. It is for one goroutine.
type meter struct {
	places  []meterPlace
	pattern string
	process string // which Envoy was asked last; empty: none
	epoch   string
}

type meterPlace struct {
	mode  chandler.Mode
	port  uint32
	stats []string // under which Envoy counts
	total chandler.Answers
	known bool // total is
	hour  []meterMinute
}

// meterMinute is what was counted in a minute; of one without traffic there is none.
type meterMinute struct {
	at      time.Time // its end
	answers chandler.Answers
}

func newMeter(layout []attach.Listener) *meter {
	m := &meter{}
	var names []string
	for _, l := range layout {
		for _, c := range l.Counted {
			if p := m.place(c.Mode, c.Port); p != nil && !slices.Contains(p.stats, c.Stats) {
				p.stats = append(p.stats, c.Stats)
			}
			if name := regexp.QuoteMeta(c.Stats); !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	m.pattern = `^http\.(` + strings.Join(names, "|") + `)\.downstream_rq_(time|[1-5]xx)$`
	if len(m.pattern) > maxFilter {
		m.pattern = `^http\..*\.downstream_rq_(time|[1-5]xx)$`
	}
	return m
}

// after goes on with what another meter has counted in the places that both have.
func (m *meter) after(before *meter) *meter {
	m.process, m.epoch = before.process, before.epoch
	for i := range m.places {
		p := &m.places[i]
		for _, b := range before.places {
			if b.mode == p.mode && b.port == p.port && slices.Equal(b.stats, p.stats) {
				p.total, p.known, p.hour = b.total, b.known, b.hour
			}
		}
	}
	return m
}

// place is that of a mode and port; nil when there are too many.
func (m *meter) place(mode chandler.Mode, port uint32) *meterPlace {
	for i := range m.places {
		if p := &m.places[i]; p.mode == mode && p.port == port {
			return p
		}
	}
	if len(m.places) == wire.MaxTraffic {
		return nil
	}
	m.places = append(m.places, meterPlace{mode: mode, port: port})
	return &m.places[len(m.places)-1]
}

// take takes in what an Envoy has counted, by prefix. fresh: it began with this agent,
// so that it has counted nothing before.
func (m *meter) take(now time.Time, process string, fresh bool, counts map[string]chandler.Answers) {
	if process != m.process {
		m.process, m.epoch = process, process
		for i := range m.places {
			m.places[i].total, m.places[i].known = chandler.Answers{}, fresh
		}
	}
	for i := range m.places {
		p := &m.places[i]
		var total chandler.Answers
		for _, name := range p.stats {
			more := counts[name]
			total.Add(&more)
		}
		grown, ok := total.Since(&p.total)
		if !ok { // somebody set the counters back
			m.epoch = fmt.Sprintf("%s-%d", process, now.Unix())
			grown = total
		}
		if p.known && grown != (chandler.Answers{}) {
			p.add(now, grown)
		}
		p.total, p.known = total, true
	}
}

// add counts to the minute at hand.
func (p *meterPlace) add(now time.Time, grown chandler.Answers) {
	p.hour = slices.DeleteFunc(p.hour, func(m meterMinute) bool { return now.Sub(m.at) > time.Hour })
	if last := len(p.hour) - 1; last >= 0 && now.Before(p.hour[last].at) {
		p.hour[last].answers.Add(&grown)
		return
	}
	p.hour = append(p.hour, meterMinute{now.Add(trafficMinute), grown})
}

// traffic is what is told.
func (m *meter) traffic(now time.Time) []chandler.Traffic {
	var list []chandler.Traffic
	for i := range m.places {
		p := &m.places[i]
		t := chandler.Traffic{Mode: p.mode, Port: p.port, Epoch: m.epoch, Now: p.total}
		for i := range p.hour {
			if now.Sub(p.hour[i].at) <= time.Hour {
				t.Hour.Add(&p.hour[i].answers)
			}
		}
		list = append(list, t)
	}
	return list
}

// answers asks Envoy what it has counted, by prefix.
func (c *adminClient) answers(ctx context.Context, pattern string) (map[string]chandler.Answers, error) {
	body, err := c.get(ctx, "/stats?histogram_buckets=disjoint&filter="+url.QueryEscape(pattern))
	if err != nil {
		return nil, err
	}
	return readAnswers(string(body)), nil
}

// readAnswers reads lines as "http.PREFIX.downstream_rq_2xx: 5" and, of times,
// "http.PREFIX.downstream_rq_time: B0.5(0,3) B1(0,2) ...", where the second number of
// each bucket is the one since Envoy began. Others are passed over.
func readAnswers(text string) map[string]chandler.Answers {
	counts := map[string]chandler.Answers{}
	bounds := chandler.LatencyBounds()
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		name, ok2 := strings.CutPrefix(name, "http.")
		prefix, what, ok3 := cutLast(name, ".downstream_rq_")
		if !ok || !ok2 || !ok3 {
			continue
		}
		a := counts[prefix]
		if what == "time" {
			for bucket := range strings.FieldsSeq(value) {
				if bound, n, ok := readBucket(bucket); ok {
					i, _ := slices.BinarySearch(bounds, bound)
					a.Latency[i] += n
				}
			}
		} else if n, err := strconv.ParseUint(value, 10, 64); err == nil && len(what) == 3 && what[1:] == "xx" && what[0] >= '1' && what[0] <= '5' {
			a.Classes[what[0]-'1'] += n
		}
		counts[prefix] = a
	}
	return counts
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// readBucket reads "B0.5(0,3)".
func readBucket(s string) (bound time.Duration, n uint64, ok bool) {
	s, ok = strings.CutPrefix(s, "B")
	ms, rest, ok2 := strings.Cut(s, "(")
	_, total, ok3 := strings.Cut(strings.TrimSuffix(rest, ")"), ",")
	f, err := strconv.ParseFloat(ms, 64)
	n, err2 := strconv.ParseUint(total, 10, 64)
	if !ok || !ok2 || !ok3 || err != nil || err2 != nil || f < 0 || f > 1e12 {
		return 0, 0, false
	}
	return time.Duration(f * float64(time.Millisecond)), n, true
}

// watchTraffic asks Envoy once in a minute, or as often as the control plane wants to
// know, until ctx ends. It leaves Envoy alone while a push is under way.
func (a *Agent) watchTraffic(ctx context.Context) {
	layout := a.layout()
	m := newMeter(layout)
	if len(m.places) == 0 && a.relayed == nil {
		return
	}
	timer := time.NewTimer(trafficRetry)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.reporter.asked:
		case <-timer.C:
		}
		interval := a.reporter.every()
		if now := a.layout(); a.relayed != nil && !reflect.DeepEqual(layout, now) {
			layout, m = now, newMeter(now).after(m)
		}
		if !a.measure(ctx, m) {
			timer.Reset(trafficRetry)
			continue
		}
		if interval > 0 {
			a.reporter.count(m.traffic(time.Now()))
		}
		timer.Reset(cmp.Or(min(interval, trafficMinute), trafficMinute))
	}
}

// measure asks Envoy once.
func (a *Agent) measure(ctx context.Context, m *meter) bool {
	v := a.view.Load()
	if v == nil || v.pushing || !v.envoy.Running() {
		return false
	}
	poll, cancel := context.WithTimeout(ctx, trafficPatience)
	defer cancel()
	counts, err := a.envoyAdmin.answers(poll, m.pattern)
	if err != nil {
		return false
	}
	m.take(time.Now(), epochOf(v.envoy), !v.envoy.Adopted, counts)
	return true
}

// epochOf is the same for an Envoy as long as it runs, also for the next agent where the
// system can tell.
func epochOf(e EnvoyStatus) string {
	begun, ok := processStart(e.PID)
	if !ok {
		begun = fmt.Sprint(e.PID, e.Since.UnixNano())
	}
	return digest(begun)
}

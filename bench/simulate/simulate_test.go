package main

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"chandler.dev/chandler/internal/xds/deltaclient"
)

var all = []Scenario{OneChange, NewModule, FewChange, Restart, Staged}

func simulate(t *testing.T, in Inputs, shape Shape, s Scenario, seed uint64) Outcome {
	t.Helper()
	o, err := Simulate(in, shape, s, seed)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// Whatever happens to whatever fleet comes to its end on every proxy that it is about, and
// what is said has an answer, or a later one.
func TestEveryProxyConverges(t *testing.T) {
	t.Parallel()
	for _, shape := range []Shape{{300, 1, 1, fromControl}, {1200, 3, 2, fromControl}, {500, 5, 3, fromRegistry}, {400, 2, 2, fromMirror}} {
		for _, s := range all {
			o := simulate(t, Measured(), shape, s, 7)
			want := shape.Proxies
			if s == FewChange {
				want = shape.Proxies / fewEvery
			}
			if len(o.Done) != want || len(o.Told) != want {
				t.Errorf("%+v, %s: %d told, %d done, of %d", shape, s, len(o.Told), len(o.Done), want)
			}
			if !slices.IsSorted(o.Done) || o.Done[0] <= 0 || at(o.Done, 1) < at(o.Told, 1) {
				t.Errorf("%+v, %s: from %v to %v, told %v", shape, s, o.Done[0], at(o.Done, 1), at(o.Told, 1))
			}
			if o.Sent[push].Messages != o.Sent[ack].Messages || answerEvery*o.Sent[taken].Messages+int64((answerEvery-1)*shape.Proxies) < o.Sent[report].Messages {
				t.Errorf("%+v, %s: %+v", shape, s, o.Sent)
			}
			if o.Sent[relay].Messages > 0 && shape.Replicas == 1 {
				t.Errorf("%+v, %s: %d words to a leader that has no replicas", shape, s, o.Sent[relay].Messages)
			}
		}
	}
}

// Equal seeds give equal outcomes, others others.
func TestDeterministic(t *testing.T) {
	t.Parallel()
	shape := Shape{400, 2, 2, fromControl}
	for _, s := range all {
		one, again, other := simulate(t, Measured(), shape, s, 1), simulate(t, Measured(), shape, s, 1), simulate(t, Measured(), shape, s, 2)
		if !reflect.DeepEqual(one, again) {
			t.Errorf("%s: the same seed gave another outcome", s)
		}
		if reflect.DeepEqual(one.Done, other.Done) {
			t.Errorf("%s: another seed gave the same outcome", s)
		}
	}
}

// All bytes are those of the messages and of what the transport adds to each.
func TestBytes(t *testing.T) {
	t.Parallel()
	const proxies = 400
	for said, answered := range map[uint64]bool{1: false, answerEvery: true} {
		in := Measured()
		in.Said = said
		o := simulate(t, in, Shape{proxies, 1, 1, fromControl}, OneChange, 1)
		w, err := newWorld(in, Shape{Proxies: 1, Clusters: 1, Replicas: 1}, false, 1)
		if err != nil {
			t.Fatal(err)
		}
		s := &w.size
		each := s.answer + s.resource[everyone] + s.ack + 2*(s.envelope+s.silent+s.state) + s.facts[everyone] + 4*in.Framing
		answers := int64(0)
		if answered {
			answers = proxies
			each += takenSize(0, 0) - s.silent + in.Framing
		}
		more := proxies / fewEvery * (s.facts[few] - s.facts[everyone])
		if got := o.Bytes(in.Framing); got != proxies*each+more {
			t.Errorf("after %d reports: %d bytes, of %d for each of %d, and %d", said, got, each, proxies, more)
		}
		if k := o.Sent; k[push].Messages != proxies || k[report].Messages != 2*proxies || k[taken].Messages != answers || k[subscribe].Messages+k[ask].Messages+k[piece].Messages+k[relay].Messages != 0 {
			t.Errorf("after %d reports: %+v", said, k)
		}
	}
}

// A large fleet reports what it was told and what is in force in one message, mostly; one
// in four of which is answered.
func TestReportsAreSpread(t *testing.T) {
	t.Parallel()
	const proxies = 5000
	o := simulate(t, Measured(), Shape{proxies, 1, 1, fromControl}, OneChange, 1)
	if n := o.Sent[report].Messages; n < proxies || n > proxies*11/10 {
		t.Errorf("%d reports of %d proxies", n, proxies)
	}
	if n := o.Sent[taken].Messages; n < proxies/5 || n > proxies/3 {
		t.Errorf("%d answers to %d reports", n, o.Sent[report].Messages)
	}
}

// An agent that gets no answers reports no more after some, and tells the newest state
// with the first answer.
func TestUnansweredReportsAreBounded(t *testing.T) {
	t.Parallel()
	w, err := newWorld(Measured(), Shape{Proxies: 1, Clusters: 1, Replicas: 1}, false, 1)
	if err != nil {
		t.Fatal(err)
	}
	p := w.clusters[0].proxies[0]
	p.reports, p.taken = 1, 1
	for range w.Cores {
		p.plane.works(0, time.Minute) // with something else
	}
	for range 20 {
		p.say()
		w.run(w.now + time.Second)
	}
	if n := w.sent[report].Messages; n != mostUnderWay {
		t.Errorf("%d reports without an answer", n)
	}
	w.run(bound)
	if n := w.sent[report].Messages; n != mostUnderWay+1 || p.unsaid || p.known.number != int(n) {
		t.Errorf("%d reports, more to say %v, heard the one of number %d", n, p.unsaid, p.known.number)
	}
}

// The registry serves a cluster once, however many proxies and replicas it has; a proxy
// each when they ask it themselves; and a machine each with mirrors.
func TestRegistryLoad(t *testing.T) {
	t.Parallel()
	in := Measured()
	first := 3 * (in.Lookups + in.Pulls) // of three clusters
	for _, c := range []struct {
		from  origin
		pulls int64 // beside the control planes'
	}{{fromControl, 0}, {fromRegistry, 600}, {fromMirror, 30}} {
		for _, replicas := range []int{1, 2} {
			o := simulate(t, in, Shape{600, 3, replicas, c.from}, NewModule, 1)
			want := count{first + in.Pulls*c.pulls, in.Module * (3 + c.pulls)}
			if o.Registry != want {
				t.Errorf("from the %s with %d replicas: %+v, want %+v", c.from, replicas, o.Registry, want)
			}
		}
	}
	if o := simulate(t, in, Shape{600, 3, 2, fromControl}, OneChange, 1); o.Registry != (count{}) {
		t.Errorf("a configuration asks the registry: %+v", o.Registry)
	}
}

// After a restart nobody is sent a resource, and all are back within the outage, the
// longest pause of an agent and what connecting takes.
func TestRestart(t *testing.T) {
	t.Parallel()
	in := Measured()
	o := simulate(t, in, Shape{1000, 1, 1, fromControl}, Restart, 1)
	w, err := newWorld(in, Shape{Proxies: 1, Clusters: 1, Replicas: 1}, false, 1)
	if err != nil {
		t.Fatal(err)
	}
	if got := o.Sent[push]; got != (count{1000, 1000 * w.size.answer}) {
		t.Errorf("who was up to date was sent %+v", got)
	}
	connecting := 1000 * (in.Handshake + 5*in.Message) / time.Duration(in.Cores)
	if last := at(o.Done, 1); o.Done[0] < in.Away || last > in.Away+deltaclient.MaxBackoff+connecting+time.Second {
		t.Errorf("back from %v to %v", o.Done[0], last)
	}
}

// A rollout reaches nobody before its step: a hundredth, a tenth, half, each watched for
// a minute.
func TestStages(t *testing.T) {
	t.Parallel()
	o := simulate(t, Measured(), Shape{1000, 1, 1, fromControl}, Staged, 1)
	steps := []int{10, 100, 500, 1000}
	for i, n := range steps {
		began := time.Duration(i) * time.Minute
		if first := o.Told[append([]int{0}, steps...)[i]]; first < began {
			t.Errorf("step %d came after %v", i, first)
		}
		if last := o.Done[n-1]; last > began+20*time.Second {
			t.Errorf("step %d was in force after %v", i, last)
		}
	}
}

// What cannot be simulated is refused.
func TestRefused(t *testing.T) {
	t.Parallel()
	for _, shape := range []Shape{{}, {Proxies: 1, Clusters: 2, Replicas: 1}, {Proxies: 1, Clusters: 1}, {Proxies: 1, Clusters: 1, Replicas: 1, From: "the moon"}, {Proxies: 40_001, Clusters: 2, Replicas: 1}} {
		if _, err := Simulate(Measured(), shape, OneChange, 1); err == nil {
			t.Errorf("%+v is a fleet", shape)
		}
	}
	if _, err := Simulate(Measured(), Shape{Proxies: 1, Clusters: 1, Replicas: 1}, "rain", 1); err == nil {
		t.Error("there is no such scenario")
	}
}

package remotewasm

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"pgregory.net/rapid"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// model is a state, what stands around it, and what Envoy has as a relay would have it.
type model struct {
	t       *rapid.T
	st      *state
	depot   *depot
	now     time.Time
	flights []*source
	bodies  map[string]plugin    // of the upstream
	pending map[string][]given   // on the way to Envoy
	envoy   map[string]given     // what it has
	empty   map[string]time.Time // names that Envoy waits for with nothing, since when
	up      bool                 // the registry
	refuses map[string]bool
	good    map[string]plugin // what a relay remembers that Envoy took
	said    map[string]plugin // by their bodies
}

type given struct {
	what answer
	path string // of each module, with a space between two
	of   string // the upstream's body
}

// has says that a module is in what was given.
func (g given) has(path string) bool { return slices.Contains(strings.Split(g.path, " "), path) }

func pathOf(url string) string { return (&lease{digest: digestOf(url)}).Path() }

func newModel(t *rapid.T) *model {
	m := &model{t: t, depot: newDepot(t), now: time.Unix(1e9, 0), up: true, refuses: map[string]bool{}, said: map[string]plugin{}}
	m.anew()
	m.bodies = map[string]plugin{}
	return m
}

func (m *model) anew() {
	m.st = newState(func() float64 { return 0.5 })
	m.pending, m.envoy, m.empty, m.good = map[string][]given{}, map[string]given{}, map[string]time.Time{}, map[string]plugin{}
	m.flights = nil
}

// ask is what a relay does for a name.
func (m *model) ask(name string, p plugin) {
	r, err := attach.ReadRemote(&anypb.Any{TypeUrl: p.kind(), Value: p.body(m.t)})
	if err != nil || r == nil {
		m.t.Fatal(r, err)
	}
	paths, what := m.st.give(name, r, servingPatience, m.now)
	if again, same := m.st.give(name, r, servingPatience, m.now); !slices.Equal(again, paths) || same != what {
		m.t.Fatalf("%s: %d %s, and then %d %s", name, what, paths, same, again)
	}
	path := strings.Join(paths, " ")
	before := m.envoy[name]
	if n := len(m.pending[name]); n > 0 {
		before = m.pending[name][n-1]
	}
	g := given{what, path, string(p.body(m.t))}
	m.said[g.of] = p
	switch what {
	case held:
		if _, waits := m.empty[name]; !waits && before == (given{}) {
			m.empty[name] = m.now
		}
		return
	case standIn:
		if m.envoy[name].what == local {
			m.t.Fatalf("%s: a stand-in for what works", name)
		}
	case local:
		if len(paths) != len(p.urls()) || slices.Contains(paths, "") {
			m.t.Fatalf("%s: only %q is given of %d modules", name, paths, len(p.urls()))
		}
	}
	for _, path := range paths {
		if path != "" {
			m.isHere(name, path)
		}
	}
	if g != before {
		m.pending[name] = append(m.pending[name], g)
	}
}

// isHere holds that a module is on disk and kept there.
func (m *model) isHere(name, path string) {
	for d, n := range m.depot.held {
		if n > 0 && path == (&lease{digest: d}).Path() {
			return
		}
	}
	m.t.Fatalf("%s is given %s, which is not kept on disk", name, path)
}

// settle does all that is to be done at once.
func (m *model) settle() {
	for range 100 {
		m.st.step(m.now)
		todo := m.st.take()
		m.flights = append(m.flights, todo.start...)
		for _, l := range todo.release {
			l.Release()
		}
		for _, name := range slices.Sorted(maps.Keys(todo.changed)) {
			if p, ok := m.bodies[name]; ok {
				m.ask(name, p)
			}
		}
		if len(todo.start)+len(todo.changed)+len(todo.release) == 0 {
			m.check()
			return
		}
	}
	m.t.Fatal("it comes to no end")
}

func (m *model) check() {
	if len(m.flights) > maxFetches || m.st.flying != len(m.flights) {
		m.t.Fatalf("%d fetches, it says %d", len(m.flights), m.st.flying)
	}
	held := map[chandler.ModuleDigest]bool{}
	for name, e := range m.st.names {
		if len(e.wanted) > 3*maxWanted || len(e.wanted) != len(e.asked) {
			m.t.Fatalf("%s wants %d, asked %d", name, len(e.wanted), len(e.asked))
		}
		for _, s := range e.wanted {
			if !s.users[e] {
				m.t.Fatalf("%s does not use what it wants", name)
			}
			if s.ready() {
				held[s.digest] = true
			}
		}
	}
	for d, n := range m.depot.held {
		if (n > 0) != held[d] {
			m.t.Fatalf("%s is kept %d times, and needed: %v", d, n, held[d])
		}
	}
	// What runs in Envoy stays on disk; after a restart it is looked for there.
	for name, g := range m.envoy {
		if slices.ContainsFunc(m.flights, func(s *source) bool { return g.has((&lease{digest: s.digest}).Path()) }) {
			continue
		}
		if _, there := m.bodies[name]; there && g.what == local && g.path != "" && len(m.pending[name]) == 0 && m.st.names[name] != nil {
			for path := range strings.SplitSeq(g.path, " ") {
				m.isHere(name, path)
			}
		}
	}
	for name, since := range m.empty {
		if m.now.Sub(since) > servingPatience+3*time.Second { // Envoy takes a while to refuse
			m.t.Fatalf("%s is held for %s", name, m.now.Sub(since))
		}
	}
}

// answers has Envoy answer the oldest of what is on its way for a name.
func (m *model) answers(name string) {
	g := m.pending[name][0]
	m.pending[name] = m.pending[name][1:]
	if slices.ContainsFunc(strings.Split(g.path, " "), func(path string) bool { return m.refuses[path] }) {
		m.st.rejected(name, m.now)
		return
	}
	m.envoy[name], m.good[name] = g, m.said[g.of]
	delete(m.empty, name)
	m.st.acked(name)
}

func (m *model) ends(i int) {
	s := m.flights[i]
	m.flights = slices.Delete(m.flights, i, i+1)
	if s.digest != "" {
		l, why := m.depot.Hold(s.digest)
		if why == nil || s.request == nil {
			m.st.fetched(s, l, why, m.now)
			return
		}
	}
	url := s.request.Reference.String()
	if !m.up || len(s.users) == 0 {
		m.st.fetched(s, nil, &Failure{Problem: chandler.Problem{Code: chandler.CodeFetchFailed}, Temporary: true}, m.now)
		return
	}
	digest := digestOf(url)
	m.depot.disk[digest] = true
	m.depot.held[digest]++
	m.st.fetched(s, &lease{depot: m.depot, digest: digest}, nil, m.now)
}

// restart is of the agent, and of Envoy with it or not.
func (m *model) restart(withEnvoy bool) {
	records := m.st.records()
	for _, s := range m.st.allReady() {
		s.module.Release()
	}
	envoy, good := m.envoy, m.good
	m.anew()
	m.st.restore(records, m.now)
	if withEnvoy {
		m.st.another(m.now)
	}
	if !withEnvoy {
		m.envoy, m.good = envoy, good
	}
	m.settle()
	for _, name := range slices.Sorted(maps.Keys(m.bodies)) {
		if p, ok := good[name]; ok {
			m.ask(name, p)
		}
	}
	m.settle()
	for _, name := range slices.Sorted(maps.Keys(m.bodies)) {
		m.ask(name, m.bodies[name])
	}
}

func (st *state) allReady() map[*source]*source {
	all := map[*source]*source{}
	for _, e := range st.names {
		for _, s := range e.wanted {
			if s.ready() {
				all[s] = s
			}
		}
	}
	return all
}

// For every interleaving, of extension configs and of listeners with several modules: what
// works is replaced by what works only; nothing is held for longer than the patience; what is
// given is on disk; and in the end all is in force.
func TestEveryInterleaving(t *testing.T) {
	for name, most := range map[string]int{"extension configs": -1, "listeners": 2} {
		t.Run(name, func(t *testing.T) { everyInterleaving(t, most) })
	}
}

// everyInterleaving is of listeners with so many modules beside the first one; less than
// none: of extension configs.
func everyInterleaving(t *testing.T, most int) {
	names := []string{"a", "b", "c"}
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		url := func(t *rapid.T) string {
			return fmt.Sprintf("oci://r.example/m%d:v", rapid.IntRange(0, 5).Draw(t, "module"))
		}
		of := func(t *rapid.T) string { return rapid.SampledFrom(names).Draw(t, "name") }
		secrets := []string{`{"auths":{}}`, `{"auths":{"x":{}}}`}
		t.Repeat(map[string]func(*rapid.T){
			"": func(*rapid.T) { m.settle() },
			"says": func(t *rapid.T) {
				p := plugin{
					name: of(t), url: url(t),
					policy: rapid.SampledFrom([]string{"", "Always"}).Draw(t, "policy"), version: rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, "version"),
					strategy: rapid.SampledFrom([]wasmv3.FailurePolicy{0, wasmv3.FailurePolicy_FAIL_OPEN}).Draw(t, "strategy"),
				}
				if i := rapid.IntRange(0, 2).Draw(t, "secret"); i > 0 {
					p.secret = &secrets[i-1]
				}
				if most >= 0 {
					p.more = append([]string{}, rapid.SliceOfN(rapid.Custom(url), 0, most).Draw(t, "more")...)
				}
				m.bodies[p.name] = p
				m.ask(p.name, p)
			},
			"other stream": func(t *rapid.T) { // says something else under the same name
				if name := of(t); len(m.bodies) > 0 {
					if p, ok := m.bodies[name]; ok {
						p.url = url(t)
						m.ask(name, p)
						m.ask(name, m.bodies[name])
					}
				}
			},
			"ends": func(t *rapid.T) {
				if len(m.flights) > 0 {
					m.ends(rapid.IntRange(0, len(m.flights)-1).Draw(t, "flight"))
				}
			},
			"answers": func(t *rapid.T) {
				if name := of(t); len(m.pending[name]) > 0 {
					m.answers(name)
				}
			},
			"time": func(t *rapid.T) {
				m.now = m.now.Add(time.Duration(rapid.IntRange(1, 1000).Draw(t, "ms")) * time.Millisecond)
			},
			"long": func(t *rapid.T) {
				for range rapid.IntRange(1, 700).Draw(t, "seconds") {
					m.now = m.now.Add(time.Second)
					m.settle()
					for _, name := range names {
						for len(m.pending[name]) > 0 {
							m.answers(name)
						}
					}
				}
			},
			"registry": func(t *rapid.T) { m.up = rapid.Bool().Draw(t, "up") },
			"refuses": func(t *rapid.T) {
				path := pathOf(url(t))
				m.refuses[path] = !m.refuses[path]
			},
			"removed": func(t *rapid.T) {
				name := of(t)
				delete(m.bodies, name)
				delete(m.pending, name)
				delete(m.envoy, name)
				delete(m.empty, name)
				delete(m.good, name)
				m.st.leave(name, m.now)
			},
			"lost": func(t *rapid.T) {
				d := digestOf(url(t))
				delete(m.depot.disk, d)
				m.st.lost(d)
				m.lostInEnvoy(d)
			},
			"envoy": func(*rapid.T) {
				m.st.another(m.now)
				m.pending, m.envoy, m.empty = map[string][]given{}, map[string]given{}, map[string]time.Time{}
				for _, name := range slices.Sorted(maps.Keys(m.bodies)) {
					m.ask(name, m.bodies[name])
				}
			},
			"restart": func(t *rapid.T) { m.restart(rapid.Bool().Draw(t, "with Envoy")) },
		})
		m.finish()
	})
}

// lostInEnvoy has Envoy run what it has, or is about to read, from its memory.
func (m *model) lostInEnvoy(d chandler.ModuleDigest) {
	path := (&lease{digest: d}).Path()
	for name, g := range m.envoy {
		if g.has(path) {
			g.path = ""
			m.envoy[name] = g
		}
	}
	for _, list := range m.pending {
		for i := range list {
			if list[i].has(path) {
				list[i].path = ""
			}
		}
	}
}

// finish lets all come to rest.
func (m *model) finish() {
	m.up = true
	clear(m.refuses)
	for _, name := range slices.Sorted(maps.Keys(m.bodies)) {
		m.ask(name, m.bodies[name])
	}
	for range 2 * int(maxLasting/time.Second) {
		m.settle()
		for len(m.flights) > 0 {
			m.ends(0)
			m.settle()
		}
		for name := range m.bodies {
			for len(m.pending[name]) > 0 {
				m.answers(name)
			}
		}
		m.now = m.now.Add(time.Second)
	}
	for name, p := range m.bodies {
		var paths []string
		for _, url := range p.urls() {
			paths = append(paths, pathOf(url))
		}
		want := given{local, strings.Join(paths, " "), string(p.body(m.t))}
		if got := m.envoy[name]; got != want {
			m.t.Fatalf("Envoy has %v for %s, want %v", got, name, want)
		}
	}
}

// The pauses between tries are those that are said.
func TestPause(t *testing.T) {
	t.Parallel()
	soon, later := &Failure{Temporary: true}, &Failure{}
	for _, tc := range []struct {
		attempt uint32
		why     *Failure
		q       *Request
		want    time.Duration
	}{
		{1, soon, nil, minTemporary},
		{2, soon, &Request{}, 2 * minTemporary},
		{1 << 30, soon, nil, maxTemporary},
		{1, later, nil, minLasting},
		{100, later, &Request{RetryBase: time.Second}, maxLasting},
		{1, soon, &Request{RetryBase: time.Second, RetryMax: time.Minute}, time.Second},
		{100, soon, &Request{RetryBase: time.Second, RetryMax: time.Minute}, time.Minute},
		{100, soon, &Request{RetryBase: time.Hour, RetryMax: 24 * time.Hour}, maxLasting},
		{3, soon, &Request{RetryBase: time.Nanosecond}, 4 * minTemporary},
		{1, &Failure{Temporary: true, RetryAfter: time.Minute}, nil, time.Minute},
		{1, &Failure{RetryAfter: 48 * time.Hour}, nil, maxAsked},
	} {
		if got := pause(tc.attempt, tc.why, tc.q, 0); got != tc.want {
			t.Errorf("after %d failures, %+v, %+v: %s, want %s", tc.attempt, tc.why, tc.q, got, tc.want)
		}
		if got := pause(tc.attempt, tc.why, tc.q, 0.999); got < tc.want/2 || got > tc.want {
			t.Errorf("after %d failures with jitter: %s of %s", tc.attempt, got, tc.want)
		}
	}
}

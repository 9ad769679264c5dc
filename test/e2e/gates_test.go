package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
)

// front is an address of the registry that can be taken away and given back.
type front struct {
	addr    string
	through http.Handler
	server  *http.Server
}

// front is there until it is taken down.
func (w *world) front() *front {
	f := &front{
		addr:    loopback(freePort(w.t)),
		through: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: w.registry.Addr}),
	}
	f.up(w.t)
	w.t.Cleanup(f.down)
	return f
}

func (f *front) up(t testing.TB) {
	t.Helper()
	lis, err := net.Listen("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	f.server = &http.Server{Handler: f.through, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = f.server.Serve(lis) }()
}

func (f *front) down() { _ = f.server.Close() }

// url makes a url of the registry one of the front's.
func (f *front) url(w *world, url string) string {
	return strings.Replace(url, w.registry.Addr, f.addr, 1)
}

// controlGate stands between agents and the control plane. Modules for which it
// has a rule are not to be had through it; all else passes.
type controlGate struct {
	addr  string
	asked atomic.Int64 // modules that a rule answered

	mu    sync.Mutex
	rules map[string]http.HandlerFunc // by digest
}

func (w *world) controlGate() *controlGate {
	g := &controlGate{rules: map[string]http.HandlerFunc{}}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	g.addr = lis.Addr().String()
	var h2c http.Protocols
	h2c.SetUnencryptedHTTP2(true)
	through := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: w.listen})
	through.FlushInterval = -1
	through.ErrorLog = log.New(io.Discard, "", 0)
	through.Transport = &http.Transport{Protocols: &h2c, DisableCompression: true}
	through.ErrorHandler = func(rw http.ResponseWriter, _ *http.Request, _ error) { rw.WriteHeader(http.StatusServiceUnavailable) }
	server := &http.Server{Protocols: &h2c, Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "Modules/Read") {
			body, err := io.ReadAll(r.Body) // one message
			if err != nil {
				return
			}
			if rule := g.rule(body); rule != nil {
				g.asked.Add(1)
				rule(rw, r)
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		through.ServeHTTP(rw, r)
	})}
	go func() { _ = server.Serve(lis) }()
	w.t.Cleanup(func() { _ = server.Close() })
	return g
}

func (g *controlGate) rule(request []byte) http.HandlerFunc {
	g.mu.Lock()
	defer g.mu.Unlock()
	for digest, rule := range g.rules {
		if bytes.Contains(request, []byte(digest)) {
			return rule
		}
	}
	return nil
}

// shut keeps a module from agents until it is opened.
func (g *controlGate) shut(mod []byte, rule http.HandlerFunc) (open func()) {
	sum := sha256.Sum256(mod)
	digest := hex.EncodeToString(sum[:])
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rules[digest] = rule
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		delete(g.rules, digest)
	}
}

// flags make an agent go through the gate.
func (g *controlGate) flags() []string { return []string{"--control", g.addr} }

// failsToRead is what a control plane answers that cannot read its own disk.
func failsToRead(rw http.ResponseWriter, _ *http.Request) {
	rw.Header().Set("Content-Type", "application/grpc")
	rw.Header().Set("Grpc-Status", "13")
	rw.Header().Set("Grpc-Message", "the disk is broken")
}

// on is the spec line that makes a plugin match one port.
func on(port int) string { return fmt.Sprintf("match: [{ports: [{number: %d}]}]", port) }

// lane is one port of a proxy, for a case that runs beside others.
type lane struct {
	*world
	t     *testing.T
	title string // of the case
	name  string // of its plugin
	port  int
}

// lanes gives one proxy with a port for each case, and runs the cases side by
// side. Each has a plugin of its own.
func lanes[C any](t *testing.T, w *world, n node, cases map[string]C, test func(l lane, c C)) *proxy {
	var listeners []listener
	var all []lane
	for name := range cases {
		port := freePort(t)
		listeners = append(listeners, listener{port: port, name: fmt.Sprintf("port-%d", port)})
		all = append(all, lane{title: name, name: fmt.Sprintf("p%d", port), port: port})
	}
	p := w.agent(n, w.gateway(listeners...))
	for _, l := range all {
		t.Run(l.title, func(t *testing.T) {
			t.Parallel()
			own := *w
			own.t, l.t, l.world = t, t, &own
			test(l, cases[l.title])
		})
	}
	return p
}

// plugin is the case's plugin, for its port only.
func (l lane) plugin(url string, more ...string) string {
	return plugin(l.name, url, append(more, on(l.port))...)
}

// tells is world.tells for the case's plugin.
func (l lane) tells(texts ...string) {
	l.t.Helper()
	l.world.tells(l.name, texts...)
}

func (l lane) statusCommand() []string { return []string{"status", l.name, "-n", "edge", "-o", "wide"} }

// describes waits until what describe says of an object has all of these texts.
func (w *world) describes(kind, name string, texts ...string) {
	w.t.Helper()
	w.shows(name, fmt.Sprintf("describe tells %q", texts), []string{"describe", kind, name, "-n", "edge"}, func(out string) bool {
		return !slices.ContainsFunc(texts, func(s string) bool { return !strings.Contains(out, s) })
	})
}

// shows waits until a command says of an object what it should. The command runs
// anew only when there is something new, as many tests wait at the same time.
func (w *world) shows(name, what string, command []string, right func(out string) bool) {
	w.t.Helper()
	admin := chandlerv1connect.NewAdminClient(http.DefaultClient, "http://"+w.admin)
	var shown *chandlerv1.ListResponse
	var out string
	eventually(w.t, 20*time.Second, what, func() (bool, string) {
		list, err := admin.List(w.t.Context(), connect.NewRequest(&chandlerv1.ListRequest{Namespace: "edge", Name: name, Proxies: true}))
		switch {
		case err != nil:
			return false, err.Error()
		case shown != nil && proto.Equal(shown, list.Msg):
			return false, out
		}
		shown = list.Msg
		out, _ = w.cli("", command...)
		return right(out), out
	})
}

// programmed waits until status says of plugins that their newest generation is in
// force.
func (w *world) programmed(names ...string) {
	w.t.Helper()
	admin := chandlerv1connect.NewAdminClient(http.DefaultClient, "http://"+w.admin)
	eventually(w.t, 20*time.Second, fmt.Sprintf("%v are in force", names), func() (bool, string) {
		list, err := admin.List(w.t.Context(), connect.NewRequest(&chandlerv1.ListRequest{Namespace: "edge"}))
		if err != nil {
			return false, err.Error()
		}
		var missing []string
		for _, name := range names {
			if !slices.ContainsFunc(list.Msg.Objects, func(o *chandlerv1.Object) bool {
				return o.Ref.Name == name && o.Status.GetObservedGeneration() == o.Generation &&
					slices.ContainsFunc(o.Status.GetConditions(), func(c *chandlerv1.Condition) bool {
						return c.Type == string(chandler.ConditionProgrammed) && c.Status == string(chandler.True)
					})
			}) {
				missing = append(missing, name)
			}
		}
		return len(missing) == 0, fmt.Sprintf("%v are not: %v", missing, list.Msg.Objects)
	})
}

var attempts = regexp.MustCompile(`(?i)attempt:? +(\d+)`)

// tried waits until status tells that something was tried n times.
func (l lane) tried(n int) {
	l.t.Helper()
	l.shows(l.name, fmt.Sprintf("it is tried %d times", n), l.statusCommand(), func(out string) bool {
		return slices.ContainsFunc(attempts.FindAllStringSubmatch(out, -1), func(m []string) bool {
			now, err := strconv.Atoi(m[1])
			return err == nil && now >= n
		})
	})
}

// healsIn measures how long a plugin takes into force once nothing is in its way.
func (l lane) healsIn(want ...string) {
	l.t.Helper()
	began := time.Now()
	heals(l.t, l.port, want...)
	l.t.Logf("in force %s after the cause went away", time.Since(began).Round(time.Millisecond))
}

// sighting collects what requests to a port see, from before it is open.
type sighting struct {
	stop chan struct{}
	wg   sync.WaitGroup
	mu   sync.Mutex
	seen []string // in order, repetitions left out
	lost int      // requests without an answer since the first answer
}

func watchPort(port int) *sighting {
	s := &sighting{stop: make(chan struct{})}
	s.wg.Go(func() {
		for {
			select {
			case <-s.stop:
				return
			case <-time.After(3 * time.Millisecond):
			}
			a, err := request(fresh, http.MethodGet, port, "/", nil)
			s.note(a, err)
		}
	})
	return s
}

func (s *sighting) note(a answer, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch now := fmt.Sprint(a.code, appended(a)); {
	case err != nil && len(s.seen) == 0: // not open yet
	case err != nil:
		s.lost++
	case len(s.seen) == 0 || s.seen[len(s.seen)-1] != now:
		s.seen = append(s.seen, now)
	}
}

// last is what was seen last; empty before the first answer.
func (s *sighting) last() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.seen) == 0 {
		return ""
	}
	return s.seen[len(s.seen)-1]
}

// sees waits until requests see something.
func (s *sighting) sees(t *testing.T, what string) {
	t.Helper()
	eventually(t, healed, "requests see "+what, func() (bool, string) { last := s.last(); return last == what, last })
}

// end gives what was seen.
func (s *sighting) end() []string {
	close(s.stop)
	s.wg.Wait()
	return s.seen
}

// wantSeen ends a sighting that must have seen exactly this, in this order, once
// it has seen the last of it.
func (s *sighting) wantSeen(t *testing.T, want ...string) {
	t.Helper()
	s.sees(t, want[len(want)-1])
	if got := s.end(); !slices.Equal(got, want) || s.lost > 0 {
		t.Errorf("requests saw %q and %d got no answer, want %q", got, s.lost, want)
	}
}

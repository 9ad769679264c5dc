package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chandler.dev/chandler/internal/testenv/module"
)

// healed is how long a plugin may take into force once nothing is in its way.
const healed = 5 * time.Second

// atOnce is within what time an order to take a plugin out is to take effect.
const atOnce = 2 * time.Second

// busy is how many times as long as it may take on a machine that does nothing else
// anything may take here: no change is to fail for what else ran beside its tests.
func busy() time.Duration {
	if raced || os.Getenv("CI") != "" {
		return 5
	}
	return 1
}

// patience is how long what is to be within a time may take here. On a machine that does
// other things too it is a minute at least: each of its processes may stand still for a
// while, and to wait for what comes costs nothing.
func patience(within time.Duration) time.Duration {
	if busy() == 1 || within == 0 {
		return within
	}
	return max(busy()*within, time.Minute)
}

// build gives the appending module a digest of its own.
func build(n int) []byte {
	return module.Append(module.WithSection("build", fmt.Appendf(nil, "%d", n)))
}

// heals waits until requests get exactly these tags, for as long as a cure may
// take.
func heals(t *testing.T, port int, want ...string) {
	t.Helper()
	eventually(t, healed, fmt.Sprintf("healed, requests get %v", want), func() (bool, string) {
		a, err := request(fresh, http.MethodGet, port, "/", nil)
		if err != nil {
			return false, err.Error()
		}
		return a.code == 200 && slices.Equal(appended(a), want), fmt.Sprintf("status %d, tags %v", a.code, appended(a))
	})
}

// has asks a port once and wants exactly these tags.
func has(t *testing.T, port int, want ...string) {
	t.Helper()
	if a := get(t, port, "/"); a.code != http.StatusOK || !slices.Equal(appended(a), want) {
		t.Errorf("status %d, tags %v; want %v", a.code, appended(a), want)
	}
}

// edit puts a manifest into a file of the plugins' directory, at once as a whole.
func (w *world) edit(name, manifest string) {
	w.t.Helper()
	temp := filepath.Join(w.dir, name+".next")
	if err := os.WriteFile(temp, []byte(manifest), 0o600); err != nil {
		w.t.Fatal(err)
	}
	if err := os.Rename(temp, filepath.Join(w.plugins, name+".yaml")); err != nil {
		w.t.Fatal(err)
	}
}

// tells waits until what describe says of a plugin has all of these texts.
func (w *world) tells(name string, texts ...string) {
	w.t.Helper()
	w.describes("wasmplugin", name, texts...)
}

// gate stands before the registry. While it has a rule, the rule answers blob
// requests, or all of them.
type gate struct {
	addr  string
	rule  atomic.Pointer[rule]
	asked atomic.Int64 // requests that the rule answered
}

type rule struct {
	all bool
	// blob is the digest of the only blob that is meant; empty: every one is.
	blob   string
	answer http.HandlerFunc
}

func (w *world) gate() *gate {
	g := &gate{}
	through := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: w.registry.Addr})
	server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if rule := g.rule.Load(); rule != nil && (rule.all || strings.Contains(r.URL.Path, "/blobs/") && strings.HasSuffix(r.URL.Path, rule.blob)) {
			g.asked.Add(1)
			rule.answer(rw, r)
			return
		}
		through.ServeHTTP(rw, r)
	}))
	w.t.Cleanup(server.Close)
	g.addr = strings.TrimPrefix(server.URL, "http://")
	return g
}

// url makes a url of the registry one that goes through the gate.
func (g *gate) url(w *world, url string) string {
	return strings.Replace(url, w.registry.Addr, g.addr, 1)
}

// open takes the rule away.
func (g *gate) open() { g.rule.Store(nil) }

// awaitAsked waits until the rule has answered n more requests.
func (g *gate) awaitAsked(t *testing.T, n int64) {
	t.Helper()
	n += g.asked.Load()
	eventually(t, 20*time.Second, "the registry is asked", func() (bool, string) {
		now := g.asked.Load()
		return now >= n, fmt.Sprintf("%d of %d", now, n)
	})
}

// breakOff answers with half of a body and ends the connection, with a reset or
// as if all had been said.
func breakOff(body []byte, reset bool) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) {
		conn, buf, err := rw.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		fmt.Fprintf(buf, "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n", len(body))
		_, _ = buf.Write(body[:len(body)/2])
		_ = buf.Flush()
		if tcp, ok := conn.(*net.TCPConn); ok && reset {
			_ = tcp.SetLinger(0)
		}
		_ = conn.Close()
	}
}

// stall sends the beginning of a body and then nothing, until the client goes;
// gone counts those that went.
func stall(gone *atomic.Int64) http.HandlerFunc {
	return func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Length", "1000")
		_, _ = rw.Write([]byte("\x00asm"))
		rw.(http.Flusher).Flush()
		<-r.Context().Done()
		gone.Add(1)
	}
}

// wholeModules checks that every module in a directory has the digest of its name.
func wholeModules(t *testing.T, dir string) (names []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		if name := strings.TrimSuffix(filepath.Base(file), ".wasm"); hex.EncodeToString(sum[:]) != name {
			t.Errorf("%s does not hold what its name says", file)
		}
	}
	return files
}

// order watches that the versions which requests see, numbered by their tags,
// never go back. Requests are made one after the other.
type order struct {
	*load
	mu   sync.Mutex
	last int
}

func watchOrder(port int) *order {
	o := &order{}
	o.load = startLoad(port, 1, 0, func(a answer) error {
		tags := appended(a)
		if a.code != http.StatusOK || len(tags) != 1 {
			return fmt.Errorf("status %d, tags %v", a.code, tags)
		}
		var n int
		if _, err := fmt.Sscanf(tags[0], "n%d", &n); err != nil {
			return fmt.Errorf("tag %q: %w", tags[0], err)
		}
		o.mu.Lock()
		defer o.mu.Unlock()
		if n < o.last {
			return fmt.Errorf("version %d after %d", n, o.last)
		}
		o.last = n
		return nil
	})
	return o
}

func (o *order) check(t *testing.T) {
	t.Helper()
	o.end()
	if len(o.wrong) > 0 {
		t.Errorf("of %d requests some went wrong: %s", o.answers.Load(), strings.Join(o.wrong, "; "))
	}
}

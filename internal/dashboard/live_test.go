package dashboard

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/test/bufconn"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
)

// tape is what a stream says, for whoever listens meanwhile.
type tape struct {
	httptest.ResponseRecorder
	mu   sync.Mutex
	text []byte
}

func (t *tape) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, b...)
	return len(b), nil
}

func (t *tape) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.text)
}

// follow opens a stream, and gives what it said by now; end ends it.
func follow(t *testing.T, h http.Handler) (said func() []string, end func()) {
	ctx, cancel := context.WithCancel(t.Context())
	w := &tape{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, Root+"live", nil).WithContext(ctx))
	}()
	return func() []string {
			synctest.Wait()
			var versions []string
			for line := range strings.Lines(w.String()) {
				if v, ok := strings.CutPrefix(line, "data: "); ok {
					versions = append(versions, strings.TrimSpace(v))
				}
			}
			return versions
		}, func() {
			cancel()
			<-done
		}
}

// TestLive: a stream tells of every change soon, and of many at once a few times a second
// only; the statuses are joined once for all who follow.
func TestLive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := told(t, 12, 6)
		h := New(configOf(f, admin))
		const many = 20
		var streams []func() []string
		for range many {
			said, end := follow(t, h)
			defer end()
			streams = append(streams, said)
		}
		each := func(n int) {
			t.Helper()
			for _, said := range streams {
				if got := said(); len(got) != n {
					t.Fatalf("a stream said %v, want %d versions", got, n)
				}
			}
		}
		each(1)
		time.Sleep(time.Second)
		each(1)
		f.set(0, 1, chandler.StateFetching, "", "")
		each(2)         // at once
		for range 200 { // two seconds
			f.set(0, 1, chandler.StateReady, "", "")
			f.emit(chandler.Event{Reason: chandler.EventPolicy})
			time.Sleep(10 * time.Millisecond)
		}
		time.Sleep(time.Second)
		n := len(streams[0]())
		if most := 2 + int(3*time.Second/shortest); n < 8 || n > most {
			t.Errorf("%d versions in three seconds", n)
		}
		each(n)
		if f.joins != n {
			t.Errorf("the statuses were joined %d times for %d versions", f.joins, n)
		}
		// A page shows the version that was told last, and is made of the same snapshot.
		_, text := get(t, h, Root)
		said := streams[0]()
		if last := said[len(said)-1]; !strings.Contains(text, `data-version="`+last+`"`) || f.joins != n {
			t.Errorf("the page is not of version %s", last)
		}
	})
}

// TestStreamsAreFew: more pages than that do not follow, and are told; what ends makes
// room, and each ends by itself some time.
func TestStreamsAreFew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := New(configOf(told(t, 12, 6), looker))
		_, end := follow(t, h)
		for range maxStreams - 1 {
			_, end := follow(t, h)
			defer end()
		}
		synctest.Wait()
		if code, text := get(t, h, Root+"live"); code != http.StatusServiceUnavailable || !strings.Contains(text, "follow already") {
			t.Errorf("one more: %d %s", code, text)
		}
		end()
		said, end := follow(t, h)
		if len(said()) != 1 {
			t.Error("there is no room where one ended")
		}
		time.Sleep(streamEnds + time.Second)
		end()
		_, end = follow(t, h)
		end()
	})
}

// TestNotReady: without anything to show, a page says why.
func TestNotReady(t *testing.T) {
	t.Parallel()
	f := told(t, 12, 6)
	f.err = fmt.Errorf("the resources have not been read yet")
	h := New(configOf(f, admin))
	if code, text := get(t, h, Root); code != http.StatusServiceUnavailable || !strings.Contains(text, "not been read yet") {
		t.Errorf("%d %s", code, text)
	}
	f.err = nil
	if code, _ := get(t, h, Root); code != http.StatusOK {
		t.Errorf("then: %d", code)
	}
}

// TestPartial: a replica that does not lead says so on every page, and in place of the gates
// that it does not know.
func TestPartial(t *testing.T) {
	t.Parallel()
	f := told(t, 12, 6)
	for i := range f.rollouts {
		f.rollouts[i].Gates = nil
	}
	under := func(rollout control.RolloutView) bool { return rollout.State == chandler.RolloutProgressing }
	page := rolloutPath(f.rollouts[slices.IndexFunc(f.rollouts, under)].Key)
	if _, text := get(t, New(configOf(f, admin)), page); !strings.Contains(text, "None to be seen: nothing was measured in this step yet") {
		t.Error("nobody is told that nothing was measured yet")
	}
	f.partial = "another leads"
	h := New(configOf(f, looker))
	if _, text := get(t, h, Root); !strings.Contains(text, " · another leads</p>") {
		t.Error("the first page does not say who leads")
	}
	if _, text := get(t, h, page); !strings.Contains(text, "None to be seen: another leads.") {
		t.Error("the rollout's page does not say who measures")
	}
}

// TestRenderedOnce: who may see the same is shown the same bytes; who may not is not.
func TestRenderedOnce(t *testing.T) {
	t.Parallel()
	f := told(t, 12, 6)
	c := &rendered{}
	for i := range 2 * maxRendered {
		c.put(fmt.Sprint(i), make([]byte, 10))
	}
	if len(c.pages) != maxRendered {
		t.Errorf("%d pages are kept", len(c.pages))
	}
	c = &rendered{}
	c.put("large", make([]byte, maxRenderedBytes+1))
	if len(c.pages) != 0 {
		t.Error("a page without bounds is kept")
	}
	// One handler, two viewers, one after the other.
	who := admin
	cfg := configOf(f, admin)
	cfg.Viewer = func(context.Context) Viewer { return who }
	h := New(cfg)
	page := pluginPath(f.objects[0].Key)
	if _, text := get(t, h, page); !strings.Contains(text, "env-value") {
		t.Error("who may read does not")
	}
	who.verbs = looker.verbs
	if _, text := get(t, h, page); strings.Contains(text, "env-value") {
		t.Error("who may not read is shown the page of who may")
	}
}

// BenchmarkSnapshot is what a change costs, however many look.
func BenchmarkSnapshot(b *testing.B) {
	f := told(b, 1000, 20)
	views, rollouts := f.objects, f.rollouts
	b.ReportAllocs()
	for b.Loop() {
		s := &snapshot{}
		s.fill(views, f.proxies, rollouts, "istio-system")
	}
}

// BenchmarkMap is what the map costs for a viewer whom nobody is like.
func BenchmarkMap(b *testing.B) {
	f := told(b, 1000, 20)
	h := New(configOf(f, admin))
	b.ReportAllocs()
	size := 0
	for i := 0; b.Loop(); i++ {
		code, text := get(b, h, fmt.Sprintf("%smatrix?n=%d", Root, i))
		if size = len(text); code != http.StatusOK {
			b.Fatal(code)
		}
	}
	b.ReportMetric(float64(size), "page-bytes")
}

// TestSizeOfMap: the map of 1,000 proxies and 20 plugins has a square for each, and is
// no more than some hundred kilobytes.
func TestSizeOfMap(t *testing.T) {
	t.Parallel()
	f := told(t, 1000, 20)
	code, text := get(t, New(configOf(f, admin)), Root+"matrix")
	squares, want := 0, 0
	for rest := text; ; {
		_, after, ok := strings.Cut(rest, `data-marks="`)
		if !ok {
			break
		}
		letters, after, _ := strings.Cut(after, `"`)
		squares += len(letters) - strings.Count(letters, "-")
		rest = after
	}
	for i := range f.objects {
		for _, p := range f.proxies {
			if k := f.objects[i].Key; k.Namespace == "istio-system" || k.Namespace == p.Namespace {
				want++
			}
		}
	}
	want++ // what is bypassed on proxy 0 is for a namespace that it is not of
	if code != http.StatusOK || squares != want || want < 17_000 {
		t.Errorf("%d: %d squares, want %d", code, squares, want)
	}
	if len(text) > 400<<10 || strings.Count(text, "<path") > 400 {
		t.Errorf("%d bytes, %d paths", len(text), strings.Count(text, "<path"))
	}
}

// TestMapIsBounded: of a fleet without end a part is drawn, and it is said.
func TestMapIsBounded(t *testing.T) {
	t.Parallel()
	code, text := get(t, New(configOf(scene(maxMapped+70, 2), admin)), Root+"matrix")
	if code != http.StatusOK || !strings.Contains(text, "70 more proxies have no place") || len(text) > 1<<20 {
		t.Errorf("%d, %d bytes", code, len(text))
	}
}

// TestStreamOutlivesTheServersTimes: what a server allows a request counts for no stream.
func TestStreamOutlivesTheServersTimes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := told(t, 4, 4)
		const most = 300 * time.Millisecond
		l := bufconn.Listen(64 << 10)
		srv := &http.Server{Handler: New(configOf(f, admin)), ReadTimeout: most, WriteTimeout: most}
		go func() { _ = srv.Serve(l) }()
		defer srv.Close()
		transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return l.DialContext(ctx) }}
		defer transport.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://control"+Root+"live", nil)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		lines := bufio.NewScanner(resp.Body)
		for time.Since(began) < 3*most {
			if !lines.Scan() {
				t.Fatalf("the stream ended after %v: %v", time.Since(began), lines.Err())
			}
			if strings.HasPrefix(lines.Text(), "data: ") {
				f.set(0, 0, chandler.StateReady, "", "")
			}
		}
	})
}

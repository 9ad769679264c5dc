package remotewasm

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/xds/relay"
)

// A site is a state, and one listener with several modules.
type site struct {
	*testing.T
	st    *state
	depot *depot
	now   time.Time
}

func newSite(t *testing.T) *site {
	return &site{t, newState(func() float64 { return 0 }), newDepot(t), time.Unix(1e9, 0)}
}

const (
	first  = "https://x.example/1.wasm"
	second = "https://x.example/2.wasm"
	third  = "https://x.example/3.wasm"
)

// gets holds what Envoy gets for a listener with modules at urls: a path for each, empty
// where something stands in; or nothing new.
func (s *site) gets(when string, urls []string, what answer, paths ...string) {
	s.Helper()
	p := plugin{name: "l", url: urls[0], more: urls[1:]}
	r, err := attach.ReadRemote(&anypb.Any{TypeUrl: ListenerType, Value: p.body(s)})
	if err != nil {
		s.Fatal(err)
	}
	got, is := s.st.give("l", r, servingPatience, s.now)
	if is != what || !slices.Equal(got, paths) {
		s.Errorf("%s: Envoy gets %d %q, want %d %q", when, is, got, what, paths)
	}
	s.st.step(s.now)
}

// comes has a module fetched.
func (s *site) comes(url string) {
	s.Helper()
	for _, src := range s.st.names["l"].wanted {
		if src.flying && src.request.Reference.String() == url {
			s.depot.held[digestOf(url)]++
			s.st.fetched(src, &lease{depot: s.depot, digest: digestOf(url)}, nil, s.now)
			return
		}
	}
	s.Fatalf("nobody fetches %s", url)
}

func (s *site) after(d time.Duration) {
	s.now = s.now.Add(d)
	s.st.step(s.now)
}

// What is missing of a first listener is stood in for after a while, and that alone; what
// Envoy has then goes on while another module is waited for, for a while again.
func TestListenerIsStoodInForInPart(t *testing.T) {
	s := newSite(t)
	s.gets("at first", []string{first, second}, held)
	s.comes(first)
	s.gets("with one", []string{first, second}, held)
	s.after(servingPatience)
	if !s.st.take().changed["l"] {
		t.Error("nobody is told that it took too long")
	}
	s.gets("too late", []string{first, second}, standIn, pathOf(first), "")
	s.st.acked("l")
	s.gets("with another", []string{third, second}, held)
	s.after(servingPatience)
	s.gets("too late again", []string{third, second}, standIn)
	s.st.acked("l")
	s.comes(second)
	s.comes(third)
	s.gets("with all", []string{third, second}, local, pathOf(third), pathOf(second))
	s.st.acked("l")
	s.gets("with one that is new", []string{third, first, second}, local, pathOf(third), pathOf(first), pathOf(second))
	s.gets("with one that cannot be had", []string{third, "https://x.example/none.wasm"}, held)
	s.after(10 * servingPatience)
	s.gets("for long", []string{third, "https://x.example/none.wasm"}, held)
}

// A listener that Envoy refuses for its modules goes on without any; one that it refuses
// for something else is not held against them.
func TestListenerThatEnvoyRefuses(t *testing.T) {
	s := newSite(t)
	both := []string{first, second}
	s.gets("at first", both, held)
	s.comes(first)
	s.comes(second)
	s.gets("with both", both, local, pathOf(first), pathOf(second))
	s.st.spared("l")
	s.gets("refused for something else", both, local, pathOf(first), pathOf(second))
	s.st.rejected("l", s.now)
	s.gets("refused", both, standIn)
	s.after(refusedPause)
	s.gets("once more", both, local, pathOf(first), pathOf(second))
	s.st.acked("l")
	s.st.spared("l")
	s.gets("in force", both, local, pathOf(first), pathOf(second))
	if e := s.st.names["l"]; !e.has() || len(e.good) != 2 {
		t.Errorf("Envoy has %+v", e)
	}
}

// A part that Envoy refuses is not given again, and what a stand-in is for is not held back.
func TestPartThatEnvoyRefuses(t *testing.T) {
	s := newSite(t)
	s.gets("at first", []string{first, second}, held)
	s.comes(first)
	s.after(servingPatience)
	s.gets("too late", []string{first, second}, standIn, pathOf(first), "")
	s.st.rejected("l", s.now)
	s.gets("refused", []string{first, second}, standIn)
	s.st.acked("l")
	s.comes(second)
	s.gets("with both", []string{first, second}, local, pathOf(first), pathOf(second))
}

// What several modules meant is known to the next one, those in force before others, and
// one module that is named twice is one.
func TestListenerRestart(t *testing.T) {
	s := newSite(t)
	s.gets("at first", []string{first, second, first}, held)
	s.comes(first)
	s.comes(second)
	s.gets("with all", []string{first, second, first}, local, pathOf(first), pathOf(second), pathOf(first))
	s.st.acked("l")
	s.gets("with another", []string{third}, held)
	s.comes(third)
	records := s.st.records()
	if len(records) != 1 || records[0].InForce != 2 || len(records[0].Modules) != 3 || records[0].Modules[2].Digest != digestOf(third) {
		t.Fatalf("%+v", records)
	}
	s.st = newState(func() float64 { return 0 })
	s.st.restore(records, s.now)
	if again := s.st.records(); fmt.Sprint(again) != fmt.Sprint(records) {
		t.Errorf("%+v, then %+v", records, again)
	}
	s.st.another(s.now)
	s.gets("after a restart", []string{first, second, first}, held)
	for _, src := range s.st.names["l"].wanted {
		if !src.flying || src.digest == "" {
			t.Errorf("%+v is not looked for on disk", src)
			continue
		}
		s.depot.held[src.digest]++
		s.st.fetched(src, &lease{depot: s.depot, digest: src.digest}, nil, s.now)
	}
	s.gets("from disk", []string{first, second, first}, local, pathOf(first), pathOf(second), pathOf(first))
}

// A module that cannot be had by one cluster is asked for by another one at once when the
// resource names that, and is not another module.
func TestAnotherCluster(t *testing.T) {
	s := newSite(t)
	ask := func(cluster string) *source {
		r := &attach.RemoteWasm{Cluster: cluster}
		r.Reference, _ = chandler.ParseReference(first)
		e := s.st.entry("l")
		e.now = 0
		src, _ := s.st.ask(e, r, 1, s.now)
		s.st.step(s.now)
		return src
	}
	src := ask("one")
	s.st.fetched(src, nil, &Failure{Problem: chandler.Problem{Code: chandler.CodeFetchFailed}}, s.now)
	if ask("one"); src.flying {
		t.Error("it is asked for again at once")
	}
	if again := ask("two"); again != src || !src.flying || src.request.Cluster != "two" || src.attempt != 0 {
		t.Errorf("by another cluster: %+v", src)
	}
}

// More modules than one listener may have are not fetched: stand-ins are in their places.
func TestListenerBounds(t *testing.T) {
	s := newSite(t)
	var urls []string
	for i := range maxModules + 1 {
		urls = append(urls, fmt.Sprintf("https://x.example/%d.wasm", i))
	}
	s.gets("too many", urls, standIn)
	if len(s.st.take().start) > 0 {
		t.Error("too many are fetched")
	}
	s.gets("as many as may be", urls[1:], held)
	if n := len(s.st.take().start); n != maxFetches {
		t.Errorf("%d are fetched at a time", n)
	}
	s.gets("others", slices.Repeat([]string{"https://y.example/1.wasm"}, maxModules), held)
	for i := range 10 * maxWanted {
		s.gets("one after the other", []string{fmt.Sprintf("https://z.example/%d.wasm", i)}, held)
	}
	if n := len(s.st.names["l"].wanted); n > maxWanted {
		t.Errorf("%d are kept for one", n)
	}
}

// A keeper of listeners minds no extension configs, keeps their secrets from the disk, and
// is told apart there.
func TestKeeperOfListeners(t *testing.T) {
	in(t, func(w *world) {
		keeper := New(Config{Type: ListenerType, Fetcher: w.depot, Dir: w.dir, Changed: func(...string) {}})
		p := plugin{name: "l", url: first, more: []string{second}}
		if _, ready := keeper.Transform(relay.Resource{Type: ListenerType, Name: "l", Body: p.body(t)}); ready {
			t.Error("a listener goes on without its modules")
		}
		keeper.Tell(relay.Event{Type: attach.ExtensionConfigType, Removed: []string{"l"}})
		if got := keeper.Status(); len(got) != 2 || got[0].Module != first || got[1].Module != second || got[0].Name != "l" || got[0].InForce {
			t.Errorf("%+v", got)
		}
		if keeper.Gave("l") {
			t.Error("it was given")
		}
		p.url, p.more = "", []string{}
		if body, ready := keeper.Transform(relay.Resource{Type: ListenerType, Name: "l", Body: p.body(t)}); !ready || !bytes.Equal(body, p.body(t)) {
			t.Error("a listener without Wasm is other")
		}
		secret := `{"auths":{}}`
		p = plugin{name: "l", url: one, secret: &secret, more: []string{}}
		kept, had := Discreet(ListenerType, p.body(t))
		if !had || bytes.Contains(kept, []byte("auths")) {
			t.Errorf("kept is %q", kept)
		}
	})
	if a, b := recordsFiles[ListenerType], recordsFiles[attach.ExtensionConfigType]; a == "" || a == b {
		t.Errorf("the files are %q and %q", a, b)
	}
}

// Wasm that is not made local where it stands goes on, and is told of once, by the field, as
// long as it is there.
func TestElsewhere(t *testing.T) {
	in(t, func(w *world) {
		var log bytes.Buffer
		keeper := New(Config{Type: attach.ExtensionConfigType, Fetcher: w.depot, Changed: func(...string) {}, Log: slog.New(slog.NewTextHandler(&log, nil))})
		inner := plugin{name: "inner", url: first}.body(t)
		holder, err := proto.Marshal(&corev3.TypedExtensionConfig{Name: "composite", TypedConfig: &anypb.Any{TypeUrl: "type.googleapis.com/some.Composite", Value: inner}})
		if err != nil {
			t.Fatal(err)
		}
		says := func(body []byte) {
			if got, ready := keeper.Transform(relay.Resource{Type: attach.ExtensionConfigType, Name: "composite", Body: body}); !ready || !bytes.Equal(got, body) {
				t.Errorf("it does not go on as it is: %q", got)
			}
		}
		told := func(when string, want bool) {
			t.Helper()
			list := keeper.Status()
			if is := len(list) == 1 && list[0].Elsewhere && list[0].Name == "composite" && list[0].Problem.Field == "typed_config"; is != want || len(list) > 1 {
				t.Errorf("%s the status has %+v", when, list)
			}
		}
		says(holder)
		says(holder)
		told("with one", true)
		if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "resource=composite") || !strings.Contains(text, "typed_config: Wasm is not made local in 1 field") {
			t.Errorf("the log says\n%s", text)
		}
		says(nil)
		told("when it has none any more", false)
		for _, gone := range []func(){func() { keeper.Tell(relay.Event{Type: attach.ExtensionConfigType, Removed: []string{"composite"}}) }, keeper.Another} {
			says(holder)
			told("again", true)
			gone()
			told("when it is gone", false)
		}
	})
}

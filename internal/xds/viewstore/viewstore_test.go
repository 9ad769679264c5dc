package viewstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protowire"
	"pgregory.net/rapid"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/durable/crashfs"
	"chandler.dev/chandler/internal/xds/relay"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	clusters  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	listeners = "type.googleapis.com/envoy.config.listener.v3.Listener"
)

// view is one of n resources that have word in them, in the state of the world.
func view(typeURL, word string, n int) relay.View {
	field := func(b []byte, num protowire.Number, content []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), content)
	}
	b := field(field(nil, 1, []byte(typeURL)), 3, []byte(word))
	for i := range n {
		message := field(field(nil, 1, fmt.Appendf(nil, "r-%03d", i)), 2, []byte(word))
		b = field(b, 5, field(field(nil, 1, []byte(typeURL)), 2, message))
	}
	v, err := relay.ReadView(b)
	if err != nil {
		panic(err)
	}
	v.Changes = 1
	return v
}

// text is a view as bytes.
func text(v relay.View) string {
	var b bytes.Buffer
	if _, err := v.WriteTo(&b); err != nil {
		panic(err)
	}
	return b.String()
}

func same(got []relay.View, want ...relay.View) bool {
	return slices.EqualFunc(got, want, func(a, b relay.View) bool { return text(a) == text(b) })
}

func open(t *testing.T, fsys durable.FS, limit int64) (*Store, []relay.View, []*chandler.Problem) {
	t.Helper()
	s, views, problems, err := Open(Config{FS: fsys, Dir: "/d/views", MaxBytes: limit})
	if err != nil {
		t.Fatal(err)
	}
	return s, views, problems
}

// put has a store write views and nothing else, at once.
func (s *Store) put(views ...relay.View) { s.write(views, time.Time{}) }

// saved has a store of its own write views.
func saved(fsys durable.FS, views ...relay.View) error {
	s, _, _, err := Open(Config{FS: fsys, Dir: "/d/views"})
	if err != nil {
		return err
	}
	s.put(views...)
	if p := s.Problems(); len(p) > 0 {
		return p[0]
	}
	return nil
}

func TestKeeps(t *testing.T) {
	t.Parallel()
	want := []relay.View{view(clusters, strings.Repeat("x", 1<<20), 2), view(listeners, "one", 3)}
	fsys := crashfs.New()
	if err := saved(fsys, want[1], want[0]); err != nil {
		t.Fatal(err)
	}
	s, got, problems := open(t, fsys.Restart(crashfs.LoseUnsynced), 0)
	if !same(got, want...) || len(problems) != 0 {
		t.Fatalf("got %d views, %v", len(got), problems)
	}
	s.put(want[1])
	if _, got, _ := open(t, s.cfg.FS, 0); !same(got, want[1]) || len(s.Problems()) != 0 {
		t.Errorf("when one is gone: %d views, %v", len(got), s.Problems())
	}
}

// stamps are the times at which files were written.
func stamps(t *testing.T, fsys durable.FS) map[string]time.Time {
	t.Helper()
	entries, err := fsys.ReadDir("/d/views")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]time.Time{}
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		all[e.Name()] = st.ModTime()
	}
	return all
}

// A change of one type leaves the files of the others alone, and what is the same as
// before is not written, also not by the next agent.
func TestWritesWhatChanged(t *testing.T) {
	t.Parallel()
	fsys := crashfs.New()
	c, l := view(clusters, "one", 2), view(listeners, "one", 2)
	if err := saved(fsys, c, l); err != nil {
		t.Fatal(err)
	}
	before := stamps(t, fsys)
	if err := saved(fsys, c, view(listeners, "two", 2)); err != nil {
		t.Fatal(err)
	}
	after := stamps(t, fsys)
	if !after[nameOf(c)].Equal(before[nameOf(c)]) || after[nameOf(l)].Equal(before[nameOf(l)]) {
		t.Error("the file of clusters was written, or that of listeners was not")
	}
}

// However often something changes, it is written once in a while, and at the end; a large
// view more seldom, which does not keep a small one waiting.
func TestPace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fsys := crashfs.New()
		s, _, _ := open(t, fsys, 0)
		ctx, cancel := context.WithCancel(t.Context())
		var changes atomic.Uint64
		word := strings.Repeat("x", 2<<20)
		large, small := view(clusters, word, 1), view(listeners, "", 0)
		views := func() []relay.View {
			n := changes.Load()
			l, c := view(listeners, fmt.Sprint(n), 2), view(clusters, fmt.Sprint(n)+word, 1)
			l.Changes, c.Changes = n, n
			return []relay.View{l, c}
		}
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx, views) }()
		writes, last := map[string]int{}, map[string]time.Time{}
		for range 200 { // twenty seconds
			changes.Add(1)
			s.Changed()
			synctest.Wait()
			now := stamps(t, fsys)
			for name, at := range now {
				if !at.Equal(last[name]) {
					writes[name]++
				}
			}
			last = now
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
		}
		if n := writes[nameOf(small)]; n < 18 || n > 22 {
			t.Errorf("%d writes of a small view in twenty seconds", n)
		}
		if n := writes[nameOf(large)]; n < 4 || n > 6 {
			t.Errorf("%d writes of a large view in twenty seconds", n)
		}
		changes.Store(1000)
		cancel()
		<-done
		if _, got, _ := open(t, fsys, 0); !same(got, views()[1], views()[0]) {
			t.Error("the last is not kept")
		}
	})
}

// What does not fit is told; what is there stays, and room makes it fit.
func TestBound(t *testing.T) {
	t.Parallel()
	fsys := crashfs.New()
	s, _, _ := open(t, fsys, 2000)
	one := []relay.View{view(clusters, "one", 5), view(listeners, "one", 5)}
	s.put(one...)
	if p := s.Problems(); len(p) != 0 {
		t.Fatal(p)
	}
	large := view(clusters, "two", 50)
	large.Changes = 2
	s.put(large, one[1])
	p := s.Problems()
	if len(p) != 1 || p[0].Code != chandler.CodeCacheFull || !strings.Contains(p[0].Message, "50 resources") || !strings.Contains(p[0].Message, "2000 bytes") || p[0].Hint == "" {
		t.Errorf("told: %v", p)
	}
	if _, got, _ := open(t, fsys, 2000); !same(got, one...) {
		t.Errorf("%d are kept", len(got))
	}
	s.cfg.MaxBytes = 8000
	s.put(large)
	if _, got, _ := open(t, fsys, 8000); len(s.Problems()) != 0 || !same(got, large) {
		t.Errorf("with room: %d, told: %v", len(got), s.Problems())
	}
	s.cfg.MaxBytes = 1 << 30
	many := []relay.View{large}
	for i := range maxFiles {
		many = append(many, view(fmt.Sprint("x", i), "x", 1))
	}
	s.put(many...)
	if n := len(s.Problems()); n != 1 {
		t.Errorf("%d of too many types are told", n)
	}
}

// A file that was torn, changed or exchanged is told and set aside; the others are read. It
// goes when there is no room for it.
func TestFault_F16_TornViews(t *testing.T) {
	t.Parallel()
	one := []relay.View{view(clusters, "one", 2), view(listeners, "one", 2)}
	name := "/d/views/" + nameOf(one[0])
	for what, change := range map[string]func([]byte) []byte{
		"empty":   func([]byte) []byte { return nil },
		"cut":     func(b []byte) []byte { return b[:len(b)-1] },
		"half":    func(b []byte) []byte { return b[:len(b)/2] },
		"zeroes":  func(b []byte) []byte { return make([]byte, len(b)) },
		"one bit": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"longer":  func(b []byte) []byte { return append(b, 0) },
		"exchanged": func([]byte) []byte {
			var w bytes.Buffer
			_, _ = encode(&w, view(listeners, "x", 1), new(seal))
			return w.Bytes()
		},
	} {
		fsys := crashfs.New()
		if err := saved(fsys, one...); err != nil {
			t.Fatal(err)
		}
		if err := fsys.Corrupt(name, change); err != nil {
			t.Fatal(err)
		}
		_, got, problems := open(t, fsys, 0)
		if !same(got, one[1]) || len(problems) != 1 || !strings.Contains(problems[0].Error(), name) {
			t.Errorf("%s: got %d, told %v", what, len(got), problems)
		}
		two := view(clusters, "two", 2)
		if err := saved(fsys, two, one[1]); err != nil {
			t.Fatal(err)
		}
		s, got, problems := open(t, fsys, 0)
		if !same(got, two, one[1]) || len(problems) != 0 {
			t.Errorf("%s: written anew it is %d, %v", what, len(got), problems)
		}
		damaged := "/d/views/damaged-" + nameOf(two)
		if _, err := fsys.Stat(damaged); err != nil {
			t.Errorf("%s: it is not set aside: %v", what, err)
		}
		for _, f := range s.files {
			s.cfg.MaxBytes += f.size
		}
		s.cfg.MaxBytes -= DefaultMaxBytes
		two = view(clusters, "six", 2)
		two.Changes = 2
		s.put(two, one[1])
		if _, err := fsys.Stat(damaged); (err == nil) != (what == "empty") || len(s.Problems()) != 0 {
			t.Errorf("%s: without room it is there, or something is told: %v", what, s.Problems())
		}
	}
}

// Files of another format stay as they are.
func TestFault_F78_OtherFormats(t *testing.T) {
	t.Parallel()
	fsys := crashfs.New()
	if err := saved(fsys); err != nil {
		t.Fatal(err)
	}
	other := "/d/views/view-3-00"
	if err := durable.Write(fsys, other, []byte("x")); err != nil {
		t.Fatal(err)
	}
	s, got, problems := open(t, fsys, 0)
	s.put()
	if _, err := fsys.Stat(other); err != nil || len(got)+len(problems) != 0 {
		t.Errorf("%v, %v, %v", got, problems, err)
	}
}

// oneOf fails unless each type's view is of one of the words, whole.
func oneOf(t *testing.T, fsys durable.FS, words ...string) {
	t.Helper()
	_, got, problems := open(t, fsys, 0)
	if len(problems) != 0 {
		t.Errorf("torn: %v", problems)
	}
	for _, v := range got {
		if !slices.ContainsFunc(words, func(word string) bool { return same([]relay.View{v}, view(v.Type, word, 20)) }) {
			t.Errorf("%s is %.200q", v.Type, text(v))
		}
	}
}

func both(word string) func(*crashfs.FS) error {
	return func(fsys *crashfs.FS) error {
		return saved(fsys, view(clusters, word, 20), view(listeners, word, 20))
	}
}

func TestFault_F3_F20_ViewsAreOldOrNew(t *testing.T) {
	t.Parallel()
	crashfs.Sweep(t, both("older"), both("newer"), func(t *testing.T, after *crashfs.FS, finished bool) {
		if finished {
			oneOf(t, after, "newer")
			return
		}
		oneOf(t, after, "older", "newer")
	})
}

// An error of the disk is told, and what is to be kept is written all the same, later.
func TestFault_F14_F15_ViewsAreWrittenLater(t *testing.T) {
	t.Parallel()
	crashfs.SweepErrors(t, both("older"), func(fsys *crashfs.FS) error {
		s, _, _, err := Open(Config{FS: fsys, Dir: "/d/views"})
		if err != nil {
			return nil // nothing to go on with; an agent goes on without
		}
		for range 4 {
			s.put(view(clusters, "newer", 20), view(listeners, "newer", 20))
		}
		if p := s.Problems(); len(p) != 0 {
			return p[0]
		}
		return nil
	}, func(t *testing.T, fsys *crashfs.FS, err error) {
		if err != nil {
			t.Error(err)
		}
		oneOf(t, fsys, "older", "newer")
	})
}

// A disk that stays full is tried again ever more seldom, and as soon as there is room
// all is well.
func TestFault_F14_FullDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fsys := crashfs.New()
		if err := both("older")(fsys); err != nil {
			t.Fatal(err)
		}
		s, _, _ := open(t, fsys, 0)
		fsys.Limit(10)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		newer := []relay.View{view(clusters, "newer", 20), view(listeners, "older", 20)}
		go func() { defer close(done); s.Run(ctx, func() []relay.View { return newer }) }()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		calls := fsys.Calls()
		if p := s.Problems(); len(p) != 1 || p[0].Code != chandler.CodeCacheUnwritable || !strings.Contains(p[0].Message, syscall.ENOSPC.Error()) {
			t.Errorf("told: %v", p)
		}
		oneOf(t, fsys, "older")
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if n := fsys.Calls() - calls; n > 200 {
			t.Errorf("%d calls of a full disk in five minutes", n)
		}
		fsys.Limit(1 << 20)
		time.Sleep(maxPause + Pace)
		synctest.Wait()
		if p := s.Problems(); len(p) != 0 {
			t.Errorf("with room: %v", p)
		}
		cancel()
		<-done
		if _, got, _ := open(t, fsys, 0); !same(got, newer...) {
			t.Error("it is not kept")
		}
	})
}

func TestFault_F16_DirectoryThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	fsys := crashfs.New()
	if err := durable.Mkdir(fsys, "/d"); err != nil {
		t.Fatal(err)
	}
	if err := durable.Write(fsys, "/d/views", []byte("a file")); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := Open(Config{FS: fsys, Dir: "/d/views"}); err == nil {
		t.Error("a file is taken for a directory")
	}
}

// Whatever is there and written, with faults in between: a start finds of each type what
// was written last.
func TestAnyOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		fsys := crashfs.New()
		s, _, _, err := Open(Config{FS: fsys, Dir: "/d/views"})
		if err != nil {
			t.Fatal(err)
		}
		there, durably, changes := map[string]relay.View{}, map[string]relay.View{}, uint64(0)
		types := []string{clusters, listeners, "x"}
		write := func() { s.put(slices.Collect(maps.Values(there))...) }
		t.Repeat(map[string]func(*rapid.T){
			"change": func(t *rapid.T) {
				v := view(rapid.SampledFrom(types).Draw(t, "type"), rapid.StringN(0, 5, 5).Draw(t, "word"), rapid.IntRange(0, 5).Draw(t, "n"))
				changes++
				v.Changes = changes
				there[v.Type] = v
			},
			"drop": func(t *rapid.T) { delete(there, rapid.SampledFrom(types).Draw(t, "type")) },
			"write": func(t *rapid.T) {
				write()
				if p := s.Problems(); len(p) != 0 {
					t.Fatal(p)
				}
				durably = maps.Clone(there)
			},
			"fail": func(t *rapid.T) {
				fsys.FailAt(rapid.IntRange(1, 20).Draw(t, "call"), errors.New("of the disk"))
				write()
				fsys.FailAt(0, nil)
				write()
				durably = maps.Clone(there)
			},
			"": func(t *rapid.T) {
				after := fsys.Restart(crashfs.LoseUnsynced)
				_, got, problems, err := Open(Config{FS: after, Dir: "/d/views"})
				if err != nil || len(problems) != 0 {
					t.Fatal(err, problems)
				}
				var want []relay.View
				for _, typeURL := range types {
					if v, ok := durably[typeURL]; ok {
						want = append(want, v)
					}
				}
				if !same(got, want...) {
					t.Fatalf("%d views are there, want %d", len(got), len(want))
				}
			},
		})
	})
}

// FuzzDecode: any content is refused or comes out as it is written again.
func FuzzDecode(f *testing.F) {
	for _, v := range []relay.View{{}, view(clusters, "one", 2)} {
		f.Add([]byte(magic + text(v)))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		end := sha256.Sum256(content)
		v, _, err := decode(slices.Concat(content, end[:]))
		if err != nil {
			return
		}
		var b bytes.Buffer
		size, err := encode(&b, v, &end)
		if err != nil || size != int64(b.Len()) {
			t.Fatal(size, b.Len(), err)
		}
		again, sum, err := decode(b.Bytes())
		if err != nil || sum != end || text(again) != text(v) {
			t.Fatalf("%q, again %q, %v", text(v), text(again), err)
		}
	})
}

// BenchmarkSave is a change of a thousand clusters.
func BenchmarkSave(b *testing.B) {
	s, _, _, err := Open(Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	words := []relay.View{view(clusters, strings.Repeat("x", 1000), 1000), view(clusters, strings.Repeat("y", 1000), 1000)}
	for i := 0; b.Loop(); i++ {
		v := words[i%2]
		v.Changes = uint64(i + 1)
		s.put(v)
	}
	size, _ := encode(io.Discard, words[0], new(seal))
	b.SetBytes(size)
}

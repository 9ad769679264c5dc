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

	"google.golang.org/protobuf/encoding/protowire"
	"pgregory.net/rapid"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/durable/crashfs"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/xds/relay"
)

func TestMain(m *testing.M) { leaks.Main(m) }

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

// deltaView is one of a resource under a version, as deltas have it.
func deltaView(typeURL, word string) relay.View {
	field := func(b []byte, num protowire.Number, content []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), content)
	}
	body := field(field(nil, 1, []byte(typeURL)), 2, field(nil, 1, []byte("r")))
	b := protowire.AppendVarint(protowire.AppendTag(field(nil, 1, []byte(typeURL)), 2, protowire.VarintType), 1)
	v, err := relay.ReadView(field(b, 5, field(field(field(nil, 1, []byte(word)), 2, body), 3, []byte("r"))))
	if err != nil {
		panic(err)
	}
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
func (s *Store) put(views ...relay.View) {
	_, p := s.write(views)
	s.tell(p)
}

// nameOf is the name of a view's file.
func nameOf(v relay.View) string {
	var end seal
	if _, err := encode(io.Discard, v, &end); err != nil {
		panic(err)
	}
	return fileName(end)
}

// saved has a store of its own write views.
func saved(fsys durable.FS, views ...relay.View) error {
	s, _, _, err := Open(Config{FS: fsys, Dir: "/d/views"})
	if err != nil {
		return err
	}
	s.put(views...)
	if p := s.Problem(); p != nil {
		return p
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
	if _, got, _ := open(t, s.cfg.FS, 0); !same(got, want[1]) || s.Problem() != nil {
		t.Errorf("when one is gone: %d views, %v", len(got), s.Problem())
	}
	if files := stamps(t, s.cfg.FS); len(files) != 2 {
		t.Errorf("files are left: %v", files)
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
	if _, ok := after[nameOf(l)]; ok || len(after) != 3 || !after[nameOf(c)].Equal(before[nameOf(c)]) {
		t.Errorf("the file of clusters was written, or that of listeners was not: %v, then %v", before, after)
	}
	s, views, _ := open(t, fsys, 0)
	calls := fsys.Calls()
	if s.put(views...); fsys.Calls() != calls {
		t.Errorf("%d calls for what is there", fsys.Calls()-calls)
	}
}

// A change is written at once, with what comes with it. However often something changes, it
// is written once in a while, and at the end; much more seldom than little.
func TestPace(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		size        int
		least, most int // writes in twenty seconds
	}{{100, 18, 22}, {1 << 20, 9, 11}, {1 << 22, 2, 3}} {
		synctest.Test(t, func(t *testing.T) {
			fsys := crashfs.New()
			s, _, _ := open(t, fsys, 0)
			ctx, cancel := context.WithCancel(t.Context())
			var changes atomic.Uint64
			word := strings.Repeat("x", c.size)
			views := func() ([]relay.View, time.Time) {
				n := changes.Load()
				l, c := view(listeners, fmt.Sprint(n), 2), view(clusters, fmt.Sprint(n)+word, 1)
				l.Changes, c.Changes = n, n
				return []relay.View{c, l}, time.Time{}
			}
			done := make(chan struct{})
			go func() { defer close(done); s.Run(ctx, views) }()
			time.Sleep(time.Minute)
			changes.Add(1)
			s.Changed()
			time.Sleep(gather / 2)
			changes.Add(1) // comes with it
			s.Changed()
			time.Sleep(gather)
			synctest.Wait()
			now, _ := views()
			if _, got, _ := open(t, fsys.Restart(crashfs.LoseUnsynced), 0); !same(got, now...) {
				t.Errorf("of %d bytes a change is not there soon", c.size)
			}
			time.Sleep(time.Minute)
			writes, last := 0, stamps(t, fsys)[setName]
			for range 200 {
				changes.Add(1)
				s.Changed()
				time.Sleep(100 * time.Millisecond)
				synctest.Wait()
				if at := stamps(t, fsys)[setName]; !at.Equal(last) {
					writes, last = writes+1, at
				}
			}
			if writes < c.least || writes > c.most {
				t.Errorf("%d writes of %d bytes in twenty seconds", writes, c.size)
			}
			changes.Store(1000)
			cancel()
			<-done
			now, _ = views()
			if _, got, _ := open(t, fsys, 0); !same(got, now...) {
				t.Error("the last is not kept")
			}
		})
	}
}

// What does not belong together is not written; it is asked for again after a change, and
// when it is said to be due.
func TestNotYet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fsys := crashfs.New()
		s, _, _ := open(t, fsys, 0)
		ctx, cancel := context.WithCancel(t.Context())
		var asked atomic.Int64
		due := time.Now().Add(10 * time.Second)
		views := func() ([]relay.View, time.Time) {
			asked.Add(1)
			if time.Now().Before(due) {
				return nil, due
			}
			return []relay.View{view(clusters, "x", 1)}, time.Time{}
		}
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx, views) }()
		time.Sleep(time.Second)
		s.Changed()
		time.Sleep(8 * time.Second)
		synctest.Wait()
		if _, got, _ := open(t, fsys, 0); len(got) != 0 || asked.Load() != 2 {
			t.Errorf("%d views are written, asked %d times", len(got), asked.Load())
		}
		time.Sleep(time.Second + gather)
		synctest.Wait()
		if _, got, _ := open(t, fsys, 0); len(got) != 1 || asked.Load() != 3 {
			t.Errorf("%d views are written, asked %d times", len(got), asked.Load())
		}
		due = time.Now().Add(gather) // of the last
		cancel()
		<-done
		if asked.Load() != 5 {
			t.Errorf("asked %d times", asked.Load())
		}
	})
}

// What was kept of another source is given, under versions that nobody has, and stays so
// until it is replaced.
func TestAnotherSource(t *testing.T) {
	t.Parallel()
	fsys := crashfs.New()
	one := []relay.View{deltaView(clusters, "one"), deltaView(listeners, "one")}
	if err := saved(fsys, one...); err != nil {
		t.Fatal(err)
	}
	other := func() (*Store, []relay.View) {
		s, got, problems, err := Open(Config{FS: fsys, Dir: "/d/views", Source: "other"})
		if err != nil || len(problems) != 0 {
			t.Fatal(err, problems)
		}
		return s, got
	}
	s, got := other()
	if same(got, one...) || !same(got, one[0].Anew(), one[1].Anew()) {
		t.Fatalf("of another source it is %q", text(got[0]))
	}
	if _, again, _ := open(t, fsys, 0); !same(again, one...) {
		t.Error("to look has changed it")
	}
	s.put(got...)
	if _, again := other(); !same(again, got...) {
		t.Errorf("written it is %q", text(again[0]))
	}
}

// What does not fit is told; what is there stays, and room makes it fit.
func TestBound(t *testing.T) {
	t.Parallel()
	fsys := crashfs.New()
	s, _, _ := open(t, fsys, 2000)
	one := []relay.View{view(clusters, "one", 5), view(listeners, "one", 5)}
	s.put(one...)
	if p := s.Problem(); p != nil {
		t.Fatal(p)
	}
	large, small := view(clusters, "two", 50), view(listeners, "two", 5)
	large.Changes, small.Changes = 2, 2
	s.put(large, small)
	p := s.Problem()
	if p == nil || p.Code != chandler.CodeCacheFull || !strings.Contains(p.Message, "55 resources") || !strings.Contains(p.Message, "2000 bytes") || p.Hint == "" {
		t.Errorf("told: %v", p)
	}
	if _, got, _ := open(t, fsys, 2000); !same(got, one...) { // all of it, so that it agrees
		t.Errorf("%d are kept", len(got))
	}
	s.cfg.MaxBytes = 8000
	s.put(large)
	if _, got, _ := open(t, fsys, 8000); s.Problem() != nil || !same(got, large) {
		t.Errorf("with room: %d, told: %v", len(got), s.Problem())
	}
	s.cfg.MaxBytes = 1 << 30
	many := []relay.View{large}
	for i := range maxFiles {
		many = append(many, view(fmt.Sprint("x", i), "x", 1))
	}
	s.put(many...)
	if p := s.Problem(); p == nil || p.Code != chandler.CodeCacheFull {
		t.Errorf("of too many types is told %v", p)
	}
	s.put(many[1:]...)
	if _, got, _ := open(t, fsys, 1<<30); s.Problem() != nil || len(got) != maxFiles {
		t.Errorf("%d types are kept, told: %v", len(got), s.Problem())
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
		damaged := "/d/views/damaged-" + nameOf(one[0])
		if _, err := fsys.Stat(damaged); err != nil {
			t.Errorf("%s: it is not set aside: %v", what, err)
		}
		if err := saved(fsys, one...); err != nil {
			t.Fatal(err)
		}
		s, got, problems := open(t, fsys, 0)
		if !same(got, one...) || len(problems) != 0 {
			t.Errorf("%s: written anew it is %d, %v", what, len(got), problems)
		}
		s.cfg.MaxBytes = 0
		for _, f := range s.files {
			s.cfg.MaxBytes += f.size
		}
		two := view(clusters, "six", 2)
		two.Changes = 2
		s.put(two, one[1])
		if _, err := fsys.Stat(damaged); (err == nil) != (what == "empty") || s.Problem() != nil {
			t.Errorf("%s: without room it is there, or something is told: %v", what, s.Problem())
		}
	}
}

// A set that cannot be read is told and set aside: what belongs together is not known.
func TestFault_F16_TornSet(t *testing.T) {
	t.Parallel()
	one := []relay.View{view(clusters, "one", 2), view(listeners, "one", 2)}
	for what, change := range map[string]func([]byte) []byte{
		"empty":   func([]byte) []byte { return nil },
		"half":    func(b []byte) []byte { return b[:len(b)/2] },
		"one bit": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
	} {
		fsys := crashfs.New()
		if err := saved(fsys, one...); err != nil {
			t.Fatal(err)
		}
		if err := fsys.Corrupt("/d/views/"+setName, change); err != nil {
			t.Fatal(err)
		}
		s, got, problems := open(t, fsys, 0)
		if len(got) != 0 || len(problems) != 1 || !strings.Contains(problems[0].Error(), setName) {
			t.Errorf("%s: got %d, told %v", what, len(got), problems)
		}
		s.put(one...)
		if _, got, problems := open(t, fsys, 0); !same(got, one...) || len(problems) != 0 || s.Problem() != nil {
			t.Errorf("%s: written anew it is %d, %v, %v", what, len(got), problems, s.Problem())
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
	other := "/d/views/view-4-00"
	if err := durable.Write(fsys, other, []byte("x")); err != nil {
		t.Fatal(err)
	}
	s, got, problems := open(t, fsys, 0)
	s.put()
	if _, err := fsys.Stat(other); err != nil || len(got)+len(problems) != 0 {
		t.Errorf("%v, %v, %v", got, problems, err)
	}
}

// oneOf fails unless the views of all types are of the same word, whole.
func oneOf(t *testing.T, fsys durable.FS, words ...string) {
	t.Helper()
	_, got, problems := open(t, fsys, 0)
	if len(problems) != 0 {
		t.Errorf("torn: %v", problems)
	}
	if !slices.ContainsFunc(words, func(word string) bool { return same(got, view(clusters, word, 20), view(listeners, word, 20)) }) {
		for _, v := range got {
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

// Change after change of all types, by one store: a start finds what belongs together,
// never a listener of one with the clusters of another, and nothing older than what was
// written before.
func TestFault_F3_F20_ViewsBelongTogether(t *testing.T) {
	t.Parallel()
	words := []string{"0", "1", "2", "3"}
	written := 0
	crashfs.Sweep(t, both("0"), func(fsys *crashfs.FS) error {
		written = 0
		s, _, _, err := Open(Config{FS: fsys, Dir: "/d/views"})
		if err != nil {
			return err
		}
		for i, word := range words[1:] {
			c, l := view(clusters, word, 20), view(listeners, word, 20)
			c.Changes, l.Changes = uint64(i+2), uint64(i+2)
			if s.put(c, l); s.Problem() != nil {
				return s.Problem()
			}
			written = i + 1
		}
		return nil
	}, func(t *testing.T, after *crashfs.FS, finished bool) {
		if finished {
			oneOf(t, after, words[len(words)-1])
			return
		}
		oneOf(t, after, words[written:min(written+2, len(words))]...)
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
		if p := s.Problem(); p != nil {
			return p
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
		go func() {
			defer close(done)
			s.Run(ctx, func() ([]relay.View, time.Time) { return newer, time.Time{} })
		}()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		calls := fsys.Calls()
		if p := s.Problem(); p == nil || p.Code != chandler.CodeCacheUnwritable || !strings.Contains(p.Message, syscall.ENOSPC.Error()) {
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
		if p := s.Problem(); p != nil {
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

// Whatever is there and written, with faults in between: a start finds what was written
// last, and no file is left that is not of it.
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
				if p := s.Problem(); p != nil {
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
				entries, err := fsys.ReadDir("/d/views")
				if n := len(want) + 1; err != nil || len(entries) > n {
					t.Fatalf("%d files of %d views, %v", len(entries), len(want), err)
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

// FuzzDecodeSet: any content is refused or comes out as it is written again.
func FuzzDecodeSet(f *testing.F) {
	for _, s := range []set{{}, {source: "x\n\"", files: map[string]bool{filePrefix + "00": true, filePrefix + "01": true}}} {
		text := s.encode()
		f.Add(text[:len(text)-2*sha256.Size-1])
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		end := sha256.Sum256(content)
		s, err := decodeSet(fmt.Appendf(slices.Clip(content), "%x\n", end))
		if err != nil {
			return
		}
		again, err := decodeSet(s.encode())
		if err != nil || again.source != s.source || !maps.Equal(again.files, s.files) {
			t.Fatalf("%+v, again %+v, %v", s, again, err)
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

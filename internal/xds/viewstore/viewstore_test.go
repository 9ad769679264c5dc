package viewstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/durable/crashfs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	clusters  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	listeners = "type.googleapis.com/envoy.config.listener.v3.Listener"
)

// view is one of n resources that have word in them.
func view(typeURL, word string, n int) View {
	v := View{Source: "xds", Type: typeURL}
	for i := range n {
		v.Resources = append(v.Resources, Resource{Name: fmt.Sprintf("r-%03d", i), Version: word, Body: []byte(word + typeURL)})
	}
	return v
}

func open(t *testing.T, fsys durable.FS, limit int64) (*Store, []View, []*chandler.Problem) {
	t.Helper()
	s, views, problems, err := Open(Config{FS: fsys, Dir: "/d/views", MaxBytes: limit})
	if err != nil {
		t.Fatal(err)
	}
	return s, views, problems
}

// saved puts views into a store and lets it write them as it does at its end.
func saved(fsys durable.FS, views ...View) error {
	s, _, _, err := Open(Config{FS: fsys, Dir: "/d/views"})
	if err != nil {
		return err
	}
	for _, v := range views {
		s.Put(v)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	s.Run(ended)
	if p := s.Problems(); len(p) > 0 {
		return p[0]
	}
	return nil
}

func TestKeeps(t *testing.T) {
	t.Parallel()
	want := []View{
		{Source: "a", Type: clusters},
		{Source: "xds", Type: clusters, Resources: []Resource{{"", "", []byte{}}, {"a", "2", []byte("\x00\xff")}, {"b", "1", bytes.Repeat([]byte("x"), 1<<20)}}},
		view(listeners, "one", 3),
	}
	unsorted := want[1]
	unsorted.Resources = slices.Clone(unsorted.Resources)
	slices.Reverse(unsorted.Resources)
	fsys := crashfs.New()
	if err := saved(fsys, want[2], unsorted, want[0]); err != nil {
		t.Fatal(err)
	}
	s, got, problems := open(t, fsys.Restart(crashfs.LoseUnsynced), 0)
	if !reflect.DeepEqual(got, want) || len(problems) != 0 {
		t.Fatalf("got %.300v, %v", got, problems)
	}
	s.Drop("xds", clusters)
	s.Drop("nobody", clusters)
	s.write()
	if _, got, _ := open(t, s.cfg.FS, 0); !reflect.DeepEqual(got, []View{want[0], want[2]}) || len(s.Problems()) != 0 {
		t.Errorf("after a drop: %.300v, %v", got, s.Problems())
	}
}

// A change of one type leaves the files of the others alone, and what is the same as
// before is not written.
func TestWritesWhatChanged(t *testing.T) {
	t.Parallel()
	fsys := crashfs.New()
	if err := saved(fsys, view(clusters, "one", 2), view(listeners, "one", 2)); err != nil {
		t.Fatal(err)
	}
	stamp := func(typeURL string) time.Time {
		st, err := fsys.Stat("/d/views/" + key{"xds", typeURL}.file())
		if err != nil {
			t.Fatal(err)
		}
		return st.ModTime()
	}
	c, l := stamp(clusters), stamp(listeners)
	if err := saved(fsys, view(clusters, "one", 2), view(listeners, "two", 2)); err != nil {
		t.Fatal(err)
	}
	if !stamp(clusters).Equal(c) || stamp(listeners).Equal(l) {
		t.Error("the file of clusters was written, or that of listeners was not")
	}
}

// However often something changes, it is written once in a while, and at the end.
func TestPace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		fsys := crashfs.New()
		s, _, _ := open(t, fsys, 0)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx) }()
		writes, name := 0, "/d/views/"+key{"xds", clusters}.file()
		var last time.Time
		look := func() {
			synctest.Wait()
			if st, err := fsys.Stat(name); err == nil && !st.ModTime().Equal(last) {
				writes, last = writes+1, st.ModTime()
			}
		}
		for i := range 500 { // five seconds
			s.Put(view(clusters, fmt.Sprint(i), 2))
			look()
			time.Sleep(10 * time.Millisecond)
		}
		if writes < 4 || writes > 6 {
			t.Errorf("%d writes in five seconds", writes)
		}
		s.Put(view(clusters, "the last", 2))
		cancel()
		<-done
		if _, got, _ := open(t, fsys, 0); len(got) != 1 || got[0].Resources[0].Version != "the last" {
			t.Errorf("at the end: %v", got)
		}
	})
}

// What does not fit is told; what is there stays, and room makes it fit.
func TestBound(t *testing.T) {
	t.Parallel()
	fsys := crashfs.New()
	s, _, _ := open(t, fsys, 2000)
	s.Put(view(clusters, "one", 5))
	s.Put(view(listeners, "one", 5))
	s.write()
	if p := s.Problems(); len(p) != 0 {
		t.Fatal(p)
	}
	s.Put(view(clusters, "two", 50))
	s.write()
	p := s.Problems()
	if len(p) != 1 || p[0].Code != chandler.CodeCacheFull || !strings.Contains(p[0].Message, "50 resources") || !strings.Contains(p[0].Message, "2000 bytes") || p[0].Hint == "" {
		t.Errorf("told: %v", p)
	}
	if _, got, _ := open(t, fsys, 2000); len(got) != 2 || got[0].Resources[0].Version != "one" {
		t.Errorf("kept: %v", got)
	}
	s.Drop("xds", listeners)
	s.Put(view(clusters, "too large", 40))
	s.write()
	s.cfg.MaxBytes = 4000 // as if something else had gone
	s.write()
	if _, got, _ := open(t, fsys, 4000); len(s.Problems()) != 0 || len(got) != 1 || got[0].Resources[0].Version != "too large" {
		t.Errorf("with room: %v, told: %v", got, s.Problems())
	}
	s.Put(view(clusters, "three", 6))
	s.write()
	if _, got, _ := open(t, fsys, 2000); len(s.Problems()) != 0 || got[0].Resources[0].Version != "three" {
		t.Errorf("kept: %v, told: %v", got, s.Problems())
	}
	for i := range maxViews {
		v := view(clusters, "x", 0)
		v.Source = fmt.Sprint(i)
		s.cfg.MaxBytes = 1 << 30
		s.Put(v)
	}
	s.write()
	if n := len(s.Problems()); n != 1 {
		t.Errorf("%d of too many types are told", n)
	}
}

// A file that was torn, changed or exchanged is told and left out; the others are read.
func TestFault_F16_TornViews(t *testing.T) {
	t.Parallel()
	name := "/d/views/" + key{"xds", clusters}.file()
	for what, change := range map[string]func([]byte) []byte{
		"empty":   func([]byte) []byte { return nil },
		"cut":     func(b []byte) []byte { return b[:len(b)-1] },
		"half":    func(b []byte) []byte { return b[:len(b)/2] },
		"zeroes":  func(b []byte) []byte { return make([]byte, len(b)) },
		"one bit": func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"longer":  func(b []byte) []byte { return append(b, 0) },
		"exchanged": func([]byte) []byte {
			var w bytes.Buffer
			v := view(listeners, "x", 1)
			_ = encode(&w, &v)
			return w.Bytes()
		},
	} {
		fsys := crashfs.New()
		if err := saved(fsys, view(clusters, "one", 2), view(listeners, "one", 2)); err != nil {
			t.Fatal(err)
		}
		if err := fsys.Corrupt(name, change); err != nil {
			t.Fatal(err)
		}
		_, got, problems := open(t, fsys, 0)
		if !reflect.DeepEqual(got, []View{view(listeners, "one", 2)}) || len(problems) != 1 || !strings.Contains(problems[0].Error(), name) {
			t.Errorf("%s: got %v, told %v", what, got, problems)
		}
		if err := saved(fsys, view(clusters, "two", 2)); err != nil {
			t.Fatal(err)
		}
		if _, got, problems := open(t, fsys, 0); len(got) != 2 || len(problems) != 0 {
			t.Errorf("%s: written anew it is %v, %v", what, got, problems)
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
	other := "/d/views/view-2-00"
	if err := durable.Write(fsys, other, []byte("x")); err != nil {
		t.Fatal(err)
	}
	_, got, problems := open(t, fsys, 0)
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
		if !slices.ContainsFunc(words, func(word string) bool { return reflect.DeepEqual(v, view(v.Type, word, 20)) }) {
			t.Errorf("%s is %.200v", v.Type, v.Resources)
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
		s.Put(view(clusters, "newer", 20))
		s.Put(view(listeners, "newer", 20))
		s.write()
		for range 3 {
			s.write()
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
		go func() { defer close(done); s.Run(ctx) }()
		s.Put(view(clusters, "newer", 20))
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
		time.Sleep(maxPause)
		synctest.Wait()
		if p := s.Problems(); len(p) != 0 {
			t.Errorf("with room: %v", p)
		}
		cancel()
		<-done
		if _, got, _ := open(t, fsys, 0); got[0].Resources[0].Version != "newer" {
			t.Errorf("kept: %v", got[0])
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

// Whatever is put, dropped and written, with faults in between: a start finds of each
// type what was written last, or nothing newer than what was put.
func TestAnyOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		fsys := crashfs.New()
		s, _, _, err := Open(Config{FS: fsys, Dir: "/d/views"})
		if err != nil {
			t.Fatal(err)
		}
		put, durably := map[string]*View{}, map[string]*View{}
		types := []string{clusters, listeners, "x"}
		t.Repeat(map[string]func(*rapid.T){
			"put": func(t *rapid.T) {
				v := view(rapid.SampledFrom(types).Draw(t, "type"), rapid.StringN(0, 5, 5).Draw(t, "word"), rapid.IntRange(0, 5).Draw(t, "n"))
				put[v.Type] = &v
				s.Put(v)
			},
			"drop": func(t *rapid.T) {
				typeURL := rapid.SampledFrom(types).Draw(t, "type")
				put[typeURL] = nil
				s.Drop("xds", typeURL)
			},
			"write": func(t *rapid.T) {
				s.write()
				if p := s.Problems(); len(p) != 0 {
					t.Fatal(p)
				}
				for typeURL, v := range put {
					durably[typeURL] = v
				}
			},
			"fail": func(t *rapid.T) {
				fsys.FailAt(rapid.IntRange(1, 20).Draw(t, "call"), errors.New("of the disk"))
				s.write()
				fsys.FailAt(0, nil)
				s.write()
				for typeURL, v := range put {
					durably[typeURL] = v
				}
			},
			"": func(t *rapid.T) {
				after := fsys.Restart(crashfs.LoseUnsynced)
				_, got, problems, err := Open(Config{FS: after, Dir: "/d/views"})
				if err != nil || len(problems) != 0 {
					t.Fatal(err, problems)
				}
				found := map[string]*View{}
				for _, v := range got {
					found[v.Type] = &v
				}
				for _, typeURL := range types {
					if !reflect.DeepEqual(found[typeURL], durably[typeURL]) {
						t.Fatalf("%s is %v, want %v", typeURL, found[typeURL], durably[typeURL])
					}
				}
			},
		})
	})
}

// FuzzDecode: any content is refused or comes out as it is written again.
func FuzzDecode(f *testing.F) {
	for _, v := range []View{{}, view(clusters, "one", 2), {Source: "s", Resources: []Resource{{}}}} {
		var b bytes.Buffer
		if err := encode(&b, sorted(&v)); err != nil {
			f.Fatal(err)
		}
		f.Add(b.Bytes()[:b.Len()-32])
	}
	f.Add([]byte(magic + "\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\x7f"))
	f.Fuzz(func(t *testing.T, content []byte) {
		v, sum, err := decode(sealed(content))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := encode(&b, &v); err != nil {
			t.Fatal(err)
		}
		again, _, err := decode(b.Bytes())
		if err != nil || !reflect.DeepEqual(again, v) {
			t.Fatalf("%v, again %v, %v", v, again, err)
		}
		if size, same := measure(&v); size != int64(b.Len()) || bytes.Equal(b.Bytes(), sealed(content)) && same != sum {
			t.Fatalf("measured %d of %d", size, b.Len())
		}
	})
}

// BenchmarkSave is a change of a thousand clusters.
func BenchmarkSave(b *testing.B) {
	s, _, _, err := Open(Config{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	v := View{Source: "xds", Type: clusters}
	for i := range 1000 {
		v.Resources = append(v.Resources, Resource{fmt.Sprint(1000 + i), "1", bytes.Repeat([]byte("x"), 1000)})
	}
	for i := 0; b.Loop(); i++ {
		v.Resources[0].Version = fmt.Sprint(i)
		s.Put(v)
		s.write()
	}
}

// sealed is a content with its end.
func sealed(content []byte) []byte {
	sum := sha256.Sum256(content)
	return append(bytes.Clone(content), sum[:]...)
}

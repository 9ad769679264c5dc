package agent

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/durable/crashfs"
)

func someLastGood(t *testing.T) SaveLastGood {
	t.Helper()
	priority := int32(-7)
	full := version("a3", func(v *Version) {
		v.Created, v.FirstAttach, v.Strict, v.FetchDeadline = time.Unix(1_700_000_000, 0).UTC(), chandler.FirstAttachDeny, true, time.Minute
		v.Capabilities, v.Standby = []string{"proxy_log"}, []chandler.Module{{Digest: digestOf("next"), Size: 4}}
		v.Priority, v.Config = &priority, []byte(`{"a": "\u0000 <>"}`)
		v.Match = []chandler.Match{{Mode: chandler.ModeServer, Ports: []uint32{80}}}
		v.Env = []chandler.EnvVar{{Name: "A", Value: "b"}, {Name: "C", Host: true}}
		v.Program.Module.Origins = []string{"oci://r.example/a@" + string(digestOf("m"))}
	})
	file := version("b", func(v *Version) {
		v.Program, v.Pinned = chandler.Program{File: &chandler.LocalFile{Path: "/opt/b.wasm"}}, digestOf("b")
	})
	lua := version("c", func(v *Version) { v.Program = chandler.Program{Lua: &chandler.Lua{InlineCode: "x"}} })
	return SaveLastGood{Envoy: "envoy-1", Versions: []Version{full, file, lua}, Denied: []Version{version("d")}}
}

func TestLastGoodRoundTrip(t *testing.T) {
	t.Parallel()
	dir, want := t.TempDir(), someLastGood(t)
	if _, ok, err := loadLastGood(durable.OS(), dir); ok || err != nil {
		t.Fatalf("an empty directory gives %v, %v", ok, err)
	}
	for range 2 { // also over an older one
		if err := saveLastGood(durable.OS(), dir, want); err != nil {
			t.Fatal(err)
		}
	}
	got, ok, err := loadLastGood(durable.OS(), dir)
	if err != nil || !ok || !reflect.DeepEqual(SaveLastGood(got), want) {
		t.Errorf("read: %+v\nerror %v, want\n%+v", got, err, want)
	}
	if st, err := os.Stat(lastGoodPath(dir)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v, error %v", st.Mode(), err)
	}
}

// What cannot be read is kept, every one of it, and never overwritten.
func TestLastGoodKeptAside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	texts := []string{
		`{"format": 2, "future": true}`, `{"format": 2, "future": "another"}`, `{"format": 1, "envoy": 7}`, "", "\x00\x00\x00", `{"versions": []}`,
		`{"format": 2, "future": true}`, // once more
	}
	for _, text := range texts {
		writeFile(t, lastGoodPath(dir), []byte(text))
		_, ok, err := loadLastGood(durable.OS(), dir)
		if ok || err == nil || !strings.Contains(err.Error(), "kept as "+lastGoodPath(dir)) {
			t.Errorf("%q: %v, error %v", text, ok, err)
		}
		if err := saveLastGood(durable.OS(), dir, SaveLastGood{}); err != nil {
			t.Fatal(err)
		}
		if _, ok, err := loadLastGood(durable.OS(), dir); !ok || err != nil {
			t.Errorf("after %q and a new one: %v, %v", text, ok, err)
		}
	}
	kept, err := filepath.Glob(lastGoodPath(dir) + ".*")
	if err != nil {
		t.Fatal(err)
	}
	var contents []string
	for _, path := range kept {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		contents = append(contents, string(b))
	}
	for _, text := range texts {
		if !slices.Contains(contents, text) {
			t.Errorf("%q is lost; kept: %q", text, contents)
		}
	}
}

// However the machine stops, the set is the old one or the new one.
func TestLastGoodCrash(t *testing.T) {
	t.Parallel()
	older, newer := SaveLastGood{Envoy: "old", Versions: []Version{version("a1")}}, SaveLastGood{Envoy: "new", Versions: []Version{version("a2")}}
	prepare := func(fsys *crashfs.FS) error {
		return errors.Join(durable.Mkdir(fsys, "/data"), saveLastGood(fsys, "/data", older))
	}
	work := func(fsys *crashfs.FS) error { return saveLastGood(fsys, "/data", newer) }
	crashfs.Sweep(t, prepare, work, func(t *testing.T, after *crashfs.FS, finished bool) {
		got, ok, err := loadLastGood(after, "/data")
		if !ok || err != nil || got.Envoy != "new" && (finished || got.Envoy != "old") || len(got.Versions) != 1 {
			t.Errorf("after a restart: %+v, %v, %v", got, ok, err)
		}
	})
	crashfs.SweepErrors(t, prepare, work, func(t *testing.T, fsys *crashfs.FS, err error) {
		got, ok, readErr := loadLastGood(fsys, "/data")
		if !ok || readErr != nil || err == nil && got.Envoy != "new" {
			t.Errorf("saving gave %v; read: %+v, %v, %v", err, got, ok, readErr)
		}
	})
}

// Putting an unreadable one aside loses it at no moment either.
func TestLastGoodAsideCrash(t *testing.T) {
	t.Parallel()
	const future = `{"format": 9, "envoy": "of tomorrow"}`
	aside := lastGoodPath("/data") + ".format-9." + digestOf(future).Hex()[:12]
	prepare := func(fsys *crashfs.FS) error {
		return errors.Join(durable.Mkdir(fsys, "/data"), durable.Write(fsys, lastGoodPath("/data"), []byte(future)))
	}
	work := func(fsys *crashfs.FS) error {
		_, _, err := loadLastGood(fsys, "/data")
		if err != nil && !strings.Contains(err.Error(), aside) {
			return err
		}
		return saveLastGood(fsys, "/data", SaveLastGood{Envoy: "of today"})
	}
	crashfs.Sweep(t, prepare, work, func(t *testing.T, after *crashfs.FS, finished bool) {
		kept := false
		for _, path := range []string{lastGoodPath("/data"), aside} {
			b, err := durable.Read(after, path, 1<<20)
			kept = kept || err == nil && string(b) == future
		}
		if !kept {
			t.Error("the set of another format is lost")
		}
		if got, ok, _ := loadLastGood(after, "/data"); finished && (!ok || got.Envoy != "of today") {
			t.Errorf("after a restart: %+v, %v", got, ok)
		}
	})
}

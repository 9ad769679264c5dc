package store_test

import (
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable/crashfs"
	"chandler.dev/chandler/internal/store"
)

// A clock that was a year ahead, or went back an hour, drops nothing, and what is
// used now is kept before what was used under the wrong clock.
func TestFault_F43_TrimAfterTheClockJumped(t *testing.T) {
	t.Parallel()
	for _, jump := range []time.Duration{365 * 24 * time.Hour, time.Hour, -time.Hour, -365 * 24 * time.Hour} {
		fsys := crashfs.New()
		now := time.Now()
		wrong := func() time.Time { return now.Add(jump).Round(0) }
		s := open(t, store.Config{FS: fsys, Now: wrong})
		var old []chandler.ModuleDigest
		for i := range 3 {
			old = append(old, ingest(t, s, i, 1000))
			l := acquire(t, s, old[i])
			if err := fsys.Touch(l.Path(), wrong()); err != nil { // as the machine dates a new file
				t.Fatal(err)
			}
			l.Release()
		}
		_ = s.Close()

		right := func() time.Time { now = now.Add(time.Second); return now }
		s = open(t, store.Config{FS: fsys, Now: right, MaxBytes: 4000})
		if n := len(s.List()); n != 3 {
			t.Errorf("%s: %d modules are left", jump, n)
		}
		acquire(t, s, old[1]).Release()
		fresh := []chandler.ModuleDigest{ingest(t, s, 10, 1000), ingest(t, s, 11, 1000), ingest(t, s, 12, 1000)}
		for _, d := range append(fresh, old[1]) {
			if !s.Has(d) {
				t.Errorf("%s: what was used last was dropped", jump)
			}
		}
		if s.Has(old[0]) || s.Has(old[2]) {
			t.Errorf("%s: what was used under the wrong clock stayed", jump)
		}
		_ = s.Close()

		// What is used is dated by the right clock from then on.
		s = open(t, store.Config{FS: fsys, Now: right})
		for _, e := range s.List() {
			if age := now.Sub(e.Used); e.Digest == old[1] && (age < 0 || age > time.Minute) {
				t.Errorf("%s: what was used just now is dated %s ago", jump, age)
			}
		}
	}
}

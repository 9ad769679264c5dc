package main

import (
	"bytes"
	"os"
	"testing"
	"time"
)

// TestMeter: one line at a time, not too often, and none is left.
func TestMeter(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(1, 0)
	m := newMeter(&out, func() time.Time { return now })
	m.tell("layer 0", 1<<20, 4<<20)
	m.tell("layer 0", 2<<20, 4<<20)
	now = now.Add(time.Second)
	m.tell("layer\x1b 0", 4<<20, 4<<20)
	now = now.Add(time.Second)
	m.tell("body", 700, -1)
	m.clear()
	m.clear()
	want := "\r\x1b[Klayer 0  [#####               ]  25%  1.0 MB of 4.2 MB" +
		"\r\x1b[Klayer\\u001b 0  [####################] 100%  4.2 MB of 4.2 MB" +
		"\r\x1b[Kbody  700 bytes\r\x1b[K"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
}

// TestMeterInPipe: what is no terminal sees nothing.
func TestMeterInPipe(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for _, to := range []any{w, &bytes.Buffer{}} {
		var tty = terminal(to.(interface{ Write([]byte) (int, error) }))
		if tty != nil {
			t.Errorf("%T is taken for a terminal", to)
		}
		m := newMeter(tty, time.Now)
		m.tell("x", 1, 2)
		m.clear()
	}
}

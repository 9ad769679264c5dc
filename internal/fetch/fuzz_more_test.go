package fetch

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
)

// FuzzSecret: a pull secret is refused without a word of what is in it, or gives
// credentials to hosts that it names.
func FuzzSecret(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://index.docker.io/v1/":{"username":"hunter2","password":"hunter2"}}}`), "index.docker.io")
	f.Add([]byte(`{"auths":{"*.reg.example:5000/team":{"auth":"`+base64.StdEncoding.EncodeToString([]byte("u:hunter2"))+`"}},"credsStore":"hunter2"}`), "a.reg.example:5000")
	f.Add([]byte(`{"auths":{"hunter2":null,"":{}}}`), "")
	f.Add([]byte(`[{"hunter2`), "h")
	f.Fuzz(func(t *testing.T, config []byte, host string) {
		s, warnings, err := ParseSecret(config)
		var p *chandler.Problem
		if err != nil && (!errors.As(err, &p) || p.Code == "" || p.Hint == "") {
			t.Fatalf("not named: %v", err)
		}
		if err == nil != (s != nil) {
			t.Fatalf("%v %v", s, err)
		}
		for _, w := range warnings {
			if strings.Contains(w.Error(), "hunter2") {
				t.Fatalf("%s tells a password", w.Error())
			}
		}
		if err != nil {
			if strings.Contains(err.Error(), "hunter2") {
				t.Fatalf("%v tells a password", err)
			}
			return
		}
		ref := chandler.Reference{Scheme: chandler.SchemeOCI, Host: host, Repository: "team/a"}
		if c := s.For(ref); c != nil && !c.covers(ref) {
			t.Fatalf("%v is for %q", c, host)
		}
	})
}

// FuzzRetryAfter: whatever a server wants, nobody waits longer than an hour for it.
func FuzzRetryAfter(f *testing.F) {
	f.Add("7", "")
	f.Add("-1", "x")
	f.Add("999999999999", "")
	f.Add("Mon, 23 Nov 2026 08:01:00 GMT", "Mon, 23 Nov 2026 08:00:00 GMT")
	f.Add("Monday, 23-Nov-26 08:01:00 GMT", "Mon, 23 Nov 9999 08:00:00 GMT")
	f.Fuzz(func(t *testing.T, after, date string) {
		d := retryAfter(http.Header{"Retry-After": {after}, "Date": {date}})
		if d < 0 || d > maxRetryAfter {
			t.Fatalf("%q at %q: %v", after, date, d)
		}
		if d > 0 && d < time.Second {
			t.Fatalf("%q at %q: %v is no whole second", after, date, d)
		}
	})
}

// FuzzInflate: what is compressed never becomes more than the limits say, and what
// is wrong with it is named.
func FuzzInflate(f *testing.F) {
	const limit = 1 << 16
	f.Add([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x01\x00\x00\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00"), true)
	f.Add([]byte("\x28\xb5\x2f\xfd\x00\xa8\x41\x00\x00\x00asm\x01\x00\x00\x00"), false)
	f.Fuzz(func(t *testing.T, blob []byte, zipped bool) {
		l := limits{blob: int64(len(blob)), maxModule: limit}
		in := bufio.NewReader(bytes.NewReader(blob))
		r := l.bound("blob", chandler.CodeLayerGzip, newGzip(in))
		if !zipped {
			z, err := newZstd(in)
			if err != nil {
				t.Fatal(err)
			}
			r = l.bound("blob", chandler.CodeLayerZstd, z)
		}
		n, err := io.Copy(io.Discard, r)
		named(t, err)
		if n > 2*limit || n > ratioSlack && n > maxRatio*l.blob {
			t.Fatalf("%d bytes of %d", n, len(blob))
		}
	})
}

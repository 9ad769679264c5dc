package fetch_test

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"runtime/metrics"
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
)

// maxGrowth is what any input may cost of memory, whatever size it declares.
const maxGrowth = 32 << 20

// growth runs do and gives by how many bytes the heap grew meanwhile at most,
// garbage included.
func growth(t *testing.T, do func()) int64 {
	t.Helper()
	runtime.GC()
	runtime.GC() // what finalizers let go
	heap := func() int64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(s)
		return int64(s[0].Value.Uint64())
	}
	before := heap()
	peak, stop, done := before, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(200 * time.Microsecond)
		defer tick.Stop()
		for {
			peak = max(peak, heap())
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	do()
	close(stop)
	<-done
	return max(peak, heap()) - before
}

// endless writes the same piece until the other side has had enough.
func endless(w io.Writer, piece string) {
	for {
		if _, err := io.WriteString(w, piece); err != nil {
			return
		}
	}
}

// gzipBomb unpacks to n times 16 MiB of zeros.
func gzipBomb(t *testing.T, n int) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := io.CopyN(z, zeros{}, 16<<20); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return bytes.Repeat(b.Bytes(), n)
}

// zstdFrame is a frame whose window is 2^exponent bytes, of blocks that repeat one
// zero 128 KiB long each.
func zstdFrame(exponent, blocks int) []byte {
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, byte(exponent-10) << 3}
	for i := range blocks {
		header := uint32(1<<17)<<3 | 1<<1 // run length
		if i == blocks-1 {
			header |= 1
		}
		b = append(b, byte(header), byte(header>>8), byte(header>>16), 0)
	}
	return b
}

func tebibyte(t *testing.T) string {
	t.Helper()
	return resize(tarOf(t, "plugin.wasm", good), binary.BigEndian.AppendUint64([]byte{0x80, 0, 0, 0}, 1<<40))
}

// Whatever is sent, and whatever size it declares, it costs little memory.
func TestMemory(t *testing.T) {
	layer := func(mediaType, content string) func(*testing.T) fetch.Request {
		return func(t *testing.T) fetch.Request { return imageOf(t, mediaType, content, nil).request(t) }
	}
	file := func(content []byte) func(*testing.T) fetch.Request {
		return func(t *testing.T) fetch.Request {
			return fetch.Request{Reference: reference(t, webServer(t, func(w http.ResponseWriter, _ *http.Request) { w.Write(content) }))}
		}
	}
	registryThat := func(h http.HandlerFunc) func(*testing.T) fetch.Request {
		return func(t *testing.T) fetch.Request {
			s := &script{before: func(w http.ResponseWriter, r *http.Request) bool { h(w, r); return true }}
			return s.request(t)
		}
	}
	manifest := func(text string) func(*testing.T) fetch.Request {
		return func(t *testing.T) fetch.Request {
			return (&script{contentType: ociManifest, manifest: text}).request(t)
		}
	}
	const start = `{"schemaVersion":2,`
	full := func(head, piece, tail string) string {
		return head + strings.Repeat(piece, (1<<20-len(head)-len(tail)-2)/len(piece)) + tail
	}
	keys := func() string {
		var b strings.Builder
		for i := 0; b.Len() < 1<<20-len(start)-40; i++ {
			fmt.Fprintf(&b, `"%x":0,`, i)
		}
		return b.String()
	}()
	bomb := gzipBomb(t, 640)
	for _, c := range []struct {
		what string
		req  func(*testing.T) fetch.Request
		code chandler.Code
	}{
		{"a gzip bomb of 10 GiB as a layer", layer(ociGzip, string(bomb)), chandler.CodeLayerRatio},
		{"a gzip bomb of 10 GiB as a file", file(bomb), chandler.CodeWasmMagic},
		{"a tar that declares 1 TiB", layer(ociTar, tebibyte(t)), chandler.CodeTarSize},
		{"a tar in gzip that declares 1 TiB", layer(ociGzip, string(gzipOf(t, []byte(tebibyte(t))))), chandler.CodeTarSize},
		{"a tar in a file that declares 1 TiB", file([]byte(tebibyte(t))), chandler.CodeTarSize},
		{"a zstd window of 2 GiB", layer(ociZstd, string(zstdFrame(31, 1))), chandler.CodeLayerZstd},
		{"a zstd window of 8 MiB and 2 GiB in it", layer(ociZstd, string(zstdFrame(23, 1<<14))), chandler.CodeLayerRatio},
		{"a layer that declares 1 TiB", func(t *testing.T) fetch.Request {
			return imageOf(t, "application/wasm", good, func(_, l object) { l["size"] = 1 << 40 }).request(t)
		}, chandler.CodeDescSize},
		{"a length of 1 TiB", func(t *testing.T) fetch.Request {
			return fetch.Request{Reference: reference(t, rawServer(t, "HTTP/1.1 200 OK\r\nContent-Length: 1099511627776\r\n\r\n"+good))}
		}, chandler.CodeHTTPLength},
		{"a file without end", func(t *testing.T) fetch.Request {
			return fetch.Request{Reference: reference(t, webServer(t, func(w http.ResponseWriter, _ *http.Request) { endless(w, strings.Repeat(good, 4096)) }))}
		}, chandler.CodeHTTPLength},
		{"a manifest without end", registryThat(func(w http.ResponseWriter, _ *http.Request) { endless(w, strings.Repeat(" ", 1<<16)) }), chandler.CodeManifestParse},
		{"a manifest of layers alone", manifest(full(start+`"layers":[`, "{},", "{}]}")), chandler.CodeManifestParse},
		{"a manifest of numbers alone", manifest(full(start+`"x":[`, "0,", "0]}")), chandler.CodeManifestParse},
		{"a manifest of keys alone", manifest(start + keys + `"x":0}`), chandler.CodeManifestParse},
		{"a manifest of annotations alone", manifest(start + `"annotations":{` + strings.ReplaceAll(keys, ":0", `:""`)[:1<<20-200] + `":""}}`), chandler.CodeManifestParse},
		{"a manifest of as many layers as it may have values", manifest(start + `"layers":[` + strings.Repeat("{},", 8000) + "{}]}"), chandler.CodeManifestParse},
		{"an index of entries alone", manifest(full(start+`"manifests":[`, "{},", "{}]}")), chandler.CodeManifestParse},
		{"an answer of 404 without end", registryThat(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			endless(w, strings.Repeat(" ", 1<<16))
		}), chandler.CodeNotFound},
		{"a challenge as long as may be", registryThat(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", strings.Repeat(`a a="",`, 8000))
			w.WriteHeader(http.StatusUnauthorized)
		}), chandler.CodeUnauthorized},
		{"a token without end", registryThat(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/token" {
				io.WriteString(w, `{"token":"`)
				endless(w, strings.Repeat("x", 1<<16))
				return
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token"`)
			w.WriteHeader(http.StatusUnauthorized)
		}), chandler.CodeAuthToken},
		{"headers without end", func(t *testing.T) fetch.Request {
			return fetch.Request{Reference: reference(t, streamServer(t, "HTTP/1.1 200 OK\r\n", "X-A: "+strings.Repeat("a", 1000)+"\r\n"))}
		}, chandler.CodeHTTPHeader},
		{"one header without end", func(t *testing.T) fetch.Request {
			return fetch.Request{Reference: reference(t, streamServer(t, "HTTP/1.1 200 OK\r\nX-A: ", strings.Repeat("a", 1<<16)))}
		}, chandler.CodeHTTPHeader},
		{"informational answers without end", func(t *testing.T) fetch.Request {
			return fetch.Request{Reference: reference(t, streamServer(t, "", "HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n"))}
		}, ""},
	} {
		t.Run(c.what, func(t *testing.T) {
			req, cl := c.req(t), client(t, nil)
			var err error
			sink := &sieve{}
			began := time.Now()
			grew := growth(t, func() { _, err = cl.Pull(t.Context(), req, sink) })
			code := c.code
			if code == "" { // the library may say it in several ways
				code = codeOf(err)
			}
			e := judge(t, fetch.Artifact{}, err, &shelf{}, code, "")
			if e.Temporary || sink.kept {
				t.Errorf("temporary %t, kept %t: %v", e.Temporary, sink.kept, e)
			}
			if grew > maxGrowth {
				t.Errorf("grew by %d KiB, limit %d", grew>>10, maxGrowth>>10)
			}
			t.Logf("grew by %d KiB in %s: %s", grew>>10, time.Since(began).Round(time.Millisecond), e.Problem.Code)
		})
	}
}

func codeOf(err error) chandler.Code {
	if e, ok := err.(*fetch.Error); ok {
		return e.Problem.Code
	}
	return ""
}

// streamServer answers with head and then with the same piece until the connection
// ends.
func streamServer(t *testing.T, head, piece string) (url string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
				io.WriteString(conn, head)
				endless(conn, piece)
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return "http://" + l.Addr().String() + "/x.wasm"
}

// A tenant's secret is as large as the API server lets it be.
func TestMemoryOfASecret(t *testing.T) {
	var b strings.Builder
	b.WriteString(`{"auths":{`)
	for i := 0; b.Len() < 1<<20-40; i++ {
		fmt.Fprintf(&b, `"%x":{},`, i)
	}
	b.WriteString(`"x":{}}}`)
	raw := []byte(b.String())
	var err error
	grew := growth(t, func() { _, _, err = fetch.ParseSecret(raw) })
	if grew > maxGrowth {
		t.Errorf("grew by %d KiB, limit %d", grew>>10, maxGrowth>>10)
	}
	if want := ".dockerconfigjson has more than 16384 values; make it with: kubectl create secret docker-registry"; err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
	t.Logf("grew by %d KiB: %v", grew>>10, err)
}

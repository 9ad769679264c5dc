package upstream

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	buffer "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/buffer/v3"
	clusterservice "github.com/envoyproxy/go-control-plane/envoy/service/cluster/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

var record = flag.Bool("record", false, "make the recordings in testdata anew, of an Envoy that is connected directly")

// recording is the file of a variant.
func recording(v Variant) (file string) { return filepath.Join("testdata", v.String()+".jsonl") }

// inDir has the backend on a socket beside the others.
func (e *envoy) inDir() {
	e.Helper()
	e.backend = filepath.Join(e.dir, "backend")
	lis, err := net.Listen("unix", e.backend)
	if err != nil {
		e.Fatal(err)
	}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "backend") }))
	s.Listener.Close()
	s.Listener = lis
	s.Start()
	e.Cleanup(s.Close)
}

// A recording is of a control plane that has an Envoy serve, changes things, has something
// refused, adds a filter by ECDS, takes things away, and loses its connections twice.
func TestRecord(t *testing.T) {
	if !*record {
		t.Log("make recordings with -record")
		return
	}
	for _, v := range Variants {
		t.Run(v.String(), func(t *testing.T) {
			r := &Recorder{}
			e := &envoy{t, New(t, Config{Variant: v, Record: r}), t.TempDir(), ""}
			e.inDir()
			e.run(e.Bootstrap("tester", filepath.Join(e.dir, "admin")))
			e.follow(r)
			if err := r.Write(recording(v), e.dir); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// follow is the script.
func (e *envoy) follow(r *Recorder) {
	v := e.config.Variant
	site := NewSite(v, 3, e.dir, e.backend, 7)
	version := 0
	set := func(all Resources) {
		e.Helper()
		version++
		e.Set(fmt.Sprint(version), all)
		for n, since := -1, time.Now(); time.Since(since) < time.Second; time.Sleep(10 * time.Millisecond) {
			if r.Len() != n {
				n, since = r.Len(), time.Now()
			}
		}
		e.serves(site.Socket(0), site.Mark(0))
	}
	cut := func() {
		e.Helper()
		_, before := e.Streams()
		e.Cut()
		e.Await("the streams end", func() bool { return e.ended(before) })
	}
	set(site.Resources())
	site.Change(3)
	set(site.Resources())
	if v.Delta { // else it is said again and again
		set(append(site.Resources(), &listenerv3.Listener{Name: "bad", Address: addressOf(filepath.Join(e.dir, "bad"))}))
	}
	filter := v.Discovered("limit", "type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer")
	limited := func() Resources {
		return append(site.Resources(), v.Listener("limited", filepath.Join(e.dir, "limited"), site.Name(0), filter),
			Extension("limit", &buffer.Buffer{MaxRequestBytes: wrapperspb.UInt32(uint32(1000 + version))}))
	}
	set(limited())
	cut()
	site.Change(5)
	set(limited())
	set(of(limited(), "site-0001"))
	cut()
	site.Change(3)
	set(of(limited(), "site-0002"))
}

// ended tells whether the first n streams that there were have ended.
func (e *envoy) ended(n int) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for id := range e.streams {
		if id <= int64(n) {
			return false
		}
	}
	return true
}

// of leaves out what has that name.
func of(all Resources, without string) (rest Resources) {
	for _, m := range all {
		if !strings.Contains(fmt.Sprint(m.(proto.Message)), without) {
			rest = append(rest, m)
		}
	}
	return rest
}

// A client that goes while it is told something is waited for no more.
func TestReplayToWhomGoes(t *testing.T) {
	t.Parallel()
	v := Variants[slices.IndexFunc(Variants, func(v Variant) bool { return v.String() == "sotw-separate" })]
	for range 50 {
		r := NewReplay(t, v, recording(v), t.TempDir())
		conn, err := grpc.NewClient(r.Addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		ctx, cancel := context.WithCancel(t.Context())
		stream, err := clusterservice.NewClusterDiscoveryServiceClient(conn).StreamClusters(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&discovery.DiscoveryRequest{TypeUrl: Clusters}); err != nil {
			t.Fatal(err)
		}
		for r.said() == 0 {
			time.Sleep(time.Microsecond)
		}
		cancel()
		for until := time.Now().Add(bound); r.waits(); time.Sleep(time.Millisecond) {
			if time.Now().After(until) {
				t.Fatal("it still waits for an answer")
			}
		}
	}
}

func (r *Replay) said() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.next
}

func (r *Replay) waits() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.open) > 0
}

// What was recorded is said again, in the order and at the pace of whoever listens.
func TestReplay(t *testing.T) {
	t.Parallel()
	for _, v := range Variants {
		t.Run(v.String(), func(t *testing.T) {
			t.Parallel()
			e := &envoy{T: t, dir: t.TempDir()}
			e.inDir()
			r := NewReplay(t, v, recording(v), e.dir)
			e.run(r.Bootstrap("tester", filepath.Join(e.dir, "admin")))
			r.Await()
			site := NewSite(v, 3, e.dir, e.backend, 7) // as it was in the end
			site.Change(11)
			e.serves(filepath.Join(e.dir, "limited"), site.Mark(0))
			if body, _ := e.get(filepath.Join(e.dir, "site-0002")); body != "" {
				t.Error("what was taken away still serves")
			}
		})
	}
}

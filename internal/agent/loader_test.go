package agent

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/registry"
)

// depot is a control plane that serves modules as the test says.
type depot struct {
	chandlerv1.UnimplementedModulesServer
	read func(req *chandlerv1.ReadRequest, stream grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error

	mu      sync.Mutex
	offsets []uint64 // of the requests
}

func (d *depot) Read(req *chandlerv1.ReadRequest, stream grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
	d.mu.Lock()
	d.offsets = append(d.offsets, req.Offset)
	d.mu.Unlock()
	return d.read(req, stream)
}

func (d *depot) asked() []uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]uint64(nil), d.offsets...)
}

// send sends b in small chunks.
func send(stream grpc.ServerStreamingServer[chandlerv1.ReadResponse], b []byte) error {
	for len(b) > 0 {
		n := min(len(b), 100)
		if err := stream.Send(&chandlerv1.ReadResponse{Chunk: b[:n]}); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// compressed gives b as one zstd frame.
func compressed(t *testing.T, b []byte) []byte {
	t.Helper()
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	return enc.EncodeAll(b, nil)
}

// connect serves what register registers, in memory, until the test ends.
func connect(t *testing.T, register func(grpc.ServiceRegistrar)) *grpc.ClientConn {
	t.Helper()
	lis := bufconn.Listen(1 << 20)
	srv := grpc.NewServer(grpc.WaitForHandlers(true))
	register(srv)
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(lis) }()
	conn, err := grpc.NewClient("passthrough:depot", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); srv.Stop(); <-served })
	return conn
}

type outcome struct {
	Loaded
	lease *store.Lease
}

// loading is a loader with a store of its own.
type loading struct {
	*loader
	t     *testing.T
	store *store.Store
	reg   *prometheus.Registry
	done  chan outcome
	ctx   context.Context
}

func newLoading(t *testing.T, cfg Config) *loading {
	t.Helper()
	modules, err := store.Open(store.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cfg.Log = slog.New(slog.DiscardHandler)
	l := &loading{t: t, store: modules, reg: prometheus.NewRegistry(), done: make(chan outcome, 16), ctx: ctx}
	l.loader = newLoader(modules, cfg, newMetrics(l.reg, modules))
	l.loader.done = func(ev Loaded, lease *store.Lease) { l.done <- outcome{ev, lease} }
	t.Cleanup(func() {
		cancel()
		l.wait()
		l.close()
		for len(l.done) > 0 {
			if o := <-l.done; o.lease != nil {
				o.lease.Release()
			}
		}
		for _, e := range modules.List() {
			if e.Leased {
				t.Errorf("%s is leased still", e.Digest)
			}
		}
		if err := modules.Close(); err != nil {
			t.Error(err)
		}
		if len(l.running) != 0 {
			t.Errorf("it remembers %d loads", len(l.running))
		}
	})
	return l
}

func (l *loading) counted(name string, labels ...string) float64 {
	return counted(l.t, l.reg, name, labels...)
}

// counted gives a metric by its name and the values of its labels.
func counted(t *testing.T, reg *prometheus.Registry, name string, labels ...string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			var values []string
			for _, label := range m.GetLabel() {
				values = append(values, label.GetValue())
			}
			if family.GetName() == name && slices.Equal(values, labels) {
				return m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
		}
	}
	return 0
}

// from makes the depot the control plane.
func (l *loading) from(d *depot) *loading {
	l.conn.Store(connect(l.t, func(r grpc.ServiceRegistrar) { chandlerv1.RegisterModulesServer(r, d) }))
	return l
}

// load begins a load and waits for its end.
func (l *loading) load(src Source, origins ...string) Loaded {
	l.t.Helper()
	l.start(l.ctx, src, origins)
	return l.outcome()
}

func (l *loading) outcome() Loaded {
	l.t.Helper()
	select {
	case o := <-l.done:
		if (o.Err == nil) != (o.lease != nil) {
			l.t.Fatalf("error %+v, lease %v", o.Err, o.lease)
		}
		if o.lease != nil {
			o.lease.Release()
		}
		return o.Loaded
	case <-time.After(time.Minute):
		l.t.Fatal("the load does not end")
		return Loaded{}
	}
}

func (l *loading) wantLoaded(ev Loaded, content []byte) {
	l.t.Helper()
	if ev.Err != nil {
		l.t.Fatalf("it failed: %+v", ev.Err)
	}
	got, err := os.ReadFile(ev.Path)
	if err != nil || !bytes.Equal(got, content) || ev.Size != int64(len(content)) || ev.Digest != chandler.Digest[chandler.ModuleDigest](content) {
		l.t.Errorf("%d bytes at %s, digest %s, size %d, error %v", len(got), ev.Path, ev.Digest, ev.Size, err)
	}
}

func (l *loading) wantError(ev Loaded, code chandler.Code, temporary bool) {
	l.t.Helper()
	if ev.Err == nil {
		l.t.Fatalf("it gave %s, want %s", ev.Digest, code)
	}
	if ev.Err.Problem.Code != code || ev.Err.Temporary != temporary || ev.Err.Problem.Message == "" {
		l.t.Errorf("%+v, want %s, temporary %v", ev.Err, code, temporary)
	}
	if n, _ := l.store.Stats(); n != 0 {
		l.t.Errorf("%d modules are in the store", n)
	}
}

var bigModule = sync.OnceValue(func() []byte {
	return module.Append(module.WithSection("more", bytes.Repeat([]byte("x"), 10_000)))
})

func sourceOf(content []byte) Source {
	return Source{Digest: chandler.Digest[chandler.ModuleDigest](content)}
}

func TestLoadFromControlPlane(t *testing.T) {
	leaks.Check(t)
	t.Run("whole", func(t *testing.T) {
		content := bigModule()
		d := &depot{read: func(req *chandlerv1.ReadRequest, stream grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
			if req.Node.GetName() != "n" {
				return status.Error(codes.Unauthenticated, "who is it")
			}
			return send(stream, content)
		}}
		l := newLoading(t, Config{Node: chandler.Node{Name: "n", Namespace: "ns"}}).from(d)
		l.wantLoaded(l.load(sourceOf(content)), content)
		l.wantLoaded(l.load(sourceOf(content)), content)
		if asked := d.asked(); len(asked) != 1 {
			t.Errorf("the control plane was asked %d times", len(asked))
		}
		for name, got := range map[string]float64{
			"hits":      l.counted("istio_agent_wasm_cache_lookup_count", "true"),
			"misses":    l.counted("istio_agent_wasm_cache_lookup_count", "false"),
			"successes": l.counted("istio_agent_wasm_remote_fetch_count", "success"),
			"entries":   l.counted("istio_agent_wasm_cache_entries"),
		} {
			if got != 1 {
				t.Errorf("%v %s are counted", got, name)
			}
		}
	})
	t.Run("resumed where it broke", func(t *testing.T) {
		content := bigModule()
		d := &depot{}
		d.read = func(req *chandlerv1.ReadRequest, stream grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
			switch len(d.asked()) {
			case 1:
				_ = send(stream, content[:300])
				return status.Error(codes.Unavailable, "going away")
			case 2:
				return status.Error(codes.Unavailable, "not back yet")
			}
			return send(stream, content[req.Offset:])
		}
		l := newLoading(t, Config{}).from(d)
		l.wantLoaded(l.load(sourceOf(content)), content)
		if asked := d.asked(); len(asked) != 3 || asked[0] != 0 || asked[1] != 300 || asked[2] != 300 {
			t.Errorf("it asked from %v", asked)
		}
	})
	t.Run("compressed, and resumed where it broke at one that does not compress", func(t *testing.T) {
		content := bigModule()
		d := &depot{}
		d.read = func(req *chandlerv1.ReadRequest, stream grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
			if len(d.asked()) > 1 {
				return send(stream, content[req.Offset:])
			}
			if !req.Zstd {
				t.Error("it does not say that it reads zstd")
			}
			_ = stream.Send(&chandlerv1.ReadResponse{}) // its turn is still to come
			_ = stream.Send(&chandlerv1.ReadResponse{Zstd: compressed(t, content[:2000])})
			_ = stream.Send(&chandlerv1.ReadResponse{Zstd: compressed(t, content[2000:3000])})
			return status.Error(codes.Unavailable, "going away")
		}
		l := newLoading(t, Config{}).from(d)
		l.wantLoaded(l.load(sourceOf(content)), content)
		if asked := d.asked(); len(asked) != 2 || asked[1] != 3000 {
			t.Errorf("it asked from %v", asked)
		}
	})
	for name, frame := range map[string][]byte{
		"no frame": []byte("what is that"), "a frame of more than a message may bring": compressed(t, make([]byte, maxChunk+1)),
	} {
		t.Run(name, func(t *testing.T) {
			d := &depot{read: func(_ *chandlerv1.ReadRequest, stream grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
				return stream.Send(&chandlerv1.ReadResponse{Zstd: frame})
			}}
			l := newLoading(t, Config{}).from(d)
			l.wantError(l.load(sourceOf(bigModule())), chandler.CodeFetchFailed, true)
		})
	}
	t.Run("resumed at another control plane", func(t *testing.T) {
		content := bigModule()
		l := newLoading(t, Config{})
		second := &depot{read: func(req *chandlerv1.ReadRequest, stream grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
			return send(stream, content[req.Offset:])
		}}
		other := connect(t, func(r grpc.ServiceRegistrar) { chandlerv1.RegisterModulesServer(r, second) })
		first := &depot{read: func(_ *chandlerv1.ReadRequest, stream grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
			_ = send(stream, content[:500])
			l.conn.Store(nil)
			time.AfterFunc(10*time.Millisecond, func() { l.conn.Store(other) })
			return status.Error(codes.Unavailable, "going away")
		}}
		l.from(first)
		l.wantLoaded(l.load(sourceOf(content)), content)
		if asked := second.asked(); len(asked) != 1 || asked[0] != 500 {
			t.Errorf("the other one was asked from %v", asked)
		}
	})
	t.Run("connected a moment later", func(t *testing.T) {
		content := bigModule()
		synctest.Test(t, func(t *testing.T) {
			d := &depot{read: func(_ *chandlerv1.ReadRequest, stream grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
				return send(stream, content)
			}}
			l := newLoading(t, Config{})
			time.AfterFunc(firstPatience-resumeStep, func() { l.from(d) })
			l.wantLoaded(l.load(sourceOf(content)), content)
		})
	})
	t.Run("two at a time", func(t *testing.T) {
		content := bigModule()
		d := &depot{read: func(_ *chandlerv1.ReadRequest, stream grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
			return send(stream, content)
		}}
		l := newLoading(t, Config{}).from(d)
		file := filepath.Join(t.TempDir(), "m.wasm")
		writeFile(t, file, content)
		l.start(l.ctx, sourceOf(content), nil)
		l.start(l.ctx, Source{Path: file, Version: "1"}, nil)
		l.wantLoaded(l.outcome(), content)
		l.wantLoaded(l.outcome(), content)
		if n, _ := l.store.Stats(); n != 1 {
			t.Errorf("%d modules are in the store", n)
		}
	})
}

func TestLoadRefused(t *testing.T) {
	leaks.Check(t)
	content := bigModule()
	for name, c := range map[string]struct {
		read      func(stream grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error
		code      chandler.Code
		temporary bool
		counted   string
	}{
		"other bytes": {func(stream grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
			return send(stream, module.Append())
		}, chandler.CodeDigestMismatch, false, "checksum_mismatched"},
		"too few": {func(stream grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
			return send(stream, content[:500])
		}, chandler.CodeDigestMismatch, false, "checksum_mismatched"},
		"not found": {func(grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
			return status.Error(codes.NotFound, "no such module")
		}, chandler.CodeNotFound, true, "download_failure"},
		"not allowed": {func(grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
			return status.Error(codes.PermissionDenied, "not yours")
		}, chandler.CodeUnauthorized, false, "download_failure"},
		"overloaded": {func(grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
			return status.Error(codes.ResourceExhausted, "later")
		}, chandler.CodeFetchFailed, true, "download_failure"},
		"away": {func(grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
			return status.Error(codes.Unavailable, "going away")
		}, chandler.CodeControlUnreachable, true, "download_failure"},
	} {
		t.Run(name, func(t *testing.T) {
			d := &depot{read: func(_ *chandlerv1.ReadRequest, stream grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
				return c.read(stream)
			}}
			l := newLoading(t, Config{}).from(d)
			l.wantError(l.load(sourceOf(content)), c.code, c.temporary)
			if n := l.counted("istio_agent_wasm_remote_fetch_count", c.counted); n != 1 {
				t.Errorf("%v are counted as %s", n, c.counted)
			}
		})
	}
	t.Run("no control plane", func(t *testing.T) {
		l := newLoading(t, Config{})
		l.wantError(l.load(sourceOf(content)), chandler.CodeControlUnreachable, true)
	})
}

// A load that is cancelled says nothing and leaves nothing, in whatever state.
func TestLoadCancelled(t *testing.T) {
	leaks.Check(t)
	content := bigModule()
	half := make(chan struct{})
	ended := make(chan struct{})
	d := &depot{read: func(_ *chandlerv1.ReadRequest, stream grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
		_ = send(stream, content[:500])
		close(half)
		<-stream.Context().Done()
		close(ended)
		return nil
	}}
	l := newLoading(t, Config{}).from(d)
	l.start(l.ctx, sourceOf(content), nil)
	<-half
	l.cancel(sourceOf(content))
	l.cancel(sourceOf(content))           // once more does nothing
	l.cancel(Source{Digest: "of nobody"}) // nor does this
	<-ended
	l.wait()
	if len(l.done) != 0 {
		t.Errorf("it says %+v", (<-l.done).Loaded)
	}
	if n, _ := l.store.Stats(); n != 0 {
		t.Errorf("%d modules are in the store", n)
	}
}

func writeFile(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLoadFile(t *testing.T) {
	leaks.Check(t)
	content := module.Append()
	good := filepath.Join(t.TempDir(), "good.wasm")
	writeFile(t, good, content)

	t.Run("good", func(t *testing.T) {
		l := newLoading(t, Config{})
		l.wantLoaded(l.load(Source{Path: good, Version: "1"}), content)
		l.wantLoaded(l.load(Source{Path: good, Version: "1", Digest: sourceOf(content).Digest}), content)
	})
	t.Run("pinned", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "m.wasm")
		writeFile(t, path, content)
		l := newLoading(t, Config{})
		l.wantLoaded(l.load(Source{Path: path, Version: "1"}), content)
		other := bigModule()
		writeFile(t, path, other)
		l.wantLoaded(l.load(Source{Path: path, Version: "1", Pinned: sourceOf(content).Digest}), content)
		l.wantLoaded(l.load(Source{Path: path, Version: "2"}), other)
		// What was pinned may have been dropped from the store.
		l.wantLoaded(l.load(Source{Path: path, Version: "1", Pinned: digestOf("dropped")}), other)
	})
	for name, c := range map[string]struct {
		make func(path string) error
		sum  chandler.ModuleDigest
		code chandler.Code
	}{
		"missing":      {func(string) error { return nil }, "", chandler.CodeFileMissing},
		"a directory":  {func(path string) error { return os.Mkdir(path, 0o700) }, "", chandler.CodeFileMissing},
		"a pipe":       {func(path string) error { return syscall.Mkfifo(path, 0o600) }, "", chandler.CodeFileMissing},
		"no module":    {func(path string) error { return os.WriteFile(path, []byte("hello, world"), 0o600) }, "", chandler.CodeWasmMagic},
		"empty":        {func(path string) error { return os.WriteFile(path, nil, 0o600) }, "", chandler.CodeWasmEmpty},
		"truncated":    {func(path string) error { return os.WriteFile(path, module.Truncate(content), 0o600) }, "", chandler.CodeWasmParse},
		"wrong sha256": {func(path string) error { return os.WriteFile(path, content, 0o600) }, digestOf("another"), chandler.CodeDigestMismatch},
		"too large":    {func(path string) error { writeFile(t, path, nil); return os.Truncate(path, maxFileModule+1) }, "", chandler.CodeModuleTooLarge},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "m.wasm")
			if err := c.make(path); err != nil {
				t.Fatal(err)
			}
			l := newLoading(t, Config{})
			ev := l.load(Source{Path: path, Version: "1", Digest: c.sum})
			l.wantError(ev, c.code, false)
			if ev.Err.Problem.Hint == "" {
				t.Error("it does not say what to do")
			}
			if strings.Contains(ev.Err.Problem.Error(), "hello") {
				t.Errorf("it tells what is in the file: %s", ev.Err.Problem.Error())
			}
		})
	}
}

func TestFault_F41_LoadFromOrigin(t *testing.T) {
	content := bigModule()
	reg, err := registry.Start(registry.Config{Username: "node", Password: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(reg.Close)
	pusher := fetch.New(fetch.Config{Dir: t.TempDir()})
	t.Cleanup(pusher.Close)
	push := func(name string, content []byte) string {
		digest, err := pusher.Push(t.Context(), reg.Addr+"/"+name, content, fetch.PushOptions{Credentials: fetch.NewCredentials(reg.Addr, "node", "secret")})
		if err != nil {
			t.Fatal(err)
		}
		return "oci://" + reg.Addr + "/" + name + "@" + string(digest)
	}
	origin, another := push("m", content), push("another", module.Append())
	login := t.TempDir()
	writeFile(t, filepath.Join(login, "config.json"), []byte(`{"auths": {"`+reg.Addr+`": {"auth": "bm9kZTpzZWNyZXQ="}}}`))
	full := func() *depot {
		return &depot{read: func(_ *chandlerv1.ReadRequest, stream grpc.ServerStreamingServer[chandlerv1.ReadResponse]) error {
			return send(stream, content)
		}}
	}

	t.Run("with the node's credentials", func(t *testing.T) {
		d := full()
		l := newLoading(t, Config{FetchFrom: FromOrigin, DockerConfig: login, Data: t.TempDir()}).from(d)
		l.wantLoaded(l.load(sourceOf(content), "oci://127.0.0.1:1/nobody@"+string(digestOf("x")), origin), content)
		if asked := d.asked(); len(asked) != 0 {
			t.Errorf("the control plane was asked from %v", asked)
		}
	})
	t.Run("not by default", func(t *testing.T) {
		d := full()
		l := newLoading(t, Config{DockerConfig: login}).from(d)
		l.wantLoaded(l.load(sourceOf(content), origin), content)
		if len(d.asked()) != 1 {
			t.Error("the control plane was not asked")
		}
	})
	for name, origins := range map[string][]string{
		"no origin": nil, "no credentials": {origin}, "no reference": {"oci://?"}, "other bytes there": {another},
	} {
		t.Run("the control plane helps: "+name, func(t *testing.T) {
			d, config := full(), login
			if name == "no credentials" {
				config = ""
			}
			l := newLoading(t, Config{FetchFrom: FromOrigin, DockerConfig: config, Data: t.TempDir()}).from(d)
			l.wantLoaded(l.load(sourceOf(content), origins...), content)
			if n, _ := l.store.Stats(); n != 1 || len(d.asked()) != 1 {
				t.Errorf("%d modules in the store, the control plane asked %d times", n, len(d.asked()))
			}
		})
	}
	t.Run("nobody has it", func(t *testing.T) {
		l := newLoading(t, Config{FetchFrom: FromOrigin, Data: t.TempDir()})
		ev := l.load(sourceOf(content), origin)
		l.wantError(ev, chandler.CodeUnauthorized, false)
		if strings.Contains(ev.Err.Problem.Message, "secret") {
			t.Errorf("it says %q", ev.Err.Problem.Message)
		}
	})
	t.Run("other bytes and no control plane", func(t *testing.T) {
		l := newLoading(t, Config{FetchFrom: FromOrigin, DockerConfig: login, Data: t.TempDir()})
		l.wantError(l.load(sourceOf(content), another), chandler.CodeDigestMismatch, false)
	})
}

// What ends a load is said in words, with when to try again.
func TestLoadErrors(t *testing.T) {
	t.Parallel()
	full := chandler.Problemf(chandler.CodeCacheFull, "", "make room", "the disk is full")
	for _, c := range []struct {
		err       error
		code      chandler.Code
		temporary bool
		after     time.Duration
	}{
		{full, chandler.CodeCacheFull, true, 0},
		{errors.Join(errors.New("ingest"), full), chandler.CodeCacheFull, true, 0},
		{&fetch.Error{Problem: chandler.Problem{Code: chandler.CodeHTTPStatus}, Temporary: true, RetryAfter: time.Minute}, chandler.CodeHTTPStatus, true, time.Minute},
		{status.Error(codes.Canceled, "grpc: the client connection is closing"), chandler.CodeControlUnreachable, true, 0},
		{&fs.PathError{Op: "open", Path: "/x", Err: syscall.EIO}, chandler.CodeFetchFailed, true, 0},
	} {
		if got := loadError(c.err); got.Problem.Code != c.code || got.Temporary != c.temporary || got.RetryAfter != c.after {
			t.Errorf("%v becomes %+v", c.err, got)
		}
	}
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/proxywasm"
	"chandler.dev/chandler/internal/store"
	"chandler.dev/chandler/internal/wire"
)

// maxLoads bounds downloads at one time, so loosely that a few which trickle do
// not hold up the others; reads of what is in the store do not count.
const maxLoads = 32

// maxChunk bounds what one message of a control plane decompresses to.
const maxChunk = 1 << 20

// maxFileModule bounds a module that is read from a file:// url.
const maxFileModule = 64 << 20

// Patience with mirrors, in whose place the control plane is asked: for a connection
// and for an answer, and the least speed, in bytes a second, held over that time.
const (
	mirrorPatience = 5 * time.Second
	mirrorRate     = 128 << 10
)

// Patience with the control plane while a module is read from it.
const (
	firstPatience  = 500 * time.Millisecond // for a connection that is being made
	resumePatience = 10 * time.Second       // for one that was lost, without a byte
	chunkPatience  = 30 * time.Second       // for the next bytes of a stream
	resumeStep     = 20 * time.Millisecond
)

// tidyAfter the last download Envoy has what it brought.
const tidyAfter = 3 * time.Second

// loader brings modules to local disk: from the store, from the control plane
// by digest, from where they come from or a mirror of that when so configured, or
// from a file of this machine.
type loader struct {
	store *store.Store
	node  *chandlerv1.Node
	log   *slog.Logger
	// origin fetches from where modules come from, or from mirrors of that alone; nil:
	// only the control plane is asked.
	origin *fetch.Client
	// conn is the connection to the control plane, nil while there is none.
	conn    atomic.Pointer[grpc.ClientConn]
	done    func(Loaded, *store.Lease)
	metrics *metrics

	slots   *semaphore.Weighted
	tidy    *time.Timer // gives back what a download took of memory
	wg      sync.WaitGroup
	mu      sync.Mutex
	running map[Source]context.CancelFunc
}

func newLoader(modules *store.Store, cfg Config, m *metrics) *loader {
	l := &loader{
		store: modules, node: wire.NodeToProto(cfg.Node), log: cfg.Log, metrics: m,
		slots: semaphore.NewWeighted(maxLoads), running: map[Source]context.CancelFunc{},
		// By itself the runtime keeps it for minutes, and an agent has nothing to do for days.
		tidy: time.AfterFunc(tidyAfter, debug.FreeOSMemory),
	}
	if cfg.FetchFrom == FromOrigin || cfg.FetchFrom == FromMirror {
		fc := fetch.Config{Dir: cfg.Data, Hosts: cfg.Hosts, Log: cfg.Log}
		if cfg.FetchFrom == FromMirror {
			fc.OnlyMirrors, fc.IdleTimeout, fc.MinRate = true, mirrorPatience, mirrorRate
		}
		if cfg.DockerConfig != "" {
			fc.Keychain = fetch.DockerConfig(cfg.DockerConfig)
		}
		l.origin = fetch.New(fc)
	}
	return l
}

// close ends idle connections; every load must have ended.
func (l *loader) close() {
	l.tidy.Stop()
	if l.origin != nil {
		l.origin.Close()
	}
}

// start begins a load; done is called with its outcome unless it is cancelled.
func (l *loader) start(ctx context.Context, src Source, origins []string) {
	ctx, cancel := context.WithCancel(ctx)
	l.mu.Lock()
	l.running[src] = cancel
	l.mu.Unlock()
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		defer cancel()
		lease, err := l.load(ctx, src, origins)
		if !l.finish(ctx, src) {
			if lease != nil {
				lease.Release()
			}
			return
		}
		ev := Loaded{Source: src}
		if err != nil {
			ev.Err = loadError(err)
		} else {
			ev.Path, ev.Size = lease.Path(), lease.Size()
			ev.Digest = lease.Digest()
		}
		l.done(ev, lease)
	}()
}

// finish ends the books of a load; false when it was cancelled.
func (l *loader) finish(ctx context.Context, src Source) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ctx.Err() != nil {
		return false // what is in the books may be its successor
	}
	delete(l.running, src)
	return true
}

func (l *loader) cancel(src Source) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if cancel := l.running[src]; cancel != nil {
		cancel()
		delete(l.running, src)
	}
}

// wait returns when every load has ended; the context given to start must be
// cancelled before.
func (l *loader) wait() { l.wg.Wait() }

func (l *loader) load(ctx context.Context, src Source, origins []string) (*store.Lease, error) {
	if src.Path != "" {
		return l.importFile(src)
	}
	lease, err := l.store.Acquire(src.Digest)
	l.metrics.lookup(err == nil)
	if !errors.Is(err, fs.ErrNotExist) {
		return lease, err
	}
	if err := l.slots.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer l.slots.Release(1)
	defer l.tidy.Reset(tidyAfter)
	if err := l.bring(ctx, src.Digest, origins); err != nil {
		return nil, err
	}
	return l.store.Acquire(src.Digest)
}

// bring fetches a module, from each of its origins in turn if there is a client
// for them, and from the control plane when none has it.
func (l *loader) bring(ctx context.Context, digest chandler.ModuleDigest, origins []string) error {
	if l.origin == nil {
		origins = nil
	}
	var failed error // at an origin
	for _, origin := range origins {
		err := l.pull(ctx, origin, digest)
		if l.origin.OnlyMirrors && notThere(err) {
			continue // few mirrors have everything
		}
		l.metrics.fetched(err)
		if err == nil || ctx.Err() != nil {
			return err
		}
		l.log.Warn("a module cannot be had from its origin", "digest", digest, "error", err)
		failed = err
	}
	err := l.download(ctx, digest)
	l.metrics.fetched(err)
	if failed != nil && (errors.Is(err, errNoControl) || status.Code(err) == codes.Unavailable) {
		return failed // says more than that nobody else is there
	}
	return err
}

// pull fetches a module from an origin. Whatever is there, only the bytes of that
// digest are taken.
func (l *loader) pull(ctx context.Context, origin string, digest chandler.ModuleDigest) error {
	ref, problem := chandler.ParseReference(origin)
	if problem != nil {
		return problem
	}
	_, err := l.origin.Pull(ctx, fetch.Request{Reference: ref}, onlyModule{l.store, digest})
	return err
}

// notThere tells whether an error says that a place does not have a module.
func notThere(err error) bool {
	var fetched *fetch.Error
	return errors.As(err, &fetched) && fetched.Problem.Code == chandler.CodeNotFound
}

// onlyModule takes in the module of one digest and no other.
type onlyModule struct {
	store  *store.Store
	digest chandler.ModuleDigest
}

func (o onlyModule) Ingest(r io.Reader, _ chandler.ModuleDigest) (chandler.ModuleDigest, int64, error) {
	return o.store.Ingest(r, o.digest)
}

// download reads a module from the control plane. A stream that breaks is
// resumed where it broke, also at another control plane.
func (l *loader) download(ctx context.Context, digest chandler.ModuleDigest) error {
	r := &moduleReader{ctx: ctx, loader: l, digest: digest}
	defer r.end()
	_, _, err := l.store.Ingest(r, digest)
	return err
}

// importFile copies a module of this machine into the store, where it is pinned:
// what the file holds later does not matter.
func (l *loader) importFile(src Source) (*store.Lease, error) {
	if src.Pinned != "" {
		if lease, err := l.store.Acquire(src.Pinned); !errors.Is(err, fs.ErrNotExist) {
			return lease, err
		}
	}
	// Not blocking, as it may be a pipe that nobody writes to.
	f, err := os.OpenFile(src.Path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, chandler.Problemf(chandler.CodeFileMissing, "spec.url", "put the module there, or use an oci url",
			"the module's file cannot be read on this proxy's machine: %v", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, chandler.Problemf(chandler.CodeFileMissing, "spec.url", "point the url at a .wasm file",
			"%s is no regular file on this proxy's machine", chandler.Quote(src.Path))
	}
	if st.Size() > maxFileModule {
		return nil, chandler.Problemf(chandler.CodeModuleTooLarge, "spec.url", "make the module smaller",
			"%s has %d bytes; the limit is %d", chandler.Quote(src.Path), st.Size(), maxFileModule)
	}
	if _, err := proxywasm.Inspect(f, st.Size()); err != nil {
		return nil, withoutContent(err, src.Path)
	}
	digest, _, err := l.store.Ingest(io.NewSectionReader(f, 0, st.Size()), src.Digest)
	if err != nil {
		return nil, err
	}
	return l.store.Acquire(digest)
}

// withoutContent keeps what a file begins with from a control plane that names
// files which are no modules: that could be a password.
func withoutContent(err error, path string) error {
	var problem *chandler.Problem
	if errors.As(err, &problem) && problem.Code == chandler.CodeWasmMagic {
		return chandler.Problemf(problem.Code, "spec.url", "point the url at a .wasm file", "%s on this proxy's machine is not Wasm", chandler.Quote(path))
	}
	return err
}

// moduleReader reads a module's bytes from the control plane.
type moduleReader struct {
	ctx    context.Context
	loader *loader
	digest chandler.ModuleDigest

	conn   *grpc.ClientConn
	stream grpc.ServerStreamingClient[chandlerv1.ReadResponse]
	cancel context.CancelFunc
	chunk  []byte
	offset uint64

	decoder *zstd.Decoder // nil before the first chunk that needs it
	decoded []byte
}

func (r *moduleReader) Read(p []byte) (int, error) {
	for len(r.chunk) == 0 {
		if err := r.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, r.chunk)
	r.chunk = r.chunk[n:]
	r.offset += uint64(n)
	return n, nil
}

// next gets more bytes, over as many streams as that takes within bounds.
func (r *moduleReader) next() error {
	var failed time.Time // first
	for {
		err := r.receive()
		if err == nil || err == io.EOF || r.ctx.Err() != nil {
			return err
		}
		r.close()
		if failed.IsZero() {
			failed = time.Now()
		}
		if time.Since(failed) > r.patience(err) {
			return err
		}
		select {
		case <-r.ctx.Done():
			return r.ctx.Err()
		case <-time.After(resumeStep):
		}
	}
}

// patience is for how long after the first another try may follow such an end of a
// stream at once. Without a byte so far there is little to lose, and the agent's own
// intervals between tries are in force.
func (r *moduleReader) patience(err error) time.Duration {
	lost := status.Code(err) == codes.Unavailable || status.Code(err) == codes.Canceled
	switch {
	case r.offset > 0 && (lost || errors.Is(err, errNoControl)):
		return resumePatience
	case errors.Is(err, errNoControl):
		return firstPatience
	}
	return -1
}

func (r *moduleReader) receive() error {
	if r.stream == nil {
		if err := r.open(); err != nil {
			return err
		}
	}
	stalled := time.AfterFunc(chunkPatience, r.cancel)
	defer stalled.Stop()
	msg, err := r.stream.Recv()
	outlived(r.conn, err, r.loader.log)
	r.chunk = msg.GetChunk()
	if frame := msg.GetZstd(); err == nil && len(frame) > 0 {
		r.chunk, err = r.decode(frame)
	}
	return err
}

// decode decompresses one chunk.
func (r *moduleReader) decode(frame []byte) (chunk []byte, err error) {
	if r.decoder == nil {
		r.decoder, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(maxChunk))
		if err != nil {
			return nil, err
		}
	}
	if r.decoded, err = r.decoder.DecodeAll(frame, r.decoded[:0]); err != nil {
		return nil, fmt.Errorf("the control plane sends what cannot be decompressed: %w", err)
	}
	return r.decoded, nil
}

func (r *moduleReader) open() error {
	conn := r.loader.conn.Load()
	if conn == nil {
		return errNoControl
	}
	ctx, cancel := context.WithCancel(r.ctx)
	stream, err := chandlerv1.NewModulesClient(conn).Read(ctx, &chandlerv1.ReadRequest{
		Node: r.loader.node, Digest: string(r.digest), Offset: r.offset, Zstd: true,
	})
	if err != nil {
		cancel()
		return err
	}
	r.conn, r.stream, r.cancel = conn, stream, cancel
	return nil
}

func (r *moduleReader) close() {
	if r.cancel != nil {
		r.cancel()
		r.stream, r.cancel = nil, nil
	}
}

// end gives back all that a reader took.
func (r *moduleReader) end() {
	r.close()
	if r.decoder != nil {
		r.decoder.Close()
	}
}

var errNoControl = errors.New("no connection to a control plane")

// loadError turns what ended a load into words and a decision on when to try
// again.
func loadError(err error) *LoadError {
	var fetched *fetch.Error
	if errors.As(err, &fetched) {
		return &LoadError{Problem: fetched.Problem, Temporary: fetched.Temporary, RetryAfter: fetched.RetryAfter}
	}
	var problem *chandler.Problem
	if errors.As(err, &problem) {
		disk := problem.Code == chandler.CodeCacheFull || problem.Code == chandler.CodeCacheUnwritable
		return &LoadError{Problem: *problem, Temporary: disk}
	}
	p := chandler.Problem{Code: chandler.CodeFetchFailed, Message: chandler.Printable(err.Error(), reasonLimit)}
	temporary := true
	switch st, ok := status.FromError(err); {
	case errors.Is(err, errNoControl):
		p.Code = chandler.CodeControlUnreachable
	case !ok:
	case st.Code() == codes.Unavailable, st.Code() == codes.Canceled:
		p.Code = chandler.CodeControlUnreachable
		p.Message = fmt.Sprintf("the control plane does not answer: %s", chandler.Printable(st.Message(), reasonLimit))
	case st.Code() == codes.NotFound:
		// It may be that the control plane is a moment behind what it assigned.
		p.Code = chandler.CodeNotFound
		p.Message = "the control plane has no such module for this node"
	case st.Code() == codes.Unauthenticated:
		p.Code = chandler.CodeUnauthorized // until the connection is made anew with what is shown by then
	case st.Code() == codes.PermissionDenied:
		p.Code, temporary = chandler.CodeUnauthorized, false
	}
	return &LoadError{Problem: p, Temporary: temporary}
}

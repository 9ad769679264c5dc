package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sync/semaphore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/proxywasm"
	"chandler.dev/chandler/internal/store"
)

// maxLoads bounds downloads at one time; reads of what is in the store do not
// count.
const maxLoads = 4

// maxFileModule bounds a module that is read from a file:// url.
const maxFileModule = 64 << 20

// loader brings modules to local disk: from the store, from the control plane
// by digest, or from a file of this machine.
type loader struct {
	store *store.Store
	node  *chandlerv1.Node
	// conn is the connection to the control plane, nil while there is none.
	conn    atomic.Pointer[grpc.ClientConn]
	done    func(Loaded, *store.Lease)
	metrics *metrics

	slots   *semaphore.Weighted
	wg      sync.WaitGroup
	mu      sync.Mutex
	running map[Source]context.CancelFunc
}

// start begins a load; done is called with its outcome unless it is cancelled.
func (l *loader) start(ctx context.Context, src Source) {
	ctx, cancel := context.WithCancel(ctx)
	l.mu.Lock()
	l.running[src] = cancel
	l.mu.Unlock()
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		defer cancel()
		lease, err := l.load(ctx, src)
		if ctx.Err() != nil {
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

func (l *loader) load(ctx context.Context, src Source) (*store.Lease, error) {
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
	err = l.download(ctx, src.Digest)
	l.metrics.fetched(err)
	if err != nil {
		return nil, err
	}
	return l.store.Acquire(src.Digest)
}

// download reads a module from the control plane. A stream that breaks is
// resumed where it broke, as long as each try brings some bytes.
func (l *loader) download(ctx context.Context, digest chandler.ModuleDigest) error {
	r := &moduleReader{ctx: ctx, loader: l, digest: digest}
	defer r.close()
	_, _, err := l.store.Ingest(r, digest)
	return err
}

// importFile copies a module of this machine into the store, where it is pinned:
// what the file holds later does not matter.
func (l *loader) importFile(src Source) (*store.Lease, error) {
	f, err := os.Open(src.Path)
	if err != nil {
		return nil, chandler.Problemf(chandler.CodeFileMissing, "spec.url", "put the module there, or use an oci url",
			"the module's file cannot be read on this proxy's machine: %v", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxFileModule {
		return nil, chandler.Problemf(chandler.CodeModuleTooLarge, "spec.url", "point the url at a .wasm file within the limit",
			"%s is no regular file of at most %d bytes", chandler.Quote(src.Path), maxFileModule)
	}
	if _, err := proxywasm.Inspect(f, st.Size()); err != nil {
		return nil, err
	}
	digest, _, err := l.store.Ingest(io.NewSectionReader(f, 0, maxFileModule), src.Digest)
	if err != nil {
		return nil, err
	}
	return l.store.Acquire(digest)
}

// moduleReader reads a module's bytes from the control plane.
type moduleReader struct {
	ctx    context.Context
	loader *loader
	digest chandler.ModuleDigest

	stream grpc.ServerStreamingClient[chandlerv1.ReadResponse]
	cancel context.CancelFunc
	chunk  []byte
	offset uint64
	opened uint64 // offset at which the present stream began
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

func (r *moduleReader) next() error {
	if r.stream == nil {
		if err := r.open(); err != nil {
			return err
		}
	}
	msg, err := r.stream.Recv()
	if err == nil {
		r.chunk = msg.GetChunk()
		return nil
	}
	resumable := status.Code(err) == codes.Unavailable && r.offset > r.opened
	if err == io.EOF || !resumable || r.ctx.Err() != nil {
		return err
	}
	r.close()
	return nil
}

func (r *moduleReader) open() error {
	conn := r.loader.conn.Load()
	if conn == nil {
		return errNoControl
	}
	ctx, cancel := context.WithCancel(r.ctx)
	stream, err := chandlerv1.NewModulesClient(conn).Read(ctx, &chandlerv1.ReadRequest{
		Node: r.loader.node, Digest: string(r.digest), Offset: r.offset,
	})
	if err != nil {
		cancel()
		return err
	}
	r.stream, r.cancel, r.opened = stream, cancel, r.offset
	return nil
}

func (r *moduleReader) close() {
	if r.cancel != nil {
		r.cancel()
		r.stream, r.cancel = nil, nil
	}
}

var errNoControl = errors.New("no connection to a control plane")

// loadError turns what ended a load into words and a decision on when to try
// again.
func loadError(err error) *LoadError {
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
	case st.Code() == codes.Unavailable:
		p.Code = chandler.CodeControlUnreachable
		p.Message = fmt.Sprintf("the control plane does not answer: %s", chandler.Printable(st.Message(), reasonLimit))
	case st.Code() == codes.NotFound:
		// It may be that the control plane is a moment behind what it assigned.
		p.Code = chandler.CodeNotFound
		p.Message = "the control plane has no such module for this node"
	case st.Code() == codes.Unauthenticated, st.Code() == codes.PermissionDenied:
		p.Code, temporary = chandler.CodeUnauthorized, false
	}
	return &LoadError{Problem: p, Temporary: temporary}
}

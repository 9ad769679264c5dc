package resolve

import (
	"context"
	"sync"
)

// flights lets callers who want the same thing share one download. Unlike one
// that belongs to its first caller, it goes on until the last of them has left,
// and the last one waits for its end, so that nothing outlives its callers.
type flights struct {
	mu sync.Mutex
	m  map[string]*flight
}

type flight struct {
	callers  int
	cancel   context.CancelFunc
	done     chan struct{}
	artifact artifact
	err      error
}

func (fs *flights) do(ctx context.Context, key string, pull func(context.Context) (artifact, error)) (artifact, error) {
	fs.mu.Lock()
	f := fs.m[key]
	if f == nil {
		f = fs.launch(context.WithoutCancel(ctx), key, pull)
	}
	f.callers++
	fs.mu.Unlock()

	select {
	case <-f.done:
	case <-ctx.Done():
	}
	fs.mu.Lock()
	f.callers--
	last := f.callers == 0
	if last && fs.m[key] == f {
		delete(fs.m, key) // who comes now starts anew
	}
	fs.mu.Unlock()
	if last {
		f.cancel()
		<-f.done
	}
	if err := ctx.Err(); err != nil {
		return artifact{}, err
	}
	return f.artifact, f.err
}

// launch starts a download; fs.mu is held.
func (fs *flights) launch(ctx context.Context, key string, pull func(context.Context) (artifact, error)) *flight {
	ctx, cancel := context.WithCancel(ctx)
	f := &flight{cancel: cancel, done: make(chan struct{})}
	if fs.m == nil {
		fs.m = map[string]*flight{}
	}
	fs.m[key] = f
	go func() {
		defer close(f.done)
		f.artifact, f.err = pull(ctx)
		fs.mu.Lock()
		defer fs.mu.Unlock()
		if fs.m[key] == f {
			delete(fs.m, key)
		}
	}()
	return f
}

package wasmhost

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/exchange"
	"chandler.dev/chandler/internal/proxywasm"
)

// Engine runs plugins in this process: it implements exchange.Engine. A module is
// compiled once, however many sessions run it. It may be used by many goroutines, each
// of its sessions by one.
type Engine struct {
	cache wazero.CompilationCache

	mu       sync.Mutex
	programs map[[sha256.Size]byte]*shared
	idle     []*shared // nobody runs them, in the order in which they were left
}

// shared is a program that sessions share.
type shared struct {
	digest [sha256.Size]byte
	users  int

	mu      sync.Mutex // held while it is compiled
	program *program
}

const (
	// DefaultMemory and DefaultDeadline are those of a Setup that says none.
	DefaultMemory   = 128 << 20
	DefaultDeadline = 5 * time.Second

	// maxIdle is how many programs are kept that nobody runs.
	maxIdle = 8
)

// NewEngine makes an engine. What it compiles is kept in a directory, for the next
// one; empty: in none.
func NewEngine(cache string) (*Engine, error) {
	e := &Engine{cache: wazero.NewCompilationCache(), programs: map[[sha256.Size]byte]*shared{}}
	if cache != "" {
		kept, err := wazero.NewCompilationCacheWithDir(cache)
		if err != nil {
			return nil, fmt.Errorf("compilation cache: %w", err)
		}
		e.cache = kept
	}
	return e, nil
}

// Name implements exchange.Engine.
func (e *Engine) Name() string { return "fast" }

// Close ends what there is no session of any more.
func (e *Engine) Close() (err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, s := range e.programs {
		if s.program != nil {
			err = errors.Join(err, s.program.close(context.Background()))
		}
	}
	e.programs, e.idle = nil, nil
	return errors.Join(err, e.cache.Close(context.Background()))
}

// Start implements exchange.Engine.
func (e *Engine) Start(ctx context.Context, setup exchange.Setup) (exchange.Session, error) {
	code, err := os.ReadFile(setup.Module)
	if err != nil {
		return nil, err
	}
	module, err := proxywasm.Inspect(bytes.NewReader(code), int64(len(code)))
	if p := (*chandler.Problem)(nil); errors.As(err, &p) {
		return nil, &exchange.Refusal{Reason: p.Message}
	} else if err != nil {
		return nil, err
	}
	s := &session{setup: setup}
	if err := e.start(ctx, s, module.ABI, code); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, &exchange.Refusal{Reason: firstLine(err), Logs: s.Logs()}
	}
	return s, nil
}

// start gives a session its VM.
func (e *Engine) start(ctx context.Context, s *session, abi string, code []byte) error {
	shared, err := e.take(ctx, abi, code)
	if err != nil {
		return err
	}
	s.leave = func() error { return e.leave(shared) }
	setup := &s.setup
	if setup.Memory == 0 {
		setup.Memory = DefaultMemory
	}
	if setup.Deadline == 0 {
		setup.Deadline = DefaultDeadline
	}
	if setup.VMID == "" {
		setup.VMID = setup.Name
	}
	cfg := Config{
		ABI: abi, Memory: setup.Memory, Deadline: setup.Deadline, Env: setup.Env, VMConfig: setup.VMConfig,
		Clusters: setup.Clusters, Now: setup.Now, Log: s.log, Trace: setup.Trace,
	}
	// The session outlives this call, and each of its own has a context.
	if s.host, err = shared.program.start(context.WithoutCancel(ctx), cfg, &memory{limit: setup.Memory}); err != nil {
		return errors.Join(err, s.leave())
	}
	stop := context.AfterFunc(ctx, s.host.cancel)
	defer stop()
	plugin := Plugin{Name: setup.Name, RootID: setup.RootID, VMID: setup.VMID, Config: setup.Config}
	if err := s.host.Configure(ctx, plugin); err != nil {
		return errors.Join(err, s.Close())
	}
	s.root = s.host.contexts[s.host.lastID]
	if setup.Answers != nil {
		s.Answer(setup.Answers)
	}
	return nil
}

// take gives a module's program, which is compiled if it is not there.
func (e *Engine) take(ctx context.Context, abi string, code []byte) (*shared, error) {
	digest := sha256.Sum256(code)
	e.mu.Lock()
	s := e.programs[digest]
	if s == nil {
		s = &shared{digest: digest}
		e.programs[digest] = s
	}
	s.users++
	e.mu.Unlock()

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.program != nil {
		return s, nil
	}
	var err error
	if s.program, err = compile(experimental.WithCompilationWorkers(ctx, runtime.GOMAXPROCS(0)), abi, e.cache, code); err != nil {
		return nil, errors.Join(err, e.leave(s))
	}
	return s, nil
}

// leave gives a program back. It stays for the next session, up to a number.
func (e *Engine) leave(s *shared) (err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s.users--
	e.idle = append(e.idle, s)
	for len(e.idle) > maxIdle {
		oldest := e.idle[0]
		e.idle = e.idle[1:]
		if oldest.users == 0 && e.programs[oldest.digest] == oldest {
			delete(e.programs, oldest.digest)
			if oldest.program != nil {
				err = errors.Join(err, oldest.program.close(context.Background()))
			}
		}
	}
	return err
}

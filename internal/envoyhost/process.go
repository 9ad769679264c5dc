package envoyhost

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/xds/envoyads"
)

const (
	trySlot, keepSlot = "try", "keep"
	upstreamCluster   = "chandler-upstream"

	wasmURL = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"
	// nothingURL is of a filter that without rules does nothing.
	nothingURL = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"

	// startTime bounds Envoy's start, loadTime the loading of a module: on a busy machine
	// one of the Go compiler takes long. settleTime bounds what takes milliseconds.
	startTime, loadTime, settleTime = time.Minute, 3 * time.Minute, 10 * time.Second
	// maxSocket is how long the folder's path may be, so that its sockets can have names.
	maxSocket = 80
)

// process is an Envoy, with all that it talks to.
type process struct {
	dir     string
	cmd     *exec.Cmd
	log     *journal
	ads     *envoyads.Server
	answers chan envoyads.Event // what it says of what it was told
	servers *servers
	admin   *http.Client

	cancel context.CancelFunc
	wg     sync.WaitGroup
	ended  chan struct{} // closed when Envoy has

	clusters map[string]int // of call-outs: the numbers of their sockets
	kept     string         // the digest of the module that is kept compiled
	worker   string         // the thread that requests run on
	barriers string         // the barrier's connection, as Envoy numbers it

	settling sync.Mutex // held by who uses what follows
	barrier  net.Conn
	told     int // how many barriers there were
}

// launch starts an Envoy that knows some clusters. It lives until it is closed.
func launch(ctx context.Context, cfg Config, clusters []string) (p *process, err error) {
	p = &process{log: newJournal(), answers: make(chan envoyads.Event, 64), ended: make(chan struct{}), clusters: map[string]int{}}
	if p.dir, err = folder(cfg.Dir); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.close()
			p = nil
		}
	}()
	living, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	p.servers = newServers(living)
	p.admin = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", p.path("admin"))
	}}}
	if err := p.serve(living); err != nil {
		return p, err
	}
	if _, err := p.grow(clusters); err != nil {
		return p, err
	}
	config, err := p.bootstrap()
	if err == nil {
		err = os.WriteFile(p.path("envoy.json"), config, 0o600)
	}
	if err == nil {
		err = p.exec(living, cfg.Envoy)
	}
	if err != nil {
		return p, err
	}
	for _, slot := range []string{trySlot, keepSlot} {
		if err := p.tell(ctx, slot, nothing(slot), startTime); err != nil {
			return p, err
		}
	}
	return p, p.ready(ctx)
}

// folder gives a folder whose sockets have paths that are short enough.
func folder(parent string) (string, error) {
	dir, err := os.MkdirTemp(parent, "chandler-test-")
	if err == nil && len(dir) > maxSocket {
		_ = os.Remove(dir)
		dir, err = os.MkdirTemp("", "chandler-test-")
	}
	return dir, err
}

func (p *process) path(name string) string { return filepath.Join(p.dir, name) }

// serve opens what Envoy talks to.
func (p *process) serve(ctx context.Context) error {
	p.ads = envoyads.New(envoyads.Config{Events: func(ev envoyads.Event) {
		switch ev.(type) {
		case envoyads.Acked, envoyads.Nacked:
			select {
			case p.answers <- ev:
			case <-ctx.Done():
			}
		}
	}})
	ads, err := net.Listen("unix", p.path("ads"))
	if err != nil {
		return err
	}
	p.wg.Go(func() { _ = p.ads.Serve(ctx, ads) })
	return p.open(ctx, upstreamCluster, "upstream")
}

// open answers for a cluster on a socket.
func (p *process) open(ctx context.Context, cluster, socket string) error {
	lis, err := net.Listen("unix", p.path(socket))
	if err != nil {
		return err
	}
	p.wg.Go(func() { p.servers.serve(ctx, lis, cluster) })
	return nil
}

// exec starts the program.
func (p *process) exec(ctx context.Context, program string) error {
	out, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	p.cmd = exec.CommandContext(ctx, program, "-c", p.path("envoy.json"), "--use-dynamic-base-id", "--disable-hot-restart", "--concurrency", "1",
		"-l", "warning", "--component-log-level", "wasm:trace,http:debug,router:debug", "--log-format", logFormat)
	p.cmd.Dir, p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = p.dir, []string{}, in, in
	if err := p.cmd.Start(); err != nil {
		_ = out.Close()
		close(p.ended)
		return err
	}
	p.wg.Go(func() {
		defer out.Close()
		p.log.follow(out)
	})
	p.wg.Go(func() {
		defer close(p.ended)
		_ = p.cmd.Wait()
	})
	return nil
}

// close ends it and all that is there for it.
func (p *process) close() {
	if p.cancel != nil {
		p.cancel()
	}
	if p.barrier != nil {
		_ = p.barrier.Close()
	}
	p.wg.Wait()
	if p.admin != nil {
		p.admin.CloseIdleConnections()
	}
	_ = os.RemoveAll(p.dir)
}

// gone is the error of an Envoy that has ended.
func (p *process) gone() error {
	return fmt.Errorf("it has ended: %s", chandler.Printable(p.log.last(), 1024))
}

// errRefused: Envoy did not take what it was told.
var errRefused = errors.New("refused")

// tell tells Envoy what a slot holds, and waits until it has it in force.
func (p *process) tell(ctx context.Context, slot string, body *anypb.Any, atMost time.Duration) error {
	config := &corev3.TypedExtensionConfig{Name: slot, TypedConfig: body}
	version := attach.Version(config)
	p.ads.Set(slot, version, attach.Body(config))
	ctx, cancel := context.WithTimeout(ctx, atMost)
	defer cancel()
	for {
		select {
		case ev := <-p.answers:
			switch ev := ev.(type) {
			case envoyads.Acked:
				if ev.Slot == slot && ev.Version == version {
					return nil
				}
			case envoyads.Nacked:
				if ev.Slot == slot && ev.Version == version {
					return errRefused
				}
			}
		case <-p.ended:
			return p.gone()
		case <-ctx.Done():
			return fmt.Errorf("it did not say whether it takes the plugin: %w", ctx.Err())
		}
	}
}

// nothing is what a slot without a plugin holds.
func nothing(string) *anypb.Any { return &anypb.Any{TypeUrl: nothingURL} }

// ready waits until the listeners are open, and learns which thread it is that serves.
func (p *process) ready(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	for {
		if p.barrier, err = net.Dial("unix", p.path("barrier")); err == nil {
			return p.settle(ctx)
		}
		select {
		case <-p.ended:
			return p.gone()
		case <-ctx.Done():
			return fmt.Errorf("its listeners do not open: %w", ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// settle returns when the worker has done all that reached it before, and all that it
// logged of that has been read. One request might overtake something that became ready
// in the same turn of the worker's loop; two cannot.
func (p *process) settle(ctx context.Context) error {
	p.settling.Lock()
	defer p.settling.Unlock()
	ctx, cancel := context.WithTimeout(ctx, startTime) // a load that was acknowledged may still hold the worker
	defer cancel()
	deadline, _ := ctx.Deadline()
	_ = p.barrier.SetDeadline(deadline)
	for range 2 {
		p.told++
		path := fmt.Sprintf("%s%d", barrierPath, p.told)
		if _, err := fmt.Fprintf(p.barrier, "GET %s HTTP/1.1\r\nhost: b\r\n\r\n", path); err != nil {
			return p.stuck(ctx, err)
		}
		res, err := http.ReadResponse(bufio.NewReaderSize(p.barrier, 4096), nil)
		if err != nil {
			return p.stuck(ctx, err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if err := p.seen(ctx, path); err != nil {
			return err
		}
	}
	return nil
}

// stuck is why a barrier did not come through.
func (p *process) stuck(ctx context.Context, err error) error {
	select {
	case <-p.ended:
		return p.gone()
	default:
	}
	if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("it does not answer any more: %w", context.DeadlineExceeded)
	}
	return err
}

// seen waits until a barrier's path was read in the log.
func (p *process) seen(ctx context.Context, path string) error {
	want := "':path', '" + path + "'"
	return p.until(ctx, func(_ int, r *record) bool {
		if !strings.Contains(r.text, want) {
			return false
		}
		if p.worker == "" { // the first, before anything else is asked
			p.worker = r.thread
			if m := tagPattern.FindStringSubmatch(r.text); m != nil {
				p.barriers = m[1]
			}
		}
		return true
	})
}

// dispatched is how many call-outs the worker has made by the log.
func (p *process) dispatched() (n int) {
	records, _ := p.log.since(0)
	for i := range records {
		if r := &records[i]; r.thread == p.worker && r.component == "router" {
			if m := callPattern.FindStringSubmatch(r.text); m != nil && m[1] != upstreamCluster {
				n++
			}
		}
	}
	return n
}

// until waits for a record. The last one is shown again when it has grown: n is its
// number.
func (p *process) until(ctx context.Context, found func(n int, r *record) bool) error {
	for from := 0; ; {
		records, changed := p.log.since(from)
		for i := range records {
			if found(from+i, &records[i]) {
				return nil
			}
		}
		from += max(0, len(records)-1)
		select {
		case <-changed:
		case <-p.ended:
			return p.gone()
		case <-ctx.Done():
			return fmt.Errorf("its log does not say what was waited for: %w", ctx.Err())
		}
	}
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/xds/envoyads"
	"chandler.dev/chandler/internal/xds/relay"
)

// What becomes of an Envoy that ends by itself. With RestartNever the agent ends
// too, with Envoy's exit code. With RestartOnFailure it starts Envoy anew, but
// for one that ended with exit code 0, as it was told to.
const (
	RestartNever     = "never"
	RestartOnFailure = "on-failure"
)

// How long to wait before Envoy is started anew. One that ran for healthyAfter is
// not held to what was before.
const (
	minRestart   = 200 * time.Millisecond
	maxRestart   = 10 * time.Second
	healthyAfter = time.Minute
)

// Limits of what is told of an Envoy that ended.
const (
	crashLines = 40
	crashLimit = 1 << 10
)

// restarts counts the starts that did not last.
type restarts struct{ attempt uint32 }

// after tells how long to wait after an Envoy that ran for that long. jitter is
// in [0, 1) and takes up to half of it away.
func (r *restarts) after(ran time.Duration, jitter float64) time.Duration {
	if ran >= healthyAfter {
		r.attempt = 0
	}
	r.attempt++
	wait := backoff(r.attempt, minRestart, maxRestart)
	return wait - time.Duration(float64(wait)/2*jitter)
}

// ExitError tells how Envoy ended. Its exit code is for the caller of Run to hand
// on: 128 and the signal where there was one, as shells count.
type ExitError struct {
	Code   int
	Signal syscall.Signal // 0: none
	// Unknown: another agent had started it, so Code is only a guess.
	Unknown bool
	Log     []string // Envoy's last lines, printable and bounded
}

func (e *ExitError) Error() string {
	switch {
	case e.Unknown:
		return "envoy ended; another agent had started it, so its exit code is not known"
	case e.Signal != 0:
		return fmt.Sprintf("envoy was ended by signal %d (%s)", int(e.Signal), e.Signal)
	}
	return fmt.Sprintf("envoy ended with exit code %d", e.Code)
}

// message is the error with Envoy's last words.
func (e *ExitError) message() string {
	if len(e.Log) == 0 {
		return e.Error()
	}
	return chandler.Printable(e.Error()+"; its last words: "+strings.Join(e.Log, "; "), crashLimit)
}

// exit tells how the process, which has ended, did.
func (a *Agent) exit() *ExitError {
	e := &ExitError{Code: a.process.exitCode(), Unknown: errors.Is(a.process.err, errNotOurChild)}
	if !a.discreet.Load() {
		e.Log = lastWords(a.envoyLog.tail(crashLines))
	}
	if e.Code > 128 && !e.Unknown {
		e.Signal = syscall.Signal(e.Code - 128)
	}
	return e
}

// lastWords chooses of Envoy's last lines those from its report of a crash on,
// else the very last ones.
func lastWords(lines []string) []string {
	from := max(0, len(lines)-5)
	for i, line := range lines {
		if strings.Contains(line, "[critical]") {
			from = i
			break
		}
	}
	var words []string
	left := crashLimit
	for _, line := range lines[from:] {
		if line = chandler.Printable(line, min(left, 256)); line == "" {
			continue
		}
		if left -= len(line); left <= 0 {
			break
		}
		words = append(words, line)
	}
	return words
}

// running tells whether there is an Envoy.
func (a *Agent) running() bool { return a.process != nil || a.here }

// ended is closed when the present Envoy has ended; nil while there is none.
func (a *Agent) ended() <-chan struct{} {
	if a.process == nil {
		return nil
	}
	return a.process.done
}

// stopEnvoy ends the present Envoy, if there is one.
func (a *Agent) stopEnvoy(drain time.Duration) {
	if a.process != nil {
		a.process.stop(a.envoyAdmin, drain)
	}
}

// envoyUp begins with an Envoy.
func (a *Agent) envoyUp(ctx context.Context) {
	a.begun = time.Now()
	a.step(ctx, message{event: EnvoyStarted{Envoy: a.binary.Digest, Open: a.adopted}})
}

// envoyEnded is for an Envoy that ended by itself. Unless that is the agent's end
// too, what is still to come of it is awaited, so that none of it is taken for
// its successor's: the message parted comes behind all that.
func (a *Agent) envoyEnded(ctx context.Context, g *errgroup.Group) error {
	exit := a.exit()
	a.log.Error("envoy ended", "pid", a.process.proc.Pid, "ran", time.Since(a.begun).Round(time.Millisecond), "how", exit.Error(), "last_words", strings.Join(exit.Log, "; "))
	if a.cfg.Restart != RestartOnFailure || exit.Code == 0 {
		return exit
	}
	a.process, a.adopted, a.lastExit = nil, false, exit
	unfollow, unserve := a.unfollow, a.unserve
	g.Go(func() error {
		unfollow()
		unserve()
		a.send(ctx, message{parted: true})
		return nil
	})
	return nil
}

// serveSlots serves slots, and what its control planes say, to the Envoy that is there or
// is started next, until unserve. another: none before it was the same process.
// Each has a server and a socket of its own: one that is dying may have connected in
// its last moment, and what it says is not to be taken for the word of its successor.
func (a *Agent) serveSlots(ctx context.Context, g *errgroup.Group, another bool) error {
	if a.unserve != nil {
		a.unserve() // for one that could not be started
	}
	ctx, cancel := context.WithCancel(ctx)
	var served sync.WaitGroup
	start := func(serve func() error) {
		served.Add(1)
		g.Go(func() error {
			defer served.Done()
			return serve()
		})
	}
	a.unserve = func() {
		cancel()
		served.Wait()
	}
	events := func(ev envoyads.Event) { a.envoyEvent(ctx, ev) }
	var local map[string]relay.Local
	if a.relaysSlots() {
		slots := newRelayedSlots(a.changedSlot, events)
		a.ads, local = slots, map[string]relay.Local{attach.ExtensionConfigType: slots.local()}
	} else {
		lis, err := a.listen(a.socket)
		if err != nil {
			return err
		}
		ads := envoyads.New(envoyads.Config{Log: a.log, Events: events})
		start(func() error { return ads.Serve(ctx, lis) })
		a.ads = ads
	}
	return a.serveUpstreams(ctx, start, local, another)
}

// envoyDown makes everything as it is before an Envoy is started.
func (a *Agent) envoyDown(ctx context.Context) {
	select {
	case <-a.relistings:
	default:
	}
	a.listeners = a.firstListeners()
	a.startLater(ctx, a.lastExit.message())
}

// startLater tells why there is no Envoy and when it is started.
func (a *Agent) startLater(ctx context.Context, why string) {
	now := time.Now()
	wait := a.restarts.after(now.Sub(a.begun), rand.Float64())
	a.begun, a.restartAt = now, now.Add(wait)
	a.log.Info("envoy is started anew", "in", wait.Round(time.Millisecond), "attempt", a.restarts.attempt)
	a.step(ctx, message{event: EnvoyEnded{Message: why, Attempt: a.restarts.attempt, Next: a.restartAt}})
}

// restart starts Envoy anew when that is due. A program that was replaced is for
// a new agent to look at: what it can do decides how it is configured.
func (a *Agent) restart(ctx context.Context, g *errgroup.Group) error {
	if a.restartAt.IsZero() || time.Now().Before(a.restartAt) {
		return nil
	}
	a.restartAt = time.Time{}
	bin, err := probeEnvoy(ctx, a.cfg.Envoy, filepath.Join(a.envoyDir(), "probe.json"))
	switch {
	case err == nil && bin.Digest != a.binary.Digest:
		return fmt.Errorf("another Envoy (%s) is at %s now; start the agent anew", bin.Version, bin.path)
	case err == nil:
		err = a.serveSlots(ctx, g, true)
	}
	if err == nil {
		err = a.launch(a.configDigest())
	}
	if err != nil {
		a.log.Error("envoy cannot be started", "error", err)
		a.startLater(ctx, "Envoy cannot be started: "+chandler.Printable(err.Error(), crashLimit))
		return nil
	}
	a.metrics.restarts.Inc()
	a.followListeners(ctx, g)
	a.envoyUp(ctx)
	return nil
}

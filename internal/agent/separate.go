package agent

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// An Envoy that somebody else starts is known by its admin interface alone: that it is
// there, since when, of which version. It is served slots from when it is seen until it
// is not any more; how it ended, nobody tells.

// How often it is looked for while it is not there, and while it is; how long it may take
// to answer, as it does not while it compiles a module.
const (
	seekInterval  = 100 * time.Millisecond
	watchInterval = time.Second
	sightPatience = 10 * time.Second
)

// sameEnvoy is by how much two Envoys' beginnings differ: one tells its age in seconds,
// and does at any moment of the time that the answer takes.
const sameEnvoy = 1500 * time.Millisecond

// noListeners is the version of the listeners file of an Envoy that must not listen yet.
const noListeners = "none"

// sighting is what is known of an Envoy that is there.
type sighting struct {
	version string // "1.40.0"
	build   string // of which version is a part
	begun   time.Time
	took    time.Duration // the answer
	open    bool          // it serves
}

// checkNoChild refuses what only the parent of an Envoy can do.
func (cfg *Config) checkNoChild() error {
	if !cfg.NoChild {
		if cfg.EnvoyAdmin != "" {
			return errors.New("the address of Envoy's admin interface is told for an Envoy that somebody else starts (--no-child)")
		}
		return nil
	}
	if cfg.EnvoyAdmin != "" {
		if _, err := parseAdminAddress(cfg.EnvoyAdmin); err != nil {
			return err
		}
	}
	switch {
	case cfg.LeaveEnvoy || cfg.DieTogether:
		return errors.New("an Envoy that somebody else starts is not to end with it, nor to be left")
	case cfg.Restart == RestartOnFailure:
		return errors.New("the agent cannot start an Envoy anew of which it is not its parent")
	}
	return nil
}

func parseAdminAddress(s string) (adminAddress, error) {
	if u, err := url.Parse(s); err == nil && u.Scheme == "unix" && u.Path != "" {
		return adminAddress{network: "unix", address: u.Path}, nil
	}
	if _, port, err := net.SplitHostPort(s); err == nil {
		if n, err := strconv.ParseUint(port, 10, 16); err == nil && n > 0 {
			return adminAddress{network: "tcp", address: s}, nil
		}
	}
	return adminAddress{}, fmt.Errorf("%s is no address of an admin interface; give HOST:PORT or unix:///PATH", chandler.Quote(s))
}

// sight looks for the Envoy.
func (a *Agent) sight(ctx context.Context) (*sighting, error) {
	ctx, cancel := context.WithTimeout(ctx, sightPatience)
	defer cancel()
	asked := time.Now()
	body, err := a.envoyAdmin.get(ctx, "/server_info")
	if err != nil {
		return nil, err
	}
	now := time.Now()
	s, err := readServerInfo(body, now)
	if err != nil {
		return nil, err
	}
	s.took = now.Sub(asked)
	return s, nil
}

// serves tells whether an Envoy that is there has opened listeners, or all of those that
// it was given.
func (a *Agent) serves(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, sightPatience)
	defer cancel()
	st, err := a.envoyAdmin.listeners(ctx)
	if err != nil || st.active == 0 && (st.warming > 0 || st.version == "" || st.version == noListeners) {
		return false
	}
	_, err = a.envoyAdmin.get(ctx, "/ready")
	return err == nil
}

// readServerInfo reads Envoy's answer. Its age is by the machine's clock, and so is when
// it began: both are changed alike when that is set.
func readServerInfo(body []byte, now time.Time) (*sighting, error) {
	var info struct {
		Version string `json:"version"`
		Uptime  string `json:"uptime_current_epoch"`
	}
	if err := json.Unmarshal(body, &info); err != nil {
		return nil, fmt.Errorf("it answers as no Envoy does: %w", err)
	}
	m := versionPattern.FindStringSubmatch(info.Version)
	seconds, ok := strings.CutSuffix(info.Uptime, "s")
	age, err := strconv.ParseFloat(seconds, 64)
	if m == nil || !ok || err != nil || !(age >= 0 && age < 1e9) {
		return nil, fmt.Errorf("it answers as no Envoy does: version %s, age %s", chandler.Quote(info.Version), chandler.Quote(info.Uptime))
	}
	return &sighting{version: m[1], build: info.Version, begun: now.Round(0).Add(-time.Duration(age * float64(time.Second)))}, nil
}

// gone tells whether an error means that nobody is there, and not that somebody is slow.
func gone(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist)
}

// takeSeparate begins with the Envoy that serves already, or with none. The listeners
// are written before it reads them.
func (a *Agent) takeSeparate(ctx context.Context) error {
	s, err := a.sight(ctx)
	if err == nil && a.serves(ctx) {
		a.first, s.open = s, true
		a.newState(ctx, a.standingSlots(), true)
		if a.restored {
			a.step(ctx, message{event: a.lastGood})
		}
		return nil
	}
	a.missing(err)
	a.newState(ctx, nil, false)
	a.listeners = a.firstListeners()
	if a.restored {
		a.step(ctx, message{event: a.lastGood})
	}
	return a.writeListeners(a.listeners)
}

// standingSlots are the slots of one plugin in the listeners that Envoy serves with. When
// those have to be written anew, as others were configured or their file is lost, all that
// the last good set needs stand in the new ones: none of those opens before its plugins.
func (a *Agent) standingSlots() []attach.Slot {
	listed, err := a.listedSlots()
	if err != nil {
		a.log.Warn("the listeners that Envoy serves with are not known; they are written anew", "error", err)
	} else if a.derived.UpstreamListeners || !a.outdated(listed) {
		return listed
	}
	s := NewState(Settings{Slots: a.derived.Slots, Sites: a.derived.Sites})
	s.restored(a.lastGood, time.Now())
	for _, slot := range s.wantListed() {
		if !slices.Contains(listed, slot) {
			listed = append(listed, slot)
		}
	}
	slices.SortStableFunc(listed, func(x, y attach.Slot) int {
		x.Plugin, y.Plugin = chandler.Key{}, chandler.Key{}
		return x.Compare(y)
	})
	return listed
}

// outdated tells whether the listeners' file is not what the configuration makes of it,
// with these slots of one plugin.
func (a *Agent) outdated(listed []attach.Slot) bool {
	text, _, err := a.derived.ListenersWith(listed)
	now, readErr := a.readListeners()
	return err == nil && (readErr != nil || !bytes.Equal(text, now))
}

// missing notes why there is no Envoy.
func (a *Agent) missing(err error) {
	why := "no Envoy answers at " + a.envoyAdmin.String()
	if err != nil {
		why += ": " + chandler.Printable(err.Error(), reasonLimit)
	}
	a.absent.Store(&why)
}

// watchSeparate tells when the Envoy comes and goes, until ctx ends.
func (a *Agent) watchSeparate(ctx context.Context) {
	here := a.first
	for {
		wait := watchInterval
		if here == nil {
			wait = seekInterval
		}
		select {
		case <-ctx.Done():
			return
		case <-a.lookNow:
		case <-time.After(wait):
		}
		s, err := a.sight(ctx)
		switch {
		case err == nil && here == nil:
			here = s
			s.open = a.serves(ctx)
			a.send(ctx, message{seen: s})
		case err == nil && s.begun.Sub(here.begun) > sameEnvoy+s.took:
			here = nil
			a.send(ctx, message{lost: "another Envoy has taken its place"})
		case err != nil && here != nil && gone(err):
			here = nil
			a.missing(err)
			a.send(ctx, message{lost: *a.absent.Load()})
		case err != nil && here == nil:
			a.missing(err)
		}
	}
}

// beginSeparate takes the Envoy on that was there from the beginning.
func (a *Agent) beginSeparate(ctx context.Context, g *errgroup.Group) error {
	if a.first == nil {
		a.log.Info("waiting for an Envoy that somebody else starts", "admin", a.envoyAdmin.String())
		a.publish()
		return nil
	}
	return a.arrive(ctx, g, a.first)
}

// separate handles what watchSeparate tells. An Envoy that comes waits until nothing is
// still to come of the one before.
func (a *Agent) separate(ctx context.Context, g *errgroup.Group, m message) error {
	switch {
	case m.seen != nil && a.parting:
		a.next = m.seen
	case m.seen != nil:
		return a.arrive(ctx, g, m.seen)
	case m.parted:
		return a.departed(ctx, g)
	case a.parting: // the one that waited has gone again
		a.next = nil
	default:
		a.depart(ctx, g, m.lost)
	}
	return nil
}

// arrive begins with an Envoy.
func (a *Agent) arrive(ctx context.Context, g *errgroup.Group, s *sighting) error {
	if s.version != a.binary.Version { // the control plane was told of another
		return fmt.Errorf("another Envoy (%s) has come, in the place of %s; start the agent anew", chandler.Printable(s.version, 64), a.binary.Version)
	}
	a.binary.Digest = string(chandler.Digest[string]([]byte(s.build)))
	a.here, a.adopted, a.begun = true, s.open, s.begun
	a.log.Info("envoy is here", "version", s.version, "since", s.begun.UTC().Format(time.RFC3339), "serves", s.open)
	if err := a.serveSlots(ctx, g, s != a.first); err != nil {
		return err
	}
	a.followListeners(ctx, g)
	a.step(ctx, message{event: EnvoyStarted{Envoy: a.binary.Digest, Open: s.open}})
	if s == a.first && !a.derived.UpstreamListeners {
		a.renewListeners()
	}
	return nil
}

// renewListeners brings the listeners that an Envoy serves with to what the configuration
// makes of them now.
func (a *Agent) renewListeners() {
	if a.state.listing == nil && a.outdated(a.state.listed) {
		a.log.Warn("the listeners of the configuration are other ones than before; Envoy gets them while it runs")
		a.relist(WriteListeners{Own: a.state.listed})
	}
}

// depart ends the work with an Envoy that is not there any more.
func (a *Agent) depart(ctx context.Context, g *errgroup.Group, why string) {
	a.log.Error("envoy is gone; it was not started by this agent, so how it ended is not known", "ran", time.Since(a.begun).Round(time.Second), "why", why)
	a.here, a.adopted, a.parting = false, false, true
	a.lastExit = &ExitError{Code: 1, Unknown: true, Log: []string{why}}
	unfollow, unserve := a.unfollow, a.unserve
	g.Go(func() error {
		unfollow()
		unserve()
		a.send(ctx, message{parted: true})
		return nil
	})
}

// departed makes everything as it is before an Envoy comes.
func (a *Agent) departed(ctx context.Context, g *errgroup.Group) error {
	a.parting = false
	select {
	case <-a.relistings:
	default:
	}
	a.listeners = a.firstListeners()
	a.step(ctx, message{event: EnvoyEnded{Message: "Envoy is gone; how it ended is in its own log, as this agent did not start it"}})
	if err := a.writeListeners(a.listeners); err != nil {
		a.log.Error("the listeners for the next Envoy cannot be written", "error", err)
	}
	if s := a.next; s != nil {
		a.next = nil
		return a.arrive(ctx, g, s)
	}
	return nil
}

// unheard is told of a refusal whose reason is in a log that is not read.
func unheard(message string) string {
	return cmp.Or(message, "Envoy refuses it") + "; why is in Envoy's own log, which this agent does not read (give it --log-path among the Envoy arguments)"
}

var fullVersion = regexp.MustCompile(`^(\d{1,4})\.(\d{1,4})\.\d{1,4}(-\w{1,32})?$`)

// hasSlots tells whether an Envoy of that version has the filter that shared slots need.
func hasSlots(version string) bool {
	m := fullVersion.FindStringSubmatch(version)
	if m == nil {
		return false
	}
	major, _ := strconv.Atoi(m[1])
	minor, _ := strconv.Atoi(m[2])
	return major > 1 || major == 1 && minor >= 39
}

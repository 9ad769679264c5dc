package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/registry"
)

// The two plugins, both in the root namespace: one for everybody, one for a hundredth.
const (
	pluginAll = "all"
	pluginFew = "few"
)

// Bounds of what is waited for.
const (
	connectBound = 3 * time.Minute
	changeBound  = time.Minute
	settle       = 2 * time.Second  // after all were told, for their reports and what follows
	idleFor      = 25 * time.Second // in which each agent asks once whether the control plane is there
)

// stormEvery is between two changes of the storm.
const stormEvery = 10 * time.Millisecond

// Result is what one size came to.
type Result struct {
	Agents int  `json:"agents"`
	TLS    bool `json:"tls"`

	// Connected is from the swarm's start to the last agent's first answer, Connecting the
	// CPU seconds that the control plane took until all knew of the first change.
	Connected  float64 `json:"connectedSeconds"`
	Connecting float64 `json:"connectingCPUSeconds"`
	// Memory is the control plane's resident set with nobody connected, with all
	// connected, after all changes, and at most while they connected.
	Empty float64 `json:"emptyMB"`
	Full  float64 `json:"connectedMB"`
	After float64 `json:"changedMB"`
	Most  float64 `json:"connectingMostMB"`
	// Parts are those of After.
	Parts Makeup `json:"changedParts"`
	// Idle is the share of one core.
	Idle float64 `json:"idleShare"`
	// Yard is the yardstick: CPU microseconds of a bare write to a connection.
	Yard float64 `json:"yardstickMicroseconds"`

	All   Change    `json:"changeOfAll"`
	Told  Change    `json:"changeOfAllTold"` // as All, by agents that acknowledge it and report nothing
	Few   Change    `json:"changeOfFew"`
	Back  Reconnect `json:"reconnect"`
	Storm *Storm    `json:"storm,omitempty"`
}

// Change is a change of one plugin, from the request to apply it to an agent's knowing of
// it: the median of several. CPU is the control plane's until reports and status were
// done with, less what idling takes; Swarm the agents' in the same time.
type Change struct {
	Told          int     `json:"toldAgents"`
	P50           float64 `json:"p50Milliseconds"`
	P99           float64 `json:"p99Milliseconds"`
	Last          float64 `json:"lastMilliseconds"`
	CPU           float64 `json:"cpuSeconds"`
	Swarm         float64 `json:"swarmCPUSeconds"`
	Messages      float64 `json:"messages"`
	ResourceBytes float64 `json:"resourceBytes"`
}

// Reconnect is after a restart of the control plane: from its start to the last agent's
// answer, and what up-to-date agents were sent of resources.
type Reconnect struct {
	Seconds       float64 `json:"seconds"`
	ResourceBytes float64 `json:"resourceBytes"`
}

// Storm is one plugin that changes a hundred times a second.
type Storm struct {
	Seconds  float64 `json:"seconds"`
	Applied  int     `json:"applied"`
	Messages float64 `json:"messagesPerAgent"`
	Most     float64 `json:"mostMB"`
	Parts    Makeup  `json:"parts"` // once all have the last one
	CPU      float64 `json:"cores"`
	// Behind is how long after the last change all agents had that.
	Behind float64 `json:"behindSeconds"`
}

// bench is one size while it is measured.
type bench struct {
	options
	Result
	dir    string
	url    string // of the module
	plane  *plane
	crowd  *crowd
	change int64
}

// measure measures one size.
func measure(ctx context.Context, o options, agents int, tls bool) (_ Result, err error) {
	dir, remove, err := scratch()
	if err != nil {
		return Result{}, err
	}
	defer remove()
	b := &bench{options: o, Result: Result{Agents: agents, TLS: tls}, dir: dir}
	reg, err := registry.Start(registry.Config{})
	if err != nil {
		return b.Result, err
	}
	defer reg.Close()
	if err := b.push(ctx, reg.Addr); err != nil {
		return b.Result, err
	}
	m := muster{Agents: agents}
	var flags []string
	if tls {
		if flags, err = b.certificates(&m); err != nil {
			return b.Result, err
		}
	}
	if b.plane, err = newPlane(o.chandler, filepath.Join(dir, "control"), flags...); err != nil {
		return b.Result, err
	}
	m.Target, b.plane.profiled = b.plane.listen, o.profiles != "" && agents < 1000
	defer func() {
		if b.crowd != nil {
			b.crowd.leave()
		}
		if b.plane.child != nil {
			b.plane.stop()
		}
	}()
	for _, step := range []func(context.Context) error{
		b.begin,
		func(ctx context.Context) error { return b.connect(ctx, m) },
		b.idle,
		func(ctx context.Context) error { return b.changed(ctx, pluginAll, agents, &b.All) },
		b.told,
		func(ctx context.Context) error {
			return b.changed(ctx, pluginFew, (agents+fewEvery-1)/fewEvery, &b.Few)
		},
		b.restart,
		b.rage,
	} {
		if err := step(ctx); err != nil {
			return b.Result, err
		}
	}
	return b.Result, nil
}

func (b *bench) say(format string, args ...any) {
	progress("%d agents%s: "+format, append([]any{b.Agents, withTLS(b.TLS)}, args...)...)
}

// push puts the module of both plugins into the registry.
func (b *bench) push(ctx context.Context, registry string) error {
	client := fetch.New(fetch.Config{Dir: b.dir})
	defer client.Close()
	ref := registry + "/bench/append:1"
	b.url = "oci://" + ref
	_, err := client.Push(ctx, ref, module.Append(), fetch.PushOptions{})
	return err
}

// manifest is a plugin as it is after a change: what an authentication plugin is told,
// and the number of the change.
func (b *bench) manifest(plugin string, change int64) string {
	selector := ""
	if plugin == pluginFew {
		selector = "  selector: {matchLabels: {few: \"yes\"}}\n"
	}
	return fmt.Sprintf(`apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {name: %s, namespace: istio-system}
spec:
  url: %s
  phase: AUTHN
%s  pluginConfig:
    change: %d
    basic_auth_rules:
    - prefix: /productpage
      request_methods: [GET, POST]
      credentials: ["ok:test", "YWRtaW4zOmFkbWluMw=="]
`, plugin, b.url, selector, change)
}

// changeOf is the number of the change that a plugin's configuration is from.
func changeOf(config []byte) int64 {
	var c struct{ Change int64 }
	_ = json.Unmarshal(config, &c) // none is 0
	return c.Change
}

// begin starts the control plane and has both plugins there.
func (b *bench) begin(ctx context.Context) error {
	if err := b.plane.start(ctx); err != nil {
		return err
	}
	b.change = 1
	for _, plugin := range []string{pluginAll, pluginFew} {
		if err := b.plane.apply(ctx, b.manifest(plugin, b.change)); err != nil {
			return err
		}
	}
	err := pause(ctx, settle)
	if err == nil {
		b.Empty, _, err = memory(b.plane.pid())
	}
	return err
}

// connect has the swarm come.
func (b *bench) connect(ctx context.Context, m muster) (err error) {
	began := time.Now()
	spent, err := b.spends(ctx, b.plane.child, func() error {
		if b.crowd, err = startCrowd(m); err != nil {
			return err
		}
		if err := b.crowd.connect(ctx, connectBound); err != nil {
			return err
		}
		b.Connected = time.Since(began).Seconds()
		return b.crowd.know(ctx, pluginAll, b.change, b.Agents, changeBound)
	})
	if err != nil {
		return err
	}
	b.Connecting = spent.Seconds()
	b.say("connected after %.2f s, %.2f CPU seconds", b.Connected, b.Connecting)
	return pause(ctx, 2*settle)
}

// idle measures while nothing happens.
func (b *bench) idle(ctx context.Context) (err error) {
	spent, err := b.spends(ctx, b.plane.child, func() error { return pause(ctx, idleFor) })
	if err != nil {
		return err
	}
	b.Idle = spent.Seconds() / idleFor.Seconds()
	b.Full, b.Most, err = memory(b.plane.pid())
	b.say("%.0f MB (%.0f at most, %.0f without agents), idle %.1f %% of a core", b.Full, b.Most, b.Empty, 100*b.Idle)
	return errors.Join(err,
		b.plane.profile(ctx, b.profiles, "heap?gc=1", b.name("heap")),
		b.plane.profile(ctx, b.profiles, "goroutine", b.name("goroutine")))
}

// spends is how long a process runs while something is done.
func (b *bench) spends(ctx context.Context, c *child, do func() error) (time.Duration, error) {
	before, err := cpu(c.pid())
	if err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	after, err := cpu(c.pid())
	return after - before, err
}

func (b *bench) name(kind string) string {
	return fmt.Sprintf("%s-%d%s", kind, b.Agents, map[bool]string{true: "-tls"}[b.TLS])
}

// changed changes a plugin several times, each time once everything is quiet.
func (b *bench) changed(ctx context.Context, plugin string, agents int, c *Change) error {
	var p50, p99, last []float64
	bytes, err := b.plane.metric(ctx, bytesSent)
	if err != nil {
		return err
	}
	before, err := b.crowd.messages()
	if err != nil {
		return err
	}
	profiled := make(chan error, 1)
	go func() { // of the first few, as profiles cost something too
		profiled <- b.plane.profile(ctx, b.profiles, "profile?seconds=5", b.name("cpu-"+plugin))
	}()
	began := time.Now()
	var theirs time.Duration
	ours, err := b.spends(ctx, b.plane.child, func() (err error) {
		theirs, err = b.spends(ctx, b.crowd.child, func() error {
			for range b.changes {
				delays, err := b.once(ctx, plugin, agents)
				if err != nil {
					return err
				}
				p50, p99 = append(p50, milliseconds(at(delays, 0.50))), append(p99, milliseconds(at(delays, 0.99)))
				last = append(last, milliseconds(at(delays, 1)))
				if err := pause(ctx, settle); err != nil {
					return err
				}
			}
			return nil
		})
		return err
	})
	if err != nil {
		return err
	}
	took, n := time.Since(began).Seconds(), float64(b.changes)
	after, err := b.crowd.messages()
	sent, merr := b.plane.metric(ctx, bytesSent)
	*c = Change{
		Told: agents, P50: median(p50), P99: median(p99), Last: median(last),
		CPU: max(0, ours.Seconds()-b.Idle*took) / n, Swarm: theirs.Seconds() / n,
		Messages: float64(after-before) / n, ResourceBytes: (sent - bytes) / n,
	}
	b.say("a change for %d%s: p50 %.0f ms, p99 %.0f ms, last %.0f ms, %.3f CPU seconds (the agents took %.3f)",
		agents, map[bool]string{true: ", nothing reported"}[c == &b.Told], c.P50, c.P99, c.Last, c.CPU, c.Swarm)
	return errors.Join(err, merr, <-profiled)
}

// told is what a change costs without reports: xDS control planes that are told nothing
// else than acknowledgements are to be compared with that.
func (b *bench) told(ctx context.Context) error {
	if err := b.crowd.hush(true); err != nil {
		return err
	}
	err := b.changed(ctx, pluginAll, b.Agents, &b.Told)
	yard, yerr := yardstick(ctx, settle)
	b.Yard = float64(yard.Nanoseconds()) / 1000
	return errors.Join(err, yerr, b.crowd.hush(false), pause(ctx, settle))
}

// bytesSent is the metric of what agents are sent of resources.
const bytesSent = "chandler_xds_resource_bytes_sent_total"

// once changes a plugin and gives when each agent came to know.
func (b *bench) once(ctx context.Context, plugin string, agents int) ([]time.Duration, error) {
	b.change++
	began := time.Now()
	if err := b.plane.apply(ctx, b.manifest(plugin, b.change)); err != nil {
		return nil, err
	}
	if err := b.crowd.know(ctx, plugin, b.change, agents, changeBound); err != nil {
		return nil, err
	}
	return b.crowd.delays(plugin, b.change, began)
}

// restart has the control plane begin anew, and all agents come back, who have all that
// there is.
func (b *bench) restart(ctx context.Context) (err error) {
	if b.After, _, err = memory(b.plane.pid()); err != nil {
		return err
	}
	if b.Parts, err = b.plane.makeup(ctx); err != nil {
		return err
	}
	b.plane.stop()
	if err := b.plane.start(ctx); err != nil {
		return err
	}
	began := time.Now()
	if err := b.crowd.connect(ctx, connectBound); err != nil {
		return err
	}
	b.Back.Seconds = time.Since(began).Seconds()
	if b.Back.ResourceBytes, err = b.plane.metric(ctx, bytesSent); err != nil {
		return err
	}
	b.say("back after %.2f s, %.0f bytes of resources", b.Back.Seconds, b.Back.ResourceBytes)
	if b.Back.ResourceBytes != 0 {
		return fmt.Errorf("agents that were up to date were sent %.0f bytes", b.Back.ResourceBytes)
	}
	return pause(ctx, settle)
}

// rage changes the plugin of all a hundred times a second.
func (b *bench) rage(ctx context.Context) error {
	if b.storm == 0 {
		return nil
	}
	s := &Storm{}
	if _, _, err := memory(b.plane.pid()); err != nil { // the most from now on
		return err
	}
	before, err := b.crowd.messages()
	if err != nil {
		return err
	}
	profiled := make(chan error, 1)
	go func() { profiled <- b.plane.profile(ctx, b.profiles, "profile?seconds=10", b.name("cpu-storm")) }()
	began := time.Now()
	spent, err := b.spends(ctx, b.plane.child, func() error {
		ticker := time.NewTicker(stormEvery)
		defer ticker.Stop()
		for time.Since(began) < b.storm {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-ticker.C:
			}
			b.change++
			if err := b.plane.apply(ctx, b.manifest(pluginAll, b.change)); err != nil {
				return err
			}
			s.Applied++
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.Seconds = time.Since(began).Seconds()
	s.CPU = spent.Seconds() / s.Seconds
	ended := time.Now()
	if err := b.crowd.know(ctx, pluginAll, b.change, b.Agents, changeBound); err != nil {
		return err
	}
	s.Behind = time.Since(ended).Seconds()
	after, err := b.crowd.messages()
	s.Messages = float64(after-before) / float64(b.Agents)
	_, most, merr := memory(b.plane.pid())
	parts, perr := b.plane.makeup(ctx)
	s.Most, s.Parts, b.Storm = most, parts, s
	b.say("%d changes in %.0f s: %.0f messages an agent, %.2f cores, %.0f MB at most, all had the last one %.2f s after it", s.Applied, s.Seconds, s.Messages, s.CPU, s.Most, s.Behind)
	return errors.Join(err, merr, perr, <-profiled)
}

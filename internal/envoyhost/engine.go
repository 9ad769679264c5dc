// Package envoyhost has plugins run by a real Envoy: one process for many plugins, one
// after the other, each in a VM of its own. What goes through a plugin is sent and
// received as bytes, piece by piece, and what the plugin did is read from Envoy's log.
//
// It implements the seam of package exchange and judges nothing. It is for an author's
// own plugins: Envoy is a child like any other here, see package sandbox for one that is
// shut off.
package envoyhost

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	wasmfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"chandler.dev/chandler/internal/exchange"
	"chandler.dev/chandler/internal/sandbox"
)

// Config says which Envoy it is.
type Config struct {
	// Envoy is the path of the binary.
	Envoy string
	// Dir is for its files; the system's folder for such when empty.
	Dir string
}

// Engine runs plugins in Envoy. It is safe for concurrent use; sessions wait for each
// other.
type Engine struct {
	cfg  Config
	turn chan struct{} // holds one while a session lives

	// What follows belongs to whoever has the turn.
	process  *process
	sessions int
	closed   bool
}

// New gives an engine that starts Envoy with the first plugin.
func New(cfg Config) *Engine { return &Engine{cfg: cfg, turn: make(chan struct{}, 1)} }

// Name implements exchange.Engine.
func (e *Engine) Name() string { return "envoy" }

// Close ends Envoy, once the last session was closed.
func (e *Engine) Close() error {
	e.turn <- struct{}{}
	e.drop()
	e.closed = true
	<-e.turn
	return nil
}

// drop ends the Envoy that is there.
func (e *Engine) drop() {
	if e.process != nil {
		e.process.close()
		e.process = nil
	}
}

// Start implements exchange.Engine.
func (e *Engine) Start(ctx context.Context, setup exchange.Setup) (exchange.Session, error) {
	select {
	case e.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s, err := e.start(ctx, setup)
	var refusal *exchange.Refusal
	if err != nil {
		if !errors.As(err, &refusal) {
			e.drop() // it may be in any state
			err = fmt.Errorf("envoy: %w", err)
		}
		<-e.turn
		return nil, err
	}
	return s, nil
}

func (e *Engine) start(ctx context.Context, setup exchange.Setup) (*session, error) {
	if e.closed {
		return nil, errors.New("it was closed")
	}
	module, err := os.ReadFile(setup.Module)
	if err != nil {
		return nil, err
	}
	if p := e.process; p != nil {
		select {
		case <-p.ended:
			e.drop()
		default:
		}
	}
	if e.process == nil {
		if e.process, err = launch(ctx, e.cfg, setup.Clusters); err != nil {
			return nil, err
		}
	}
	p := e.process
	if grown, err := p.grow(setup.Clusters); err != nil {
		return nil, err
	} else if grown {
		if err := p.knows(ctx, setup.Clusters); err != nil {
			return nil, err
		}
	}
	sum := sha256.Sum256(module)
	if err := p.keep(ctx, setup.Module, hex.EncodeToString(sum[:])); err != nil {
		return nil, err
	}
	e.sessions++
	s := &session{engine: e, process: p, setup: setup, vm: fmt.Sprintf("%s#%d", cmp.Or(setup.VMID, setup.Name), e.sessions)}
	p.log.take()
	p.servers.set(exchange.Message{}, setup.Answers, func() error { return nil })
	switch err := p.tell(ctx, trySlot, filter(setup, s.vm, nil), loadTime); {
	case errors.Is(err, errRefused):
		return nil, s.refusal(ctx)
	case err != nil:
		return nil, err
	}
	if err := p.settle(ctx); err != nil {
		return nil, err
	}
	s.gather(s.read())
	return s, nil
}

// keep has Envoy hold the module in a VM that runs nothing of it, so that it is
// compiled once for all that follows. A module that it does not take is not kept.
func (p *process) keep(ctx context.Context, path, digest string) error {
	if p.kept == digest {
		return nil
	}
	p.kept = digest
	err := p.tell(ctx, keepSlot, filter(exchange.Setup{Module: path, Name: "keep"}, "keep "+digest, initialisation), loadTime)
	switch {
	case errors.Is(err, errRefused):
		return p.forget(ctx, keepSlot)
	case err != nil:
		return err
	}
	return p.settle(ctx)
}

// initialisation is what a module may call that is kept but not run: what runtimes of
// languages need to come up. Of its own callbacks it has none.
var initialisation = []string{
	"args_get", "args_sizes_get", "clock_res_get", "clock_time_get", "environ_get", "environ_sizes_get", "fd_close",
	"fd_fdstat_get", "fd_fdstat_set_flags", "fd_prestat_dir_name", "fd_prestat_get", "fd_read", "fd_seek", "fd_write", "poll_oneoff",
	"proc_exit", "proxy_log", "random_get", "sched_yield",
}

// filter is a plugin as Envoy wants it told.
func filter(s exchange.Setup, vm string, capabilities []string) *anypb.Any {
	value := func(b []byte) *anypb.Any {
		switch {
		case b == nil:
			return nil
		case utf8.Valid(b):
			return packed(wrapperspb.String(string(b)))
		}
		return packed(wrapperspb.Bytes(b))
	}
	config := &wasmv3.PluginConfig{
		Name: s.Name, RootId: s.RootID, Configuration: value(s.Config), FailurePolicy: wasmv3.FailurePolicy_FAIL_CLOSED,
		Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
			VmId: vm, Runtime: "envoy.wasm.runtime.v8", Configuration: value(s.VMConfig),
			Code: &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{Local: &corev3.DataSource{
				Specifier: &corev3.DataSource_Filename{Filename: s.Module},
			}}},
		}},
	}
	if len(s.Env) > 0 {
		config.GetVmConfig().EnvironmentVariables = &wasmv3.EnvironmentVariables{KeyValues: s.Env}
	}
	if s.Open {
		config.FailurePolicy = wasmv3.FailurePolicy_FAIL_OPEN
	}
	if len(capabilities) > 0 {
		allowed := map[string]*wasmv3.SanitizationConfig{}
		for _, name := range capabilities {
			allowed[name] = &wasmv3.SanitizationConfig{}
		}
		//lint:ignore SA1019 The field's successor is unknown to Envoy 1.39.
		config.CapabilityRestrictionConfig = &wasmv3.CapabilityRestrictionConfig{AllowedCapabilities: allowed}
	}
	return packed(&wasmfilterv3.Wasm{Config: config})
}

// packed is a message as an Any. It fails for text that is not UTF-8 only, which no
// file of tests holds.
func packed(m proto.Message) *anypb.Any {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("envoyhost: %v", err))
	}
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()), Value: b}
}

// grow has servers for clusters that are not there yet, and tells Envoy of them.
func (p *process) grow(names []string) (grown bool, err error) {
	for _, name := range names {
		if _, ok := p.clusters[name]; ok {
			continue
		}
		n := len(p.clusters)
		if err := p.open(p.servers.ctx, name, callSocket(n)); err != nil {
			return false, err
		}
		p.clusters[name], grown = n, true
	}
	if !grown && p.cmd != nil {
		return false, nil
	}
	b, err := p.discovery()
	if err != nil {
		return false, err
	}
	// In place of the old one at once: Envoy looks when the name changes hands.
	if err := os.WriteFile(p.path("clusters.new"), b, 0o600); err != nil {
		return false, err
	}
	return grown, os.Rename(p.path("clusters.new"), p.path("clusters.json"))
}

// knows waits until Envoy knows clusters.
func (p *process) knows(ctx context.Context, names []string) error {
	return p.poll(ctx, "/clusters", func(answer string) bool {
		return !slices.ContainsFunc(names, func(name string) bool {
			return !strings.Contains(answer, "\n"+name+"::") && !strings.HasPrefix(answer, name+"::")
		})
	})
}

// refusal is why the plugin was not taken, in its own words and Envoy's. What was in
// force before goes out again, for Envoy to forget what it refused.
func (s *session) refusal(ctx context.Context) error {
	p := s.process
	if err := p.until(ctx, func(_ int, r *record) bool { return strings.Contains(r.text, " rejected: ") }); err != nil {
		return err
	}
	records, _ := p.log.since(0)
	var lines strings.Builder
	for i := range records {
		r := &records[i]
		if l, ok := r.own(s.prefix()); ok && !slices.Contains(s.logs, l) {
			s.logs = append(s.logs, l)
		}
		if !r.traced() {
			fmt.Fprintf(&lines, "%s|%s|%s\n", r.level, r.component, strings.ReplaceAll(r.text, "\n", " "))
		}
	}
	refusal := &exchange.Refusal{Reason: sandbox.Explain([]byte(lines.String())).Message, Logs: s.logs}
	if err := p.forget(ctx, trySlot); err != nil {
		return err
	}
	return refusal
}

// forget empties a slot whose content was refused, and reads the log to where that is
// over: what is refused is told more than once.
func (p *process) forget(ctx context.Context, slot string) error {
	if err := p.tell(ctx, slot, nothing(slot), settleTime); err != nil {
		return err
	}
	return p.settle(ctx)
}

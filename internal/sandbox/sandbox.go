// Package sandbox asks a real Envoy whether it would take a plugin, before any
// proxy gets it: a child process that validates one configuration, with nothing of
// this process's environment, no network, no privileges, and bounds on its time,
// its memory and what it says. What it judges may be hostile, so the child is
// thrown away whatever it says, and a child that has to be killed is a refusal.
// Where no Envoy is at hand a Proxy-Wasm host is asked, in a child of the same kind.
//
// It judges one plugin at one time; what is judged when, and what is remembered of
// it, is the matter of package vet.
package sandbox

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// What a child may take unless Config says otherwise.
const (
	DefaultTime   = 20 * time.Second
	DefaultMemory = 128 << 20
)

const (
	// An Envoy without a plugin, and what it needs to compile one, by the size of
	// the module, beside the pages of its program. Measured: 11 MiB, and 24 bytes a
	// byte for modules of the Go compiler, which are the hungriest.
	envoyMemory   = 48 << 20
	compileMemory = 32
	// versionTime bounds the question for the version.
	versionTime = 20 * time.Second
)

// Config says how children run.
type Config struct {
	// Envoy is the path of the binary.
	Envoy string
	// Dir is for children's files; the system's folder for such when empty.
	Dir string
	// Time is how long a child may take, DefaultTime when zero.
	Time time.Duration
	// Memory is how many bytes a plugin may take while it starts, DefaultMemory when
	// zero. Where the system tells nothing of a process's memory it is not bounded.
	Memory int64
	// Warm is how many Envoys are kept, each with a module, for other configurations of
	// it; DefaultWarm when zero, none when negative. Each takes as much memory as a
	// proxy with that plugin.
	Warm int
	// WarmTime is how long one that is kept may take, DefaultWarmTime when zero.
	WarmTime time.Duration
	// Judged counts the verdicts, by whether an Envoy that was kept gave it; it may be
	// nil.
	Judged func(warm bool)
}

// Sandbox is one Envoy binary. It is safe for concurrent use.
type Sandbox struct {
	cfg     Config
	jail    jail
	version string
	warmth  *warmth
}

// Open finds out which Envoy it is, and how far children can be shut off here. The
// error is of a binary that says no version.
func Open(ctx context.Context, cfg Config) (*Sandbox, error) {
	cfg.Time, cfg.Memory = cmp.Or(cfg.Time, DefaultTime), cmp.Or(cfg.Memory, DefaultMemory)
	if cfg.Judged == nil {
		cfg.Judged = func(bool) {}
	}
	s := &Sandbox{cfg: cfg, jail: jail{program: cfg.Envoy, dir: cfg.Dir}, warmth: newWarmth(cmp.Or(cfg.Warm, DefaultWarm), cmp.Or(cfg.WarmTime, DefaultWarmTime))}
	ctx, cancel := context.WithTimeout(ctx, versionTime)
	defer cancel()
	return s, s.jail.settle(ctx, func() error { return s.ask(ctx) })
}

// Close ends the Envoys that are kept. Nothing may be judged afterwards.
func (s *Sandbox) Close() { s.warmth.close() }

// Name is that of the judge.
func (s *Sandbox) Name() string { return chandler.JudgeEnvoy }

// Version is what the binary says, for instance "1.40.0".
func (s *Sandbox) Version() string { return s.version }

// Weak says what children could not be denied here; empty: nothing.
func (s *Sandbox) Weak() string { return s.jail.weak }

var versionPattern = regexp.MustCompile(`version: [0-9a-f]+/([0-9]+\.[0-9]+\.[0-9]+[^/]*)/`)

// ask has a child say its version.
func (s *Sandbox) ask(ctx context.Context) error {
	return s.jail.within(func(dir string) error {
		out, end, err := s.jail.run(ctx, dir, envoyMemory, "--version")
		if err != nil {
			return err
		}
		m := versionPattern.FindSubmatch(out)
		if m == nil {
			return fmt.Errorf("%s --version says no version: %s (%v)", s.cfg.Envoy, chandler.Printable(string(out), 256), end)
		}
		s.version = string(m[1])
		return nil
	})
}

// Case is what is to be judged: a plugin, and what is asked of it once it has
// loaded.
type Case struct {
	attach.Member
	Probes []chandler.Probe
}

// size is that of the module in bytes.
func (c *Case) size() int64 {
	if m := c.Attachment.Program.Module; m != nil {
		return m.Size
	}
	return 0
}

// Judge tells what Envoy has against a plugin; nil: nothing. The error says that
// Envoy could not be asked: nothing is known of the plugin then.
func (s *Sandbox) Judge(ctx context.Context, c Case) (problem *chandler.Problem, err error) {
	if len(c.Probes) > 0 {
		return s.probe(ctx, c)
	}
	problem, known := s.warmth.judge(ctx, c, s.version)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	s.cfg.Judged(known)
	if known {
		return problem, nil
	}
	err = s.jail.within(func(dir string) (err error) { problem, err = s.validate(ctx, c, dir); return err })
	if problem == nil && err == nil {
		s.warmth.keep(s, c)
	}
	return problem, err
}

// validate has a child say whether it would take the plugin.
func (s *Sandbox) validate(ctx context.Context, c Case, dir string) (*chandler.Problem, error) {
	config, err := bootstrap(c.Member)
	if err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	file := filepath.Join(dir, "envoy.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		return nil, fmt.Errorf("sandbox: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, s.cfg.Time)
	defer cancel()
	out, end, err := s.jail.run(limited, dir, s.memory(c),
		"--mode", "validate", "-c", file, "--use-dynamic-base-id", "--concurrency", "1",
		"-l", "warning", "--component-log-level", "wasm:info", "--log-format", logFormat)
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil:
		return nil, fmt.Errorf("sandbox: %w", err)
	case errors.Is(end, errMemory):
		return s.cfg.tooLarge("Envoy " + s.version), nil
	case limited.Err() != nil:
		return s.cfg.tooLong("Envoy " + s.version), nil
	case end == nil && bytes.Contains(out, []byte("configuration '"+file+"' OK")):
		return nil, nil
	case errors.As(end, &exit) && exit.ExitCode() == refuses:
		return explain(out, s.version), nil
	case crashed(end):
		return crash("Envoy "+s.version, end), nil
	}
	return nil, fmt.Errorf("sandbox: Envoy %s gave no verdict: %w: %s", s.version, cmp.Or(end, errSilent), chandler.Printable(string(last(out)), 512))
}

// crash is of a plugin with which a child came down, which proxies would do as well.
func crash(who string, end error) *chandler.Problem {
	return chandler.Problemf(chandler.CodeWasmCrash, "", "see what the plugin calls, and with what",
		"%s crashed with it: %v", who, end)
}

// memory is how many bytes a child may have for a case.
func (s *Sandbox) memory(c Case) int64 { return envoyMemory + compileMemory*c.size() + s.cfg.Memory }

// tooLarge is of a plugin whose child took too much memory.
func (cfg *Config) tooLarge(who string) *chandler.Problem {
	return chandler.Problemf(chandler.CodeWasmMemory, "", "have the plugin allocate less while it starts",
		"it grew past %d MiB while %s started it, and was ended", cfg.Memory>>20, who)
}

// tooLong is of a plugin whose child came to no end.
func (cfg *Config) tooLong(who string) *chandler.Problem {
	return chandler.Problemf(chandler.CodeWasmTimeout, "", "look for a loop in what the plugin does when it starts and is configured",
		"%s did not come to an end with it within %s, and was ended", who, cfg.Time)
}

// refuses is the exit code of an Envoy that does not take a configuration.
const refuses = 1

// errSilent: a child ended well without a word.
var errSilent = errors.New("it said nothing")

// bootstrap is an Envoy that has the plugin in its one chain and serves nothing.
func bootstrap(m attach.Member) ([]byte, error) {
	filter, err := protojson.Marshal(attach.Alone(m))
	if err != nil {
		return nil, err
	}
	type object = map[string]any
	typed := func(name, kind string, config object) object {
		config["@type"] = "type.googleapis.com/envoy.extensions.filters." + kind
		return object{"name": name, "typed_config": config}
	}
	filters := []any{json.RawMessage(filter), typed("end", "network.direct_response.v3.Config", object{})}
	if m.Attachment.Type != chandler.Network {
		filters = []any{typed("http", "network.http_connection_manager.v3.HttpConnectionManager", object{
			"stat_prefix": "vet", "route_config": object{},
			"http_filters": []any{json.RawMessage(filter), typed("router", "http.router.v3.Router", object{})},
		})}
	}
	return json.Marshal(object{"static_resources": object{"listeners": []any{object{
		"name": "vet", "address": object{"socket_address": object{"address": "127.0.0.1", "port_value": 0}},
		"filter_chains": []any{object{"filters": filters}},
	}}}})
}

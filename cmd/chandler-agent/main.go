// Command chandler-agent runs an Envoy and keeps its plugins: put it before the
// arguments you would give to Envoy.
//
//	chandler-agent --control 10.0.0.1:9910 --node edge-1 --label istio=ingressgateway -- -c envoy.yaml
//
// Every flag can also be given as a variable: --control is
// CHANDLER_AGENT_CONTROL. Under the name envoy the agent takes the place of an Envoy that
// a parent starts: all arguments are Envoy's then, and its own are variables. It is no
// control plane; see chandler serve for that. chandler-agent status, bypass and store are for an agent on this machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/agent"
	"chandler.dev/chandler/internal/fetch/hosts"
	"chandler.dev/chandler/internal/store"
	versions "chandler.dev/chandler/internal/version"
)

// Set by the linker.
var (
	version = "dev"
	commit  string
)

// Exit codes, the same as of chandler; Envoy's own code is handed on.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	os.Exit(runAs(os.Args[0], os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}

func run(args, environ []string, stdout, stderr io.Writer) int {
	if code, ok := subcommand(args, environ, stdout, stderr); ok {
		return code
	}
	return parseAndServe(args, variables(environ), environ, stdout, stderr, func(*agent.Config) {})
}

// parseAndServe runs an agent until it has ended. also has the last word on its settings.
func parseAndServe(args []string, env map[string]string, environ []string, stdout, stderr io.Writer, also func(*agent.Config)) int {
	cfg, err := parse(args, env, stdout, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err == nil && agent.EnvoyAnswers(cfg.EnvoyArgs):
		return beEnvoy(cfg.Envoy, cfg.EnvoyArgs, environ, stderr)
	case err == nil:
		err = inside(env)
	}
	if err != nil {
		fmt.Fprintf(stderr, "chandler-agent: %v\nTry \"chandler-agent --help\".\n", err)
		return exitUsage
	}
	also(&cfg)
	signals := make(chan os.Signal, 4) // further ones are lost, as they are in a kernel
	signal.Notify(signals, forEnvoy...)
	defer signal.Stop(signals)
	cfg.Signals = signals
	// Whoever reads the log may go (a pipe into tee): that takes nothing but the lines.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	return serve(cfg, stderr)
}

func serve(cfg agent.Config, stderr io.Writer) int {
	a, err := agent.New(cfg)
	if err != nil {
		fmt.Fprintf(stderr, "chandler-agent: %v\n", err)
		return exitUsage
	}
	warn(&cfg)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err = a.Run(ctx)
	var exit *agent.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		fmt.Fprintf(stderr, "chandler-agent: %v\n", err)
		return exit.Code
	}
	fmt.Fprintf(stderr, "chandler-agent: %v\n", err)
	return exitFailed
}

// variables makes a map of an environment.
func variables(environ []string) map[string]string {
	vars := make(map[string]string, len(environ))
	for _, v := range environ {
		name, value, _ := strings.Cut(v, "=")
		vars[name] = value
	}
	return vars
}

// labels collects K=V, several times or separated by commas.
type labels map[string]string

func (l labels) String() string { return "" }

func (l labels) Set(s string) error {
	if s == "" {
		return nil
	}
	for pair := range strings.SplitSeq(s, ",") {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return fmt.Errorf("%q is not KEY=VALUE", pair)
		}
		l[key] = value
	}
	return nil
}

const usage = `chandler-agent runs Envoy and keeps its plugins.

Usage:
  chandler-agent [flags] -- ENVOY ARGUMENTS      run Envoy
  chandler-agent run --no-child [flags] -- ...   the same beside an Envoy that somebody else starts
  chandler-agent bootstrap -c FILE -o FILE       what that Envoy is started with
  chandler-agent status                          what the running agent has in force
  chandler-agent bypass NAME --reason WHY        take a plugin out on this machine, whatever the control plane says
  chandler-agent store ls|verify|trim|import     the modules it keeps on disk

The Envoy arguments are those you would give to envoy; they must name a
configuration (-c FILE, --config-yaml YAML, or both). The file is not changed. Under
the name envoy all arguments are Envoy's, and the flags below are variables only.

Flags (each also as CHANDLER_AGENT_NAME in the environment):
`

// parse reads flags and variables; a flag wins over its variable.
func parse(args []string, env map[string]string, stdout, stderr io.Writer) (agent.Config, error) {
	if len(args) > 0 && args[0] == "run" {
		args = args[1:]
	}
	cfg := agent.Config{HostEnv: env, Node: chandler.Node{Labels: map[string]string{}, AgentVersion: version}}
	flags := flag.NewFlagSet("chandler-agent", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	control := flags.String("control", "127.0.0.1:9910", "addresses of control planes, separated by commas; unix:///PATH is a socket on this machine")
	nodeFlags(flags, &cfg)
	flags.Var(labels(cfg.Node.Labels), "label", "label of this proxy, KEY=VALUE; may be given several times")
	flags.StringVar(&cfg.Data, "data", defaultData(env), "directory of this agent")
	flags.StringVar(&cfg.Admin, "admin", defaultAdmin, "address of health and metrics; empty for none")
	flags.BoolVar(&cfg.NoChild, "no-child", false, "somebody else starts Envoy, with what chandler-agent bootstrap wrote")
	flags.StringVar(&cfg.EnvoyAdmin, "envoy-admin", "", "with --no-child, where Envoy's admin interface is reached, HOST:PORT or unix:///PATH; default: where the configuration has it, else a socket in --data")
	flags.DurationVar(&cfg.Drain, "drain", 10*time.Second, "how long Envoy may finish what it serves when it is stopped")
	flags.BoolVar(&cfg.LeaveEnvoy, "leave-envoy", false, "leave Envoy running when the agent is stopped; the next agent adopts it")
	flags.StringVar(&cfg.Restart, "restart", agent.RestartNever, "when Envoy ends by itself: never (the agent ends with its exit code) or on-failure (the agent starts it anew)")
	flags.Var((*size)(&cfg.StoreMax), "store-max", "how much the modules on disk may take, for example 500MiB; default 2GiB")
	flags.StringVar(&cfg.FetchFrom, "fetch-from", agent.FromControl, "where modules are fetched from: control; mirror (those of --hosts-dir) or origin (mirrors, then the registry), with control as the fallback")
	hostsDir := flags.String("hosts-dir", "", "folder of HOST/hosts.toml files in containerd's form, with the mirrors for --fetch-from mirror or origin; read again when they change")
	flags.StringVar(&cfg.DockerConfig, "docker-config", "", "directory of the config.json with this node's credentials for --fetch-from mirror or origin; anonymously without")
	flags.DurationVar(&cfg.Scrub, "scrub", store.DefaultScrub, "period within which every stored module is hashed again")
	files := tlsFlags(flags)
	enrolToken := flags.String("enrol-token-file", "", "file with a token of \"chandler node token create\": this node is enrolled with it, and renews its certificate by itself")
	level := flags.String("log-level", "info", "debug, info, warn or error")
	showVersion := flags.Bool("version", false, "print the version and exit")

	if err := fromVariables(flags, env); err != nil {
		return cfg, err
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(stdout, usage)
			flags.SetOutput(stdout)
			flags.PrintDefaults()
		}
		return cfg, err
	}
	if *showVersion {
		fmt.Fprintln(stdout, versions.Line("chandler-agent", version, commit))
		return cfg, flag.ErrHelp
	}
	var lvl slog.Level
	if err := lvl.UnmarshalText([]byte(*level)); err != nil {
		return cfg, fmt.Errorf("--log-level: %w", err)
	}
	for addr := range strings.SplitSeq(*control, ",") {
		if addr = strings.TrimSpace(addr); addr != "" {
			cfg.Control = append(cfg.Control, addr)
		}
	}
	data, err := filepath.Abs(cfg.Data)
	if err != nil {
		return cfg, err
	}
	cfg.Data = data
	if cfg.Drain == 0 {
		cfg.Drain = 1 // that of 0 is the default
	}
	cfg.EnvoyArgs = flags.Args()
	if len(cfg.EnvoyArgs) > 0 && !strings.HasPrefix(cfg.EnvoyArgs[0], "-") {
		return cfg, fmt.Errorf("unexpected argument %q: it is no command, and Envoy's arguments stand behind -- and begin with a hyphen", cfg.EnvoyArgs[0])
	}
	agent.Identify(&cfg, hostName())
	cfg.EnvoyLog = stderr
	cfg.Log = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: lvl}))
	if *hostsDir != "" {
		mirrors, err := hosts.Open(*hostsDir, time.Now, cfg.Log)
		if err != nil {
			return cfg, fmt.Errorf("--hosts-dir: %w", err)
		}
		cfg.Hosts = mirrors
	}
	return cfg, secure(&cfg, *files, *enrolToken)
}

// nodeFlags are those on which what Envoy is started with depends.
func nodeFlags(flags *flag.FlagSet, cfg *agent.Config) {
	flags.StringVar(&cfg.Node.Name, "node", "", "name of this proxy; default: as Envoy's configuration has it from Istio or Envoy Gateway, else this host's")
	flags.StringVar(&cfg.Node.Namespace, "namespace", "", "namespace of this proxy; default: likewise, else \"default\"")
	flags.StringVar(&cfg.Envoy, "envoy", "envoy", "Envoy binary")
	flags.StringVar(&cfg.DataGroup, "data-group", "", "group, by name or number, of an Envoy that is of another user: it may read modules and configuration in --data and connect to the sockets there")
}

// fromVariables sets every flag whose variable is there.
func fromVariables(flags *flag.FlagSet, env map[string]string) error {
	var err error
	flags.VisitAll(func(f *flag.Flag) {
		name := "CHANDLER_AGENT_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if value, ok := env[name]; ok && err == nil && f.Name != "version" { // which tells images apart, not what to do
			if setErr := f.Value.Set(value); setErr != nil {
				err = fmt.Errorf("%s: %w", name, setErr)
			}
		}
	})
	return err
}

// defaultData is what systemd gives, else the user's directory for state.
func defaultData(env map[string]string) string {
	if dir, _, _ := strings.Cut(env["STATE_DIRECTORY"], ":"); dir != "" {
		return dir
	}
	if dir := env["XDG_STATE_HOME"]; dir != "" {
		return filepath.Join(dir, "chandler-agent")
	}
	return filepath.Join(env["HOME"], ".local", "state", "chandler-agent")
}

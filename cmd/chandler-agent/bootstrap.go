package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/agent"
)

const bootstrapUsage = `chandler-agent bootstrap writes the configuration with which somebody else starts an
Envoy, beside an agent that is started with "chandler-agent run --no-child" and the same
--data, --node, --namespace and Envoy arguments. Both see --data under the same path.
What an Envoy of that kind has to say against it is told, if the Envoy is here (--envoy).
It may be done again at any time, also while the agent runs.

Usage:
  chandler-agent bootstrap -c FILE -o FILE [flags] [-- more Envoy arguments]

Flags:
`

// runBootstrap is chandler-agent bootstrap.
func runBootstrap(c console, args []string) int {
	var cfg agent.Config
	var file, yaml, out, version string
	flags := c.flags("chandler-agent bootstrap", &cfg.Data, nil)
	flags.StringVar(&file, "c", "", "the configuration, as Envoy's -c")
	flags.StringVar(&yaml, "config-yaml", "", "the configuration or what is merged into it, as Envoy's --config-yaml")
	flags.StringVar(&out, "o", "", "the file that is written")
	flags.StringVar(&version, "envoy-version", "", "version of the Envoy that will be started, such as 1.40.0; default: that of --envoy")
	nodeFlags(flags, &cfg)
	rest, code, ok := c.parse(flags, args, bootstrapUsage)
	if !ok {
		return code
	}
	if file != "" {
		cfg.EnvoyArgs = append(cfg.EnvoyArgs, "-c", file)
	}
	if yaml != "" {
		cfg.EnvoyArgs = append(cfg.EnvoyArgs, "--config-yaml", yaml)
	}
	cfg.EnvoyArgs = append(cfg.EnvoyArgs, rest...)
	agent.Identify(&cfg, hostName())
	cfg.Log = slog.New(slog.NewTextHandler(c.stderr, nil))
	if out == "" {
		fmt.Fprint(c.stderr, "chandler-agent: which file is written? give -o FILE\nTry \"chandler-agent bootstrap --help\".\n")
		return exitUsage
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	out, err := filepath.Abs(out)
	if err == nil {
		err = agent.WriteBootstrap(ctx, cfg, version, out)
	}
	if err != nil {
		fmt.Fprintf(c.stderr, "chandler-agent: %v\n", err)
		return exitFailed
	}
	fmt.Fprintf(c.stdout, "%s is written: start Envoy with -c %s\n", chandler.Printable(out, 4096), chandler.Printable(out, 4096))
	return 0
}

// hostName is the default name of a node.
func hostName() string {
	host, _ := os.Hostname()
	return host
}

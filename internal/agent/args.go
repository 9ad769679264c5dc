package agent

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"chandler.dev/chandler"
)

// envoyArgs is an Envoy command line, as far as the agent must understand it.
type envoyArgs struct {
	configPath, configYAML string
	logPath                string
	serviceNode            string
	serviceCluster         string
	// rest is handed on as it is.
	rest []string
}

// valueFlags are the flags of Envoy that the agent takes over or looks at; each
// has a value.
var valueFlags = map[string]func(*envoyArgs, string){
	"-c":                func(a *envoyArgs, v string) { a.configPath = v },
	"--config-path":     func(a *envoyArgs, v string) { a.configPath = v },
	"--config-yaml":     func(a *envoyArgs, v string) { a.configYAML = v },
	"--log-path":        func(a *envoyArgs, v string) { a.logPath = v },
	"--service-node":    func(a *envoyArgs, v string) { a.serviceNode = v },
	"--service-cluster": func(a *envoyArgs, v string) { a.serviceCluster = v },
}

// refusedFlags are those the agent cannot honour, with the reason.
var refusedFlags = map[string]string{
	"--mode":                   "the agent runs Envoy to serve; call envoy itself to validate",
	"--restart-epoch":          "hot restart is not supported under the agent",
	"--hot-restart-version":    "it prints and exits; call envoy itself",
	"--base-id-path":           "hot restart is not supported under the agent",
	"--parent-shutdown-time-s": "hot restart is not supported under the agent",
	"--allow-unknown-fields":   "it is deprecated; use --allow-unknown-static-fields",
	"--bootstrap-version":      "it is not an option of a current Envoy",
}

// parseEnvoyArgs reads what stands behind "--". The configuration is given by
// --config-path (-c), --config-yaml or both.
func parseEnvoyArgs(args []string) (envoyArgs, error) {
	var a envoyArgs
	given := map[string]bool{}
	for i := 0; i < len(args); i++ {
		name, value, inline := strings.Cut(args[i], "=")
		if why, refused := refusedFlags[name]; refused {
			return a, fmt.Errorf("envoy argument %s: %s", name, why)
		}
		set, known := valueFlags[name]
		if !known {
			a.rest = append(a.rest, args[i])
			continue
		}
		if !inline {
			if i++; i == len(args) {
				return a, fmt.Errorf("envoy argument %s lacks its value", name)
			}
			value = args[i]
		}
		if name == "-c" {
			name = "--config-path"
		}
		if given[name] {
			return a, fmt.Errorf("envoy argument %s is given twice", name)
		}
		given[name] = true
		set(&a, value)
	}
	if a.configPath == "" && a.configYAML == "" {
		return a, fmt.Errorf("the Envoy arguments behind -- name no configuration; give -c FILE or --config-yaml YAML")
	}
	switch ext := filepath.Ext(a.configPath); ext {
	case ".pb", ".pb_text", ".pb3_text":
		return a, fmt.Errorf("envoy configuration %s: the agent reads YAML and JSON, not %s", chandler.Quote(a.configPath), ext)
	}
	return a, nil
}

// commandLine gives the arguments with which Envoy is started.
func (a *envoyArgs) commandLine(bootstrap, drainSeconds string) []string {
	args := []string{"-c", bootstrap}
	if a.logPath != "" {
		args = append(args, "--log-path", a.logPath)
	}
	if a.serviceNode != "" {
		args = append(args, "--service-node", a.serviceNode)
	}
	if a.serviceCluster != "" {
		args = append(args, "--service-cluster", a.serviceCluster)
	}
	// With hot restart compiled in and not disabled, Envoy asks the kernel for a
	// SIGTERM when the thread that started it ends. The agent's threads come and
	// go, and Envoy is to outlive even the agent.
	if !a.has("--disable-hot-restart") {
		args = append(args, "--disable-hot-restart")
	}
	// The listeners come from a file now; what is unknown in them stays an error,
	// as it was in the user's own.
	if !a.has("--allow-unknown-static-fields", "--reject-unknown-dynamic-fields") {
		args = append(args, "--reject-unknown-dynamic-fields")
	}
	if !a.has("--drain-time-s") {
		args = append(args, "--drain-time-s", drainSeconds)
	}
	return append(args, a.rest...)
}

func (a *envoyArgs) has(names ...string) bool {
	return slices.ContainsFunc(a.rest, func(arg string) bool {
		name, _, _ := strings.Cut(arg, "=")
		return slices.Contains(names, name)
	})
}

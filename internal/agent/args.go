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
	adminAddressPath       string
	// rest is handed on as it is, an option and its value as two arguments.
	rest []string
}

// options are those of Envoy 1.35 to 1.40 that have a value. The agent takes over, or
// looks at, those that have a function; the others it only hands on.
var options = map[string]func(*envoyArgs, string){
	"-c":                   func(a *envoyArgs, v string) { a.configPath = v },
	"--config-path":        func(a *envoyArgs, v string) { a.configPath = v },
	"--config-yaml":        func(a *envoyArgs, v string) { a.configYAML = v },
	"--log-path":           func(a *envoyArgs, v string) { a.logPath = v },
	"--service-node":       func(a *envoyArgs, v string) { a.serviceNode = v },
	"--service-cluster":    func(a *envoyArgs, v string) { a.serviceCluster = v },
	"--admin-address-path": func(a *envoyArgs, v string) { a.adminAddressPath = v },

	"-l": nil, "--log-level": nil, "--log-format": nil, "--component-log-level": nil,
	"--base-id": nil, "--base-id-path": nil, "--restart-epoch": nil, "--parent-shutdown-time-s": nil,
	"--socket-path": nil, "--socket-mode": nil, "--mode": nil, "--concurrency": nil,
	"--drain-time-s": nil, "--drain-strategy": nil, "--service-zone": nil, "--local-address-ip-version": nil,
	"--file-flush-interval-msec": nil, "--file-flush-min-size-kb": nil, "--disable-extensions": nil, "--stats-tag": nil,
}

// synonyms are options of two names.
var synonyms = map[string]string{"-c": "--config-path", "-l": "--log-level"}

// argument is an option of a command line, with its value if it has one.
type argument struct {
	name, value string
	valued      bool
}

// splitArgs reads a command line as Envoy does, which takes no notice of what stands
// behind "--". In place of a separate value it may be NAME=VALUE, which Envoy itself
// does not understand.
func splitArgs(args []string) ([]argument, error) {
	var list []argument
	for i := 0; i < len(args); i++ {
		if args[i] == "--" || args[i] == "--ignore_rest" {
			break
		}
		name, value, inline := strings.Cut(args[i], "=")
		_, valued := options[name]
		switch {
		case !valued:
			list = append(list, argument{name: args[i]})
			continue
		case !inline && i+1 == len(args):
			return nil, fmt.Errorf("envoy argument %s lacks its value", name)
		case !inline:
			i++
			value = args[i]
		}
		list = append(list, argument{name, value, true})
	}
	return list, nil
}

// EnvoyAnswers tells whether Envoy, with these arguments, only answers and ends: for
// its version, its help, or whether a configuration is good.
func EnvoyAnswers(args []string) bool {
	list, err := splitArgs(args)
	return err == nil && slices.ContainsFunc(list, func(a argument) bool {
		switch a.name {
		case "--version", "--hot-restart-version", "-h", "--help":
			return true
		case "--mode":
			return a.value != "serve"
		}
		return false
	})
}

// parseEnvoyArgs reads what stands behind "--", or all arguments of an agent that is
// called envoy. The configuration is given by --config-path (-c), --config-yaml or both.
func parseEnvoyArgs(args []string) (envoyArgs, error) {
	var a envoyArgs
	list, err := splitArgs(args)
	if err != nil {
		return a, err
	}
	given := map[string]bool{}
	for _, arg := range list {
		name := arg.name
		if long, ok := synonyms[name]; ok {
			name = long
		}
		switch set := options[name]; {
		case !arg.valued:
			a.rest = append(a.rest, arg.name)
			continue
		case given[name] && name != "--stats-tag":
			return a, fmt.Errorf("envoy argument %s is given twice", arg.name)
		case set != nil:
			set(&a, arg.value)
		case name == "--restart-epoch" && arg.value != "0":
			return a, fmt.Errorf("envoy argument %s %s: hot restart is not supported under the agent; it can be restarted while Envoy serves on, see --leave-envoy", name, chandler.Quote(arg.value))
		case name == "--restart-epoch":
		default:
			a.rest = append(a.rest, arg.name, arg.value)
		}
		given[name] = true
	}
	if a.configPath == "" && a.configYAML == "" {
		return a, fmt.Errorf("the Envoy arguments name no configuration; give -c FILE or --config-yaml YAML")
	}
	switch ext := filepath.Ext(a.configPath); ext {
	case ".pb", ".pb_text", ".pb3_text":
		return a, fmt.Errorf("envoy configuration %s: the agent reads YAML and JSON, not %s", chandler.Quote(a.configPath), ext)
	}
	return a, nil
}

// commandLine gives the arguments with which Envoy is started. drainSeconds is how long
// a listener that is replaced may drain; empty: as long as Envoy likes. strict: all that it
// has by discovery is the agent's.
func (a *envoyArgs) commandLine(bootstrap, drainSeconds string, strict bool) []string {
	args := append([]string{"-c", bootstrap}, a.given()...)
	// With hot restart compiled in and not disabled, Envoy asks the kernel for a
	// SIGTERM when the thread that started it ends. The agent's threads come and
	// go, and Envoy is to outlive even the agent.
	if !a.has("--disable-hot-restart") {
		args = append(args, "--disable-hot-restart")
	}
	// The listeners come from a file now; what is unknown in them stays an error,
	// as it was in the user's own. What a control plane sends may be of a later version.
	if strict && !a.has("--allow-unknown-static-fields", "--allow-unknown-fields", "--reject-unknown-dynamic-fields") {
		args = append(args, "--reject-unknown-dynamic-fields")
	}
	if drainSeconds != "" && !a.has("--drain-time-s") {
		args = append(args, "--drain-time-s", drainSeconds)
	}
	return append(args, a.rest...)
}

// validateLine gives the arguments with which Envoy judges the user's configuration.
func (a *envoyArgs) validateLine() []string {
	args := []string{"--mode", "validate"}
	if a.configPath != "" {
		args = append(args, "-c", a.configPath)
	}
	if a.configYAML != "" {
		args = append(args, "--config-yaml", a.configYAML)
	}
	args = append(args, a.given()...)
	if !a.has("--disable-hot-restart") {
		args = append(args, "--disable-hot-restart")
	}
	for i := 0; i < len(a.rest); i++ {
		if a.rest[i] == "--mode" {
			i++
			continue
		}
		args = append(args, a.rest[i])
	}
	return args
}

// given are the options that the agent looked at and hands on.
func (a *envoyArgs) given() []string {
	var args []string
	for _, o := range []struct{ name, value string }{
		{"--log-path", a.logPath}, {"--service-node", a.serviceNode}, {"--service-cluster", a.serviceCluster}, {"--admin-address-path", a.adminAddressPath},
	} {
		if o.value != "" {
			args = append(args, o.name, o.value)
		}
	}
	return args
}

func (a *envoyArgs) has(names ...string) bool {
	return slices.ContainsFunc(a.rest, func(arg string) bool { return slices.Contains(names, arg) })
}

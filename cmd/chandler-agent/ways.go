package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"chandler.dev/chandler/internal/agent"
)

// envoyName is the name under which the agent takes the place of Envoy.
const envoyName = "envoy"

// runAs is the whole program: what it does depends on the name it is called by.
func runAs(name string, args, environ []string, stdout, stderr io.Writer) int {
	if filepath.Base(name) == envoyName {
		return asEnvoy(args, environ, stdout, stderr)
	}
	return run(args, environ, stdout, stderr)
}

// asEnvoy is the agent in the place of Envoy, started by a parent that takes it for one:
// all arguments are Envoy's, and settings come from the environment alone. What the
// parent may expect of an Envoy it does: Envoy dies with it, however it dies, and is told
// to end at once when it is. Without a control plane to ask it does not begin: nobody
// could tell it from an Envoy whose plugins are all missing.
func asEnvoy(args, environ []string, stdout, stderr io.Writer) int {
	env := variables(environ)
	refuse := func(format string, args ...any) int {
		fmt.Fprintf(stderr, "chandler-agent, called envoy: "+format+"\n", args...)
		return exitUsage
	}
	if agent.EnvoyAnswers(args) {
		return beEnvoy(env["CHANDLER_AGENT_ENVOY"], args, environ, stderr)
	}
	if _, told := env["CHANDLER_AGENT_CONTROL"]; !told {
		return refuse("it has no settings: give it at least CHANDLER_AGENT_CONTROL (addresses of control planes) and CHANDLER_AGENT_ENVOY (the real Envoy) in the environment; every flag of chandler-agent --help has such a variable")
	}
	if leave, _ := strconv.ParseBool(env["CHANDLER_AGENT_LEAVE_ENVOY"]); leave {
		return refuse("CHANDLER_AGENT_LEAVE_ENVOY cannot be: who started it expects that Envoy has ended when it has")
	}
	if apart, _ := strconv.ParseBool(env["CHANDLER_AGENT_NO_CHILD"]); apart {
		return refuse("CHANDLER_AGENT_NO_CHILD cannot be: who started it expects an Envoy")
	}
	if _, told := env["CHANDLER_AGENT_DRAIN"]; !told {
		env = maps.Clone(env)
		env["CHANDLER_AGENT_DRAIN"] = "0s"
	}
	return parseAndServe(append([]string{"--"}, args...), env, environ, stdout, stderr, func(cfg *agent.Config) { cfg.DieTogether = true })
}

// beEnvoy makes this process Envoy itself; it returns only if that fails.
func beEnvoy(envoy string, args, environ []string, stderr io.Writer) int {
	if envoy == "" {
		envoy = envoyName
	}
	path, err := agent.FindEnvoy(envoy)
	if err == nil {
		err = inside(variables(environ))
	}
	if err == nil {
		err = syscall.Exec(path, append([]string{path}, args...), append(environ, agent.InsideVariable+"=1"))
	}
	fmt.Fprintf(stderr, "chandler-agent: %v\n", err)
	return exitFailed
}

// inside refuses to run where an agent runs its Envoy.
func inside(env map[string]string) error {
	if _, ok := env[agent.InsideVariable]; ok {
		return errors.New("an agent has started this one as its Envoy; give the path of the real Envoy with --envoy, or in CHANDLER_AGENT_ENVOY")
	}
	return nil
}

// forEnvoy are the signals that mean something to Envoy and nothing to its agent: to
// open its logs anew, and one that it takes no notice of.
var forEnvoy = []os.Signal{syscall.SIGUSR1, syscall.SIGHUP}

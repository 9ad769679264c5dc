// Command chandler is the control plane and the operator's hand on it:
// "chandler serve" resolves and distributes plugins, the other commands talk to
// a running one over its admin port. Called as kubectl-chandler it is a plugin of
// kubectl's, which reads the cluster.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/source/kube"
	versions "chandler.dev/chandler/internal/version"
)

// Set by the linker.
var (
	version = "dev"
	commit  string
)

// Exit codes. Usage errors are cobra's and ours alike.
const (
	exitFailed    = 1
	exitUsage     = 2
	exitUnhealthy = 3
	exitTimeout   = 4
)

// exitError ends the command with a code. An empty text means that everything
// was said already.
type exitError struct {
	code int
	text string
}

func (e *exitError) Error() string { return e.text }

func usagef(format string, args ...any) error {
	return &exitError{code: exitUsage, text: fmt.Sprintf(format, args...)}
}

func main() {
	os.Exit(run(os.Args, os.Getenv, os.Stdin, os.Stdout, os.Stderr))
}

func run(args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	e := &env{getenv: getenv, stdin: stdin, stdout: escaper{stdout}, stderr: escaper{stderr}, exact: stdout, tty: terminal(stderr), screen: terminal(stdout), plugin: isPlugin(args[0]), network: network()}
	defer e.hangUp()
	root := rootCommand(e)
	root.SetArgs(args[1:])
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exit *exitError
	if !errors.As(err, &exit) {
		fmt.Fprintf(e.stderr, "chandler: %v\n", err)
		return exitFailed
	}
	if exit.text != "" {
		fmt.Fprintf(e.stderr, "chandler: %s\n", exit.text)
	}
	return exit.code
}

// env is what the commands have of the world: results go to stdout, talk to
// stderr.
type env struct {
	getenv         func(string) string
	stdin          io.Reader
	stdout, stderr io.Writer
	// exact is stdout for manifests, which are as they are.
	exact io.Writer
	// tty is stderr if that is a terminal, for what is written over; else nil.
	tty io.Writer
	// screen is stdout if that is a terminal, for what is drawn again.
	screen io.Writer

	// plugin: kubectl called.
	plugin bool
	// network is the number of the network namespace.
	network string

	// Flags of every command that talks to a control plane, or to a cluster.
	server     string
	context    string // of the kubeconfig file
	kubeconfig string
	namespace  string
	all        bool
	labels     string
	output     string
	timeout    time.Duration
	shown      shownFlags

	// plane is how the control plane is asked, once something was.
	plane struct {
		client *http.Client
		base   string
	}
	// client is the cluster's, once it was asked for.
	client *kube.Client
	// scope is the namespace of what is shown; empty: all.
	scope string
	// broken are the files that the control plane said it cannot read.
	broken []*chandlerv1.BrokenFile
	// told: it was said that values are not shown.
	told bool
	// toldHidden: it was said that some values are shown to nobody.
	toldHidden bool
	// warning is what the control plane warned of last.
	warning string
}

func rootCommand(e *env) *cobra.Command {
	root := &cobra.Command{
		Use:           "chandler",
		Short:         "Distribute Proxy-Wasm plugins to fleets of Envoy proxies",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          unknownCommand,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usagef("%v", err) })
	root.AddCommand(
		getCommand(e), describeCommand(e), statusCommand(e),
		nodesCommand(e), nodeCommand(e), whyCommand(e), eventsCommand(e), diffCommand(e), reportCommand(e),
		rolloutCommand(e), disableCommand(e), enableCommand(e),
		installCommand(e), migrateCommand(e),
		versionCommand(e),
	)
	if e.plugin {
		root.Use, root.Short = pluginName, "What chandler makes of the cluster's plugins"
		root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: "kubectl chandler"}
		for _, cmd := range root.Commands() {
			cmd.Example = strings.ReplaceAll(cmd.Example, "  chandler ", "  kubectl chandler ")
		}
	} else {
		root.AddCommand(
			serveCommand(e), applyCommand(e), deleteCommand(e), internalCommand(e),
			newCommand(e), buildCommand(e), vetCommand(e), testCommand(e),
			pushCommand(e), pullCommand(e), inspectCommand(e), saveCommand(e), loadCommand(e), signCommand(e), verifyCommand(e), lockCommand(e),
		)
	}
	return root
}

func versionCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version, with commit, Go release and platform", Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			_, err := fmt.Fprintln(e.stdout, versions.Line("chandler", version, commit))
			return err
		},
	}
}

// unknownCommand refuses what is no command, and names those that are spelt like it.
func unknownCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	hint := cmd.CommandPath() + " --help lists all"
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		hint = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return usagef("unknown command %s for %q; %s", chandler.Quote(args[0]), cmd.CommandPath(), hint)
}

// noArgs is cobra.NoArgs with the exit code of a usage error.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("unexpected argument %q", args[0])
	}
	return nil
}

// Command demo is the walkthrough, run by "make demo" and "make up": a registry,
// Bookinfo, a control plane and an Envoy under its agent on loopback, and the
// steps a user would take, each with what was expected and what was seen.
//
// It uses the built commands as a user would, and nothing of their insides but
// the registry that the tests use too. It is no part of the product.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	stay := flag.Bool("up", false, "leave everything running until interrupted")
	verbose := flag.Bool("v", false, "show what the parts log")
	flag.Parse()
	// A terminal that is closed ends it in order, too, and so does Ctrl-C with a pipe behind it
	// that goes first: the parts are in groups of their own, and would stay.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	err := run(ctx, *stay, *verbose)
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled):
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, stay, verbose bool) (err error) {
	s, err := startStage(ctx, verbose)
	if s != nil {
		defer func() { err = errors.Join(err, s.stop()) }()
	}
	if err != nil {
		return err
	}
	if stay {
		return s.up(ctx)
	}
	return s.walk(ctx)
}

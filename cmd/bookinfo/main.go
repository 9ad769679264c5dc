// Command bookinfo runs the sample application: one of its services, or all of
// them in one process.
//
//	bookinfo all
//	bookinfo productpage --details http://... --reviews http://...,http://... --ratings http://...
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"chandler.dev/chandler/internal/bookinfo"
	versions "chandler.dev/chandler/internal/version"
)

// Set by the linker.
var (
	version = "dev"
	commit  string
)

const usage = `bookinfo runs the Bookinfo sample.

Usage:
  bookinfo all         [--listen ADDR] [--details-listen ADDR] [--ratings-listen ADDR]
                       [--reviews-listen ADDR,ADDR,ADDR]
  bookinfo productpage [--listen ADDR] --details URL --reviews URL[,URL] --ratings URL
  bookinfo details     [--listen ADDR]
  bookinfo reviews     [--listen ADDR] --version v1|v2|v3 --ratings URL
  bookinfo ratings     [--listen ADDR]
  bookinfo --version

--listen is 127.0.0.1:9080 unless given; with "all" it is productpage's, and the
others take free ports of loopback. Several reviews are asked in turn.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.As(err, new(usageError)):
		fmt.Fprintf(os.Stderr, "bookinfo: %v\n%s", err, usage)
		os.Exit(2)
	default:
		fmt.Fprintf(os.Stderr, "bookinfo: %v\n", err)
		os.Exit(1)
	}
}

type usageError string

func (e usageError) Error() string { return string(e) }

// run runs one service, or all, until ctx ends.
func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return usageError("which service?")
	}
	name, args := args[0], args[1:]
	if name == "-h" || name == "--help" || name == "help" {
		fmt.Fprint(out, usage)
		return flag.ErrHelp
	}
	if name == "--version" || name == "version" {
		_, err := fmt.Fprintln(out, versions.Line("bookinfo", version, commit))
		return err
	}
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	listen := flags.String("listen", "127.0.0.1:9080", "")
	if name == "all" {
		return runAll(ctx, flags, args, listen, out)
	}
	h, err := service(name, flags, args, out)
	if err != nil {
		return err
	}
	lis, err := net.Listen("tcp", *listen)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%-12s http://%s\n", name, lis.Addr())
	return bookinfo.Serve(ctx, lis, h)
}

// parse reads flags, and refuses what is not one.
func parse(flags *flag.FlagSet, args []string, out io.Writer) error {
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(out, usage)
		return err
	case err != nil:
		return usageError(err.Error())
	case flags.NArg() > 0:
		return usageError(fmt.Sprintf("%q is one word too many", flags.Arg(0)))
	}
	return nil
}

func runAll(ctx context.Context, flags *flag.FlagSet, args []string, listen *string, out io.Writer) error {
	details := flags.String("details-listen", "", "")
	ratings := flags.String("ratings-listen", "", "")
	reviews := flags.String("reviews-listen", "", "")
	if err := parse(flags, args, out); err != nil {
		return err
	}
	at := bookinfo.Addresses{ProductPage: *listen, Details: *details, Ratings: *ratings}
	if *reviews != "" {
		addrs := strings.Split(*reviews, ",")
		if len(addrs) != len(at.Reviews) {
			return usageError(fmt.Sprintf("--reviews-listen takes %d addresses, of v1, v2 and v3", len(at.Reviews)))
		}
		copy(at.Reviews[:], addrs)
	}
	return bookinfo.All(ctx, at, out)
}

// service reads the flags that a service has and gives its handler.
func service(name string, flags *flag.FlagSet, args []string, out io.Writer) (http.Handler, error) {
	switch name {
	case "details":
		return bookinfo.Details(), parse(flags, args, out)
	case "ratings":
		return bookinfo.Ratings(), parse(flags, args, out)
	case "reviews":
		version := flags.String("version", "v1", "")
		ratings := flags.String("ratings", "", "")
		if err := parse(flags, args, out); err != nil {
			return nil, err
		}
		h, err := bookinfo.Reviews(bookinfo.Version(*version), *ratings)
		return h, asUsage(err)
	case "productpage":
		details := flags.String("details", "", "")
		reviews := flags.String("reviews", "", "")
		ratings := flags.String("ratings", "", "")
		if err := parse(flags, args, out); err != nil {
			return nil, err
		}
		if *details == "" || *reviews == "" || *ratings == "" {
			return nil, usageError("productpage needs --details, --reviews and --ratings")
		}
		h, err := bookinfo.ProductPage(bookinfo.Backends{Details: *details, Ratings: *ratings, Reviews: strings.Split(*reviews, ",")})
		return h, asUsage(err)
	}
	return nil, usageError(fmt.Sprintf("%q is no service of it", name))
}

// asUsage makes an error one of usage; nil stays nil.
func asUsage(err error) error {
	if err == nil {
		return nil
	}
	return usageError(err.Error())
}

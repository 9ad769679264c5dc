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
)

const usage = `bookinfo runs the Bookinfo sample.

Usage:
  bookinfo all         [--listen ADDR]
  bookinfo productpage [--listen ADDR] --details URL --reviews URL[,URL] --ratings URL
  bookinfo details     [--listen ADDR]
  bookinfo reviews     [--listen ADDR] --version v1|v2|v3 --ratings URL
  bookinfo ratings     [--listen ADDR]
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

// options are the flags of all services together.
type options struct {
	listen, details, reviews, ratings, version string
}

func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) == 0 {
		return usageError("which service?")
	}
	var o options
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&o.listen, "listen", "127.0.0.1:9080", "")
	flags.StringVar(&o.details, "details", "", "")
	flags.StringVar(&o.reviews, "reviews", "", "")
	flags.StringVar(&o.ratings, "ratings", "", "")
	flags.StringVar(&o.version, "version", "v1", "")
	if err := flags.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(out, usage)
			return err
		}
		return usageError(err.Error())
	}
	if args[0] == "all" {
		return bookinfo.All(ctx, o.listen, out)
	}
	h, err := service(args[0], o)
	if err != nil {
		return err
	}
	lis, err := net.Listen("tcp", o.listen)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "%-12s http://%s\n", args[0], lis.Addr())
	return bookinfo.Serve(ctx, lis, h)
}

// service gives one service's handler.
func service(name string, o options) (http.Handler, error) {
	switch name {
	case "details":
		return bookinfo.Details(), nil
	case "ratings":
		return bookinfo.Ratings(), nil
	case "reviews":
		v := bookinfo.Version(o.version)
		if v != bookinfo.V1 && v != bookinfo.V2 && v != bookinfo.V3 {
			return nil, usageError("--version is v1, v2 or v3")
		}
		if v != bookinfo.V1 && o.ratings == "" {
			return nil, usageError("reviews with stars need --ratings")
		}
		return bookinfo.Reviews(v, o.ratings), nil
	case "productpage":
		if o.details == "" || o.reviews == "" || o.ratings == "" {
			return nil, usageError("productpage needs --details, --reviews and --ratings")
		}
		return bookinfo.ProductPage(bookinfo.Backends{Details: o.details, Ratings: o.ratings, Reviews: strings.Split(o.reviews, ",")})
	}
	return nil, usageError(fmt.Sprintf("%q is no service of it", name))
}

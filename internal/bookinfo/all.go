package bookinfo

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"

	"golang.org/x/sync/errgroup"
)

// Addresses says where All listens. Those that are empty are free ports of
// loopback.
type Addresses struct {
	ProductPage, Details, Ratings string
	Reviews                       [3]string // v1, v2, v3
}

// All runs every service in one process, the three versions of reviews at once.
// It writes a line for each to out when all can be asked, and returns when ctx
// has ended or one of them could not go on.
func All(ctx context.Context, at Addresses, out io.Writer) error {
	g, ctx := errgroup.WithContext(ctx)
	var lines []string
	start := func(name, addr string, h http.Handler) (string, error) {
		if addr == "" {
			addr = "127.0.0.1:0"
		}
		lis, err := net.Listen("tcp", addr)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		url := "http://" + lis.Addr().String()
		lines = append(lines, fmt.Sprintf("%-12s %s", name, url))
		g.Go(func() error { return Serve(ctx, lis, h) })
		return url, nil
	}
	err := startAll(start, at)
	if err != nil {
		g.Go(func() error { return err }) // ends those that run
		return g.Wait()
	}
	for i := len(lines) - 1; i >= 0; i-- {
		fmt.Fprintln(out, lines[i])
	}
	return g.Wait()
}

// startAll starts from the back, as each needs the URLs of those that it asks.
func startAll(start func(name, addr string, h http.Handler) (string, error), at Addresses) error {
	var b Backends
	var err error
	if b.Ratings, err = start("ratings", at.Ratings, Ratings()); err != nil {
		return err
	}
	b.Reviews = make([]string, len(at.Reviews))
	versions := [len(at.Reviews)]Version{V1, V2, V3}
	for i := len(versions) - 1; i >= 0; i-- {
		v := versions[i]
		h, err := Reviews(v, b.Ratings)
		if err != nil {
			return err
		}
		if b.Reviews[i], err = start("reviews-"+string(v), at.Reviews[i], h); err != nil {
			return err
		}
	}
	if b.Details, err = start("details", at.Details, Details()); err != nil {
		return err
	}
	front, err := ProductPage(b)
	if err != nil {
		return err
	}
	_, err = start("productpage", at.ProductPage, front)
	return err
}

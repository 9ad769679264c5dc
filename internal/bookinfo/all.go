package bookinfo

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"

	"golang.org/x/sync/errgroup"
)

// All runs every service in one process: productpage on listen, the others on
// free ports of loopback, the three versions of reviews at once. It writes a line
// for each to out when all answer, and returns when ctx has ended.
func All(ctx context.Context, listen string, out io.Writer) error {
	g, ctx := errgroup.WithContext(ctx)
	var lines []string
	start := func(name, addr string, h http.Handler) (string, error) {
		lis, err := net.Listen("tcp", addr)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		url := "http://" + lis.Addr().String()
		lines = append(lines, fmt.Sprintf("%-12s %s", name, url))
		g.Go(func() error { return Serve(ctx, lis, h) })
		return url, nil
	}
	err := startAll(start, listen)
	if err != nil {
		g.Go(func() error { return err }) // ends those that run
		return g.Wait()
	}
	for i := len(lines) - 1; i >= 0; i-- {
		fmt.Fprintln(out, lines[i])
	}
	return g.Wait()
}

func startAll(start func(name, addr string, h http.Handler) (string, error), listen string) error {
	const free = "127.0.0.1:0"
	var b Backends
	var err error
	if b.Ratings, err = start("ratings", free, Ratings()); err != nil {
		return err
	}
	for _, v := range []Version{V3, V2, V1} {
		url, err := start("reviews-"+string(v), free, Reviews(v, b.Ratings))
		if err != nil {
			return err
		}
		b.Reviews = append([]string{url}, b.Reviews...)
	}
	if b.Details, err = start("details", free, Details()); err != nil {
		return err
	}
	front, err := ProductPage(b)
	if err != nil {
		return err
	}
	_, err = start("productpage", listen, front)
	return err
}

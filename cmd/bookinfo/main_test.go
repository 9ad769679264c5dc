package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"io"
	"net/http"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/leaks"
)

func TestMain(m *testing.M) { leaks.Main(m) }

func TestUsage(t *testing.T) {
	for _, line := range []string{
		"", "shelf", "all --ratings http://x", "all extra", "all --reviews-listen 127.0.0.1:0", "details --version v1", "reviews --version v4",
		"reviews --version v2", "productpage", "productpage --details http://x --ratings http://x --reviews ,", "ratings --listen",
	} {
		err := run(t.Context(), strings.Fields(line), io.Discard)
		if !errors.As(err, new(usageError)) {
			t.Errorf("bookinfo %s: %v", line, err)
		}
	}
	for _, line := range []string{"--help", "help", "all -h", "details --help"} {
		var out strings.Builder
		if err := run(t.Context(), strings.Fields(line), &out); !errors.Is(err, flag.ErrHelp) || !strings.Contains(out.String(), "Usage:") {
			t.Errorf("bookinfo %s: %v %s", line, err, out.String())
		}
	}
}

func TestVersion(t *testing.T) {
	var out strings.Builder
	if err := run(t.Context(), []string{"--version"}, &out); err != nil || !strings.HasPrefix(out.String(), "bookinfo dev (go1.") {
		t.Errorf("%v, %q", err, out.String())
	}
}

// Each subcommand tells its address, answers there, and ends without an error.
func TestRun(t *testing.T) {
	for line, lines := range map[string]int{
		"all --listen 127.0.0.1:0 --reviews-listen 127.0.0.1:0,127.0.0.1:0,127.0.0.1:0":                                                              6,
		"productpage --listen 127.0.0.1:0 --details http://127.0.0.1:1 --reviews http://127.0.0.1:1,http://127.0.0.1:1 --ratings http://127.0.0.1:1": 1,
		"details --listen 127.0.0.1:0":                                       1,
		"reviews --listen 127.0.0.1:0 --version v3 --ratings http://[::1]:1": 1,
		"ratings --listen 127.0.0.1:0":                                       1,
	} {
		ctx, cancel := context.WithCancel(t.Context())
		r, w := io.Pipe()
		done := make(chan error, 1)
		go func() {
			err := run(ctx, strings.Fields(line), w)
			w.CloseWithError(err)
			done <- err
		}()
		told := bufio.NewScanner(r)
		for range lines {
			if !told.Scan() {
				t.Fatalf("bookinfo %s told too little: %v", line, told.Err())
			}
			_, url, _ := strings.Cut(told.Text(), " ")
			resp, err := http.Get(strings.TrimSpace(url) + "/health")
			if err != nil {
				t.Errorf("bookinfo %s: %v", line, err)
				continue
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("bookinfo %s: %s is %d", line, told.Text(), resp.StatusCode)
			}
		}
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("bookinfo %s ended with %v", line, err)
		}
	}
}

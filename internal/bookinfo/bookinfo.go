// Package bookinfo is a sample application of four services, something for a
// gateway to stand before: a page about a book (productpage), which asks three
// others for the book's details, reviews and ratings. The same shape as the
// sample known from Istio's documentation, with its paths.
//
// It keeps nothing but ratings, in memory, and is no example of how to write
// services; it is small so that a walkthrough can be about something else.
package bookinfo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Limits of everything that comes from outside.
const (
	maxBody    = 64 << 10
	maxName    = 64   // bytes of the name of a user or a reviewer
	maxRatings = 1000 // reviewers of a product

	readTimeout  = 5 * time.Second
	writeTimeout = 15 * time.Second
	grace        = 2 * time.Second
	echoIdle     = 5 * time.Minute // a WebSocket without a message
)

// The front waits longer than the services behind it, so that one that hangs
// at the back is named by the one that asks it, and not taken for it. Only tests change
// them.
var (
	frontTimeout   = 3 * time.Second
	reviewsTimeout = 1500 * time.Millisecond
)

// Product is a book of the one-book shop.
type Product struct {
	ID              int    `json:"id"`
	Title           string `json:"title"`
	DescriptionHTML string `json:"descriptionHtml"`
}

// products is the whole stock.
func products() []Product {
	return []Product{{
		ID: 0, Title: "The Comedy of Errors",
		DescriptionHTML: "Two pairs of twins, parted by a shipwreck, are in one town without knowing it. For one day everybody is taken for somebody else.",
	}}
}

func productByID(id string) (Product, bool) {
	n, err := strconv.Atoi(id)
	if all := products(); err == nil && n >= 0 && n < len(all) {
		return all[n], true
	}
	return Product{}, false
}

// writeJSON answers with a status and a value.
func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may be gone
}

func problem(w http.ResponseWriter, status int, text string) {
	writeJSON(w, status, map[string]string{"error": text})
}

// withHealth adds what every service has.
func withHealth(mux *http.ServeMux, what string) {
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": what + " is healthy"})
	})
}

// knownProduct answers 404 for a book that there is not.
func knownProduct(serve func(http.ResponseWriter, *http.Request, Product)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if p, ok := productByID(r.PathValue("id")); ok {
			serve(w, r, p)
			return
		}
		problem(w, http.StatusNotFound, "there is no such book")
	}
}

// forwarded are the headers that go along with a request's own requests.
var forwarded = []string{"end-user", "x-request-id", "traceparent"}

// asker asks other services.
type asker struct{ client *http.Client }

func newAsker(timeout time.Duration) asker {
	return asker{&http.Client{Timeout: timeout, Transport: &http.Transport{
		MaxIdleConnsPerHost: 8, IdleConnTimeout: 10 * time.Second,
	}}}
}

// ask reads JSON from another service on behalf of a request.
func (a asker) ask(r *http.Request, url string, into any) error {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	for _, name := range forwarded {
		if v := r.Header.Get(name); v != "" {
			req.Header.Set(name, v)
		}
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(into)
}

// Serve answers on lis until ctx ends. Then requests in flight may finish for
// as long as grace; what is open after that, and every WebSocket, is closed. No
// handler runs any more when it returns.
func Serve(ctx context.Context, lis net.Listener, h http.Handler) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	// Requests live longer than ctx, or there would be no grace.
	requests, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var handlers sync.WaitGroup
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			handlers.Add(1)
			defer handlers.Done()
			http.MaxBytesHandler(h, maxBody).ServeHTTP(w, r)
		}),
		BaseContext:       func(net.Listener) context.Context { return requests },
		ReadHeaderTimeout: readTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout,
		IdleTimeout: time.Minute, MaxHeaderBytes: 32 << 10,
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		patience, cancel := context.WithTimeout(requests, grace)
		defer cancel()
		if srv.Shutdown(patience) != nil {
			srv.Close()
		}
		cut() // Shutdown knows nothing of WebSockets
		handlers.Wait()
	}()
	err := srv.Serve(lis)
	stop()
	<-stopped
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

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
	"time"
)

// Limits of everything that comes from outside.
const (
	maxBody    = 64 << 10
	maxRatings = 1000 // reviewers of a product
	askTimeout = 2 * time.Second
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

func newAsker() asker {
	return asker{&http.Client{Timeout: askTimeout, Transport: &http.Transport{
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

// Serve answers on lis until ctx ends, and lets requests in flight finish.
func Serve(ctx context.Context, lis net.Listener, h http.Handler) error {
	srv := &http.Server{
		Handler: http.MaxBytesHandler(h, maxBody), ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 32 << 10,
	}
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if srv.Shutdown(grace) != nil {
			srv.Close()
		}
	}()
	err := srv.Serve(lis)
	if !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-stopped
	return nil
}

package envoyhost

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// passing is a process whose Envoy does nothing but let barriers through.
func passing(t *testing.T) *process {
	t.Helper()
	ours, theirs := net.Pipe()
	p := &process{log: newJournal(), ended: make(chan struct{}), barrier: ours}
	go func() {
		defer close(p.ended)
		for in := bufio.NewReader(theirs); ; {
			req, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			p.log.add(fmt.Appendf(nil, "%c1|debug|http|':path', '%s'\n", mark, req.URL.Path))
			fmt.Fprint(theirs, "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
		}
	}()
	t.Cleanup(func() { _ = ours.Close(); <-p.ended })
	return p
}

// The time that one barrier has is over for no other: cases may come a minute apart.
func TestBarrierHasItsOwnTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := passing(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := p.settle(ctx); err != nil {
			t.Fatal(err)
		}
		<-ctx.Done()
		if err := p.settle(t.Context()); err != nil {
			t.Errorf("of one without an end: %v", err)
		}
	})
}

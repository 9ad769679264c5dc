package main

import (
	"bufio"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"connectrpc.com/connect"

	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
)

// changing is a control plane whose plugin comes into force at the third look.
type changing struct {
	chandlerv1connect.UnimplementedAdminHandler
	looks atomic.Int32
}

func (c *changing) List(context.Context, *connect.Request[chandlerv1.ListRequest]) (*connect.Response[chandlerv1.ListResponse], error) {
	st := &chandlerv1.Status{Desired: 1}
	if c.looks.Add(1) > 2 {
		st.InForce = 1
	}
	return connect.NewResponse(&chandlerv1.ListResponse{Objects: []*chandlerv1.Object{
		{Ref: &chandlerv1.ObjectRef{Kind: "WasmPlugin", Namespace: "ns", Name: "p"}, Status: st},
	}}), nil
}

// A watch prints once, and again when something has changed, and ends well when
// it is interrupted.
func TestStatusWatch(t *testing.T) {
	t.Parallel()
	_, handler := chandlerv1connect.NewAdminHandler(&changing{})
	srv := httptest.NewServer(handler)
	defer srv.Close()
	r, w := io.Pipe()
	e := &env{getenv: func(string) string { return "" }, stdout: w, stderr: io.Discard}
	root := rootCommand(e)
	root.SetArgs([]string{"status", "-w", "--server", srv.URL})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- root.ExecuteContext(ctx) }()
	var rows []string
	for lines := bufio.NewScanner(r); len(rows) < 2 && lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "ns") {
			rows = append(rows, strings.Fields(lines.Text())[2])
		}
	}
	cancel()
	go func() { _, _ = io.Copy(io.Discard, r) }() // what it still has to say
	err := <-done
	w.Close()
	if err != nil {
		t.Errorf("interrupted, it ended with %v", err)
	}
	if strings.Join(rows, " ") != "0/1 1/1" {
		t.Errorf("it showed %v", rows)
	}
	http.DefaultClient.CloseIdleConnections()
}

//go:build kube

package kube

import (
	"context"
	"testing"
	"time"

	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/testenv/kube"
)

// tools is where "make tools-kube" puts its programs.
const tools = "../../../.tools"

// run takes part in an election until the test ends or stop is called.
func run(t *testing.T, kubeconfig, address string) (leaders chan control.Leader, stop func()) {
	t.Helper()
	client, err := Connect(kubeconfig, "", "test")
	if err != nil {
		t.Fatal(err)
	}
	// It can be renewed for ten seconds: a disk that is slow once ends no lead.
	e := &Election{Client: client, Namespace: "default", Name: "chandler", Address: address, Lease: DefaultLease}
	ctx, cancel := context.WithCancel(context.Background())
	leaders = make(chan control.Leader, 100)
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx, func(l control.Leader) { leaders <- l }) }()
	ended := false
	stop = func() {
		if cancel(); !ended {
			ended = true
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(stop)
	return leaders, stop
}

func awaitLeader(t *testing.T, leaders chan control.Leader, want control.Leader) {
	t.Helper()
	limit := time.After(time.Minute)
	var got []control.Leader
	for {
		select {
		case l := <-leaders:
			if got = append(got, l); l == want {
				return
			}
		case <-limit:
			t.Fatalf("leaders %+v, want %+v", got, want)
		}
	}
}

func TestElection(t *testing.T) {
	cluster := kube.Start(t, tools)
	a, stopA := run(t, cluster.Admin, "10.0.0.1:9910")
	awaitLeader(t, a, control.Leader{Self: true})
	b, _ := run(t, cluster.Admin, "10.0.0.2:9910")
	awaitLeader(t, b, control.Leader{Address: "10.0.0.1:9910"})

	// Who ends gives it up at once.
	stopA()
	awaitLeader(t, a, control.Leader{})
	awaitLeader(t, b, control.Leader{Self: true})

	// Who cannot renew leads no more, before anybody else can.
	if err := cluster.APIServer.Stop(); err != nil {
		t.Fatal(err)
	}
	awaitLeader(t, b, control.Leader{})
	if err := cluster.APIServer.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	awaitLeader(t, b, control.Leader{Self: true})
}

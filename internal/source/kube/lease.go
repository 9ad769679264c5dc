package kube

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"

	"chandler.dev/chandler/internal/control"
)

// DefaultLease is how long a leader is believed to be there without a sign.
const DefaultLease = 15 * time.Second

// Election lets replicas find out who leads, by a Lease (coordination.k8s.io/v1).
// It needs get, create and update on leases in its namespace.
type Election struct {
	Client          *Client
	Namespace, Name string // of the Lease
	// Address is this replica's port for agents, as the others reach it, and unique
	// among them.
	Address string
	// Lease is DefaultLease when zero. A leader that cannot renew gives up after two
	// thirds of it.
	Lease time.Duration
}

var _ control.Election = (*Election)(nil)

// separator stands between the address and what makes a holder unique: the same
// address may come back as another process.
const separator = "|"

// Run implements control.Election.
func (e *Election) Run(ctx context.Context, changed func(control.Leader)) error {
	lease := cmp.Or(e.Lease, DefaultLease)
	told := control.Leader{}
	tell := func(l control.Leader) {
		if l != told {
			told = l
			changed(l)
		}
	}
	for ctx.Err() == nil {
		t := &term{address: e.Address, identity: e.Address + separator + fmt.Sprint(time.Now().UnixNano()), news: make(chan struct{}, 1)}
		var err error
		t.elector, err = leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
			Lock: lock{&resourcelock.LeaseLock{
				LeaseMeta:  metav1.ObjectMeta{Namespace: e.Namespace, Name: e.Name},
				Client:     e.Client.core.CoordinationV1(),
				LockConfig: resourcelock.ResourceLockConfig{Identity: t.identity},
			}},
			LeaseDuration: lease, RenewDeadline: lease * 2 / 3, RetryPeriod: lease * 2 / 15,
			ReleaseOnCancel: true,
			Name:            e.Name,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(context.Context) { t.look() },
				OnStoppedLeading: t.look,
				OnNewLeader:      func(string) { t.look() },
			},
		})
		if err != nil {
			return fmt.Errorf("election: %w", err)
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			t.elector.Run(ctx) // until it leads no more
		}()
		for over := false; !over; {
			select {
			case <-t.news:
				tell(t.leader())
			case <-ended:
				over = true
			}
		}
		tell(control.Leader{})
	}
	return nil
}

// lock is the Lease; its errors, which the elector logs, say what to do.
type lock struct{ resourcelock.Interface }

func (l lock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	r, raw, err := l.Interface.Get(ctx)
	return r, raw, explained(err)
}

func (l lock) Create(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return explained(l.Interface.Create(ctx, r))
}

func (l lock) Update(ctx context.Context, r resourcelock.LeaderElectionRecord) error {
	return explained(l.Interface.Update(ctx, r))
}

// term is one elector's time. What it says comes from several goroutines in no
// order, so that each call only means to look again.
type term struct {
	address, identity string
	elector           *leaderelection.LeaderElector
	news              chan struct{} // holds one
}

func (t *term) look() {
	select {
	case t.news <- struct{}{}:
	default:
	}
}

// leader is who leads now, as far as is known here.
func (t *term) leader() control.Leader {
	switch holder := t.elector.GetLeader(); holder {
	case t.identity:
		return control.Leader{Self: true}
	default: // empty when somebody gave it up
		address, _, _ := strings.Cut(holder, separator)
		if address == t.address {
			address = "" // ourselves, before a restart
		}
		return control.Leader{Address: address}
	}
}

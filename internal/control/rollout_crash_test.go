package control_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/record"
)

// mortal is a record store whose control plane dies at a write: with it, or just before.
type mortal struct {
	record.Store

	mu     sync.Mutex
	writes int
	die    int  // at which write; 0: never
	done   bool // that write is on disk
	dead   chan struct{}
}

var errDead = errors.New("dead")

// write makes one write, unless the control plane is dead.
func (m *mortal) write(ctx context.Context, write func() error) error {
	m.mu.Lock()
	if m.die > 0 && m.writes >= m.die {
		m.mu.Unlock()
		<-ctx.Done()
		return errDead
	}
	m.writes++
	dies := m.writes == m.die
	m.mu.Unlock()
	if !dies {
		return write()
	}
	if m.done {
		_ = write()
	}
	close(m.dead)
	<-ctx.Done()
	return errDead
}

func (m *mortal) PutRelease(ctx context.Context, r chandler.Release) error {
	return m.write(ctx, func() error { return m.Store.PutRelease(ctx, r) })
}

func (m *mortal) SwapRollout(ctx context.Context, old *record.Rollout, next record.Rollout) (stored record.Rollout, err error) {
	err = m.write(ctx, func() error { stored, err = m.Store.SwapRollout(ctx, old, next); return err })
	return stored, err
}

// arm has the control plane die at the n-th write from now on; 0: never.
func (m *mortal) arm(n int, done bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.writes, m.die, m.done, m.dead = 0, n, done, make(chan struct{})
}

// A control plane that is killed at any write of a rollout goes on where it was: what a
// proxy is given is never older than what it had, and the end is the same.
func TestKilledAtAnyWrite(t *testing.T) {
	t.Parallel()
	plan := inSteps("1", "2", "100%")
	for name, course := range map[string]struct {
		begin func(*stage)
		ended func(*stage) bool
	}{
		"a good release": {
			func(s *stage) { s.apply("auth", "oci://reg.example/auth:v2", plan) },
			func(s *stage) bool {
				return s.rollout("auth").State == chandler.RolloutHealthy && s.count(modTwo) == 3
			},
		},
		"a bad one": {
			func(s *stage) {
				for _, a := range s.actors {
					a.does(traps(modTwo))
				}
				s.apply("auth", "oci://reg.example/auth:v2", plan)
			},
			func(s *stage) bool {
				return s.rollout("auth").State == chandler.RolloutDegraded && s.count(modOne) == 3
			},
		},
		"a deletion": {
			func(s *stage) { delete(s.objects, "auth"); s.deliver() },
			func(s *stage) bool {
				left, _ := s.records.Rollouts(context.Background())
				return s.count(nil) == 3 && len(left) == 0
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, done := range []bool{false, true} {
				for n, more := 1, true; more; n++ {
					on(t, 3, func(t *testing.T, s *stage) {
						s.deliver()
						time.Sleep(time.Second) // all are there
						dir, err := record.OpenDirectory(durable.OS(), t.TempDir(), nil)
						if err != nil {
							t.Fatal(err)
						}
						m := &mortal{Store: dir}
						s.records = m
						s.reboot()
						s.settled(plan)
						m.arm(n, done)
						course.begin(s)
						ended := func() bool {
							select {
							case <-m.dead:
								return true
							default:
								return course.ended(s)
							}
						}
						s.within(5*time.Minute, fmt.Sprintf("write %d, or the end", n), ended)
						select {
						case <-m.dead:
						default:
							more = false
						}
						m.arm(0, false)
						s.reboot()
						s.within(5*time.Minute, fmt.Sprintf("the end, after death at write %d", n), func() bool { return course.ended(s) })
						if h := s.rollout("auth").History; len(h) > 0 && h[0].Outcome == record.RolledBack && s.saw(h[0].Release) != 1 {
							t.Errorf("%d proxies were given the bad release, want the one of the first step", s.saw(h[0].Release))
						}
						t.Logf("died at write %d", n)
					})
				}
			}
		})
	}
}

package kube

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// However they meet, who asks the same is told by one question: also who comes just when
// another's has been answered.
func TestMemoAsksOnce(t *testing.T) {
	t.Parallel()
	m := memo[int, int]{age: time.Hour, now: time.Now}
	for key := range 2000 {
		var asked atomic.Int32
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				v, err := m.get(t.Context(), key, func(context.Context) (int, time.Time, error) {
					asked.Add(1)
					return key, time.Time{}, nil
				})
				if v != key || err != nil {
					t.Errorf("%d, %v", v, err)
				}
			})
		}
		wg.Wait()
		if n := asked.Load(); n != 1 {
			t.Fatalf("asked %d times for key %d", n, key)
		}
	}
}

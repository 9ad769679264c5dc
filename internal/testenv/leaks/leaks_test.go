package leaks

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

// leaving are tests that leave a goroutine behind, which ends after a while.
type leaving time.Duration

func (l leaving) Run() int {
	go time.Sleep(time.Duration(l))
	return 0
}

// What ends later than goleak waits is no leak.
func TestMainWaits(t *testing.T) {
	if code := (patient{leaving(2 * time.Second)}).Run(); code != 0 {
		t.Errorf("ended with %d", code)
	}
	if err := goleak.Find(); err != nil {
		t.Error(err)
	}
}

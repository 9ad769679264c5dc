package store

import (
	"sync"

	"chandler.dev/chandler"
)

// keyed is a lock for each digest that is locked at the moment.
type keyed struct {
	mu   sync.Mutex
	held map[chandler.ModuleDigest]chan struct{}
}

func (k *keyed) lock(d chandler.ModuleDigest) (unlock func()) {
	for {
		k.mu.Lock()
		other := k.held[d]
		if other == nil {
			break
		}
		k.mu.Unlock()
		<-other
	}
	defer k.mu.Unlock()
	if k.held == nil {
		k.held = map[chandler.ModuleDigest]chan struct{}{}
	}
	mine := make(chan struct{})
	k.held[d] = mine
	return func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.held, d)
		close(mine)
	}
}

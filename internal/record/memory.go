package record

import (
	"context"
	"maps"
	"slices"
	"sync"

	"chandler.dev/chandler"
)

// Memory is a Watcher that forgets with the process, for tests.
type Memory struct {
	mu       sync.Mutex
	releases map[chandler.ReleaseID]chandler.Release
	rollouts map[string]Rollout
	watches  map[chan struct{}][]Change // what each has not been told
}

// NewMemory gives an empty store.
func NewMemory() *Memory {
	return &Memory{releases: map[chandler.ReleaseID]chandler.Release{}, rollouts: map[string]Rollout{}, watches: map[chan struct{}][]Change{}}
}

// Releases implements Store.
func (m *Memory) Releases(context.Context) ([]chandler.Release, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.releases)), nil
}

// Rollouts implements Store.
func (m *Memory) Rollouts(context.Context) ([]Rollout, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Collect(maps.Values(m.rollouts)), nil
}

// PutRelease implements Store.
func (m *Memory) PutRelease(_ context.Context, r chandler.Release) error {
	if err := Check(r); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.releases[r.ID]; !ok {
		m.releases[r.ID] = r
		m.changed(Change{Release: &r})
	}
	return nil
}

// DeleteRelease implements Store.
func (m *Memory) DeleteRelease(_ context.Context, id chandler.ReleaseID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r, ok := m.releases[id]; ok {
		delete(m.releases, id)
		m.changed(Change{Release: &r, Deleted: true})
	}
	return nil
}

// SwapRollout implements Store.
func (m *Memory) SwapRollout(_ context.Context, old *Rollout, next Rollout) (Rollout, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var stored *Rollout
	if r, ok := m.rollouts[next.UID]; ok {
		stored = &r
	}
	next, err := swap(stored, old, next)
	if err != nil {
		return Rollout{}, err
	}
	m.rollouts[next.UID] = next
	m.changed(Change{Rollout: &next})
	return next, nil
}

// DeleteRollout implements Store.
func (m *Memory) DeleteRollout(_ context.Context, uid string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r, ok := m.rollouts[uid]; ok {
		delete(m.rollouts, uid)
		m.changed(Change{Rollout: &r, Deleted: true})
	}
	return nil
}

// Watch implements Watcher.
func (m *Memory) Watch(ctx context.Context, tell func(Change)) error {
	wake := make(chan struct{}, 1)
	wake <- struct{}{}
	m.mu.Lock()
	m.watches[wake] = m.all()
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.watches, wake)
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		}
		m.mu.Lock()
		changes := m.watches[wake]
		m.watches[wake] = nil
		m.mu.Unlock()
		for _, c := range changes {
			tell(c)
		}
	}
}

// all gives everything as changes.
func (m *Memory) all() []Change {
	var out []Change
	for _, r := range m.releases {
		out = append(out, Change{Release: &r})
	}
	for _, r := range m.rollouts {
		out = append(out, Change{Rollout: &r})
	}
	return out
}

// changed notes a change for those who watch.
func (m *Memory) changed(c Change) {
	for wake := range m.watches {
		m.watches[wake] = append(m.watches[wake], c)
		select {
		case wake <- struct{}{}:
		default:
		}
	}
}

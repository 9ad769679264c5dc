package record

import (
	"context"
	"maps"
	"slices"
	"sync"

	"chandler.dev/chandler"
)

// Memory is a Store that forgets with the process, for tests.
type Memory struct {
	mu       sync.Mutex
	releases map[chandler.ReleaseID]chandler.Release
	rollouts map[string]Rollout
}

// NewMemory gives an empty store.
func NewMemory() *Memory {
	return &Memory{releases: map[chandler.ReleaseID]chandler.Release{}, rollouts: map[string]Rollout{}}
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
	if err := checkRelease(r); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.releases[r.ID]; !ok {
		m.releases[r.ID] = r
	}
	return nil
}

// DeleteRelease implements Store.
func (m *Memory) DeleteRelease(_ context.Context, id chandler.ReleaseID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.releases, id)
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
	return next, nil
}

// DeleteRollout implements Store.
func (m *Memory) DeleteRollout(_ context.Context, uid string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.rollouts, uid)
	return nil
}

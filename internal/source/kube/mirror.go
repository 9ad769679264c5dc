package kube

import (
	"context"
	"maps"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
)

// mirror keeps what a list and its watch show, over restarts of the API server
// and whatever else ends a watch: what was seen stays until something newer is.
type mirror struct {
	resource dynamic.ResourceInterface
	options  metav1.ListOptions // selectors
	// same tells whether a change is none to us; nil: every one is.
	same func(old, new *unstructured.Unstructured) bool
	// changed is called, without locks, after something was.
	changed func()

	mu      sync.Mutex
	objects map[types.NamespacedName]*unstructured.Unstructured
	dirty   map[types.NamespacedName]bool // changed since the last take
	synced  bool                          // listed at least once
	err     error                         // of the last list; nil when it went well
}

// run follows the resource until ctx ends. What fails is tried again after at
// most five seconds.
func (m *mirror) run(ctx context.Context) {
	m.mu.Lock()
	m.objects, m.dirty = map[types.NamespacedName]*unstructured.Unstructured{}, map[types.NamespacedName]bool{}
	m.mu.Unlock()
	lw := &cache.ListWatch{ListWithContextFunc: m.list, WatchFuncWithContext: m.watch}
	r := cache.NewReflectorWithOptions(lw, &unstructured.Unstructured{}, m, cache.ReflectorOptions{
		Backoff: &wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.2, Steps: 6, Cap: 4 * time.Second},
	})
	r.RunWithContext(ctx)
}

func (m *mirror) list(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
	o.LabelSelector, o.FieldSelector = m.options.LabelSelector, m.options.FieldSelector
	l, err := m.resource.List(ctx, o)
	if err != nil {
		if ctx.Err() == nil {
			m.mu.Lock()
			m.err = err
			m.mu.Unlock()
			m.changed()
		}
		return nil, err // not l, which would be a nil in an interface
	}
	return l, nil
}

func (m *mirror) watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	o.LabelSelector, o.FieldSelector = m.options.LabelSelector, m.options.FieldSelector
	return m.resource.Watch(ctx, o)
}

func nameOf(u *unstructured.Unstructured) types.NamespacedName {
	return types.NamespacedName{Namespace: u.GetNamespace(), Name: u.GetName()}
}

// put takes an object in and tells whether it is news.
func (m *mirror) put(u *unstructured.Unstructured) bool {
	u.SetManagedFields(nil)
	name := nameOf(u)
	old := m.objects[name]
	m.objects[name] = u
	if old != nil && m.same != nil && m.same(old, u) {
		return false
	}
	m.dirty[name] = true
	return true
}

// Add implements cache.ReflectorStore, as the following do.
func (m *mirror) Add(o any) error { return m.Update(o) }

func (m *mirror) Update(o any) error {
	m.mu.Lock()
	news := m.put(o.(*unstructured.Unstructured))
	m.mu.Unlock()
	if news {
		m.changed()
	}
	return nil
}

func (m *mirror) Delete(o any) error {
	name := nameOf(o.(*unstructured.Unstructured))
	m.mu.Lock()
	delete(m.objects, name)
	m.dirty[name] = true
	m.mu.Unlock()
	m.changed()
	return nil
}

func (m *mirror) Replace(list []any, _ string) error {
	m.mu.Lock()
	gone := maps.Clone(m.objects)
	for _, o := range list {
		u := o.(*unstructured.Unstructured)
		delete(gone, nameOf(u))
		m.put(u)
	}
	for name := range gone {
		delete(m.objects, name)
		m.dirty[name] = true
	}
	m.synced, m.err = true, nil
	m.mu.Unlock()
	m.changed()
	return nil
}

func (m *mirror) Resync() error { return nil }

// state tells whether all was listed once, and why the last list failed.
func (m *mirror) state() (synced bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.synced, m.err
}

// take gives what changed since the last call; nil for what is no more. Objects
// are not to be written to.
func (m *mirror) take() map[types.NamespacedName]*unstructured.Unstructured {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[types.NamespacedName]*unstructured.Unstructured, len(m.dirty))
	for name := range m.dirty {
		out[name] = m.objects[name]
	}
	clear(m.dirty)
	return out
}

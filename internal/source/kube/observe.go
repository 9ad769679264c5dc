package kube

import (
	"context"
	"time"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// observer is told what becomes of the objects of one resource. Calls do not
// overlap, and what it is given is its own.
type observer[T any] interface {
	// all: these are all there are.
	all([]T)
	// is: this one is new, or different.
	is(T)
	// gone: this one is no more; it is given as it was last.
	gone(T)
}

// observe tells f of all objects and then of each change, over restarts of the API
// server and watches that are too old, until ctx ends. Where the resource is unknown
// or forbidden it goes on trying; away is told.
func observe[T runtime.Object](ctx context.Context, expected T, selector string, away *access, list func(context.Context, metav1.ListOptions) (runtime.Object, error),
	watches func(context.Context, metav1.ListOptions) (watch.Interface, error), f observer[T]) {
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector = selector
			l, err := list(ctx, o)
			away.listed(ctx, err)
			return l, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector = selector
			w, err := watches(ctx, o)
			away.watched(ctx, err)
			return w, err
		},
	}
	silent := logr.Discard() // outages are told once, by us
	ctx = klog.NewContext(ctx, silent)
	cache.NewReflectorWithOptions(lw, expected, reflected[T]{f}, cache.ReflectorOptions{
		Name: "chandler", Logger: &silent,
		Backoff: &wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.5, Steps: 6, Cap: 3 * time.Second},
	}).RunWithContext(ctx)
}

// reflected is an observer as the client library calls it.
type reflected[T any] struct{ f observer[T] }

func (r reflected[T]) Add(o any) error    { r.f.is(o.(T)); return nil }
func (r reflected[T]) Update(o any) error { r.f.is(o.(T)); return nil }
func (r reflected[T]) Delete(o any) error { r.f.gone(o.(T)); return nil }
func (r reflected[T]) Resync() error      { return nil }
func (r reflected[T]) Replace(items []any, _ string) error {
	all := make([]T, len(items))
	for i := range items {
		all[i] = items[i].(T)
	}
	r.f.all(all)
	return nil
}

package kube

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
)

// mute answers nothing the first time it is asked to watch.
type mute struct {
	dynamic.ResourceInterface
	asked int
}

func (m *mute) Watch(ctx context.Context, _ metav1.ListOptions) (watch.Interface, error) {
	if m.asked++; m.asked == 1 {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	w := watch.NewFake()
	context.AfterFunc(ctx, w.Stop)
	return w, nil
}

func (m *mute) Get(ctx context.Context, _ string, _ metav1.GetOptions, _ ...string) (*unstructured.Unstructured, error) {
	return &unstructured.Unstructured{}, ctx.Err()
}

// An API server that takes a request and never answers is asked again.
func TestSilenceIsNotWaitedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(t.Context())
		told := errors.New("told")
		keepUp(ctx, &mute{}, "x", &outage{log: slog.New(slog.DiscardHandler)}, func(o *unstructured.Unstructured, err error) {
			if o != nil && err == nil {
				cancel(told)
			}
		})
		if context.Cause(ctx) != told {
			t.Error(context.Cause(ctx))
		}
	})
}

package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
)

const (
	// watchFor is how long one watch of an object goes; then it is asked for anew.
	watchFor = 7 * time.Minute
	// lookEvery is how often it is looked at without the right to watch it.
	lookEvery = 30 * time.Second
)

// keepUp keeps up with one object by its name alone, so that the right to read it
// can be given for it alone; it is never listed with others. tell gets it, or nil
// where there is none, or why that is not known, over and over if need be. Without
// the right to watch, it is looked at now and then. away is told of rights that are
// lacking. It returns when ctx ends.
func keepUp(ctx context.Context, api dynamic.ResourceInterface, name string, away *outage, tell func(*unstructured.Unstructured, error)) {
	pause := firstPause
	for ctx.Err() == nil {
		began := time.Now()
		err := keepUpOnce(ctx, api, name, away, tell)
		if err == nil || time.Since(began) > lastPause {
			pause = firstPause
		}
		if apierrors.IsForbidden(err) {
			away.note(ctx, err)
		}
		switch {
		case errors.Is(err, errUnwatched):
			pause = lookEvery
		case apierrors.IsForbidden(err):
			pause = lastPause
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// errUnwatched: it can be read, and not watched.
var errUnwatched = errors.New("no right to watch")

// errSilent: neither an answer nor a refusal came in time.
var errSilent = errors.New("the API server does not answer")

// keepUpOnce gets the object and what becomes of it during one watch. The watch
// begins before the get, so that nothing falls between them.
func keepUpOnce(ctx context.Context, api dynamic.ResourceInterface, name string, away *outage, tell func(*unstructured.Unstructured, error)) error {
	outer := ctx
	ctx, cancel := context.WithCancelCause(outer)
	defer cancel(nil)
	late := time.AfterFunc(callTimeout, func() { cancel(errSilent) })
	limit := int64(watchFor.Seconds())
	w, watchErr := api.Watch(ctx, metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", name).String(), TimeoutSeconds: &limit})
	if watchErr == nil {
		defer w.Stop()
	}
	o, err := api.Get(ctx, name, metav1.GetOptions{})
	late.Stop()
	switch {
	case outer.Err() != nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case apierrors.IsNotFound(err):
		o = nil
	case err != nil:
		tell(nil, err)
		return err
	}
	tell(o, nil)
	if apierrors.IsForbidden(watchErr) {
		return fmt.Errorf("%w: %w", errUnwatched, watchErr)
	}
	if watchErr != nil {
		return watchErr
	}
	away.note(ctx, nil)
	newest := ""
	if o != nil {
		newest = o.GetResourceVersion()
	}
	for e := range w.ResultChan() {
		o, ok := e.Object.(*unstructured.Unstructured)
		if e.Type == watch.Error || !ok {
			return errors.New("the watch has failed")
		}
		if order, err := resourceversion.CompareResourceVersion(o.GetResourceVersion(), newest); newest != "" && err == nil && order <= 0 || o.GetName() != name {
			continue // what the watch began with
		}
		newest = o.GetResourceVersion()
		switch e.Type {
		case watch.Added, watch.Modified:
			tell(o, nil)
		case watch.Deleted:
			tell(nil, nil)
		}
	}
	return nil
}

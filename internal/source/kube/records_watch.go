package kube

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/record"
)

// Watch implements record.Watcher. Of a release that went while nobody watched,
// Key, UID and ID are told.
func (s *Records) Watch(ctx context.Context, tell func(record.Change)) error {
	api := s.client.core.AppsV1().ControllerRevisions(metav1.NamespaceAll)
	observe(ctx, &appsv1.ControllerRevision{}, recordSelector, newAccess(s.log, "controllerrevisions"),
		func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return api.List(ctx, o) },
		func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) { return api.Watch(ctx, o) },
		&recordFollower{s: s, tell: tell, known: map[place]record.Change{}})
	return nil
}

// recordFollower turns objects into changes of records.
type recordFollower struct {
	s     *Records
	tell  func(record.Change)
	known map[place]record.Change // what was told; releases by their names alone
}

func (f *recordFollower) all(objects []*appsv1.ControllerRevision) {
	there := make(map[place]bool, len(objects))
	for _, o := range objects {
		there[placeOf(o)] = true
		f.is(o)
	}
	for at := range f.known {
		if !there[at] {
			f.lost(at)
		}
	}
}

func (f *recordFollower) is(o *appsv1.ControllerRevision) {
	at := placeOf(o)
	if o.Labels[recordLabel] == rolloutRecord {
		r, err := readRollout(o)
		if err != nil {
			f.s.passBy(o, err)
			return
		}
		f.known[at] = record.Change{Rollout: &r}
		f.s.seen(rolloutOf(o, r))
		f.tell(record.Change{Rollout: &r})
		return
	}
	if _, ok := f.known[at]; ok {
		return // they never change
	}
	r, err := readRelease(o)
	if err != nil {
		f.s.passBy(o, err)
		return
	}
	f.known[at] = record.Change{Release: &chandler.Release{Format: r.Format, ID: r.ID, Key: r.Key, UID: r.UID, Generation: r.Generation}}
	f.s.keep(r.ID, at)
	f.tell(record.Change{Release: &r})
}

func (f *recordFollower) gone(o *appsv1.ControllerRevision) { f.lost(placeOf(o)) }

func (f *recordFollower) lost(at place) {
	ch, ok := f.known[at]
	if !ok {
		return
	}
	delete(f.known, at)
	ch.Deleted = true
	if ch.Release != nil {
		f.s.drop(ch.Release.ID)
	} else {
		f.s.unseen(ch.Rollout)
	}
	f.tell(ch)
}

var _ record.Watcher = (*Records)(nil)

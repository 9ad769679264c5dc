package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/later"
	"chandler.dev/chandler/internal/record"
)

// What the objects of records are known by.
const (
	managedByLabel = "app.kubernetes.io/managed-by"
	managedBy      = "chandler"
	recordLabel    = "chandler.dev/record" // release or rollout
	pluginLabel    = "chandler.dev/plugin" // for people
	releaseRecord  = "release"
	rolloutRecord  = "rollout"
	recordSelector = recordLabel + " in (" + releaseRecord + "," + rolloutRecord + ")"
	// rolloutAnnotation holds a rollout record: data cannot be changed.
	rolloutAnnotation = "chandler.dev/rollout"
	// pluginVersion is what owner references name, whatever the version served.
	pluginVersion = "extensions.istio.io/v1alpha1"
)

const (
	// maxRelease bounds a release as JSON. The API server's own store refuses an
	// object of 1.5 MiB, in words that nobody understands.
	maxRelease  = 1 << 20
	listPage    = 500
	callTimeout = 10 * time.Second
	maxListWait = 3 * time.Second
)

// Records keeps releases and rollouts as apps/v1 ControllerRevisions in the
// namespace of their plugin. A release is owned by its plugin and collected with
// it. A rollout is not: it outlives the plugin for as long as the control plane
// remembers it, so that a resource which is deleted and comes back keeps its
// digests.
//
// It needs get, list, watch, create, patch and delete of controllerrevisions, where
// plugins are.
type Records struct {
	client *Client
	log    *slog.Logger

	mu       sync.Mutex
	listed   bool
	places   map[chandler.ReleaseID]place
	rollouts map[string]rolloutObject // by uid
}

// place is where an object is.
type place struct{ namespace, name string }

// rolloutObject is a rollout as it was last seen, and what a later version says in it.
type rolloutObject struct {
	place
	record.Rollout
	more later.Fields
}

func rolloutOf(o *appsv1.ControllerRevision, r record.Rollout) rolloutObject {
	return rolloutObject{placeOf(o), r, later.Of([]byte(o.Annotations[rolloutAnnotation]), r)}
}

// NewRecords gives the records of a cluster. log may be nil.
func NewRecords(c *Client, log *slog.Logger) *Records {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Records{client: c, log: log, places: map[chandler.ReleaseID]place{}, rollouts: map[string]rolloutObject{}}
}

// Releases implements record.Store. It reads everything, and Rollouts is from
// then on answered from that and from what was written since. It waits for an API
// server that does not answer, or does not yet allow it, until ctx ends.
func (s *Records) Releases(ctx context.Context) ([]chandler.Release, error) {
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, maxListWait) {
		releases, err := s.list(ctx)
		if err == nil || ctx.Err() != nil {
			return releases, err
		}
		s.log.Warn("the records cannot be read yet", "error", err, "retry_in", wait)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// Rollouts implements record.Store.
func (s *Records) Rollouts(ctx context.Context) ([]record.Rollout, error) {
	s.mu.Lock()
	listed := s.listed
	s.mu.Unlock()
	if !listed {
		if _, err := s.Releases(ctx); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]record.Rollout, 0, len(s.rollouts))
	for _, o := range s.rollouts {
		out = append(out, o.Rollout)
	}
	return out, nil
}

// list reads all records, page by page. What is none is passed by.
func (s *Records) list(ctx context.Context) ([]chandler.Release, error) {
	var releases []chandler.Release
	places := map[chandler.ReleaseID]place{}
	rollouts := map[string]rolloutObject{}
	options := metav1.ListOptions{LabelSelector: recordSelector, Limit: listPage}
	for {
		page, err := s.page(ctx, options)
		if err != nil {
			return nil, fmt.Errorf("records: %w", explained(err))
		}
		for i := range page.Items {
			o := &page.Items[i]
			if o.Labels[recordLabel] == rolloutRecord {
				if r, err := readRollout(o); err == nil {
					rollouts[r.UID] = rolloutOf(o, r)
				} else {
					s.passBy(o, err)
				}
				continue
			}
			r, err := readRelease(o)
			if err != nil {
				s.passBy(o, err)
				continue
			}
			places[r.ID] = placeOf(o)
			releases = append(releases, r)
		}
		if options.Continue = page.Continue; options.Continue == "" {
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listed, s.places, s.rollouts = true, places, rollouts
	return releases, nil
}

func (s *Records) page(ctx context.Context, options metav1.ListOptions) (*appsv1.ControllerRevisionList, error) {
	ctx, cancel := context.WithTimeout(ctx, 6*callTimeout)
	defer cancel()
	return s.client.core.AppsV1().ControllerRevisions(metav1.NamespaceAll).List(ctx, options)
}

func (s *Records) passBy(o *appsv1.ControllerRevision, reason error) {
	s.log.Warn("a record is passed by", "namespace", o.Namespace, "controllerrevision", o.Name, "reason", reason)
}

func placeOf(o *appsv1.ControllerRevision) place { return place{o.Namespace, o.Name} }

// readRelease reads a release. One that lies in another namespace than it speaks
// of was put there by somebody else.
func readRelease(o *appsv1.ControllerRevision) (chandler.Release, error) {
	r, err := record.DecodeRelease(o.Data.Raw)
	if err != nil {
		return chandler.Release{}, err
	}
	if r.Namespace != o.Namespace || releaseName(&r) != o.Name {
		return chandler.Release{}, errors.New("its content is not what its name says")
	}
	return r, nil
}

func readRollout(o *appsv1.ControllerRevision) (record.Rollout, error) {
	r, err := record.DecodeRollout([]byte(o.Annotations[rolloutAnnotation]))
	if err != nil {
		return record.Rollout{}, err
	}
	if r.Namespace != o.Namespace || rolloutName(&r) != o.Name {
		return record.Rollout{}, errors.New("its content is not what its name says")
	}
	// The resource version is the revision: the API server compares it in every
	// swap, whoever else writes.
	if r.Revision, err = strconv.ParseUint(o.ResourceVersion, 10, 64); err != nil {
		return record.Rollout{}, fmt.Errorf("resource version %s is no number", chandler.Quote(o.ResourceVersion))
	}
	return r, nil
}

// PutRelease implements record.Store. A release that is larger than Kubernetes
// keeps is a *chandler.Problem.
func (s *Records) PutRelease(ctx context.Context, r chandler.Release) error {
	if err := record.Check(r); err != nil {
		return err
	}
	s.mu.Lock()
	_, there := s.places[r.ID]
	s.mu.Unlock()
	if there {
		return nil
	}
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("records: %w", err)
	}
	if len(data) > maxRelease {
		return tooLarge(len(data))
	}
	o := object(r.Key, releaseName(&r), releaseRecord, r.Generation, data)
	controller := true
	o.OwnerReferences = []metav1.OwnerReference{{
		APIVersion: pluginVersion, Kind: r.Kind, Name: r.Name, UID: types.UID(r.UID), Controller: &controller,
	}}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	api := s.client.core.AppsV1().ControllerRevisions(r.Namespace)
	_, err = api.Create(ctx, o, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		err = s.same(ctx, r, o.Name)
	}
	switch {
	case apierrors.IsRequestEntityTooLargeError(err), err != nil && strings.Contains(err.Error(), "request is too large"):
		return tooLarge(len(data))
	case err != nil:
		return fmt.Errorf("records: %w", explained(err))
	}
	s.keep(r.ID, placeOf(o))
	return nil
}

// keep notes where a release is; drop, that it is no more.
func (s *Records) keep(id chandler.ReleaseID, at place) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.places[id] = at
}

func (s *Records) drop(id chandler.ReleaseID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.places, id)
}

// same finds out whether what bears a release's name is that release.
func (s *Records) same(ctx context.Context, r chandler.Release, name string) error {
	o, err := s.client.core.AppsV1().ControllerRevisions(r.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	if got, err := readRelease(o); err != nil || got.ID != r.ID {
		return fmt.Errorf("controllerrevision %s/%s is in the way: it is not release %s", r.Namespace, name, r.ID.Short())
	}
	return nil
}

func tooLarge(size int) error {
	return chandler.Problemf(chandler.CodeConfigSize, "spec", "have the plugin read large data from elsewhere",
		"the record of this version would be %d bytes, and Kubernetes keeps up to %d of one object", size, maxRelease)
}

// DeleteRelease implements record.Store, for releases that were listed or put.
func (s *Records) DeleteRelease(ctx context.Context, id chandler.ReleaseID) error {
	s.mu.Lock()
	at, ok := s.places[id]
	s.mu.Unlock()
	if !ok {
		return nil
	}
	if err := s.remove(ctx, at); err != nil {
		return err
	}
	s.drop(id)
	return nil
}

// DeleteRollout implements record.Store, likewise.
func (s *Records) DeleteRollout(ctx context.Context, uid string) error {
	s.mu.Lock()
	o, ok := s.rollouts[uid]
	s.mu.Unlock()
	if !ok {
		return nil
	}
	if err := s.remove(ctx, o.place); err != nil {
		return err
	}
	s.unseen(&o.Rollout)
	return nil
}

func (s *Records) remove(ctx context.Context, at place) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := s.client.core.AppsV1().ControllerRevisions(at.namespace).Delete(ctx, at.name, metav1.DeleteOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("records: %w", explained(err))
	}
	return nil
}

// SwapRollout implements record.Store. After a conflict Rollouts tells what is
// there.
func (s *Records) SwapRollout(ctx context.Context, old *record.Rollout, next record.Rollout) (record.Rollout, error) {
	next.Format, next.Revision = record.Format, 0
	content, err := json.Marshal(next)
	if err == nil && old != nil {
		s.mu.Lock() // of another revision than old there is a conflict
		content, err = s.rollouts[next.UID].more.AddTo(content)
		s.mu.Unlock()
	}
	if err != nil {
		return record.Rollout{}, fmt.Errorf("records: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	name := rolloutName(&next)
	api := s.client.core.AppsV1().ControllerRevisions(next.Namespace)
	var stored *appsv1.ControllerRevision
	if old == nil {
		o := object(next.Key, name, rolloutRecord, int64(min(next.Sequence, math.MaxInt64)), []byte(`{}`))
		o.Annotations = map[string]string{rolloutAnnotation: string(content)}
		stored, err = api.Create(ctx, o, metav1.CreateOptions{})
	} else {
		var patch []byte
		if patch, err = json.Marshal(map[string]any{
			"metadata": map[string]any{
				"resourceVersion": strconv.FormatUint(old.Revision, 10),
				"annotations":     map[string]string{rolloutAnnotation: string(content)},
				"labels":          map[string]string{recordLabel: rolloutRecord}, // if somebody took it away
			},
			"revision": min(next.Sequence, math.MaxInt64),
		}); err != nil {
			return record.Rollout{}, fmt.Errorf("records: %w", err)
		}
		stored, err = api.Patch(ctx, name, types.MergePatchType, patch, metav1.PatchOptions{})
	}
	switch {
	case apierrors.IsAlreadyExists(err), apierrors.IsConflict(err), apierrors.IsNotFound(err) && old != nil:
		return record.Rollout{}, s.conflict(ctx, &next, name)
	case err != nil:
		return record.Rollout{}, fmt.Errorf("records: %w", explained(err))
	}
	got, err := readRollout(stored)
	if err != nil {
		return record.Rollout{}, fmt.Errorf("records: %s/%s: %w", next.Namespace, name, err)
	}
	s.seen(rolloutOf(stored, got))
	return got, nil
}

// conflict finds out what is there instead, and gives record.ErrConflict.
func (s *Records) conflict(ctx context.Context, next *record.Rollout, name string) error {
	o, err := s.client.core.AppsV1().ControllerRevisions(next.Namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		s.unseen(&record.Rollout{UID: next.UID, Revision: math.MaxUint64})
		return record.ErrConflict
	case err != nil:
		return fmt.Errorf("records: %w", explained(err))
	}
	got, err := readRollout(o)
	if err != nil {
		// Perhaps of a newer version: it is not written over, since its sequence
		// would begin anew.
		return fmt.Errorf("records: controllerrevision %s/%s: %w", o.Namespace, o.Name, err)
	}
	s.seen(rolloutOf(o, got))
	return record.ErrConflict
}

// seen takes note of a rollout. Of two answers that overtake each other the newer
// one counts.
func (s *Records) seen(o rolloutObject) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rollouts[o.UID].Revision <= o.Revision {
		s.rollouts[o.UID] = o
	}
}

// unseen takes note that a rollout is gone, unless there is one again.
func (s *Records) unseen(o *record.Rollout) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rollouts[o.UID].Revision <= o.Revision {
		delete(s.rollouts, o.UID)
	}
}

func object(k chandler.Key, name, kind string, revision int64, data []byte) *appsv1.ControllerRevision {
	o := &appsv1.ControllerRevision{Revision: revision, Data: runtime.RawExtension{Raw: data}}
	o.Namespace, o.Name = k.Namespace, name
	o.Labels = map[string]string{managedByLabel: managedBy, recordLabel: kind}
	if len(k.Name) <= 63 { // of a label's value
		o.Labels[pluginLabel] = k.Name
	}
	return o
}

func releaseName(r *chandler.Release) string { return objectName(r.Key, string(r.ID)) }

func rolloutName(r *record.Rollout) string {
	sum := sha256.Sum256([]byte(r.Kind + " " + r.UID))
	return objectName(r.Key, rolloutRecord+"-"+hex.EncodeToString(sum[:]))
}

// objectName begins with the plugin's name, for people, and ends with enough of
// what is its own.
func objectName(k chandler.Key, own string) string {
	const maxName, ownLength = 200, 28
	name := strings.TrimRight(k.Name[:min(len(k.Name), maxName)], "-.")
	return name + "-" + own[:min(len(own), ownLength)]
}

package kube

import (
	"context"
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"sigs.k8s.io/yaml"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source"
)

const (
	kindVersion = "v1alpha1"

	// Between tries, when something does not answer or is not there.
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second

	// maxShown is how large an object may be and still be shown as it was written;
	// it is far beyond what is accepted.
	maxShown = 512 << 10

	// lastApplied is kubectl's own copy of what was applied: as large as the
	// object, and nobody's wish.
	lastApplied = "kubectl.kubernetes.io/last-applied-configuration"
)

// resources are those of the kinds of plugins.
var resources = map[string]schema.GroupVersionResource{
	chandler.KindWasmPlugin:       {Group: "extensions.istio.io", Version: kindVersion, Resource: "wasmplugins"},
	chandler.KindTrafficExtension: {Group: "extensions.istio.io", Version: kindVersion, Resource: "trafficextensions"},
}

// kind is one kind of plugins, as a store that a client-go reflector keeps. What
// the API server hands out is judged at once, by the same decoder as a file, and
// not kept: typed objects would lose what is unknown or misspelt without a word.
type kind struct {
	s        *reader
	name     string
	resource schema.GroupVersionResource
	api      dynamic.ResourceInterface
	appeared chan struct{} // its definition may be there now
	access   *access

	// Under the source's lock.
	objects map[string]*held // by namespace/name
	listed  bool
	defined sign // by Istio
}

// held is an object as it stands.
type held struct {
	object   source.Object
	revision *string // value of its label istio.io/rev
	ours     bool    // it has no label and was ours once
}

func newKind(s *reader, name string) *kind {
	k := &kind{s: s, name: name, objects: map[string]*held{}, appeared: make(chan struct{}, 1)}
	k.resource = resources[name]
	k.access = newAccess(s.log, k.resource.Resource)
	if s.cfg.Client != nil {
		k.api = s.cfg.Client.dynamic.Resource(k.resource)
	}
	return k
}

// run keeps the store until ctx ends. The reflector lists once, goes on from there
// by watches, and lists again only when a watch is too old; never older than what
// it has seen.
func (k *kind) run(ctx context.Context) {
	silent := logr.Discard() // outages are told once, by us
	ctx = klog.NewContext(ctx, silent)
	example := &unstructured.Unstructured{}
	example.SetGroupVersionKind(k.resource.GroupVersion().WithKind(k.name))
	cache.NewReflectorWithOptions(&cache.ListWatch{ListWithContextFunc: k.list, WatchFuncWithContext: k.watch}, example, k, cache.ReflectorOptions{
		Name: "chandler", Logger: &silent,
		Backoff: &wait.Backoff{Duration: firstPause, Cap: lastPause, Steps: 50, Factor: 2, Jitter: 0.5},
	}).RunWithContext(ctx)
}

// list is a list of the API server's. Where the kind is not defined it tells so
// and waits until it is.
func (k *kind) list(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
	if options.ResourceVersion == "0" {
		options.ResourceVersion = "" // any state of the past will not do
	}
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		list, err := k.api.List(ctx, options)
		if !apierrors.IsNotFound(err) {
			k.access.listed(ctx, err)
			return list, err
		}
		if k.undefined(ctx) {
			_ = k.Replace(nil, "")
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-k.appeared:
		case <-time.After(pause):
		}
	}
}

func (k *kind) watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
	w, err := k.api.Watch(ctx, options)
	k.access.watched(ctx, err)
	return w, err
}

// Add implements cache.ReflectorStore.
func (k *kind) Add(o any) error { return k.Update(o) }

// Update implements cache.ReflectorStore.
func (k *kind) Update(o any) error {
	u, ok := o.(*unstructured.Unstructured)
	if !ok {
		return nil
	}
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	id := u.GetNamespace() + "/" + u.GetName()
	before := k.objects[id]
	if k.objects[id] = judge(k.name, u, before); k.objects[id] != before {
		k.s.changed()
	}
	return nil
}

// Delete implements cache.ReflectorStore.
func (k *kind) Delete(o any) error {
	if u, ok := o.(*unstructured.Unstructured); ok {
		k.s.mu.Lock()
		defer k.s.mu.Unlock()
		delete(k.objects, u.GetNamespace()+"/"+u.GetName())
		k.s.changed()
	}
	return nil
}

// Replace implements cache.ReflectorStore.
func (k *kind) Replace(list []any, _ string) error {
	k.s.mu.Lock()
	defer k.s.mu.Unlock()
	before := k.objects
	k.objects = make(map[string]*held, len(list))
	for _, o := range list {
		if u, ok := o.(*unstructured.Unstructured); ok {
			id := u.GetNamespace() + "/" + u.GetName()
			k.objects[id] = judge(k.name, u, before[id])
		}
	}
	if !k.listed || !maps.Equal(before, k.objects) {
		k.s.changed()
	}
	k.listed = true
	return nil
}

// Resync implements cache.ReflectorStore.
func (k *kind) Resync() error { return nil }

// judge reads an object. before is what it was, or nil, and is given back when
// nothing of it is different: of its status nothing is read but whether we wrote it.
func judge(kind string, u *unstructured.Unstructured, before *held) *held {
	key := chandler.Key{Kind: kind, Namespace: u.GetNamespace(), Name: u.GetName()}
	h := &held{object: source.Object{
		Key: key, UID: string(u.GetUID()), Generation: u.GetGeneration(), Created: u.GetCreationTimestamp().UTC(),
		Labels: u.GetLabels(), Annotations: u.GetAnnotations(),
	}}
	delete(h.object.Annotations, lastApplied)
	if len(h.object.Annotations) == 0 {
		h.object.Annotations = nil
	}
	if v, ok := h.object.Labels[revisionLabel]; ok {
		h.revision = &v
	}
	_, h.ours, _ = unstructured.NestedMap(u.Object, "status", "chandler")
	text, problem := plainText(u.Object, &h.object)
	if problem != nil {
		h.object.Problems = []chandler.Problem{*problem}
		text = nil
	}
	if text != nil {
		h.read(text)
	}
	if before != nil && before.object.UID == h.object.UID {
		if p := before.object.Plugin; h.object.Plugin == nil && p != nil {
			h.object.Plugin = p // the last valid one
		}
		h.ours = h.ours || before.ours
		if reflect.DeepEqual(before, h) {
			return before
		}
	}
	return h
}

// read decodes the text of an object.
func (h *held) read(text []byte) {
	o := &h.object
	for _, d := range source.Decode(text, o.Namespace) {
		o.Problems = append(o.Problems, d.Problems...)
		o.Warnings = append(o.Warnings, d.Warnings...)
		if d.Plugin != nil && d.Key == o.Key {
			own := *d.Plugin
			own.UID, own.Created, own.Generation = o.UID, o.Created, o.Generation
			o.Plugin = &own
		}
	}
	if o.Plugin == nil && len(o.Problems) == 0 {
		o.Problems = []chandler.Problem{*chandler.Problemf(chandler.CodeSpecShape, "", "write it as a "+o.Kind, "it says nothing")}
	}
	if len(text) > maxShown {
		return
	}
	if manifest, err := yaml.JSONToYAML(text); err == nil {
		o.Manifest = manifest
	}
}

// plainText is an object as a person would write it: without status, and of its
// metadata only what was asked for.
func plainText(all map[string]any, o *source.Object) ([]byte, *chandler.Problem) {
	metadata := map[string]any{"name": o.Name, "namespace": o.Namespace}
	if len(o.Labels) > 0 {
		metadata["labels"] = o.Labels
	}
	if len(o.Annotations) > 0 {
		metadata["annotations"] = o.Annotations
	}
	plain := maps.Clone(all)
	delete(plain, "status")
	plain["metadata"] = metadata
	text, err := json.Marshal(plain)
	if err != nil {
		return nil, chandler.Problemf(chandler.CodeSpecParse, "", "write it anew", "it cannot be read")
	}
	return text, nil
}

// same tells whether two snapshots are the same. What is unchanged in an object is
// the very same memory, so that this is quick.
func same(a, b *source.Snapshot) bool {
	return slices.EqualFunc(a.Objects, b.Objects, func(a, b source.Object) bool {
		return a.Key == b.Key && a.UID == b.UID && a.Generation == b.Generation && reflect.DeepEqual(a, b)
	}) && reflect.DeepEqual(a.Secrets, b.Secrets)
}

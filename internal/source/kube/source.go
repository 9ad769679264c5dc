package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source"
)

// The resources of the two kinds of plugins.
var (
	wasmPlugins = schema.GroupVersionResource{Group: "extensions.istio.io", Version: "v1alpha1", Resource: "wasmplugins"}
	extensions  = schema.GroupVersionResource{Group: "extensions.istio.io", Version: "v1alpha1", Resource: "trafficextensions"}
)

// Source gives the plugins of a cluster: all WasmPlugins and TrafficExtensions
// that are ours (see owner), and the pull secrets that they name. It needs get,
// list and watch on both kinds; the right to read secrets is wanted in the namespaces
// of plugins that name one. A kind that the API server does not know has no objects
// until it does.
type Source struct {
	Client *Client
	// OwnUnlabelled takes plugins without a revision label even where Istio is
	// found, which then should not be looking after them.
	OwnUnlabelled bool
	// Log may be nil.
	Log *slog.Logger
}

var _ source.Source = (*Source)(nil)

// Run implements source.Source. While the API server is away the last snapshot
// stays.
func (s *Source) Run(ctx context.Context, deliver func(source.Snapshot)) error {
	log := s.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	g, ctx := errgroup.WithContext(ctx)
	wake := make(chan struct{}, 1)
	changed := func() {
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	r := &reader{
		Source: s, log: log, changed: changed,
		objects: map[chandler.Key]*source.Object{},
		secrets: &secretWatches{client: s.Client, changed: changed, watches: map[source.SecretName]*secretWatch{}},
	}
	for kind, resource := range map[string]schema.GroupVersionResource{
		chandler.KindWasmPlugin: wasmPlugins, chandler.KindTrafficExtension: extensions,
	} {
		m := &mirror{resource: s.Client.dynamic.Resource(resource), same: sameAsked, changed: changed}
		r.kinds = append(r.kinds, kindMirror{kind, m})
		g.Go(func() error { m.run(ctx); return nil })
	}
	g.Go(func() error {
		defer r.secrets.stop()
		return r.run(ctx, wake, deliver)
	})
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

type kindMirror struct {
	kind string
	*mirror
}

// reader turns what the mirrors show into snapshots. One goroutine runs it.
type reader struct {
	*Source
	log     *slog.Logger
	changed func()
	kinds   []kindMirror
	secrets *secretWatches

	owner     *owner // nil until it is known
	objects   map[chandler.Key]*source.Object
	delivered bool
	shown     map[chandler.Key]*source.Object // of the last snapshot
	given     map[source.SecretName]source.Secret
}

func (r *reader) run(ctx context.Context, wake <-chan struct{}, deliver func(source.Snapshot)) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-wake:
		case <-timer.C:
		}
		if !r.readable() {
			continue
		}
		if r.owner == nil {
			o, err := findOwner(ctx, r.Client, r.OwnUnlabelled)
			if err != nil {
				r.log.Warn("cannot find out whether Istio is here", "error", err)
				timer.Reset(time.Second)
				continue
			}
			r.log.Info("plugins without a revision label are " + o.why)
			r.owner = o
		}
		r.read()
		r.secrets.want(ctx, r.pullSecrets())
		snapshot, different, wait := r.snapshot(time.Now())
		if different {
			deliver(snapshot)
		}
		if wait > 0 {
			timer.Reset(wait)
		}
	}
}

// readable tells whether every kind was listed, or is not known to the API server.
func (r *reader) readable() bool {
	for _, k := range r.kinds {
		if synced, err := k.state(); !synced && !apierrors.IsNotFound(err) {
			return false
		}
	}
	return true
}

// read takes in what changed.
func (r *reader) read() {
	for _, k := range r.kinds {
		for name, u := range k.take() {
			key := chandler.Key{Kind: k.kind, Namespace: name.Namespace, Name: name.Name}
			if u == nil || !r.owner.owns(u) {
				delete(r.objects, key)
				continue
			}
			r.objects[key] = judged(key, u, r.objects[key])
		}
	}
}

// pullSecrets gives the names of all secrets that plugins name.
func (r *reader) pullSecrets() map[source.SecretName]bool {
	names := map[source.SecretName]bool{}
	for _, o := range r.objects {
		if name, ok := pullSecret(o); ok {
			names[name] = true
		}
	}
	return names
}

func pullSecret(o *source.Object) (source.SecretName, bool) {
	if o.Plugin == nil || o.Plugin.Wasm == nil || o.Plugin.Wasm.PullSecret == "" {
		return source.SecretName{}, false
	}
	return source.SecretName{Namespace: o.Namespace, Name: o.Plugin.Wasm.PullSecret}, true
}

// snapshot gives all that there is, and whether it differs from the last one. An
// object whose secret has not been read yet is shown as it was, or not at all,
// for a moment: so that nobody is told of a secret missing that is there. wait, unless
// zero, is when to look again.
func (r *reader) snapshot(now time.Time) (s source.Snapshot, different bool, wait time.Duration) {
	shown := make(map[chandler.Key]*source.Object, len(r.objects))
	s.Secrets = map[source.SecretName]source.Secret{}
	for key, o := range r.objects {
		if name, ok := pullSecret(o); ok {
			secret, found, pending := r.secrets.read(name, now)
			if pending > 0 {
				wait = max(wait, pending)
				if before := r.shown[key]; before != nil && before.UID == o.UID {
					shown[key] = before
				}
				continue
			}
			if found {
				s.Secrets[name] = secret
			}
		}
		shown[key] = o
	}
	different = !r.delivered || !maps.Equal(shown, r.shown) || !maps.EqualFunc(s.Secrets, r.given, sameSecret)
	if !different {
		return s, false, wait
	}
	for _, key := range slices.SortedFunc(maps.Keys(shown), chandler.Key.Compare) {
		s.Objects = append(s.Objects, *shown[key])
	}
	r.delivered, r.shown, r.given = true, shown, s.Secrets
	return s, true, wait
}

// sameAsked tells whether two states of an object ask for the same. Writing
// status changes nothing here.
func sameAsked(a, b *unstructured.Unstructured) bool {
	return a.GetUID() == b.GetUID() && a.GetGeneration() == b.GetGeneration() &&
		maps.Equal(a.GetLabels(), b.GetLabels()) && maps.Equal(a.GetAnnotations(), b.GetAnnotations())
}

// judged reads what the API server holds by the rules that hold everywhere:
// it may have let in what our own schema would not. before is the object as it was
// or nil; its valid plugin stays while the newest text is none.
func judged(key chandler.Key, u *unstructured.Unstructured, before *source.Object) *source.Object {
	o := &source.Object{
		Key: key, UID: string(u.GetUID()), Generation: u.GetGeneration(), Created: u.GetCreationTimestamp().Time,
		Labels: u.GetLabels(), Annotations: u.GetAnnotations(),
	}
	d, text, err := decode(u)
	if err != nil {
		o.Problems = []chandler.Problem{*chandler.Problemf(chandler.CodeSpecParse, "", "write it anew", "the object cannot be read: %s", chandler.Printable(err.Error(), 200))}
	} else {
		o.Problems, o.Warnings, o.Manifest, o.Plugin = d.Problems, d.Warnings, text, d.Plugin
	}
	if p := o.Plugin; p != nil {
		p.UID, p.Generation, p.Created = o.UID, o.Generation, o.Created
	} else if before != nil && before.UID == o.UID {
		o.Plugin = before.Plugin
	}
	return o
}

// decode reads an object as if it had been written here, without what the API
// server and ourselves add.
func decode(u *unstructured.Unstructured) (source.Document, []byte, error) {
	asked := maps.Clone(u.Object)
	delete(asked, "status")
	if m, ok := asked["metadata"].(map[string]any); ok {
		m = maps.Clone(m)
		for _, field := range []string{"managedFields", "resourceVersion", "selfLink"} {
			delete(m, field)
		}
		if a, ok := m["annotations"].(map[string]any); ok {
			a = maps.Clone(a)
			delete(a, "kubectl.kubernetes.io/last-applied-configuration") // the same once more
			m["annotations"] = a
		}
		asked["metadata"] = m
	}
	text, err := json.Marshal(asked)
	if err != nil {
		return source.Document{}, nil, err
	}
	docs := source.Decode(text, u.GetNamespace())
	if len(docs) != 1 {
		return source.Document{}, nil, fmt.Errorf("%d documents in one object", len(docs))
	}
	if shown, err := yaml.JSONToYAML(text); err == nil {
		text = shown
	}
	return docs[0], text, nil
}

// revisionLabel says whose a resource is. Istio knows it too: istiod passes by
// what is of another revision than its own.
const (
	revisionLabel = "istio.io/rev"
	revision      = "chandler"
)

// owner decides which plugins are ours where somebody else may look after others.
type owner struct {
	unlabelled bool
	why        string
}

func (o *owner) owns(u *unstructured.Unstructured) bool {
	rev, labelled := u.GetLabels()[revisionLabel]
	return rev == revision || !labelled && o.unlabelled
}

var (
	definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
	configMaps  = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
)

// istiodSign is what istiod puts into every namespace it looks after.
var istiodSign = types.NamespacedName{Namespace: "istio-system", Name: "istio-ca-root-cert"}

// findOwner finds out whether Istio is here: by a definition of a kind that is
// not ours, or by istiod's own traces. Where it may not look it supposes so: what is
// left alone does no harm. It needs get on the two definitions and on that
// ConfigMap.
func findOwner(ctx context.Context, c *Client, ownUnlabelled bool) (*owner, error) {
	if ownUnlabelled {
		return &owner{true, "ours, as we were told"}, nil
	}
	for _, r := range []schema.GroupVersionResource{wasmPlugins, extensions} {
		name := r.Resource + "." + r.Group
		u, err := c.dynamic.Resource(definitions).Get(ctx, name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
		case apierrors.IsForbidden(err):
			return &owner{false, "left alone: we may not see who defined " + name}, nil
		case err != nil:
			return nil, err
		case u.GetLabels()["app.kubernetes.io/part-of"] != "chandler":
			return &owner{false, "left alone: " + name + " is not chandler's definition, so that Istio may look after them"}, nil
		}
	}
	_, err := c.dynamic.Resource(configMaps).Namespace(istiodSign.Namespace).Get(ctx, istiodSign.Name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return &owner{true, "ours: there is no Istio here"}, nil
	case apierrors.IsForbidden(err):
		return &owner{false, "left alone: we may not see whether istiod is here"}, nil
	case err != nil:
		return nil, err
	}
	return &owner{false, "left alone: istiod is here"}, nil
}

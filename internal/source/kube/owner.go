package kube

import (
	"context"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Two control planes may read the same kinds: ours, and Istio's own. Istio leaves
// resources of another revision alone, so a resource that says revisionLabel:
// ownRevision is surely ours, and one that says another revision surely is not.
// One that says none is ours where Istio is not; and one that was ours stays so when
// Istio comes: nothing is taken off proxies because something else was installed. That
// it was ours is remembered as long as it is there, and over restarts shown by our
// part of its status.
const (
	revisionLabel = "istio.io/rev"
	ownRevision   = "chandler"
	// Our own definitions of the kinds bear partOfLabel: partOf; others are Istio's.
	partOfLabel = "app.kubernetes.io/part-of"
	partOf      = "chandler"
	// istiod puts a ConfigMap istiodSign into every namespace it looks after, its
	// own among them.
	istiodNamespace = "istio-system"
	istiodSign      = "istio-ca-root-cert"
)

var definitionResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// sign is something by which Istio is known.
type sign int

const (
	signUnknown sign = iota // not looked yet
	signAbsent
	signSeen
)

// owned tells whether an object is ours, and remembers it.
func (k *kind) owned(h *held) bool {
	if h.revision != nil {
		return *h.revision == ownRevision
	}
	h.ours = h.ours || k.s.cfg.OwnUnlabelled || k.defined == signAbsent && k.s.istiod == signAbsent
	return h.ours
}

// known tells whether all of the kind has been read, and which of it is ours.
func (k *kind) known() bool {
	return k.listed && (k.s.cfg.OwnUnlabelled || k.defined != signUnknown && k.s.istiod != signUnknown)
}

func (k *kind) definition() string { return k.resource.Resource + "." + k.resource.Group }

// followDefinition keeps up with who has defined the kind, and with its coming.
func (k *kind) followDefinition(ctx context.Context) {
	keepUp(ctx, k.s.cfg.Client.dynamic.Resource(definitionResource), k.definition(), &outage{log: k.s.log, what: k.definition()}, func(crd *unstructured.Unstructured, err error) {
		if crd != nil {
			select {
			case k.appeared <- struct{}{}:
			default:
			}
		}
		k.s.found(&k.defined, k.definition(), crd != nil && !oursDefined(crd.GetLabels()), err)
	})
}

// oursDefined tells whether a definition is ours by its labels. Istio's, applied over
// ours, leaves our label and brings its own.
func oursDefined(labels map[string]string) bool {
	return labels[partOfLabel] == partOf && labels["release"] != "istio"
}

// followIstiod keeps up with whether istiod is here.
func (s *reader) followIstiod(ctx context.Context) {
	api := s.cfg.Client.dynamic.Resource(schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}).Namespace(istiodNamespace)
	keepUp(ctx, api, istiodSign, &outage{log: s.log, what: "configmap " + istiodNamespace + "/" + istiodSign}, func(o *unstructured.Unstructured, err error) {
		s.found(&s.istiod, "configmap "+istiodNamespace+"/"+istiodSign, o != nil, err)
	})
}

// found takes note of a sign of Istio's. Who may not look supposes that it is there,
// since what is left alone does no harm; and who cannot look now goes on with what
// was seen before.
func (s *reader) found(at *sign, what string, seen bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil && (*at != signUnknown || !apierrors.IsForbidden(err)) {
		return
	}
	next := signAbsent
	if seen || err != nil {
		next = signSeen
	}
	if *at == next {
		return
	}
	switch {
	case s.cfg.OwnUnlabelled:
	case err != nil:
		s.log.Warn("it may not be seen whether Istio is here; new plugins without the label "+revisionLabel+" are left alone (--own-unlabelled takes them)", "by", what, "error", err)
	case seen:
		s.log.Warn("Istio is here; new plugins without the label "+revisionLabel+" are left alone (--own-unlabelled takes them), and those that were ours stay: give them the label", "by", what)
	case *at == signSeen:
		s.log.Warn("Istio is no longer seen here", "by", what)
	}
	*at = next
	s.changed()
}

// undefined tells whether the API server does not know the kind in our version,
// after it had no answer for it. It is not trusted with less than the definition's
// absence, since nothing is ever to be taken out of force by a server that is
// just starting.
func (k *kind) undefined(ctx context.Context) bool {
	crd, err := k.s.cfg.Client.dynamic.Resource(definitionResource).Get(ctx, k.definition(), metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return true
	case apierrors.IsForbidden(err):
		k.s.mu.Lock()
		defer k.s.mu.Unlock()
		return len(k.objects) == 0
	case err != nil:
		k.access.listed(ctx, err)
		return false
	}
	versions, _, _ := unstructured.NestedSlice(crd.Object, "spec", "versions")
	for _, v := range versions {
		if v, ok := v.(map[string]any); ok && v["name"] == kindVersion && v["served"] == true {
			return false // it will be there in a moment
		}
	}
	return true
}

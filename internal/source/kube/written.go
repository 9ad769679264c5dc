package kube

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

// maxWritten bounds a manifest that Written gives, in bytes.
const maxWritten = 16 << 20

// KindEnvoyFilter is Istio's; its objects can be read, and nothing else.
const KindEnvoyFilter = "EnvoyFilter"

// Written reads objects of these kinds from a namespace, or from all when it is
// empty: a manifest of what people wrote, by kind, namespace and name, without those
// that are labelled ours. undefined are the kinds that the cluster does not know.
// Errors are those of the API server, and that it is more than can be read at once.
func (c *Client) Written(ctx context.Context, namespace string, kinds ...string) (manifest []byte, undefined []string, err error) {
	var out bytes.Buffer
	options := metav1.ListOptions{LabelSelector: revisionLabel + "!=" + ownRevision}
	for _, kind := range kinds {
		resource, ok := resources[kind]
		if !ok {
			resource = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1alpha3", Resource: strings.ToLower(kind) + "s"}
		}
		var objects []*unstructured.Unstructured
		err := c.each(ctx, resource, namespace, options, func(o *unstructured.Unstructured) { objects = append(objects, o) })
		switch {
		case apierrors.IsNotFound(err):
			undefined = append(undefined, kind)
		case err != nil:
			return nil, nil, fmt.Errorf("list %s: %w", resource.Resource, err)
		}
		slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int { // names come sorted
			return strings.Compare(a.GetNamespace(), b.GetNamespace())
		})
		for _, o := range objects {
			text, err := yaml.Marshal(asWritten(o).Object)
			if err != nil {
				return nil, nil, fmt.Errorf("%s %s/%s: %w", kind, o.GetNamespace(), o.GetName(), err)
			}
			out.WriteString("---\n")
			out.Write(text)
			if out.Len() > maxWritten {
				return nil, nil, fmt.Errorf("more than %d bytes of %s; read one namespace at a time (-n)", maxWritten, resource.Resource)
			}
		}
	}
	return out.Bytes(), undefined, nil
}

// asWritten leaves out what the API server and kubectl added, but for the time of
// creation: it tells which of two EnvoyFilters comes first.
func asWritten(o *unstructured.Unstructured) *unstructured.Unstructured {
	o = o.DeepCopy()
	delete(o.Object, "status")
	for _, field := range []string{"managedFields", "resourceVersion", "uid", "generation", "selfLink"} {
		unstructured.RemoveNestedField(o.Object, "metadata", field)
	}
	annotations := o.GetAnnotations()
	delete(annotations, lastApplied)
	if len(annotations) == 0 {
		annotations = nil
	}
	o.SetAnnotations(annotations)
	return o
}

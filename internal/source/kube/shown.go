package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
)

// pageSize is how many objects are asked for at once.
const pageSize = 500

// Query chooses plugins; what is empty chooses all.
type Query struct {
	Kind, Namespace, Name string
	Labels                map[string]string
}

// Shown reads plugins as the API server shows them to anybody who may get them:
// judged here as a control plane judges them, with the status that one has written
// to them. Those of another revision than ours are left out. It is what people
// look at; a control plane itself reads no status.
//
// A kind that is not defined has no objects; when no kind asked for is defined that
// is an error, as are those of the API server.
func (c *Client) Shown(ctx context.Context, q Query) ([]control.ObjectView, error) {
	var views []control.ObjectView
	undefined := 0
	asked := slices.Sorted(maps.Keys(resources))
	if q.Kind != "" {
		asked = []string{q.Kind}
	}
	options := metav1.ListOptions{LabelSelector: labels.SelectorFromSet(q.Labels).String()}
	if q.Name != "" {
		options.FieldSelector = fields.OneTermEqualSelector("metadata.name", q.Name).String()
	}
	for _, kind := range asked {
		err := c.each(ctx, resources[kind], q.Namespace, options, func(o *unstructured.Unstructured) {
			if revision, ok := o.GetLabels()[revisionLabel]; !ok || revision == ownRevision {
				views = append(views, shown(kind, o))
			}
		})
		switch {
		case apierrors.IsNotFound(err):
			undefined++
		case err != nil:
			return nil, fmt.Errorf("list %s: %w", resources[kind].Resource, err)
		}
	}
	if undefined == len(asked) {
		return nil, errors.New(`the cluster does not define the resources; "chandler install" prints what does, and runs the control plane`)
	}
	slices.SortFunc(views, func(a, b control.ObjectView) int { return a.Key.Compare(b.Key) })
	return views, nil
}

// each gives the chosen objects of a kind, page by page.
func (c *Client) each(ctx context.Context, resource schema.GroupVersionResource, namespace string, options metav1.ListOptions, give func(*unstructured.Unstructured)) error {
	options.Limit = pageSize
	for {
		page, err := c.dynamic.Resource(resource).Namespace(namespace).List(ctx, options)
		if err != nil {
			return err
		}
		for i := range page.Items {
			give(&page.Items[i])
		}
		if options.Continue = page.GetContinue(); options.Continue == "" {
			return nil
		}
	}
}

// shown is one object with what its status tells.
func shown(kind string, o *unstructured.Unstructured) control.ObjectView {
	f := readStatusFields(o)
	v := control.ObjectView{Object: judge(kind, o, nil).object, Status: f.told()}
	v.Origin = "kubernetes"
	v.Status.Problems, v.Status.Warnings = v.Problems, v.Warnings
	return v
}

// told is what fields say; newStatusFields the other way round, as far as they
// say it.
func (f *statusFields) told() chandler.Status {
	s := chandler.Status{ObservedGeneration: f.ObservedGeneration}
	for _, c := range f.Conditions {
		s.Conditions = append(s.Conditions, chandler.Condition{
			Type: c.Type, Status: c.Status, Reason: c.Reason, Message: c.Message,
			ObservedGeneration: c.ObservedGeneration, LastTransition: unstamp(c.LastTransitionTime),
		})
	}
	d := f.Chandler
	if d == nil {
		return s
	}
	s.Desired, s.InForce, s.Failed = d.Proxies.Desired, d.Proxies.InForce, d.Proxies.FailedOn
	s.Rollout = d.Rollout.told()
	if d.ResolvedAt != "" {
		s.Release = &chandler.Release{
			Reference: d.Reference, Artifact: d.ArtifactDigest, Blob: d.BlobDigest, ABI: d.ABI, ResolvedAt: unstamp(d.ResolvedAt),
		}
		if d.ModuleDigest != "" {
			s.Release.Program.Module = &chandler.Module{Digest: d.ModuleDigest, Size: d.Size}
		}
		if d.SchemaDigest != "" {
			s.Release.Schema = &chandler.ConfigSchema{Digest: d.SchemaDigest}
		}
	}
	for _, p := range d.Failures {
		namespace, node, _ := strings.Cut(p.Node, "/")
		s.Proxies = append(s.Proxies, chandler.ProxyStatus{Node: node, Namespace: namespace, Connected: true, AttachmentState: chandler.AttachmentState{
			State: p.State, InForce: p.InForce, Reason: p.Reason, Message: p.Message,
		}})
	}
	return s
}

// told is newRolloutJSON the other way round. How many steps and orders there are is all
// that it says of them.
func (j *rolloutJSON) told() *chandler.Rollout {
	if j == nil {
		return nil
	}
	r := &chandler.Rollout{State: j.State, Pinned: j.Pinned, Disabled: make([]chandler.Disablement, min(max(j.Disabled, 0), maxTold))}
	var step, steps int
	if n, _ := fmt.Sscanf(j.Step, "%d/%d", &step, &steps); n == 2 && 0 < step && step <= steps && steps <= maxTold {
		r.Plan, r.Step = &chandler.RolloutPlan{Steps: make([]chandler.RolloutStep, steps)}, step-1
	}
	return r
}

// maxTold bounds what anybody who may write a status can have made of a number in it.
const maxTold = 1000

func unstamp(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		return time.Time{}
	}
	return t
}

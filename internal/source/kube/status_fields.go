package kube

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"chandler.dev/chandler"
)

// statusFields are those of a resource's status that are ours. They are compared
// as a whole; what others wrote beside them is not ours to see.
type statusFields struct {
	ObservedGeneration int64           `json:"observedGeneration"`
	Conditions         []conditionJSON `json:"conditions"`
	Chandler           *details        `json:"chandler,omitempty"`
}

type conditionJSON struct {
	Type               chandler.ConditionType   `json:"type"`
	Status             chandler.ConditionStatus `json:"status"`
	Reason             chandler.Code            `json:"reason"`
	Message            string                   `json:"message"`
	ObservedGeneration int64                    `json:"observedGeneration,omitempty"`
	LastTransitionTime string                   `json:"lastTransitionTime"`
}

// details are what conditions cannot say.
type details struct {
	Ready          string                  `json:"ready"`
	Reference      string                  `json:"reference,omitempty"`
	ArtifactDigest chandler.ArtifactDigest `json:"artifactDigest,omitempty"`
	BlobDigest     chandler.BlobDigest     `json:"blobDigest,omitempty"`
	ModuleDigest   chandler.ModuleDigest   `json:"moduleDigest,omitempty"`
	SchemaDigest   chandler.SchemaDigest   `json:"schemaDigest,omitempty"`
	Size           int64                   `json:"size,omitempty"`
	ABI            string                  `json:"abi,omitempty"`
	ResolvedAt     string                  `json:"resolvedAt,omitempty"`
	Proxies        proxyCounts             `json:"proxies"`
	Failures       []failure               `json:"failures,omitempty"`
	Rollout        *rolloutJSON            `json:"rollout,omitempty"`
}

// rolloutJSON is where a rollout is.
type rolloutJSON struct {
	State    chandler.RolloutState `json:"state"`
	Step     string                `json:"step,omitempty"` // as in 1/3
	Pinned   bool                  `json:"pinned,omitempty"`
	Disabled int                   `json:"disabled,omitempty"` // orders that take the plugin out
}

func newRolloutJSON(r *chandler.Rollout) *rolloutJSON {
	if r == nil {
		return nil
	}
	j := &rolloutJSON{State: r.State, Pinned: r.Pinned, Disabled: len(r.Disabled)}
	if r.Plan != nil && r.Step < len(r.Plan.Steps) {
		j.Step = fmt.Sprintf("%d/%d", r.Step+1, len(r.Plan.Steps))
	}
	return j
}

type proxyCounts struct {
	Desired  int `json:"desired"`
	InForce  int `json:"inForce"`
	FailedOn int `json:"failed"`
}

// failure is one proxy on which a plugin fails. InForce is the release that
// decides requests there all the same.
type failure struct {
	Node    string             `json:"node"`
	State   chandler.State     `json:"state,omitempty"`
	InForce chandler.ReleaseID `json:"inForce,omitempty"`
	Reason  chandler.Code      `json:"reason,omitempty"`
	Message string             `json:"message,omitempty"`
}

// maxFailureMessage bounds what a status tells of one proxy, in bytes.
const maxFailureMessage = 256

// newStatusFields says in the resource's own words what is true of it.
func newStatusFields(s *chandler.Status) statusFields {
	f := statusFields{ObservedGeneration: s.ObservedGeneration, Chandler: &details{
		Ready:   fmt.Sprintf("%d/%d", s.InForce, s.Desired),
		Proxies: proxyCounts{s.Desired, s.InForce, s.Failed},
		Rollout: newRolloutJSON(s.Rollout),
	}}
	for _, c := range s.Conditions {
		f.Conditions = append(f.Conditions, conditionJSON{
			Type: c.Type, Status: c.Status, Reason: c.Reason, Message: c.Message,
			ObservedGeneration: c.ObservedGeneration, LastTransitionTime: stamp(c.LastTransition),
		})
	}
	d := f.Chandler
	if r := s.Release; r != nil {
		d.Reference, d.ABI, d.ResolvedAt = r.ShownReference(), r.ABI, stamp(r.ResolvedAt)
		d.ArtifactDigest, d.BlobDigest = r.Artifact, r.Blob
		if m := r.Program.Module; m != nil {
			d.ModuleDigest, d.Size = m.Digest, m.Size
		}
		if r.Schema != nil {
			d.SchemaDigest = r.Schema.Digest
		}
	}
	for i := range s.Proxies {
		if p := &s.Proxies[i]; p.Connected && p.State.Failing() && len(d.Failures) < chandler.MaxFailures {
			d.Failures = append(d.Failures, failure{
				p.Namespace + "/" + p.Node, p.AttachmentState.State, p.InForce, p.Reason, chandler.Printable(p.Message, maxFailureMessage),
			})
		}
	}
	return f
}

// lacks are fields of ours that the definition of a kind has no place for, where
// it is somebody else's: a write that holds them is refused.
type lacks struct{ details, failureStates, generations bool }

// refused tells what else is lacking, by the API server's answer; the same when it
// was refused for another reason.
func (l lacks) refused(err error) lacks {
	for field := range strings.Lines(err.Error()) {
		if !strings.Contains(field, "field not declared in schema") {
			continue
		}
		switch {
		case strings.Contains(field, ".status.chandler.failures["): // of an older definition of ours
			l.failureStates = true
		case strings.Contains(field, ".status.chandler"):
			l.details = true
		case strings.Contains(field, ".status.conditions[") && strings.Contains(field, ".observedGeneration:"):
			l.generations = true
		}
	}
	return l
}

// without leaves out what is lacking.
func (f statusFields) without(l lacks) statusFields {
	if l.details {
		f.Chandler = nil
	}
	if l.failureStates && f.Chandler != nil {
		own := *f.Chandler
		own.Failures = slices.Clone(own.Failures)
		for i := range own.Failures {
			own.Failures[i].State, own.Failures[i].InForce = "", ""
		}
		f.Chandler = &own
	}
	if l.generations {
		f.Conditions = slices.Clone(f.Conditions)
		for i := range f.Conditions {
			f.Conditions[i].ObservedGeneration = 0
		}
	}
	return f
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// readStatusFields reads what a resource shows of our fields. What it does not show,
// or shows otherwise than we write it, is taken for absent.
func readStatusFields(o *unstructured.Unstructured) statusFields {
	var f statusFields
	b, err := json.Marshal(o.Object["status"])
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		return statusFields{}
	}
	return f
}

func (f *statusFields) condition(t chandler.ConditionType) conditionJSON {
	for _, c := range f.Conditions {
		if c.Type == t {
			return c
		}
	}
	return conditionJSON{}
}

// onItsWay tells whether the control plane or proxies are at work, so that
// something else will be true soon.
func (f *statusFields) onItsWay() bool {
	resolved, programmed := f.condition(chandler.ConditionResolvedRefs), f.condition(chandler.ConditionProgrammed)
	return resolved.Reason == chandler.CodeResolving || programmed.Reason == chandler.CodeProgressing || programmed.Reason == chandler.CodeRolloutProgressing
}

// since gives f with the times at which conditions turned, where shown knows them: a
// control plane that starts does not know how long something has been so.
func (f statusFields) since(shown *statusFields) statusFields {
	conditions := make([]conditionJSON, len(f.Conditions))
	for i, c := range f.Conditions {
		if s := shown.condition(c.Type); s.Status == c.Status && s.LastTransitionTime != "" {
			c.LastTransitionTime = s.LastTransitionTime
		}
		conditions[i] = c
	}
	f.Conditions = conditions
	return f
}

// text is what two statuses are compared by.
func (f statusFields) text() string {
	b, err := json.Marshal(f)
	if err != nil { // plain types only
		panic(fmt.Sprintf("kube: marshal status: %v", err))
	}
	return string(b)
}

// object is what is applied.
func (f statusFields) object(k chandler.Key, uid string) (*unstructured.Unstructured, error) {
	var status map[string]any
	if err := json.Unmarshal([]byte(f.text()), &status); err != nil {
		return nil, err
	}
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": pluginVersion, "kind": k.Kind,
		"metadata": map[string]any{"namespace": k.Namespace, "name": k.Name, "uid": uid},
		"status":   status,
	}}, nil
}

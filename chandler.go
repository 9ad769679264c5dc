// Package chandler holds the nouns of the project: what a plugin is, where its
// module comes from, what is sent to a proxy, what a proxy says back, and the
// closed list of things that can be wrong.
//
// The types are plain and the rules on them pure. Nothing here does input or
// output, reads a clock or writes a log, and only the standard library is
// imported, so that every other package may import this one.
package chandler

import (
	"cmp"
	"maps"
	"strings"
	"time"
)

// The two kinds of resource a plugin can be written as, of the API group
// extensions.istio.io/v1alpha1.
const (
	APIVersion           = "extensions.istio.io/v1alpha1"
	KindWasmPlugin       = "WasmPlugin"
	KindTrafficExtension = "TrafficExtension"
)

// Key names a plugin. Two resources of different kinds may share a name.
type Key struct {
	Kind, Namespace, Name string
}

// String gives "kind/namespace/name"; it is the plugin's name on the agents'
// xDS stream and its vm_id in Envoy.
func (k Key) String() string { return k.Kind + "/" + k.Namespace + "/" + k.Name }

// ParseKey reads what String wrote.
func ParseKey(s string) (Key, bool) {
	parts := strings.Split(s, "/")
	if len(parts) != 3 || parts[0] == "" || parts[1] == "" || parts[2] == "" {
		return Key{}, false
	}
	return Key{Kind: parts[0], Namespace: parts[1], Name: parts[2]}, true
}

// Compare orders keys by namespace, name and kind: the order lists are shown in.
func (k Key) Compare(o Key) int {
	return cmp.Or(
		cmp.Compare(k.Namespace, o.Namespace),
		cmp.Compare(k.Name, o.Name),
		cmp.Compare(k.Kind, o.Kind),
	)
}

// Plugin is a resource after decoding and static checks: what its author asked
// for, with defaults filled in. Nothing behind the source knows which of the two
// kinds it was written as.
type Plugin struct {
	Key
	UID         string
	Generation  int64
	Created     time.Time
	Labels      map[string]string
	Annotations map[string]string

	// Selector and TargetRefs exclude each other; with neither, every proxy in
	// scope is selected.
	Selector   map[string]string
	TargetRefs []TargetRef

	Phase    Phase
	Priority *int32
	// Match entries are alternatives; none matches all traffic.
	Match []Match
	Type  FilterType

	// Exactly one of Wasm and Lua is set.
	Wasm *Wasm
	Lua  *Lua

	// FirstAttach says what happens between attach and readiness on a serving
	// proxy (annotation chandler.dev/first-attach).
	FirstAttach FirstAttach
	// Probes are requests whose answers decide whether a release is fit (annotation
	// chandler.dev/probe).
	Probes []Probe `json:",omitempty"`
	// Rollout says how a change of the plugin comes to its proxies (annotation
	// chandler.dev/rollout); nil: as the operator's file says, or to all at once.
	Rollout *RolloutPlan `json:",omitempty"`
}

// Probe is a request to a plugin that has just been loaded, and what is to come of
// it. Exactly one of Status and Allowed is set.
type Probe struct {
	Method, Path string
	// Headers are sent as they are, in the order of their names; ":authority" is one.
	Headers map[string]string `json:",omitempty"`
	// Status is that of the answer.
	Status int `json:",omitempty"`
	// Allowed tells whether the request reaches what stands behind the plugin.
	Allowed *bool `json:",omitempty"`
}

// Wasm is the part of a plugin that concerns a module.
type Wasm struct {
	URL       string
	Reference Reference
	// SHA256 is the pin of the sha256 field, bare hex or empty. It names the
	// manifest for OCI and the unpacked module for HTTP and file.
	SHA256 string
	// Locked is what a lock file says that the URL means, bare hex of what SHA256 would
	// name; empty where SHA256 or the URL has a digest, or no lock file knows the URL.
	Locked string `json:",omitempty"`
	// Held: a lock file may say it and cannot be read, so nobody is to be asked.
	Held            bool `json:",omitempty"`
	PullPolicy      PullPolicy
	PullSecret      string
	VerificationKey string
	// Config is canonical JSON; nil means no configuration, which is not "{}".
	Config []byte
	// ConfigFrom are values of secrets that are merged over Config, in this order
	// (annotation chandler.dev/config-from).
	ConfigFrom   []SecretKey `json:",omitempty"`
	RootID       string
	FailStrategy FailStrategy
	Env          []EnvVar
}

// SecretKey names one value of a Secret in the plugin's own namespace.
type SecretKey struct {
	Name, Key string
}

// String gives "secret/NAME#KEY", as the annotation has it.
func (k SecretKey) String() string { return "secret/" + k.Name + "#" + k.Key }

// Lua is a filter given as source text, for HTTP only.
type Lua struct {
	InlineCode string
}

// EnvVar is one variable of a plugin's VM. With Host the value is copied from
// the agent's own environment and Value is empty.
type EnvVar struct {
	Name  string
	Value string `json:",omitempty"`
	Host  bool   `json:",omitempty"`
}

// TargetRef attaches a plugin by name instead of by labels.
type TargetRef struct {
	Group, Kind, Name string
}

// Match selects traffic of a proxy: mode AND ports.
type Match struct {
	Mode Mode `json:",omitempty"`
	// Ports empty means every port.
	Ports []uint32 `json:",omitempty"`
}

// Phase is the place in the filter chain. The zero value is UNSPECIFIED.
type Phase string

// The phases, in the order of the chain.
const (
	PhaseAuthn       Phase = "AUTHN"
	PhaseAuthz       Phase = "AUTHZ"
	PhaseStats       Phase = "STATS"
	PhaseUnspecified Phase = ""
)

// Phases lists all phases in the order in which they stand in a filter chain.
func Phases() []Phase { return []Phase{PhaseAuthn, PhaseAuthz, PhaseStats, PhaseUnspecified} }

// Mode is the direction of traffic. The zero value matches both.
type Mode string

// The modes of a match. A listener itself is ModeClient or ModeServer.
const (
	ModeAny    Mode = ""
	ModeClient Mode = "CLIENT"
	ModeServer Mode = "SERVER"
)

// FilterType is the family of filters a plugin belongs to.
type FilterType string

// The filter types; HTTP is the default of the resource.
const (
	HTTP    FilterType = "HTTP"
	Network FilterType = "NETWORK"
)

// FailStrategy says what a proxy does without a working plugin.
type FailStrategy string

// The fail strategies; FailClose is the default of the resource.
const (
	FailClose  FailStrategy = "FAIL_CLOSE"
	FailOpen   FailStrategy = "FAIL_OPEN"
	FailReload FailStrategy = "FAIL_RELOAD"
)

// PullPolicy says when a tag is resolved again.
type PullPolicy string

// The pull policies. PullDefault is PullAlways for the tag "latest" or no tag
// and PullIfNotPresent otherwise; see Wasm.EffectivePullPolicy.
const (
	PullDefault      PullPolicy = ""
	PullIfNotPresent PullPolicy = "IfNotPresent"
	PullAlways       PullPolicy = "Always"
)

// Pinned tells whether a digest says which bytes the URL means.
func (w *Wasm) Pinned() bool { return w.SHA256 != "" || w.Reference.Digest != "" || w.Locked != "" }

// EffectivePullPolicy resolves the default: a digest in the URL, the sha256 field or
// a lock file switches the policy off (IfNotPresent); no tag, or "latest", is Always.
func (w *Wasm) EffectivePullPolicy() PullPolicy {
	switch {
	case w.Pinned():
		return PullIfNotPresent
	case w.PullPolicy != PullDefault:
		return w.PullPolicy
	case w.Reference.Scheme == SchemeOCI && (w.Reference.Tag == "" || w.Reference.Tag == "latest"):
		return PullAlways
	}
	return PullIfNotPresent
}

// FirstAttach says what a serving proxy does from the attach of a plugin it
// never had until the plugin is ready. The zero value is hold.
type FirstAttach string

// The values of the annotation chandler.dev/first-attach.
const (
	FirstAttachHold FirstAttach = ""
	FirstAttachDeny FirstAttach = "deny"
)

// Annotations read by chandler.
const (
	// AnnotationFirstAttach says what a serving proxy does until a plugin that it never had
	// is ready: "hold" (the default) lets requests pass as before, "deny" refuses them.
	AnnotationFirstAttach = "chandler.dev/first-attach"
	// AnnotationConfigFrom names secrets of the plugin's namespace that are merged over
	// pluginConfig: "secret/NAME#KEY", or several with commas between.
	AnnotationConfigFrom = "chandler.dev/config-from"
	// AnnotationProbe has a request and what is to become of it, as JSON, or a list of up
	// to eight: a release that answers otherwise gets to no proxy.
	AnnotationProbe = "chandler.dev/probe"
)

// Node is a proxy as the control plane knows it.
type Node struct {
	Name      string
	Namespace string
	Labels    map[string]string
	// Found are labels that its own configuration has and that nobody claimed for it:
	// who decides who it is takes those that it may have (Take).
	Found map[string]string
	// AgentVersion, EnvoyVersion and Features are what the agent says of itself.
	AgentVersion string
	EnvoyVersion string
	Features     []string
}

// Take gives the node with those of its found labels that it may have, nil: all. What was
// claimed stays as it is.
func (n Node) Take(may func(key, value string) bool) Node {
	found := n.Found
	n.Found = nil
	if len(found) == 0 {
		return n
	}
	labels := maps.Clone(n.Labels)
	for key, value := range found {
		if _, claimed := labels[key]; claimed || may != nil && !may(key, value) {
			continue
		}
		if labels == nil {
			labels = map[string]string{}
		}
		labels[key] = value
	}
	n.Labels = labels
	return n
}

// ID is "namespace/name", unique in a fleet.
func (n Node) ID() string { return n.Namespace + "/" + n.Name }

// Compare orders nodes by namespace and name.
func (n Node) Compare(other Node) int {
	return cmp.Or(strings.Compare(n.Namespace, other.Namespace), strings.Compare(n.Name, other.Name))
}

// HasLabels tells whether all of want are among the labels that there are, with their
// values; none always are.
func HasLabels(labels, want map[string]string) bool {
	for k, v := range want {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// Features an agent may have, compared with Attachment.Requires.
const (
	FeatureHTTP    = "http"
	FeatureNetwork = "network"
	FeatureLua     = "lua"
	FeatureFile    = "file"
	// FeatureSecretConfig tells that of a plugin whose configuration is secret the
	// agent repeats no word.
	FeatureSecretConfig = "secret-config"
	// FeatureSlots tells that HTTP plugins come and go without a change of the
	// listeners, which would drain their connections; Envoys before 1.39 cannot.
	FeatureSlots = "slots"
)

// KnownFeature tells whether a feature is one of this version's, whoever has it.
func KnownFeature(name string) bool {
	switch name {
	case FeatureHTTP, FeatureNetwork, FeatureLua, FeatureFile, FeatureSecretConfig, FeatureSlots:
		return true
	}
	return false
}

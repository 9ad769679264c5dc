// Package policy holds the operator's rules on what plugins may do, and judges
// plugins and releases by them. It is pure: what it is told decides, and nothing
// else.
//
// It verifies no signatures and reads no files. Who may write a resource is not its
// matter either: of a resource it sees what is written, not by whom.
package policy

import (
	"slices"
	"time"

	"chandler.dev/chandler"
)

// Policy is what the operator allows: sections of the file of --config. The zero
// value allows all that the resources' own rules do.
//
// A section that is nil restricts nothing. One that is there allows what one of its
// rules allows, and nothing else: an empty list allows nothing. Limits and
// DenyFirstAttach add up instead, as each of their rules restricts.
type Policy struct {
	// Strict makes refusals of what is taken otherwise because Istio takes it: a url
	// without scheme, plain http, file urls, a pull secret that is of no use, very
	// many variables.
	Strict bool `yaml:"strict"`
	// OnViolation is what becomes of what is in force when it is found to be against
	// the policy.
	OnViolation Reaction `yaml:"onViolation"`
	// Registries are where modules may come from.
	Registries []Origin `yaml:"registries"`
	// Files are the folders of the proxies' machines that file urls may lead to.
	Files []Folder `yaml:"files"`
	// HostEnvironment are the variables of a proxy's own environment that plugins may
	// have copied (valueFrom: HOST).
	HostEnvironment []Environment `yaml:"hostEnvironment"`
	// Phases are those that plugins may stand in.
	Phases []PhaseRule `yaml:"phases"`
	// RootNamespace are the plugins that may stand in the root namespace.
	RootNamespace []RootRule `yaml:"rootNamespace"`
	// Limits bound modules; all that name a plugin hold.
	Limits []Limit `yaml:"limits"`
	// Capabilities are what of Envoy's functions plugins may call.
	Capabilities []CapabilityRule `yaml:"capabilities"`
	// DenyFirstAttach are the plugins for which requests are refused from the moment of
	// a first attach until they are ready, as if all had the annotation.
	DenyFirstAttach []DenyRule `yaml:"denyFirstAttach"`
	// Vet is what trials must have shown.
	Vet Vet `yaml:"vet"`
}

// Reaction is what becomes of what is in force and against the policy.
type Reaction string

// The reactions. Keep, the default, leaves traffic as it is: taking out a plugin
// that lets only known users pass would let everybody pass.
const (
	Keep   Reaction = "keep"
	Detach Reaction = "detach"
)

// Scope is whom a rule is about: namespaces by name, * inside for any characters; all
// when it is nil.
type Scope struct {
	// Namespaces are those that the rule is about, * inside for any characters; all without.
	Namespaces []string `yaml:"namespaces"`
}

func (s Scope) names(namespace string) bool {
	return s.Namespaces == nil || matches(s.Namespaces, namespace)
}

// Origin is where modules may come from.
type Origin struct {
	Scope `yaml:",inline"`
	// Repositories are registry/repository, or a url of http or https. * stands for
	// any characters of one part, ** for any number of parts.
	Repositories []string `yaml:"repositories"`
	// Require is what a reference must have besides: digest, signature or digestOrSignature.
	Require Requirement `yaml:"require"`
}

// Requirement is what a reference must have besides being allowed.
type Requirement string

// The requirements. A signature is one that a rule of the operator asks for.
const (
	RequireNothing   Requirement = ""
	RequireDigest    Requirement = "digest"
	RequireSignature Requirement = "signature"
	RequireEither    Requirement = "digestOrSignature"
)

// Folder is where modules may be on the proxies' machines.
type Folder struct {
	Scope `yaml:",inline"`
	// Roots are absolute paths; what is below them is allowed.
	Roots []string `yaml:"roots"`
}

// Environment allows variables by name, * inside for any characters.
type Environment struct {
	Scope `yaml:",inline"`
	// Names are the variables', * inside for any characters.
	Names []string `yaml:"names"`
}

// PhaseRule allows phases: AUTHN, AUTHZ, STATS, UNSPECIFIED.
type PhaseRule struct {
	Scope `yaml:",inline"`
	// Allow has AUTHN, AUTHZ, STATS, UNSPECIFIED.
	Allow []PhaseName `yaml:"allow"`
}

// PhaseName is a phase as the resources have it.
type PhaseName string

func (n PhaseName) phase() chandler.Phase {
	if n == "UNSPECIFIED" {
		return chandler.PhaseUnspecified
	}
	return chandler.Phase(n)
}

// RootRule allows plugins in the root namespace, by name.
type RootRule struct {
	// Plugins are named, * inside for any characters.
	Plugins []string `yaml:"plugins"`
	// Everywhere allows them to select every proxy there is: neither selector nor
	// targetRefs.
	Everywhere bool `yaml:"everywhere"`
}

// Limit bounds modules. All limits that name a plugin hold.
type Limit struct {
	Scope `yaml:",inline"`
	// Repositories narrow the limit; nil: modules from anywhere.
	Repositories []string `yaml:"repositories"`
	// ModuleSize is in bytes, or with KiB, MiB or GiB behind the number.
	ModuleSize Bytes `yaml:"moduleSize"`
	// LoadTime bounds the time that an Envoy is predicted to take for compilation.
	LoadTime time.Duration `yaml:"loadTime"`
}

// CapabilityRule allows what a plugin may call of Envoy's functions, by the names of
// the Proxy-Wasm specification, such as proxy_http_call; "wasi" is all of WASI.
type CapabilityRule struct {
	Scope `yaml:",inline"`
	// Plugins are named; nil: all.
	Plugins []string `yaml:"plugins"`
	// Allow is everything when it is nil, and nothing when it is empty.
	Allow []string `yaml:"allow"`
	// Deny takes away from what is allowed.
	Deny []string `yaml:"deny"`
}

// DenyRule names plugins by namespace and phase; all phases when nil.
type DenyRule struct {
	Scope `yaml:",inline"`
	// Phases are those that it is about; all without.
	Phases []PhaseName `yaml:"phases"`
}

// Vet is what trials must have shown.
type Vet struct {
	// RequireEnvoyVersions refuses a plugin that has not been tried in every version of
	// Envoy that the fleet has.
	RequireEnvoyVersions bool `yaml:"requireEnvoyVersions"`
}

// Ground is what a judgement rests on besides the plugin and the policy.
type Ground struct {
	// RootNamespace is empty when there is none.
	RootNamespace string
	// Insecure are registries that are spoken to in plain HTTP.
	Insecure []string
	// Signed tells whether a rule of the operator asks for a signature of what a
	// plugin refers to; nil: none does.
	Signed func(*chandler.Plugin) bool
}

// Terms are what a plugin that is allowed is held to.
type Terms struct {
	FirstAttach chandler.FirstAttach
	// Capabilities are the only functions that it may call and be called by; nil: all.
	Capabilities []string
}

// Terms gives those of a plugin.
func (p *Policy) Terms(of *chandler.Plugin) Terms {
	t := Terms{FirstAttach: of.FirstAttach}
	for _, r := range p.DenyFirstAttach {
		if r.names(of.Namespace) && (r.Phases == nil || allowsPhase(r.Phases, of.Phase)) {
			t.FirstAttach = chandler.FirstAttachDeny
		}
	}
	if of.Wasm != nil && p.Capabilities != nil {
		t.Capabilities = p.capabilities(of.Key)
	}
	return t
}

func allowsPhase(names []PhaseName, phase chandler.Phase) bool {
	return slices.ContainsFunc(names, func(n PhaseName) bool { return n.phase() == phase })
}

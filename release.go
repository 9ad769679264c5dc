package chandler

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// ReleaseID is the hash of a release's content: 64 hex digits.
type ReleaseID string

// Short gives the first twelve digits, for people.
func (id ReleaseID) Short() string { return string(id[:min(len(id), 12)]) }

// Release is the immutable record of what one generation of a plugin turned out
// to mean: the digests behind its reference, and how it runs. Restarts and
// restored resources find their digests in it.
type Release struct {
	// Format is 1. A reader leaves records of a format it does not know alone.
	Format int
	ID     ReleaseID

	Key
	UID        string
	Generation int64

	// Asked is what the resource asked for: its URL in canonical form and, behind
	// a space, the sha256 field. While it is the same, digests may be kept.
	Asked string `json:",omitempty"`
	// Reference is the URL as it was resolved; empty for Lua.
	Reference string         `json:",omitempty"`
	Artifact  ArtifactDigest `json:",omitempty"`
	Blob      BlobDigest     `json:",omitempty"`
	BlobSize  int64          `json:",omitempty"`
	// ABI is the Proxy-Wasm version the module exports, for instance "0.2.1".
	ABI string `json:",omitempty"`
	// CodeSize is how many bytes of the module have to be compiled; 0 when nobody
	// looked.
	CodeSize int64 `json:",omitempty"`

	Program Program
	// Behaviour has the configuration as the resource has it.
	Behaviour
	// ConfigFrom are the secrets' values that are merged over Config. They are in no
	// record: whoever makes an attachment of the release needs them as they were.
	ConfigFrom []SecretVersion `json:",omitempty"`
	// Schema is what the artifact carries to judge Config by, with the values of
	// ConfigFrom in it; nil: nothing.
	Schema *ConfigSchema `json:",omitempty"`
	// SecretConfig: a value in Config is write-only by Schema.
	SecretConfig bool `json:",omitempty"`
	// Capabilities are the only functions that the plugin may call and be called by,
	// by the names of the Proxy-Wasm specification; none means all.
	Capabilities []string `json:",omitempty"`

	ResolvedAt time.Time
	Verdicts   []Verdict `json:",omitempty"`
}

// ConfigSchema names the text of a JSON Schema for a plugin's configuration. The text
// itself is in the control plane's store.
type ConfigSchema struct {
	Digest SchemaDigest
	Size   int64
}

// SecretVersion is a secret's value as it was at one time. Version is another
// whenever the value is, and tells nothing of it.
type SecretVersion struct {
	SecretKey
	Version string
}

// The judges of releases.
const (
	JudgeStatic = "static" // the module's bytes, by Envoy's rules
	JudgeEnvoy  = "envoy"  // a real one, which started the plugin
	JudgeHost   = "host"   // the Proxy-Wasm host, which started it where no Envoy was at hand
	JudgePolicy = "policy" // the operator's rules, signatures included
	JudgeSchema = "schema" // the artifact's own, of the configuration
)

// Verdict is what one judge said of a release.
type Verdict struct {
	Judge        string
	EnvoyVersion string    `json:",omitempty"`
	PolicyHash   string    `json:",omitempty"`
	At           time.Time `json:",omitempty"`
	// Weak: the system did not shut the judge off as it could be.
	Weak bool `json:",omitempty"`
	// Probed: the plugin's probes were answered as they are to be.
	Probed bool `json:",omitempty"`
	// Unusable says why the judge is none: of JudgeSchema alone, and nothing follows.
	Unusable string `json:",omitempty"`
	// SignedBy names whose signatures counted, for people.
	SignedBy []string `json:",omitempty"`
}

// TriedIn gives the versions of the Envoys that took the release.
func (r *Release) TriedIn() []string {
	var versions []string
	for _, v := range r.Verdicts {
		if v.Judge == JudgeEnvoy {
			versions = append(versions, v.EnvoyVersion)
		}
	}
	return versions
}

// SchemaUnusable says why the schema of the release's artifact is of no use; empty when
// it is, or there is none.
func (r *Release) SchemaUnusable() string {
	for _, v := range r.Verdicts {
		if v.Judge == JudgeSchema {
			return v.Unusable
		}
	}
	return ""
}

// FitFor tells whether an Envoy of that version took the release. What no Envoy of
// the control plane's can judge, a file on the proxy's machine, is fit for any.
func (r *Release) FitFor(envoy string) bool {
	return r.Program.File != nil || slices.Contains(r.TriedIn(), envoy)
}

// WithID gives the release with its ID set: the hash of everything but the ID,
// when it was resolved, and what was found out of it by looking at it. So the same content resolved
// twice is one release.
func (r Release) WithID() Release {
	r.Format = 1
	content := r
	content.ID, content.ResolvedAt = "", time.Time{}
	content.Verdicts, content.CodeSize = nil, 0
	b, err := json.Marshal(content)
	if err != nil { // plain types only
		panic(fmt.Sprintf("chandler: marshal release: %v", err))
	}
	sum := sha256.Sum256(b)
	r.ID = ReleaseID(hex.EncodeToString(sum[:]))
	return r
}

// ShownReference is Reference without what may be secret in it: the values of a
// query.
func (r *Release) ShownReference() string {
	ref, p := ParseReference(r.Reference)
	if p != nil {
		return ""
	}
	return ref.Redacted()
}

package chandler

import (
	"cmp"
	"math"
	"time"
)

// Attachment is one plugin, in one release, as one proxy shall run it. It holds
// nothing of Envoy's own messages; the agent composes those.
type Attachment struct {
	Key
	UID        string
	Generation int64
	Release    ReleaseID
	// Sequence is the assignment sequence of the plugin's uid: it only grows, a
	// rollback is a new one, and of one control plane an agent never lets an older one
	// win.
	Sequence uint64

	Program Program
	Behaviour

	// SecretConfig: values of secrets are in Config, so nothing that the plugin says
	// is to be repeated.
	SecretConfig bool `json:",omitempty"`

	Created     time.Time
	FirstAttach FirstAttach
	Strict      bool
	// FetchDeadline bounds a first fetch before FailStrategy applies; zero: the
	// agent's default.
	FetchDeadline time.Duration
	Capabilities  []string
	// Standby are modules worth having on disk: the next step's, and the one to
	// go back to.
	Standby []Module
	// Requires names features an agent must have.
	Requires []string
	// InPart: more was said of it than this version understands.
	InPart bool `json:"-"`
}

// Behaviour is how a plugin runs and where it stands: all that decides requests
// beside the program itself. Releases hold it, attachments carry it.
type Behaviour struct {
	Type         FilterType
	Phase        Phase        `json:",omitempty"`
	Priority     *int32       `json:",omitempty"`
	Match        []Match      `json:",omitempty"`
	FailStrategy FailStrategy `json:",omitempty"`
	RootID       string       `json:",omitempty"`
	// Config is JSON text; nil means none, which is not the same as "{}".
	Config []byte   `json:",omitempty"`
	Env    []EnvVar `json:",omitempty"`
}

// Program is what an attachment runs; exactly one field is set.
type Program struct {
	Module *Module    `json:",omitempty"`
	File   *LocalFile `json:",omitempty"`
	Lua    *Lua       `json:",omitempty"`
	// Deny: the module cannot be had and the plugin asks for refusal meanwhile.
	Deny bool `json:",omitempty"`
}

// Module names the bytes of a module.
type Module struct {
	Digest ModuleDigest
	Size   int64
	// Origins are references by digest, without secrets, for agents that fetch
	// from where the module came from.
	Origins []string `json:",omitempty"`
}

// LocalFile is a module on the proxy's own machine: an absolute path and,
// unless empty, the digest its content must have.
type LocalFile struct {
	Path   string
	Digest ModuleDigest `json:",omitempty"`
}

// CompareOrder tells which of two attachments of one phase stands first in the
// chain: priority descending with none lowest, then creation time (to the
// second), name, namespace, and kind to make the order total.
func (a *Attachment) CompareOrder(b *Attachment) int {
	rank := func(p *int32) int64 {
		if p == nil {
			return math.MinInt64
		}
		return int64(*p)
	}
	return cmp.Or(
		cmp.Compare(rank(b.Priority), rank(a.Priority)),
		cmp.Compare(a.Created.Unix(), b.Created.Unix()),
		cmp.Compare(a.Name, b.Name),
		cmp.Compare(a.Namespace, b.Namespace),
		cmp.Compare(a.Kind, b.Kind),
	)
}

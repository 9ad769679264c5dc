package control

import (
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/assign"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/deltaserver"
)

// publication is the plugins' state at one moment, whole and immutable.
type publication struct {
	entries     []*entry // in the order of the snapshot
	byNamespace map[string][]*entry
}

// entry is one object with what became of it. It is immutable.
type entry struct {
	object   source.Object
	target   *chandler.Release
	attempts resolve.Attempts // of the object's valid generation
	against  []chandler.Problem
	denied   bool
	detached bool                   // it is for nobody
	met      *chandler.ConfigSchema // of the last try to resolve it; nil: none
	history  []*chandler.Release    // that are recorded, oldest first

	resource *deltaserver.Resource
	withheld *deltaserver.Resource // without a body: proxies keep what they have of it
	made     making
	modules  []chandler.ModuleDigest // what the resource names
}

// making is all that an attachment is made of and can change: while it is the
// same, so are the bytes.
type making struct {
	uid         string
	key         chandler.Key
	generation  int64 // of the plugin; a release that is there says the rest
	created     int64
	firstAttach chandler.FirstAttach
	release     chandler.ReleaseID
	standby     chandler.ModuleDigest
	sequence    uint64
	denied      bool
	withheld    bool
}

// course is where a plugin's rollout is.
type course struct {
	target   *chandler.Release // nil: none
	config   []byte            // with the secrets that the target's is from; nil: from none
	withheld bool              // they are not to be had
	sequence uint64
	standby  *chandler.Module // what an undo would need; nil: nothing else
	detached bool             // the release is taken out
}

// newEntry joins an object with its rollout. Without a release its resource has no
// body: proxies keep what they have of it, whatever became of the records here.
// before is its entry in the last publication, or nil: what was marshalled is used
// again where it can be. deadline is the same for all. Of a release whose
// configuration is not to be had whoever has it keeps it; a newcomer refuses instead,
// unless the plugin may be left out.
func newEntry(o source.Object, c course, rule ruling, a resolve.Attempts, deadline time.Duration, before *entry) (*entry, error) {
	target := c.target
	none := &deltaserver.Resource{Name: o.Key.String()}
	e := &entry{object: o, target: target, against: rule.against, detached: c.detached, resource: none, withheld: none}
	p := o.Plugin
	if p == nil {
		return e, nil
	}
	if a.UID == p.UID && a.Generation == p.Generation {
		e.attempts = a
	}
	e.denied = target == nil && rule.terms.FirstAttach == chandler.FirstAttachDeny && !rule.misplaced()
	if e.detached || target == nil && !e.denied {
		return e, nil
	}
	e.made = making{
		uid: p.UID, key: p.Key, generation: p.Generation, created: p.Created.UnixNano(),
		firstAttach: rule.terms.FirstAttach, sequence: c.sequence, denied: e.denied, withheld: c.withheld,
	}
	if target != nil {
		e.made.release, e.made.generation = target.ID, target.Generation
	}
	if c.standby != nil {
		e.made.standby = c.standby.Digest
	}
	if before != nil && before.made == e.made {
		e.resource, e.modules = before.resource, before.modules
		return e, nil
	}
	held := *p // to the operator's terms
	held.FirstAttach = rule.terms.FirstAttach
	candidate := assign.Candidate{
		Plugin: &held, Release: target, Sequence: c.sequence, Deny: e.denied, Config: c.config, Withheld: c.withheld, FetchDeadline: deadline,
	}
	if c.standby != nil {
		candidate.Standby = []chandler.Module{*c.standby}
	}
	att := assign.Attach(candidate)
	if !c.withheld || target.FailStrategy != chandler.FailOpen {
		body, version, err := wire.MarshalAttachment(&att)
		if err != nil {
			return e, err
		}
		e.resource = &deltaserver.Resource{Name: p.Key.String(), Version: version, Body: body, Newcomers: c.withheld}
	}
	if target != nil && target.Program.Module != nil {
		e.modules = append(e.modules, target.Program.Module.Digest)
	}
	for _, m := range att.Standby {
		e.modules = append(e.modules, m.Digest)
	}
	return e, nil
}

func newPublication(entries []*entry) *publication {
	p := &publication{entries: entries, byNamespace: map[string][]*entry{}}
	for _, e := range entries {
		p.byNamespace[e.object.Namespace] = append(p.byNamespace[e.object.Namespace], e)
	}
	return p
}

// of calls fn with every entry that is for a node, until it returns false. Of an
// object that was never valid nobody knows whom it is for.
func (p *publication) of(n chandler.Node, root string, fn func(*entry) bool) {
	namespaces := []string{root, n.Namespace}
	if root == n.Namespace {
		namespaces = namespaces[:1]
	}
	for _, ns := range namespaces {
		for _, e := range p.byNamespace[ns] {
			if e.detached {
				continue
			}
			if (e.object.Plugin == nil || assign.Selects(e.object.Plugin, n, root)) && !fn(e) {
				return
			}
		}
	}
}

// view is what a node shall have; false before the first snapshot.
func (c *Control) view(n chandler.Node) ([]*deltaserver.Resource, bool) {
	p := c.published.Load()
	if p == nil {
		return nil, false
	}
	withhold := c.withholds()
	var view []*deltaserver.Resource
	p.of(n, c.cfg.RootNamespace, func(e *entry) bool {
		if withhold && e.target != nil && !e.target.FitFor(n.EnvoyVersion) {
			view = append(view, e.withheld)
		} else {
			view = append(view, e.resource)
		}
		return true
	})
	return view, true
}

// withholds tells whether releases are kept from Envoys of versions in which nobody
// tried them.
func (c *Control) withholds() bool {
	return c.cfg.RequireEnvoyVersions != nil && c.cfg.RequireEnvoyVersions()
}

// Reconsider has what every agent is to have looked at again, for what the
// configuration says of it has changed.
func (c *Control) Reconsider() {
	c.fleet.touch()
	c.server.Refresh()
}

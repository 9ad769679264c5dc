package control

import (
	"slices"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/assign"
	"chandler.dev/chandler/internal/record"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/status"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/deltaserver"
)

// publication is the plugins' state at one moment, whole and immutable.
type publication struct {
	entries     []*entry // in the order of the snapshot
	ghosts      []*entry // of plugins that are gone, and still in force somewhere
	byNamespace map[string][]*entry
}

// entry is one object with what became of it. It is immutable.
type entry struct {
	object   source.Object
	course   course
	attempts resolve.Attempts // of the object's valid generation
	against  []chandler.Problem
	denied   bool
	kept     *chandler.RolloutPlan  // of a plugin that is gone; see plan
	meant    *chandler.Release      // by the resource; nil: not known
	met      *chandler.ConfigSchema // of the last try to resolve it; nil: none
	history  []*chandler.Release    // that are recorded, oldest first
	// incomplete are those of them that nobody can be given anew; see config.
	incomplete map[chandler.ReleaseID]bool
	gate       Gate                                  // it was made under; nil: none
	denials    map[chandler.ReleaseID]*record.Denial // of them, by the last judgements

	variant          // for whoever is chosen, or everyone
	others  *variant // for the rest; nil: nothing
}

// variant is a plugin as some of its proxies are to have it. It is immutable.
type variant struct {
	target   *chandler.Release
	whom     *chandler.Plugin // says who they are; nil: nobody knows
	nothing  bool             // they are to have nothing
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
	side                    // of whoever is chosen, or of everyone
	others  *side           // of the rest, where a rollout is under way
	rollout *record.Rollout // as it is recorded; without a uid: not at all
}

// side is what some of the proxies are to have.
type side struct {
	target   *chandler.Release // nil: none
	nothing  bool              // there is none, and none is to be
	denial   *record.Denial    // why it is taken out, and they have nothing; nil: it is not
	config   []byte            // with the secrets that the target's is from; nil: from none
	withheld bool              // they are not to be had
	sequence uint64
	scope    *record.Scope    // nil: whom the resource says
	standby  *chandler.Module // what a change to the other side would need; nil: nothing else
}

// newEntry joins an object with its rollout. before is its entry in the last
// publication, or nil: what was marshalled is used again where it can be. deadline is
// the same for all.
func newEntry(o source.Object, c course, rule ruling, a resolve.Attempts, deadline time.Duration, before *entry) (*entry, error) {
	e := &entry{object: o, course: c, against: rule.against}
	p := o.Plugin
	if p != nil && a.UID == p.UID && a.Generation == p.Generation {
		e.attempts = a
	}
	e.denied = p != nil && c.target == nil && !c.nothing && rule.terms.FirstAttach == chandler.FirstAttachDeny && !rule.misplaced()
	var was, wasOthers *variant
	if before != nil {
		was, wasOthers = &before.variant, before.others
	}
	made, err := newVariant(o, c.side, rule, e.denied, deadline, was)
	e.variant = *made
	if err != nil || c.others == nil {
		return e, err
	}
	e.others, err = newVariant(o, *c.others, rule, false, deadline, wasOthers)
	return e, err
}

// newVariant makes the resource of one side. Without a release it has no body: proxies
// keep what they have of it, whatever became of the records here. Of a release whose
// configuration is not to be had whoever has it keeps it; a newcomer refuses instead,
// unless the plugin may be left out.
func newVariant(o source.Object, c side, rule ruling, denied bool, deadline time.Duration, before *variant) (*variant, error) {
	target, p := c.target, o.Plugin
	none := &deltaserver.Resource{Name: o.Key.String()}
	v := &variant{target: target, whom: scoped(p, c.scope), nothing: c.nothing || c.denial != nil, resource: none, withheld: none}
	if p == nil || target == nil && !denied || v.nothing {
		return v, nil
	}
	v.made = making{
		uid: p.UID, key: p.Key, generation: p.Generation, created: p.Created.UnixNano(),
		firstAttach: rule.terms.FirstAttach, sequence: c.sequence, denied: denied, withheld: c.withheld,
	}
	if target != nil {
		v.made.release, v.made.generation = target.ID, target.Generation
	}
	if c.standby != nil {
		v.made.standby = c.standby.Digest
	}
	if before != nil && before.made == v.made {
		v.resource, v.modules = before.resource, before.modules
		return v, nil
	}
	held := *p // to the operator's terms
	held.FirstAttach = rule.terms.FirstAttach
	candidate := assign.Candidate{
		Plugin: &held, Release: target, Sequence: c.sequence, Deny: denied, Config: c.config, Withheld: c.withheld, FetchDeadline: deadline,
	}
	if c.standby != nil {
		candidate.Standby = []chandler.Module{*c.standby}
	}
	att := assign.Attach(candidate)
	if !c.withheld || target.FailStrategy != chandler.FailOpen {
		body, version, err := wire.MarshalAttachment(&att)
		if err != nil {
			return v, err
		}
		v.resource = &deltaserver.Resource{Name: p.Key.String(), Version: version, Body: body, Newcomers: c.withheld}
	}
	if target != nil && target.Program.Module != nil {
		v.modules = append(v.modules, target.Program.Module.Digest)
	}
	for _, m := range att.Standby {
		v.modules = append(v.modules, m.Digest)
	}
	return v, nil
}

// variants are those that there are.
func (e *entry) variants() []*variant {
	if e.others == nil {
		return []*variant{&e.variant}
	}
	return []*variant{&e.variant, e.others}
}

// withheld gives the releases that some proxies are to have and cannot be given.
func (e *entry) withheld() (all []*chandler.Release) {
	for _, v := range e.variants() {
		if v.target != nil && v.made.withheld {
			all = append(all, v.target)
		}
	}
	return all
}

// noReturn says why what is everyone's cannot be put back on those who have the release
// that is on its way; empty: it can.
func (e *entry) noReturn() string {
	st := e.course.rollout.Stage
	if st == nil {
		return ""
	}
	return e.lacks(st.Base.Release)
}

// lacks says why a release cannot be given to proxies; empty: it can.
func (e *entry) lacks(id chandler.ReleaseID) string {
	at := slices.IndexFunc(e.history, func(r *chandler.Release) bool { return r.ID == id })
	if at < 0 || !e.incomplete[id] {
		return ""
	}
	why := status.Incomplete(e.history[at])
	return why.Error()
}

// chosen tells whether a node is to have the release that is on its way.
func (e *entry) chosen(n chandler.Node) bool {
	st := e.course.rollout.Stage
	return st == nil || st.Choice.Has(e.object.UID, n)
}

// disabled gives the order by which a plugin is taken out of a node, or nil.
func (e *entry) disabled(n chandler.Node) *chandler.Disablement {
	for i := range e.course.rollout.Disabled {
		if d := &e.course.rollout.Disabled[i]; d.Holds(n) {
			return d
		}
	}
	return nil
}

// of gives the variant that is for a node; nil: none. Of an object that was never valid
// nobody knows whom it is for.
func (e *entry) of(n chandler.Node, root string) *variant {
	v := &e.variant
	if !e.chosen(n) {
		v = e.others
	}
	switch {
	case v == nil, v.nothing, v.whom != nil && !assign.Selects(v.whom, n, root), e.disabled(n) != nil:
		return nil
	}
	return v
}

// concerns tells whether a plugin is, or comes to be, for a node, whatever it is to
// have of it now.
func (e *entry) concerns(n chandler.Node, root string) bool {
	for _, v := range e.variants() {
		if v.whom != nil && assign.Selects(v.whom, n, root) {
			return true
		}
	}
	return false
}

func newPublication(entries, ghosts []*entry) *publication {
	p := &publication{entries: entries, ghosts: ghosts, byNamespace: map[string][]*entry{}}
	for _, all := range [][]*entry{entries, ghosts} {
		for _, e := range all {
			p.byNamespace[e.object.Namespace] = append(p.byNamespace[e.object.Namespace], e)
		}
	}
	return p
}

// of calls fn with every variant that is for a node, until it returns false.
func (p *publication) of(n chandler.Node, root string, fn func(*variant) bool) {
	namespaces := []string{root, n.Namespace}
	if root == n.Namespace {
		namespaces = namespaces[:1]
	}
	for _, ns := range namespaces {
		for _, e := range p.byNamespace[ns] {
			if v := e.of(n, root); v != nil && !fn(v) {
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
	p.of(n, c.cfg.RootNamespace, func(v *variant) bool {
		if withhold && v.target != nil && !v.target.FitFor(n.EnvoyVersion) {
			view = append(view, v.withheld)
		} else {
			view = append(view, v.resource)
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

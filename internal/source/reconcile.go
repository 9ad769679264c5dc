package source

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"chandler.dev/chandler"
)

const (
	maxObjects = 10_000
	// grace is how long an object that nothing speaks of any more is kept: editors
	// and git take a file away for a moment, or move an object between files.
	grace = 100 * time.Millisecond
)

// file is what one file says.
type file struct {
	path string
	// user: it is in the user's directory, which goes before what was applied.
	user bool
	docs []Document
	// lock is what it says when it is a lock file, which has no documents.
	lock Lock
	// problems are of the file as a whole.
	problems []chandler.Problem
	stamp    stamp
}

// holds tells whether something in the file cannot be made out. It may be any of
// the objects that were in it.
func (f *file) holds() bool {
	return len(f.problems) > 0 || slices.ContainsFunc(f.docs, func(d Document) bool { return !d.foreign && !d.identified() })
}

// known is an object as it stands.
type known struct {
	entry
	object *Object   // nil: not made since the restart
	gone   time.Time // since when nothing speaks of it
}

// kept is a secret as it stands.
type kept struct {
	Secret
	origin string
	gone   time.Time
}

// view is all that a reconciliation looks at.
type view struct {
	known   map[chandler.Key]known
	secrets map[SecretName]kept
	// dir is the user's directory, applied our own.
	dir, applied string
	// files of the user come first, then by path.
	files []*file
	// lock is that of the user's directory; nil: there is none.
	lock *lockState
	// unread are directories that cannot be listed, with the reason.
	unread map[string]chandler.Problem
	// drop are objects to be deleted at once; first: all that are gone are.
	drop  map[chandler.Key]bool
	first bool
	// The files were read between from and to, which count the grace: what is not in them
	// may have gone as late as to, and have come back as early as from. wall is the time of
	// creation.
	from, to, wall time.Time
	// version gives the version of a secret.
	version func(*Secret) string
}

// plan is what is to be.
type plan struct {
	known    map[chandler.Key]known
	secrets  map[SecretName]kept
	write    []chandler.Key // entries that are new or different
	remove   []chandler.Key
	snapshot Snapshot
	// next is when to look again even if nothing happens; zero: never.
	next time.Time
}

// claim is a document that speaks for an object.
type claim struct {
	file *file
	doc  *Document
}

// reconciler makes a plan from a view.
type reconciler struct {
	view
	plan
	claims map[chandler.Key]claim
	// rivals are further documents for an object, told as warnings.
	rivals map[chandler.Key][]chandler.Problem
	broken map[string][]chandler.Problem
}

// reconcile decides what objects there are. It is pure but for random uids.
func reconcile(v view) plan {
	r := &reconciler{view: v, claims: map[chandler.Key]claim{}, rivals: map[chandler.Key][]chandler.Problem{}, broken: map[string][]chandler.Problem{}}
	r.plan = plan{known: map[chandler.Key]known{}, secrets: map[SecretName]kept{}, snapshot: Snapshot{Secrets: map[SecretName]Secret{}}}
	for path, p := range v.unread {
		r.broken[path] = append(r.broken[path], p)
	}
	for _, f := range v.files {
		r.broken[f.path] = append(r.broken[f.path], f.problems...)
		for i := range f.docs {
			r.document(f, &f.docs[i])
		}
	}
	r.settle()
	for key, k := range r.view.known {
		if _, ok := r.claims[key]; !ok {
			r.unclaimed(key, k)
		}
	}
	for name, k := range r.view.secrets {
		if _, ok := r.plan.secrets[name]; !ok {
			r.keepSecret(name, k)
		}
	}
	r.finish()
	return r.plan
}

// document takes down what one document is about.
func (r *reconciler) document(f *file, d *Document) {
	switch {
	case !d.identified(), d.Kind == KindSecret && d.Secret == nil:
		for _, p := range d.Problems {
			if len(f.docs) > 1 && p.Code != chandler.CodeSpecParse {
				p.Message = "document at line " + strconv.Itoa(d.Line) + ": " + p.Message
			}
			r.broken[f.path] = append(r.broken[f.path], p)
		}
	case d.Kind == KindSecret:
		name := d.Secret.SecretName
		if first, ok := r.plan.secrets[name]; ok {
			r.broken[f.path] = append(r.broken[f.path], *duplicate(d.Key, first.origin))
			return
		}
		secret := *d.Secret
		secret.Version = r.version(&secret)
		r.plan.secrets[name] = kept{Secret: secret, origin: f.path}
	default:
		r.claim(claim{f, d})
	}
}

// claim finds out which of several documents speaks for an object: the user's
// directory goes before what was applied, then the file that had it first.
func (r *reconciler) claim(c claim) {
	winner, ok := r.claims[c.doc.Key]
	if !ok {
		r.claims[c.doc.Key] = c
		return
	}
	loser := c
	if origin := r.view.known[c.doc.Key].Origin; c.file.user == winner.file.user && c.file.path == origin && winner.file.path != origin {
		winner, loser = c, winner
		r.claims[c.doc.Key] = winner
	}
	r.broken[loser.file.path] = append(r.broken[loser.file.path], *duplicate(c.doc.Key, winner.file.path))
	p := duplicate(c.doc.Key, winner.file.path)
	p.Message = "also written in file " + chandler.Quote(loser.file.path) + ", which is passed over"
	r.rivals[c.doc.Key] = append(r.rivals[c.doc.Key], *p)
}

func duplicate(key chandler.Key, path string) *chandler.Problem {
	return chandler.Problemf(chandler.CodeSpecDuplicate, "metadata.name", "remove one of the two",
		"%s %s/%s already comes from file %s; that one stays", key.Kind, key.Namespace, key.Name, chandler.Quote(path))
}

// settle makes the objects that are claimed. There is room for those that were
// there before first.
func (r *reconciler) settle() {
	keys := make([]chandler.Key, 0, len(r.claims))
	for key := range r.claims {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, chandler.Key.Compare)
	room := maxObjects - len(r.view.known)
	for _, key := range keys {
		c := r.claims[key]
		k, ok := r.view.known[key]
		if !ok || r.drop[key] {
			if room--; room < 0 && !ok {
				r.broken[c.file.path] = append(r.broken[c.file.path], *tooMany(key))
				continue
			}
			k = known{entry: newEntry(key, r.wall)}
		}
		r.plan.known[key] = r.claimed(c, k)
	}
}

func tooMany(key chandler.Key) *chandler.Problem {
	return chandler.Problemf(chandler.CodeSpecValue, "metadata.name", "remove some", "%s %s/%s is one too many, limit %d",
		key.Kind, key.Namespace, key.Name, maxObjects)
}

// claimed brings an object up to its newest text.
func (r *reconciler) claimed(c claim, k known) known {
	e, d := k.entry, c.doc
	if e.Generation == 0 || e.Digest != d.digest {
		e.Generation++
	}
	var plugin *chandler.Plugin
	if d.Plugin != nil {
		e.Valid = &validText{Generation: e.Generation}
		plugin = e.identify(d.Plugin, e.Generation)
	} else {
		if e.Valid != nil && e.Valid.Manifest == "" {
			e.Valid = &validText{Generation: e.Valid.Generation, Manifest: e.Manifest}
		}
		if k.object != nil {
			plugin = k.object.Plugin
		} else {
			plugin = e.lastValid()
		}
	}
	e.Digest, e.Origin, e.Manifest = d.digest, c.file.path, string(d.Manifest)
	if !e.equal(k.entry) {
		r.write = append(r.write, e.Key)
	}
	return known{entry: e, object: &Object{
		Key: e.Key, UID: e.UID, Generation: e.Generation, Created: e.Created, Labels: d.Labels, Annotations: d.Annotations,
		Plugin: plugin, Problems: d.Problems, Warnings: slices.Concat(d.Warnings, r.rivals[e.Key]), Manifest: d.Manifest, Origin: e.Origin,
	}}
}

func (e entry) equal(o entry) bool {
	same := (e.Valid == nil) == (o.Valid == nil) && (e.Valid == nil || *e.Valid == *o.Valid)
	e.Valid, o.Valid = nil, nil
	return same && e == o
}

// unclaimed keeps an object that no document speaks of as long as it may only be
// hidden by a mistake, and lets go of it otherwise.
func (r *reconciler) unclaimed(key chandler.Key, k known) {
	if k.object == nil {
		o := Object{Key: key, UID: k.UID, Generation: k.Generation, Created: k.Created, Manifest: []byte(k.Manifest), Origin: k.Origin}
		if o.Plugin = k.lastValid(); o.Plugin != nil {
			o.Labels, o.Annotations = o.Plugin.Labels, o.Plugin.Annotations
		}
		k.object = &o
	}
	if problems, held := r.held(k.Origin); held && !r.drop[key] {
		o := *k.object
		o.Problems = problems
		k.object, k.gone = &o, time.Time{}
		r.plan.known[key] = k
		return
	}
	if r.waits(key, &k.gone) {
		r.plan.known[key] = k
	} else {
		r.remove = append(r.remove, key)
	}
}

// waits tells whether what is gone since then is to be kept a little longer.
func (r *reconciler) waits(key chandler.Key, since *time.Time) bool {
	if since.IsZero() {
		*since = r.to
	}
	end := since.Add(grace)
	if r.drop[key] || r.first || !r.from.Before(end) {
		return false
	}
	if r.next.IsZero() || end.Before(r.next) {
		r.next = end
	}
	return true
}

// keepSecret does for a secret what unclaimed does for an object. Nothing of it
// is on disk but its own file, so a restart knows only what it can read.
func (r *reconciler) keepSecret(name SecretName, k kept) {
	key := chandler.Key{Kind: KindSecret, Namespace: name.Namespace, Name: name.Name}
	if _, held := r.held(k.origin); held && !r.drop[key] {
		k.gone = time.Time{}
	} else if !r.waits(key, &k.gone) {
		return
	}
	r.plan.secrets[name] = k
}

// held tells whether what was in the file at origin may still be in it.
func (r *reconciler) held(origin string) ([]chandler.Problem, bool) {
	for _, f := range r.files {
		if f.path == origin && f.holds() {
			problems := slices.Clone(f.problems)
			for _, d := range f.docs {
				if !d.foreign && !d.identified() {
					problems = append(problems, d.Problems...)
				}
			}
			return problems[:min(len(problems), maxProblems)], true
		}
	}
	for dir, p := range r.unread {
		if within(origin, dir) || dir == r.dir && !within(origin, r.applied) {
			return []chandler.Problem{p}, true
		}
	}
	return nil, false
}

func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, dir+string(filepath.Separator))
}

// finish writes the snapshot.
func (r *reconciler) finish() {
	if r.lock != nil && !r.lock.gone.IsZero() && (r.next.IsZero() || r.lock.gone.Add(grace).Before(r.next)) {
		r.next = r.lock.gone.Add(grace)
	}
	for _, k := range r.plan.known {
		o := *k.object
		r.lock.apply(&o)
		r.snapshot.Objects = append(r.snapshot.Objects, o)
	}
	for name, k := range r.plan.secrets {
		r.snapshot.Secrets[name] = k.Secret
	}
	slices.SortFunc(r.snapshot.Objects, func(a, b Object) int { return a.Key.Compare(b.Key) })
	for path, problems := range r.broken {
		if len(problems) > 0 {
			r.snapshot.Broken = append(r.snapshot.Broken, Broken{path, problems[:min(len(problems), maxProblems)]})
		}
	}
	slices.SortFunc(r.snapshot.Broken, func(a, b Broken) int { return strings.Compare(a.Path, b.Path) })
}

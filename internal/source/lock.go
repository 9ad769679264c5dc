package source

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chandler.dev/chandler"
)

// LockName is the lock file of a directory of resources: it stands beside them, and
// says which digest each reference means.
const LockName = "chandler.lock"

// maxLock bounds a lock file, in bytes.
const maxLock = 4 << 20

// lockFormat is the format of lock files.
const lockFormat = 1

// Lock is what a lock file says. Its zero value says nothing.
type Lock struct {
	entries map[string]LockEntry // by canonical url
}

// LockEntry is what one reference means.
type LockEntry struct {
	// Digest is "sha256:" and 64 hex digits: of the manifest or index for oci, and of
	// the unpacked module otherwise.
	Digest string
	// Since is when it came to be that digest.
	Since time.Time
}

// Lockable tells whether a reference means something else at another time.
func Lockable(w *chandler.Wasm) bool {
	switch {
	case w == nil || w.SHA256 != "" || w.Reference.Digest != "":
		return false
	case w.Reference.Scheme == chandler.SchemeFile:
		return false
	}
	return true
}

// lockURL is the name of a reference in a lock file. No tag is the tag latest.
func lockURL(ref chandler.Reference) string {
	if ref.Scheme == chandler.SchemeOCI {
		ref.Tag = cmp.Or(ref.Tag, "latest")
	}
	return ref.String()
}

// Get gives what a reference means.
func (l Lock) Get(ref chandler.Reference) (LockEntry, bool) {
	e, ok := l.entries[lockURL(ref)]
	return e, ok
}

// LockChange is a reference whose digest is another one. Before is empty when it was
// not there, After when it is no more.
type LockChange struct {
	// Reference is without what may be secret in it.
	Reference     string
	Before, After string
}

// Resolved is what a reference was found to mean.
type Resolved struct {
	Reference chandler.Reference
	Digest    string
}

// Update gives the lock of what was found, and what is different in it. whole: of exactly
// that; else what was locked besides stays. Of what is as it was the time is kept.
func (l Lock) Update(found []Resolved, now time.Time, whole bool) (Lock, []LockChange) {
	next := Lock{entries: map[string]LockEntry{}}
	var changes []LockChange
	for _, f := range found {
		url := lockURL(f.Reference)
		if _, ok := next.entries[url]; ok {
			continue
		}
		e := l.entries[url]
		if e.Digest != f.Digest {
			changes = append(changes, LockChange{f.Reference.Redacted(), e.Digest, f.Digest})
			e = LockEntry{f.Digest, now.UTC().Truncate(time.Second)}
		}
		next.entries[url] = e
	}
	for url, e := range l.entries {
		if _, ok := next.entries[url]; ok {
			continue
		}
		if !whole {
			next.entries[url] = e
		} else {
			shown := url
			if ref, problem := chandler.ParseReference(url); problem == nil {
				shown = ref.Redacted()
			}
			changes = append(changes, LockChange{shown, e.Digest, ""})
		}
	}
	slices.SortFunc(changes, func(a, b LockChange) int {
		return cmp.Or(strings.Compare(a.Reference, b.Reference), strings.Compare(a.After, b.After))
	})
	return next, changes
}

const lockHead = `# What each reference meant when it was locked. Written by "chandler lock"; commit it
# beside the resources, and chandler serve --plugins goes by it.
`

// Text is the file of a lock, the same for the same lock.
func (l Lock) Text() []byte {
	entries := &node{kind: list}
	for _, url := range slices.Sorted(maps.Keys(l.entries)) {
		e := l.entries[url]
		one := &node{kind: object}
		one.add("url", &node{kind: text, text: url})
		one.add("digest", &node{kind: text, text: e.Digest})
		one.add("since", &node{kind: text, text: e.Since.Format(time.RFC3339)})
		entries.items = append(entries.items, one)
	}
	root := &node{kind: object}
	root.add("format", &node{kind: number, text: fmt.Sprint(lockFormat)})
	root.add("locked", entries)
	return append([]byte(lockHead), root.yaml()...)
}

// ParseLock reads a lock file, strictly. With a problem the whole is of no use.
func ParseLock(content []byte) (Lock, []chandler.Problem) {
	l, j := Lock{entries: map[string]LockEntry{}}, &judge{}
	chunks := split(content)
	switch {
	case len(content) > maxLock:
		j.problem(chandler.CodeLock, nil, "lock fewer references in one folder", "the lock file has %d bytes, limit %d", len(content), maxLock)
	case len(chunks) != 1:
		j.problem(chandler.CodeLock, nil, "write it with chandler lock", "the lock file is no single document")
	default:
		if root := growWithin(chunks[0], j, maxLock); root != nil {
			l.read(j, root)
		}
	}
	if problems := j.all(); len(problems) > 0 {
		return Lock{}, problems
	}
	return l, nil
}

func (l Lock) read(j *judge, root *node) {
	top := j.record(root, &path{}, nil, "format", "locked")
	if format, ok := top.integer("format", chandler.CodeLock, 1, 1<<31); ok && format != lockFormat {
		j.problem(chandler.CodeLock, top.at.field("format"), "use a newer chandler, or write it anew with chandler lock", "format %d is not known", format)
		return
	} else if !ok && top.node.get("format") == nil {
		j.problem(chandler.CodeSpecRequired, top.at.field("format"), "write format: 1", "format is missing")
	}
	items, at := top.list("locked")
	if len(items) > maxObjects {
		j.problem(chandler.CodeLock, at, "lock fewer references in one folder", "it has %d references, limit %d", len(items), maxObjects)
		return
	}
	for i, item := range items {
		l.entry(j.record(item, at.item(i), nil, "url", "digest", "since"))
	}
}

func (l Lock) entry(r record) {
	url, hasURL := r.text("url")
	digest, hasDigest := r.text("digest")
	since, _ := r.text("since")
	if r.node == nil {
		return
	}
	for _, name := range []string{"url", "digest"} {
		if r.node.get(name) == nil {
			r.problem(chandler.CodeSpecRequired, r.at.field(name), "write it with chandler lock", "%s is missing", name)
		}
	}
	if !hasURL || !hasDigest {
		return
	}
	ref, problem := chandler.ParseReference(url)
	r.tell(r.at.field("url"), problem)
	if problem != nil {
		return
	}
	at, err := time.Parse(time.RFC3339, since)
	_, twice := l.entries[lockURL(ref)]
	switch _, good := chandler.ParseDigest[chandler.ArtifactDigest](digest); {
	case !Lockable(&chandler.Wasm{Reference: ref}):
		r.problem(chandler.CodeLock, r.at.field("url"), "remove the entry", "a url with a digest, or of a file, means the same always")
	case twice:
		r.problem(chandler.CodeLock, r.at.field("url"), "keep one of them", "the url is there twice")
	case !good:
		r.problem(chandler.CodeDigestSyntax, r.at.field("digest"), "write sha256: and 64 lower-case hex digits", "digest %s is none", chandler.Quote(digest))
	case since != "" && err != nil:
		r.problem(chandler.CodeSpecValue, r.at.field("since"), "write a time such as 2026-11-28T09:00:00Z", "since %s is no time", chandler.Quote(since))
	default:
		l.entries[lockURL(ref)] = LockEntry{digest, at.UTC()}
	}
}

// lockState is what is known of the lock file of a directory.
type lockState struct {
	path string
	Lock
	// broken: the file cannot be read. What it last said holds, and of what that does not
	// name nobody knows what it would say.
	broken bool
	sum    [sha256.Size]byte // of the file
	gone   time.Time         // since when it is not there
}

// after gives the state after a scan; nil: there is no lock file. missing: the directory
// is not there. The scan was between from and to. It is the same pointer while nothing is
// different.
func (s *lockState) after(sc *scan, path string, missing bool, from, to time.Time) *lockState {
	f, dir := sc.files[path], filepath.Dir(path)
	_, unread := sc.unread[path]
	_, unlisted := sc.unread[dir]
	last := lockState{path: path}
	if s != nil {
		last.Lock = s.Lock
	}
	switch {
	case f != nil && s != nil && f.stamp.sum == s.sum && s.gone.IsZero():
		return s
	case f != nil && len(f.problems) == 0:
		return &lockState{path: path, Lock: f.lock, sum: f.stamp.sum}
	case f != nil:
		last.broken, last.sum = true, f.stamp.sum
		return &last
	case unread, unlisted && s == nil && !missing:
		if s != nil && s.broken && s.gone.IsZero() && s.sum == last.sum {
			return s
		}
		last.broken = true
		return &last
	case unlisted || s == nil:
		return s
	case s.gone.IsZero():
		own := *s
		own.gone = to
		return &own
	case from.Before(s.gone.Add(grace)):
		return s
	}
	return nil
}

// apply says what a lock file says of an object's reference, and of its place. Whoever
// reads the same files is to attach the same, whenever that was: so resources beside a
// lock file are all of one time, and their names decide where their priorities do not.
func (s *lockState) apply(o *Object) {
	if s == nil || o.Plugin == nil {
		return
	}
	if within(o.Origin, filepath.Dir(s.path)) {
		plugin := *o.Plugin
		plugin.Created, o.Plugin = time.Unix(0, 0).UTC(), &plugin
	}
	if !Lockable(o.Plugin.Wasm) {
		return
	}
	e, ok := s.Get(o.Plugin.Wasm.Reference)
	if !ok && !s.broken {
		return
	}
	plugin, wasm := *o.Plugin, *o.Plugin.Wasm
	plugin.Wasm, o.Plugin = &wasm, &plugin
	if ok {
		wasm.Locked = strings.TrimPrefix(e.Digest, "sha256:")
		return
	}
	wasm.Held = true
	at := (&path{}).field("spec").field("url")
	if o.Kind == chandler.KindTrafficExtension {
		at = (&path{}).field("spec").field("wasm").field("url")
	}
	o.Problems = append(slices.Clone(o.Problems), *chandler.Problemf(chandler.CodeLock, at.String(), "correct the lock file; until then what is in force stays",
		"what it means cannot be said, as %s cannot be read", chandler.Quote(s.path)))
}

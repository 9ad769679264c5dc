package source

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"maps"
	"path/filepath"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
)

// ErrNotRunning is the answer of an Editor whose Run has ended.
var ErrNotRunning = errors.New("source: not running")

// Apply implements Editor. It waits for Run.
func (d *Directory) Apply(ctx context.Context, r ApplyRequest) ([]Result, error) {
	docs := Decode(r.Manifest, r.Namespace)
	return d.ask(ctx, func() []Result { return d.apply(docs, r.DryRun) })
}

// Delete implements Editor. It waits for Run.
func (d *Directory) Delete(ctx context.Context, keys []chandler.Key) ([]Result, error) {
	return d.ask(ctx, func() []Result { return d.delete(keys) })
}

// ask has Run do something between its own rounds.
func (d *Directory) ask(ctx context.Context, do func() []Result) ([]Result, error) {
	caused := func() []Result {
		d.cause = ctx
		defer func() { d.cause = nil }()
		return do()
	}
	r := request{caused, make(chan []Result, 1)}
	select {
	case d.requests <- r:
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-d.ended:
		return nil, ErrNotRunning
	}
	return <-r.reply, nil // Run is at it, and does nothing that waits
}

func (d *Directory) path(key chandler.Key) string { return filepath.Join(d.applied, stem(key)+".yaml") }

func (d *Directory) apply(docs []Document, dry bool) []Result {
	var results []Result
	seen := map[chandler.Key]bool{}
	fresh := 0
	for i := range docs {
		doc := &docs[i]
		r := Result{Key: doc.Key, Problems: doc.Problems, Warnings: doc.Warnings}
		refused := func(p *chandler.Problem) {
			if p != nil {
				r.Problems = append(r.Problems, *p)
			}
		}
		if len(doc.Problems) == 0 {
			if seen[doc.Key] {
				refused(chandler.Problemf(chandler.CodeSpecDuplicate, "metadata.name", "keep one of them", "%s %s/%s is in this manifest twice",
					doc.Kind, doc.Namespace, doc.Name))
			}
			seen[doc.Key] = true
			refused(d.owned(doc.Key))
		}
		if len(r.Problems) == 0 {
			r.Action = d.action(doc)
			if r.Action == Created && doc.Kind != KindSecret {
				if fresh++; len(d.known)+fresh > maxObjects {
					refused(tooMany(doc.Key))
				}
			}
		}
		if len(r.Problems) == 0 && r.Action != Unchanged && !dry {
			refused(d.write(doc))
		}
		if len(r.Problems) > 0 {
			r.Action = Refused
		}
		results = append(results, r)
	}
	if !dry {
		d.publish(results, nil)
	}
	d.count(results, docs, dry)
	return results
}

// owned refuses what is not ours to change: it is in a file that somebody else
// writes.
func (d *Directory) owned(key chandler.Key) *chandler.Problem {
	origin := d.known[key].Origin
	if key.Kind == KindSecret {
		origin = d.secrets[SecretName{key.Namespace, key.Name}].origin
	}
	if origin == "" || origin == d.path(key) {
		return nil
	}
	return chandler.Problemf(chandler.CodeSpecDuplicate, "metadata.name", "change it in that file, or take it out of it first",
		"%s %s/%s comes from file %s", key.Kind, key.Namespace, key.Name, chandler.Quote(origin))
}

// action tells what applying a document does. The same meaning with other
// comments is unchanged.
func (d *Directory) action(doc *Document) Action {
	if doc.Kind == KindSecret {
		old, ok := d.secrets[doc.Secret.SecretName]
		switch {
		case !ok || !old.gone.IsZero():
			return Created
		case old.Type == doc.Secret.Type && maps.EqualFunc(old.Values, doc.Secret.Values, bytes.Equal):
			return Unchanged
		}
		return Configured
	}
	k, ok := d.known[doc.Key]
	switch {
	case !ok || !k.gone.IsZero():
		return Created
	case k.Digest == doc.digest && k.object != nil && len(k.object.Problems) == 0 &&
		maps.Equal(k.object.Labels, doc.Labels) && maps.Equal(k.object.Annotations, doc.Annotations):
		return Unchanged
	}
	return Configured
}

func (d *Directory) write(doc *Document) *chandler.Problem {
	path := d.path(doc.Key)
	if err := durable.Write(d.cfg.FS, path, doc.explicit); err != nil {
		return chandler.Problemf(chandler.CodeCacheUnwritable, "", "see to the control plane's disk, then apply again",
			"cannot be written: %s", chandler.Printable(err.Error(), 256))
	}
	f := parse(path, false, doc.explicit)
	f.stamp.sum = sha256.Sum256(doc.explicit)
	d.files[path] = f
	return nil
}

// publish makes what was written or removed so. What cannot be committed is said
// in the results; it is tried again later.
func (d *Directory) publish(results []Result, drop map[chandler.Key]bool) {
	d.settle(time.Now(), drop)
	if !d.dirty {
		return
	}
	for i := range results {
		if a := results[i].Action; a == Created || a == Configured || a == Deleted {
			results[i].Action = Refused
			results[i].Problems = []chandler.Problem{*chandler.Problemf(chandler.CodeCacheUnwritable, "", "see to the control plane's disk; it is tried again by itself",
				"the control plane cannot write its state")}
		}
	}
}

// count fills in generations. A dry run tells the one that there would be.
func (d *Directory) count(results []Result, docs []Document, dry bool) {
	for i := range results {
		r := &results[i]
		if k, ok := d.known[r.Key]; ok {
			r.Generation = k.Generation
			if dry && r.Action == Configured && k.Digest != docs[i].digest {
				r.Generation++
			}
		} else if dry && r.Action == Created && r.Kind != KindSecret {
			r.Generation = 1
		}
	}
}

func (d *Directory) delete(keys []chandler.Key) []Result {
	var results []Result
	drop := map[chandler.Key]bool{}
	for _, key := range keys {
		r := Result{Key: key, Action: Deleted, Generation: d.known[key].Generation}
		_, ok := d.known[key]
		if key.Kind == KindSecret {
			_, ok = d.secrets[SecretName{key.Namespace, key.Name}]
		}
		switch p := d.owned(key); {
		case !ok || drop[key]:
			r.Action = NotFound
		case p != nil:
			r.Action, r.Problems = Refused, []chandler.Problem{*p}
		default:
			if err := durable.Remove(d.cfg.FS, d.path(key)); err != nil {
				r.Action, r.Problems = Refused, []chandler.Problem{*chandler.Problemf(chandler.CodeCacheUnwritable, "",
					"see to the control plane's disk, then delete again", "cannot be removed: %s", chandler.Printable(err.Error(), 256))}
				break
			}
			delete(d.files, d.path(key))
			drop[key] = true
		}
		results = append(results, r)
	}
	d.publish(results, drop)
	return results
}

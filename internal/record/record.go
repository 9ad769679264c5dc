// Package record keeps what the control plane must remember: releases, which
// never change, and rollouts, one mutable record a plugin, changed by
// compare-and-swap. A plugin whose resource is restored from a backup finds its
// digests here.
//
// It is not a status store: what is true of a plugin is derived from records and
// reports, and nothing read back here is shown as fact.
package record

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"chandler.dev/chandler"
)

// ErrConflict is what SwapRollout gives when the record is not the one the
// caller knew.
var ErrConflict = errors.New("the rollout record was changed by another")

// Rollout says which release of a plugin is being put in force.
type Rollout struct {
	Format int
	UID    string
	chandler.Key
	// Sequence is the assignment sequence: it grows with every change of Release.
	Sequence uint64
	// Release is empty when nothing is to be in force: its first release was taken back,
	// or it is being taken out.
	Release  chandler.ReleaseID
	Previous chandler.ReleaseID `json:",omitempty"`
	// Generation is the resource's, of which this knows what it means.
	Generation int64
	UpdatedAt  time.Time
	// Pin is Release as far as it was found out, without what the resource alone
	// says. A resource that was deleted and comes back, with another uid, finds its
	// digests here.
	Pin *chandler.Release `json:",omitempty"`
	// Course is what rollouts in steps and orders by hand add.
	Course
	// Revision belongs to the store, which sets it; callers hand it back unchanged.
	Revision uint64
}

// Store keeps records. It is safe for concurrent use.
type Store interface {
	// Releases and Rollouts give all records, in no order that means anything.
	Releases(ctx context.Context) ([]chandler.Release, error)
	Rollouts(ctx context.Context) ([]Rollout, error)
	// PutRelease keeps a release; one that is there already is no error. Its ID
	// must be that of its content.
	PutRelease(ctx context.Context, r chandler.Release) error
	// DeleteRelease and DeleteRollout are no error when there is none.
	DeleteRelease(ctx context.Context, id chandler.ReleaseID) error
	DeleteRollout(ctx context.Context, uid string) error
	// SwapRollout writes next over old and gives it as it is stored, or gives
	// ErrConflict when the stored one is not old. A nil old means that there is none
	// yet.
	SwapRollout(ctx context.Context, old *Rollout, next Rollout) (Rollout, error)
}

// Watcher is a Store that others write to as well: the replicas of a control
// plane.
type Watcher interface {
	Store
	// Watch tells of every record there is, and then of each that is written or
	// deleted, by whomever, until ctx ends; then it returns nil. What is told of one record
	// is never older than what was told of it before. tell holds nobody up.
	Watch(ctx context.Context, tell func(Change)) error
}

// Change is one record as it is now: a release or a rollout, never both.
type Change struct {
	Release *chandler.Release
	Rollout *Rollout
	// Deleted: it is no more; what it was is given.
	Deleted bool
}

// Format of the records that are written; one of another is left alone.
const Format = 1

// ErrFormat is a record of another version of this program. It is passed by and
// stays in its place, for that version to find.
var ErrFormat = errors.New("its format is not known here")

// DecodeRelease reads a release. The error is ErrFormat, or says that this is none.
func DecodeRelease(b []byte) (chandler.Release, error) {
	var r chandler.Release
	if err := decode(b, &r, &r.Format); err != nil {
		return chandler.Release{}, err
	}
	err := Check(r)
	if err != nil && saysMore(b) {
		err = fmt.Errorf("it says more than is understood here: %w", ErrFormat)
	}
	return r, err
}

// saysMore tells whether a release has fields that this program does not know. Its
// id is a hash over them too, so that a later program's release looks forged here.
func saysMore(b []byte) bool {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	err := d.Decode(&chandler.Release{})
	return err != nil && strings.Contains(err.Error(), "unknown field")
}

// DecodeRollout reads a rollout record, with the same errors.
func DecodeRollout(b []byte) (Rollout, error) {
	var r Rollout
	if err := decode(b, &r, &r.Format); err != nil {
		return Rollout{}, err
	}
	return r, nil
}

// decode reads a record and its format.
func decode(b []byte, into any, got *int) error {
	if err := json.Unmarshal(b, into); err != nil {
		return err
	}
	if *got != Format {
		return fmt.Errorf("format %d: %w", *got, ErrFormat)
	}
	return nil
}

// Check holds that a release's ID is that of its content.
func Check(r chandler.Release) error {
	if r.WithID().ID != r.ID || r.ID == "" {
		return errors.New("the release's id is not that of its content")
	}
	return nil
}

// swap is the rule of compare-and-swap: it gives the record to write.
func swap(stored, old *Rollout, next Rollout) (Rollout, error) {
	switch {
	case stored == nil && old != nil, stored != nil && old == nil:
		return Rollout{}, ErrConflict
	case stored != nil && stored.Revision != old.Revision:
		return Rollout{}, ErrConflict
	}
	next.Format, next.Revision = Format, 1
	if stored != nil {
		next.Revision = stored.Revision + 1
	}
	return next, nil
}

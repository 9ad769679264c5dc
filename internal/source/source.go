// Package source is where plugins come from: it turns YAML into what its author
// asked for, or says what is wrong with it, and watches a directory of such
// files. Decode is pure; Directory is the shell that reads, watches and keeps
// identity (uid, generation, time of creation) over restarts.
//
// It is no judge of modules and resolves nothing: what it hands over is well
// formed, not known to work.
package source

import (
	"context"
	"time"

	"chandler.dev/chandler"
)

// KindSecret is the Kind of a Secret in a Document or a Result.
const KindSecret = "Secret"

// Source tells what plugins there are.
type Source interface {
	// Run hands deliver the first snapshot as soon as everything has been read,
	// and then one whenever something is different. Calls do not overlap; a
	// snapshot and all in it belong to the receiver and the source alike and must
	// not be changed. It returns when ctx ends.
	Run(ctx context.Context, deliver func(Snapshot)) error
}

// Editor changes a source. Its answers come object by object: a mistake in one
// is no reason to refuse another. The error is for what is no user's mistake.
type Editor interface {
	// Apply returns after the snapshot that holds the change was delivered.
	Apply(ctx context.Context, r ApplyRequest) ([]Result, error)
	// Delete does likewise.
	Delete(ctx context.Context, keys []chandler.Key) ([]Result, error)
}

// ApplyRequest is a manifest to be put in place.
type ApplyRequest struct {
	// Manifest is YAML or JSON of several documents.
	Manifest []byte
	// Namespace is for documents that name none; empty means "default".
	Namespace string
	// DryRun judges and changes nothing.
	DryRun bool
}

// Result is what became of one object of a request.
type Result struct {
	chandler.Key
	Action     Action
	Generation int64
	// Problems say why it was refused.
	Problems []chandler.Problem
	Warnings []chandler.Problem
}

// Action is what was done with an object.
type Action string

// The actions.
const (
	Created    Action = "Created"
	Configured Action = "Configured"
	Unchanged  Action = "Unchanged"
	Deleted    Action = "Deleted"
	Refused    Action = "Refused"
	NotFound   Action = "NotFound"
)

// Snapshot is all that a source holds at one moment.
type Snapshot struct {
	Objects []Object // sorted by Key
	Secrets map[SecretName]Secret
	// Broken are the files, or documents of files, that cannot be taken for any
	// object. The last good objects of such a file stay.
	Broken []Broken
	// Cause is the context of the call of an Editor that made it so; nil: it was found
	// so.
	Cause context.Context
}

// Object is a resource: its newest text, and the plugin that is to be in force.
type Object struct {
	chandler.Key
	UID string
	// Generation is that of the newest text. When Problems is not empty the newest
	// text is not taken, and Plugin is the last valid one, with its own Generation;
	// nil when there never was one.
	Generation  int64
	Created     time.Time
	Labels      map[string]string
	Annotations map[string]string
	Plugin      *chandler.Plugin
	Problems    []chandler.Problem
	Warnings    []chandler.Problem
	// Manifest is the newest text that could be read, as YAML.
	Manifest []byte
	// Origin is the path of the file it comes from.
	Origin string
}

// SecretName names a Secret.
type SecretName struct{ Namespace, Name string }

// Broken is a file that cannot be read in whole or in part.
type Broken struct {
	Path     string
	Problems []chandler.Problem
}

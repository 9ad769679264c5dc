// Package config is the operator's file ("chandler serve --config"): its sections,
// strict reading with the place of every mistake, and the watch for changes.
//
// It only puts sections together. What a section means, and what can be wrong in
// it beyond its form, is the business of the package whose type it is.
package config

import (
	"path/filepath"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/identity"
	"chandler.dev/chandler/internal/policy"
	"chandler.dev/chandler/internal/rollout"
	"chandler.dev/chandler/internal/strict"
	"chandler.dev/chandler/internal/trust"
)

// maxFile is how large the file may be, in bytes.
const maxFile = 1 << 20

// File is what the operator's file says. The zero value is an empty file, which
// restricts nothing.
//
// A section is a field here: decoding and the place of mistakes follow from its
// type and yaml tags, and its Check or Load method (see package strict), if it has
// one, is called.
type File struct {
	policy.Policy `yaml:",inline"`
	// Signatures say whose signatures modules must have.
	Signatures []trust.Rule `yaml:"signatures"`
	// Identities say what agents' certificates mean.
	Identities []identity.Rule `yaml:"identities"`
	// Access says who may do what at the admin port.
	Access []access.Grant `yaml:"access"`
	// Rollouts say in what steps changes come to proxies, for plugins that do not say it
	// themselves.
	Rollouts []rollout.Rule `yaml:"rollouts"`

	inputs inputs
}

// RolloutFor gives the plan by which a change of a plugin comes to its proxies: its
// own, or that of the first rule about it; nil: to all at once.
func (f *File) RolloutFor(p *chandler.Plugin) *chandler.RolloutPlan {
	if p.Rollout != nil {
		return p.Rollout
	}
	for i := range f.Rollouts {
		if r := &f.Rollouts[i]; r.Names(p) {
			return r.Plan()
		}
	}
	return nil
}

// Error is why a file is not taken, and Mistake one thing that is wrong with it.
type (
	Error   = strict.Error
	Mistake = strict.Mistake
)

// inputs are the contents of a file and of those that it names, by path.
type inputs map[string]string

// read gives the content of a file and remembers it.
func (in inputs) read(path string) ([]byte, error) {
	b, err := strict.ReadFile(path, maxFile)
	if in[path] = string(b); err != nil {
		in[path] = "cannot be read: " + err.Error()
	}
	return b, err
}

// changed tells whether one of them is not what it was.
func (in inputs) changed() bool {
	now := inputs{}
	for path, was := range in {
		if _, _ = now.read(path); now[path] != was {
			return true
		}
	}
	return false
}

// Load reads a file. The error is an *Error.
func Load(path string) (*File, error) {
	f, err := load(path)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// load gives a file with what it was made of, also where it cannot be used.
func load(path string) (*File, error) {
	f := &File{inputs: inputs{}}
	b, err := f.inputs.read(path)
	if err != nil {
		return f, strict.Unreadable(path, err)
	}
	mistakes := strict.Decode(b, f, func(name string) ([]byte, error) {
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(path), name)
		}
		return f.inputs.read(name)
	})
	if len(mistakes) > 0 {
		return f, &Error{Path: path, Mistakes: mistakes}
	}
	return f, nil
}

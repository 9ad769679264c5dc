package control

import (
	"context"
	"errors"
	"maps"
	"slices"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/source"
)

// Values of secrets that belong to a plugin's configuration are in no record. They
// are merged into it here, for as long as the secrets have them: in jobs, to have the
// whole judged, and in publications, for the proxies. A release whose values are no
// longer to be had cannot be attached anew; whoever has it keeps it.

// versions gives of the secrets' values that a plugin's configuration is from the
// versions that they have now; none where a secret cannot be read.
func (s secrets) versions(p *chandler.Plugin) []chandler.SecretVersion {
	if p == nil || p.Wasm == nil {
		return nil
	}
	var out []chandler.SecretVersion
	for _, from := range p.Wasm.ConfigFrom {
		out = append(out, chandler.SecretVersion{SecretKey: from, Version: s[source.SecretName{Namespace: p.Namespace, Name: from.Name}].Version})
	}
	return out
}

// merge gives a plugin's configuration with what it is from. The error is a problem
// of the plugin, and shows nothing of a value.
func (s secrets) merge(p *chandler.Plugin) ([]byte, error) {
	if p.Wasm == nil || len(p.Wasm.ConfigFrom) == 0 {
		return nil, nil
	}
	var values []source.ConfigValue
	for _, from := range p.Wasm.ConfigFrom {
		secret, ok := s[source.SecretName{Namespace: p.Namespace, Name: from.Name}]
		if secret.Problem != nil {
			why := *secret.Problem
			why.Field = source.ConfigFromField
			return nil, &why
		}
		content, has := secret.Values[from.Key]
		switch {
		case !ok:
			return nil, chandler.Problemf(chandler.CodeSecretKey, source.ConfigFromField, "create it in the plugin's own namespace",
				"secret %s is not in namespace %s", chandler.Quote(from.Name), p.Namespace)
		case !has:
			return nil, chandler.Problemf(chandler.CodeSecretKey, source.ConfigFromField, "see its spelling, or add it to the secret",
				"secret %s in namespace %s has no key %s", chandler.Quote(from.Name), p.Namespace, chandler.Quote(from.Key))
		}
		values = append(values, source.ConfigValue{From: from, Content: content})
	}
	config, problem := source.MergeConfig(p.Wasm.Config, values)
	if problem != nil {
		return nil, problem
	}
	return config, nil
}

// whole gives the configuration of a release; false when the secrets no longer have
// what it was made of.
func (s secrets) whole(r *chandler.Release) ([]byte, bool) {
	p := &chandler.Plugin{Key: r.Key, Wasm: &chandler.Wasm{Config: r.Config}}
	for _, from := range r.ConfigFrom {
		if from.Version == "" || s[source.SecretName{Namespace: r.Namespace, Name: from.Name}].Version != from.Version {
			return nil, false
		}
		p.Wasm.ConfigFrom = append(p.Wasm.ConfigFrom, from.SecretKey)
	}
	config, err := s.merge(p)
	return config, err == nil
}

// config gives the whole configuration of a release that has some of it from secrets,
// and remembers it: what is in force here stays although the secret goes. False: it
// is not to be had.
func (l *loop) config(r *chandler.Release) ([]byte, bool) {
	if r == nil || len(r.ConfigFrom) == 0 {
		return nil, true
	}
	if config, ok := l.configs[r.ID]; ok {
		return config, true
	}
	config, ok := secrets(l.snapshot.Secrets).whole(r)
	if ok {
		l.configs[r.ID] = config
	}
	return config, ok
}

// incomplete gives the recorded releases of a plugin whose configuration is not to be had.
func (l *loop) incomplete(uid string) map[chandler.ReleaseID]bool {
	var all map[chandler.ReleaseID]bool
	for _, id := range l.history[uid] {
		r := l.releases[id]
		if len(r.ConfigFrom) == 0 || l.configs[id] != nil {
			continue
		}
		if _, ok := secrets(l.snapshot.Secrets).whole(r); !ok {
			if all == nil {
				all = map[chandler.ReleaseID]bool{}
			}
			all[id] = true
		}
	}
	return all
}

// forgetConfigs drops the configurations of releases that no rollout is at, nor would
// go back to.
func (l *loop) forgetConfigs() {
	if len(l.configs) == 0 {
		return
	}
	maps.DeleteFunc(l.configs, func(id chandler.ReleaseID, _ []byte) bool {
		r := l.releases[id]
		if r == nil || l.byUID[r.UID] == nil && !l.survives(r.UID) {
			return true
		}
		return !l.at(r.UID).Names(id)
	})
}

// current gives have, unless what the plugin's configuration is from, a value of it,
// or what its url means by a lock file, is another by now: then there is no release of
// the plugin as it is wanted.
func (s secrets) current(p *chandler.Plugin, have *chandler.Release) *chandler.Release {
	if p == nil || have == nil || slices.Equal(s.versions(p), have.ConfigFrom) && resolve.AsLocked(p, have) {
		return have
	}
	return nil
}

// kept is what is said of a plugin with secrets in its configuration when an Envoy
// does not take it: that, and no word of Envoy's or of the plugin's, which may have
// them in it.
func kept(err error) error {
	var p *chandler.Problem
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case !errors.As(err, &p):
		return errors.New("it could not be tried in Envoy; what was said is kept back, as its configuration holds secrets")
	case p.Code == chandler.CodeWasmTimeout, p.Code == chandler.CodeWasmMemory:
		return err // these words are ours
	}
	return chandler.Problemf(p.Code, p.Field, "try it with made-up values in pluginConfig to see its words",
		"Envoy refuses it; what the plugin said is kept back, as its configuration holds secrets")
}

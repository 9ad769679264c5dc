package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source"
)

// followed is a secret that some plugin names.
type followed struct {
	cancel context.CancelFunc
	since  time.Time
	// state is nil until there was an answer.
	state *secretState
}

// secretState is what is known of a secret: absent, of no use because of problem,
// or there.
type secretState struct {
	there  bool
	secret source.Secret
}

// namedSecrets gives those that are named and no other, and keeps up with them from
// now on. It is false as long as one of them was not heard of, for a moment.
func (s *reader) namedSecrets(ctx context.Context, named map[source.SecretName]bool) (map[source.SecretName]source.Secret, bool) {
	for name, f := range s.secrets {
		if !named[name] {
			f.cancel()
			delete(s.secrets, name)
		}
	}
	out := make(map[source.SecretName]source.Secret, len(named))
	waiting := false
	for name := range named {
		f := s.secrets[name]
		if f == nil {
			f = s.followSecret(ctx, name)
		}
		switch {
		case f.state != nil && f.state.there:
			out[name] = f.state.secret
		case f.state != nil:
		case time.Since(f.since) < secretPatience:
			waiting = true
		default:
			out[name] = source.Secret{SecretName: name, Problem: chandler.Problemf(chandler.CodeSecretType, "", "wait, or see the control plane's log",
				"secret %s cannot be read now: the API server does not answer", chandler.Quote(name.Name))}
		}
	}
	return out, !waiting
}

// followSecret begins to keep up with a secret. The lock is held.
func (s *reader) followSecret(ctx context.Context, name source.SecretName) *followed {
	ctx, cancel := context.WithCancel(ctx)
	f := &followed{cancel: cancel, since: time.Now()}
	s.secrets[name] = f
	api := s.cfg.Client.dynamic.Resource(schema.GroupVersionResource{Version: "v1", Resource: "secrets"}).Namespace(name.Namespace)
	s.tasks.Go(func() {
		late := time.AfterFunc(secretPatience, s.changed)
		defer late.Stop()
		keepUp(ctx, api, name.Name, &outage{log: s.log, what: "secret " + name.Namespace + "/" + name.Name}, func(o *unstructured.Unstructured, err error) {
			next := secretState{there: true}
			switch {
			case apierrors.IsForbidden(err):
				next.secret = source.Secret{SecretName: name, Problem: chandler.Problemf(chandler.CodeSecretType, "",
					"grant get and watch on it to the control plane's service account", "the control plane may not read secret %s in namespace %s", chandler.Quote(name.Name), name.Namespace)}
			case err != nil:
				return // as before
			case o == nil:
				next.there = false
			default:
				next.secret = readSecret(name, o)
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if f.state == nil || !f.state.equal(&next) {
				f.state = &next
				s.changed()
			}
		})
	})
	return f
}

func (a *secretState) equal(b *secretState) bool {
	p, q := a.secret.Problem, b.secret.Problem
	return a.there == b.there && a.secret.Type == b.secret.Type && a.secret.Version == b.secret.Version &&
		maps.EqualFunc(a.secret.Values, b.secret.Values, bytes.Equal) && (p == nil) == (q == nil) && (p == nil || *p == *q)
}

// readSecret judges a secret as one of a file is judged. Nothing of its content is
// in a problem.
func readSecret(name source.SecretName, o *unstructured.Unstructured) source.Secret {
	none := source.Secret{SecretName: name, Problem: chandler.Problemf(chandler.CodeSecretType, "", "make it with: kubectl create secret",
		"secret %s cannot be read", chandler.Quote(name.Name))}
	text, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": source.KindSecret, "metadata": map[string]any{"name": name.Name, "namespace": name.Namespace},
		"type": o.Object["type"], "data": o.Object["data"],
	})
	if err != nil {
		return none
	}
	for _, d := range source.Decode(text, name.Namespace) {
		switch {
		case d.Secret != nil:
			// All replicas see the same, and it is nothing of the content.
			d.Secret.Version = string(o.GetUID()) + "/" + o.GetResourceVersion()
			return *d.Secret
		case len(d.Problems) > 0:
			p := d.Problems[0]
			p.Message = "secret " + chandler.Quote(name.Name) + ": " + p.Message
			none.Problem = &p
		}
	}
	return none
}

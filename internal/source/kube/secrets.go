package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/source"
)

var secretResource = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}

const (
	// secretPatience is how long a plugin waits for the first sight of its secret.
	secretPatience = 2 * time.Second
	// maxSecrets bounds the secrets that are watched; each is a stream of its own.
	maxSecrets = 2000
)

// secretWatches follow the secrets that plugins name, each by itself: nothing
// else in a namespace is ever asked for, so that the right to get, list and watch may be granted
// by name. What they hold is in memory only, and in no message.
type secretWatches struct {
	client  *Client
	changed func()
	watches map[source.SecretName]*secretWatch
	running sync.WaitGroup
}

type secretWatch struct {
	*mirror
	cancel context.CancelFunc
	since  time.Time
	last   source.Secret // as judged
	found  bool
}

// want watches these secrets and no others.
func (s *secretWatches) want(ctx context.Context, names map[source.SecretName]bool) {
	for name, w := range s.watches {
		if !names[name] {
			w.cancel()
			delete(s.watches, name)
		}
	}
	for name := range names {
		if s.watches[name] != nil || len(s.watches) >= maxSecrets {
			continue
		}
		watching, cancel := context.WithCancel(ctx)
		w := &secretWatch{cancel: cancel, since: time.Now(), mirror: &mirror{
			resource: s.client.dynamic.Resource(secretResource).Namespace(name.Namespace),
			options:  metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector(metav1.ObjectNameField, name.Name).String()},
			changed:  s.changed,
		}}
		s.watches[name] = w
		s.running.Go(func() { w.run(watching) })
	}
}

// stop ends all watches.
func (s *secretWatches) stop() {
	for _, w := range s.watches {
		w.cancel()
	}
	s.running.Wait()
}

// read gives a secret as it is, or with the problem it has. Neither found nor
// pending: it does not exist. pending is how long it may still take to find out.
//
// While the API server does not answer, what was read last stays; a right that is
// withdrawn is known when a watch ends, and then counts.
func (s *secretWatches) read(name source.SecretName, now time.Time) (secret source.Secret, found bool, pending time.Duration) {
	w := s.watches[name]
	if w == nil {
		return source.Secret{SecretName: name, Problem: chandler.Problemf(chandler.CodeSecretType, "",
			"let plugins share secrets", "more than %d pull secrets are named; this one is not read", maxSecrets)}, true, 0
	}
	synced, err := w.state()
	switch {
	case apierrors.IsForbidden(err):
		return source.Secret{SecretName: name, Problem: chandler.Problemf(chandler.CodeSecretType, "",
			"grant get, list and watch on it to the control plane's service account",
			"the control plane may not read secret %s in namespace %s", chandler.Quote(name.Name), name.Namespace)}, true, 0
	case !synced && now.Sub(w.since) < secretPatience:
		return source.Secret{}, false, secretPatience - now.Sub(w.since)
	case !synced:
		why := "no answer yet"
		if err != nil {
			why = chandler.Printable(err.Error(), 200)
		}
		return source.Secret{SecretName: name, Problem: chandler.Problemf(chandler.CodeSecretType, "",
			"wait, or look at the API server", "secret %s in namespace %s could not be read: %s", chandler.Quote(name.Name), name.Namespace, why)}, true, 0
	}
	for _, u := range w.take() {
		w.found = u != nil
		if w.last = (source.Secret{}); u != nil {
			w.last = judgeSecret(name, u)
		}
	}
	return w.last, w.found, 0
}

// judgeSecret reads a secret by the rules that hold for one in a file.
func judgeSecret(name source.SecretName, u *unstructured.Unstructured) source.Secret {
	read := map[string]any{"apiVersion": "v1", "kind": source.KindSecret, "type": u.Object["type"], "data": u.Object["data"],
		"metadata": map[string]any{"name": name.Name, "namespace": name.Namespace}}
	unreadable := chandler.Problemf(chandler.CodeSecretType, "", "write it anew", "secret %s cannot be read", chandler.Quote(name.Name))
	text, err := json.Marshal(read)
	if err != nil {
		return source.Secret{SecretName: name, Problem: unreadable}
	}
	docs := source.Decode(text, name.Namespace)
	switch {
	case len(docs) == 1 && docs[0].Secret != nil:
		return *docs[0].Secret
	case len(docs) == 1 && len(docs[0].Problems) > 0:
		p := docs[0].Problems[0]
		p.Message = "secret " + chandler.Quote(name.Name) + ": " + p.Message
		p.Field = cmp.Or(p.Field, "data")
		return source.Secret{SecretName: name, Problem: &p}
	}
	return source.Secret{SecretName: name, Problem: unreadable}
}

// sameSecret compares two secrets.
func sameSecret(a, b source.Secret) bool {
	if (a.Problem == nil) != (b.Problem == nil) || a.Problem != nil && *a.Problem != *b.Problem {
		return false
	}
	return a.SecretName == b.SecretName && string(a.DockerConfigJSON) == string(b.DockerConfigJSON)
}

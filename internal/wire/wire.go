// Package wire translates between the nouns of package chandler and the
// messages that travel between control plane and agents. What comes from
// outside is bounded and checked here, so that nobody behind it has to: names
// of at most 512 bytes without control characters and their like, texts that are fit to be
// shown, lists with an end, enums without strangers.
//
// It opens no connection and knows no transport.
package wire

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

// Limits of what is taken from outside.
const (
	MaxName    = 512      // bytes of a name, a label, a digest, a feature
	MaxMessage = 4 << 10  // bytes of a text for people
	MaxPath    = 4 << 10  // bytes of a path or a reference
	MaxConfig  = 1 << 20  // bytes of a plugin's configuration
	MaxCode    = 64 << 10 // bytes of inline code
	MaxStates  = 1000     // attachments of one proxy
	maxList    = 256      // entries of any other list
)

// checkName accepts what may stand in logs, file names and metrics.
func checkName(field, s string) error {
	switch {
	case s == "":
		return fmt.Errorf("%s is missing", field)
	case len(s) > MaxName:
		return fmt.Errorf("%s of %d bytes, limit %d", field, len(s), MaxName)
	case !chandler.IsPlain(s):
		return fmt.Errorf("%s %s has characters that are not to be seen", field, chandler.Quote(s))
	}
	return nil
}

func checkOptionalName(field, s string) error {
	if s == "" {
		return nil
	}
	return checkName(field, s)
}

func checkLen(field string, n, limit int) error {
	if n > limit {
		return fmt.Errorf("%s: %d, limit %d", field, n, limit)
	}
	return nil
}

// enum is the translation of one closed list; both directions come from one
// table.
type enum[G comparable, P ~int32] struct {
	name string
	to   map[G]P
	from map[P]G
}

func newEnum[G comparable, P ~int32](name string, to map[G]P) enum[G, P] {
	e := enum[G, P]{name: name, to: to, from: make(map[P]G, len(to))}
	for g, p := range to {
		e.from[p] = g
	}
	return e
}

func (e enum[G, P]) decode(p P) (G, error) {
	g, ok := e.from[p]
	if !ok {
		return g, fmt.Errorf("%s %d is not known", e.name, p)
	}
	return g, nil
}

func encodeTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func decodeTime(field string, t *timestamppb.Timestamp) (time.Time, error) {
	if t == nil {
		return time.Time{}, nil
	}
	if err := t.CheckValid(); err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", field, err)
	}
	return t.AsTime(), nil
}

func encodeRef(k chandler.Key, uid string) *chandlerv1.PluginRef {
	return &chandlerv1.PluginRef{Kind: k.Kind, Namespace: k.Namespace, Name: k.Name, Uid: uid}
}

// decodeRef accepts only what Key.String and ParseKey carry there and back.
func decodeRef(r *chandlerv1.PluginRef) (chandler.Key, string, error) {
	k := chandler.Key{Kind: r.GetKind(), Namespace: r.GetNamespace(), Name: r.GetName()}
	if err := checkName("plugin", k.String()); err != nil {
		return chandler.Key{}, "", err
	}
	if back, ok := chandler.ParseKey(k.String()); !ok || back != k {
		return chandler.Key{}, "", fmt.Errorf("plugin %s: want kind, namespace and name", chandler.Quote(k.String()))
	}
	return k, r.GetUid(), checkOptionalName("plugin uid", r.GetUid())
}

func decodeRelease(field, s string) (chandler.ReleaseID, error) {
	if s != "" && !chandler.IsSHA256Hex(s) {
		return "", fmt.Errorf("%s %s is not a release", field, chandler.Quote(s))
	}
	return chandler.ReleaseID(s), nil
}

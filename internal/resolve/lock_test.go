package resolve_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/resolve"
	"chandler.dev/chandler/internal/testenv/module"
)

func locked(p *chandler.Plugin, digest string) *chandler.Plugin {
	p.Wasm.Locked = strings.TrimPrefix(digest, "sha256:")
	return p
}

// What is locked is what the lock file says, wherever the tag is by now, and nobody is
// asked about the tag, whatever the pull policy is.
func TestLocked(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	one, two := module.Append(), module.Deny(403)
	r.set("oci://reg.example/a:old", one)
	r.set("oci://reg.example/a:v1", two)
	p := locked(wasm("oci://reg.example/a:v1", 1), string(digestOf(one)))
	p.Wasm.PullPolicy = chandler.PullAlways
	got := r.must(t, p, nil)
	if want := "oci://reg.example/a:v1@" + string(digestOf(one)); got.Artifact != digestOf(one) || got.Reference != want {
		t.Errorf("%+v", got)
	}
	r.did()
	if again := r.must(t, p, &got); again.ID != got.ID || len(r.did()) > 0 {
		t.Errorf("%+v; what is locked and there was asked for again", again)
	}
	// Another lock is another release of the same generation, and to lock what is there
	// already is none.
	p = locked(wasm("oci://reg.example/a:v1", 1), string(digestOf(two)))
	if resolve.AsLocked(p, &got) || resolve.Kept(p, &got) {
		t.Error("another lock changes nothing")
	}
	next := r.must(t, p, &got)
	if next.Artifact != digestOf(two) || next.ID == got.ID || !resolve.AsLocked(p, &next) {
		t.Errorf("%+v", next)
	}
	unlocked := wasm("oci://reg.example/a:v1", 1)
	if same := r.must(t, unlocked, &next); same.ID != next.ID {
		t.Errorf("without the lock it is another: %+v", same)
	}

	r.set("https://files.example/a.wasm", one)
	web := locked(wasm("https://files.example/a.wasm", 1), string(chandler.Digest[chandler.ModuleDigest](one)))
	fromWeb := r.must(t, web, nil)
	if !resolve.AsLocked(web, &fromWeb) || resolve.AsLocked(locked(web, string(digestOf(one))), &fromWeb) {
		t.Errorf("%+v", fromWeb.Program.Module)
	}
}

// A lock file that names what nobody has is told as such.
func TestLockedAway(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.set("oci://reg.example/a:v1", module.Append())
	p := locked(wasm("oci://reg.example/a:v1", 1), string(digestOf([]byte("gone"))))
	_, err := r.Resolver.Resolve(t.Context(), resolve.Request{Plugin: p})
	var problem *chandler.Problem
	if !errors.As(err, &problem) || problem.Code != chandler.CodeNotFound || !strings.Contains(problem.Message, "the lock file says that oci://reg.example/a:v1 is sha256:") || !strings.Contains(problem.Hint, "chandler lock") {
		t.Fatal(err)
	}
	if a := (resolve.Attempts{}).After(p, err, t0, 1); a.Problem.Field != "spec.url" {
		t.Errorf("%+v", a.Problem)
	}
}

// The schema of an artifact is asked for once, by its digest; what it says is in the
// store. One that cannot be had is no reason not to have the module, but for a while.
func TestSchemas(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	mod := module.Append()
	r.set("oci://reg.example/a:v1", mod)
	text, asked := "{}", []string(nil)
	var fails error
	s := resolve.New(resolve.Config{Fetcher: r.registry, Store: r.store, Schemas: func(_ context.Context, req fetch.Request) ([]byte, error) {
		asked = append(asked, req.Reference.String())
		return []byte(text), fails
	}})
	p := wasm("oci://reg.example/a:v1", 1)
	resolved := func(have *chandler.Release) (chandler.Release, error) {
		return s.Resolve(t.Context(), resolve.Request{Plugin: p, Have: have})
	}
	fails = &fetch.Error{Problem: chandler.Problem{Code: chandler.CodeFetchFailed}, Temporary: true}
	if _, err := resolved(nil); err == nil {
		t.Error("a schema that may be had soon is passed over")
	}
	fails, asked = nil, nil
	got, err := resolved(nil)
	if err != nil || got.Schema == nil || got.Schema.Digest != chandler.Digest[chandler.SchemaDigest]([]byte(text)) || got.Schema.Size != 2 {
		t.Fatal(got.Schema, err)
	}
	if want := []string{"oci://reg.example/a:v1@" + string(digestOf(mod))}; !slices.Equal(asked, want) {
		t.Errorf("asked for %q", asked)
	}
	p = wasm("oci://reg.example/a:v1", 2)
	if again, err := resolved(&got); err != nil || *again.Schema != *got.Schema || len(asked) != 1 {
		t.Errorf("%+v, %v, asked %q", again.Schema, err, asked)
	}

	// When the store lost it, it is fetched again.
	r.store.Drop(func(d chandler.ModuleDigest) bool { return d != chandler.ModuleDigest(got.Schema.Digest) }, 0, false)
	if again, err := resolved(&got); err != nil || *again.Schema != *got.Schema || len(asked) != 2 {
		t.Errorf("%+v, %v, asked %q", again.Schema, err, asked)
	}
	r.store.Drop(func(d chandler.ModuleDigest) bool { return d != chandler.ModuleDigest(got.Schema.Digest) }, 0, false)
	if err := s.Restore(t.Context(), p, &got, nil); err != nil || len(asked) != 3 {
		t.Errorf("%v, asked %q", err, asked)
	}

	other := module.Deny(403)
	r.set("oci://reg.example/b:v1", other)
	p = wasm("oci://reg.example/b:v1", 1)
	fails = &fetch.Error{Problem: chandler.Problem{Code: chandler.CodeConfigBlob, Message: "the artifact's schema is too large"}}
	got, err = resolved(nil)
	if err != nil || got.Schema != nil || got.SchemaUnusable() != "the artifact's schema is too large" {
		t.Errorf("%+v, %v", got, err)
	}
	if again, err := resolved(&got); err != nil || again.SchemaUnusable() == "" {
		t.Errorf("%+v, %v", again, err)
	}
	text, fails = "", nil
	r.set("oci://reg.example/c:v1", module.Prefix())
	p = wasm("oci://reg.example/c:v1", 1)
	if got, err := resolved(nil); err != nil || got.Schema != nil || got.SchemaUnusable() != "" {
		t.Errorf("%+v, %v", got, err)
	}
}

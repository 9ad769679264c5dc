package trust_test

import (
	"context"
	"crypto"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/trust"
)

// TestSignedByKey: every kind of key, in all places where signatures lie, and
// afterwards without the registry.
func TestSignedByKey(t *testing.T) {
	places := map[string]func(*world, *testing.T, keyPair, crypto.Hash){
		"tag": func(w *world, t *testing.T, k keyPair, h crypto.Hash) {
			w.tag(t, w.layer(t, w.payload(), k.sign(t, w.payload(), h)))
		},
		"referrers": func(w *world, t *testing.T, k keyPair, h crypto.Hash) {
			w.refer(t, bundleOf(t, k, statement(w.artifact, predicateSign), h))
		},
		"referrers tag": func(w *world, t *testing.T, k keyPair, h crypto.Hash) {
			w.list(t, w.refer(t, bundleOf(t, k, statement(w.artifact, predicateSign), h)))
			w.withoutReferrers()
		},
	}
	for place, sign := range places {
		for kind, hashes := range map[string][]crypto.Hash{
			"P-256": {crypto.SHA256}, "P-384": {crypto.SHA256, crypto.SHA384}, "P-521": {crypto.SHA256, crypto.SHA512}, "Ed25519": {crypto.SHA256}, "RSA": {crypto.SHA256},
		} {
			for _, h := range hashes {
				t.Run(place+" "+kind+" "+h.String(), func(t *testing.T) {
					w, key, other := newWorld(t), newKey(t, kind), newKey(t, "P-256")
					sign(w, t, key, h)
					w.refused(t, chandler.CodeSigIdentity, "verifies with no key that is wanted", other.pem)
					by := w.trusted(t, other.pem+key.pem) // one of them
					if len(by) != 1 || !strings.HasPrefix(by[0], "key sha256:") {
						t.Errorf("trusted by %q", by)
					}
					before := w.Counts()
					w.trusted(t, other.pem+key.pem)
					if after := w.Counts(); after != before {
						t.Errorf("the registry was asked again: %+v, before %+v", after, before)
					}
					w.Close()
					w.trusted(t, other.pem+key.pem)
				})
			}
		}
	}
}

func TestNothingDemanded(t *testing.T) {
	w := newWorld(t)
	if by := w.trusted(t, ""); len(by) > 0 || w.Counts().ManifestGet > 0 {
		t.Errorf("trusted by %v, the registry was asked: %+v", by, w.Counts())
	}
}

func TestTampered(t *testing.T) {
	w, key := newWorld(t), newKey(t, "P-256")
	signature := key.sign(t, w.payload(), crypto.SHA256)
	w.tag(t, w.layer(t, []byte(strings.Replace(string(w.payload()), "null", `{"a":"b"}`, 1)), signature))
	w.refused(t, chandler.CodeSigIdentity, "verifies with no key that is wanted", key.pem)

	w = newWorld(t)
	bundle := bundleOf(t, key, statement(w.artifact, predicateSign), crypto.SHA256)
	other := bundleOf(t, key, statement(w.artifact[:70]+"0", predicateSign), crypto.SHA256)
	_, sig, _ := strings.Cut(string(other), `"sig":"`)
	sig, _, _ = strings.Cut(sig, `"`)
	before, after, _ := strings.Cut(string(bundle), `"sig":"`)
	_, after, _ = strings.Cut(after, `"`)
	w.refer(t, []byte(before+`"sig":"`+sig+`"`+after))
	w.refused(t, chandler.CodeSigIdentity, "verifies with no key that is wanted", key.pem)
}

// TestOneGoodAmongBad: others may have put theirs beside the good one.
func TestOneGoodAmongBad(t *testing.T) {
	w, key, other := newWorld(t), newKey(t, "P-256"), newKey(t, "P-256")
	stranger := payload("reg.example/else", w.artifact)
	w.tag(t,
		w.layer(t, []byte("no JSON"), []byte("x")),
		w.layer(t, stranger, key.sign(t, stranger, crypto.SHA256)),
		w.layer(t, w.payload(), other.sign(t, w.payload(), crypto.SHA256)),
		w.layer(t, w.payload(), key.sign(t, w.payload(), crypto.SHA256)))
	w.refer(t, []byte("{}"))
	w.trusted(t, key.pem)
}

func TestThreshold(t *testing.T) {
	w, a, b := newWorld(t), newKey(t, "P-256"), newKey(t, "Ed25519")
	one := w.layer(t, w.payload(), a.sign(t, w.payload(), crypto.SHA256))
	again := w.layer(t, w.payload(), a.sign(t, w.payload(), crypto.SHA256))
	both := trust.Rule{Keys: []string{a.pem, b.pem, a.pem}, Threshold: 2}
	w.tag(t, one, again)
	w.refused(t, chandler.CodeSigMissing, "wants signatures of 2", "", rule(t, both))
	w.refer(t, bundleOf(t, b, statement(w.artifact, predicateSign), crypto.SHA256))
	if by := w.trusted(t, "", rule(t, both)); len(by) != 2 {
		t.Errorf("trusted by %v", by)
	}
}

// TestAllRulesHold: the plugin's key does not stand in for the operator's rule, nor
// the rule for the key.
func TestAllRulesHold(t *testing.T) {
	w, own, operator := newWorld(t), newKey(t, "P-256"), newKey(t, "P-256")
	r := rule(t, trust.Rule{Keys: []string{operator.pem}})
	signed := w.layer(t, w.payload(), own.sign(t, w.payload(), crypto.SHA256))
	w.tag(t, signed)
	w.trusted(t, own.pem)
	w.refused(t, chandler.CodeSigIdentity, `signature rule "p" wants`, own.pem, r)
	w.tag(t, w.layer(t, w.payload(), operator.sign(t, w.payload(), crypto.SHA256)))
	w.trusted(t, "", r)
	w = &world{w.Registry, w.ref, w.artifact, w.client, trust.New(trust.Config{Registry: w.client})}
	w.refused(t, chandler.CodeSigIdentity, "verificationKey wants", own.pem, r)
	w.tag(t, signed, w.layer(t, w.payload(), operator.sign(t, w.payload(), crypto.SHA256)))
	if by := w.trusted(t, own.pem, r); len(by) != 2 {
		t.Errorf("trusted by %v", by)
	}
}

// TestRegistryAway: rules that change are judged by the signatures that are known,
// and the registry is asked only when these do not suffice. That it is away then is
// no refusal.
func TestRegistryAway(t *testing.T) {
	w, key, other := newWorld(t), newKey(t, "P-256"), newKey(t, "P-256")
	dir := filepath.Join(t.TempDir(), "signatures")
	again := func() { w.verifier = trust.New(trust.Config{Registry: w.client, Dir: dir}) }
	again()
	w.signTag(t, key)
	w.trusted(t, key.pem)
	w.Fail(func(*http.Request) (int, bool) { return http.StatusServiceUnavailable, true })
	stricter := rule(t, trust.Rule{Keys: []string{other.pem}})
	for range 2 { // the second time after a restart
		w.trusted(t, "", rule(t, trust.Rule{Keys: []string{other.pem, key.pem}}))
		w.unknown(t, w.request("", stricter))
		w.unknown(t, w.request(key.pem, stricter))
		foreign := w.request(key.pem)
		foreign.Artifact = chandler.ArtifactDigest("sha256:" + strings.Repeat("0", 64))
		w.unknown(t, foreign)
		again()
	}
	w.Fail(nil)
	w.refused(t, chandler.CodeSigIdentity, "verifies with no key that is wanted", "", stricter)
}

func (w *world) unknown(t *testing.T, req trust.Request) {
	t.Helper()
	var down *fetch.Error
	if _, err := w.verifier.Verify(t.Context(), req); !errors.As(err, &down) || !down.Temporary {
		t.Errorf("%T %v", err, err)
	}
}

// TestKeptIsVerified: what is on disk is believed no more than what a registry
// says, and what cannot be read there is fetched.
func TestKeptIsVerified(t *testing.T) {
	w, key, other := newWorld(t), newKey(t, "P-256"), newKey(t, "P-256")
	dir := t.TempDir()
	again := func() { w.verifier = trust.New(trust.Config{Registry: w.client, Dir: dir}) }
	again()
	w.signTag(t, key)
	w.trusted(t, key.pem)
	files, err := filepath.Glob(filepath.Join(dir, "*.json"))
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v", files, err)
	}
	kept, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	w.tag(t) // the registry has none any more
	for _, content := range []string{"", "{", "[]", "[{}]", strings.Replace(string(kept), "simplesigning", "other", 1)} {
		if err := os.WriteFile(files[0], []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		again()
		w.refused(t, chandler.CodeSigMissing, "has no signature", key.pem)
	}
	if err := os.WriteFile(files[0], kept, 0o600); err != nil {
		t.Fatal(err)
	}
	again()
	w.refused(t, chandler.CodeSigMissing, "has no signature", other.pem)
	w.trusted(t, key.pem)
}

func TestUnloadedRuleTrustsNobody(t *testing.T) {
	w, key := newWorld(t), newKey(t, "P-256")
	w.signTag(t, key)
	w.refused(t, chandler.CodePolicy, "cannot be used", "", &trust.Rule{Name: "p", Keys: []string{key.pem}})
	bad := &trust.Rule{Name: "p", Keys: []string{"missing.pem"}}
	if problems := bad.Load(func(string) ([]byte, error) { return nil, errors.New("none") }); len(problems) != 1 || bad.Hash() != "" {
		t.Errorf("%v, hash %q", problems, bad.Hash())
	}
	w.refused(t, chandler.CodePolicy, "cannot be used", key.pem, bad)
}

func TestCanceled(t *testing.T) {
	w, key := newWorld(t), newKey(t, "P-256")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.verifier.Verify(ctx, w.request(key.pem)); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestApplies(t *testing.T) {
	for _, c := range []struct {
		rule      trust.Rule
		namespace string
		url       string
		want      bool
	}{
		{trust.Rule{}, "shop", "https://h.example/x.wasm", true},
		{trust.Rule{Namespaces: []string{"shop"}}, "shop", "reg.example/a:v1", true},
		{trust.Rule{Namespaces: []string{"team-*"}}, "team-a", "reg.example/a:v1", true},
		{trust.Rule{Namespaces: []string{"shop"}}, "shopping", "reg.example/a:v1", false},
		{trust.Rule{Repositories: []string{"reg.example/*"}}, "shop", "reg.example/a:v1", true},
		{trust.Rule{Repositories: []string{"reg.example/*"}}, "shop", "reg.example/a/b:v1", false},
		{trust.Rule{Repositories: []string{"reg.example/**"}}, "shop", "reg.example/a/b:v1", true},
		{trust.Rule{Repositories: []string{"reg.example/**/b"}}, "shop", "reg.example/b", true},
		{trust.Rule{Repositories: []string{"reg.example/a"}}, "shop", "reg.example/ab", false},
		{trust.Rule{Repositories: []string{"regXexample/a"}}, "shop", "reg.example/a", false},
		{trust.Rule{Repositories: []string{"docker.io/library/*"}}, "shop", "plugin:v1", true},
		{trust.Rule{Repositories: []string{"**"}}, "shop", "http://h.example/x.wasm?a=b", true},
		{trust.Rule{Repositories: []string{"https://h.example/*"}}, "shop", "https://h.example/x.wasm?a=/b", true},
		{trust.Rule{Repositories: []string{"file:///opt/**"}}, "shop", "file:///opt/a/x.wasm", true},
	} {
		ref, p := chandler.ParseReference(c.url)
		if p != nil {
			t.Fatal(p)
		}
		if got := c.rule.Applies(c.namespace, ref); got != c.want {
			t.Errorf("%+v in %s for %s: %v", c.rule, c.namespace, c.url, got)
		}
	}
}

// TestHash: what is demanded counts, not how the rule is written.
func TestHash(t *testing.T) {
	a, b := newKey(t, "P-256"), newKey(t, "P-384")
	file := func(name string) ([]byte, error) {
		return []byte(map[string]string{"a.pem": a.pem, "b.pem": b.pem}[name]), nil
	}
	load := func(r trust.Rule) string {
		r.Name = "p"
		if problems := r.Load(file); len(problems) > 0 {
			t.Fatal(problems)
		}
		return r.Hash()
	}
	same := []string{load(trust.Rule{Keys: []string{a.pem}}), load(trust.Rule{Keys: []string{"a.pem"}, Namespaces: []string{"shop"}})}
	if same[0] != same[1] || same[0] == "" {
		t.Errorf("%q", same)
	}
	all := []string{
		same[0], load(trust.Rule{Keys: []string{"b.pem"}}), load(trust.Rule{Keys: []string{"a.pem", "b.pem"}}), load(trust.Rule{Keys: []string{"a.pem", "b.pem"}, Threshold: 2}),
		load(trust.Rule{Keys: []string{"a.pem"}, SignedAs: []string{"reg.example/**"}}),
	}
	slices.Sort(all)
	if n := len(slices.Compact(all)); n != 5 {
		t.Errorf("%d different hashes of 5", n)
	}
}

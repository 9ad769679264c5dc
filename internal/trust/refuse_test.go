package trust_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/trust"
)

func TestRefuse_B78(t *testing.T) {
	w, key := newWorld(t), newKey(t, "P-256")
	r := rule(t, trust.Rule{Name: "signed plugins", Keys: []string{key.pem}})
	w.refused(t, chandler.CodeSigMissing, `signature rule "signed plugins" wants a signature of key sha256:`, "", r)
	w.refused(t, chandler.CodeSigMissing, string(w.artifact)+" has no signature", "", r)
	w.withoutReferrers()
	w.refused(t, chandler.CodeSigMissing, "verificationKey wants", key.pem)
	for _, url := range []string{"https://h.example/x.wasm", "http://h.example/x.wasm", "file:///opt/x.wasm"} {
		ref, p := chandler.ParseReference(url)
		if p != nil {
			t.Fatal(p)
		}
		_, err := w.verifier.Verify(t.Context(), trust.Request{Reference: ref, Rules: []*trust.Rule{r}})
		refusal(t, err, chandler.CodeSigMissing, "nothing at "+string(ref.Scheme)+" urls can be signed; push the module to a registry")
	}
}

func TestRefuse_B79(t *testing.T) {
	w, key := newWorld(t), newKey(t, "P-256")
	const foreign = chandler.ArtifactDigest("sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
	sign := func(p []byte) object { return w.layer(t, p, key.sign(t, p, crypto.SHA256)) }

	w.tag(t, sign(payload(w.Addr+"/"+repository, foreign)))
	w.refused(t, chandler.CodeSigSubject, fmt.Sprintf("the artifact is %s; signature 0 of tag %s....sig is for %s", w.artifact, strings.Replace(string(w.artifact[:19]), ":", "-", 1), foreign), key.pem)
	for _, other := range []string{w.Addr + "/team/other", "reg.example/" + repository, "", "!"} {
		w.tag(t, sign(payload(other, w.artifact)))
		w.refused(t, chandler.CodeSigSubject, "is for repository "+chandler.Quote(other), key.pem)
	}
	// A copy of a signed module, where the operator says so.
	w.tag(t, sign(payload("reg.example/"+repository, w.artifact)))
	w.trusted(t, "", rule(t, trust.Rule{Keys: []string{key.pem}, SignedAs: []string{"reg.example/team/*"}}))
	w.refused(t, chandler.CodeSigSubject, "is for repository", "", rule(t, trust.Rule{Keys: []string{key.pem}, SignedAs: []string{"reg.example/*"}}))

	w.tag(t)
	w.refer(t, bundleOf(t, key, statement(foreign, predicateSign), crypto.SHA256))
	w.refused(t, chandler.CodeSigSubject, "is for "+string(foreign), key.pem)
}

func TestRefuse_B81(t *testing.T) {
	for pattern, text := range map[string]string{
		"":                              "one of subject and subjectPattern is needed",
		"@example.com$":                 "is not anchored at both ends",
		"^https://ci.example/":          "is not anchored at both ends",
		"^a@example.com|b@example.com$": "is not anchored at both ends",
		"(?m)^a@example.com$":           "is not anchored at both ends",
		"(":                             "is no regular expression",
	} {
		r := trust.Rule{Name: "p", Identities: []trust.Identity{{Issuer: "https://issuer.example", SubjectPattern: pattern}}, TrustedRoot: "root.json"}
		problems := r.Check()
		if len(problems) != 1 || !strings.HasPrefix(problems[0].Field, "identities[0].subject") {
			t.Fatalf("%q: %v", pattern, problems)
		}
		refusal(t, &problems[0], chandler.CodePolicy, text)
	}
	for _, pattern := range []string{"^a@example.com$", "^(?:a|b)@example.com$", "^a$|^b$", "^(a|b)$", `\Aa\z`} {
		r := trust.Rule{Name: "p", Identities: []trust.Identity{{IssuerPattern: pattern, SubjectPattern: pattern}}, TrustedRoot: "root.json"}
		if problems := r.Check(); len(problems) > 0 {
			t.Errorf("%q: %v", pattern, problems)
		}
	}
	ca := newAuthority(t)
	for _, place := range places {
		w := newWorld(t)
		place.sign(ca, t, w)
		w.refused(t, chandler.CodeSigIdentity, "is signed by a@example.com (issuer https://issuer.example)", "",
			ca.rule(t, trust.Identity{Issuer: "https://issuer.example", Subject: "b@example.com"}))
		w.refused(t, chandler.CodeSigIdentity, "wants a signature of a@example.com (issuer https://other.example)", "",
			ca.rule(t, trust.Identity{Issuer: "https://other.example", Subject: "a@example.com"}))
		w.refused(t, chandler.CodeSigIdentity, "does not verify", "", newAuthority(t).withLogsOf(ca).rule(t, someone))
	}
	// By somebody, but with the wrong key.
	w, key, other := newWorld(t), newKey(t, "P-256"), newKey(t, "P-256")
	w.signTag(t, other)
	w.refused(t, chandler.CodeSigIdentity, "verifies with no key that is wanted", key.pem)
}

func TestRefuse_B83(t *testing.T) {
	w, key, other := newWorld(t), newKey(t, "P-256"), newKey(t, "P-256")
	good := w.layer(t, w.payload(), key.sign(t, w.payload(), crypto.SHA256))
	bad := w.layer(t, w.payload(), other.sign(t, w.payload(), crypto.SHA256))
	var many []object
	for range 2000 {
		many = append(many, bad)
	}
	w.tag(t, append(many, good)...)
	w.refused(t, chandler.CodeSigLimit, "2001 signatures, 50 looked at", key.pem)
	for range 8000 {
		many = append(many, bad)
	}
	w.tag(t, many...)
	w.refused(t, chandler.CodeSigLimit, "over 1048576 bytes", key.pem)

	large := w.layer(t, w.payload(), key.sign(t, w.payload(), crypto.SHA256))
	large["size"] = 100 << 20
	w.tag(t, large)
	w.refused(t, chandler.CodeSigLimit, "declared size is 104857600 bytes, limit 262144", key.pem)
	w.tag(t)
	w.refer(t, []byte(strings.Repeat("x", 1<<20)))
	w.refused(t, chandler.CodeSigLimit, "declared size is 1048576 bytes, limit 262144", key.pem)
}

// TestRefuse_B83_Pages: pages of referrers without end, in a circle, and at
// another place.
func TestRefuse_B83_Pages(t *testing.T) {
	var asked int
	var link func(r *http.Request) string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/v2/":
			return
		case !strings.Contains(r.URL.Path, "/referrers/"):
			http.NotFound(w, r)
			return
		}
		asked++
		w.Header().Set("Content-Type", "application/vnd.oci.image.index.v1+json")
		w.Header().Set("Link", "<"+link(r)+`>; rel="next"`)
		fmt.Fprint(w, `{"schemaVersion":2,"manifests":[]}`)
	}))
	defer srv.Close()
	key := newKey(t, "P-256")
	for text, to := range map[string]func(r *http.Request) string{
		"more than 10 pages":   func(r *http.Request) string { return fmt.Sprintf("%s?page=%d", r.URL.Path, asked) },
		"lead in a circle":     func(r *http.Request) string { return "?page=1" },
		"at another place":     func(r *http.Request) string { return "http://169.254.169.254" + r.URL.Path + "?page=1" },
		"place, \"" + "127.0.": func(r *http.Request) string { return "/v2/other/tags?page=1" },
	} {
		w := newWorld(t)
		w.ref.Host = srv.Listener.Addr().String()
		asked, link = 0, to
		w.refused(t, chandler.CodeSigLimit, text, key.pem)
		if asked > 10 {
			t.Errorf("%s: %d pages were asked for", text, asked)
		}
	}
}

func TestRefuse_B84(t *testing.T) {
	key := newKey(t, "P-256")
	for _, p := range []string{
		"", "{", "null", "[]", `{"critical":null}`, `{"critical":{"type":"other"}}`, `{"critical":{},"more":1}`, string(newWorld(t).payload()) + "{}",
	} {
		w := newWorld(t)
		w.tag(t, w.layer(t, []byte(p+" "), key.sign(t, []byte(p+" "), crypto.SHA256)))
		w.refused(t, chandler.CodeSigParse, "does not parse: the payload", key.pem)
	}
	w := newWorld(t)
	for annotation, value := range map[string]string{
		"dev.cosignproject.cosign/signature": "*", "dev.sigstore.cosign/certificate": "x", "dev.sigstore.cosign/bundle": "{}", "dev.sigstore.cosign/rfc3161timestamp": "[]",
	} {
		w.tag(t, w.layer(t, w.payload(), key.sign(t, w.payload(), crypto.SHA256), annotation, value))
		w.refused(t, chandler.CodeSigParse, "does not parse: annotation "+annotation, key.pem)
	}
	for text, statement := range map[string]string{
		"decoding json": string(statement(w.artifact, predicateSign)) + "}", "it attests \"\"": "{}", "it attests \"https://slsa.dev/provenance/v1\" and is no signature": string(statement(w.artifact, "https://slsa.dev/provenance/v1")),
		"invalid attestation": strings.Replace(string(statement(w.artifact, predicateSign)), `"predicate":{}`, `"predicate":[]`, 1),
	} {
		w := newWorld(t)
		w.refer(t, bundleOf(t, key, []byte(statement), crypto.SHA256))
		w.refused(t, chandler.CodeSigParse, text, key.pem)
	}
	for _, bundle := range []string{"", "{}", "[]", `{"mediaType":"application/vnd.dev.sigstore.bundle.v9+json"}`} {
		w := newWorld(t)
		w.refer(t, []byte(bundle+" "))
		w.refused(t, chandler.CodeSigParse, "does not parse", key.pem)
	}
}

func TestRefuse_B85(t *testing.T) {
	key := newKey(t, "P-256").pem
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	zero, one := 0, 1
	ca := newAuthority(t)
	for _, c := range []struct {
		rule        trust.Rule
		field, text string
	}{
		{trust.Rule{}, "", "nobody is named whose signature counts"},
		{trust.Rule{Keys: []string{""}}, "keys[0]", "authority 0 has no usable key"},
		{trust.Rule{Keys: []string{key, "none.pem"}}, "keys[1]", `file "none.pem" cannot be read`},
		{trust.Rule{Keys: []string{"text"}}, "keys[0]", "authority 0 has no usable key: it is not PEM"},
		{trust.Rule{Keys: []string{"large"}}, "keys[0]", "limit 65536"},
		{trust.Rule{Keys: []string{"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"}}, "keys[0]", "has a block 1 that is no public key"},
		{trust.Rule{Keys: []string{strings.ReplaceAll(key, "PUBLIC", "PRIVATE")}}, "keys[0]", "has a PEM block of type \"PRIVATE KEY\""},
		{trust.Rule{Keys: []string{key + "rest"}}, "keys[0]", "has something after its last PEM block"},
		{trust.Rule{Keys: []string{"-----BEGIN PUBLIC KEY-----\n!\n" + key}}, "keys[0]", "it "},
		{trust.Rule{Keys: []string{publicPEM(t, weak.Public())}}, "keys[0]", "has an RSA key of 1024 bits, at least 2048 are needed"},
		{trust.Rule{Keys: []string{publicPEM(t, curve.Public())}}, "keys[0]", "has an ECDSA key on P-224"},
		{trust.Rule{Identities: []trust.Identity{someone}}, "trustedRoot", "identities need a trusted root"},
		{trust.Rule{Identities: []trust.Identity{someone}, TrustedRoot: "text"}, "trustedRoot", "the trusted root cannot be read"},
		{trust.Rule{Identities: []trust.Identity{{}}, TrustedRoot: ca.json(t)}, "identities[0].issuer", "one of issuer and issuerPattern is needed"},
		{trust.Rule{Identities: []trust.Identity{someone}, TrustedRoot: ca.json(t), LogEntries: &zero}, "timestamps", "without either nobody knows"},
		{trust.Rule{Identities: []trust.Identity{someone}, TrustedRoot: newAuthority(t).without(t, "logs").json(t), LogEntries: &one}, "logEntries", "has 0 transparency logs, needed are 1"},
		{trust.Rule{Keys: []string{key}, Timestamps: &one}, "trustedRoot", "timestamps needs a trusted root"},
		{trust.Rule{Keys: []string{key}, Threshold: -1}, "threshold", "is out of range"},
		{trust.Rule{Keys: []string{key}, Repositories: []string{""}}, "repositories[0]", "is none of a repository"},
		{trust.Rule{Keys: []string{key}, Repositories: []string{"reg.example/team**"}}, "repositories[0]", "has ** where it cannot be"},
		{trust.Rule{Keys: []string{key}, Name: "verificationKey"}, "name", "is none"},
	} {
		if c.rule.Name == "" {
			c.rule.Name = "p"
		}
		problems := c.rule.Load(func(name string) ([]byte, error) {
			switch name {
			case "text":
				return []byte("text"), nil
			case "large":
				return make([]byte, 65537), nil
			}
			return nil, errors.New("no such file")
		})
		if len(problems) == 0 || problems[0].Field != c.field {
			t.Errorf("want %s: %v", c.field, problems)
			continue
		}
		refusal(t, &problems[0], chandler.CodePolicy, c.text)
	}
}

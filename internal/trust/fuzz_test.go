package trust

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
)

const fuzzDigest = chandler.ArtifactDigest("sha256:93a44bbb96c751218e4c00d479e4c14358122a389acca16205b1e4d0dc5f9476")

// fuzzKey is a public key whose private half nobody has.
const fuzzKey = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEVs/o5+uQbTjL3chynL4wXgUg2R9\n" +
	"q9UU8I5mEovUf86QZ7kOBIjJwqnzD1omageEHWwHdBO6B+dFabmdT9POxg==\n-----END PUBLIC KEY-----\n"

// never expects that a signature is refused by name, or at least counts for nobody.
func never(t *testing.T, s fetch.Signature) {
	t.Helper()
	r := &Rule{Name: "p", Keys: []string{fuzzKey}}
	if problems := r.Load(nil); len(problems) > 0 {
		t.Fatal(problems)
	}
	of := subject{chandler.Reference{Scheme: chandler.SchemeOCI, Host: "reg.example", Repository: "a"}, fuzzDigest}
	said, p := judge(of, []*Rule{r}, fetch.Signatures{Found: []fetch.Signature{s}, Listed: 1})
	if p == nil {
		t.Fatalf("trusted by %v", said.By)
	}
	if rank(p.Code) < 0 || p.Hint == "" || len(p.Error()) > 4096 {
		t.Fatalf("not named: %s: %v", p.Code, p)
	}
}

// FuzzSimpleSigning: no payload, with whatever beside it, is taken for a signature
// that a key never made.
func FuzzSimpleSigning(f *testing.F) {
	payload := `{"critical":{"identity":{"docker-reference":"reg.example/a"},"image":{"docker-manifest-digest":"` + string(fuzzDigest) + `"},"type":"` + simpleSigning + `"},"optional":null}`
	const log = `{"SignedEntryTimestamp":"AA==","Payload":{"body":"eyJraW5kIjoiaGFzaGVkcmVrb3JkIiwiYXBpVmVyc2lvbiI6IjAuMC4xIiwic3BlYyI6e319","integratedTime":1,"logIndex":1,"logID":"00"}}`
	f.Add([]byte(payload), base64.StdEncoding.EncodeToString([]byte("signature")), "", "", "")
	f.Add([]byte(payload), "AA==", "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", log, `{"SignedRFC3161Timestamp":"AA=="}`)
	f.Add([]byte(`{"critical":null}`), "", "x", "{}", "[]")
	f.Fuzz(func(t *testing.T, payload []byte, signature, certificate, log, timestamp string) {
		never(t, fetch.Signature{Where: "signature 0", MediaType: fetch.TypeSimpleSigning, Content: payload, Annotations: map[string]string{
			annotationSignature: signature, annotationCertificate: certificate, annotationLog: log, annotationTimestamp: timestamp,
		}})
	})
}

// FuzzBundle: no bundle is taken for a signature that a key never made.
func FuzzBundle(f *testing.F) {
	statement := `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"` + bare(fuzzDigest) + `"}}],"predicateType":"` + predicateSign + `","predicate":{}}`
	for _, by := range []string{`"publicKey":{"hint":"x"}`, `"certificate":{"rawBytes":"AA=="}`, `"x509CertificateChain":{"certificates":[{"rawBytes":"AA=="}]}`} {
		for _, content := range []string{
			`"dsseEnvelope":{"payload":"` + base64.StdEncoding.EncodeToString([]byte(statement)) + `","payloadType":"application/vnd.in-toto+json","signatures":[{"sig":"AA=="}]}`,
			`"messageSignature":{"messageDigest":{"algorithm":"SHA2_256","digest":"k6RLu5bHUSGOTADUeeTBQ1gSKjiazKFiBbHk0NxflHY="},"signature":"AA=="}`,
		} {
			f.Add([]byte(`{"mediaType":"application/vnd.dev.sigstore.bundle.v0.3+json","verificationMaterial":{` + by + `,"tlogEntries":[]},` + content + `}`))
		}
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		never(t, fetch.Signature{Where: "bundle", MediaType: fetch.TypeBundle + ".v0.3+json", Content: content})
	})
}

// FuzzRule: whatever an operator writes is a rule that can be used or is refused by
// name, and the patterns of one that can be used match nothing by accident.
func FuzzRule(f *testing.F) {
	f.Add(`{"Name":"p","Keys":["`+strings.ReplaceAll(fuzzKey, "\n", `\n`)+`"],"Repositories":["reg.example/**"]}`, "reg.example/a")
	f.Add(`{"Name":"p","Identities":[{"Issuer":"https://i","SubjectPattern":"^a|b$"}],"TrustedRoot":"{}"}`, "a")
	f.Fuzz(func(t *testing.T, text, name string) {
		var r Rule
		if json.Unmarshal([]byte(text), &r) != nil {
			return
		}
		problems := r.Load(func(string) ([]byte, error) { return []byte(fuzzKey), nil })
		for _, p := range problems {
			if p.Code != chandler.CodePolicy || p.Hint == "" || p.Message == "" {
				t.Fatalf("not named: %+v", p)
			}
		}
		if (len(problems) == 0) != (r.Hash() != "") {
			t.Fatalf("hash %q with %v", r.Hash(), problems)
		}
		for _, p := range r.Repositories {
			if !strings.Contains(p, "*") && chandler.MatchOrigin(p, name) && name != chandler.CanonicalOrigin(p) {
				t.Fatalf("pattern %q matches %q", p, name)
			}
		}
	})
}

// FuzzSigner: what is taken for a private key signs, and what it signs is verified
// with its public half; anything else is refused in words.
func FuzzSigner(f *testing.F) {
	f.Add("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n-----END PRIVATE KEY-----\n", "")
	f.Add("-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\ne30=\n-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n", "x")
	f.Add("-----BEGIN EC PRIVATE KEY-----\nAA==\n-----END EC PRIVATE KEY-----\n", "")
	f.Fuzz(func(t *testing.T, text, password string) {
		s, err := ParseSigner([]byte(text), func() ([]byte, error) { return []byte(password), nil })
		if err != nil {
			if len(err.Error()) > 2048 {
				t.Fatalf("%d bytes of reason", len(err.Error()))
			}
			return
		}
		ref := chandler.Reference{Scheme: chandler.SchemeOCI, Host: "reg.example", Repository: "a"}
		r := &Rule{Name: "p", Keys: []string{s.PublicKey()}}
		if problems := r.Load(nil); len(problems) > 0 {
			t.Fatal(problems)
		}
		for _, form := range []Form{FormBundle, FormTag} {
			sig, err := s.Sign(form, ref, fuzzDigest)
			if err != nil {
				return // a key that is one in form alone
			}
			if _, p := judge(subject{ref, fuzzDigest}, []*Rule{r}, fetch.Signatures{Found: []fetch.Signature{sig}, Listed: 1}); p != nil {
				t.Fatalf("%s: %v", form, p)
			}
		}
	})
}

package trust_test

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"strings"
	"testing"
	"time"

	protobundle "github.com/sigstore/protobuf-specs/gen/pb-go/bundle/v1"
	protocommon "github.com/sigstore/protobuf-specs/gen/pb-go/common/v1"
	protodsse "github.com/sigstore/protobuf-specs/gen/pb-go/dsse"
	protorekor "github.com/sigstore/protobuf-specs/gen/pb-go/rekor/v1"
	"github.com/sigstore/sigstore-go/pkg/root"
	"github.com/sigstore/sigstore-go/pkg/testing/ca"
	"github.com/sigstore/sigstore-go/pkg/tlog"
	"google.golang.org/protobuf/encoding/protojson"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/trust"
)

// someone signs in these tests.
var someone = trust.Identity{Issuer: "https://issuer.example", Subject: "a@example.com"}

// authority is a whole Sigstore of its own: authorities of certificates and of
// time, and a log.
type authority struct {
	*ca.VirtualSigstore
	certificates []root.CertificateAuthority
	times        []root.TimestampingAuthority
	logs         map[string]*root.TransparencyLog
	ctLogs       map[string]*root.TransparencyLog // its certificates are in none
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	v, err := ca.NewVirtualSigstore()
	if err != nil {
		t.Fatal(err)
	}
	return &authority{VirtualSigstore: v, certificates: v.FulcioCertificateAuthorities(), times: v.TimestampingAuthorities(), logs: realIDs(t, v.RekorLogs())}
}

// realIDs: what the test authority gives as the id of a log is its text.
func realIDs(t *testing.T, logs map[string]*root.TransparencyLog) map[string]*root.TransparencyLog {
	t.Helper()
	for id, log := range logs {
		raw, err := hex.DecodeString(id)
		if err != nil {
			t.Fatal(err)
		}
		log.ID = raw
	}
	return logs
}

// withLogsOf trusts the log and the time of another one, so that only the
// certificates differ.
func (a *authority) withLogsOf(other *authority) *authority {
	a.logs, a.times = other.logs, other.times
	return a
}

// without takes something out of the trusted root.
func (a *authority) without(t *testing.T, what string) *authority {
	t.Helper()
	switch what {
	case "logs":
		a.logs = nil
	case "times":
		a.times = nil
	}
	return a
}

func (a *authority) json(t *testing.T) string {
	t.Helper()
	r, err := root.NewTrustedRoot(root.TrustedRootMediaType01, a.certificates, a.ctLogs, a.times, a.logs)
	if err != nil {
		t.Fatal(err)
	}
	b, err := r.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (a *authority) rule(t *testing.T, ids ...trust.Identity) *trust.Rule {
	t.Helper()
	return rule(t, trust.Rule{Identities: ids, TrustedRoot: a.json(t)})
}

// place is where a signature lies and how it is made.
type place struct {
	name string
	sign func(a *authority, t *testing.T, w *world)
}

var places = []place{
	{"tag", func(a *authority, t *testing.T, w *world) { w.tag(t, a.layer(t, w, nil)) }},
	{"referrers", func(a *authority, t *testing.T, w *world) { w.refer(t, a.bundle(t, w, nil)) }},
}

// layer is a keyless signature for cosign's tag; change may alter what is beside it.
func (a *authority) layer(t *testing.T, w *world, change func(annotations map[string]string)) object {
	t.Helper()
	e, err := a.Sign(someone.Subject, someone.Issuer, w.payload())
	if err != nil {
		t.Fatal(err)
	}
	m := a.material(t, e)
	annotations := map[string]string{
		"dev.sigstore.cosign/certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: m.GetCertificate().RawBytes})),
		"dev.sigstore.cosign/bundle":      promise(t, m.TlogEntries[0]),
		"dev.sigstore.cosign/rfc3161timestamp": string(marshal(t, object{
			"SignedRFC3161Timestamp": m.TimestampVerificationData.Rfc3161Timestamps[0].SignedTimestamp,
		})),
	}
	if change != nil {
		change(annotations)
	}
	var more []string
	for k, v := range annotations {
		more = append(more, k, v)
	}
	content, err := e.SignatureContent()
	if err != nil {
		t.Fatal(err)
	}
	return w.layer(t, w.payload(), content.Signature(), more...)
}

// promise is a log entry as cosign writes it beside a signature.
func promise(t *testing.T, e *protorekor.TransparencyLogEntry) string {
	t.Helper()
	return string(marshal(t, object{
		"SignedEntryTimestamp": e.InclusionPromise.SignedEntryTimestamp,
		"Payload": object{
			"body": e.CanonicalizedBody, "integratedTime": e.IntegratedTime, "logIndex": e.LogIndex, "logID": hex.EncodeToString(e.LogId.KeyId),
		},
	}))
}

// bundle is a keyless signature in a bundle; change may alter what is in it.
func (a *authority) bundle(t *testing.T, w *world, change func(*protobundle.VerificationMaterial)) []byte {
	t.Helper()
	return a.bundleOf(t, statement(w.artifact, predicateSign), change)
}

func (a *authority) bundleOf(t *testing.T, statement []byte, change func(*protobundle.VerificationMaterial)) []byte {
	t.Helper()
	e, err := a.AttestAtTime(someone.Subject, someone.Issuer, statement, time.Now().Add(5*time.Minute), true)
	if err != nil {
		t.Fatal(err)
	}
	content, err := e.SignatureContent()
	if err != nil {
		t.Fatal(err)
	}
	m := a.material(t, e)
	if change != nil {
		change(m)
	}
	b, err := protojson.Marshal(&protobundle.Bundle{
		MediaType: typeBundle, VerificationMaterial: m,
		Content: &protobundle.Bundle_DsseEnvelope{DsseEnvelope: &protodsse.Envelope{
			Payload: statement, PayloadType: typeStatement, Signatures: []*protodsse.Signature{{Sig: content.Signature()}},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// material is what proves a signature of the test authority.
func (a *authority) material(t *testing.T, e *ca.TestEntity) *protobundle.VerificationMaterial {
	t.Helper()
	by, err := e.VerificationContent()
	if err != nil {
		t.Fatal(err)
	}
	entries, err := e.TlogEntries()
	if err != nil {
		t.Fatal(err)
	}
	stamps, err := e.Timestamps()
	if err != nil {
		t.Fatal(err)
	}
	return &protobundle.VerificationMaterial{
		Content:     &protobundle.VerificationMaterial_Certificate{Certificate: &protocommon.X509Certificate{RawBytes: raw(by.Certificate())}},
		TlogEntries: []*protorekor.TransparencyLogEntry{a.complete(t, entries[0].TransparencyLogEntry())},
		TimestampVerificationData: &protobundle.TimestampVerificationData{
			Rfc3161Timestamps: []*protocommon.RFC3161SignedTimestamp{{SignedTimestamp: stamps[0]}},
		},
	}
}

// complete adds what the test authority keeps apart from an entry.
func (a *authority) complete(t *testing.T, e *protorekor.TransparencyLogEntry) *protorekor.TransparencyLogEntry {
	t.Helper()
	var body struct{ Kind, APIVersion string }
	if err := json.Unmarshal(e.CanonicalizedBody, &body); err != nil {
		t.Fatal(err)
	}
	e.KindVersion = &protorekor.KindVersion{Kind: body.Kind, Version: body.APIVersion}
	set, err := a.RekorSignPayload(tlog.RekorPayload{
		LogID: hex.EncodeToString(e.LogId.KeyId), IntegratedTime: e.IntegratedTime, LogIndex: e.LogIndex,
		Body: base64.StdEncoding.EncodeToString(e.CanonicalizedBody),
	})
	if err != nil {
		t.Fatal(err)
	}
	e.InclusionPromise = &protorekor.InclusionPromise{SignedEntryTimestamp: set}
	return e
}

func raw(c *x509.Certificate) []byte { return c.Raw }

// TestKeyless: a certificate, with a log entry or a timestamp as the root allows,
// and afterwards without the registry.
func TestKeyless(t *testing.T) {
	for _, place := range places {
		for _, c := range []struct {
			name string
			root func(*authority) *authority
			rule func(*trust.Rule)
		}{
			{"log", func(a *authority) *authority { return a.without(t, "times") }, nil},
			{"timestamp", func(a *authority) *authority { return a.without(t, "logs") }, nil},
			{"log and timestamp", nil, func(r *trust.Rule) { one := 1; r.LogEntries, r.Timestamps = &one, &one }},
			{"pattern", nil, func(r *trust.Rule) {
				r.Identities = []trust.Identity{{IssuerPattern: "^https://[a-z]+[.]example$", SubjectPattern: "^.*@example[.]com$"}}
			}},
		} {
			t.Run(place.name+" "+c.name, func(t *testing.T) {
				a, w := newAuthority(t), newWorld(t)
				place.sign(a, t, w)
				if c.root != nil {
					a = c.root(a)
				}
				r := trust.Rule{Identities: []trust.Identity{someone}, TrustedRoot: a.json(t)}
				if c.rule != nil {
					c.rule(&r)
				}
				loaded := rule(t, r)
				if by := w.trusted(t, "", loaded); len(by) != 1 || by[0] != "a@example.com (issuer https://issuer.example)" {
					t.Errorf("trusted by %q", by)
				}
				w.Fail(func(*http.Request) (int, bool) { return 0, true })
				w.trusted(t, "", loaded)
				w.trusted(t, "", a.rule(t, trust.Identity{Issuer: "https://none.example", Subject: "b"}, someone)) // another rule
			})
		}
	}
}

// TestKeylessAndKey: either signer of a rule will do.
func TestKeylessAndKey(t *testing.T) {
	a, w, key := newAuthority(t), newWorld(t), newKey(t, "P-256")
	w.refer(t, a.bundle(t, w, nil))
	w.refused(t, chandler.CodeSigIdentity, "is signed by a@example.com", key.pem)
	w.trusted(t, "", rule(t, trust.Rule{Keys: []string{key.pem}, Identities: []trust.Identity{someone}, TrustedRoot: a.json(t)}))
	w.tag(t)
	w.signTag(t, key)
	w.refused(t, chandler.CodeSigIdentity, "wants signatures of 2", "",
		rule(t, trust.Rule{Keys: []string{newKey(t, "P-256").pem}, Identities: []trust.Identity{someone}, TrustedRoot: a.json(t), Threshold: 2}))
	both := rule(t, trust.Rule{Keys: []string{key.pem}, Identities: []trust.Identity{someone}, TrustedRoot: a.json(t), Threshold: 2})
	if by := w.trusted(t, "", both); len(by) != 2 {
		t.Errorf("trusted by %v", by)
	}
}

// TestRefuse_B80: log entries and timestamps that are not of this signature, or
// not there (CVE-2026-22703).
func TestRefuse_B80(t *testing.T) {
	a := newAuthority(t)
	r := a.rule(t, someone)
	other, err := a.Sign(someone.Subject, someone.Issuer, []byte("something else"))
	if err != nil {
		t.Fatal(err)
	}
	const annotation = "dev.sigstore.cosign/bundle"
	const text = "its log entry does not hold for it: "
	for why, change := range map[string]func(map[string]string){
		text + "transparency log signature does not match": func(m map[string]string) { m[annotation] = promise(t, a.material(t, other).TlogEntries[0]) },
		text + "not enough verified log entries":           func(m map[string]string) { delete(m, annotation) },
		text + "not enough verified": func(m map[string]string) {
			m[annotation] = strings.Replace(m[annotation], `"logIndex":1000`, `"logIndex":1001`, 1)
		},
	} {
		w := newWorld(t)
		w.tag(t, a.layer(t, w, change))
		w.refused(t, chandler.CodeSigLog, why, "", r)
	}
	for why, change := range map[string]func(*testing.T, *world, *protobundle.VerificationMaterial){
		text + "transparency log": func(t *testing.T, _ *world, m *protobundle.VerificationMaterial) {
			b := new(protobundle.Bundle)
			if err := protojson.Unmarshal(a.bundleOf(t, []byte(`{"predicateType":"x"}`), nil), b); err != nil {
				t.Fatal(err)
			}
			m.TlogEntries = b.VerificationMaterial.TlogEntries
		},
		text + "not enough": func(_ *testing.T, _ *world, m *protobundle.VerificationMaterial) { m.TlogEntries = nil },
	} {
		w := newWorld(t)
		w.refer(t, a.bundle(t, w, func(m *protobundle.VerificationMaterial) { change(t, w, m) }))
		w.refused(t, chandler.CodeSigLog, why, "", r)
	}
	// A timestamp of something else.
	timed := newAuthority(t).withLogsOf(a).without(t, "logs")
	timed.certificates = a.certificates
	w := newWorld(t)
	w.tag(t, a.layer(t, w, func(m map[string]string) {
		m["dev.sigstore.cosign/rfc3161timestamp"] = string(marshal(t, object{
			"SignedRFC3161Timestamp": a.material(t, other).TimestampVerificationData.Rfc3161Timestamps[0].SignedTimestamp,
		}))
	}))
	w.refused(t, chandler.CodeSigLog, "its time is not proven", "", timed.rule(t, someone))
	// A key, where the operator wants it logged too.
	key, one := newKey(t, "P-256"), 1
	w.signTag(t, key)
	w.refused(t, chandler.CodeSigLog, "not enough verified log entries", "", rule(t, trust.Rule{Keys: []string{key.pem}, LogEntries: &one, TrustedRoot: a.json(t)}))
	w.refused(t, chandler.CodeSigLog, "its time is not proven", "", rule(t, trust.Rule{Keys: []string{key.pem}, Timestamps: &one, TrustedRoot: a.json(t)}))
}

// TestCertificateLog: where the root has certificate logs, a certificate must be in
// one, unless the rule says otherwise.
func TestCertificateLog(t *testing.T) {
	a, w := newAuthority(t), newWorld(t)
	w.tag(t, a.layer(t, w, nil))
	a.ctLogs = realIDs(t, a.CTLogs())
	w.refused(t, chandler.CodeSigIdentity, "signed certificate timestamp", "", a.rule(t, someone))
	zero := 0
	w.trusted(t, "", rule(t, trust.Rule{Identities: []trust.Identity{someone}, TrustedRoot: a.json(t), CertificateLogs: &zero}))
}

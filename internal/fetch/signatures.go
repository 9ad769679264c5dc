package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"

	"chandler.dev/chandler"
)

// Bounds of what is read of an artifact's signatures.
const (
	// MaxSignatures is how many are looked at.
	MaxSignatures = 50
	// MaxSignature is how large one may be, in bytes.
	MaxSignature     = 256 << 10
	maxReferrerPages = 10
)

// Media types of signatures.
const (
	// TypeSimpleSigning is a payload that cosign signs; the signature is in the
	// annotations.
	TypeSimpleSigning = "application/vnd.dev.cosign.simplesigning.v1+json"
	// TypeBundle begins the media types of Sigstore's bundles, of all versions.
	TypeBundle = "application/vnd.dev.sigstore.bundle"
)

const (
	typeEmpty           = "application/vnd.oci.empty.v1+json"
	annotationPredicate = "dev.sigstore.bundle.predicateType"
	// predicateSign is the predicate of cosign's signatures; the other ones are
	// attestations: of how a module was built, of what is in it.
	predicateSign = "https://sigstore.dev/cosign/sign/v1"
)

// Signature is what a registry holds as one. Its bytes have the digest under
// which they were asked for; nothing else of it is verified.
type Signature struct {
	// Where says which one it is, for people.
	Where string
	// MediaType is TypeSimpleSigning, or begins with TypeBundle.
	MediaType   string
	Content     []byte
	Annotations map[string]string
}

// Signatures are those of one artifact.
type Signatures struct {
	Found []Signature
	// Listed is how many the registry lists, as far as its list was read; at most
	// MaxSignatures of them were looked at.
	Listed int
	// Faults is what kept some of them from being read.
	Faults []chandler.Problem
}

// Signatures gets what signs an artifact of ref's repository: by cosign's tag
// (sha256-....sig), and the bundles that refer to the artifact, by the referrers
// API or, where the registry has none, by the tag that stands in for it. A
// signature that cannot be read is a fault beside the others; the error is of the
// registry itself, an *Error.
func (c *Client) Signatures(ctx context.Context, ref chandler.Reference, artifact chandler.ArtifactDigest, own *Credentials) (Signatures, error) {
	ref.Digest = artifact
	var got Signatures
	// Lists of signatures change as tags do: a mirror that may not say what a tag
	// means is not asked for them either.
	err := c.from(ctx, ref, own, func(e Endpoint) bool { return e.Pull && e.Resolve }, func(s *session) (settled bool, err error) {
		if got, err = signaturesAt(ctx, s, artifact); err == nil && len(got.Found) == 0 {
			err = refuse(chandler.CodeNotFound, "sign it", "%s: it has no signatures", s.at.Host) // the next place may have some
		}
		return false, err
	})
	if err == nil {
		return got, nil
	}
	e := asError(ctx, err)
	if e.Problem.Code == chandler.CodeNotFound && ctx.Err() == nil { // the last place's word, which is the registry itself
		return got, nil
	}
	return Signatures{}, e
}

func signaturesAt(ctx context.Context, s *session, artifact chandler.ArtifactDigest) (Signatures, error) {
	r := &signatureReader{session: s, artifact: artifact, blobs: map[string][]byte{}}
	for _, read := range []func(context.Context) error{r.readReferrers, r.readTag} {
		if err := read(ctx); err != nil && !r.isFault(asError(ctx, err)) {
			return Signatures{}, err
		}
	}
	return r.got, nil
}

// signatureReader reads the signatures of one artifact.
type signatureReader struct {
	*session
	artifact chandler.ArtifactDigest
	got      Signatures
	looked   int
	blobs    map[string][]byte // one payload may be signed by many
}

// isFault takes an error of one place, or one signature, as a fault beside the
// others. That nothing is there is none; what another try may mend, and what the
// registry refuses to show, is an error of the whole.
func (r *signatureReader) isFault(e *Error) bool {
	switch {
	case e.Temporary, e.Problem.Code == chandler.CodeUnauthorized:
		return false
	case e.Problem.Code != chandler.CodeNotFound && len(r.got.Faults) < MaxSignatures:
		r.got.Faults = append(r.got.Faults, e.Problem)
	}
	return true
}

// look counts a signature; false: there were enough.
func (r *signatureReader) look() bool {
	r.got.Listed++
	if r.looked >= MaxSignatures {
		return false
	}
	r.looked++
	return true
}

// signatureList is a manifest whose layers are signatures, or an index of what
// refers to an artifact.
type signatureList struct {
	SchemaVersion int        `json:"schemaVersion"`
	Layers        []referrer `json:"layers"`
	Manifests     []referrer `json:"manifests"`
}

// referrer is a descriptor of either.
type referrer struct {
	MediaType    string            `json:"mediaType"`
	ArtifactType string            `json:"artifactType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	Annotations  map[string]string `json:"annotations"`
}

func parseSignatureList(raw []byte) (*signatureList, error) {
	if err := checkJSON(raw); err != nil {
		return nil, err
	}
	var l signatureList
	if err := json.Unmarshal(raw, &l); err != nil {
		return nil, manifestProblem("it does not fit a list of signatures at offset %d", offsetOf(err))
	}
	if l.SchemaVersion != 2 {
		return nil, refuse(chandler.CodeManifestType, "sign it again", "schema version of the signatures is %d", l.SchemaVersion)
	}
	return &l, nil
}

// readTag reads cosign's own tag.
func (r *signatureReader) readTag(ctx context.Context) error {
	tag := signatureTag(r.artifact) + ".sig"
	l, _, err := r.list(ctx, "manifests/"+tag, "signatures at tag "+tag, manifestTypes)
	if err != nil {
		return err
	}
	for i := range l.Layers {
		d := &l.Layers[i]
		if d.MediaType != TypeSimpleSigning || !r.look() {
			continue
		}
		where := fmt.Sprintf("signature %d of tag %s", i, short(tag))
		if err := r.take(ctx, d, where, nil); err != nil {
			return err
		}
	}
	return nil
}

// signatureTag is the tag for what belongs to an artifact.
func signatureTag(d chandler.ArtifactDigest) string {
	return strings.Replace(string(d), ":", "-", 1)
}

func short(tag string) string {
	const enough = len("sha256-") + 12
	if len(tag) <= enough {
		return tag
	}
	return tag[:enough] + "..." + strings.TrimLeft(tag[enough:], "0123456789abcdef")
}

// readReferrers reads the bundles that refer to the artifact.
func (r *signatureReader) readReferrers(ctx context.Context) error {
	return r.eachReferrers(ctx, r.artifact, TypeBundle+".v0.3+json", func(l *signatureList) (enough bool, err error) {
		err = r.readBundles(ctx, l)
		return r.looked >= MaxSignatures, err
	})
}

// eachReferrers gives the pages of the list of what refers to an artifact, of one
// type if one is said. The registry may give other types, too.
func (s *session) eachReferrers(ctx context.Context, artifact chandler.ArtifactDigest, artifactType string, page func(*signatureList) (enough bool, err error)) error {
	const index = "index of referrers"
	path, query := "referrers/"+string(artifact), ""
	if artifactType != "" {
		query = url.Values{"artifactType": {artifactType}}.Encode()
	}
	asked := map[string]bool{}
	for range maxReferrerPages {
		asked[query] = true
		l, next, err := s.list(ctx, strings.TrimSuffix(path+"?"+query, "?"), index, []string{typeOCIIndex})
		if err != nil && len(asked) == 1 && hasNoReferrers(err) {
			tag := signatureTag(artifact)
			if l, _, err = s.list(ctx, "manifests/"+tag, index+" at tag "+tag, []string{typeOCIIndex}); err == nil {
				_, err = page(l)
			}
			return err
		}
		if err != nil {
			return err
		}
		enough, err := page(l)
		if err != nil {
			return err
		}
		if query, err = nextPage(next, path); err != nil || query == "" || enough {
			return err
		}
		if asked[query] {
			return refuse(chandler.CodeHTTPLink, "mend the registry", "%s: its pages lead in a circle; stopped", index)
		}
	}
	return refuse(chandler.CodeHTTPLink, "remove what refers to the artifact and is not needed", "%s: it has more than %d pages; stopped", index, maxReferrerPages)
}

// noReferrers is the answer of a registry that does not know the referrers API.
type noReferrers struct{ error }

func (n noReferrers) Unwrap() error { return n.error }

func hasNoReferrers(err error) bool {
	var none noReferrers
	return errors.As(err, &none)
}

// nextPage gives the query of a list's next page. Only the query counts: another
// page is at the same host and the same path, or it is none.
func nextPage(link *url.URL, path string) (query string, err error) {
	if link == nil {
		return "", nil
	}
	if !strings.HasSuffix(link.Path, "/"+path) || link.RawQuery == "" {
		return "", refuse(chandler.CodeHTTPLink, "mend the registry", "the next page of referrers is at another place, %s; stopped", chandler.Quote(link.Host+link.Path))
	}
	return link.RawQuery, nil
}

// readBundles gets the bundles of an index.
func (r *signatureReader) readBundles(ctx context.Context, l *signatureList) error {
	for i := range l.Manifests {
		d := &l.Manifests[i]
		if !d.mayBeBundle() || !r.look() {
			continue
		}
		if err := r.readBundle(ctx, d); err != nil && !r.isFault(asError(ctx, err)) {
			return err
		}
	}
	return nil
}

// mayBeBundle tells whether what refers to an artifact can be a signature. Some
// registries give the type of the manifest's configuration, which is empty, for
// that of the artifact.
func (d *referrer) mayBeBundle() bool {
	predicate, said := d.Annotations[annotationPredicate]
	if said && predicate != predicateSign {
		return false
	}
	return strings.HasPrefix(d.ArtifactType, TypeBundle) || d.ArtifactType == typeEmpty || d.ArtifactType == ""
}

func (r *signatureReader) readBundle(ctx context.Context, d *referrer) error {
	if _, ok := chandler.ParseDigest[chandler.ArtifactDigest](d.Digest); !ok {
		return refuse(chandler.CodeDigestSyntax, "sign it again", "index of referrers: %s is not a digest", chandler.Quote(d.Digest))
	}
	where := "bundle " + short(strings.Replace(d.Digest, ":", "-", 1))
	raw, err := r.small(ctx, "manifests/"+d.Digest, where, d.Digest, maxManifest, []string{typeOCIManifest})
	if err != nil {
		return err
	}
	l, err := parseSignatureList(raw)
	if err != nil {
		return err
	}
	for i := range l.Layers {
		if layer := &l.Layers[i]; strings.HasPrefix(layer.MediaType, TypeBundle) {
			return r.take(ctx, layer, where, d.Annotations)
		}
	}
	if strings.HasPrefix(d.ArtifactType, TypeBundle) {
		return refuse(chandler.CodeLayerType, "sign it again", "%s: its manifest has no layer of %s", where, TypeBundle)
	}
	r.got.Listed-- // something else refers to the artifact
	return nil
}

// take gets the bytes of one signature.
func (r *signatureReader) take(ctx context.Context, d *referrer, where string, annotations map[string]string) error {
	content, err := r.content(ctx, d, where)
	if err != nil {
		if !r.isFault(asError(ctx, err)) {
			return err
		}
		return nil
	}
	if annotations == nil {
		annotations = d.Annotations
	}
	r.got.Found = append(r.got.Found, Signature{Where: where, MediaType: d.MediaType, Content: content, Annotations: annotations})
	return nil
}

func (r *signatureReader) content(ctx context.Context, d *referrer, where string) ([]byte, error) {
	if err := checkAnnotations(where+": ", d.Annotations); err != nil {
		return nil, err
	}
	if _, ok := chandler.ParseDigest[chandler.BlobDigest](d.Digest); !ok {
		return nil, refuse(chandler.CodeDigestSyntax, "sign it again", "%s: %s is not a digest", where, chandler.Quote(d.Digest))
	}
	if d.Size < 0 || d.Size > MaxSignature {
		return nil, refuse(chandler.CodeSigLimit, "sign it again", "%s: declared size is %d bytes, limit %d", where, d.Size, MaxSignature)
	}
	if b, ok := r.blobs[d.Digest]; ok {
		return b, nil
	}
	b, err := r.small(ctx, "blobs/"+d.Digest, where, d.Digest, MaxSignature, nil)
	if err == nil {
		r.blobs[d.Digest] = b
	}
	return b, err
}

// list gets one list of signatures, and where its next page is.
func (s *session) list(ctx context.Context, path, what string, accept []string) (*signatureList, *url.URL, error) {
	resp, err := s.do(ctx, http.MethodGet, path, accept)
	if err != nil {
		s.forget()
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		err := error(statusError(what, resp.StatusCode, resp.Header))
		switch resp.StatusCode {
		case http.StatusNotFound, http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusNotAcceptable:
			return nil, nil, noReferrers{err}
		}
		s.forget()
		return nil, nil, err
	}
	if said, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";"); strings.HasPrefix(path, "referrers/") && said != typeOCIIndex {
		return nil, nil, noReferrers{refuse(chandler.CodeNotFound, "mend the registry", "%s: the registry gives %s", what, chandler.Quote(said))}
	}
	raw, err := readSmall(resp, what, maxManifest)
	if err != nil {
		return nil, nil, err
	}
	l, err := parseSignatureList(raw)
	return l, linkNext(resp), err
}

// small gets something of a known digest into memory.
func (r *signatureReader) small(ctx context.Context, path, what, digest string, limit int64, accept []string) ([]byte, error) {
	resp, err := r.get(ctx, path, what, accept)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := readSmall(resp, what, limit)
	if err != nil {
		return nil, err
	}
	if got := chandler.Digest[chandler.BlobDigest](b); string(got) != digest {
		return nil, refuse(chandler.CodeDigestMismatch, "look at the registry", "%s: the registry gives other bytes for %s: they have %s", what, digest, got)
	}
	return b, nil
}

// readSmall reads a body of at most limit bytes.
func readSmall(resp *http.Response, what string, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return nil, shortBody(what, err, resp.ContentLength, int64(len(b)))
	}
	if int64(len(b)) > limit {
		return nil, refuse(chandler.CodeSigLimit, "remove signatures that are not needed", "%s: over %d bytes", what, limit)
	}
	return b, nil
}

// linkNext reads the Link header (RFC 8288) of a list; nil is the last page.
func linkNext(resp *http.Response) *url.URL {
	for _, value := range resp.Header.Values("Link") {
		for link := range strings.SplitSeq(value, ",") {
			target, params, ok := strings.Cut(strings.TrimSpace(link), ">")
			target, bracket := strings.CutPrefix(target, "<")
			if !ok || !bracket || !strings.Contains(strings.ReplaceAll(params, `"`, ""), "rel=next") {
				continue
			}
			next, err := resp.Request.URL.Parse(target)
			if err != nil {
				return &url.URL{Host: target} // no place that is followed
			}
			if next.Scheme != resp.Request.URL.Scheme || next.Host != resp.Request.URL.Host {
				return &url.URL{Host: next.Host, Path: next.Path}
			}
			return next
		}
	}
	return nil
}

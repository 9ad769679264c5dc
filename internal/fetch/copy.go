package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"chandler.dev/chandler"
)

// Descriptor names some bytes of a registry.
type Descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

// Receiver takes artifacts in: first the blobs of a manifest, then the manifest; the
// entries of an index before it; what is referred to before what refers to it. The
// same may come twice. Bytes have been held against their digests. A *Repository is
// one.
type Receiver interface {
	Blob(ctx context.Context, d Descriptor, r io.ReaderAt) error
	Manifest(ctx context.Context, m Manifest) error
}

// Manifest is a manifest or index, byte for byte.
type Manifest struct {
	Descriptor
	Raw []byte
	// Tag is under which it is known; empty: under its digest alone.
	Tag string
	// Root: it is the artifact that was asked for, and not a part of that, nor what
	// belongs to it.
	Root bool
	// Subject is what it refers to; empty: nothing.
	Subject chandler.ArtifactDigest
}

const (
	maxAttachments = 50 // signatures and the like that are copied of one manifest
	// maxCopyLayers bounds the layers of any manifest that is copied: at cosign's tag
	// each signature is one.
	maxCopyLayers = 64
)

// attachmentTags are what cosign adds to its tag for what belongs to an artifact.
var attachmentTags = []string{".sig", ".att", ".sbom"}

// Export gives to all of the artifact that req means: index and manifests as they
// are, with every blob, and what belongs to them: what refers to them, and what lies
// at cosign's tags. The digest is that of the artifact. The error is an *Error, or
// the receiver's own.
func (c *Client) Export(ctx context.Context, req Request, to Receiver) (chandler.ArtifactDigest, error) {
	if err := check(req); err != nil {
		return "", err
	}
	if req.Reference.Scheme != chandler.SchemeOCI {
		return "", refuse(chandler.CodeURLScheme, "name an artifact of a registry", "nothing at %s urls is an artifact", req.Reference.Scheme)
	}
	ref := req.Reference
	ref.Digest = pin(req)
	x := &export{c: c, to: to}
	var digest chandler.ArtifactDigest
	err := c.from(ctx, ref, req.Credentials, func(e Endpoint) bool { return e.Pull && e.Resolve }, func(s *session) (settled bool, err error) {
		x.session, x.blobs, x.manifests = s, map[string]bool{}, map[string]bool{}
		tag := ref.Tag
		if ref.Digest == "" {
			tag = manifestID(ref)
		}
		digest, err = x.artifact(ctx, place{id: manifestID(ref), tag: tag, want: ref.Digest, root: true})
		var own *receiverError
		return errors.As(err, &own), err // no other place mends that
	})
	var own *receiverError
	if errors.As(err, &own) {
		return "", own.error
	}
	if err != nil {
		return "", asError(ctx, err)
	}
	return digest, nil
}

// receiverError is why the receiver could not take something.
type receiverError struct{ error }

func (r *receiverError) Unwrap() error { return r.error }

// export is the walk over one artifact.
type export struct {
	*session
	c                *Client
	to               Receiver
	blobs, manifests map[string]bool // that were given
}

// place is where a manifest is, and as what it is given.
type place struct {
	id, tag string
	want    chandler.ArtifactDigest // empty: any
	root    bool
}

func at(d chandler.ArtifactDigest) place { return place{id: string(d), want: d} }

// artifact gives a manifest or index, what it names, and what belongs to any of it.
func (x *export) artifact(ctx context.Context, p place) (chandler.ArtifactDigest, error) {
	given, err := x.manifest(ctx, p)
	if err != nil {
		return "", err
	}
	for _, digest := range given {
		if err := x.attachments(ctx, digest); err != nil {
			return "", err
		}
	}
	return given[len(given)-1], nil
}

// manifest gives a manifest or index with what it names. The digests are those of
// all that were given, its own the last.
func (x *export) manifest(ctx context.Context, p place) ([]chandler.ArtifactDigest, error) {
	w, err := x.written(ctx, p.id, p.want)
	if err != nil {
		return nil, err
	}
	m, err := parseCopied(w)
	if err != nil {
		return nil, err
	}
	var given []chandler.ArtifactDigest
	for i := range m.Manifests {
		entry := &m.Manifests[i]
		if !slices.Contains(manifestTypes, entry.MediaType) || entry.MediaType == typeOCIIndex || entry.MediaType == typeDockerList {
			return nil, refuse(chandler.CodeIndex, "name a manifest by digest", "entry %d of the index is %s, which is not copied", i, chandler.Quote(entry.MediaType))
		}
		below, err := x.manifest(ctx, at(chandler.ArtifactDigest(entry.Digest)))
		if err != nil {
			return nil, err
		}
		given = append(given, below...)
	}
	blobs := m.Layers
	if m.Config != nil {
		blobs = append([]descriptor{*m.Config}, blobs...)
	}
	for i := range blobs {
		if err := x.blob(ctx, &blobs[i]); err != nil {
			return nil, err
		}
	}
	given = append(given, w.digest)
	if x.manifests[string(w.digest)+p.tag] {
		return given, nil
	}
	x.manifests[string(w.digest)+p.tag] = true
	whole := Manifest{Descriptor: Descriptor{m.MediaType, string(w.digest), int64(len(w.raw))}, Raw: w.raw, Tag: p.tag, Root: p.root}
	if m.Subject != nil {
		whole.Subject = chandler.ArtifactDigest(m.Subject.Digest)
	}
	if err := x.to.Manifest(ctx, whole); err != nil {
		return nil, &receiverError{err}
	}
	return given, nil
}

// copied is a manifest of what is copied, which need not be one of a module.
type copied struct {
	manifest
	Subject *descriptor `json:"subject"`
}

// parseCopied judges digests and sizes only.
func parseCopied(w written) (*copied, error) {
	if err := checkJSON(w.raw); err != nil {
		return nil, err
	}
	var m copied
	if err := json.Unmarshal(w.raw, &m); err != nil {
		return nil, manifestProblem("it does not fit a manifest at offset %d", offsetOf(err))
	}
	if m.MediaType == "" {
		m.MediaType = w.mediaType
	}
	switch {
	case !slices.Contains(manifestTypes, m.MediaType) || m.SchemaVersion != 2:
		return nil, refuse(chandler.CodeManifestType, "push it again in a form of today", "manifest %s is %s of schema version %d, which is not copied", w.digest, chandler.Quote(m.MediaType), m.SchemaVersion)
	case len(m.Layers) > maxCopyLayers:
		return nil, manifestProblem("it has %d layers, limit %d", len(m.Layers), maxCopyLayers)
	case len(m.Manifests) > maxIndex:
		return nil, refuse(chandler.CodeIndex, "name one by digest", "the index has %d entries, limit %d", len(m.Manifests), maxIndex)
	}
	for i := range m.Layers {
		if err := m.Layers[i].check(blobName(i)); err != nil {
			return nil, err
		}
	}
	for i := range m.Manifests {
		if err := m.Manifests[i].check(fmt.Sprintf("entry %d", i)); err != nil {
			return nil, err
		}
	}
	for what, d := range map[string]*descriptor{"config": m.Config, "subject": m.Subject} {
		if d == nil {
			continue
		}
		if err := d.check(what); err != nil {
			return nil, err
		}
	}
	return &m, nil
}

func (x *export) blob(ctx context.Context, d *descriptor) error {
	if x.blobs[d.Digest] {
		return nil
	}
	f, _, err := x.c.wholeBlob(ctx, x.session, "blob "+short(d.Digest), d)
	if err != nil {
		return &incomplete{err}
	}
	defer f.Close()
	if err := x.to.Blob(ctx, Descriptor{d.MediaType, d.Digest, d.Size}, f); err != nil {
		return &receiverError{err}
	}
	x.blobs[d.Digest] = true
	return nil
}

// attachments gives what belongs to a manifest.
func (x *export) attachments(ctx context.Context, of chandler.ArtifactDigest) error {
	n := 0
	err := x.eachReferrers(ctx, of, "", func(l *signatureList) (bool, error) {
		for i := range l.Manifests {
			if n++; n > maxAttachments {
				return true, refuse(chandler.CodeSigLimit, "remove what is not needed", "more than %d manifests refer to %s", maxAttachments, of)
			}
			d, ok := chandler.ParseDigest[chandler.ArtifactDigest](l.Manifests[i].Digest)
			if !ok {
				return true, refuse(chandler.CodeDigestSyntax, "mend the registry", "index of referrers: %s is not a digest", chandler.Quote(l.Manifests[i].Digest))
			}
			if _, err := x.manifest(ctx, at(d)); unlessNone(ctx, err) != nil {
				return true, err // the list may be older than what it names
			}
		}
		return false, nil
	})
	if err := unlessNone(ctx, err); err != nil {
		return err
	}
	for _, suffix := range attachmentTags {
		tag := signatureTag(of) + suffix
		if _, err := x.manifest(ctx, place{id: tag, tag: tag}); unlessNone(ctx, err) != nil {
			return err
		}
	}
	return nil
}

// incomplete is the error of a manifest whose blobs are not all to be had.
type incomplete struct{ error }

func (i *incomplete) Unwrap() error { return i.error }

// unlessNone is nil for the error that says that a manifest is not there.
func unlessNone(ctx context.Context, err error) error {
	var own *receiverError
	var part *incomplete
	if err == nil || errors.As(err, &own) || errors.As(err, &part) || asError(ctx, err).Problem.Code != chandler.CodeNotFound {
		return err
	}
	return nil
}

// Repository is a repository that artifacts are written to.
type Repository struct{ push *pushing }

// Repository gives the repository of ref, to be written to with own credentials or,
// with nil, those of the keychain. The error is an *Error.
func (c *Client) Repository(ctx context.Context, ref chandler.Reference, own *Credentials) (*Repository, error) {
	p, err := c.pushing(ctx, ref, own)
	if err != nil {
		return nil, asError(ctx, err)
	}
	return &Repository{p}, nil
}

// Blob implements Receiver.
func (r *Repository) Blob(ctx context.Context, d Descriptor, from io.ReaderAt) error {
	if err := r.push.upload(ctx, d, from); err != nil {
		return asError(ctx, err)
	}
	return nil
}

// Manifest implements Receiver.
func (r *Repository) Manifest(ctx context.Context, m Manifest) error {
	id := m.Tag
	if id == "" {
		id = m.Digest
	}
	if err := r.push.put(ctx, id, artifact{mediaType: m.MediaType, manifest: m.Raw}); err != nil {
		return asError(ctx, err)
	}
	return nil
}

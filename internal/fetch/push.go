package fetch

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"chandler.dev/chandler"
)

// Layout is the form in which a module is pushed.
type Layout string

// The layouts.
const (
	// LayoutCNCF is the Wasm artifact of the CNCF: one layer of application/wasm.
	// It is the default.
	LayoutCNCF Layout = "cncf"
	// LayoutCompat is an image with plugin.wasm in its only layer, which Istio and
	// Envoy Gateway read, too: of an OCI image they take the last layer, as of a
	// docker image, and only an OCI image may have annotations.
	LayoutCompat Layout = "compat"
)

// PushOptions say how to push.
type PushOptions struct {
	// Layout is LayoutCNCF unless set.
	Layout Layout
	// Credentials for the registry; with nil the keychain is asked.
	Credentials *Credentials
	// Annotations of the manifest.
	Annotations map[string]string
	// Documents that travel with the module.
	Documents Documents
}

// annotationVariant tells runtimes that know images of Wasm by it what the image is.
const annotationVariant = "module.wasm.image/variant"

// Push writes module to the registry under ref, an oci reference without digest
// and, if none is given, with the tag latest. The same module with the same
// options has the same digest always. The error is an *Error.
func (c *Client) Push(ctx context.Context, ref string, module []byte, opts PushOptions) (chandler.ArtifactDigest, error) {
	r, p := chandler.ParseReference(ref)
	switch {
	case p != nil:
		return "", &Error{Problem: *p}
	case r.Scheme != chandler.SchemeOCI:
		return "", refuse(chandler.CodeURLScheme, "push to oci://registry/repository:tag", "scheme %s is not that of a registry", chandler.Quote(string(r.Scheme)))
	case r.Digest != "":
		return "", refuse(chandler.CodeRefConflict, "push to a tag", "a push decides the digest; the reference names one")
	case int64(len(module)) > c.MaxModule:
		return "", refuse(chandler.CodeModuleTooLarge, "build a smaller module", "the module is %d bytes, limit %d", len(module), c.MaxModule)
	}
	a, err := pack(module, opts)
	if err != nil {
		return "", err
	}
	if err := c.write(ctx, r, a, opts.Credentials); err != nil {
		return "", asError(ctx, err)
	}
	return chandler.Digest[chandler.ArtifactDigest](a.manifest), nil
}

func (c *Client) write(ctx context.Context, ref chandler.Reference, a artifact, own *Credentials) error {
	p, err := c.pushing(ctx, ref, own)
	if err != nil {
		return err
	}
	for _, b := range a.blobs {
		if _, err := p.keep(ctx, b.mediaType, b.content); err != nil {
			return err
		}
	}
	return p.put(ctx, manifestID(ref), a)
}

// pushing is a session that may write, and the registry client that does.
type pushing struct {
	*session
	pusher *remote.Pusher
}

func (c *Client) pushing(ctx context.Context, ref chandler.Reference, own *Credentials) (*pushing, error) {
	s, err := c.session(ctx, ref, own, actionPush)
	if err != nil {
		return nil, err
	}
	if s.at.Local != nil {
		return nil, refuse(chandler.CodeURLScheme, "put artifacts into it with chandler load", "%s: a folder is in its place, which is not pushed to", chandler.Quote(ref.Host))
	}
	// The session has the credentials; the registry client is told of none.
	pusher, err := remote.NewPusher(remote.WithTransport(shortAnswers{s}), remote.WithAuth(authn.Anonymous), remote.WithJobs(1),
		remote.WithRetryBackoff(remote.Backoff{Steps: 1}), remote.WithRetryPredicate(func(error) bool { return false }), remote.WithRetryStatusCodes())
	if err != nil {
		return nil, err
	}
	return &pushing{s, pusher}, nil
}

// shortAnswers bounds what the registry client reads, which by itself takes what it
// gets.
type shortAnswers struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t shortAnswers) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(req)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, maxManifest), resp.Body}
	}
	return resp, err
}

// upload brings a blob to the registry, unless it is there.
func (p *pushing) upload(ctx context.Context, d Descriptor, from io.ReaderAt) error {
	hash, err := v1.NewHash(d.Digest)
	if err != nil {
		return refuse(chandler.CodeDigestSyntax, "push it again with sha256 digests", "%s is not a digest", chandler.Quote(d.Digest))
	}
	return p.pusher.Upload(p.at.mark(ctx), p.repo, &upload{c: p.c, d: d, hash: hash, from: from})
}

// put writes a manifest under a tag or its digest. Where it refers to another, and
// the registry keeps no list of that, the list at the tag in its place is brought up
// to date.
func (p *pushing) put(ctx context.Context, id string, a artifact) error {
	var ref name.Reference = p.repo.Tag(id)
	if _, ok := chandler.ParseDigest[chandler.ArtifactDigest](id); ok {
		ref = p.repo.Digest(id)
	}
	return p.pusher.Put(p.at.mark(ctx), ref, a)
}

// upload is a blob as the registry client wants it.
type upload struct {
	c    *Client
	d    Descriptor
	hash v1.Hash
	from io.ReaderAt
}

// Digest, DiffID, Compressed, Uncompressed, Size and MediaType implement v1.Layer:
// what is in a blob is nobody's matter here.
func (u *upload) Digest() (v1.Hash, error)             { return u.hash, nil }
func (u *upload) DiffID() (v1.Hash, error)             { return u.hash, nil }
func (u *upload) Size() (int64, error)                 { return u.d.Size, nil }
func (u *upload) MediaType() (types.MediaType, error)  { return types.MediaType(u.d.MediaType), nil }
func (u *upload) Uncompressed() (io.ReadCloser, error) { return u.Compressed() }
func (u *upload) Compressed() (io.ReadCloser, error) {
	body := io.NopCloser(io.NewSectionReader(u.from, 0, u.d.Size))
	return u.c.shown("blob "+short(u.d.Digest), u.d.Size, body), nil
}

// artifact is all that is pushed.
type artifact struct {
	mediaType string
	manifest  []byte
	blobs     []content
}

type content struct {
	mediaType string
	content   []byte
}

func (c content) describe() Descriptor {
	return Descriptor{c.mediaType, string(chandler.Digest[chandler.BlobDigest](c.content)), int64(len(c.content))}
}

// RawManifest and MediaType are what the registry client asks for.
func (a artifact) RawManifest() ([]byte, error) { return a.manifest, nil }

func (a artifact) MediaType() (types.MediaType, error) { return types.MediaType(a.mediaType), nil }

// outManifest is written, with what must be there only.
type outManifest struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	Config        Descriptor        `json:"config"`
	Layers        []Descriptor      `json:"layers"`
	Annotations   map[string]string `json:"annotations,omitempty"`
}

// pack makes an artifact of one layer.
func pack(module []byte, opts PushOptions) (artifact, error) {
	labels, err := opts.Documents.labels()
	if err != nil {
		return artifact{}, err
	}
	config := map[string]any{}
	if len(labels) > 0 {
		config["config"] = map[string]any{"Labels": labels}
	}
	annotations := maps.Clone(opts.Annotations)
	switch opts.Layout {
	case LayoutCNCF, "":
		config["architecture"], config["os"] = "wasm", "wasip1"
		config["layerDigests"] = []string{string(chandler.Digest[chandler.BlobDigest](module))}
		return assemble(typeCNCFConfig, config, content{typeWasm, module}, annotations)
	case LayoutCompat:
		layer, diffID, err := imageLayer(module)
		if err != nil {
			return artifact{}, err
		}
		config["architecture"], config["os"] = "amd64", "linux"
		config["rootfs"] = map[string]any{"type": "layers", "diff_ids": []string{diffID}}
		if annotations == nil {
			annotations = map[string]string{}
		}
		annotations[annotationVariant] = "compat"
		return assemble(typeOCIConfig, config, content{typeOCILayer, layer}, annotations)
	}
	return artifact{}, refuse(chandler.CodeSpecEnum, fmt.Sprintf("use %s or %s", LayoutCNCF, LayoutCompat), "layout %s is unknown", chandler.Quote(string(opts.Layout)))
}

func assemble(configType string, config map[string]any, layer content, annotations map[string]string) (artifact, error) {
	raw, err := encode(config)
	if err != nil {
		return artifact{}, err
	}
	if len(raw) > maxConfigBlob {
		return artifact{}, refuse(chandler.CodeConfigBlob, "shorten the schema or the readme", "the configuration would be %d bytes with the documents in it, limit %d", len(raw), maxConfigBlob)
	}
	if err := checkAnnotations("", annotations); err != nil {
		return artifact{}, err
	}
	a := artifact{mediaType: typeOCIManifest, blobs: []content{{configType, raw}, layer}}
	a.manifest, err = encode(outManifest{2, typeOCIManifest, a.blobs[0].describe(), []Descriptor{layer.describe()}, annotations})
	return a, err
}

// encode writes JSON that reads as its author wrote it, the same bytes every time.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("a part of an artifact: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// imageLayer packs the module as plugin.wasm, the same bytes every time.
func imageLayer(module []byte) (layer []byte, diffID string, err error) {
	var plain, packed bytes.Buffer
	t := tar.NewWriter(&plain)
	err = t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: moduleName, Mode: 0o644, Size: int64(len(module)), Format: tar.FormatUSTAR})
	if err == nil {
		_, err = t.Write(module)
	}
	if err == nil {
		err = t.Close()
	}
	if err != nil {
		return nil, "", fmt.Errorf("tar of an image: %w", err)
	}
	z := gzip.NewWriter(&packed)
	if _, err = z.Write(plain.Bytes()); err == nil {
		err = z.Close()
	}
	if err != nil {
		return nil, "", fmt.Errorf("gzip of an image: %w", err)
	}
	return packed.Bytes(), string(chandler.Digest[chandler.BlobDigest](plain.Bytes())), nil
}

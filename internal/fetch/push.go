package fetch

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
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
	// LayoutImage is a docker image with plugin.wasm in its only layer, which
	// Istio and Envoy Gateway read, too.
	LayoutImage Layout = "image"
)

// PushOptions say how to push.
type PushOptions struct {
	// Layout is LayoutCNCF unless set.
	Layout Layout
	// Credentials for the registry; with nil the keychain is asked.
	Credentials *Credentials
}

// Push writes module to the registry under ref, an oci reference without digest
// and, if none is given, with the tag latest. The same module in the same layout
// has the same digest always. The error is an *Error.
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
	a, err := pack(opts.Layout, module)
	if err != nil {
		return "", err
	}
	if err := c.write(ctx, r, a, opts.Credentials); err != nil {
		return "", asError(ctx, err)
	}
	return chandler.Digest[chandler.ArtifactDigest](a.manifest), nil
}

func (c *Client) write(ctx context.Context, ref chandler.Reference, a artifact, own *Credentials) error {
	s, err := c.session(ctx, ref, own, actionPush)
	if err != nil {
		return err
	}
	ctx = s.at.mark(ctx)
	// The session has the credentials; the registry client is told of none.
	pusher, err := remote.NewPusher(remote.WithTransport(s), remote.WithAuth(authn.Anonymous), remote.WithJobs(1),
		remote.WithRetryBackoff(remote.Backoff{Steps: 1}), remote.WithRetryPredicate(func(error) bool { return false }), remote.WithRetryStatusCodes())
	if err != nil {
		return err
	}
	for _, l := range a.blobs {
		if err := pusher.Upload(ctx, s.repo, static.NewLayer(l.content, types.MediaType(l.mediaType))); err != nil {
			return err
		}
	}
	return pusher.Put(ctx, s.repo.Tag(manifestID(ref)), a)
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

// RawManifest and MediaType are what the registry client asks for.
func (a artifact) RawManifest() ([]byte, error) { return a.manifest, nil }

func (a artifact) MediaType() (types.MediaType, error) { return types.MediaType(a.mediaType), nil }

// outDescriptor and outManifest are written, with what must be there only.
type outDescriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int    `json:"size"`
}

type outManifest struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType"`
	Config        outDescriptor   `json:"config"`
	Layers        []outDescriptor `json:"layers"`
}

func pack(layout Layout, module []byte) (artifact, error) {
	switch layout {
	case LayoutCNCF, "":
		config := map[string]any{
			"architecture": "wasm",
			"os":           "wasip1",
			"layerDigests": []string{string(chandler.Digest[chandler.BlobDigest](module))},
		}
		return assemble(typeOCIManifest, typeCNCFConfig, config, content{typeWasm, module})
	case LayoutImage:
		layer, diffID, err := imageLayer(module)
		if err != nil {
			return artifact{}, err
		}
		config := map[string]any{
			"architecture": "amd64",
			"os":           "linux",
			"config":       map[string]any{},
			"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{diffID}},
		}
		return assemble(typeDockerManifest, typeDockerConfig, config, content{typeDockerLayer, layer})
	}
	return artifact{}, refuse(chandler.CodeSpecEnum, fmt.Sprintf("use %s or %s", LayoutCNCF, LayoutImage), "layout %s is unknown", chandler.Quote(string(layout)))
}

func assemble(mediaType, configType string, config map[string]any, layer content) (artifact, error) {
	raw, err := json.Marshal(config)
	if err != nil {
		return artifact{}, fmt.Errorf("config of an artifact: %w", err)
	}
	describe := func(c content) outDescriptor {
		return outDescriptor{c.mediaType, string(chandler.Digest[chandler.BlobDigest](c.content)), len(c.content)}
	}
	a := artifact{mediaType: mediaType, blobs: []content{{configType, raw}, layer}}
	a.manifest, err = json.Marshal(outManifest{2, mediaType, describe(a.blobs[0]), []outDescriptor{describe(layer)}})
	if err != nil {
		return artifact{}, fmt.Errorf("manifest of an artifact: %w", err)
	}
	return a, nil
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

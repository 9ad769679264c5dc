package fetch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"slices"

	"chandler.dev/chandler"
)

// AddSignature writes a signature of an artifact into ref's repository, where
// cosign has those of its kind: a bundle as a manifest that refers to the artifact,
// any other at cosign's tag, beside those that are there. The error is an *Error.
func (c *Client) AddSignature(ctx context.Context, ref chandler.Reference, artifact chandler.ArtifactDigest, sig Signature, own *Credentials) error {
	p, err := c.pushing(ctx, ref, own)
	if err != nil {
		return asError(ctx, err)
	}
	add := p.addBundle
	if sig.MediaType == TypeSimpleSigning {
		add = p.addToTag
	}
	if err := add(ctx, artifact, sig); err != nil {
		return asError(ctx, err)
	}
	return nil
}

// addBundle writes a manifest that refers to the artifact.
func (p *pushing) addBundle(ctx context.Context, artifact chandler.ArtifactDigest, sig Signature) error {
	subject, err := p.written(ctx, string(artifact), artifact)
	if err != nil {
		return err
	}
	m, err := parseCopied(subject)
	if err != nil {
		return err
	}
	config, err := p.keep(ctx, typeEmpty, []byte("{}"))
	if err != nil {
		return err
	}
	layer, err := p.keep(ctx, sig.MediaType, sig.Content)
	if err != nil {
		return err
	}
	return p.putJSON(ctx, "", map[string]any{
		"schemaVersion": 2, "mediaType": typeOCIManifest, "artifactType": sig.MediaType, "config": config, "layers": []any{layer},
		"subject":     Descriptor{m.MediaType, string(artifact), int64(len(subject.raw))},
		"annotations": sig.Annotations,
	})
}

// addToTag writes a signature beside those at cosign's tag, which stay as they are.
func (p *pushing) addToTag(ctx context.Context, artifact chandler.ArtifactDigest, sig Signature) error {
	tag := signatureTag(artifact) + ".sig"
	var layers []json.RawMessage
	old, err := p.written(ctx, tag, "")
	switch {
	case err == nil:
		var m struct {
			Layers []json.RawMessage `json:"layers"`
		}
		if _, err := parseCopied(old); err != nil {
			return err
		}
		if err := json.Unmarshal(old.raw, &m); err != nil {
			return manifestProblem("that of the signatures cannot be read")
		}
		layers = m.Layers
	case !isNotFound(err):
		return err
	}
	if len(layers) >= maxCopyLayers {
		return refuse(chandler.CodeSigLimit, "remove signatures that are not needed", "tag %s has %d signatures", short(tag), len(layers))
	}
	blob, err := p.keep(ctx, sig.MediaType, sig.Content)
	if err != nil {
		return err
	}
	layer, err := encode(Part{Descriptor: blob, Annotations: sig.Annotations})
	if err != nil {
		return err
	}
	layers = append(slices.Clone(layers), layer)
	config, err := encode(map[string]any{"architecture": "", "os": "", "config": map[string]any{}, "rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs(layers)}})
	if err != nil {
		return err
	}
	kept, err := p.keep(ctx, typeOCIConfig, config)
	if err != nil {
		return err
	}
	return p.putJSON(ctx, tag, map[string]any{"schemaVersion": 2, "mediaType": typeOCIManifest, "config": kept, "layers": layers})
}

func diffIDs(layers []json.RawMessage) []string {
	var all []string
	for _, raw := range layers {
		var d descriptor
		if json.Unmarshal(raw, &d) == nil {
			all = append(all, d.Digest)
		}
	}
	return all
}

func isNotFound(err error) bool {
	var e *Error
	return errors.As(err, &e) && e.Problem.Code == chandler.CodeNotFound
}

// keep writes a blob and gives its descriptor.
func (p *pushing) keep(ctx context.Context, mediaType string, b []byte) (Descriptor, error) {
	c := content{mediaType, b}
	return c.describe(), p.upload(ctx, c.describe(), bytes.NewReader(b))
}

// putJSON writes a manifest, under its digest if there is no tag.
func (p *pushing) putJSON(ctx context.Context, tag string, m map[string]any) error {
	raw, err := encode(m)
	if err != nil {
		return err
	}
	if tag == "" {
		tag = string(chandler.Digest[chandler.ArtifactDigest](raw))
	}
	return p.put(ctx, tag, artifact{mediaType: typeOCIManifest, manifest: raw})
}

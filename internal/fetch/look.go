package fetch

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"chandler.dev/chandler"
)

// Part is a blob or manifest that an artifact names.
type Part struct {
	Descriptor
	// Platform is that of an entry of an index; empty: it names none.
	Platform    string            `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// Module: the module is in it.
	Module bool `json:"module,omitempty"`
}

// Sight is what an artifact looks like before any of its layers is fetched.
type Sight struct {
	// Reference is the canonical URL with the digest, its tag kept.
	Reference string
	Artifact  Descriptor
	// Entries are those of an index; Manifest is the one that is meant, or the
	// artifact itself.
	Entries  []Part
	Manifest Descriptor
	// Layout is the manifest's, in words; empty: it is none that is known.
	Layout string
	Config *Part
	Layers []Part
	// Annotations are the manifest's, with what only the index has.
	Annotations map[string]string
	// Labels are the configuration's, but for documents.
	Labels    map[string]string
	Documents Documents
	// Problem is why no module can be read of it.
	Problem *chandler.Problem
}

// Look looks at an artifact without fetching its module. What it cannot read of it
// is the Sight's Problem, beside what it could; the error, an *Error, is that of an
// artifact of which nothing can be told.
func (c *Client) Look(ctx context.Context, req Request) (Sight, error) {
	if err := check(req); err != nil {
		return Sight{}, err
	}
	if req.Reference.Scheme != chandler.SchemeOCI {
		return Sight{}, refuse(chandler.CodeURLScheme, "name an artifact of a registry", "nothing at %s urls is an artifact", req.Reference.Scheme)
	}
	ref := req.Reference
	ref.Digest = pin(req)
	var seen Sight
	err := c.from(ctx, ref, req.Credentials, gives(ref), func(s *session) (settled bool, err error) {
		seen, err = c.look(ctx, s, ref)
		return false, err
	})
	if err != nil {
		return Sight{}, asError(ctx, err)
	}
	return seen, nil
}

func (c *Client) look(ctx context.Context, s *session, ref chandler.Reference) (Sight, error) {
	w, err := s.written(ctx, manifestID(ref), ref.Digest)
	if err != nil {
		return Sight{}, err
	}
	ref.Digest = w.digest
	seen := Sight{Reference: ref.String(), Artifact: Descriptor{w.mediaType, string(w.digest), int64(len(w.raw))}}
	m, err := parseManifest(w.raw, w.mediaType)
	if err != nil {
		return seen, seen.stop(err)
	}
	seen.Artifact.MediaType, seen.Manifest, seen.Annotations = m.MediaType, seen.Artifact, m.Annotations
	if m.isIndex() {
		for i := range m.Manifests {
			seen.Entries = append(seen.Entries, partOf(&m.Manifests[i]))
		}
		entry, err := m.choose(c.Arch)
		if err != nil {
			return seen, seen.stop(err)
		}
		for i := range seen.Entries {
			seen.Entries[i].Module = seen.Entries[i].Digest == entry.Digest
		}
		if w, err = s.written(ctx, entry.Digest, chandler.ArtifactDigest(entry.Digest)); err != nil {
			return seen, seen.stop(err)
		}
		if m, err = parseManifest(w.raw, w.mediaType); err != nil {
			return seen, seen.stop(err)
		}
		seen.Manifest = Descriptor{m.MediaType, string(w.digest), int64(len(w.raw))}
		merged := maps.Clone(seen.Annotations)
		if merged == nil {
			merged = map[string]string{}
		}
		maps.Copy(merged, m.Annotations)
		seen.Annotations = merged
	}
	return seen, seen.stop(seen.manifest(ctx, s, m))
}

// stop takes why an artifact cannot be read as its problem. What another try may
// mend, and what the registry refuses to show, is an error.
func (seen *Sight) stop(err error) error {
	var known *Error
	if err == nil || !errors.As(err, &known) || known.Temporary || known.Problem.Code == chandler.CodeUnauthorized {
		return err
	}
	seen.Problem = &known.Problem
	return nil
}

// manifest reads what one manifest names.
func (seen *Sight) manifest(ctx context.Context, s *session, m *manifest) error {
	if m.isIndex() {
		return refuse(chandler.CodeIndex, "name a manifest by digest", "the index names another index")
	}
	if m.Config != nil {
		config := partOf(m.Config)
		seen.Config = &config
	}
	for i := range m.Layers {
		seen.Layers = append(seen.Layers, partOf(&m.Layers[i]))
	}
	index, how, err := m.layer()
	if err != nil {
		return err
	}
	seen.Layers[index].Module = true
	seen.Layout = layoutOf(m, m.Layers[index].MediaType, how)
	if seen.Labels, err = labelsOf(ctx, s, m); err != nil {
		return err
	}
	if seen.Documents, err = documentsOf(ctx, s, m, seen.Labels); err != nil {
		return err
	}
	delete(seen.Labels, LabelSchema)
	delete(seen.Labels, LabelReadme)
	return nil
}

func partOf(d *descriptor) Part {
	p := Part{Descriptor: Descriptor{d.MediaType, d.Digest, d.Size}, Annotations: d.Annotations}
	if d.Platform != nil {
		p.Platform = d.Platform.String()
	}
	return p
}

// layoutOf names a layout for people.
func layoutOf(m *manifest, layer string, how packing) string {
	packed := ", " + moduleName + " in the last layer (tar"
	if how.compression != "" {
		packed += "+" + how.compression
	}
	packed += ")"
	switch {
	case how.tar && m.MediaType == typeDockerManifest:
		return "docker image" + packed
	case how.tar:
		return "OCI image" + packed
	case m.Config != nil && m.Config.MediaType == typeCNCFConfig:
		return "CNCF Wasm artifact"
	}
	return fmt.Sprintf("Wasm artifact with a layer of %s", layer)
}

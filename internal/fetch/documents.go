package fetch

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"slices"
	"unicode/utf8"

	"chandler.dev/chandler"
)

// MaxDocument bounds each of the Documents, in bytes.
const MaxDocument = 256 << 10

// Documents is what travels with a module in its artifact, byte for byte as its
// author wrote it. Nil: the artifact has none.
type Documents struct {
	// Schema is a JSON Schema of the plugin's configuration.
	Schema []byte
	// Readme is Markdown.
	Readme []byte
}

// Labels of an artifact's configuration that hold its documents: such as every tool
// that builds images can write. A further layer is none of the places where they
// are put, since readers of the CNCF's layout are to refuse an artifact of two.
const (
	LabelSchema = "dev.chandler.schema" // a JSON Schema, which configurations of the plugin are held to
	LabelReadme = "dev.chandler.readme" // a page about the plugin, in Markdown
)

// Layers in which other tools put documents; they are read, too.
var (
	schemaLayers = []string{"application/schema+json"}
	readmeLayers = []string{"text/markdown", "application/vnd.module.wasm.doc.v1+markdown"}
)

// labelled are the types of configuration that have labels, where an image has them.
var labelled = []string{typeCNCFConfig, typeDockerConfig, typeOCIConfig}

// Documents gets the documents of the artifact that req means: of what a proxy
// would pull, if that is an index. Modules from http and https have none. It costs
// two small requests. The error is an *Error; documents that are too large are one.
func (c *Client) Documents(ctx context.Context, req Request) (Documents, error) {
	if err := check(req); err != nil {
		return Documents{}, err
	}
	if req.Reference.Scheme != chandler.SchemeOCI {
		return Documents{}, nil
	}
	ref := req.Reference
	ref.Digest = pin(req)
	var found Documents
	err := c.from(ctx, ref, req.Credentials, gives(ref), func(s *session) (settled bool, err error) {
		m, err := c.chosen(ctx, s, ref)
		if err != nil {
			return false, err
		}
		labels, err := labelsOf(ctx, s, m)
		if err == nil {
			found, err = documentsOf(ctx, s, m, labels)
		}
		return false, err
	})
	if err != nil {
		return Documents{}, asError(ctx, err)
	}
	return found, nil
}

// chosen gives the manifest that holds the module.
func (c *Client) chosen(ctx context.Context, s *session, ref chandler.Reference) (*manifest, error) {
	m, _, err := c.manifest(ctx, s, manifestID(ref), ref.Digest)
	if err != nil || !m.isIndex() {
		return m, err
	}
	entry, err := m.choose(c.Arch)
	if err != nil {
		return nil, err
	}
	m, _, err = c.manifest(ctx, s, entry.Digest, chandler.ArtifactDigest(entry.Digest))
	return m, err
}

// documentsOf reads the documents of one manifest: its labels count, and of what
// they have not, the first layer of a type that is known.
func documentsOf(ctx context.Context, s *session, m *manifest, labels map[string]string) (found Documents, err error) {
	for _, d := range []struct {
		what, label string
		layers      []string
		into        *[]byte
	}{
		{"schema", LabelSchema, schemaLayers, &found.Schema},
		{"readme", LabelReadme, readmeLayers, &found.Readme},
	} {
		text, ok := labels[d.label]
		if !ok {
			*d.into, err = documentLayer(ctx, s, m, d.what, d.layers)
		} else if *d.into = []byte(text); len(text) > MaxDocument {
			err = documentTooLarge(d.what, int64(len(text)))
		}
		if err != nil {
			return Documents{}, err
		}
	}
	return found, nil
}

func documentTooLarge(what string, size int64) error {
	return refuse(chandler.CodeConfigBlob, "push it with a smaller one", "the artifact's %s is %d bytes, limit %d", what, size, MaxDocument)
}

func documentLayer(ctx context.Context, s *session, m *manifest, what string, types []string) ([]byte, error) {
	i := slices.IndexFunc(m.Layers, func(d descriptor) bool { return slices.Contains(types, d.MediaType) })
	if i < 0 {
		return nil, nil
	}
	if size := m.Layers[i].Size; size > MaxDocument {
		return nil, documentTooLarge(what, size)
	}
	return s.smallBlob(ctx, &m.Layers[i], what, MaxDocument)
}

// labelsOf reads the labels of a manifest's configuration, as far as it has any.
func labelsOf(ctx context.Context, s *session, m *manifest) (map[string]string, error) {
	if m.Config == nil || !slices.Contains(labelled, m.Config.MediaType) {
		return nil, nil
	}
	raw, err := s.smallBlob(ctx, m.Config, "config", maxConfigBlob)
	if err != nil {
		return nil, err
	}
	return labelsIn(raw), nil
}

// labelsIn gives the labels of a configuration; of what cannot be read, none, as
// nobody needs it but for them.
func labelsIn(raw []byte) map[string]string {
	var config struct {
		Config struct {
			Labels map[string]string `json:"Labels"`
		} `json:"config"`
	}
	if checkJSON(raw) != nil || json.Unmarshal(raw, &config) != nil {
		return nil
	}
	return config.Config.Labels
}

// smallBlob gets a blob of at most limit bytes into memory, and holds it against
// its descriptor.
func (s *session) smallBlob(ctx context.Context, d *descriptor, what string, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, refuse(chandler.CodeDescSize, "push a smaller one", "%s: declared size is %d bytes, limit %d", what, d.Size, limit)
	}
	resp, err := s.get(ctx, "blobs/"+d.Digest, what+" "+d.Digest, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, d.Size+1))
	switch {
	case err != nil:
		return nil, shortBody(what, err, resp.ContentLength, int64(len(b)))
	case int64(len(b)) != d.Size:
		return nil, refuse(chandler.CodeDescSize, "push it again", "%s: declared size is %d bytes, the registry gives %d", what, d.Size, len(b))
	}
	if got := chandler.Digest[chandler.BlobDigest](b); string(got) != d.Digest {
		return nil, refuse(chandler.CodeDigestMismatch, "look at the registry", "%s: the registry gives other bytes for %s: they have %s", what, d.Digest, got)
	}
	return b, nil
}

// labels are the documents as they are pushed. What is nothing but white space is
// none.
func (d Documents) labels() (map[string]string, error) {
	labels := map[string]string{}
	for _, l := range []struct {
		what, label string
		text        []byte
	}{{"schema", LabelSchema, d.Schema}, {"readme", LabelReadme, d.Readme}} {
		switch {
		case len(bytes.TrimSpace(l.text)) == 0:
			continue
		case len(l.text) > MaxDocument:
			return nil, documentTooLarge(l.what, int64(len(l.text)))
		case !utf8.Valid(l.text):
			return nil, refuse(chandler.CodeConfigBlob, "write it in UTF-8", "the %s is not valid UTF-8", l.what)
		}
		labels[l.label] = string(l.text)
	}
	return labels, nil
}

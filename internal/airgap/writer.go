// Package airgap keeps artifacts of registries where there is no registry: in one file,
// a tar of the OCI image layout, as skopeo and oras have it, and docker save; or in a
// folder of that layout. A Writer, and a Loading, take in what a fetch.Client exports;
// an Archive, and a Folder, are read as a registry is, by a fetch.Client whose transport
// they are. So all that holds for registries holds for them: bounds, digests, refusals.
//
// It does not know what is in a module, and speaks to no network.
package airgap

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
)

// Files of an image layout.
const (
	fileLayout = "oci-layout"
	fileIndex  = "index.json"
	blobFolder = "blobs/sha256/"
)

const contentLayout = `{"imageLayoutVersion":"1.0.0"}`

const typeIndex = "application/vnd.oci.image.index.v1+json"

// Annotations of the index's entries: the tag alone, as the specification has it, and
// the whole name, as docker and containerd write it.
const (
	annotationTag  = "org.opencontainers.image.ref.name"
	annotationName = "io.containerd.image.name"
)

// DefaultMaxBytes is how large an archive may become unless it is told.
const DefaultMaxBytes = 4 << 30

// Writer writes an archive. The same artifacts in the same order give the same bytes.
type Writer struct {
	tar     *tar.Writer
	left    int64
	written map[string]bool
	entries entries
}

// entry is one of the index: what has a name, or refers to what has one.
type entry struct {
	fetch.Descriptor
	ArtifactType string            `json:"artifactType,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
}

// index is that of an image layout, and a list of referrers.
type index struct {
	SchemaVersion int     `json:"schemaVersion"`
	MediaType     string  `json:"mediaType"`
	Manifests     []entry `json:"manifests"`
}

// NewWriter begins an archive of at most maxBytes; zero is DefaultMaxBytes.
func NewWriter(w io.Writer, maxBytes int64) *Writer {
	if maxBytes <= 0 {
		maxBytes = DefaultMaxBytes
	}
	return &Writer{tar: tar.NewWriter(w), left: maxBytes, written: map[string]bool{}}
}

// Repository takes in artifacts of one repository.
func (w *Writer) Repository(ref chandler.Reference) fetch.Receiver {
	ref.Tag, ref.Digest = "", ""
	return receiver{w.blob, &w.entries, ref}
}

// Close writes the index; without it there is no archive.
func (w *Writer) Close() error {
	raw, err := json.Marshal(index{2, typeIndex, w.entries})
	if err != nil {
		return fmt.Errorf("index of an archive: %w", err)
	}
	for _, f := range []struct{ name, content string }{{fileLayout, contentLayout}, {fileIndex, string(raw)}} {
		if err := w.file(f.name, int64(len(f.content)), bytes.NewReader([]byte(f.content))); err != nil {
			return err
		}
	}
	return w.tar.Close()
}

// receiver implements fetch.Receiver: it keeps blobs, and enters what is to be found.
type receiver struct {
	keep    func(fetch.Descriptor, io.ReaderAt) error
	entries *entries
	ref     chandler.Reference
}

func (r receiver) Blob(_ context.Context, d fetch.Descriptor, from io.ReaderAt) error {
	return r.keep(d, from)
}

func (r receiver) Manifest(_ context.Context, m fetch.Manifest) error {
	if err := r.keep(m.Descriptor, bytes.NewReader(m.Raw)); err != nil {
		return err
	}
	ref, e := r.ref, entry{Descriptor: m.Descriptor}
	switch {
	case m.Tag != "":
		ref.Tag = m.Tag
		e.Annotations = map[string]string{annotationTag: m.Tag, annotationName: nameOf(ref)}
	case m.Root:
		ref.Digest = chandler.ArtifactDigest(m.Digest)
		e.Annotations = map[string]string{annotationName: nameOf(ref)}
	case m.Subject == "":
		return nil // of an index, which names it
	}
	r.entries.add(e)
	return nil
}

// entries are those of an index that is being written.
type entries []entry

func (all *entries) add(e entry) {
	same := func(other entry) bool {
		return other.Digest == e.Digest && other.Annotations[annotationName] == e.Annotations[annotationName]
	}
	if !slices.ContainsFunc(*all, same) {
		*all = append(*all, e)
	}
}

// nameOf is a reference as docker writes it.
func nameOf(ref chandler.Reference) string {
	s := ref.Host + "/" + ref.Repository
	if ref.Digest != "" {
		return s + "@" + string(ref.Digest)
	}
	return s + ":" + ref.Tag
}

func (w *Writer) blob(d fetch.Descriptor, from io.ReaderAt) error {
	if w.written[d.Digest] {
		return nil
	}
	w.written[d.Digest] = true
	return w.file(blobFolder+hexOf(d.Digest), d.Size, io.NewSectionReader(from, 0, d.Size))
}

// file writes one file, in the same way whoever and whenever it is.
func (w *Writer) file(name string, size int64, from io.Reader) error {
	if w.left -= size; w.left < 0 {
		return chandler.Problemf(chandler.CodeTarSize, "", "save fewer artifacts in one file, or raise --max-size", "the archive would be too large: %s has %d bytes, %d too many", name, size, -w.left)
	}
	if err := w.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, Format: tar.FormatUSTAR}); err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	if _, err := io.Copy(w.tar, from); err != nil {
		return fmt.Errorf("write the archive: %w", err)
	}
	return nil
}

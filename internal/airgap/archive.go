package airgap

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
)

const (
	maxFiles   = 16 << 10
	maxEntries = 1024
	maxJSON    = 1 << 20
	maxName    = 255
)

// Archive is an image layout in a tar, read as a registry is. Opening it has held
// every blob against the digest that is its name.
type Archive struct {
	r     io.ReaderAt
	blobs map[string]span // by digest
	found []Found
	// tagged are the manifests with a tag, by their place.
	tagged map[string]entry
	// referrers are lists of what refers to something, by the digest of that.
	referrers map[string][]entry
}

// span is where a blob lies in the file.
type span struct{ at, size int64 }

// Found is an artifact of an archive.
type Found struct {
	// Name is as it is written; empty: it has none.
	Name string
	// Reference is what to ask the archive for.
	Reference chandler.Reference
	// Complete: the name tells registry and repository.
	Complete bool
}

// attachmentTag is the tag of what belongs to an artifact.
var attachmentTag = regexp.MustCompile(`^sha256-[0-9a-f]{64}(\.[a-z]+)?$`)

// Open reads through a file of size bytes. What is wrong with it is a
// *chandler.Problem, any other error one of the file.
func Open(r io.ReaderAt, size int64) (*Archive, error) {
	a := &Archive{r: r, blobs: map[string]span{}, tagged: map[string]entry{}, referrers: map[string][]entry{}}
	files, err := a.scan(size)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{fileLayout, fileIndex} {
		if files[name] == nil {
			return nil, problem(chandler.CodeTarMissing, "write it with chandler save, docker save or skopeo copy oci-archive:", "the archive has no %s: it is no OCI image layout", name)
		}
	}
	var all index
	if err := decode(files[fileIndex], &all); err != nil {
		return nil, problem(chandler.CodeManifestParse, "write it again", "%s cannot be read as an index", fileIndex)
	}
	if len(all.Manifests) > maxEntries {
		return nil, problem(chandler.CodeIndex, "write several archives", "%s has %d entries, limit %d", fileIndex, len(all.Manifests), maxEntries)
	}
	for i, e := range all.Manifests {
		if err := a.enter(i, e); err != nil {
			return nil, err
		}
	}
	if len(a.found) == 0 {
		return nil, problem(chandler.CodeTarMissing, "save an artifact into it", "the archive has no artifact")
	}
	return a, nil
}

// decode reads JSON of a registry's kind.
func decode(raw []byte, into any) error {
	if err := fetch.CheckJSON(raw); err != nil {
		return err
	}
	return json.Unmarshal(raw, into)
}

func problem(code chandler.Code, hint, format string, args ...any) error {
	return chandler.Problemf(code, "", hint, format, args...)
}

// Found are the artifacts of the archive, in its order.
func (a *Archive) Found() []Found { return slices.Clone(a.found) }

// scan goes through the tar once: it notes where blobs lie, hashes them, and gives
// the small files.
func (a *Archive) scan(size int64) (map[string][]byte, error) {
	in := &counter{r: io.NewSectionReader(a.r, 0, size)}
	t := tar.NewReader(in)
	small := map[string][]byte{}
	for n := 0; ; n++ {
		h, err := t.Next()
		if err == io.EOF {
			return small, nil
		}
		if err != nil {
			return nil, in.explain(err, n)
		}
		if n >= maxFiles {
			return nil, problem(chandler.CodeTarEntries, "write several archives", "the archive has more than %d entries", maxFiles)
		}
		name, err := judge(h)
		if err != nil {
			return nil, err
		}
		switch hex, isBlob := strings.CutPrefix(name, blobFolder); {
		case h.Typeflag == tar.TypeDir, h.Typeflag == tar.TypeXGlobalHeader:
		case isBlob:
			err = a.blob(hex, h.Size, in, t)
		case name == fileLayout || name == fileIndex:
			if small[name] != nil {
				return nil, problem(chandler.CodeTarDuplicate, "write it again", "the archive has %s twice", name)
			}
			if small[name], err = io.ReadAll(io.LimitReader(t, maxJSON+1)); len(small[name]) > maxJSON {
				return nil, problem(chandler.CodeTarSize, "write several archives", "%s is over %d bytes", name, maxJSON)
			}
		}
		if err != nil {
			return nil, in.explain(err, n)
		}
	}
}

// judge tells whether an entry of the tar may be there at all, and its name.
func judge(h *tar.Header) (string, error) {
	quoted := chandler.Quote(h.Name)
	switch {
	case h.Typeflag == tar.TypeXGlobalHeader:
		return "", nil
	case len(h.Name) > maxName:
		return "", problem(chandler.CodeTarPath, "write it again", "entry name %s has %d bytes, limit %d", quoted, len(h.Name), maxName)
	case strings.HasPrefix(h.Name, "/"), slices.Contains(strings.Split(h.Name, "/"), ".."), strings.ContainsAny(h.Name, "\x00\\"):
		return "", problem(chandler.CodeTarPath, "write it again", "entry name leaves the archive: %s", quoted)
	case h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir:
		return "", problem(chandler.CodeTarHeader, "write it again, of files alone", "entry %s is a link or a device, not a file", quoted)
	}
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return "", problem(chandler.CodeTarHeader, "write it again without sparse files", "entry %s is sparse, which is not accepted", quoted)
		}
	}
	return path.Clean(h.Name), nil
}

// blob notes where a blob lies, which must be what it is called.
func (a *Archive) blob(hex string, size int64, in *counter, content io.Reader) error {
	at, sum := in.n, sha256.New()
	if _, err := io.Copy(sum, content); err != nil {
		return err
	}
	digest := string(chandler.DigestOf[chandler.BlobDigest](sum.Sum(nil)))
	if digest != "sha256:"+hex {
		return problem(chandler.CodeDigestMismatch, "write it again; the file was changed or is damaged", "blob %s has other bytes: they have %s", chandler.Quote(hex), digest)
	}
	if _, twice := a.blobs[digest]; twice {
		return problem(chandler.CodeTarDuplicate, "write it again", "the archive has blob %s twice", digest)
	}
	a.blobs[digest] = span{at, size}
	return nil
}

// counter tells where in the file one is: the tar reader reads no further than it
// must.
type counter struct {
	r   io.Reader
	n   int64
	err error // of the file
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}

// explain gives archive/tar's errors words.
func (c *counter) explain(err error, entries int) error {
	var known *chandler.Problem
	switch {
	case c.err != nil:
		return fmt.Errorf("read the archive: %w", c.err)
	case errors.As(err, &known):
		return err
	case entries == 0:
		return problem(chandler.CodeTarHeader, "give an uncompressed tar of an OCI image layout; gunzip it if it is compressed", "the file is no tar")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return problem(chandler.CodeTarHeader, "copy it again", "the archive is truncated after %d entries", entries)
	}
	return problem(chandler.CodeTarHeader, "write it again", "the header after %d entries is no valid one", entries)
}

// enter takes in one entry of the index.
func (a *Archive) enter(i int, e entry) error {
	if _, ok := chandler.ParseDigest[chandler.ArtifactDigest](e.Digest); !ok {
		return problem(chandler.CodeDigestSyntax, "write it again with sha256 digests", "entry %d of the index: digest %s is not sha256: and 64 lower-case hex digits", i, chandler.Quote(e.Digest))
	}
	raw, err := a.read(e.Digest)
	if err != nil {
		return err
	}
	var m struct {
		Subject      *fetch.Descriptor `json:"subject"`
		ArtifactType string            `json:"artifactType"`
		Config       fetch.Descriptor  `json:"config"`
		Annotations  map[string]string `json:"annotations"`
	}
	if err := decode(raw, &m); err != nil {
		return problem(chandler.CodeManifestParse, "write it again", "entry %d of the index: manifest %s cannot be read", i, e.Digest)
	}
	if m.Subject != nil {
		about := entry{Descriptor: fetch.Descriptor{MediaType: e.MediaType, Digest: e.Digest, Size: int64(len(raw))}, ArtifactType: m.ArtifactType, Annotations: m.Annotations}
		if about.ArtifactType == "" {
			about.ArtifactType = m.Config.MediaType
		}
		a.referrers[m.Subject.Digest] = append(a.referrers[m.Subject.Digest], about)
	}
	return a.name(i, e, m.Subject != nil)
}

// unnamed is the repository of what has no name.
const unnamed = "archive.invalid/unnamed"

// name finds out what an entry is called.
func (a *Archive) name(i int, e entry, refers bool) error {
	name, tag := e.Annotations[annotationName], e.Annotations[annotationTag]
	if name == "" && strings.Contains(tag, "/") {
		name = tag // skopeo writes what it is told
	}
	if name == "" && tag == "" && refers {
		return nil
	}
	text := name
	switch {
	case name == "" && tag == "":
		text = unnamed + "@" + e.Digest
	case name == "":
		name, text = tag, unnamed+":"+tag
	}
	ref, p := chandler.ParseReference(text)
	if p == nil && ref.Scheme != chandler.SchemeOCI {
		p = chandler.Problemf(chandler.CodeRefSyntax, "", "write it again", "it names no repository")
	}
	if p != nil {
		return problem(p.Code, p.Hint, "entry %d of the index: name %s: %s", i, chandler.Quote(name), p.Message)
	}
	if ref.Tag != "" {
		if other, taken := a.tagged[nameOf(ref)]; taken && other.Digest != e.Digest {
			return problem(chandler.CodeManifestAmbiguous, "write it again", "the archive has two artifacts named %s", chandler.Quote(name))
		}
		a.tagged[nameOf(ref)] = e
	}
	if attachmentTag.MatchString(ref.Tag) {
		return nil
	}
	ref.Digest = chandler.ArtifactDigest(e.Digest)
	a.found = append(a.found, Found{Name: name, Reference: ref, Complete: !strings.HasPrefix(text, unnamed)})
	return nil
}

// read gives a manifest's bytes.
func (a *Archive) read(digest string) ([]byte, error) {
	at, ok := a.blobs[digest]
	switch {
	case !ok:
		return nil, problem(chandler.CodeTarMissing, "write it again", "the archive has no manifest %s, which its index names", digest)
	case at.size > maxJSON:
		return nil, problem(chandler.CodeTarSize, "write it again", "manifest %s is over %d bytes", digest, maxJSON)
	}
	raw := make([]byte, at.size)
	if _, err := a.r.ReadAt(raw, at.at); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read the archive: %w", err)
	}
	return raw, nil
}

func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

// blobReader reads one blob.
func (a *Archive) blobReader(digest string) (io.Reader, int64, bool) {
	at, ok := a.blobs[digest]
	if !ok {
		return bytes.NewReader(nil), 0, false
	}
	return io.NewSectionReader(a.r, at.at, at.size), at.size, true
}

package airgap

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"regexp"
	"slices"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
)

const (
	maxEntries = 1024
	maxJSON    = 1 << 20
)

// layout is an image layout, as its index tells it.
type layout struct {
	content
	found []Found
	// tagged are the manifests with a tag, by their place.
	tagged map[string]entry
	// referrers are lists of what refers to something, by the digest of that.
	referrers map[string][]entry
	// within are the manifests of each repository: that a digest is in the layout does not
	// put it into every repository, or rules about those would say nothing.
	within map[string]map[string]bool
}

// content has the blobs of a layout.
type content interface {
	// kind is what it is called: the archive, the folder.
	kind() string
	// blob gives one, to be closed, and its size; fs.ErrNotExist: there is none.
	blob(digest string) (io.ReadCloser, int64, error)
}

// Found is an artifact of an archive or a folder.
type Found struct {
	// Name is as it is written; empty: it has none.
	Name string
	// Reference is what to ask it for.
	Reference chandler.Reference
	// Complete: the name tells registry and repository.
	Complete bool
}

// attachmentTag is the tag of what belongs to an artifact.
var attachmentTag = regexp.MustCompile(`^sha256-[0-9a-f]{64}(\.[a-z]+)?$`)

// parseLayout reads an index, and the manifests that it names.
func parseLayout(raw []byte, from content) (*layout, error) {
	entries, err := parseIndex(raw, from.kind())
	if err != nil {
		return nil, err
	}
	l := &layout{content: from, tagged: map[string]entry{}, referrers: map[string][]entry{}, within: map[string]map[string]bool{}}
	for i, e := range entries {
		if err := l.enter(i, e); err != nil {
			return nil, err
		}
	}
	l.gather()
	if len(l.found) == 0 {
		return nil, problem(chandler.CodeTarMissing, "save an artifact into it", "%s has no artifact", from.kind())
	}
	return l, nil
}

func parseIndex(raw []byte, kind string) ([]entry, error) {
	var all index
	if err := decode(raw, &all); err != nil {
		return nil, problem(chandler.CodeManifestParse, "write it again", "%s of %s cannot be read as an index", fileIndex, kind)
	}
	if len(all.Manifests) > maxEntries {
		return nil, problem(chandler.CodeIndex, "write several", "%s of %s has %d entries, limit %d", fileIndex, kind, len(all.Manifests), maxEntries)
	}
	return all.Manifests, nil
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

// enter takes in one entry of the index.
func (l *layout) enter(i int, e entry) error {
	if _, ok := chandler.ParseDigest[chandler.ArtifactDigest](e.Digest); !ok {
		return problem(chandler.CodeDigestSyntax, "write it again with sha256 digests", "entry %d of the index: digest %s is not sha256: and 64 lower-case hex digits", i, chandler.Quote(e.Digest))
	}
	raw, err := l.read(e.Digest)
	if err != nil {
		return err
	}
	var m struct {
		Subject      *fetch.Descriptor `json:"subject"`
		ArtifactType string            `json:"artifactType"`
		Config       fetch.Descriptor  `json:"config"`
		Annotations  map[string]string `json:"annotations"`
		Manifests    []struct {
			Digest string `json:"digest"`
		} `json:"manifests"`
	}
	if err := decode(raw, &m); err != nil {
		return problem(chandler.CodeManifestParse, "write it again", "entry %d of the index: manifest %s cannot be read", i, e.Digest)
	}
	if m.Subject != nil {
		about := entry{Descriptor: fetch.Descriptor{MediaType: e.MediaType, Digest: e.Digest, Size: int64(len(raw))}, ArtifactType: m.ArtifactType, Annotations: m.Annotations}
		if about.ArtifactType == "" {
			about.ArtifactType = m.Config.MediaType
		}
		l.referrers[m.Subject.Digest] = append(l.referrers[m.Subject.Digest], about)
	}
	repository, err := l.name(i, e, m.Subject != nil)
	if err != nil || repository == "" {
		return err
	}
	all := l.within[repository]
	if all == nil {
		all = map[string]bool{}
		l.within[repository] = all
	}
	all[e.Digest] = true
	for _, part := range m.Manifests {
		all[part.Digest] = true
	}
	return nil
}

// gather puts into each repository what refers to what is there, and to that in turn.
func (l *layout) gather() {
	for _, all := range l.within {
		for more := slices.Collect(maps.Keys(all)); len(more) > 0; {
			digest := more[len(more)-1]
			more = more[:len(more)-1]
			for _, r := range l.referrers[digest] {
				if !all[r.Digest] {
					all[r.Digest] = true
					more = append(more, r.Digest)
				}
			}
		}
	}
}

// unnamed is the repository of what has no name.
const unnamed = "archive.invalid/unnamed"

// name finds out what an entry is called, and gives its repository; empty: that of what
// it refers to.
func (l *layout) name(i int, e entry, refers bool) (repository string, err error) {
	name, tag := e.Annotations[annotationName], e.Annotations[annotationTag]
	if name == "" && strings.Contains(tag, "/") {
		name = tag // skopeo writes what it is told
	}
	if name == "" && tag == "" && refers {
		return "", nil
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
		return "", problem(p.Code, p.Hint, "entry %d of the index: name %s: %s", i, chandler.Quote(name), p.Message)
	}
	if ref.Tag != "" {
		if other, taken := l.tagged[nameOf(ref)]; taken && other.Digest != e.Digest {
			return "", problem(chandler.CodeManifestAmbiguous, "write it again", "%s has two artifacts named %s", l.kind(), chandler.Quote(name))
		}
		l.tagged[nameOf(ref)] = e
	}
	repository = ref.Host + "/" + ref.Repository
	if attachmentTag.MatchString(ref.Tag) {
		return repository, nil
	}
	ref.Digest = chandler.ArtifactDigest(e.Digest)
	l.found = append(l.found, Found{Name: name, Reference: ref, Complete: !strings.HasPrefix(text, unnamed)})
	return repository, nil
}

// read gives a manifest's bytes, which have its digest.
func (l *layout) read(digest string) ([]byte, error) {
	blob, size, err := l.blob(digest)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, problem(chandler.CodeTarMissing, "write it again", "%s has no manifest %s, which its index names", l.kind(), digest)
	case err != nil:
		return nil, err
	}
	defer blob.Close()
	if size > maxJSON {
		return nil, problem(chandler.CodeTarSize, "write it again", "manifest %s is over %d bytes", digest, maxJSON)
	}
	raw, err := io.ReadAll(io.LimitReader(blob, maxJSON+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", l.kind(), err)
	}
	if got := string(chandler.Digest[chandler.ArtifactDigest](raw)); got != digest {
		return nil, problem(chandler.CodeDigestMismatch, "write it again; it was changed or is damaged", "manifest %s has other bytes: they have %s", digest, got)
	}
	return raw, nil
}

func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

package fetch

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"

	"chandler.dev/chandler"
)

// head finds the digest of a tag.
func (c *Client) head(ctx context.Context, req Request) (d chandler.ArtifactDigest, err error) {
	err = c.from(ctx, req.Reference, req.Credentials, resolves, func(s *session) (bool, error) {
		d, err = c.headAt(ctx, s, req.Reference)
		return false, err
	})
	return d, err
}

func (c *Client) headAt(ctx context.Context, s *session, ref chandler.Reference) (chandler.ArtifactDigest, error) {
	what := manifestID(ref)
	resp, err := s.do(ctx, http.MethodHead, "manifests/"+what, manifestTypes)
	if err != nil {
		s.forget()
		return "", err
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		if d, ok := chandler.ParseDigest[chandler.ArtifactDigest](resp.Header.Get("Docker-Content-Digest")); ok {
			return d, nil
		}
	} else if resp.StatusCode != http.StatusMethodNotAllowed {
		s.forget()
		return "", statusError(what, resp.StatusCode, resp.Header)
	}
	_, d, err := c.manifest(ctx, s, what, "")
	return d, err
}

// manifestID is what a reference asks the registry for: the digest wins, and no
// tag is "latest".
func manifestID(ref chandler.Reference) string {
	switch {
	case ref.Digest != "":
		return string(ref.Digest)
	case ref.Tag != "":
		return ref.Tag
	}
	return "latest"
}

// do asks for something in the repository; path may have a query.
func (s *session) do(ctx context.Context, method, path string, accept []string) (*http.Response, error) {
	resp, err := s.ask(ctx, method, path, accept)
	var bare *noTLS
	if errors.As(err, &bare) && s.at.Scheme == "" && bare.host == s.at.Host {
		s.auth.mu.Lock()
		s.auth.plain = true
		s.auth.mu.Unlock()
		resp, err = s.ask(ctx, method, path, accept)
	}
	return resp, err
}

func (s *session) ask(ctx context.Context, method, path string, accept []string) (*http.Response, error) {
	base := s.base()
	if err := s.c.mayBeUnpinned(base.Scheme, s.at.Host, s.ref.Digest != ""); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(s.at.mark(ctx), method, base.String()+"/"+path, nil)
	if err != nil {
		return nil, refuse(chandler.CodeRefSyntax, "correct the url", "the reference makes no url")
	}
	if !s.at.isHome(s.ref.Host) {
		query := req.URL.Query()
		query.Set("ns", namespace(s.ref.Host)) // a mirror of several wants to know of which
		req.URL.RawQuery = query.Encode()
	}
	if len(accept) > 0 {
		req.Header.Set("Accept", strings.Join(accept, ", "))
	}
	return s.client.Do(req)
}

// namespace is what mirrors call a registry.
func namespace(registry string) string {
	if registry == chandler.DefaultRegistry {
		return "docker.io"
	}
	return registry
}

// get is do with an answer of 200.
func (s *session) get(ctx context.Context, path, what string, accept []string) (*http.Response, error) {
	resp, err := s.do(ctx, http.MethodGet, path, accept)
	if err != nil {
		s.forget()
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		s.forget()
		return nil, statusError(what, resp.StatusCode, resp.Header)
	}
	return resp, nil
}

// manifest reads one manifest or index; with want it must have that digest.
func (c *Client) manifest(ctx context.Context, s *session, id string, want chandler.ArtifactDigest) (*manifest, chandler.ArtifactDigest, error) {
	w, err := s.written(ctx, id, want)
	if err != nil {
		return nil, "", err
	}
	m, err := parseManifest(w.raw, w.mediaType)
	if err != nil {
		return nil, "", err
	}
	return m, w.digest, nil
}

// written is a manifest as it was written.
type written struct {
	raw       []byte
	digest    chandler.ArtifactDigest
	mediaType string // what the registry says
}

// written gets a manifest of any kind; with want it must have that digest.
func (s *session) written(ctx context.Context, id string, want chandler.ArtifactDigest) (written, error) {
	resp, err := s.get(ctx, "manifests/"+id, "manifest "+id, manifestTypes)
	if err != nil {
		return written{}, err
	}
	defer resp.Body.Close()
	if resp.ContentLength > maxManifest {
		return written{}, manifestProblem("over %d bytes", maxManifest)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest+1))
	if err != nil {
		return written{}, shortBody("manifest "+id, err, resp.ContentLength, int64(len(raw)))
	}
	got := chandler.Digest[chandler.ArtifactDigest](raw)
	if want != "" && got != want {
		return written{}, refuse(chandler.CodeDigestMismatch, "look at the registry", "manifest %s: the registry gives one of digest %s", want, got)
	}
	if said := resp.Header.Get("Docker-Content-Digest"); said != "" && said != string(got) {
		return written{}, refuse(chandler.CodeDigestHeader, "look at the registry", "manifest %s: its digest is %s, the registry says %s", id, got, chandler.Quote(said))
	}
	return written{raw, got, resp.Header.Get("Content-Type")}, nil
}

// pullOCI pulls from the first place that has what the reference names.
func (c *Client) pullOCI(ctx context.Context, req Request, sink Sink) (a Artifact, err error) {
	want := pin(req)
	ref := req.Reference
	if want != "" {
		ref.Digest = want
	}
	if ref.Digest == "" && c.onlyByDigest(ref.Host) {
		if ref.Digest, err = c.head(ctx, req); err != nil {
			return Artifact{}, err
		}
	}
	err = c.from(ctx, ref, req.Credentials, gives(ref), func(s *session) (settled bool, err error) {
		a, settled, err = c.pullAt(ctx, s, ref, sink)
		return settled, err
	})
	if err != nil {
		return Artifact{}, c.movedTag(ctx, req, err)
	}
	return a, nil
}

// onlyByDigest tells whether a registry has mirrors that are not to be asked what
// a tag means.
func (c *Client) onlyByDigest(registry string) bool {
	all, err := c.endpoints(registry)
	return err == nil && slices.ContainsFunc(all, func(e Endpoint) bool { return e.Pull && !e.Resolve })
}

// pullAt follows reference, index and manifest to a layer and unpacks that.
// settled: the bytes are those that the digest in ref means, so that they are the
// same everywhere.
func (c *Client) pullAt(ctx context.Context, s *session, ref chandler.Reference, sink Sink) (a Artifact, settled bool, err error) {
	m, digest, err := c.manifest(ctx, s, manifestID(ref), ref.Digest)
	if err != nil {
		return a, false, err
	}
	settled = ref.Digest != ""
	if m.isIndex() {
		entry, err := m.choose(c.Arch)
		if err != nil {
			return a, settled, err
		}
		if m, _, err = c.manifest(ctx, s, entry.Digest, chandler.ArtifactDigest(entry.Digest)); err != nil {
			return a, false, err
		}
		if m.isIndex() {
			return a, settled, refuse(chandler.CodeIndex, "name a manifest by digest", "the index names another index")
		}
	}
	index, how, err := m.layer()
	if err != nil {
		return a, settled, err
	}
	a, whole, err := c.pullLayer(ctx, s, index, &m.Layers[index], how, sink)
	if err != nil {
		return Artifact{}, settled && whole, err
	}
	ref.Digest = digest
	a.Reference, a.Digest = ref.String(), digest
	return a, true, nil
}

// pullLayer brings a layer to disk, and its module into sink if its bytes are
// whole: those of its digest.
func (c *Client) pullLayer(ctx context.Context, s *session, index int, d *descriptor, how packing, sink Sink) (a Artifact, whole bool, err error) {
	what := blobName(index)
	f, blob, err := c.wholeBlob(ctx, s, what, d)
	if err != nil {
		return a, false, err
	}
	defer f.Close()
	a, err = c.unpack(what, f, blob, layerOpener(how, what), sink, "")
	return a, true, err
}

// wholeBlob brings a blob to disk and holds it against its descriptor.
func (c *Client) wholeBlob(ctx context.Context, s *session, what string, d *descriptor) (f *os.File, b blob, err error) {
	if d.Size > c.MaxBlob {
		return nil, b, refuse(chandler.CodeDescSize, "push a smaller module, or let the operator raise the limit", "%s: declared size is %d bytes, limit %d", what, d.Size, c.MaxBlob)
	}
	if f, err = c.spool(); err != nil {
		return nil, b, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	resp, err := s.get(ctx, "blobs/"+d.Digest, what+" "+d.Digest, nil)
	if err != nil {
		return nil, b, err
	}
	resp.Body = c.shown(what, d.Size, resp.Body)
	b, err = download(f, resp, what, min(c.MaxBlob, d.Size))
	switch {
	case err != nil:
	case b.size > d.Size:
		err = refuse(chandler.CodeDescSize, "push it again", "%s: declared size is %d bytes, it has %d or more", what, d.Size, b.size)
	case b.size < d.Size && resp.ContentLength < 0:
		err = temporary(chandler.CodeFetchShort, "%s: declared size is %d bytes, the registry sent %d", what, d.Size, b.size)
	case b.size < d.Size:
		err = refuse(chandler.CodeDescSize, "push it again", "%s: declared size is %d bytes, it has %d", what, d.Size, b.size)
	case string(b.digest) != d.Digest:
		err = refuse(chandler.CodeDigestMismatch, "look at the registry", "%s: the registry gives other bytes for %s: they have %s", what, d.Digest, b.digest)
	}
	return f, b, err
}

// movedTag tells more of a pinned manifest that is not there: with a tag beside
// the pin, which digest the tag has.
func (c *Client) movedTag(ctx context.Context, req Request, err error) error {
	var e *Error
	if !errors.As(err, &e) || e.Problem.Code != chandler.CodeNotFound || req.SHA256 == "" || req.Reference.Digest != "" {
		return err
	}
	d, headErr := c.head(ctx, req)
	if headErr != nil {
		return err
	}
	return refuse(chandler.CodeDigestMismatch, "correct sha256, or push the module that it names",
		"sha256 says sha256:%s, which the registry does not have; %s is %s", req.SHA256, chandler.Quote(manifestID(req.Reference)), d)
}

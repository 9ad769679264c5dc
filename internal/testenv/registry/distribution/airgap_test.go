package distribution_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/airgap"
	"chandler.dev/chandler/internal/fetch"
)

// taken is all that is exported of an artifact, by what it is.
type taken map[string]string

func (k taken) Blob(_ context.Context, d fetch.Descriptor, r io.ReaderAt) error {
	b, err := io.ReadAll(io.NewSectionReader(r, 0, d.Size))
	k[d.Digest] = string(b)
	return err
}

func (k taken) Manifest(_ context.Context, m fetch.Manifest) error {
	k[fmt.Sprint(m.Digest, m.MediaType, m.Tag, m.Subject)] = string(m.Raw)
	return nil
}

// TestSaveAndLoad: what is saved from one registry is in another, empty one byte for
// byte when it was loaded, with documents and signatures.
func TestSaveAndLoad(t *testing.T) {
	from, to := start(t), start(t)
	c := fetch.New(fetch.Config{Dir: t.TempDir()})
	defer c.Close()
	ref := func(host, name string) chandler.Reference {
		t.Helper()
		r, p := chandler.ParseReference(host + "/" + name)
		if p != nil {
			t.Fatal(p)
		}
		return r
	}
	var file bytes.Buffer
	w := airgap.NewWriter(&file, 0)
	names := []string{"team/a:v1", "team/a:v2", "b:v1"}
	for i, name := range names {
		r := ref(from, name)
		digest, err := c.Push(t.Context(), from+"/"+name, append([]byte("\x00asm\x01\x00\x00\x00"), name...), fetch.PushOptions{
			Layout: []fetch.Layout{fetch.LayoutCNCF, fetch.LayoutCompat}[i%2], Documents: fetch.Documents{Schema: []byte("{}"), Readme: []byte("# " + name)},
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []fetch.Signature{
			{MediaType: fetch.TypeBundle + ".v0.3+json", Content: []byte(`{"by":1}`), Annotations: map[string]string{"a": "1"}},
			{MediaType: fetch.TypeBundle + ".v0.3+json", Content: []byte(`{"by":2}`), Annotations: map[string]string{"a": "2"}},
			{MediaType: fetch.TypeSimpleSigning, Content: []byte("1"), Annotations: map[string]string{"a": "3"}},
			{MediaType: fetch.TypeSimpleSigning, Content: []byte("2"), Annotations: map[string]string{"a": "4"}},
		} {
			if err := c.AddSignature(t.Context(), r, digest, s, nil); err != nil {
				t.Fatal(err)
			}
		}
		if signed, err := c.Signatures(t.Context(), r, digest, nil); err != nil || len(signed.Found) != 4 || len(signed.Faults) > 0 {
			t.Errorf("%s: %+v, %v", name, signed, err)
		}
		if _, err := c.Export(t.Context(), fetch.Request{Reference: r}, w.Repository(r)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	archive, err := airgap.Open(bytes.NewReader(file.Bytes()), int64(file.Len()))
	if err != nil {
		t.Fatal(err)
	}
	reader := archive.Client(fetch.Config{Dir: t.TempDir()})
	defer reader.Close()
	for _, f := range archive.Found() {
		into, err := c.Repository(t.Context(), ref(to, f.Reference.Repository), nil)
		if err == nil {
			_, err = reader.Export(t.Context(), fetch.Request{Reference: f.Reference}, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range names {
		was, is := taken{}, taken{}
		for host, k := range map[string]taken{from: was, to: is} {
			if _, err := c.Export(t.Context(), fetch.Request{Reference: ref(host, name)}, k); err != nil {
				t.Fatal(err)
			}
		}
		if !maps.Equal(was, is) || len(was) < 12 {
			t.Errorf("%s: %d parts were saved, %d are there", name, len(was), len(is))
		}
		d, err := c.Documents(t.Context(), fetch.Request{Reference: ref(to, name)})
		if err != nil || string(d.Schema) != "{}" || string(d.Readme) != "# "+name {
			t.Errorf("%s: %q, %v", name, d, err)
		}
	}
}

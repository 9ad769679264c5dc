package fetch

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"testing"
)

// FuzzManifest: whatever a registry says is a manifest or refused by name.
func FuzzManifest(f *testing.F) {
	const digest = "sha256:93a44bbb96c751218e4c00d479e4c14358122a389acca16205b1e4d0dc5f9476"
	f.Add([]byte(`{"schemaVersion":2,"layers":[{"mediaType":"application/wasm","size":8,"digest":"`+digest+`"}]}`), typeOCIManifest)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"platform":{"os":"linux"},"size":8,"digest":"`+digest+`"}]}`), typeOCIIndex)
	f.Fuzz(func(t *testing.T, raw []byte, contentType string) {
		m, err := parseManifest(raw, contentType)
		if err != nil {
			named(t, err)
			return
		}
		if m.isIndex() {
			_, err = m.choose("amd64")
		} else {
			_, _, err = m.layer()
		}
		named(t, err)
	})
}

// FuzzUnpack: whatever a blob holds is a module within the limits or refused by
// name.
func FuzzUnpack(f *testing.F) {
	module := append(bytes.Clone(wasmMagic), 1, 0, 0, 0)
	var packed, zipped bytes.Buffer
	w := tar.NewWriter(&packed)
	for _, name := range []string{"a", moduleName} {
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Size: 8, Typeflag: tar.TypeReg}), one(w.Write(module)), w.Flush()); err != nil {
			f.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		f.Fatal(err)
	}
	z := gzip.NewWriter(&zipped)
	if err := errors.Join(one(z.Write(packed.Bytes())), z.Close()); err != nil {
		f.Fatal(err)
	}
	for _, seed := range [][]byte{module, packed.Bytes(), zipped.Bytes()} {
		f.Add(seed)
	}
	const limit = 1 << 16
	f.Fuzz(func(t *testing.T, blob []byte) {
		openers := []opener{openSniffed}
		for _, how := range layerTypes {
			openers = append(openers, layerOpener(how, "layer 0"))
		}
		for _, open := range openers {
			r, err := open("blob", bufio.NewReader(bytes.NewReader(blob)), limits{blob: int64(len(blob)), maxModule: limit})
			if err != nil {
				named(t, err)
				continue
			}
			out, err := io.ReadAll(&moduleReader{r: r, what: "blob", limit: limit})
			named(t, err)
			if err == nil && (len(out) > limit || !bytes.HasPrefix(out, wasmMagic)) {
				t.Fatalf("%d bytes are taken for a module", len(out))
			}
		}
	})
}

func one(_ int, err error) error { return err }

func named(t *testing.T, err error) {
	t.Helper()
	var e *Error
	if err != nil && (!errors.As(err, &e) || e.Problem.Code == "" || e.Problem.Hint == "" || e.Temporary || len(e.Error()) > 1<<16) {
		t.Fatalf("not named: %v", err)
	}
}

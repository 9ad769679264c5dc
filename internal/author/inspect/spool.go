package inspect

import (
	"fmt"
	"io"
	"os"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
)

// spool is a temporary file without a name, which is gone whatever ends the process.
func spool(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, "inspect-*")
	if err != nil {
		return nil, fmt.Errorf("a temporary file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, fmt.Errorf("a temporary file: %w", err)
	}
	return f, nil
}

// sink writes a module to a file. It implements fetch.Sink.
type sink struct{ f *os.File }

func (s sink) Ingest(r io.Reader, _ chandler.ModuleDigest) (chandler.ModuleDigest, int64, error) {
	// Another place that the module is fetched from begins anew.
	if err := s.f.Truncate(0); err != nil {
		return "", 0, err
	}
	if _, err := s.f.Seek(0, io.SeekStart); err != nil {
		return "", 0, err
	}
	return fetch.Copy(s.f, r)
}

func digestOf(f *os.File) (Sum, error) {
	d, n, err := fetch.Copy(io.Discard, io.NewSectionReader(f, 0, 1<<62))
	if err != nil {
		return Sum{}, fmt.Errorf("read the module: %w", err)
	}
	return Sum{string(d), n}, nil
}

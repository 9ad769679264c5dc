package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
)

// lastGoodFormat is the format of the file; a file of another is kept aside,
// never overwritten.
const lastGoodFormat = 1

// lastGoodFile is what was last acknowledged, as attachments and not as Envoy's
// messages: the next Envoy may be another version.
type lastGoodFile struct {
	Format   int       `json:"format"`
	Envoy    string    `json:"envoy"`
	Versions []Version `json:"versions"`
	Denied   []Version `json:"denied,omitempty"`
}

func lastGoodPath(dir string) string { return filepath.Join(dir, "lastgood") }

func saveLastGood(fsys durable.FS, dir string, save SaveLastGood) error {
	b, err := json.Marshal(lastGoodFile{Format: lastGoodFormat, Envoy: save.Envoy, Versions: save.Versions, Denied: save.Denied})
	if err != nil {
		return fmt.Errorf("last good set: %w", err)
	}
	return durable.Write(fsys, lastGoodPath(dir), b)
}

// lastGoodLimit bounds what is read: a thousand attachments of the greatest size
// come to half of it.
const lastGoodLimit = 2 << 30

// loadLastGood reads the set; ok is false when there is none that can be read. An
// unreadable file is kept beside it under a name of its own, so that nothing of
// value is lost, and the error says so.
func loadLastGood(fsys durable.FS, dir string) (ev Restored, ok bool, err error) {
	path := lastGoodPath(dir)
	b, err := durable.Read(fsys, path, lastGoodLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return Restored{}, false, nil
	}
	if err != nil {
		return Restored{}, false, err
	}
	var file lastGoodFile
	jsonErr := json.Unmarshal(b, &file)
	if jsonErr == nil && file.Format == lastGoodFormat {
		return Restored{Envoy: file.Envoy, Versions: file.Versions, Denied: file.Denied}, true, nil
	}
	// Named by its content, so that it never replaces another one that was kept.
	aside := fmt.Sprintf("%s.format-%d.%.12s", path, file.Format, chandler.Digest[chandler.ModuleDigest](b).Hex())
	if err := errors.Join(fsys.Rename(path, aside), fsys.SyncDir(dir)); err != nil {
		return Restored{}, false, err
	}
	return Restored{}, false, fmt.Errorf("last good set of a format this agent cannot read is kept as %s", aside)
}

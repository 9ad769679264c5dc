package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

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
}

func lastGoodPath(dir string) string { return filepath.Join(dir, "lastgood") }

func saveLastGood(fsys durable.FS, dir string, save SaveLastGood) error {
	b, err := json.Marshal(lastGoodFile{Format: lastGoodFormat, Envoy: save.Envoy, Versions: save.Versions})
	if err != nil {
		return fmt.Errorf("last good set: %w", err)
	}
	return durable.Write(fsys, lastGoodPath(dir), b)
}

// loadLastGood reads the set; ok is false when there is none that can be read.
// An unreadable file is moved aside, so that nothing of value is lost, and the
// error says so.
func loadLastGood(dir string) (ev Restored, ok bool, err error) {
	path := lastGoodPath(dir)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return Restored{}, false, nil
	}
	if err != nil {
		return Restored{}, false, err
	}
	var file lastGoodFile
	if err := json.Unmarshal(b, &file); err != nil || file.Format != lastGoodFormat {
		aside := fmt.Sprintf("%s.format-%d", path, file.Format)
		if err := os.Rename(path, aside); err != nil {
			return Restored{}, false, err
		}
		return Restored{}, false, fmt.Errorf("last good set of a format this agent cannot read is kept as %s", aside)
	}
	return Restored{Envoy: file.Envoy, Versions: file.Versions}, true, nil
}

package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

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

// inPart names a version of which more was said than this agent understands. To an agent
// that understands more it is another one than the whole: that agent is sent it, though
// the control plane has not changed it.
func inPart(version string) string { return strings.TrimSuffix(version, partly) + partly }

const partly = "~"

// saysMore tells whether a set has fields that are not known here, of a later agent.
func saysMore(b []byte) bool {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(&lastGoodFile{}) != nil
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
		if saysMore(b) {
			for _, list := range [][]Version{file.Versions, file.Denied} {
				for i := range list {
					list[i].Version = inPart(list[i].Version)
				}
			}
		}
		return Restored{Envoy: file.Envoy, Versions: file.Versions, Denied: file.Denied}, true, nil
	}
	// Named by its content, so that it never replaces another one that was kept.
	aside := fmt.Sprintf("%s.format-%d.%.12s", path, file.Format, chandler.Digest[chandler.ModuleDigest](b).Hex())
	if err := errors.Join(fsys.Rename(path, aside), fsys.SyncDir(dir)); err != nil {
		return Restored{}, false, err
	}
	return Restored{}, false, fmt.Errorf("last good set of a format this agent cannot read is kept as %s", aside)
}

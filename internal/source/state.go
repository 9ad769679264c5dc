package source

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/later"
)

// entryFormat is the format of an entry's file.
const entryFormat = 1

// entry is what must outlive a restart of one object: who it is, and its texts.
// There is a file for each.
type entry struct {
	Format int
	chandler.Key
	UID        string
	Created    time.Time
	Generation int64
	// Digest is that of the newest text, Origin the path of its file.
	Digest   string
	Origin   string
	Manifest string
	// Valid is the last text without a problem; nil when there never was one.
	Valid *validText `json:",omitempty"`
}

// validText is a text and its generation; an empty Manifest is the newest text.
type validText struct {
	Generation int64
	Manifest   string `json:",omitempty"`
}

func newEntry(key chandler.Key, now time.Time) entry {
	return entry{Format: entryFormat, Key: key, UID: newUID(), Created: now.UTC().Truncate(time.Millisecond)}
}

// newUID is a random UUID (RFC 9562, version 4).
func newUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// stem names the files of an object. The parts are joined by _, which is in none
// of them: a-b and c are others than a and b-c.
func stem(key chandler.Key) string {
	s := strings.ToLower(key.Kind) + "_" + key.Namespace + "_" + key.Name
	if len(s) <= 200 {
		return s
	}
	d := chandler.Digest[chandler.ModuleDigest]([]byte(s))
	return s[:128] + "_" + d.Hex()
}

// ledger keeps the entries in a directory.
type ledger struct {
	fsys durable.FS
	dir  string
}

const (
	entrySuffix = ".json"
	maxEntry    = 8 << 20
)

// load reads all entries. A file that is none, or of a format that is not known,
// is renamed and left for a person.
func (l ledger) load(log *slog.Logger) (map[chandler.Key]entry, error) {
	if err := durable.Mkdir(l.fsys, l.dir); err != nil {
		return nil, err
	}
	if err := durable.Sweep(l.fsys, l.dir); err != nil {
		return nil, err
	}
	files, err := l.fsys.ReadDir(l.dir)
	if err != nil {
		return nil, err
	}
	entries := map[chandler.Key]entry{}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), entrySuffix) {
			continue
		}
		name := filepath.Join(l.dir, f.Name())
		b, err := durable.Read(l.fsys, name, maxEntry)
		if err != nil && !errors.Is(err, durable.ErrTooLarge) && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		var e entry
		if err != nil || json.Unmarshal(b, &e) != nil || e.Format != entryFormat || e.UID == "" || stem(e.Key)+entrySuffix != f.Name() {
			aside, err := durable.SetAside(l.fsys, name)
			if err != nil {
				return nil, err
			}
			log.Warn("the state of an object cannot be read and is set aside", "file", aside)
			continue
		}
		entries[e.Key] = e
	}
	return entries, nil
}

// put writes an entry, and with it what a later version wrote into the one before.
func (l ledger) put(e entry) error {
	path := filepath.Join(l.dir, stem(e.Key)+entrySuffix)
	before, err := durable.Read(l.fsys, path, maxEntry)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	b, err := json.Marshal(e)
	if err == nil {
		b, err = later.Of(before, e).AddTo(b)
	}
	var text bytes.Buffer
	if err == nil {
		err = json.Indent(&text, b, "", " ")
	}
	if err != nil { // plain types only
		return err
	}
	return durable.Write(l.fsys, path, text.Bytes())
}

func (l ledger) remove(key chandler.Key) error {
	return durable.Remove(l.fsys, filepath.Join(l.dir, stem(key)+entrySuffix))
}

// lastValid decodes the last valid text of an entry, or gives nil.
func (e entry) lastValid() *chandler.Plugin {
	if e.Valid == nil {
		return nil
	}
	text := e.Valid.Manifest
	if text == "" {
		text = e.Manifest
	}
	for _, d := range Decode([]byte(text), e.Namespace) {
		if d.Key == e.Key && d.Plugin != nil {
			return e.identify(d.Plugin, e.Valid.Generation)
		}
	}
	return nil
}

// identify gives a decoded plugin its identity.
func (e entry) identify(p *chandler.Plugin, generation int64) *chandler.Plugin {
	own := *p
	own.UID, own.Created, own.Generation = e.UID, e.Created, generation
	return &own
}

// versions is a key for the versions of secrets: without it they tell nothing of a
// value, not even to whoever tries all short ones.
type versions []byte

const versionKeySize = 32

// versions reads the key, or makes it. With another key every secret has another
// version, which costs each plugin that uses one a release.
func (l ledger) versions() (versions, error) {
	path := filepath.Join(l.dir, "versions.key")
	key, err := durable.Read(l.fsys, path, versionKeySize)
	switch {
	case err == nil && len(key) == versionKeySize:
		return key, nil
	case err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, durable.ErrTooLarge):
		return nil, fmt.Errorf("read the key of secrets' versions: %w", err)
	}
	key = make([]byte, versionKeySize)
	_, _ = rand.Read(key) // never fails
	if err := durable.Write(l.fsys, path, key); err != nil {
		return nil, fmt.Errorf("write the key of secrets' versions: %w", err)
	}
	return key, nil
}

// of gives the version of a secret's values.
func (v versions) of(s *Secret) string {
	mac := hmac.New(sha256.New, v)
	for _, key := range slices.Sorted(maps.Keys(s.Values)) {
		fmt.Fprintf(mac, "%d %s %d ", len(key), key, len(s.Values[key]))
		mac.Write(s.Values[key])
	}
	return hex.EncodeToString(mac.Sum(nil)[:16])
}

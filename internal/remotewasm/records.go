package remotewasm

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
)

// recordsFile is the file of this form: that of another one stays beside it, for the agent
// that wrote it.
const (
	recordsFile  = "remote-1"
	recordsLimit = 64 << 20
)

// record is what the resources of one name meant. Where a module is may be a secret itself,
// so that only a hash of it is kept.
type record struct {
	Name    string  `json:"name"`
	Taken   bool    `json:"taken"`   // Envoy has one
	Modules []meant `json:"modules"` // the one in force first
}

type meant struct {
	What   string                `json:"what"` // key.what in hex
	Digest chandler.ModuleDigest `json:"digest"`
}

// records gives what is to be kept, in order of names.
func (st *state) records() []record {
	var list []record
	for _, name := range slices.Sorted(maps.Keys(st.names)) {
		e := st.names[name]
		r := record{Name: name, Taken: e.took}
		for _, s := range e.wanted {
			if s.digest == "" {
				continue
			}
			at := len(r.Modules)
			if s == e.good {
				at = 0
			}
			r.Modules = slices.Insert(r.Modules, at, meant{hex.EncodeToString(s.key.what[:]), s.digest})
		}
		if len(r.Modules) > 0 {
			list = append(list, r)
		}
	}
	return list
}

// restore takes what a keeper before this one knew. Nobody asks for it yet. Envoy has what
// it had then, unless it is another.
func (st *state) restore(records []record, now time.Time) {
	for _, r := range records {
		if len(st.names) >= maxNames || st.names[r.Name] != nil {
			continue
		}
		e := &entry{name: r.Name, asked: map[*source]time.Time{}, gave: map[*source]bool{}, left: now, took: r.Taken}
		for _, m := range slices.Backward(r.Modules[:min(len(r.Modules), maxWanted)]) {
			s := &source{digest: m.Digest, users: map[*entry]bool{}}
			if n, err := hex.Decode(s.key.what[:], []byte(m.What)); err != nil || n != len(s.key.what) {
				continue
			}
			st.want(e, s, now)
		}
		if len(e.wanted) > 0 {
			e.good = e.wanted[0]
			st.names[r.Name] = e
		}
	}
	st.todo.save = false
}

type recordsForm struct {
	Resources []record `json:"resources"`
}

// readRecords reads what was kept in dir; there may be nothing.
func readRecords(fsys durable.FS, dir string) ([]record, error) {
	if dir == "" {
		return nil, nil
	}
	path := filepath.Join(dir, recordsFile)
	b, err := durable.Read(fsys, path, recordsLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var file recordsForm
	if err == nil {
		err = json.Unmarshal(b, &file)
	}
	for _, r := range file.Resources {
		for _, m := range r.Modules {
			if _, ok := chandler.ParseDigest[chandler.ModuleDigest](string(m.Digest)); err == nil && (!ok || len(m.What) != 2*len(hash{})) {
				err = errors.New("it names no module")
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %s", chandler.Quote(path), chandler.Printable(err.Error(), 256))
	}
	return file.Resources, nil
}

func writeRecords(fsys durable.FS, dir string, records []record) error {
	if dir == "" {
		return nil
	}
	b, err := json.Marshal(recordsForm{records})
	if err != nil {
		return err
	}
	return durable.Write(fsys, filepath.Join(dir, recordsFile), b)
}

// Kept tells which modules the keeper of dir needs, and for which resources, whether it
// runs or not.
func Kept(fsys durable.FS, dir string) (map[chandler.ModuleDigest][]string, error) {
	records, err := readRecords(fsys, dir)
	if err != nil {
		return nil, err
	}
	users := map[chandler.ModuleDigest][]string{}
	for _, r := range records {
		for _, m := range r.Modules {
			if !slices.Contains(users[m.Digest], r.Name) {
				users[m.Digest] = append(users[m.Digest], r.Name)
			}
		}
	}
	return users, nil
}

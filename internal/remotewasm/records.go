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
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/durable"
)

// The files of this form, by the type of the resources: those of another one stay beside
// them, for the agent that wrote them.
var recordsFiles = map[string]string{attach.ExtensionConfigType: "remote-1", ListenerType: "remote-listeners-1"}

const recordsLimit = 64 << 20

// record is what the resources of one name meant. Where a module is may be a secret itself,
// so that only a hash of it is kept.
type record struct {
	Name    string  `json:"name"`
	Taken   bool    `json:"taken"`              // Envoy has one
	InForce int     `json:"in_force,omitempty"` // so many of Modules are; zero is one
	Modules []meant `json:"modules"`            // those in force first
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
			if e.good[s] {
				at = r.InForce
				r.InForce++
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
		e := newEntry(r.Name)
		e.left, e.took = now, r.Taken
		good := min(max(1, r.InForce), maxModules)
		for i, m := range slices.Backward(r.Modules[:min(len(r.Modules), maxWanted*good)]) {
			s := &source{digest: m.Digest, users: map[*entry]bool{}}
			if n, err := hex.Decode(s.key.what[:], []byte(m.What)); err != nil || n != len(s.key.what) {
				continue
			}
			st.want(e, s, good, now)
			if i < good {
				e.good[s] = true
			}
		}
		if len(e.wanted) > 0 {
			st.names[r.Name] = e
		}
	}
	st.todo.save = false
}

type recordsForm struct {
	Resources []record `json:"resources"`
}

// readRecords reads what was kept in dir of resources of a type; there may be nothing.
func readRecords(fsys durable.FS, dir, typeURL string) ([]record, error) {
	if dir == "" {
		return nil, nil
	}
	path := filepath.Join(dir, recordsFiles[typeURL])
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

func writeRecords(fsys durable.FS, dir, typeURL string, records []record) error {
	if dir == "" {
		return nil
	}
	b, err := json.Marshal(recordsForm{records})
	if err != nil {
		return err
	}
	return durable.Write(fsys, filepath.Join(dir, recordsFiles[typeURL]), b)
}

// Kept tells which modules the keepers of dir need, and for which resources, whether they
// run or not.
func Kept(fsys durable.FS, dir string) (map[chandler.ModuleDigest][]string, error) {
	users := map[chandler.ModuleDigest][]string{}
	for typeURL := range recordsFiles {
		records, err := readRecords(fsys, dir, typeURL)
		if err != nil {
			return nil, err
		}
		for _, r := range records {
			for _, m := range r.Modules {
				if !slices.Contains(users[m.Digest], r.Name) {
					users[m.Digest] = append(users[m.Digest], r.Name)
				}
			}
		}
	}
	return users, nil
}

package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/remotewasm"
	"chandler.dev/chandler/internal/store"
)

// modulesDir is the store of the agent whose directory is data.
func modulesDir(data string) string { return filepath.Join(data, "modules") }

// StoreReport tells what was found or done in a store; sizes are in bytes.
type StoreReport struct {
	Modules []StoredModule `json:"modules"` // those found corrupt, or dropped
	Bytes   int64          `json:"bytes"`   // of those
	// Checked counts what was hashed; Left is the size of what stays.
	Checked int   `json:"checked,omitzero"`
	Left    int64 `json:"left"`
	// Errors are about modules that could not be looked at.
	Errors []string `json:"errors,omitempty"`
}

// StoredModule is one module in a store.
type StoredModule struct {
	Digest chandler.ModuleDigest `json:"digest"`
	Size   int64                 `json:"size"`
	Used   time.Time             `json:"used,omitzero"`
	// Plugins are those of the last good set that run it, as kind/namespace/name, and the
	// extension configs and listeners of Envoy's own control plane that do, by their names.
	Plugins []string `json:"plugins"`
}

// maxReported bounds the modules and errors that a report names.
const maxReported = 10_000

// ListStore lists the modules of the agent whose directory is data, the one used
// last first, whether that agent runs or not.
func ListStore(data string) ([]StoredModule, error) {
	users, err := lastGoodModules(data)
	if err != nil {
		return nil, err
	}
	remote, err := remotewasm.Kept(durable.OS(), data)
	if err != nil {
		return nil, err
	}
	entries, err := store.Read(durable.OS(), modulesDir(data))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	list := []StoredModule{}
	for _, e := range entries {
		m := StoredModule{Digest: e.Digest, Size: e.Size, Used: e.Used, Plugins: []string{}}
		for key := range users[e.Digest] {
			m.Plugins = append(m.Plugins, key.String())
		}
		m.Plugins = append(m.Plugins, remote[e.Digest]...)
		slices.Sort(m.Plugins)
		list = append(list, m)
	}
	return list, nil
}

// OpenStore opens the store of the agent whose directory is data, and takes the
// directory as an agent does, until closed is called. While one runs there it is a
// *chandler.Problem with code CacheLocked.
func OpenStore(data string, most int64) (s *store.Store, closed func(), err error) {
	lock, err := durable.Lock(data)
	if err != nil {
		return nil, nil, err
	}
	s, err = store.Open(store.Config{Dir: modulesDir(data), MaxBytes: most})
	if err != nil {
		_ = lock.Unlock()
		return nil, nil, err
	}
	return s, func() {
		_ = s.Close()
		_ = lock.Unlock()
	}, nil
}

// VerifyStore hashes every module. Corrupt ones are put into quarantine.
func VerifyStore(ctx context.Context, s *store.Store) StoreReport {
	report := StoreReport{Modules: []StoredModule{}}
	for _, e := range s.List() {
		if ctx.Err() != nil {
			report.Errors = append(report.Errors, "not all were checked: "+ctx.Err().Error())
			break
		}
		report.Checked++
		switch err := s.Verify(e.Digest); {
		case err == nil:
		case !errors.Is(err, fs.ErrNotExist):
			report.Errors = append(report.Errors, chandler.Printable(err.Error(), reasonLimit))
		default:
			report.add(e)
		}
	}
	_, report.Left = s.Stats()
	return report
}

// TrimStore drops what is not leased, and neither in the last good set in data nor meant by
// extension configs and listeners that were in force, until at most most bytes stay; dry only tells.
func TrimStore(data string, s *store.Store, most int64, dry bool) (StoreReport, error) {
	users, err := lastGoodModules(data)
	if err != nil {
		return StoreReport{}, err
	}
	remote, err := remotewasm.Kept(durable.OS(), data)
	if err != nil {
		return StoreReport{}, err
	}
	report := StoreReport{Modules: []StoredModule{}}
	dropped := s.Drop(func(d chandler.ModuleDigest) bool { return users[d] != nil || remote[d] != nil }, most, dry)
	for _, e := range dropped {
		report.add(e)
	}
	if _, report.Left = s.Stats(); dry {
		report.Left -= report.Bytes
	}
	return report, nil
}

func (r *StoreReport) add(e store.Entry) {
	r.Bytes += e.Size
	if len(r.Modules) < maxReported {
		r.Modules = append(r.Modules, StoredModule{Digest: e.Digest, Size: e.Size, Used: e.Used, Plugins: []string{}})
	}
}

// trimStore serves POST /store/trim?max_bytes=N&dry_run=BOOL.
func (a *Agent) trimStore(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	most, err := strconv.ParseInt(cmp.Or(query.Get("max_bytes"), "0"), 10, 64)
	dry, dryErr := strconv.ParseBool(cmp.Or(query.Get("dry_run"), "false"))
	if err := errors.Join(err, dryErr); err != nil || most < 0 {
		http.Error(w, fmt.Sprintf("max_bytes is a number of bytes and dry_run true or false (%v)", err), http.StatusBadRequest)
		return
	}
	report, err := TrimStore(a.cfg.Data, a.store, most, dry)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, report)
}

// readLastGood reads the last good set in data and changes nothing. Where there is none
// it is empty.
func readLastGood(data string) (lastGoodFile, error) {
	var file lastGoodFile
	b, err := durable.Read(durable.OS(), lastGoodPath(data), lastGoodLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return file, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &file)
	}
	if err == nil && file.Format != lastGoodFormat {
		err = fmt.Errorf("its format is %d", file.Format)
	}
	if err != nil {
		return file, fmt.Errorf("the last good set in %s cannot be read: %w", chandler.Quote(data), err)
	}
	return file, nil
}

// KnownPlugins gives the plugins of the last good set in data, as far as it can be read.
func KnownPlugins(data string) []chandler.Key {
	file, err := readLastGood(data)
	if err != nil {
		return nil
	}
	var known []chandler.Key
	for _, v := range slices.Concat(file.Versions, file.Denied) {
		known = append(known, v.Key)
	}
	return known
}

// lastGoodModules tells which modules the last good set in data needs, and for
// which plugins. It changes nothing. A set that cannot be read is an error: what
// it needs is not known then.
func lastGoodModules(data string) (map[chandler.ModuleDigest]map[chandler.Key]bool, error) {
	file, err := readLastGood(data)
	if err != nil {
		return nil, err
	}
	users := map[chandler.ModuleDigest]map[chandler.Key]bool{}
	for _, v := range slices.Concat(file.Versions, file.Denied) {
		d := v.Pinned
		if v.Program.Module != nil {
			d = v.Program.Module.Digest
		} else if v.Program.File != nil {
			d = cmp.Or(d, v.Program.File.Digest)
		}
		if d == "" {
			continue
		}
		if users[d] == nil {
			users[d] = map[chandler.Key]bool{}
		}
		users[d][v.Key] = true
	}
	return users, nil
}

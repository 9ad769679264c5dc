package agent

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
)

// Orders to take plugins out are files in the agent's directory, one a plugin: who
// may write there may give them, with or without an agent that runs. They are not
// taken over the network.

// bypassFormat is the format of the files; one of another is passed over, loudly.
const bypassFormat = 1

// Limits of what is read of orders, and how often the agent looks.
const (
	maxBypasses    = 256
	maxBypass      = 16 << 10 // bytes
	MaxBypassWords = 1 << 10  // bytes of a reason
	bypassInterval = 200 * time.Millisecond
)

// BypassOrder takes a plugin out on this machine.
type BypassOrder struct {
	chandler.Bypass
	By string // who gave it; empty: nobody knows
}

type bypassFile struct {
	Format    int       `json:"format"`
	Kind      string    `json:"kind"`
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	Reason    string    `json:"reason"`
	At        time.Time `json:"at"`
	By        string    `json:"by,omitempty"`
}

func bypassesDir(dir string) string { return filepath.Join(dir, "bypass") }

// bypassPath is the same for a plugin always; its key stands in the file.
func bypassPath(dir string, key chandler.Key) string {
	sum := sha256.Sum256([]byte(key.String()))
	return filepath.Join(bypassesDir(dir), fmt.Sprintf("%x.json", sum[:16]))
}

// WriteBypass gives an order to the agent whose directory it is, or to the next one
// that runs there. Given by root, it belongs to whom the directory does.
func WriteBypass(dir string, o BypassOrder) error {
	b, err := json.Marshal(bypassFile{bypassFormat, o.Kind, o.Namespace, o.Name, o.Reason, o.At.UTC(), o.By})
	if err != nil {
		return err
	}
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if err := durable.Mkdir(durable.OS(), bypassesDir(dir)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	path := bypassPath(dir, o.Key)
	if err := durable.Write(durable.OS(), path, b); err != nil {
		return err
	}
	if owner, ok := st.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 {
		return errors.Join(os.Chown(bypassesDir(dir), int(owner.Uid), int(owner.Gid)), os.Chown(path, int(owner.Uid), int(owner.Gid)))
	}
	return nil
}

// RemoveBypass takes an order back. One that is not there is fs.ErrNotExist.
func RemoveBypass(dir string, key chandler.Key) error {
	path := bypassPath(dir, key)
	if _, err := os.Stat(path); err != nil {
		return err
	}
	return durable.Remove(durable.OS(), path)
}

// ListBypasses gives the orders in an agent's directory. The error tells of those
// that cannot be read; the others are given all the same.
func ListBypasses(dir string) ([]BypassOrder, error) {
	entries, err := os.ReadDir(bypassesDir(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var orders []BypassOrder
	var errs []error
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") || durable.IsTemp(e.Name()) {
			continue
		}
		if len(orders)+len(errs) == maxBypasses {
			errs = append(errs, fmt.Errorf("there are more than %d orders", maxBypasses))
			break
		}
		o, err := readBypass(filepath.Join(bypassesDir(dir), e.Name()))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		orders = append(orders, o)
	}
	return orders, errors.Join(errs...)
}

func readBypass(path string) (BypassOrder, error) {
	b, err := durable.Read(durable.OS(), path, maxBypass)
	if err != nil {
		return BypassOrder{}, err
	}
	var f bypassFile
	if err := json.Unmarshal(b, &f); err != nil || f.Format != bypassFormat {
		return BypassOrder{}, fmt.Errorf("%s is no order of format %d to take a plugin out", path, bypassFormat)
	}
	key := chandler.Key{Kind: f.Kind, Namespace: f.Namespace, Name: f.Name}
	if back, ok := chandler.ParseKey(key.String()); !ok || back != key || !chandler.IsPlain(key.String()) {
		return BypassOrder{}, fmt.Errorf("%s names no plugin: %s", path, chandler.Quote(key.String()))
	}
	return BypassOrder{
		Bypass: chandler.Bypass{Key: key, Reason: chandler.Printable(f.Reason, MaxBypassWords), At: f.At},
		By:     chandler.Printable(f.By, 256),
	}, nil
}

// bypassDir looks for orders and tells of those that come and go. It is for one
// goroutine at a time.
type bypassDir struct {
	dir     string
	log     *slog.Logger
	seen    string // what the directory looked like
	orders  map[chandler.Key]BypassOrder
	problem string
}

// look gives the orders, if they are others than at the look before.
func (d *bypassDir) look() (orders []chandler.Bypass, changed bool) {
	looks := d.looks()
	if looks == d.seen {
		return nil, false
	}
	list, err := ListBypasses(d.dir)
	if err == nil {
		d.seen, d.problem = looks, ""
	} else if words := chandler.Printable(err.Error(), reasonLimit); words != d.problem {
		d.problem = words // it is read again at the next look
		d.log.Error("not every order to take a plugin out can be read", "error", words)
	}
	now := make(map[chandler.Key]BypassOrder, len(list))
	for _, o := range list {
		now[o.Key] = o
		if before, ok := d.orders[o.Key]; !ok || before.Reason != o.Reason || !before.At.Equal(o.At) {
			d.log.Warn("a plugin is taken out on this machine", "plugin", o.Key.String(), "reason", o.Reason, "by", o.By, "at", o.At)
			changed = true
		}
		orders = append(orders, o.Bypass)
	}
	for key := range d.orders {
		if _, ok := now[key]; ok {
			continue
		}
		if err != nil { // its file may be the one that cannot be read
			now[key] = d.orders[key]
			orders = append(orders, d.orders[key].Bypass)
			continue
		}
		d.log.Warn("a plugin that was taken out on this machine is no longer", "plugin", key.String())
		changed = true
	}
	d.orders = now
	return orders, changed
}

// looks is another text when a file came, went or was written anew.
func (d *bypassDir) looks() string {
	entries, err := os.ReadDir(bypassesDir(d.dir))
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, e := range entries {
		if st, err := e.Info(); err == nil {
			fmt.Fprintf(&b, "%s %d %d\n", e.Name(), st.Size(), st.ModTime().UnixNano())
		}
	}
	return b.String()
}

// watchBypasses looks until ctx ends.
func (a *Agent) watchBypasses(ctx context.Context) {
	tick := time.NewTicker(bypassInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if orders, changed := a.bypasses.look(); changed && !a.send(ctx, message{event: Bypassed{Plugins: orders}}) {
			return
		}
	}
}

// IsDirectory tells whether an agent has run on a directory.
func IsDirectory(dir string) bool {
	st, err := os.Stat(filepath.Join(dir, "envoy"))
	return err == nil && st.IsDir()
}

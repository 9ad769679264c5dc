package enrol

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"strings"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/later"
)

// The roll is a file for every token and every node, in JSON.
const (
	tokensDir  = "tokens"
	nodesDir   = "enrolled"
	extension  = ".json"
	formatRoll = 1
	maxRecord  = 64 << 10
)

// rollRecord is a file of the roll.
type rollRecord interface {
	// place is the directory and the name of its file.
	place() (dir, name string)
	format() int
	// valid tells whether it is what place says, for one that was read.
	valid() bool
}

type tokenRecord struct {
	Format    int               `json:"format"`
	ID        string            `json:"id"`
	Secret    keyHash           `json:"secretSHA256"`
	Namespace string            `json:"namespace"`
	Name      string            `json:"name,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
	Created   time.Time         `json:"created"`
	Expires   time.Time         `json:"expires"`
	MadeBy    string            `json:"madeBy"`
	Spent     *spending         `json:"spent,omitempty"`
}

// spending is what a token was spent for.
type spending struct {
	At   time.Time `json:"at"`
	Name string    `json:"name"`
	Key  keyHash   `json:"key"`
}

type nodeRecord struct {
	Format    int               `json:"format"`
	Namespace string            `json:"namespace"`
	Name      string            `json:"name"`
	Labels    map[string]string `json:"labels,omitempty"`
	Key       keyHash           `json:"key"`
	Token     string            `json:"token"`
	MadeBy    string            `json:"madeBy"`
	Enrolled  time.Time         `json:"enrolled"`
	// Until is when its newest certificate ends.
	Until   time.Time   `json:"until"`
	Revoked *revocation `json:"revoked,omitempty"`
}

type revocation struct {
	At time.Time `json:"at"`
	By string    `json:"by"`
}

func (t *tokenRecord) place() (string, string) { return tokensDir, t.ID }
func (t *tokenRecord) format() int             { return t.Format }
func (t *tokenRecord) valid() bool             { return t.Format == formatRoll && len(t.ID) == 2*idBytes }

// place is named after a hash: two names may differ in nothing but case.
func (n *nodeRecord) place() (string, string) {
	sum := sha256.Sum256([]byte(n.id()))
	return nodesDir, hex.EncodeToString(sum[:])
}
func (n *nodeRecord) format() int { return n.Format }
func (n *nodeRecord) valid() bool { return n.Format == formatRoll && fits(n.Namespace) && fits(n.Name) }

func (n *nodeRecord) node() chandler.Node {
	return chandler.Node{Namespace: n.Namespace, Name: n.Name}
}
func (n *nodeRecord) id() string { return n.node().ID() }

// revoked is why a node is not believed.
func (n *nodeRecord) revoked() error {
	return fmt.Errorf("the node %s was revoked at %s", chandler.Quote(n.id()), n.Revoked.At.Format(time.RFC3339))
}

// TokenState is a token as people see it.
type TokenState struct {
	ID, Namespace, Name string
	Labels              map[string]string
	Created, Expires    time.Time
	MadeBy              string
	SpentFor            string // the node's name; empty: it is not spent
}

// NodeState is an enrolled node as people see it.
type NodeState struct {
	Namespace, Name string
	Labels          map[string]string
	Enrolled, Until time.Time // Until: its newest certificate ends
	Token, MadeBy   string
	Revoked         time.Time // zero: it was not
	RevokedBy       string
}

func (t *tokenRecord) state() TokenState {
	s := TokenState{ID: t.ID, Namespace: t.Namespace, Name: t.Name, Labels: maps.Clone(t.Labels), Created: t.Created, Expires: t.Expires, MadeBy: t.MadeBy}
	if t.Spent != nil {
		s.SpentFor = t.Spent.Name
	}
	return s
}

func (n *nodeRecord) state() NodeState {
	s := NodeState{
		Namespace: n.Namespace, Name: n.Name, Labels: maps.Clone(n.Labels), Enrolled: n.Enrolled, Until: n.Until,
		Token: n.Token, MadeBy: n.MadeBy,
	}
	if n.Revoked != nil {
		s.Revoked, s.RevokedBy = n.Revoked.At, n.Revoked.By
	}
	return s
}

func (r *Roll) path(rec rollRecord) string {
	dir, name := rec.place()
	return filepath.Join(r.cfg.Dir, dir, name+extension)
}

// write makes a record durable, and with it what a later version wrote into the one
// before. One of a later format, which load has passed by, is set aside for it.
func (r *Roll) write(rec rollRecord) error {
	path := r.path(rec)
	before, err := durable.Read(r.cfg.FS, path, maxRecord)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var was struct{ Format int }
	if json.Unmarshal(before, &was) == nil && was.Format > formatRoll {
		if _, err := durable.SetAside(r.cfg.FS, path); err != nil {
			return err
		}
		before = nil
	}
	var more later.Fields
	switch rec := rec.(type) {
	case *tokenRecord:
		rec.Format, more = formatRoll, later.Of(before, *rec)
	case *nodeRecord:
		rec.Format, more = formatRoll, later.Of(before, *rec)
	}
	b, err := json.Marshal(rec)
	if err == nil {
		b, err = more.AddTo(b)
	}
	if err != nil {
		return err
	}
	return durable.Write(r.cfg.FS, path, b)
}

// load reads the roll. A file that cannot be read as what its name says is set aside:
// its token is no good, and its node has to be enrolled anew. One of a later format is
// passed by, for whoever wrote it to find.
func (r *Roll) load() error {
	if err := loadAll(r, tokensDir, func(t *tokenRecord) { r.tokens[t.ID] = t }); err != nil {
		return err
	}
	return loadAll(r, nodesDir, r.keep)
}

// recordOf is a pointer to T that is a record.
type recordOf[T any] interface {
	*T
	rollRecord
}

func loadAll[T any, P recordOf[T]](r *Roll, dir string, take func(P)) error {
	path := filepath.Join(r.cfg.Dir, dir)
	if err := durable.Mkdir(r.cfg.FS, path); err != nil {
		return err
	}
	if err := durable.Sweep(r.cfg.FS, path); err != nil {
		return err
	}
	entries, err := r.cfg.FS.ReadDir(path)
	if err != nil {
		return fmt.Errorf("roll: %w", err)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), extension)
		if !ok || durable.IsTemp(e.Name()) {
			continue
		}
		file := filepath.Join(path, e.Name())
		b, err := durable.Read(r.cfg.FS, file, maxRecord)
		if err != nil && !errors.Is(err, durable.ErrTooLarge) {
			return fmt.Errorf("roll: %w", err)
		}
		rec := P(new(T))
		if err == nil {
			err = json.Unmarshal(b, rec)
		}
		if err == nil && rec.format() > formatRoll {
			r.cfg.Log.Error("a file of the roll is of a later version and counts for nothing here", "file", file)
			continue
		}
		if _, want := rec.place(); err == nil && (!rec.valid() || want != name) {
			err = errors.New("its content is not what its name says")
		}
		if err != nil {
			aside, failed := durable.SetAside(r.cfg.FS, file)
			if failed != nil {
				return fmt.Errorf("roll: %w", failed)
			}
			r.cfg.Log.Error("a file of the roll is set aside", "file", aside, "error", err)
			continue
		}
		take(rec)
	}
	return nil
}

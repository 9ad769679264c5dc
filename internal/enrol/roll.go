// Package enrol gives machines certificates where their operator has no authority for
// them: a token, made by the operator for one machine, is traded for a short-lived
// certificate for a key that never leaves the machine, and the certificate for a newer
// one before it ends. Both sides are here: the roll of tokens and nodes with the
// service on the agents' port, and the keeper of an agent's identity.
//
// It signs with an authority that the operator supplies and is none itself; what a
// node may have is decided elsewhere, by who it is.
package enrol

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/credential"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/identity"
	"chandler.dev/chandler/internal/wire"
)

// Limits of the roll, and times.
const (
	MaxTokens      = 1000 // that are good
	MaxNodes       = 20_000
	MaxTTL         = 7 * 24 * time.Hour // of a token
	DefaultTTL     = time.Hour
	DefaultLife    = 24 * time.Hour // of a certificate
	MinLife        = 10 * time.Minute
	maxLabels      = 64
	maxName        = 253
	clocksApart    = 5 * time.Minute     // a certificate begins so long ago
	forgetNode     = 30 * 24 * time.Hour // after its last certificate ended
	maxWho         = 256
	spiffeNodePath = "/ns/%s/node/%s"
)

// validName is what may stand in a certificate as namespace and node.
var validName = regexp.MustCompile(`\A[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\z`)

// RollConfig is what a roll works with.
type RollConfig struct {
	FS  durable.FS
	Dir string
	// TrustDomain is that of the certificates; identity.DefaultTrustDomain when empty.
	TrustDomain string
	Issuer      *credential.Issuer
	// Life is how long a certificate is good; DefaultLife when zero.
	Life time.Duration
	// Anchor gives the authority, in DER, that a token is to name; nil when it is not
	// known.
	Anchor func() []byte
	// Cut ends the connections that were made with a certificate of which who is true.
	Cut func(who func(*x509.Certificate) bool) int
	Now func() time.Time // time.Now when nil
	Log *slog.Logger
}

// Roll knows the tokens that are good and the nodes that were enrolled. What it says
// it has done is on disk.
type Roll struct {
	cfg RollConfig

	// changing orders changes, each of which waits for the disk. mu is for the maps and
	// waits for nothing; whoever is changing may read them without.
	changing sync.Mutex

	mu     sync.RWMutex
	tokens map[string]*tokenRecord // by id
	nodes  map[string]*nodeRecord  // by namespace/name
	keys   map[keyHash]*nodeRecord // the same, by the key
}

// keyHash names a public key: the SHA-256 of its SubjectPublicKeyInfo.
type keyHash [sha256.Size]byte

// MarshalText implements encoding.TextMarshaler.
func (k keyHash) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(k[:])), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (k *keyHash) UnmarshalText(b []byte) error {
	n, err := hex.Decode(k[:], b[:min(len(b), 2*len(k))])
	if err == nil && (n != len(k) || len(b) != 2*len(k)) {
		err = errors.New("no SHA-256")
	}
	return err
}

// Open reads the roll, and makes its directory at need. Whoever opens it holds the
// lock of the directory above.
func Open(cfg RollConfig) (*Roll, error) {
	cfg.TrustDomain = cmp.Or(cfg.TrustDomain, identity.DefaultTrustDomain)
	cfg.Life = cmp.Or(cfg.Life, DefaultLife)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Anchor == nil {
		cfg.Anchor = func() []byte { return nil }
	}
	if cfg.Cut == nil {
		cfg.Cut = func(func(*x509.Certificate) bool) int { return 0 }
	}
	r := &Roll{cfg: cfg, tokens: map[string]*tokenRecord{}, nodes: map[string]*nodeRecord{}, keys: map[keyHash]*nodeRecord{}}
	if err := r.load(); err != nil {
		return nil, err
	}
	return r, nil
}

// TokenRequest says whom a token is for.
type TokenRequest struct {
	Namespace string
	// Name is a pattern of the node's name, * for any characters; empty: any name.
	Name string
	// Labels are all that the node has.
	Labels map[string]string
	// TTL is how long it is good, DefaultTTL when zero.
	TTL time.Duration
	// By says who asks, for people.
	By string
}

// CreateToken makes a token. The error is a *chandler.Problem when the request is at
// fault.
func (r *Roll) CreateToken(req TokenRequest) (Token, TokenState, error) {
	req.TTL = cmp.Or(req.TTL, DefaultTTL)
	if p := req.check(); p != nil {
		return Token{}, TokenState{}, p
	}
	t := newToken(r.cfg.Anchor())
	now := r.cfg.Now().UTC()
	rec := &tokenRecord{
		ID: t.ID, Secret: t.hash(), Namespace: req.Namespace, Name: req.Name, Labels: req.Labels,
		Created: now, Expires: now.Add(req.TTL), MadeBy: chandler.Printable(req.By, maxWho),
	}
	r.changing.Lock()
	defer r.changing.Unlock()
	r.sweep(now)
	if len(r.tokens) >= MaxTokens {
		return Token{}, TokenState{}, chandler.Problemf(chandler.CodeXDSLimit, "", "wait until some expire", "%d tokens are good, limit %d", len(r.tokens), MaxTokens)
	}
	if err := r.write(rec); err != nil {
		return Token{}, TokenState{}, err
	}
	r.keepToken(rec)
	r.cfg.Log.Info("a node token is made", "token", rec.ID, "namespace", rec.Namespace, "name", rec.Name, "expires", rec.Expires, "by", rec.MadeBy)
	return t, rec.state(), nil
}

func (req *TokenRequest) check() *chandler.Problem {
	switch {
	case req.Namespace == "":
		return chandler.Problemf(chandler.CodeSpecRequired, "namespace", "give --namespace", "a node belongs to one namespace")
	case !fits(req.Namespace):
		return unfit("namespace", req.Namespace)
	case req.Name != "" && !fits(strings.ReplaceAll(req.Name, "*", "x")):
		return unfit("name", req.Name)
	case req.TTL < 0 || req.TTL > MaxTTL:
		return chandler.Problemf(chandler.CodeSpecValue, "ttl", "", "a token is good for %v at most, not %v", MaxTTL, req.TTL)
	case len(req.Labels) > maxLabels:
		return chandler.Problemf(chandler.CodeSpecValue, "labels", "", "%d labels, limit %d", len(req.Labels), maxLabels)
	}
	n := chandler.Node{Namespace: req.Namespace, Name: "x", Labels: req.Labels}
	if _, err := wire.NodeFromProto(wire.NodeToProto(n)); err != nil {
		return chandler.Problemf(chandler.CodeSpecValue, "labels", "", "%s", err)
	}
	return nil
}

func fits(name string) bool { return len(name) <= maxName && validName.MatchString(name) }

func unfit(field, value string) *chandler.Problem {
	return chandler.Problemf(chandler.CodeSpecValue, field, "use letters, digits, and - _ . between them", "%s is no name that can stand in a certificate", chandler.Quote(value))
}

// request is a machine that wants to be a node.
type request struct {
	token Token
	node  chandler.Node // namespace and name
	key   any           // public
	hash  keyHash
}

// enrol trades a token for a certificate; the error is a gRPC status.
func (r *Roll) enrol(req request) ([]byte, error) {
	r.changing.Lock()
	defer r.changing.Unlock()
	now := r.cfg.Now().UTC()
	r.sweep(now)
	t, err := r.spendable(req, now)
	if err != nil {
		return nil, err
	}
	if err := r.vacant(req, t, now); err != nil {
		return nil, err
	}
	chain, until, err := r.sign(req.node, req.key, now)
	if err != nil {
		return nil, err
	}
	// First the token is spent: what is lost after that costs the machine another try,
	// with the same key.
	if t.Spent == nil {
		spent := *t
		spent.Spent = &spending{At: now, Name: req.node.Name, Key: req.hash}
		if err := r.write(&spent); err != nil {
			return nil, r.unwritten(err)
		}
		r.keepToken(&spent)
	}
	n := &nodeRecord{
		Namespace: req.node.Namespace, Name: req.node.Name, Labels: t.Labels, Key: req.hash,
		Token: t.ID, MadeBy: t.MadeBy, Enrolled: now, Until: until,
	}
	if err := r.write(n); err != nil {
		return nil, r.unwritten(err)
	}
	r.keep(n)
	r.cfg.Log.Info("a node is enrolled", "node", n.id(), "token", n.Token, "by", n.MadeBy, "until", n.Until)
	return chain, nil
}

// errToken is the one answer for tokens that are not known, not good any more, or
// wrong: who tries them learns nothing.
var errToken = denied(codes.Unauthenticated, "the token is not good: it is unknown, has expired, or was spent; make another with chandler node token create")

// spendable finds the token of a request.
func (r *Roll) spendable(req request, now time.Time) (*tokenRecord, error) {
	t := r.tokens[req.token.ID]
	given := req.token.hash()
	if t == nil || subtle.ConstantTimeCompare(given[:], t.Secret[:]) != 1 || !now.Before(t.Expires) {
		return nil, errToken
	}
	switch {
	case t.Spent != nil && (t.Spent.Key != req.hash || t.Spent.Name != req.node.Name):
		r.cfg.Log.Warn("a node token is used twice", "token", t.ID, "first_by", t.Namespace+"/"+t.Spent.Name, "now_by", chandler.Quote(req.node.ID()))
		return nil, errToken
	case t.Namespace != req.node.Namespace:
		return nil, denied(codes.PermissionDenied, "the token is for the namespace %s, not for %s", chandler.Quote(t.Namespace), chandler.Quote(req.node.Namespace))
	case !t.names(req.node.Name):
		return nil, denied(codes.PermissionDenied, "the token is for nodes named %s, not for %s", chandler.Quote(t.Name), chandler.Quote(req.node.Name))
	}
	return t, nil
}

// vacant tells whether a name may be given to a key.
func (r *Roll) vacant(req request, t *tokenRecord, now time.Time) error {
	if other := r.keys[req.hash]; other != nil && (other.id() != req.node.ID() || other.Revoked != nil) {
		return denied(codes.PermissionDenied, "the key is that of another node, or was revoked: make a new one")
	}
	n := r.nodes[req.node.ID()]
	switch {
	case n != nil && n.Token == t.ID && n.Key == req.hash: // its answer was lost
	case n != nil && n.Revoked == nil && now.Before(n.Until):
		return denied(codes.AlreadyExists, "the node %s is enrolled already: revoke it first, with chandler node revoke", chandler.Quote(n.id()))
	case n == nil && len(r.nodes) >= MaxNodes:
		return wire.Refusal(codes.ResourceExhausted, chandler.CodeXDSLimit, "%d nodes are enrolled, limit %d", len(r.nodes), MaxNodes)
	}
	return nil
}

// sign makes the certificate of a node.
func (r *Roll) sign(n chandler.Node, key any, now time.Time) ([]byte, time.Time, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, time.Time{}, status.Error(codes.Internal, "no random numbers")
	}
	chain, until, err := r.cfg.Issuer.Sign(&x509.Certificate{
		SerialNumber: serial, NotBefore: now.Add(-clocksApart), NotAfter: now.Add(r.cfg.Life).Truncate(time.Second),
		URIs:     []*url.URL{r.spiffe(n)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, key)
	if err != nil {
		r.cfg.Log.Error("a node's certificate cannot be signed", "node", n.ID(), "error", err)
		return nil, time.Time{}, status.Error(codes.Unavailable, "certificates cannot be signed now")
	}
	return chain, until, nil
}

func (r *Roll) spiffe(n chandler.Node) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: r.cfg.TrustDomain, Path: fmt.Sprintf(spiffeNodePath, n.Namespace, n.Name)}
}

func (r *Roll) unwritten(err error) error {
	r.cfg.Log.Error("the roll cannot be written", "error", err)
	return status.Error(codes.Unavailable, "the roll cannot be written now")
}

// renew gives a node on the roll a newer certificate for the key of the one it has.
func (r *Roll) renew(leaf *x509.Certificate) ([]byte, error) {
	r.changing.Lock()
	defer r.changing.Unlock()
	n, err := r.listed(leaf)
	if err != nil {
		return nil, denied(codes.PermissionDenied, "%s", err)
	}
	now := r.cfg.Now().UTC()
	if !now.Before(n.Until) {
		return nil, denied(codes.Unauthenticated, "the certificate expired at %s", n.Until.Format(time.RFC3339))
	}
	chain, until, err := r.sign(n.node(), leaf.PublicKey, now)
	if err != nil {
		return nil, err
	}
	newer := *n
	newer.Until = until
	if err := r.write(&newer); err != nil {
		return nil, r.unwritten(err)
	}
	r.keep(&newer)
	return chain, nil
}

// Enrolled implements identity.Roll. A connection outlives the certificate that it was
// made with for as long as the node has a newer one, which is for the same key.
func (r *Roll) Enrolled(chain []*x509.Certificate) (identity.Identity, bool, error) {
	if len(chain) == 0 {
		return identity.Identity{}, false, nil
	}
	ours := r.cfg.Issuer.Signed(chain)
	r.mu.RLock()
	defer r.mu.RUnlock()
	if !ours {
		if n := r.keys[hashOf(chain[0])]; n != nil && n.Revoked != nil {
			return identity.Identity{}, false, n.revoked()
		}
		return identity.Identity{}, false, nil
	}
	n, err := r.listed(chain[0])
	if err != nil {
		return identity.Identity{}, true, err
	}
	return identity.Identity{
		Name: r.spiffe(n.node()).String(), Namespace: n.Namespace, Node: n.Name,
		Labels: n.Labels, Known: true, Where: "among those of its token", Until: n.Until,
	}, true, nil
}

// listed finds the node that a certificate of ours is for.
func (r *Roll) listed(leaf *x509.Certificate) (*nodeRecord, error) {
	n := r.keys[hashOf(leaf)]
	switch {
	case n == nil:
		return nil, errors.New("the certificate is of no node that is enrolled here")
	case n.Revoked != nil:
		return nil, n.revoked()
	case len(leaf.URIs) != 1 || leaf.URIs[0].String() != r.spiffe(n.node()).String():
		return nil, errors.New("the certificate has another name than its key is enrolled for")
	}
	return n, nil
}

func hashOf(c *x509.Certificate) keyHash { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

func denied(code codes.Code, format string, args ...any) error {
	return wire.Refusal(code, chandler.CodeXDSIdentity, format, args...)
}

// Revoke takes a node from the roll and ends its connections; it cannot come back
// with the key that it has. False: no such node is enrolled.
func (r *Roll) Revoke(namespace, name, by string) (bool, error) {
	key, ok, err := r.revoke(namespace, name, by)
	if !ok || err != nil {
		return ok, err
	}
	cut := r.cfg.Cut(func(c *x509.Certificate) bool { return hashOf(c) == key })
	r.cfg.Log.Info("a node is revoked", "node", namespace+"/"+name, "connections", cut, "by", chandler.Printable(by, maxWho))
	return true, nil
}

func (r *Roll) revoke(namespace, name, by string) (keyHash, bool, error) {
	r.changing.Lock()
	defer r.changing.Unlock()
	n := r.nodes[namespace+"/"+name]
	if n == nil {
		return keyHash{}, false, nil
	}
	if n.Revoked == nil {
		gone := *n
		gone.Revoked = &revocation{At: r.cfg.Now().UTC(), By: chandler.Printable(by, maxWho)}
		if err := r.write(&gone); err != nil {
			return n.Key, true, err
		}
		r.keep(&gone)
		if t := r.tokens[n.Token]; t != nil && r.remove(t) { // or its key could come back with it
			r.forget(func() { delete(r.tokens, t.ID) })
		}
	}
	return n.Key, true, nil
}

// Nodes gives the nodes of a namespace, or all of them for the empty one, by name.
func (r *Roll) Nodes(namespace string) []NodeState {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []NodeState
	for _, id := range slices.Sorted(maps.Keys(r.nodes)) {
		if n := r.nodes[id]; namespace == "" || n.Namespace == namespace {
			out = append(out, n.state())
		}
	}
	return out
}

// Tokens gives the tokens of a namespace, or all of them, that have not expired.
func (r *Roll) Tokens(namespace string) []TokenState {
	r.mu.RLock()
	defer r.mu.RUnlock()
	now := r.cfg.Now()
	var out []TokenState
	for _, id := range slices.Sorted(maps.Keys(r.tokens)) {
		if t := r.tokens[id]; now.Before(t.Expires) && (namespace == "" || t.Namespace == namespace) {
			out = append(out, t.state())
		}
	}
	return out
}

// keep puts a node in place of what was known by its name.
func (r *Roll) keep(n *nodeRecord) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if before := r.nodes[n.id()]; before != nil {
		delete(r.keys, before.Key)
	}
	r.nodes[n.id()], r.keys[n.Key] = n, n
}

func (r *Roll) keepToken(t *tokenRecord) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tokens[t.ID] = t
}

func (r *Roll) forget(what func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	what()
}

// sweep forgets tokens that have expired and nodes whose certificates have for long.
func (r *Roll) sweep(now time.Time) {
	for id, t := range r.tokens {
		if !now.Before(t.Expires) && r.remove(t) {
			r.forget(func() { delete(r.tokens, id) })
		}
	}
	for id, n := range r.nodes {
		if now.Sub(n.Until) > forgetNode && r.remove(n) {
			r.forget(func() { delete(r.nodes, id); delete(r.keys, n.Key) })
		}
	}
}

func (r *Roll) remove(rec rollRecord) bool {
	if err := durable.Remove(r.cfg.FS, r.path(rec)); err != nil {
		r.cfg.Log.Warn("the roll cannot forget", "error", err)
		return false
	}
	return true
}

// names tells whether a token is for a node's name.
func (t *tokenRecord) names(name string) bool {
	if t.Name == "" {
		return true
	}
	ok, err := path.Match(t.Name, name) // neither has a slash, nor any other sign of a pattern
	return ok && err == nil
}

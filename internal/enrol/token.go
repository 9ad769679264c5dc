package enrol

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// A token is written as "chandler1.ID.SECRET.PIN", where PIN may be missing.
const (
	tokenPrefix = "chandler1"
	idBytes     = 8
	secretBytes = 32
	maxToken    = 256
)

// Token is what a machine is given to be enrolled with.
type Token struct {
	// ID names it, for people and logs.
	ID string
	// Secret is known to nobody else: what is kept is its hash.
	Secret [secretBytes]byte
	// Pin is the SHA-256 of the authority, in DER, of the control plane's certificate;
	// zero: it is not known, and the machine has to.
	Pin [sha256.Size]byte
}

// newToken makes a token that nobody has seen.
func newToken(anchor []byte) Token {
	var id [idBytes]byte
	var t Token
	_, _ = rand.Read(id[:]) // it does not fail
	_, _ = rand.Read(t.Secret[:])
	t.ID = hex.EncodeToString(id[:])
	if anchor != nil {
		t.Pin = sha256.Sum256(anchor)
	}
	return t
}

// Pinned tells whether the token says which control plane to believe.
func (t Token) Pinned() bool { return t.Pin != [sha256.Size]byte{} }

// String is the token as it is given away.
func (t Token) String() string {
	parts := []string{tokenPrefix, t.ID, base64.RawURLEncoding.EncodeToString(t.Secret[:])}
	if t.Pinned() {
		parts = append(parts, base64.RawURLEncoding.EncodeToString(t.Pin[:]))
	}
	return strings.Join(parts, ".")
}

// ParseToken reads what String writes. Errors say nothing of what the token is.
func ParseToken(s string) (Token, error) {
	parts := strings.Split(s, ".")
	switch {
	case len(s) > maxToken:
		return Token{}, fmt.Errorf("a token of %d bytes, limit %d", len(s), maxToken)
	case parts[0] != tokenPrefix || len(parts) < 3 || len(parts) > 4:
		return Token{}, errors.New(`this is no token as "chandler node token create" makes them`)
	}
	t := Token{ID: parts[1]}
	if b, err := hex.DecodeString(t.ID); err != nil || len(b) != idBytes || hex.EncodeToString(b) != t.ID {
		return Token{}, errors.New("the token's id is damaged")
	}
	if !decode(t.Secret[:], parts[2]) || len(parts) == 4 && !decode(t.Pin[:], parts[3]) {
		return Token{}, errors.New("the token is damaged: part of it is missing or changed")
	}
	return t, nil
}

func decode(to []byte, s string) bool {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	return err == nil && copy(to, b) == len(b) && len(b) == len(to)
}

// hash is what is kept of the secret. It is of 32 random bytes, so that a slow hash
// would add nothing.
func (t Token) hash() [sha256.Size]byte { return sha256.Sum256(t.Secret[:]) }

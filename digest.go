package chandler

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
)

// The three digests of a module are three types, and that of a schema is one more, so
// that one cannot be taken for another. Each is written "sha256:" and 64 lower-case hex digits; the empty
// value means none.
type (
	// ArtifactDigest is over an OCI manifest or index.
	ArtifactDigest string
	// BlobDigest is over a layer, or an HTTP body, as it was transferred.
	BlobDigest string
	// ModuleDigest is over the unpacked .wasm bytes. The store and everything
	// that is sent to agents use it.
	ModuleDigest string
	// SchemaDigest is over the text of a configuration's schema.
	SchemaDigest string
)

const digestPrefix = "sha256:"

// Hex gives the 64 hex digits, for file names.
func (d ModuleDigest) Hex() string { return strings.TrimPrefix(string(d), digestPrefix) }

// Digest hashes b as a digest of type D.
func Digest[D ~string](b []byte) D {
	sum := sha256.Sum256(b)
	return DigestOf[D](sum[:])
}

// DigestOf makes a digest of type D from a finished SHA-256 sum of 32 bytes.
func DigestOf[D ~string](sum []byte) D {
	return D(digestPrefix + hex.EncodeToString(sum))
}

// ParseDigest checks that s is "sha256:" and 64 lower-case hex digits.
func ParseDigest[D ~string](s string) (D, bool) {
	rest, ok := strings.CutPrefix(s, digestPrefix)
	if !ok || !IsSHA256Hex(rest) {
		return "", false
	}
	return D(s), true
}

// IsSHA256Hex tells whether s is 64 lower-case hex digits.
func IsSHA256Hex(s string) bool {
	if len(s) != 2*sha256.Size {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

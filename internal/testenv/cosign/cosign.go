// Package cosign signs artifacts with the real cosign, offline and with a key, for
// tests that verify what people sign. Its program is made by "make tools-cosign".
package cosign

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Place is where a signature is put.
type Place string

// The places.
const (
	Tag    Place = "tag"    // sha256-....sig, as cosign 2 did
	Bundle Place = "bundle" // a bundle that refers to the artifact, as cosign 3 does
)

// Signer is a key of cosign's own making.
type Signer struct {
	// PublicKey is PEM, and so is PrivateKey, encrypted with an empty password.
	PublicKey, PrivateKey string

	program, dir string
}

// New makes a key; program is the path of cosign. A program that is missing fails
// the test.
func New(t *testing.T, program string) *Signer {
	t.Helper()
	program, err := filepath.Abs(program)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("cosign is missing: run make tools-cosign (%v)", err)
	}
	s := &Signer{program: program, dir: t.TempDir()}
	s.run(t, "generate-key-pair")
	for name, into := range map[string]*string{"cosign.pub": &s.PublicKey, "cosign.key": &s.PrivateKey} {
		pem, err := os.ReadFile(filepath.Join(s.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		*into = string(pem)
	}
	if err := os.WriteFile(filepath.Join(s.dir, "config.json"), s.run(t, "signing-config", "create"), 0o600); err != nil {
		t.Fatal(err)
	}
	return s
}

// Sign signs an artifact of a registry on loopback, written host/repository@digest.
func (s *Signer) Sign(t *testing.T, place Place, artifact string) {
	t.Helper()
	args := []string{"sign", "--yes", "--key", "cosign.key", "--allow-http-registry"}
	if place == Tag {
		args = append(args, "--tlog-upload=false", "--use-signing-config=false", "--new-bundle-format=false")
	} else {
		args = append(args, "--signing-config", "config.json")
	}
	s.run(t, append(args, artifact)...)
}

// UseKey takes another private key for its own, of an empty password.
func (s *Signer) UseKey(t *testing.T, private string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, "cosign.key"), []byte(private), 0o600); err != nil {
		t.Fatal(err)
	}
	s.PrivateKey, s.PublicKey = private, string(s.run(t, "public-key", "--key", "cosign.key"))
}

// Verify asks cosign whether a public key verifies a signature of an artifact, in the
// place where cosign looks for one by itself: nil says so.
func (s *Signer) Verify(t *testing.T, public, artifact string) error {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, "other.pub"), []byte(public), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := s.try(t, "verify", "--key", "other.pub", "--insecure-ignore-tlog", "--allow-http-registry", artifact)
	return err
}

// run is try, which must succeed.
func (s *Signer) run(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := s.try(t, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// try runs cosign in a folder of its own, with nothing of the environment.
func (s *Signer) try(t *testing.T, args ...string) ([]byte, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), s.program, args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"HOME=" + s.dir, "COSIGN_PASSWORD=", "TUF_ROOT=" + filepath.Join(s.dir, "tuf")}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("cosign %v: %w\n%s", args, err, stderr.Bytes())
	}
	return stdout.Bytes(), nil
}

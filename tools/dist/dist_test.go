package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/Masterminds/semver/v3"
	"github.com/secure-systems-lab/go-securesystemslib/encrypted"
)

// Versions sort as the builds were made: before any tag, at one, after it, before the next.
func TestSemver(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 29, 3, 0, 0, 0, time.UTC)
	var before *semver.Version
	for _, c := range []struct{ version, want string }{
		{"0123456-dirty", "0.0.0-20261129.g0123456.dirty"},
		{"d216a14", "0.0.0-20261129.gd216a14"},
		{"v0.3.0-rc.1", "0.3.0-rc.1"},
		{"v0.3.0-dirty", "0.3.0-dirty"},
		{"v0.3.0", "0.3.0"},
		{"v0.3.0-5-gabcdef0", "0.3.1-0.5.gabcdef0"},
		{"v0.3.0-12-gabcdef0-dirty", "0.3.1-0.12.gabcdef0.dirty"},
		{"0.3.1", "0.3.1"},
	} {
		r, err := newRelease(c.version, "", at)
		if err != nil || r.Semver() != c.want {
			t.Errorf("%s: %s, want %s, %v", c.version, r.Semver(), c.want, err)
			continue
		}
		v, err := semver.StrictNewVersion(r.Semver())
		if err != nil {
			t.Errorf("%s: %v", c.version, err)
			continue
		}
		if c.version == "v0.3.0-dirty" {
			continue // of the tag's own commit, and not it
		}
		if before != nil && before.Compare(v) > 0 {
			t.Errorf("%s is older than %s", v, before)
		}
		before = v
	}
	for _, version := range []string{"", "-x", "a b", "1.0.0/../../x", "1.0+2"} {
		if _, err := newRelease(version, "", at); err == nil {
			t.Errorf("version %q is taken", version)
		}
	}
}

const helpText = `Go on, whatever
the gates say.

Usage:
  tool go NAME [flags]

Example of use:
  .tool go it's a-name

Flags:
  -h, --help   help \ more

Use "tool [command] --help" for more.
`

func TestPage(t *testing.T) {
	t.Parallel()
	got := string(page("tool-go", "Go on", helpText, []string{"tool", "tool-stop"}, release{Version: "0.3.0", Time: time.Unix(0, 0).UTC()}))
	want := `.TH TOOL\-GO 1 1970-01-01 "chandler 0.3.0" "chandler"
.SH NAME
tool\-go \- Go on
.SH SYNOPSIS
.nf
  tool go NAME [flags]
.fi
.SH DESCRIPTION
.nf
Go on, whatever
the gates say.

Use "tool [command] \-\-help" for more.
.fi
.SH EXAMPLE OF USE
.nf
  .tool go it\(aqs a\-name
.fi
.SH FLAGS
.nf
  \-h, \-\-help   help \e more
.fi
.SH SEE ALSO
.BR tool (1),
.BR tool\-stop (1)
`
	if got != want {
		t.Errorf("got\n%s", got)
	}
}

func TestIsFor(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"chandler_0.3.0_amd64.deb": true, "chandler_0.3.0_arm64.deb": false, "chandler-0.3.0-1.x86_64.rpm": true, "chandler-0.3.0-1.aarch64.rpm": false,
		"chandler-0.3.0-darwin-amd64.tar.gz": false, "chandler-0.3.0-image.tar": true, "install.yaml": true,
	} {
		if isFor(name, platform{"linux", "amd64"}) != want {
			t.Errorf("%s: %t", name, !want)
		}
	}
}

func TestRefusedFlags(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]string{
		"-platforms linux":       "is not OS/ARCH",
		"-version a/b":           "letters, digits, dots",
		"-key /nowhere/at-all":   "no such file",
		"licenses":               "is no command",
		"sbom -out OUT /nowhere": "no such file",
	} {
		if err := run(strings.Fields(strings.ReplaceAll(line, "OUT", t.TempDir())), func(string) string { return "" }, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", line, err)
		}
	}
}

// Keys are read that cosign and openssl write, and the same text is signed the same.
func TestSigner(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	box, err := encrypted.Encrypt(der, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	var first []byte
	for kind, content := range map[string][]byte{"PRIVATE KEY": der, "ENCRYPTED SIGSTORE PRIVATE KEY": box} {
		name := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := openSigner(name, "secret")
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		signature, err := s.sign([]byte("text"))
		if err != nil || first != nil && string(first) != string(signature) {
			t.Errorf("%s: %v, %s and %s", kind, err, first, signature)
		}
		first = signature
		if _, err := openSigner(name, "wrong"); kind != "PRIVATE KEY" && (err == nil || !strings.Contains(err.Error(), "COSIGN_PASSWORD")) {
			t.Errorf("a wrong password: %v", err)
		}
	}
}

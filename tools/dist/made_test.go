//go:build dist

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	registries "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/sassoftware/go-rpmutils"
)

// These are about what "make dist" left; "make test-dist" makes it and runs them.
var (
	folder  = flag.String("dist", "../../dist", "what make dist made")
	version = flag.String("version", "0.3.0", "of this version")
	commit  = flag.String("commit", "", "and commit")
	seconds = flag.Int64("time", 0, "of this time")
	on      = flag.String("platforms", "linux/amd64", "for these platforms")
	key     = flag.String("key", "", "signed with this key")
)

// made is a file of it.
func made(name string) string {
	return filepath.Join(*folder, strings.ReplaceAll(name, "VERSION", *version))
}

func read(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func command(t *testing.T, name string, words ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, words...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(words, " "), err, out)
	}
	return string(out)
}

// unpack puts a tar on disk, compressed or not, and gives the folder.
func unpack(t *testing.T, in io.Reader, compressed bool) string {
	t.Helper()
	if compressed {
		z, err := gzip.NewReader(in)
		if err != nil {
			t.Fatal(err)
		}
		in = z
	}
	dir := t.TempDir()
	for r := tar.NewReader(in); ; {
		h, err := r.Next()
		if err == io.EOF {
			return dir
		}
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, filepath.FromSlash(h.Name))
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(to, 0o755)
		case tar.TypeSymlink:
			err = os.Symlink(h.Linkname, to)
		default:
			var b []byte
			if b, err = io.ReadAll(r); err == nil {
				err = os.WriteFile(to, b, h.FileInfo().Mode())
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func unpackFile(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return unpack(t, f, strings.HasSuffix(name, "gz"))
}

// sums holds a folder against its SHA256SUMS: the same files, each with its sum.
func sums(t *testing.T, dir string) {
	t.Helper()
	var listed []string
	for line := range strings.Lines(string(read(t, filepath.Join(dir, "SHA256SUMS")))) {
		sum, name, _ := strings.Cut(strings.TrimSpace(line), "  ")
		digest := sha256.Sum256(read(t, filepath.Join(dir, name)))
		if hex.EncodeToString(digest[:]) != sum {
			t.Errorf("%s is not what SHA256SUMS says", name)
		}
		listed = append(listed, name)
	}
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err == nil && name == filepath.Join(dir, "site") {
			return filepath.SkipDir // of "make site"
		}
		below, _ := filepath.Rel(dir, name)
		if err == nil && !d.IsDir() && !slices.Contains(append(listed, "SHA256SUMS", "SHA256SUMS.sig", "cosign.pub"), below) {
			t.Errorf("%s is not in SHA256SUMS", below)
		}
		return err
	})
	if err != nil || len(listed) < 10 {
		t.Errorf("%v, %d files", err, len(listed))
	}
}

func TestChecksums(t *testing.T) { sums(t, *folder) }

// "make dist" in another folder, from a copy without git, gives the same files.
func TestTwice(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(t.TempDir(), "another/folder")
	if err := os.MkdirAll(again, 0o755); err != nil {
		t.Fatal(err)
	}
	command(t, "sh", "-c", "cd "+root+" && git ls-files -z | tar --null --ignore-failed-read -T - -cf - | tar -C "+again+" -xf -")
	if err := os.Symlink(filepath.Join(root, ".tools"), filepath.Join(again, ".tools")); err != nil {
		t.Fatal(err)
	}
	command(t, "make", "-C", again, "dist", "VERSION="+*version, "COMMIT="+*commit, fmt.Sprint("SOURCE_DATE_EPOCH=", *seconds), "PLATFORMS="+*on, "SIGN_KEY="+*key)
	for _, name := range []string{"SHA256SUMS", "SHA256SUMS.sig"} {
		first, second := read(t, made(name)), read(t, filepath.Join(again, "dist", name))
		if !bytes.Equal(first, second) {
			t.Errorf("%s: first\n%ssecond\n%s", name, first, second)
		}
	}
}

// The signature is one for cosign and for openssl; both refuse another text.
func TestSignature(t *testing.T) {
	text, signature, public := made("SHA256SUMS"), made("SHA256SUMS.sig"), made("cosign.pub")
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, append(read(t, text), '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	der := filepath.Join(t.TempDir(), "der")
	command(t, "openssl", "base64", "-d", "-A", "-in", signature, "-out", der)
	for file, good := range map[string]bool{text: true, other: false} {
		for _, words := range [][]string{
			{"../../.tools/cosign", "verify-blob", "--key", public, "--signature", signature, "--insecure-ignore-tlog", file},
			{"openssl", "dgst", "-sha256", "-verify", public, "-signature", der, file},
		} {
			out, err := exec.CommandContext(t.Context(), words[0], words[1:]...).CombinedOutput()
			if (err == nil) != good {
				t.Errorf("%s: %v\n%s", strings.Join(words, " "), err, out)
			}
		}
	}
}

// The archive's programs say which build they are, and every page and list is there.
func TestArchive(t *testing.T) {
	dir := filepath.Join(unpackFile(t, made("chandler-VERSION-"+native().String()+".tar.gz")), "chandler-"+*version+"-"+native().String())
	for name, words := range map[string][]string{"chandler": {"version"}, "chandler-agent": {"--version"}, "bookinfo": {"--version"}} {
		program := filepath.Join(dir, "bin", name)
		got := command(t, program, words...)
		if !strings.HasPrefix(got, name+" "+*version+" (commit "+*commit+", go1.") {
			t.Errorf("%s", got)
		}
		built, err := buildinfo.ReadFile(program)
		if err != nil {
			t.Fatal(err)
		}
		var bom struct {
			Packages []struct{ Name, VersionInfo, LicenseDeclared string }
		}
		if err := json.Unmarshal(read(t, made(name+"-VERSION-"+native().String()+".spdx.json")), &bom); err != nil {
			t.Fatal(err)
		}
		named := map[string]string{}
		for _, p := range bom.Packages {
			named[p.Name+" "+p.VersionInfo] = p.LicenseDeclared
		}
		notice := string(read(t, filepath.Join(dir, "NOTICE")))
		// As "go version -m" tells them.
		for line := range strings.Lines(command(t, "go", "version", "-m", program)) {
			if words := strings.Fields(line); len(words) > 2 && words[0] == "dep" {
				what := words[1] + " " + words[2]
				if licence := named[what]; licence == "" || licence == "NOASSERTION" || !strings.Contains(notice, what+": "+licence+"\n") {
					t.Errorf("%s: %s is linked; in the SBOM with licence %q, or not as in NOTICE", name, what, licence)
				}
			}
		}
		if len(named) != len(built.Deps)+2 {
			t.Errorf("%s: %d packages named, %d modules linked", name, len(named), len(built.Deps))
		}
	}
	for _, shell := range []string{"chandler.bash", "_chandler", "chandler.fish"} {
		if len(read(t, filepath.Join(dir, "completions", shell))) < 1000 {
			t.Errorf("%s is short", shell)
		}
	}
	manual(t, dir)
}

// manual: there are pages of all commands, and those with the most flags have them all.
func manual(t *testing.T, dir string) {
	t.Helper()
	pages, err := filepath.Glob(filepath.Join(dir, "man/man1/*.1"))
	if err != nil || len(pages) < 40 {
		t.Fatalf("%d pages, %v", len(pages), err)
	}
	serve := string(read(t, filepath.Join(dir, "man/man1/chandler-serve.1")))
	for line := range strings.Lines(command(t, filepath.Join(dir, "bin/chandler"), "serve", "--help")) {
		if words := strings.Fields(line); len(words) > 0 && strings.HasPrefix(words[0], "--") && !strings.Contains(serve, roff(words[0])+" ") {
			t.Errorf("chandler-serve.1 has no %s", words[0])
		}
	}
	agent := string(read(t, filepath.Join(dir, "man/man1/chandler-agent.1")))
	for _, want := range []string{`\-enrol\-token\-file`, ".SH SYNOPSIS", ".SH DESCRIPTION", "~/.local/state"} {
		if !strings.Contains(agent, want) {
			t.Errorf("chandler-agent.1 has no %s", want)
		}
	}
}

// image reads an image of this machine's architecture out of a file, with what is in the
// folder that it is in.
func image(t *testing.T, name string) (v1.Image, *v1.ConfigFile) {
	t.Helper()
	at, err := layout.FromPath(unpackFile(t, made(name+"-VERSION-image.tar")))
	if err != nil {
		t.Fatal(err)
	}
	top, err := at.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	list, err := top.IndexManifest()
	if err != nil || len(list.Manifests) != 1 {
		t.Fatalf("%v, %+v", err, list)
	}
	if got := list.Manifests[0].Annotations; got["io.containerd.image.name"] != registry+name+":"+*version || got["org.opencontainers.image.ref.name"] != *version {
		t.Errorf("%v", got)
	}
	all, err := top.ImageIndex(list.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	platforms, err := all.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range platforms.Manifests {
		if m.Platform.OS != "linux" || m.Platform.Architecture != native().Arch {
			continue
		}
		found, err := all.Image(m.Digest)
		if err != nil {
			t.Fatal(err)
		}
		config, err := found.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		return found, config
	}
	t.Fatalf("none for linux/%s in %+v", native().Arch, platforms)
	return nil, nil
}

// Images run as nobody, have no shell, and say what they are; what is in them starts
// without anything else.
func TestImages(t *testing.T) {
	for _, i := range images {
		found, config := image(t, i.name)
		c := config.Config
		if c.User != user || len(c.Entrypoint) != 1 || c.Entrypoint[0] != "/usr/local/bin/"+i.program || c.Labels["org.opencontainers.image.version"] != *version || c.Labels["org.opencontainers.image.revision"] != *commit {
			t.Errorf("%s: %+v", i.name, c)
		}
		content := mutate.Extract(found)
		root := unpack(t, content, false)
		content.Close()
		for _, name := range []string{"bin", "usr/bin", "sbin", "lib", "lib64"} {
			if _, err := os.Lstat(filepath.Join(root, name)); err == nil {
				t.Errorf("%s: it has /%s", i.name, name)
			}
		}
		if n := bytes.Count(read(t, filepath.Join(root, "etc/ssl/certs/ca-certificates.crt")), []byte("BEGIN CERTIFICATE")); n < 100 {
			t.Errorf("%s: %d authorities", i.name, n)
		}
		if err := os.Chmod(root, 0o755); err != nil {
			t.Fatal(err)
		}
		word := "--version"
		if i.program == "chandler" {
			word = "version"
		}
		cmd := exec.CommandContext(t.Context(), c.Entrypoint[0], word)
		cmd.Env, cmd.Dir = c.Env, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
		if out, err := cmd.CombinedOutput(); err != nil || !strings.HasPrefix(string(out), i.program+" "+*version+" ") {
			t.Errorf("%s: %v, %s", i.name, err, out)
		}
	}
}

// "chandler load" brings images and the bundle's plugin to a registry, under their names.
func TestLoad(t *testing.T) {
	server := httptest.NewServer(registries.New(registries.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	bundle := filepath.Join(unpackFile(t, made("chandler-VERSION-airgap-"+native().String()+".tar")), "chandler-"+*version+"-airgap-"+native().String())
	sums(t, bundle)
	chandler := "../../bin/chandler"
	for file, want := range map[string]string{
		"chandler-" + *version + "-image.tar":          host + "/chandler:" + *version + "@sha256:",
		"chandler-bookinfo-" + *version + "-image.tar": host + "/chandler-bookinfo:" + *version + "@sha256:",
		"plugins/basic-auth.tar":                       host + "/istio-ecosystem/wasm-extensions/basic_auth:1.12.0@sha256:",
	} {
		if out := command(t, chandler, "load", filepath.Join(bundle, file), host); !strings.Contains(out, want) {
			t.Errorf("%s: %s, want %s", file, out, want)
		}
	}
	out := command(t, filepath.Join(bundle, "envoy/envoy"), "--version")
	if m := isEnvoyVersion.FindStringSubmatch(out); m == nil || !strings.HasPrefix(string(read(t, filepath.Join(bundle, "envoy/README"))), "Envoy "+m[2]+", of commit "+m[1]) {
		t.Errorf("the README tells of another Envoy than %s", out)
	}
}

// The manifests and the chart are of this version, and need no Envoy in the image.
func TestKubernetes(t *testing.T) {
	manifests := string(read(t, made("install.yaml")))
	if !strings.Contains(manifests, `image: "registry.example/chandler:`+*version+`"`) || strings.Contains(manifests, "--envoy=") {
		t.Errorf("%s", manifests)
	}
	charts, err := filepath.Glob(made("chandler-*.tgz"))
	if err != nil || len(charts) != 1 {
		t.Fatalf("%v, %v", charts, err)
	}
	chart := string(read(t, filepath.Join(unpackFile(t, charts[0]), "chandler/Chart.yaml")))
	r, err := newRelease(*version, "", time.Unix(*seconds, 0))
	if err != nil || !strings.Contains(chart, "\nappVersion: \""+*version+"\"\n") || !strings.Contains(chart, "\nversion: "+r.Semver()+"\n") {
		t.Errorf("%v\n%s", err, chart)
	}
}

// The rpm has the files of the deb, with their modes; what is the administrator's is
// marked so.
func TestRPM(t *testing.T) {
	for _, of := range packages {
		debs, err := filepath.Glob(made(of.name + "_*_" + native().Arch + ".deb"))
		if err != nil || len(debs) != 1 {
			t.Fatalf("%v, %v", debs, err)
		}
		rpms, err := filepath.Glob(made(of.name + "-[0-9]*." + rpmArch[native().Arch] + ".rpm"))
		if err != nil || len(rpms) != 1 {
			t.Fatalf("%v, %v", rpms, err)
		}
		inDeb := map[string]string{}
		for line := range strings.Lines(command(t, "dpkg-deb", "-c", debs[0])) {
			if words := strings.Fields(line); !strings.HasPrefix(words[0], "d") {
				inDeb[strings.TrimPrefix(words[5], ".")] = words[0] + " " + words[1]
			}
		}
		file, err := os.Open(rpms[0])
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		pkg, err := rpmutils.ReadRpm(file)
		if err != nil {
			t.Fatal(err)
		}
		name, err := pkg.Header.GetNEVRA()
		if err != nil || name.Name != of.name || name.Arch != rpmArch[native().Arch] {
			t.Errorf("%v, %+v", err, name)
		}
		list, err := pkg.Header.GetFiles()
		if err != nil {
			t.Fatal(err)
		}
		configs := 0
		for _, f := range list {
			if f.Mode()&syscall.S_IFMT == syscall.S_IFDIR {
				continue
			}
			was, ok := inDeb[f.Name()]
			delete(inDeb, f.Name())
			want := os.FileMode(f.Mode() & 0o777).String()[1:] + " " + f.UserName() + "/" + f.GroupName()
			if !ok || f.Linkname() == "" && was[1:] != want {
				t.Errorf("%s: %s in the rpm, %s in the deb", f.Name(), want, was)
			}
			if f.Flags()&rpmutils.RPMFILE_CONFIG != 0 {
				configs++
			}
		}
		if len(inDeb) != 0 || configs != 1 {
			t.Errorf("%s: only in the deb: %v; %d files are the administrator's", of.name, inDeb, configs)
		}
	}
}

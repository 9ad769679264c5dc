// Command dist makes what a release is made of, from programs that are compiled already:
// archives, packages, images, manifests, chart, bundles for places without network, and
// what goes with them: licences, lists of modules, checksums, a signature. The same
// commit, version and Go give the same bytes. It compiles nothing but is told where
// programs are, and publishes nothing. "make dist" runs it.
//
//	go -C tools/dist run . -root ../.. -programs ../../bin -native ../../bin -out ../../dist -version V -commit C -time SECONDS
//	go -C tools/dist run . licences -root ../..     # are they all allowed?
//	go -C tools/dist run . sbom -out DIR PROGRAM... # what is in a program
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"chandler.dev/chandler/tools/dist/files"
	"chandler.dev/chandler/tools/dist/licences"
	"chandler.dev/chandler/tools/dist/sbom"
)

func main() {
	if err := run(os.Args[1:], os.Getenv, os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "dist: %v\n", err)
		os.Exit(1)
	}
}

// programs are what a release has.
var programs = []string{"chandler", "chandler-agent", "bookinfo"}

// build is one making of a release.
type build struct {
	release   release
	root      string // of the repository
	programs  string // OS-ARCH/PROGRAM are below it
	native    string // programs that run here are in it
	envoy     string
	out       string
	scratch   string // removed at the end
	platforms []platform
	signer    *signer // nil: not signed

	// What is the same for all platforms.
	modules     []licences.Module
	notice      []byte
	manual      []files.File
	completions []files.File
	plugin      []files.File // once it was made
}

func (b *build) program(p platform, name string) string {
	return filepath.Join(b.programs, p.String(), name)
}

// native is the platform that this runs on.
func native() platform { return platform{runtime.GOOS, runtime.GOARCH} }

func run(args []string, getenv func(string) string, stdout io.Writer) error {
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		switch args[0] {
		case "licences":
			return runLicences(args[1:], stdout)
		case "sbom":
			return runSBOM(args[1:], stdout)
		}
		return fmt.Errorf("%q is no command of it", args[0])
	}
	b := &build{}
	flags := flag.NewFlagSet("dist", flag.ContinueOnError)
	flags.StringVar(&b.root, "root", ".", "folder of the repository")
	flags.StringVar(&b.programs, "programs", "bin", "folder of OS-ARCH/PROGRAM")
	flags.StringVar(&b.native, "native", "bin", "folder of the programs for this machine")
	flags.StringVar(&b.envoy, "envoy", ".tools/envoy", "the Envoy for bundles of this machine's platform")
	flags.StringVar(&b.out, "out", "dist", "folder for the files")
	on := flags.String("platforms", "linux/amd64 linux/arm64 darwin/amd64 darwin/arm64", "platforms, OS/ARCH")
	version := flags.String("version", "dev", "version, as the programs say it")
	commit := flags.String("commit", "", "commit")
	seconds := flags.Int64("time", 0, "time of the commit and of all files, in seconds since 1970")
	key := flags.String("key", "", "file of the key to sign with; its password is COSIGN_PASSWORD")
	err := flags.Parse(args)
	if err != nil {
		return err
	}
	if b.platforms, err = parsePlatforms(*on); err != nil {
		return err
	}
	if b.release, err = newRelease(*version, *commit, time.Unix(*seconds, 0)); err != nil {
		return err
	}
	if *key != "" {
		if b.signer, err = openSigner(*key, getenv("COSIGN_PASSWORD")); err != nil {
			return err
		}
	}
	if b.scratch, err = os.MkdirTemp("", "chandler-dist"); err != nil {
		return err
	}
	defer os.RemoveAll(b.scratch)
	return b.make(stdout)
}

// make makes everything, and leaves nothing else of an earlier time in the folder.
func (b *build) make(stdout io.Writer) error {
	if err := b.prepare(); err != nil {
		return err
	}
	var made []string
	for _, step := range []func() ([]string, error){b.texts, b.archives, b.boms, b.allPackages, b.allImages, b.kubernetes} {
		names, err := step()
		if err != nil {
			return err
		}
		made = append(made, names...)
	}
	for _, p := range b.platforms {
		if p.OS != "linux" {
			continue
		}
		name, err := b.bundle(p, slices.DeleteFunc(slices.Clone(made), func(name string) bool { return !isFor(name, p) }))
		if err != nil {
			return err
		}
		made = append(made, name)
	}
	var all []files.File
	for _, name := range made {
		all = append(all, files.From(name, filepath.Join(b.out, name), 0o644))
	}
	sums, err := b.sums(all)
	if err != nil {
		return err
	}
	for _, f := range sums {
		if err := f.Write(filepath.Join(b.out, f.Name)); err != nil {
			return err
		}
	}
	_, err = stdout.Write(sums[0].Text)
	if b.signer == nil && err == nil {
		_, err = fmt.Fprintln(stdout, "not signed: no key was given (SIGN_KEY=FILE)")
	}
	return err
}

// prepare empties the folder of files, and makes what goes into several of them.
func (b *build) prepare() error {
	if err := os.MkdirAll(b.out, 0o755); err != nil {
		return err
	}
	old, err := os.ReadDir(b.out)
	if err != nil {
		return err
	}
	for _, e := range old {
		if e.Type().IsRegular() { // folders are somebody else's
			if err := os.Remove(filepath.Join(b.out, e.Name())); err != nil {
				return err
			}
		}
	}
	if b.modules, err = findLicences(b.root); err != nil {
		return err
	}
	b.notice = licences.Notice(b.modules)
	chandler := filepath.Join(b.native, "chandler")
	if b.manual, err = cobraPages(chandler, b.release); err != nil {
		return err
	}
	for name, see := range map[string]string{"chandler-agent": "chandler", "bookinfo": "chandler"} {
		pages, err := plainPages(filepath.Join(b.native, name), []string{see}, b.release)
		if err != nil {
			return err
		}
		b.manual = append(b.manual, pages...)
	}
	slices.SortFunc(b.manual, func(x, y files.File) int { return strings.Compare(x.Name, y.Name) })
	b.completions, err = completions(chandler)
	return err
}

// texts are files that lie beside the others.
func (b *build) texts() ([]string, error) {
	changes := files.From("CHANGELOG.md", filepath.Join(b.root, "CHANGELOG.md"), 0o644)
	return []string{"CHANGELOG.md", "NOTICE"}, errors.Join(changes.Write(filepath.Join(b.out, changes.Name)), files.Text("NOTICE", b.notice).Write(filepath.Join(b.out, "NOTICE")))
}

// archives are one for each platform, with all programs.
func (b *build) archives() ([]string, error) {
	var made []string
	for _, p := range b.platforms {
		all := []files.File{
			files.From("LICENSE", filepath.Join(b.root, "LICENSE"), 0o644), files.Text("NOTICE", b.notice), files.From("CHANGELOG.md", filepath.Join(b.root, "CHANGELOG.md"), 0o644),
			{Name: "bin/kubectl-chandler", Link: "chandler"},
		}
		for _, name := range programs {
			all = append(all, files.From("bin/"+name, b.program(p, name), 0o755))
		}
		all = append(append(all, files.Below("man", b.manual)...), files.Below("completions", b.completions)...)
		if p.OS == "linux" {
			units, err := files.Folder("systemd", filepath.Join(b.root, "deploy/systemd"))
			if err != nil {
				return nil, err
			}
			all = append(all, units...)
		}
		folder := "chandler-" + b.release.Version + "-" + p.String()
		err := files.Create(filepath.Join(b.out, folder+".tar.gz"), 0o644, func(w io.Writer) error { return files.TarGz(w, files.Below(folder, all), b.release.Time) })
		if err != nil {
			return nil, err
		}
		made = append(made, folder+".tar.gz")
	}
	return made, nil
}

// boms are the lists of what is in each program.
func (b *build) boms() ([]string, error) {
	declared := map[string]string{}
	for _, m := range b.modules {
		declared[m.Path] = m.Expression()
	}
	var made []string
	for _, p := range b.platforms {
		for _, name := range programs {
			file := name + "-" + b.release.Version + "-" + p.String() + ".spdx.json"
			if _, err := sbom.Write(filepath.Join(b.out, file), b.program(p, name), sbom.Options{Version: b.release.Version, Licences: declared}); err != nil {
				return nil, fmt.Errorf("%s: %w", b.program(p, name), err)
			}
			made = append(made, file)
		}
	}
	return made, nil
}

func (b *build) allPackages() ([]string, error) {
	var made []string
	for _, p := range b.platforms {
		if p.OS != "linux" {
			continue
		}
		for _, of := range packages {
			for _, format := range formats {
				name, err := b.pack(of, p, format)
				if err != nil {
					return nil, fmt.Errorf("%s of %s: %w", format, of.name, err)
				}
				made = append(made, name)
			}
		}
	}
	return made, nil
}

func (b *build) allImages() ([]string, error) {
	linux := slices.DeleteFunc(slices.Clone(b.platforms), func(p platform) bool { return p.OS != "linux" })
	if len(linux) == 0 {
		return nil, nil
	}
	var made []string
	for _, i := range images {
		name, err := b.image(i.name, i.program, i.summary, linux)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", i.name, err)
		}
		made = append(made, name)
	}
	return made, nil
}

// isFor says whether a file belongs on machines of a platform.
func isFor(name string, p platform) bool {
	for _, other := range []string{"amd64", "x86_64", "arm64", "aarch64", "darwin"} {
		if strings.Contains(name, other) && !(other == p.Arch || other == rpmArch[p.Arch]) {
			return false
		}
	}
	return true
}

var rpmArch = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}

// sums are the files by which others are checked: their SHA-256, and with a key its
// signature and the public key.
func (b *build) sums(of []files.File) ([]files.File, error) {
	sorted := slices.SortedFunc(slices.Values(of), func(x, y files.File) int { return strings.Compare(x.Name, y.Name) })
	var text strings.Builder
	for _, f := range sorted {
		in, _, err := f.Open()
		if err != nil {
			return nil, err
		}
		h := sha256.New()
		_, err = io.Copy(h, in)
		in.Close()
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&text, "%s  %s\n", hex.EncodeToString(h.Sum(nil)), f.Name)
	}
	all := []files.File{files.Text("SHA256SUMS", text.String())}
	if b.signer == nil {
		return all, nil
	}
	signature, err := b.signer.sign(all[0].Text)
	return append(all, files.Text("SHA256SUMS.sig", signature), files.Text("cosign.pub", b.signer.public)), err
}

// everywhere is what programs are meant to run on: licences are looked for on all.
var everywhere = []string{"linux/amd64", "linux/arm64", "darwin/amd64", "darwin/arm64"}

func findLicences(root string) ([]licences.Module, error) {
	return licences.Find(root, everywhere, []string{"./cmd/..."})
}

func runLicences(args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("licences", flag.ContinueOnError)
	root := flags.String("root", ".", "folder of the repository")
	if err := flags.Parse(args); err != nil {
		return err
	}
	found, err := findLicences(*root)
	if err != nil {
		return err
	}
	for _, m := range found {
		fmt.Fprintf(stdout, "%-20s %s %s\n", m.Expression(), m.Path, m.Version)
	}
	return nil
}

func runSBOM(args []string, stdout io.Writer) error {
	flags := flag.NewFlagSet("sbom", flag.ContinueOnError)
	out := flags.String("out", ".", "folder for the files")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if err := os.MkdirAll(*out, 0o755); err != nil {
		return err
	}
	for _, program := range flags.Args() {
		name := filepath.Join(*out, filepath.Base(program)+".spdx.json")
		n, err := sbom.Write(name, program, sbom.Options{})
		if err != nil {
			return fmt.Errorf("%s: %w", program, err)
		}
		fmt.Fprintf(stdout, "%s: %d modules\n", name, n)
	}
	return nil
}

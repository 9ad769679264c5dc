// Package licences finds the licences of all that programs are linked from, holds them
// against a list of those that are allowed, and writes them down for who gets the
// programs. It gives no advice on law.
package licences

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// Allowed are the licences (SPDX) that what is linked may be under: they ask for no
// more than to be named and kept beside the program; of MPL-2.0 we change no file.
var Allowed = []string{"0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MPL-2.0", "Unlicense", "Zlib"}

// least is how much of a licence's file must be words of known licences, in percent.
const least = 75

// Module is what a program is linked from, with its licences.
type Module struct {
	Path, Version string
	// SPDX are the names of its licences.
	SPDX []string
	// Texts are the files of licences and notices, by their paths in the module.
	Texts map[string][]byte
}

// Expression is a module's licences in SPDX's form.
func (m Module) Expression() string { return strings.Join(m.SPDX, " AND ") }

// std is the standard library, which is linked into everything.
const std = "std"

// listed is what "go list" says of a package.
type listed struct {
	ImportPath, Dir string
	Standard        bool
	Module          *struct {
		Path, Version, Dir string
		Main               bool
		Replace            *struct{ Path, Version string }
	}
}

// Find gives the modules that the packages at root are linked from on all platforms
// (OS/ARCH), in order. It fails when a module has no licence, one that is not known, or
// one that is not allowed; all such modules are in the error.
func Find(root string, platforms, packages []string) ([]Module, error) {
	folders := map[string]map[string]bool{} // by module, those of its packages
	about := map[string]Module{}
	dirs := map[string]string{}
	for _, platform := range platforms {
		list, err := list(root, platform, packages)
		if err != nil {
			return nil, err
		}
		for _, p := range list {
			if p.Standard || p.Module == nil || p.Module.Main {
				continue
			}
			m := Module{Path: p.Module.Path, Version: p.Module.Version}
			if r := p.Module.Replace; r != nil {
				m.Path, m.Version = r.Path, r.Version
			}
			if folders[m.Path] == nil {
				about[m.Path], dirs[m.Path], folders[m.Path] = m, p.Module.Dir, map[string]bool{".": true}
			}
			below, err := filepath.Rel(p.Module.Dir, p.Dir)
			if err != nil {
				return nil, err
			}
			for dir := filepath.ToSlash(below); dir != "."; dir = path.Dir(dir) {
				folders[m.Path][dir] = true
			}
		}
	}
	var found []Module
	var wrong []error
	for _, name := range slices.Sorted(maps.Keys(folders)) {
		m, err := read(about[name], os.DirFS(dirs[name]), slices.Sorted(maps.Keys(folders[name])))
		found, wrong = append(found, m), append(wrong, err)
	}
	m, err := standard()
	return append(found, m), errors.Join(append(wrong, err)...)
}

func list(root, platform string, packages []string) ([]listed, error) {
	system, arch, _ := strings.Cut(platform, "/")
	cmd := exec.Command("go", append([]string{"list", "-deps", "-json=ImportPath,Dir,Standard,Module"}, packages...)...)
	cmd.Dir, cmd.Env = root, append(os.Environ(), "GOOS="+system, "GOARCH="+arch, "CGO_ENABLED=0")
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, errs.Bytes())
	}
	var found []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return found, nil
		} else if err != nil {
			return nil, err
		}
		found = append(found, p)
	}
}

// standard is the standard library of the Go that runs.
func standard() (Module, error) {
	out, err := exec.Command("go", "env", "GOROOT", "GOVERSION").Output()
	if err != nil {
		return Module{}, fmt.Errorf("go env: %w", err)
	}
	root, version, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	text, err := os.ReadFile(filepath.Join(root, "LICENSE"))
	if err != nil {
		// Distributions have it elsewhere; what is linked is under these words all the same.
		return Module{}, fmt.Errorf("the licence of Go: %w", err)
	}
	m := Module{Path: std, Version: strings.TrimPrefix(version, "go"), Texts: map[string][]byte{"LICENSE": text}}
	m.SPDX, err = judge(text)
	return m, err
}

// Files of licences, and of what must be told beside them.
var (
	isLicence = regexp.MustCompile(`(?i)^(un)?(licen[sc]e|copying)([-._].*)?$`)
	isNotice  = regexp.MustCompile(`(?i)^notice([-._].*)?$`)
	// Of documentation, and code with such a name: neither is what is linked.
	isOther = regexp.MustCompile(`(?i)\.(go|js|json|ya?ml|tmpl|html|tpl|docs)$`)
)

// read finds a module's licences: those in folders that packages of it are in.
func read(m Module, in fs.FS, folders []string) (Module, error) {
	m.Texts = map[string][]byte{}
	var wrong []error
	for _, dir := range folders {
		entries, err := fs.ReadDir(in, dir)
		if err != nil {
			return m, err
		}
		for _, e := range entries {
			licence := isLicence.MatchString(e.Name())
			if e.IsDir() || isOther.MatchString(e.Name()) || !licence && !isNotice.MatchString(e.Name()) {
				continue
			}
			name := path.Join(dir, e.Name())
			text, err := fs.ReadFile(in, name)
			if err != nil {
				return m, err
			}
			m.Texts[name] = text
			if !licence {
				continue
			}
			found, err := judge(text)
			if err != nil {
				wrong = append(wrong, fmt.Errorf("%s %s: %s: %w", m.Path, m.Version, name, err))
			}
			m.SPDX = append(m.SPDX, found...)
		}
	}
	if len(m.SPDX) == 0 && len(wrong) == 0 {
		wrong = append(wrong, fmt.Errorf("%s %s: there is no licence in it", m.Path, m.Version))
	}
	slices.Sort(m.SPDX)
	m.SPDX = slices.Compact(m.SPDX)
	return m, errors.Join(wrong...)
}

// judge names the licences that a text is, and says what is against them.
func judge(text []byte) ([]string, error) {
	coverage := licensecheck.Scan(text)
	var found []string
	for _, match := range coverage.Match {
		if !match.IsURL {
			found = append(found, match.ID)
		}
	}
	slices.Sort(found)
	found = slices.Compact(found)
	if len(found) == 0 || coverage.Percent < least {
		return found, fmt.Errorf("%.0f %% of it are words of licences that are known (%s); at least %d must be", coverage.Percent, strings.Join(found, ", "), least)
	}
	for _, name := range found {
		if !slices.Contains(Allowed, name) {
			return found, fmt.Errorf("%s is not among the licences that are allowed", name)
		}
	}
	return found, nil
}

// Notice writes all licences down, each text once.
func Notice(modules []Module) []byte {
	var b bytes.Buffer
	b.WriteString("chandler\nCopyright the chandler authors\n\nThis product is under the Apache License 2.0 (LICENSE). Its programs are linked from\nthe modules below; chandler has all of them, the other programs some. What each program\nhas is in its SBOM, PROGRAM.spdx.json.\n\n")
	for _, m := range modules {
		fmt.Fprintf(&b, "%s %s: %s\n", m.Path, m.Version, m.Expression())
	}
	users := map[string][]string{} // by text
	var texts []string             // in the order in which they come
	for _, m := range modules {
		for _, name := range slices.Sorted(maps.Keys(m.Texts)) {
			text := strings.TrimSpace(strings.ReplaceAll(string(m.Texts[name]), "\r\n", "\n"))
			if users[text] == nil {
				texts = append(texts, text)
			}
			users[text] = append(users[text], m.Path+" "+m.Version+", "+name)
		}
	}
	for _, text := range texts {
		fmt.Fprintf(&b, "\n%s\n%s\n\n%s\n", strings.Repeat("=", 78), strings.Join(users[text], "\n"), text)
	}
	return b.Bytes()
}

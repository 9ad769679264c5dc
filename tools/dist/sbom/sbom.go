// Package sbom writes what modules are in a program, as SPDX 2.3 in JSON, from what the
// Go command put into the program itself. It reads back what it wrote and fails unless
// every module that is linked is named. It looks for no licences.
package sbom

import (
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"
)

// Options are what a program does not say of itself.
type Options struct {
	// Version of the program; empty for what the Go command knows of it.
	Version string
	// Licences are SPDX expressions of modules by their path; of others it is said that
	// nobody looked.
	Licences map[string]string
}

// Write writes to a file what is in a program, and gives the number of modules. It fails
// for what is no Go program, and if it could not name all that is linked.
func Write(to, program string, o Options) (int, error) {
	content, err := os.ReadFile(program)
	if err != nil {
		return 0, err
	}
	built, err := buildinfo.ReadFile(program)
	if err != nil {
		return 0, err
	}
	b, err := json.MarshalIndent(document(filepath.Base(program), content, built, o), "", "  ")
	if err != nil {
		return 0, err
	}
	if err := check(b, built); err != nil {
		return 0, err
	}
	return len(built.Deps) + 1, os.WriteFile(to, append(b, '\n'), 0o644)
}

// The parts of SPDX 2.3 that are used.
type (
	spdx struct {
		Version       string         `json:"spdxVersion"`
		DataLicense   string         `json:"dataLicense"`
		ID            string         `json:"SPDXID"`
		Name          string         `json:"name"`
		Namespace     string         `json:"documentNamespace"`
		Creation      creation       `json:"creationInfo"`
		Packages      []spdxPackage  `json:"packages"`
		Relationships []relationship `json:"relationships"`
	}
	creation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		ID            string     `json:"SPDXID"`
		Name          string     `json:"name"`
		Version       string     `json:"versionInfo,omitempty"`
		Location      string     `json:"downloadLocation"`
		FilesAnalyzed bool       `json:"filesAnalyzed"`
		Sums          []sum      `json:"checksums,omitempty"`
		References    []external `json:"externalRefs,omitempty"`
		Comment       string     `json:"comment,omitempty"`
		Concluded     string     `json:"licenseConcluded"`
		Declared      string     `json:"licenseDeclared"`
		Copyright     string     `json:"copyrightText"`
	}
	sum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	external struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	relationship struct {
		From string `json:"spdxElementId"`
		Type string `json:"relationshipType"`
		To   string `json:"relatedSpdxElement"`
	}
)

const unknown = "NOASSERTION"

// document is the same for the same program: it has no time but the beginning of all.
func document(name string, content []byte, built *debug.BuildInfo, o Options) spdx {
	digest := sha256.Sum256(content)
	program := spdxPackage{
		ID: "SPDXRef-program", Name: name, Version: cmp.Or(o.Version, built.Main.Version), Location: unknown, Concluded: unknown, Declared: "Apache-2.0", Copyright: unknown,
		Sums:    []sum{{"SHA256", hex.EncodeToString(digest[:])}},
		Comment: built.Path + ", built with " + built.GoVersion,
	}
	doc := spdx{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: name,
		Namespace: "https://chandler.dev/spdx/" + name + "/" + hex.EncodeToString(digest[:]),
		Creation:  creation{time.Unix(0, 0).UTC().Format(time.RFC3339), []string{"Tool: chandler-dist"}},
		Packages:  []spdxPackage{program, standard(built.GoVersion)},
		Relationships: []relationship{
			{"SPDXRef-DOCUMENT", "DESCRIBES", program.ID}, {program.ID, "CONTAINS", "SPDXRef-std"},
		},
	}
	for i, m := range built.Deps {
		p := module(m)
		p.Declared = cmp.Or(o.Licences[p.Name], unknown)
		p.ID = fmt.Sprintf("SPDXRef-module-%d", i+1)
		doc.Packages = append(doc.Packages, p)
		doc.Relationships = append(doc.Relationships, relationship{program.ID, "CONTAINS", p.ID})
	}
	return doc
}

func standard(goVersion string) spdxPackage {
	version := strings.TrimPrefix(goVersion, "go")
	return spdxPackage{
		ID: "SPDXRef-std", Name: "std", Version: version, Location: "https://go.dev/dl/", Concluded: unknown, Declared: "BSD-3-Clause", Copyright: unknown,
		References: []external{{"PACKAGE-MANAGER", "purl", "pkg:golang/std@" + version}},
	}
}

// module is a dependency as it is linked: what replaces it, where something does.
func module(m *debug.Module) spdxPackage {
	if m.Replace != nil {
		m = m.Replace
	}
	p := spdxPackage{
		Name: m.Path, Version: m.Version, Concluded: unknown, Declared: unknown, Copyright: unknown,
		Location:   "https://proxy.golang.org/" + escaped(m.Path) + "/@v/" + escaped(m.Version) + ".zip",
		References: []external{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + strings.ToLower(m.Path) + "@" + m.Version}},
	}
	if hash, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(m.Sum, "h1:")); err == nil && m.Sum != "" {
		p.Comment = "go.sum: h1:" + base64.StdEncoding.EncodeToString(hash)
	}
	return p
}

// escaped is a path as the module proxy has it: capitals are written as ! and the
// small letter.
func escaped(path string) string {
	var b strings.Builder
	for _, r := range path {
		if r >= 'A' && r <= 'Z' {
			b.WriteByte('!')
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// check reads a document back: all that is linked must be in it, at its version, and
// be said to be in the program.
func check(b []byte, built *debug.BuildInfo) error {
	var doc spdx
	if err := json.Unmarshal(b, &doc); err != nil {
		return err
	}
	contained := map[string]bool{}
	for _, r := range doc.Relationships {
		contained[r.To] = contained[r.To] || r.Type == "CONTAINS"
	}
	named := map[string]bool{}
	for _, p := range doc.Packages {
		if contained[p.ID] {
			named[p.Name+"@"+p.Version] = true
		}
	}
	for _, m := range built.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		if !named[m.Path+"@"+m.Version] {
			return fmt.Errorf("module %s %s is linked and not named", m.Path, m.Version)
		}
	}
	if len(built.Deps) == 0 || !named["std@"+strings.TrimPrefix(built.GoVersion, "go")] {
		return fmt.Errorf("the program does not say what it was built of")
	}
	return nil
}

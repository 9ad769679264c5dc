package build

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"chandler.dev/chandler"
)

// Language is what a plugin is written in.
type Language string

// The languages that are known.
const (
	Go             Language = "go"
	Rust           Language = "rust"
	C              Language = "c"
	CPP            Language = "cpp"
	AssemblyScript Language = "assemblyscript"
)

// Languages are those that are known.
func Languages() []Language { return []Language{Go, Rust, C, CPP, AssemblyScript} }

// ParseLanguage reads the name of a language, as people write it.
func ParseLanguage(s string) (Language, error) {
	l := Language(strings.ToLower(s))
	switch l {
	case "c++", "cc", "cxx":
		l = CPP
	case "as", "typescript", "ts":
		l = AssemblyScript
	case "golang":
		l = Go
	case "rs":
		l = Rust
	}
	if slices.Contains(Languages(), l) {
		return l, nil
	}
	return "", chandler.Problemf(chandler.CodeSourceLanguage, "", "take one of "+list(Languages()), "%s is no language that plugins are built from here", chandler.Quote(s))
}

func list(languages []Language) string {
	var names []string
	for _, l := range languages {
		names = append(names, string(l))
	}
	return strings.Join(names, ", ")
}

func (l Language) String() string {
	switch l {
	case Go:
		return "Go"
	case Rust:
		return "Rust"
	case C:
		return "C"
	case CPP:
		return "C++"
	case AssemblyScript:
		return "AssemblyScript"
	}
	return string(l)
}

// maxManifest bounds what is read of a package.json.
const maxManifest = 1 << 20

// Detect finds out what the source in a folder is written in.
func Detect(dir string) (Language, error) {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return "", chandler.Problemf(chandler.CodeSourceFolder, "", "name the folder with the plugin's source", "there is no folder %s", chandler.Quote(dir))
	case err != nil:
		return "", chandler.Problemf(chandler.CodeSourceFolder, "", "name the folder with the plugin's source", "%s cannot be read: %v", chandler.Quote(dir), err)
	}
	var found []Language
	for _, e := range entries {
		switch {
		case e.IsDir():
		case e.Name() == "go.mod":
			found = append(found, Go)
		case e.Name() == "Cargo.toml":
			found = append(found, Rust)
		case e.Name() == "package.json" && usesAssemblyScript(filepath.Join(dir, e.Name())):
			found = append(found, AssemblyScript)
		}
	}
	if len(found) == 0 {
		c, cpp, err := sources(dir)
		switch {
		case err != nil:
			return "", err
		case len(cpp) > 0:
			found = append(found, CPP)
		case len(c) > 0:
			found = append(found, C)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return "", chandler.Problemf(chandler.CodeSourceLanguage, "", `begin one with "chandler new NAME --lang go"`,
			"there is no plugin's source in %s: no go.mod, no Cargo.toml, no package.json with assemblyscript, no .c, .cc or .cpp file", chandler.Quote(dir))
	}
	return "", chandler.Problemf(chandler.CodeSourceLanguage, "", "say which with --lang", "%s could be of several languages: %s", chandler.Quote(dir), list(found))
}

// usesAssemblyScript tells whether a package.json depends on the compiler.
func usesAssemblyScript(file string) bool {
	f, err := os.Open(file)
	if err != nil {
		return false
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err != nil {
		return false
	}
	var manifest struct{ Dependencies, DevDependencies map[string]any }
	if json.Unmarshal(b, &manifest) != nil {
		return false
	}
	return manifest.Dependencies["assemblyscript"] != nil || manifest.DevDependencies["assemblyscript"] != nil
}

// sources are the files of C and of C++ in a folder and in its folder src, from it.
func sources(dir string) (c, cpp []string, err error) {
	for _, sub := range []string{"", "src"} {
		entries, err := os.ReadDir(filepath.Join(dir, sub))
		if errors.Is(err, os.ErrNotExist) && sub != "" {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		for _, e := range entries {
			name := filepath.Join(sub, e.Name())
			switch ext := filepath.Ext(name); {
			case e.IsDir():
			case ext == ".c":
				c = append(c, name)
			case ext == ".cc" || ext == ".cpp" || ext == ".cxx":
				cpp = append(cpp, name)
			}
		}
	}
	return c, cpp, nil
}

// Package scaffold writes the folder that a plugin begins with: a plugin in one of the
// languages that does something small and real, the schema of its configuration, its
// tests, and what the language's tools want to be pinned. For C, C++ and AssemblyScript it
// has the layer over Proxy-Wasm, too, which is written here (folder sdk).
//
// It builds nothing, and knows of compilers only what to tell the author (package build).
package scaffold

import (
	"embed"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/author/build"
)

// The files of a template have a name that ends with ".in", so that neither the go
// command nor git takes them for its own. templates/all is for every language.
//
//go:embed all:templates
var templates embed.FS

//go:embed sdk
var sdk embed.FS

// layer tells which files of sdk a language gets, and where.
func layer(l build.Language) (files []string, dir string) {
	switch l {
	case build.C:
		return []string{"proxy_wasm.h", "proxy_wasm_json.h"}, ""
	case build.CPP:
		return []string{"proxy_wasm.h", "proxy_wasm_json.h", "proxy_wasm.hpp"}, ""
	case build.AssemblyScript:
		return []string{"proxy_wasm.ts"}, "assembly"
	}
	return nil, ""
}

// maxName leaves room in what names are made of names: headers, packages, tags.
const maxName = 40

var validName = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)

// CheckName tells what is wrong with the name of a plugin; nil: nothing.
func CheckName(name string) *chandler.Problem {
	const hint = "write lower-case letters, digits and single hyphens between them, a letter first, such as add-header"
	switch {
	case len(name) > maxName:
		return chandler.Problemf(chandler.CodeSourceName, "", hint, "the name %s has %d characters, limit %d", chandler.Quote(name), len(name), maxName)
	case !validName.MatchString(name):
		return chandler.Problemf(chandler.CodeSourceName, "", hint, "a plugin cannot be called %s", chandler.Quote(name))
	}
	return nil
}

// Write writes the plugin that is called name to dir, which must not be there yet or
// empty, and gives the files' names from there, in order. What the author can mend is a
// *chandler.Problem; then nothing was written.
func Write(dir, name string, l build.Language) ([]string, error) {
	if p := CheckName(name); p != nil {
		return nil, p
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := free(dir); err != nil {
		return nil, err
	}
	files, err := Files(name, filepath.Base(abs), l)
	if err != nil {
		return nil, err
	}
	var names []string
	for file := range files {
		names = append(names, file)
	}
	slices.Sort(names)
	for _, file := range names {
		if err := write(filepath.Join(dir, filepath.FromSlash(file)), files[file]); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// free tells whether a folder can be written to.
func free(dir string) error {
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return chandler.Problemf(chandler.CodeSourceFolder, "", "name another folder with --dir", "%s is no folder to write to: %v", chandler.Quote(dir), err)
	case len(entries) > 0:
		return chandler.Problemf(chandler.CodeSourceFolder, "", "name another folder with --dir; nothing is ever written over",
			"%s has something in it: %s", chandler.Quote(dir), chandler.Quote(entries[0].Name()))
	}
	return nil
}

func write(file string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// Files gives the files of a plugin, by their names with slashes. The folder that they
// are for names the module.
func Files(name, folder string, l build.Language) (map[string][]byte, error) {
	toolchain := build.ToolchainOf(l)
	fill := strings.NewReplacer(
		"@NAME@", name, "@FOLDER@", folder,
		"@TOOLCHAIN@", toolchain.Needs, "@INSTALL@", strings.Join(toolchain.Install, "\n"),
	)
	files := map[string][]byte{}
	for _, root := range []string{"templates/all", "templates/" + string(l)} {
		err := fs.WalkDir(templates, root, func(file string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			text, err := templates.ReadFile(file)
			if err != nil {
				return err
			}
			files[strings.TrimSuffix(strings.TrimPrefix(file, root+"/"), ".in")] = []byte(fill.Replace(string(text)))
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	shared, dir := layer(l)
	for _, file := range shared {
		text, err := sdk.ReadFile("sdk/" + file)
		if err != nil {
			return nil, err
		}
		files[path.Join(dir, file)] = text
	}
	return files, nil
}

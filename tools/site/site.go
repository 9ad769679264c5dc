package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode/utf8"
)

// contents is the page whose headings and lists are the site's table of contents.
const contents = "docs/README.md"

// maxFile bounds a file that a page leads to.
const maxFile = 1 << 20

// site is all of it, before it is written.
type site struct {
	pages map[string]*page
	files map[string][]byte // what pages lead to that is no page; a folder's is its list
	kinds []kind
}

// kind is a part of the contents.
type kind struct {
	Name  string
	pages []link
}

// load reads the pages below root: the contents, all that they lead to, and what those
// lead to in turn. It fails where one leads nowhere.
func load(root fs.FS) (*site, error) {
	s := &site{pages: map[string]*page{}, files: map[string][]byte{}}
	if err := s.follow(root, contents); err != nil {
		return nil, err
	}
	s.kinds = kinds(s.pages[contents])
	return s, errors.Join(s.lost(root), s.dangling())
}

// follow reads a file and what it leads to.
func (s *site) follow(root fs.FS, name string) error {
	if s.pages[name] != nil || s.files[name] != nil {
		return nil
	}
	text, err := read(root, name)
	if err != nil {
		return err
	}
	if path.Ext(name) != ".md" {
		s.files[name] = text
		return nil
	}
	p, err := parse(root, name, text)
	if err != nil {
		return err
	}
	s.pages[name] = p
	var wrong []error
	for _, l := range p.links {
		if strings.HasPrefix(l.target, "..") {
			wrong = append(wrong, fmt.Errorf("%s: %s is not in the repository", name, l.target))
		} else if err := s.follow(root, l.target); errors.Is(err, fs.ErrNotExist) && s.pages[l.target] == nil {
			wrong = append(wrong, fmt.Errorf("%s: there is no %s", name, l.target))
		} else if err != nil {
			wrong = append(wrong, err)
		}
	}
	return errors.Join(wrong...)
}

// read gives a text, or of a folder the list of what is in it.
func read(root fs.FS, name string) ([]byte, error) {
	st, err := fs.Stat(root, name)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		if st.Size() > maxFile {
			return nil, fmt.Errorf("%s is larger than what belongs on a site", name)
		}
		text, err := fs.ReadFile(root, name)
		if err == nil && !utf8.Valid(text) {
			err = fmt.Errorf("%s is no text", name)
		}
		return text, err
	}
	entries, err := fs.ReadDir(root, name)
	if err != nil {
		return nil, err
	}
	var list []byte
	for _, e := range entries {
		list = append(list, e.Name()...)
		if e.IsDir() {
			list = append(list, '/')
		}
		list = append(list, '\n')
	}
	return list, nil
}

// kinds reads the contents: a heading, and the pages that are linked below it. Each
// stands where it comes first.
func kinds(p *page) (found []kind) {
	at := map[string]bool{contents: true}
	for _, part := range p.parts {
		found = append(found, kind{Name: part.text})
	}
	for _, l := range p.links {
		if l.kind == 0 || at[l.target] || path.Ext(l.target) != ".md" {
			continue
		}
		at[l.target] = true
		k := &found[l.kind-1]
		k.pages = append(k.pages, l)
	}
	return found
}

// lost are pages of docs to which the contents do not lead.
func (s *site) lost(root fs.FS) error {
	told := map[string]bool{contents: true}
	for _, k := range s.kinds {
		for _, l := range k.pages {
			told[l.target] = true
		}
	}
	var wrong []error
	err := fs.WalkDir(root, path.Dir(contents), func(name string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && path.Ext(name) == ".md" && !told[name] {
			wrong = append(wrong, fmt.Errorf("%s does not lead to %s", contents, name))
		}
		return err
	})
	return errors.Join(append(wrong, err)...)
}

// dangling are links to anchors that are not there.
func (s *site) dangling() error {
	var wrong []error
	for _, name := range slices.Sorted(maps.Keys(s.pages)) {
		for _, l := range s.pages[name].links {
			if to := s.pages[l.target]; l.anchor != "" && (to == nil || !to.ids[l.anchor]) {
				wrong = append(wrong, fmt.Errorf("%s: there is no %s#%s", name, l.target, l.anchor))
			}
		}
	}
	return errors.Join(wrong...)
}

package main

import (
	"bytes"
	_ "embed"
	"html/template"
	"os"
	"path"
	"path/filepath"
)

//go:embed page.html
var pageHTML string

//go:embed style.css
var styleCSS []byte

var layout = template.Must(template.New("page").Parse(pageHTML))

// view is what the layout shows.
type view struct {
	Title string
	Home  string // links, from where the page is
	Style string
	Kinds []kindView
	Parts []linkView
	Body  template.HTML // what goldmark made of a page, or nothing
	Text  string        // of a file that is no page
}

type kindView struct {
	Name  string
	Links []linkView
}

type linkView struct {
	Text, Href string
	Here       bool
}

// write makes the folder of the site anew.
func (s *site) write(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	for name, p := range s.pages {
		v := s.view(name, p.title)
		for _, part := range p.parts {
			v.Parts = append(v.Parts, linkView{Text: part.text, Href: href(name, name, part.anchor)})
		}
		v.Body = template.HTML(p.body) // of goldmark, which lets no HTML of the source through
		if err := v.write(dir, name); err != nil {
			return err
		}
	}
	for name, text := range s.files {
		v := s.view(name, name)
		v.Text = string(text)
		if err := v.write(dir, name); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "style.css"), styleCSS, 0o644)
}

// view is the frame of a page: its title, and the way to all others.
func (s *site) view(name, title string) view {
	v := view{Title: title, Home: href(name, contents, "")}
	v.Style = path.Join(path.Dir(href(name, "README.md", "")), "style.css")
	for _, k := range s.kinds {
		kv := kindView{Name: k.Name}
		for _, l := range k.pages {
			kv.Links = append(kv.Links, linkView{Text: l.text, Href: href(name, l.target, ""), Here: l.target == name})
		}
		v.Kinds = append(v.Kinds, kv)
	}
	return v
}

func (v *view) write(dir, name string) error {
	var text bytes.Buffer
	if err := layout.Execute(&text, v); err != nil {
		return err
	}
	file := filepath.Join(dir, filepath.FromSlash(place(name)))
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, text.Bytes(), 0o644)
}

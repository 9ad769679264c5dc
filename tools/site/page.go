package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"strings"
	"unicode"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/parser"
	"github.com/yuin/goldmark/text"
	"github.com/yuin/goldmark/util"
)

// page is a Markdown file of the repository.
type page struct {
	path  string // from the root, with slashes
	title string
	ids   map[string]bool
	parts []link // headings of the second level
	links []link
	body  []byte // HTML
}

// link leads somewhere: to a page or file of the repository, or to an anchor of one.
type link struct {
	text   string
	target string // from the root; of a part "" for the same page
	anchor string
	kind   int // how many headings of the second level stand before it
}

var markdown = goldmark.New(
	goldmark.WithExtensions(extension.Table),
	goldmark.WithParserOptions(parser.WithAutoHeadingID()),
)

// parse reads a page and rewrites its links to what the site has in the place of files.
func parse(root fs.FS, name string, source []byte) (*page, error) {
	p := &page{path: name, ids: map[string]bool{}}
	doc := markdown.Parser().Parse(text.NewReader(source), parser.WithContext(parser.NewContext(parser.WithIDs(anchors{p.ids}))))
	var unwanted []ast.Node
	err := ast.Walk(doc, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		switch n := n.(type) {
		case *ast.Heading:
			p.heading(n, source)
		case *ast.Link:
			return ast.WalkContinue, p.link(root, n, source)
		case *ast.Image:
			return ast.WalkStop, fmt.Errorf("%s: an image; the pages are text", name)
		case *ast.RawHTML:
			return ast.WalkStop, fmt.Errorf("%s: HTML in the text: %s", name, n.Segments.Value(source))
		case *ast.HTMLBlock:
			if n.HTMLBlockType != ast.HTMLBlockType2 {
				return ast.WalkStop, fmt.Errorf("%s: HTML that is no comment: %s", name, n.Lines().Value(source))
			}
			unwanted = append(unwanted, n)
		}
		return ast.WalkContinue, nil
	})
	if err != nil {
		return nil, err
	}
	if p.title == "" {
		return nil, fmt.Errorf("%s has no title", name)
	}
	for _, n := range unwanted {
		n.Parent().RemoveChild(n.Parent(), n)
	}
	var body bytes.Buffer
	if err := markdown.Renderer().Render(&body, source, doc); err != nil {
		return nil, err
	}
	p.body = body.Bytes()
	return p, nil
}

func (p *page) heading(h *ast.Heading, source []byte) {
	words := plain(h, source)
	switch h.Level {
	case 1:
		p.title = words
	case 2:
		id, _ := h.AttributeString("id")
		b, _ := id.([]byte)
		p.parts = append(p.parts, link{text: words, anchor: string(b)})
	}
}

// link takes a link into the repository, and has it lead to the site's file.
func (p *page) link(root fs.FS, l *ast.Link, source []byte) error {
	to, err := url.Parse(string(l.Destination))
	if err != nil {
		return fmt.Errorf("%s: %w", p.path, err)
	}
	if to.Scheme != "" || to.Host != "" {
		return nil
	}
	if path.IsAbs(to.Path) {
		return fmt.Errorf("%s: the link %s is no relative one", p.path, to)
	}
	target := p.path
	if to.Path != "" {
		target = path.Join(path.Dir(p.path), to.Path)
	}
	if readme := path.Join(target, "README.md"); exists(root, readme) {
		target = readme
	}
	p.links = append(p.links, link{text: plain(l, source), target: target, anchor: to.Fragment, kind: len(p.parts)})
	l.Destination = []byte(href(p.path, target, to.Fragment))
	return nil
}

func exists(root fs.FS, name string) bool {
	_, err := fs.Stat(root, name)
	return err == nil
}

// place is the site's file for a file of the repository.
func place(name string) string {
	if path.Base(name) == "README.md" {
		return path.Join(path.Dir(name), "index.html")
	}
	return strings.TrimSuffix(name, ".md") + ".html"
}

// href leads from one file of the repository to another, on the site.
func href(from, to, anchor string) string {
	steps := strings.Count(place(from), "/")
	u := url.URL{Path: strings.Repeat("../", steps) + place(to), Fragment: anchor}
	if from == to && anchor != "" {
		u.Path = ""
	}
	return u.String()
}

// plain is the text of a node without its marks.
func plain(n ast.Node, source []byte) string {
	var b strings.Builder
	_ = ast.Walk(n, func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		if t, ok := n.(*ast.Text); ok && entering {
			b.Write(t.Segment.Value(source))
			if t.SoftLineBreak() {
				b.WriteByte(' ')
			}
		}
		return ast.WalkContinue, nil
	})
	return b.String()
}

// anchors names headings as forges do: in lower case, blanks as hyphens, and nothing else
// but letters, digits, hyphens and underscores.
type anchors struct{ used map[string]bool }

func (a anchors) Generate(heading []byte, _ ast.NodeKind) []byte {
	base := strings.Map(func(r rune) rune {
		switch {
		case r == ' ':
			return '-'
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			return unicode.ToLower(r)
		}
		return -1
	}, string(util.TrimRightSpace(util.TrimLeftSpace(heading))))
	id := base
	for i := 1; a.used[id]; i++ {
		id = fmt.Sprintf("%s-%d", base, i)
	}
	a.used[id] = true
	return []byte(id)
}

func (a anchors) Put(id []byte) { a.used[string(id)] = true }

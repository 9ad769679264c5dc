package dashboard

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/access"
)

// view is what a page is made of: what its viewer may see, and what they ask for.
type view struct {
	*snapshot
	sight *sight
	query url.Values
	path  func(name string) string // a wildcard of the page's address
}

// key is the plugin that a page's address names.
func (v *view) key() chandler.Key {
	return chandler.Key{Kind: v.path("kind"), Namespace: v.path("namespace"), Name: v.path("name")}
}

// showing makes the content of a page: its template's name, its title, and what the
// template is given.
type showing func(v *view) (name, title string, content any, err error)

// missing is the error of a page about something that is not there, or that its viewer
// may not see, which is not told apart.
type missing struct{ what string }

func (m missing) Error() string { return m.what }

// page is a template, and the section of the dashboard that it belongs to.
type page struct {
	text    *template.Template
	section string
}

func parsePages() map[string]*page {
	frame := template.Must(template.New("").Funcs(words()).ParseFS(files, "pages/frame.html", "pages/parts.html"))
	pages := map[string]*page{}
	for name, section := range map[string]string{
		"overview": "fleet", "matrix": "matrix", "plugin": "fleet", "proxies": "proxies", "proxy": "proxies", "rollouts": "rollouts",
		"rollout": "rollouts", "confirm": "rollouts", "events": "events", "signin": "", "wrong": "",
	} {
		text := template.Must(template.Must(frame.Clone()).ParseFS(files, "pages/"+name+".html"))
		pages[name] = &page{text, section}
	}
	return pages
}

// frame is what stands around a page's content.
type frame struct {
	Title, Section string
	// Version is the snapshot's; empty: the page does not follow what happens.
	Version string
	// Summary says how the fleet is, in a sentence that is read out when it changes.
	Summary string
	Viewer  string
	// CanSignIn and CanSignOut: a button leads there.
	CanSignIn, CanSignOut bool
	Content               any
}

func (d *dashboard) render(name string, f frame) ([]byte, error) {
	p := d.pages[name]
	f.Section = p.section
	var b bytes.Buffer
	if err := p.text.ExecuteTemplate(&b, "frame", &f); err != nil {
		return nil, fmt.Errorf("page %s: %w", name, err)
	}
	return b.Bytes(), nil
}

// enter finds out who asks and what they may see; false: that they may see nothing has
// been answered.
func (d *dashboard) enter(w http.ResponseWriter, r *http.Request) (*view, bool) {
	viewer := d.cfg.Viewer(r.Context())
	if !viewer.Somewhere(access.List) {
		d.turnAway(w, r, viewer)
		return nil, false
	}
	whole, err := d.board.look(r.Context())
	if err != nil {
		d.wrong(w, r, http.StatusServiceUnavailable, "The control plane has nothing to show yet: "+err.Error())
		return nil, false
	}
	by := newSight(r.Context(), viewer)
	part := whole.seen(by)
	if by.Err() != nil {
		d.wrong(w, r, http.StatusServiceUnavailable, by.Err().Error())
		return nil, false
	}
	return &view{snapshot: part, sight: by, query: r.URL.Query(), path: r.PathValue}, true
}

// turnAway answers somebody who may see nothing.
func (d *dashboard) turnAway(w http.ResponseWriter, r *http.Request, viewer Viewer) {
	if !viewer.Known() && d.cfg.SignIn != nil {
		next := Root + "sign-in"
		if r.Method == http.MethodGet {
			next += "?" + url.Values{"next": {r.URL.RequestURI()}}.Encode()
		}
		http.Redirect(w, r, next, http.StatusSeeOther)
		return
	}
	err := fmt.Errorf("%s may not see plugins in any namespace", viewer.Name())
	d.cfg.Refused(r, access.List, err)
	d.wrong(w, r, http.StatusForbidden, err.Error())
}

// shown serves a page. It is rendered once for all who may see the same.
func (d *dashboard) shown(show showing) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, ok := d.enter(w, r)
		if !ok {
			return
		}
		theirs := r.URL.RequestURI() + "\n" + v.sight.fingerprint(v.snapshot, d.cfg.Steers)
		if body, ok := v.rendered.get(theirs); ok {
			write(w, r, http.StatusOK, body)
			return
		}
		name, title, content, err := show(v)
		var gone missing
		switch {
		case v.sight.Err() != nil:
			d.wrong(w, r, http.StatusServiceUnavailable, v.sight.Err().Error())
			return
		case errors.As(err, &gone):
			d.wrong(w, r, http.StatusNotFound, err.Error())
			return
		}
		if body, ok := d.answer(w, r, http.StatusOK, name, d.frameOf(v, title, content)); ok {
			v.rendered.put(theirs, body)
		}
	})
}

// answer renders a page and answers with it; false: it cannot be made, which has been
// answered.
func (d *dashboard) answer(w http.ResponseWriter, r *http.Request, status int, name string, f frame) ([]byte, bool) {
	body, err := d.render(name, f)
	if err != nil {
		d.cfg.Log.Error("a page of the dashboard cannot be made", "error", err)
		d.wrong(w, r, http.StatusInternalServerError, "The page cannot be made; the control plane's log says why.")
		return nil, false
	}
	write(w, r, status, body)
	return body, true
}

func (d *dashboard) frameOf(v *view, title string, content any) frame {
	f := d.frameFor(v.sight.viewer, title, content)
	f.Version, f.Summary = v.version, v.summary()
	return f
}

func (d *dashboard) frameFor(viewer Viewer, title string, content any) frame {
	return frame{
		Title: title, Content: content, Viewer: viewer.Name(),
		CanSignIn: d.cfg.SignIn != nil && !viewer.Known(), CanSignOut: d.cfg.SignIn != nil && viewer.Known(),
	}
}

// wrong answers that something is not as it should be, in words.
func (d *dashboard) wrong(w http.ResponseWriter, r *http.Request, status int, words string) {
	body, err := d.render("wrong", d.frameFor(d.cfg.Viewer(r.Context()), http.StatusText(status), words))
	if err != nil {
		http.Error(w, words, status)
		return
	}
	write(w, r, status, body)
}

// worthPacking is from how many bytes on a page is packed. No page with secrets or a
// form's token in it is as long as that.
const worthPacking = 64 << 10

// write answers with a page.
func write(w http.ResponseWriter, r *http.Request, status int, body []byte) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	var to io.Writer = w
	if len(body) >= worthPacking && strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
		w.Header().Set("Content-Encoding", "gzip")
		packed, _ := gzip.NewWriterLevel(w, gzip.BestSpeed)
		defer packed.Close()
		to = packed
	}
	w.WriteHeader(status)
	_, _ = to.Write(body) // the browser is gone
}

// Bounds of what is kept of a snapshot's pages.
const (
	maxRendered      = 128
	maxRenderedBytes = 32 << 20
)

// rendered keeps the pages of one snapshot, by address and by what their viewers may
// see.
type rendered struct {
	mu    sync.Mutex
	pages map[string][]byte
	size  int
}

func (c *rendered) get(key string) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	body, ok := c.pages[key]
	return body, ok
}

func (c *rendered) put(key string, body []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pages) >= maxRendered || c.size+len(key)+len(body) > maxRenderedBytes {
		return
	}
	if c.pages == nil {
		c.pages = map[string][]byte{}
	}
	c.pages[key] = body
	c.size += len(key) + len(body)
}

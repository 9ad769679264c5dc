package dashboard

import (
	"net/http"
	"strings"

	"chandler.dev/chandler/internal/access"
)

type signInContent struct{ Next, Problem string }

// askToken shows the form for a token.
func (d *dashboard) askToken(w http.ResponseWriter, r *http.Request) {
	d.askTokenAgain(w, r, http.StatusOK, r.URL.Query().Get("next"), "")
}

func (d *dashboard) askTokenAgain(w http.ResponseWriter, r *http.Request, status int, next, problem string) {
	if d.cfg.SignIn == nil {
		d.wrong(w, r, http.StatusNotFound, "There is no such page.")
		return
	}
	body, err := d.render("signin", d.frameFor(d.cfg.Viewer(r.Context()), "Sign in", signInContent{within(next), problem}))
	if err != nil {
		d.wrong(w, r, http.StatusInternalServerError, err.Error())
		return
	}
	write(w, r, status, body)
}

// signIn takes a token. A page of another server cannot make a browser do so.
func (d *dashboard) signIn(w http.ResponseWriter, r *http.Request) {
	next, ok := d.form(w, r)
	if !ok {
		return
	}
	cookie, err := d.cfg.SignIn.SignIn(r, strings.TrimSpace(r.PostForm.Get("credential")))
	if err != nil {
		d.cfg.Refused(r, access.List, err)
		d.askTokenAgain(w, r, http.StatusUnauthorized, next, err.Error())
		return
	}
	http.SetCookie(w, cookie)
	http.Redirect(w, r, next, http.StatusSeeOther)
}

func (d *dashboard) signOut(w http.ResponseWriter, r *http.Request) {
	if _, ok := d.form(w, r); ok {
		http.SetCookie(w, d.cfg.SignIn.SignOut(r))
		http.Redirect(w, r, Root, http.StatusSeeOther)
	}
}

// form reads a form about who somebody is.
func (d *dashboard) form(w http.ResponseWriter, r *http.Request) (next string, ok bool) {
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	switch {
	case d.cfg.SignIn == nil:
		d.wrong(w, r, http.StatusNotFound, "There is no such page.")
	case !access.SameOrigin(r.Host, r.Header.Get("Origin"), r.Header.Get("Sec-Fetch-Site")):
		d.wrong(w, r, http.StatusForbidden, "The form comes from a page of another server.")
	case r.ParseForm() != nil:
		d.wrong(w, r, http.StatusBadRequest, "The form cannot be read.")
	default:
		return within(r.PostForm.Get("next")), true
	}
	return "", false
}

// within keeps an address within the dashboard.
func within(next string) string {
	if !strings.HasPrefix(next, Root) || strings.ContainsAny(next, "\\\r\n") {
		return Root
	}
	return next
}

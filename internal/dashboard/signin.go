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
	d.answer(w, r, status, "signin", d.frameFor(d.cfg.Viewer(r.Context()), "Sign in", signInContent{within(next), problem}))
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
	if d.cfg.SignIn == nil {
		d.wrong(w, r, http.StatusNotFound, "There is no such page.")
		return "", false
	}
	if !d.readForm(w, r) {
		return "", false
	}
	return within(r.PostForm.Get("next")), true
}

// within keeps an address within the dashboard.
func within(next string) string {
	if !strings.HasPrefix(next, Root) || strings.ContainsAny(next, "\\\r\n") {
		return Root
	}
	return next
}

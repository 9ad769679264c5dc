package bookinfo

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/coder/websocket"
)

//go:embed pages
var pages embed.FS

// Backends are the URLs of the services that productpage asks; several reviews
// are taken in turn.
type Backends struct {
	Details, Ratings string
	Reviews          []string
}

// page is what the templates show.
type page struct {
	Title   string
	User    string
	Product Product
	Details *BookDetails // nil: the service does not answer
	Reviews *BookReviews // likewise
	Refused string       // why a login failed
}

// productPage is the service that people look at.
type productPage struct {
	backends  Backends
	asker     asker
	templates *template.Template
	turn      atomic.Uint64
}

// ProductPage gives the front of the sample:
//
//	GET /  /productpage  /logout  /health     POST /login
//	GET /api/v1/products[/{id}[/reviews|/ratings]]
//	GET /ws                                  a WebSocket that echoes
//
// It is an error when a URL is not one of http or https with a host, or when
// there is none for reviews.
func ProductPage(b Backends) (http.Handler, error) {
	if len(b.Reviews) == 0 {
		return nil, errors.New("at least one URL of reviews is needed")
	}
	for _, raw := range append([]string{b.Details, b.Ratings}, b.Reviews...) {
		if err := serviceURL(raw); err != nil {
			return nil, err
		}
	}
	stars := func(n int) string {
		return strings.Repeat("★", max(0, min(n, 5))) + strings.Repeat("☆", 5-max(0, min(n, 5)))
	}
	t, err := template.New("").Funcs(template.FuncMap{"stars": stars}).ParseFS(pages, "pages/*.html")
	if err != nil {
		return nil, err
	}
	p := &productPage{backends: b, asker: newAsker(frontTimeout), templates: t}
	mux := http.NewServeMux()
	withHealth(mux, "productpage")
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		p.render(w, http.StatusOK, "index.html", page{Title: "Bookinfo", User: user(r)})
	})
	mux.HandleFunc("GET /productpage", p.product)
	mux.HandleFunc("POST /login", p.login)
	mux.HandleFunc("GET /logout", logout)
	mux.HandleFunc("GET /ws", echo)
	mux.HandleFunc("GET /api/v1/products", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, products())
	})
	mux.HandleFunc("GET /api/v1/products/{id}", knownProduct(p.details))
	mux.HandleFunc("GET /api/v1/products/{id}/reviews", knownProduct(p.reviews))
	mux.HandleFunc("GET /api/v1/products/{id}/ratings", knownProduct(p.ratings))
	return mux, nil
}

// serviceURL says what is wrong with the URL of a service.
func serviceURL(raw string) error {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("%q is no URL of a service, such as http://127.0.0.1:9081", raw)
	}
	return nil
}

// render writes a page whole or not at all.
func (p *productPage) render(w http.ResponseWriter, status int, name string, v page) {
	var b bytes.Buffer
	if err := p.templates.ExecuteTemplate(&b, name, v); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes())
}

// product shows what can be had; a part whose service does not answer says so.
func (p *productPage) product(w http.ResponseWriter, r *http.Request) {
	r = asUser(r)
	book := products()[0]
	v := page{Title: book.Title, User: user(r), Product: book}
	var both sync.WaitGroup
	both.Go(func() {
		var details BookDetails
		if p.asker.ask(r, p.backends.Details+"/details/0", &details) == nil {
			v.Details = &details
		}
	})
	both.Go(func() {
		var reviews BookReviews
		if p.asker.ask(r, p.nextReviews()+"/reviews/0", &reviews) == nil {
			v.Reviews = &reviews
		}
	})
	both.Wait()
	p.render(w, http.StatusOK, "product.html", v)
}

func (p *productPage) nextReviews() string {
	n := p.turn.Add(1) - 1
	return p.backends.Reviews[n%uint64(len(p.backends.Reviews))]
}

func (p *productPage) details(w http.ResponseWriter, r *http.Request, _ Product) {
	relay[BookDetails](w, asUser(r), p.asker, p.backends.Details+"/details/"+r.PathValue("id"))
}

func (p *productPage) reviews(w http.ResponseWriter, r *http.Request, _ Product) {
	relay[BookReviews](w, asUser(r), p.asker, p.nextReviews()+"/reviews/"+r.PathValue("id"))
}

func (p *productPage) ratings(w http.ResponseWriter, r *http.Request, _ Product) {
	relay[BookRatings](w, asUser(r), p.asker, p.backends.Ratings+"/ratings/"+r.PathValue("id"))
}

// relay hands another service's answer on.
func relay[T any](w http.ResponseWriter, r *http.Request, a asker, url string) {
	var v T
	if err := a.ask(r, url, &v); err != nil {
		problem(w, http.StatusServiceUnavailable, "it is not to be had now")
		return
	}
	writeJSON(w, http.StatusOK, v)
}

// userCookie holds the name of who logged in. It proves nothing: the sample has
// no secrets.
const userCookie = "bookinfo-user"

func user(r *http.Request) string {
	if c, err := r.Cookie(userCookie); err == nil && len(c.Value) <= maxName {
		return c.Value
	}
	return ""
}

// asUser passes the name on to the services, as the header end-user.
func asUser(r *http.Request) *http.Request {
	if name := user(r); name != "" {
		r.Header.Set("end-user", name)
	}
	return r
}

func (p *productPage) login(w http.ResponseWriter, r *http.Request) {
	name := strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.' {
			return c
		}
		return -1
	}, r.PostFormValue("username"))
	if name == "" || len(name) > maxName {
		p.render(w, http.StatusBadRequest, "index.html", page{
			Title: "Bookinfo", User: user(r),
			Refused: fmt.Sprintf("A user name has 1 to %d letters and digits.", maxName),
		})
		return
	}
	http.SetCookie(w, &http.Cookie{Name: userCookie, Value: name, Path: "/", HttpOnly: true, SameSite: http.SameSiteLaxMode})
	http.Redirect(w, r, "/productpage", http.StatusSeeOther)
}

func logout(w http.ResponseWriter, r *http.Request) {
	http.SetCookie(w, &http.Cookie{Name: userCookie, Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	http.Redirect(w, r, "/productpage", http.StatusSeeOther)
}

// echo answers every message of a WebSocket with itself, until nothing comes
// for echoIdle or the server ends.
func echo(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // it has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(maxBody)
	for {
		if !echoOne(r.Context(), conn) {
			return
		}
	}
}

func echoOne(ctx context.Context, conn *websocket.Conn) bool {
	ctx, cancel := context.WithTimeout(ctx, echoIdle)
	defer cancel()
	kind, b, err := conn.Read(ctx)
	return err == nil && conn.Write(ctx, kind, b) == nil
}

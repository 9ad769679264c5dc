// Package dashboard is what people see of the fleet in a browser, and where they steer
// it: pages that are whole without a script, and follow what happens with one.
//
// It is no second API: what it shows is the control plane's word of one moment, what it
// does are the control plane's verbs, and who may see and do what is decided by whoever
// mounts it (Viewer). It keeps nothing but the last picture that it took.
package dashboard

import (
	"context"
	"crypto/rand"
	"embed"
	"log/slog"
	"net/http"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/source"
)

// Root is the path under which the handler is to be mounted.
const Root = "/dashboard/"

// Fleet is the part of the control plane that is shown.
type Fleet interface {
	// Objects and Proxies are read at one moment each. They share what they give with
	// others, so it is not to be changed.
	Objects(ctx context.Context) ([]control.ObjectView, error)
	Proxies() []control.ProxyView
	// RootNamespace is that whose plugins are for all.
	RootNamespace() string
	// Broken gives the files in which the source could not make out everything.
	Broken() []source.Broken
	// Events gives those behind one, oldest first, and a channel that is closed when
	// there are more.
	Events(after uint64) ([]chandler.Event, <-chan struct{})
	// Partial says what is not known here, as another replica leads; empty: nothing.
	Partial() string
	// Changed gives a channel that is closed when any of the others, or a rollout, may
	// say something else.
	Changed() <-chan struct{}
}

// Rollouts is how releases come to proxies, and how people steer that. An error is for
// people: why it cannot be done, or was not.
type Rollouts interface {
	// Rollouts gives those of all plugins that have one, read at one moment.
	Rollouts(ctx context.Context) ([]control.RolloutView, error)
	Steer(ctx context.Context, s control.Steering) (control.RolloutView, error)
	// Disable takes a plugin out, Enable puts it back: the order that names the same
	// node and labels, or without either all of them.
	Disable(ctx context.Context, key chandler.Key, d chandler.Disablement) (control.RolloutView, error)
	Enable(ctx context.Context, key chandler.Key, d chandler.Disablement) (control.RolloutView, error)
}

// Viewer is who looks, and what they may.
type Viewer interface {
	// Name is for people; Known tells whether somebody has shown who they are.
	Name() string
	Known() bool
	// From is where they are, for the log.
	From() string
	// Somewhere tells whether a verb may be allowed in some namespace.
	Somewhere(v access.Verb) bool
	// Allowed tells whether a verb is allowed in a namespace, or access.Everywhere. The
	// error is for when that cannot be found out now.
	Allowed(ctx context.Context, v access.Verb, namespace string) (bool, error)
}

// SignIn lets people of a browser show who they are, which a browser does not do by
// itself for those who have a token.
type SignIn interface {
	// SignIn judges a token, and gives what the browser is to show from now on. The error
	// is for people.
	SignIn(r *http.Request, token string) (*http.Cookie, error)
	SignOut(r *http.Request) *http.Cookie
}

// Config is what the handler shows, and to whom.
type Config struct {
	Fleet Fleet
	// Rollouts may be nil: there are none to be seen.
	Rollouts Rollouts
	// Imports gives what a module wants of its host, by name; false: that is not known
	// here. nil: it never is.
	Imports func(chandler.ModuleDigest) ([]string, bool)
	// Viewer tells who asks; a request of nobody that is known has one, too.
	Viewer func(ctx context.Context) Viewer
	// SignIn may be nil: nobody can.
	SignIn SignIn
	// Steers is what the API wants of those who steer; access.Steer when empty.
	Steers access.Verb
	// Refused hears of what somebody may not do.
	Refused func(r *http.Request, v access.Verb, why error)
	// Now is the clock, time.Now when nil.
	Now func() time.Time
	// Log gets a line for every change.
	Log *slog.Logger
}

//go:embed assets pages
var files embed.FS

// dashboard is the handler.
type dashboard struct {
	cfg   Config
	board *board
	pages map[string]*page
	// secret makes the tokens of forms. It ends with the process.
	secret  [32]byte
	streams chan struct{}
}

// New gives the handler, for Root. It starts nothing.
func New(cfg Config) http.Handler {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Steers == "" {
		cfg.Steers = access.Steer
	}
	if cfg.Refused == nil {
		cfg.Refused = func(*http.Request, access.Verb, error) {}
	}
	d := &dashboard{cfg: cfg, board: newBoard(cfg), pages: parsePages(), streams: make(chan struct{}, maxStreams)}
	rand.Read(d.secret[:])
	mux := http.NewServeMux()
	for path, show := range map[string]showing{
		"{$}":                                d.overview,
		"matrix":                             d.matrix,
		"plugins/{kind}/{namespace}/{name}":  d.plugin,
		"proxies":                            d.proxies,
		"proxies/{namespace}/{name}":         d.proxy,
		"rollouts":                           d.rollouts,
		"rollouts/{kind}/{namespace}/{name}": d.rollout,
		"events":                             d.events,
	} {
		mux.Handle("GET "+Root+path, d.shown(show))
	}
	mux.HandleFunc("GET "+Root+"rollouts/{kind}/{namespace}/{name}/{verb}", d.confirm)
	mux.HandleFunc("POST "+Root+"rollouts/{kind}/{namespace}/{name}/{verb}", d.steer)
	mux.HandleFunc("GET "+Root+"live", d.live)
	mux.HandleFunc("GET "+Root+"sign-in", d.askToken)
	mux.HandleFunc("POST "+Root+"sign-in", d.signIn)
	mux.HandleFunc("POST "+Root+"sign-out", d.signOut)
	for _, name := range []string{"style.css", "dashboard.js", "icon.svg"} {
		mux.HandleFunc("GET "+Root+name, asset(name))
	}
	mux.HandleFunc(Root, func(w http.ResponseWriter, r *http.Request) {
		d.wrong(w, r, http.StatusNotFound, "There is no such page.")
	})
	return guarded(mux)
}

// policy lets a page have what comes from here, and nothing else; no script may make
// elements of text.
const policy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; " +
	"base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// guarded tells browsers what a page may do. The referrer stays within this server, as
// without one they would not say where a form comes from.
func guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "same-origin")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-store")
		next.ServeHTTP(w, r)
	})
}

// asset serves an embedded file.
func asset(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-cache")
		http.ServeFileFS(w, r, files, "assets/"+name)
	}
}

package web

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"chandler.dev/chandler/api/chandler/v1/chandlerv1connect"
	"chandler.dev/chandler/internal/access"
	"chandler.dev/chandler/internal/dashboard"
)

// The dashboard is for browsers, which show a token only when a page has asked for
// it. They keep it in a cookie, sealed with a key of this process: other servers of the
// same name, on another port, are sent the cookie and can do nothing with it there. It
// is good for the dashboard alone, and whom the token is of and what they may is looked
// up anew at every request.
const (
	sessionLasts = 12 * time.Hour
	// maxCookie is what every browser keeps.
	maxCookie = 3800
)

// pages mounts the dashboard.
func (g *gate) pages(mux *http.ServeMux) {
	s := newSessions(g)
	d := dashboard.New(dashboard.Config{
		Fleet: g.cfg.Control, Rollouts: g.cfg.Rollouts, Imports: g.cfg.Imports, SignIn: s, Now: g.cfg.Now, Log: g.cfg.Log,
		Steers: rules[chandlerv1connect.RolloutsSteerProcedure].verb,
		Viewer: func(ctx context.Context) dashboard.Viewer { return viewer{callerOf(ctx)} },
		Refused: func(r *http.Request, v access.Verb, why error) {
			g.rules.refused(callerOf(r.Context()), v, why)
		},
	})
	mux.Handle(dashboard.Root, s.known(untilStop(d)))
	mux.Handle("GET /{$}", http.RedirectHandler(dashboard.Root, http.StatusTemporaryRedirect))
}

// visit tells whether somebody follows a link to the dashboard, from wherever: a page
// that is shown as a whole can do nothing, and no other page can look into it.
func visit(r *http.Request) bool {
	return (r.Method == http.MethodGet || r.Method == http.MethodHead) && r.Header.Get("Origin") == "" &&
		r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document" &&
		(r.URL.Path == "/" || strings.HasPrefix(r.URL.Path, dashboard.Root))
}

// untilStop ends what goes on for long when the server does.
func untilStop(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if serving, ok := r.Context().Value(servingKey{}).(context.Context); ok && r.URL.Path == dashboard.Root+"live" {
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			defer context.AfterFunc(serving, cancel)()
			r = r.WithContext(ctx)
		}
		next.ServeHTTP(w, r)
	})
}

// servingKey is of the context that ends when the server is to.
type servingKey struct{}

// viewer is a caller who looks at the dashboard.
type viewer struct{ c *caller }

func (v viewer) Name() string { return v.c.name }
func (v viewer) Known() bool  { return v.c.known }
func (v viewer) From() string { return v.c.from }

func (v viewer) Somewhere(verb access.Verb) bool {
	return v.c.own || v.c.here && verb == access.List || v.c.grants.Somewhere(verb) || v.c.account != nil
}

func (v viewer) Allowed(ctx context.Context, verb access.Verb, namespace string) (bool, error) {
	return v.c.allowed(ctx, verb, namespace)
}

// sessions seal tokens for browsers, and open them.
type sessions struct {
	gate *gate
	seal cipher.AEAD
	name string // of the cookie, which two control planes on one machine do not share
}

func newSessions(g *gate) *sessions {
	key := make([]byte, 32+4)
	rand.Read(key)
	block, err := aes.NewCipher(key[:32])
	if err != nil { // the key's length is right
		panic(fmt.Sprintf("web: %v", err))
	}
	s := &sessions{gate: g, name: "chandler-" + hex.EncodeToString(key[32:])}
	if s.seal, err = cipher.NewGCMWithRandomNonce(block); err != nil {
		panic(fmt.Sprintf("web: %v", err))
	}
	return s
}

// known finds out who asks, by a cookie where nothing else is shown. One that is no
// good any more is as none.
func (s *sessions) known(next http.Handler) http.Handler {
	strict := s.gate.known(next)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		cookie, err := r.Cookie(s.name)
		_, socket := r.Context().Value(peerKey{}).(peer)
		if err != nil || socket || r.Header.Get("Authorization") != "" || r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
			strict.ServeHTTP(w, r)
			return
		}
		c := &caller{name: "nobody", from: r.RemoteAddr, here: isLocal(r)}
		if token, ok := s.open(cookie.Value); ok {
			mine := *c
			switch err := s.gate.token(r, &mine, s.gate.grants(), "Bearer "+token); {
			case err == nil:
				c = &mine
			case statusOf(err) == http.StatusServiceUnavailable:
				s.gate.refuse(w, r, c, "", err)
				return
			}
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), callerKey{}, c)))
	})
}

// SignIn implements dashboard.SignIn.
func (s *sessions) SignIn(r *http.Request, token string) (*http.Cookie, error) {
	c := &caller{name: "nobody", from: r.RemoteAddr, here: isLocal(r)}
	if err := s.gate.token(r, c, s.gate.grants(), "Bearer "+token); err != nil {
		return nil, errors.New(wordsOf(err))
	}
	sealed := s.close(token)
	if len(sealed) > maxCookie {
		return nil, fmt.Errorf("the token has %d bytes, which is more than a browser keeps", len(token))
	}
	cookie := s.cookie(r)
	cookie.Value, cookie.MaxAge = sealed, int(sessionLasts/time.Second)
	s.gate.cfg.Log.Info("somebody signed in to the dashboard", "who", c.name, "from", c.from)
	return cookie, nil
}

// SignOut implements dashboard.SignIn.
func (s *sessions) SignOut(r *http.Request) *http.Cookie {
	cookie := s.cookie(r)
	cookie.MaxAge = -1
	return cookie
}

func (s *sessions) cookie(r *http.Request) *http.Cookie {
	return &http.Cookie{Name: s.name, Path: dashboard.Root, HttpOnly: true, Secure: r.TLS != nil, SameSite: http.SameSiteLaxMode}
}

func (s *sessions) close(token string) string {
	text := binary.BigEndian.AppendUint64(nil, uint64(s.gate.cfg.Now().Add(sessionLasts).Unix()))
	return base64.RawURLEncoding.EncodeToString(s.seal.Seal(nil, nil, append(text, token...), []byte(s.name)))
}

func (s *sessions) open(sealed string) (token string, ok bool) {
	b, err := base64.RawURLEncoding.DecodeString(sealed)
	if err != nil {
		return "", false
	}
	text, err := s.seal.Open(nil, nil, b, []byte(s.name))
	if err != nil || len(text) < 8 || uint64(s.gate.cfg.Now().Unix()) >= binary.BigEndian.Uint64(text) {
		return "", false
	}
	return string(text[8:]), true
}

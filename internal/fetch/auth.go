package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"chandler.dev/chandler"
)

// What a session may do, in the words of token servers.
const (
	actionPull = "pull"
	actionPush = "pull,push"
)

type anonymousKeychain struct{}

func (anonymousKeychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.Anonymous, nil
}

// repositoryAt gives a repository of a host as keychains know it. It is insecure,
// in the registry client's sense, only where plain HTTP may be spoken.
func (c *Client) repositoryAt(host, repository string) (name.Repository, error) {
	var opts []name.Option
	if c.mayBePlain(host) {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(host, opts...)
	if err != nil {
		return name.Repository{}, refuse(chandler.CodeURLHost, "correct the url", "host %s is not that of a registry", chandler.Quote(host))
	}
	return reg.Repo(repository), nil
}

// credentials finds what to show to repo: the request's own, if they are bound to
// it, and otherwise the operator's. A mirror gets the operator's for the mirror's
// own host, and never those for the registry.
func (c *Client) credentials(ctx context.Context, e Endpoint, ref chandler.Reference, repo name.Repository, own *Credentials) (authn.AuthConfig, error) {
	if own != nil && e.isHome(ref.Host) {
		if !own.covers(ref) {
			return authn.AuthConfig{}, nil
		}
		return own.reveal(), nil
	}
	auth, err := authn.Resolve(ctx, c.Keychain, repo)
	if err != nil {
		return authn.AuthConfig{}, keychainError(repo)
	}
	cfg, err := authn.Authorization(ctx, auth)
	if err != nil {
		return authn.AuthConfig{}, keychainError(repo)
	}
	return *cfg, nil
}

func keychainError(repo name.Repository) *Error {
	e := temporary(chandler.CodeUnauthorized, "the operator's keychain gives no answer for %s", repo.Name())
	e.Problem.Hint = "look at the docker configuration and its credential helpers"
	return e
}

// authKey names what was agreed on with a server: one per endpoint, repository,
// action and credentials.
type authKey struct {
	endpoint, repository, action string
	credentials                  [sha256.Size]byte
}

// agreement is how a server is spoken to. turn is held by whoever is changing it,
// so that a token is asked for once.
type agreement struct {
	turn chan struct{}

	mu      sync.Mutex
	plain   bool   // it speaks no TLS, where that is allowed
	header  string // Authorization; empty: it was not asked for yet
	refresh string // a token server's, in place of the credentials
}

func (a *agreement) get() (plain bool, header string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.plain, a.header
}

// authCache keeps agreements, so that a registry is asked for its ways, and for a
// token, once. It is emptied when full.
type authCache struct {
	mu sync.Mutex
	m  map[authKey]*agreement
}

const maxAuths = 256

func (a *authCache) get(k authKey) *agreement {
	a.mu.Lock()
	defer a.mu.Unlock()
	if found := a.m[k]; found != nil {
		return found
	}
	if a.m == nil || len(a.m) >= maxAuths {
		a.m = map[authKey]*agreement{}
	}
	made := &agreement{turn: make(chan struct{}, 1)}
	a.m[k] = made
	return made
}

func (a *authCache) drop(k authKey) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.m, k)
}

// session is an authenticated way to one repository at one endpoint. As a
// http.RoundTripper it shows credentials to that repository and to nothing else.
type session struct {
	c      *Client
	at     Endpoint
	ref    chandler.Reference
	repo   name.Repository
	action string
	cfg    authn.AuthConfig
	auth   *agreement
	client http.Client
	forget func() // to be called when a request failed: the next one begins anew
}

// session is the way to the registry itself, or to what the operator has put in its
// place: never to a mirror.
func (c *Client) session(ctx context.Context, ref chandler.Reference, own *Credentials, action string) (*session, error) {
	all, err := c.endpoints(ref.Host)
	if err != nil {
		return nil, err
	}
	return c.sessionAt(ctx, all[len(all)-1], ref, own, action)
}

func (c *Client) sessionAt(ctx context.Context, e Endpoint, ref chandler.Reference, own *Credentials, action string) (*session, error) {
	host := e.Host
	if e.isHome(ref.Host) {
		host = ref.Host // under which keychains have it, where it has several
	}
	repo, err := c.repositoryAt(host, ref.Repository)
	if err != nil {
		return nil, err
	}
	cfg, err := c.credentials(ctx, e, ref, repo, own)
	if err != nil {
		return nil, err
	}
	key := authKey{endpoint: e.Scheme + "://" + e.Host + e.Path, repository: ref.Repository, action: action, credentials: hashCredentials(cfg)}
	s := &session{c: c, at: e, ref: ref, repo: repo, action: action, cfg: cfg, auth: c.auths.get(key), forget: func() { c.auths.drop(key) }}
	s.client = http.Client{Transport: s, CheckRedirect: follow}
	return s, nil
}

// base is the URL of the repository.
func (s *session) base() *url.URL {
	u := &url.URL{Scheme: s.at.Scheme, Host: s.at.Host, Path: s.at.Path + "/" + s.ref.Repository}
	if plain, _ := s.auth.get(); u.Scheme == "" {
		u.Scheme = "https"
		if plain {
			u.Scheme = "http"
		}
	}
	return u
}

// owns tells whether a request is for this repository at this endpoint, and never
// was for anything else: what was redirected away and comes back is a stranger.
func (s *session) owns(req *http.Request) bool {
	base := s.base()
	if s.action == actionPush && s.at.serves(req.URL) && req.URL.Path == s.at.Path+"/" {
		return true // where the registry client knocks before it pushes
	}
	if !s.at.serves(req.URL) || !strings.HasPrefix(req.URL.Path, base.Path+"/") {
		return false
	}
	for via := req.Response; via != nil; via = via.Request.Response {
		if via.Request == nil || !sameOrigin(via.Request.URL, req.URL) {
			return false
		}
	}
	return true
}

// RoundTrip implements http.RoundTripper.
func (s *session) RoundTrip(in *http.Request) (*http.Response, error) {
	own, shown := s.owns(in), ""
	req := in.Clone(in.Context())
	if own {
		for k, v := range s.at.Header {
			req.Header[k] = v
		}
		if _, shown = s.auth.get(); shown != "" {
			req.Header.Set("Authorization", shown)
		}
	}
	resp, err := s.c.base.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	ch, ok := challengeOf(resp.Header)
	if !ok || in.Body != nil && in.Body != http.NoBody {
		return resp, nil
	}
	var header string
	if own {
		header, err = s.agree(in.Context(), in.URL, ch, shown)
	} else if ch.scheme == "bearer" {
		header, err = s.asStranger(in.Context(), in.URL, ch)
	}
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	if header == "" || header == shown {
		return resp, nil
	}
	resp.Body.Close()
	again := req.Clone(in.Context())
	again.Header.Set("Authorization", header)
	return s.c.base.RoundTrip(again)
}

// agree gives what to show from now on to a server that is not content with what
// was shown. Empty: there is nothing.
func (s *session) agree(ctx context.Context, at *url.URL, ch challenge, shown string) (string, error) {
	select {
	case s.auth.turn <- struct{}{}:
		defer func() { <-s.auth.turn }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if _, newer := s.auth.get(); newer != shown {
		return newer, nil // somebody else was faster
	}
	secret := s.cfg != (authn.AuthConfig{})
	if secret && at.Scheme != "https" && !isLoopback(at.Host) {
		return "", refuse(chandler.CodeTLS, "give the server TLS, or use no credentials for it", "%s: credentials are not sent in plain http", at.Host)
	}
	header, refresh := "", ""
	switch {
	case s.cfg.RegistryToken != "":
		header = "Bearer " + s.cfg.RegistryToken
	case ch.scheme == "basic":
		header = basic(s.cfg)
	default:
		cfg := s.cfg
		s.auth.mu.Lock()
		if s.auth.refresh != "" {
			cfg.IdentityToken = s.auth.refresh
		}
		s.auth.mu.Unlock()
		g, err := s.c.exchange(ctx, at, ch, cfg, s.scopes(ch))
		if err != nil {
			return "", err
		}
		header, refresh = "Bearer "+g.token, g.refresh
	}
	s.auth.mu.Lock()
	defer s.auth.mu.Unlock()
	s.auth.header = header
	if refresh != "" && secret {
		s.auth.refresh = refresh
	}
	return header, nil
}

// asStranger gives an anonymous token for a host that was redirected to.
func (s *session) asStranger(ctx context.Context, at *url.URL, ch challenge) (string, error) {
	var scopes []string
	if scope := ch.params["scope"]; scope != "" {
		scopes = []string{scope}
	}
	g, err := s.c.exchange(ctx, at, ch, authn.AuthConfig{}, scopes)
	if err != nil {
		return "", err
	}
	return "Bearer " + g.token, nil
}

// scopes are what a token is asked for: this repository, under the name by which
// the registry knows it if that is a longer one, and nothing else that the
// registry may want one for.
func (s *session) scopes(ch challenge) []string {
	own := "repository:" + s.ref.Repository + ":" + s.action
	wanted := ch.params["scope"]
	known, ok := strings.CutPrefix(wanted, "repository:")
	if ok && wanted != own && strings.HasSuffix(known, "/"+s.ref.Repository+":"+s.action) {
		return []string{wanted, own}
	}
	return []string{own}
}

// basic is the header of the basic scheme; empty without a password.
func basic(cfg authn.AuthConfig) string {
	switch {
	case cfg.Username != "" && cfg.Password != "":
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(cfg.Username+":"+cfg.Password))
	case cfg.Auth != "":
		return "Basic " + cfg.Auth
	}
	return ""
}

func hashCredentials(cfg authn.AuthConfig) [sha256.Size]byte {
	// A slice, since AuthConfig writes itself to JSON in its own way.
	b, err := json.Marshal([]string{cfg.Username, cfg.Password, cfg.Auth, cfg.IdentityToken, cfg.RegistryToken})
	if err != nil {
		panic("fetch: strings do not marshal: " + err.Error())
	}
	return sha256.Sum256(b)
}

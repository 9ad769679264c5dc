package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"chandler.dev/chandler"
)

type anonymousKeychain struct{}

func (anonymousKeychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return authn.Anonymous, nil
}

// repository gives ref's repository as the registry client knows it. It is
// insecure, in that client's sense, only where plain HTTP may be spoken.
func (c *Client) repository(ref chandler.Reference) (name.Repository, error) {
	var opts []name.Option
	if c.mayBePlain(ref.Host) {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(ref.Host, opts...)
	if err != nil {
		return name.Repository{}, refuse(chandler.CodeURLHost, "correct the url", "host %s is not that of a registry", chandler.Quote(ref.Host))
	}
	return reg.Repo(ref.Repository), nil
}

// credentials finds what to show to repo: the request's own, if they are bound to
// it, and otherwise the operator's.
func (c *Client) credentials(ctx context.Context, ref chandler.Reference, repo name.Repository, own *Credentials) (authn.AuthConfig, error) {
	if own != nil {
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

// authKey names an authenticated transport: one per repository, action and
// credentials.
type authKey struct {
	repository, action string
	credentials        [sha256.Size]byte
}

// authCache keeps authenticated transports, so that a registry is asked for its
// ways, and for a token, once. It is emptied when full.
type authCache struct {
	mu sync.Mutex
	m  map[authKey]http.RoundTripper
}

const maxAuths = 256

func (a *authCache) get(k authKey) http.RoundTripper {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.m[k]
}

func (a *authCache) put(k authKey, t http.RoundTripper) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.m == nil || len(a.m) >= maxAuths {
		a.m = map[authKey]http.RoundTripper{}
	}
	a.m[k] = t
}

func (a *authCache) drop(k authKey) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.m, k)
}

// session is an authenticated way to one repository.
type session struct {
	repo   name.Repository
	client http.Client
	forget func() // to be called when a request failed: the next one begins anew
}

func (c *Client) session(ctx context.Context, ref chandler.Reference, own *Credentials, action string) (*session, error) {
	repo, err := c.repository(ref)
	if err != nil {
		return nil, err
	}
	cfg, err := c.credentials(ctx, ref, repo, own)
	if err != nil {
		return nil, err
	}
	key := authKey{repository: repo.Name(), action: action, credentials: hashCredentials(cfg)}
	t := c.auths.get(key)
	if t == nil {
		auth := authn.Anonymous
		if cfg != (authn.AuthConfig{}) {
			auth = authn.FromConfig(cfg)
		}
		t, err = transport.NewWithContext(ctx, repo.Registry, auth, c.base, []string{repo.Scope(action)})
		if err != nil {
			return nil, err
		}
		c.auths.put(key, t)
	}
	return &session{
		repo:   repo,
		client: http.Client{Transport: t, CheckRedirect: follow},
		forget: func() { c.auths.drop(key) },
	}, nil
}

func hashCredentials(cfg authn.AuthConfig) [sha256.Size]byte {
	// A slice, since AuthConfig writes itself to JSON in its own way.
	b, err := json.Marshal([]string{cfg.Username, cfg.Password, cfg.Auth, cfg.IdentityToken, cfg.RegistryToken})
	if err != nil {
		panic("fetch: strings do not marshal: " + err.Error())
	}
	return sha256.Sum256(b)
}

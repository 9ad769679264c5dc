package fetch

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"golang.org/x/net/http/httpguts"
	"golang.org/x/net/publicsuffix"

	"chandler.dev/chandler"
)

const (
	maxToken = 64 << 10
	// maxExpiry is how long a token may say that it is good for; who says more is
	// no token server.
	maxExpiry = 366 * 24 * 60 * 60 // seconds
)

const realmHint = "the registry must name a token server by https, of its own domain, or the operator list it (--token-realm)"

func realmRefused(at *url.URL, realm, why string) *Error {
	return refuse(chandler.CodeAuthRealm, realmHint, "%s: its token realm %s is refused: %s", at.Host, chandler.Quote(realm), why)
}

// checkRealm tells whether a token may be asked for at realm, for the server at;
// secret: whether credentials go there.
//
// Without them any https server on a domain of its own will do: it learns nothing,
// and the dialer sees to it that it is none that is denied.
func (c *Client) checkRealm(at, realm *url.URL, secret bool) error {
	host, registry := strings.ToLower(realm.Hostname()), strings.ToLower(at.Hostname())
	shown := (&url.URL{Scheme: realm.Scheme, Host: realm.Host, Path: realm.Path}).String()
	local := isLoopback(realm.Host) && isLoopback(at.Host)
	switch plain := realm.Scheme == "http" && at.Scheme == "http" && (sameOrigin(at, realm) || c.mayBePlain(realm.Host)); {
	case realm.User != nil:
		return realmRefused(at, shown, "it has credentials in it")
	case host == "":
		return realmRefused(at, shown, "it names no host")
	case realm.Scheme != "https" && !plain:
		return realmRefused(at, shown, "it is not https")
	case plain && secret && !isLoopback(realm.Host):
		return realmRefused(at, shown, "credentials are not sent in plain http")
	case host == registry, local, c.TokenRealm != nil && c.TokenRealm(strings.ToLower(at.Host), host):
		return nil
	}
	_, numeric := hostAddress(host)
	domain, err := publicsuffix.EffectiveTLDPlusOne(host)
	switch {
	case numeric, err != nil, isLoopback(realm.Host):
		return realmRefused(at, shown, "it is internal")
	case secret && !sameDomain(domain, registry):
		return realmRefused(at, shown, "credentials for "+registry+" are not sent to "+domain)
	}
	return nil
}

func sameDomain(domain, host string) bool {
	if _, numeric := hostAddress(host); numeric {
		return false
	}
	own, err := publicsuffix.EffectiveTLDPlusOne(host)
	return err == nil && own == domain
}

// hostAddress reads a host that is an address, in whatever form.
func hostAddress(host string) (netip.Addr, bool) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr, true
	}
	return chandler.NumericAddress(strings.ToLower(host))
}

// grant is what a token server gives.
type grant struct {
	token   string
	refresh string // to be shown instead of the credentials next time; may be empty
}

// exchange gets a token, in exchange for credentials if there are any
// (distribution specification: token authentication).
func (c *Client) exchange(ctx context.Context, at *url.URL, ch challenge, cfg authn.AuthConfig, scopes []string) (grant, error) {
	written, ok := ch.params["realm"]
	if !ok {
		return grant{}, refuse(chandler.CodeAuthRealm, realmHint, "%s: its challenge names no token realm, or several", at.Host)
	}
	realm, err := url.Parse(written)
	if err != nil {
		return grant{}, realmRefused(at, "", "it is no url")
	}
	secret := cfg != (authn.AuthConfig{})
	if err := c.checkRealm(at, realm, secret); err != nil {
		return grant{}, err
	}
	client := http.Client{Transport: c.base, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		if err := follow(req, via); err != nil {
			return err
		}
		if secret && !sameOrigin(req.URL, realm) {
			return realmRefused(at, req.URL.Redacted(), "credentials are not sent on to another host")
		}
		return c.checkRealm(at, req.URL, secret)
	}}
	ask := func(refresh string) (*http.Response, error) {
		req, err := tokenRequest(ctx, realm, ch.params["service"], scopes, cfg, refresh)
		if err != nil {
			return nil, realmRefused(at, "", "it is no url")
		}
		return client.Do(req)
	}
	resp, err := ask(cfg.IdentityToken)
	if err == nil && resp.StatusCode == http.StatusNotFound && cfg.IdentityToken != "" && cfg.Password != "" {
		resp.Body.Close()
		resp, err = ask("") // not every server knows of refresh tokens
	}
	if err != nil {
		return grant{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return grant{}, statusError("token server "+realm.Host, resp.StatusCode, resp.Header)
	}
	return readGrant(resp.Body)
}

// tokenRequest asks in the way of OAuth 2 with a refresh token, else in the older
// one that every server knows.
func tokenRequest(ctx context.Context, realm *url.URL, service string, scopes []string, cfg authn.AuthConfig, refresh string) (*http.Request, error) {
	if refresh != "" {
		form := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}, "client_id": {"chandler"}, "scope": {strings.Join(scopes, " ")}}
		if service != "" {
			form.Set("service", service)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(form.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return req, err
	}
	u := *realm
	query := u.Query()
	query["scope"] = scopes
	if service != "" {
		query.Set("service", service)
	}
	u.RawQuery, u.Fragment = query.Encode(), ""
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if header := basic(cfg); err == nil && header != "" {
		req.Header.Set("Authorization", header)
	}
	return req, err
}

// readGrant reads a token server's reply. How long the token is good for is not
// kept: the registry tells when it no longer is.
func readGrant(body io.Reader) (grant, error) {
	bad := func(why string) (grant, error) {
		return grant{}, refuse(chandler.CodeAuthToken, "mend the token server", "the token server's reply %s", why)
	}
	raw, err := io.ReadAll(io.LimitReader(body, maxToken+1))
	if err != nil {
		return grant{}, shortBody("the token server's reply", err, -1, int64(len(raw)))
	}
	if len(raw) > maxToken {
		return bad("is over 65536 bytes")
	}
	var reply struct {
		Token     string   `json:"token"`
		Access    string   `json:"access_token"`
		Refresh   string   `json:"refresh_token"`
		ExpiresIn *float64 `json:"expires_in"`
	}
	if json.Unmarshal(raw, &reply) != nil {
		return bad("is not JSON of a token")
	}
	g := grant{token: reply.Access, refresh: reply.Refresh}
	if g.token == "" {
		g.token = reply.Token
	}
	switch expires := reply.ExpiresIn; {
	case g.token == "":
		return bad("has no token")
	case !httpguts.ValidHeaderFieldValue(g.token):
		return bad("has a token with control characters")
	case expires != nil && *expires < 0:
		return bad("has a token that expired before it was made")
	case expires != nil && *expires > maxExpiry:
		return bad("has a token that is good for more than a year")
	}
	return g, nil
}

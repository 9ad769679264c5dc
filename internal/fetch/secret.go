package fetch

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-containerregistry/pkg/authn"

	"chandler.dev/chandler"
)

const maxSecret = 1 << 20

// Secret holds the credentials of a pull secret. It shows none of them.
type Secret struct {
	entries []Credentials // the most particular first
}

// Credentials are a user's for one registry, and for the repositories below one
// path of it when the secret says so. They show nothing of themselves.
type Credentials struct {
	host, path string // host may have * in its parts; path may be empty
	// reveal is a function so that no way of printing a Credentials, or what
	// holds one, shows it.
	reveal func() authn.AuthConfig
}

func conceal(cfg authn.AuthConfig) func() authn.AuthConfig {
	return func() authn.AuthConfig { return cfg }
}

// NewCredentials gives credentials of user at host (with its port if it has one)
// for every repository there.
func NewCredentials(host, user, password string) *Credentials {
	return &Credentials{host: registryHost(host), reveal: conceal(authn.AuthConfig{Username: user, Password: password})}
}

// String tells the place and not the secret.
func (c Credentials) String() string { return "credentials for " + path.Join(c.host, c.path) }

// covers tells whether the credentials are bound to where ref points.
func (c *Credentials) covers(ref chandler.Reference) bool {
	if ref.Scheme != chandler.SchemeOCI || !hostMatches(c.host, ref.Host) {
		return false
	}
	return c.path == "" || ref.Repository == c.path || strings.HasPrefix(ref.Repository, c.path+"/")
}

// hostMatches compares part by part; a * stands for one part or a piece of one.
func hostMatches(pattern, host string) bool {
	if !strings.Contains(pattern, "*") {
		return pattern == host
	}
	want, have := strings.Split(pattern, "."), strings.Split(host, ".")
	if len(want) != len(have) {
		return false
	}
	for i := range want {
		if ok, err := path.Match(want[i], have[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

// For gives the credentials for where ref points, of the most particular entry,
// or nil.
func (s *Secret) For(ref chandler.Reference) *Credentials {
	if s == nil {
		return nil
	}
	for i := range s.entries {
		if s.entries[i].covers(ref) {
			return &s.entries[i]
		}
	}
	return nil
}

type secretEntry struct {
	Auth          string `json:"auth"`
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// ParseSecret reads the .dockerconfigjson of a pull secret. Only its auths are
// used; that it names credential helpers, which are never run, is a warning. The
// error is a *chandler.Problem of code SecretType, SecretJSON or SecretAuth; no
// message shows any content, nor names of hosts either: people put passwords there.
func ParseSecret(dockerconfigjson []byte) (*Secret, []chandler.Problem, error) {
	const hint = "make it with: kubectl create secret docker-registry"
	var file struct {
		Auths       map[string]*secretEntry `json:"auths"`
		CredsStore  json.RawMessage         `json:"credsStore"`
		CredHelpers json.RawMessage         `json:"credHelpers"`
	}
	switch {
	case len(dockerconfigjson) == 0:
		return nil, nil, chandler.Problemf(chandler.CodeSecretType, "", hint, "the secret has no .dockerconfigjson")
	case len(dockerconfigjson) > maxSecret:
		return nil, nil, chandler.Problemf(chandler.CodeSecretJSON, "", hint, ".dockerconfigjson is %d bytes, limit %d", len(dockerconfigjson), maxSecret)
	case tooManyValues(dockerconfigjson):
		return nil, nil, chandler.Problemf(chandler.CodeSecretJSON, "", hint, ".dockerconfigjson has more than %d values", maxValues)
	}
	if err := json.Unmarshal(dockerconfigjson, &file); err != nil {
		return nil, nil, chandler.Problemf(chandler.CodeSecretJSON, "", hint, ".dockerconfigjson cannot be read at offset %d", offsetOf(err))
	}
	if file.Auths == nil {
		return nil, nil, chandler.Problemf(chandler.CodeSecretJSON, "", hint, ".dockerconfigjson has no auths")
	}
	var warnings []chandler.Problem
	for name, raw := range map[string]json.RawMessage{"credHelpers": file.CredHelpers, "credsStore": file.CredsStore} {
		if len(raw) > 0 && string(raw) != "null" {
			warnings = append(warnings, *chandler.Problemf(chandler.CodeSecretAuth, "", "write the credentials under auths", "%s of the secret is ignored; only auths is used", name))
		}
	}
	slices.SortFunc(warnings, func(a, b chandler.Problem) int { return strings.Compare(a.Message, b.Message) })
	s := &Secret{}
	for i, key := range slices.Sorted(maps.Keys(file.Auths)) {
		c, why := parseEntry(key, file.Auths[key])
		if why != "" {
			return nil, warnings, chandler.Problemf(chandler.CodeSecretAuth, "", "make the secret anew with: kubectl create secret docker-registry",
				"entry %d of %d in auths, in the order of their names: %s", i+1, len(file.Auths), why)
		}
		s.entries = append(s.entries, c)
	}
	slices.SortFunc(s.entries, func(a, b Credentials) int {
		if d := len(b.path) - len(a.path); d != 0 {
			return d
		}
		if d := strings.Count(a.host, "*") - strings.Count(b.host, "*"); d != 0 {
			return d
		}
		return strings.Compare(a.host, b.host)
	})
	return s, warnings, nil
}

func offsetOf(err error) int64 {
	var (
		syntax *json.SyntaxError
		typed  *json.UnmarshalTypeError
	)
	switch {
	case errors.As(err, &syntax):
		return syntax.Offset
	case errors.As(err, &typed):
		return typed.Offset
	}
	return 0
}

// parseEntry tells in words why an entry is of no use.
func parseEntry(key string, e *secretEntry) (c Credentials, why string) {
	host, repository := splitKey(key)
	if host == "" || strings.ContainsAny(host, "@ ") {
		return c, "it names no host of a registry"
	}
	c = Credentials{host: host, path: repository, reveal: conceal(authn.AuthConfig{})}
	if e == nil {
		return c, "" // anonymous
	}
	cfg := authn.AuthConfig{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
	if e.Auth != "" {
		plain, err := base64.StdEncoding.DecodeString(e.Auth)
		if err != nil {
			plain, err = base64.RawStdEncoding.DecodeString(e.Auth)
		}
		user, password, ok := strings.Cut(string(plain), ":")
		if err != nil || !ok || user == "" {
			return c, "auth is not base64 of user:password"
		}
		cfg.Username, cfg.Password = user, password
	}
	for _, s := range []string{cfg.Username, cfg.Password, cfg.IdentityToken, cfg.RegistryToken} {
		if !utf8.ValidString(s) || strings.ContainsFunc(s, unicode.IsControl) {
			return c, "it has a control character, such as a NUL or the end of a line"
		}
	}
	c.reveal = conceal(cfg)
	return c, ""
}

// splitKey reads a key of auths: a host, perhaps as the URL that docker writes,
// perhaps with the path of repositories.
func splitKey(key string) (host, repository string) {
	for _, scheme := range []string{"https://", "http://"} {
		key = strings.TrimPrefix(key, scheme)
	}
	host, repository, _ = strings.Cut(key, "/")
	repository = strings.Trim(repository, "/")
	if repository == "v1" || repository == "v2" {
		repository = ""
	}
	return registryHost(host), repository
}

func registryHost(host string) string {
	host = strings.ToLower(host)
	if host == "docker.io" || host == "registry-1.docker.io" {
		return chandler.DefaultRegistry
	}
	return host
}

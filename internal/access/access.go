// Package access says who may do what on the control plane's admin port: the
// roles that an operator gives out, by namespace, and which requests are meant for
// this server at all.
//
// It is pure, and no authenticator: it knows neither connections nor files nor
// Kubernetes.
package access

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"chandler.dev/chandler"
)

// Verb is what somebody wants to do in a namespace.
type Verb string

// The verbs.
const (
	List  Verb = "list"  // see what plugins there are and how they fare, without values of their configuration
	Read  Verb = "read"  // see their configuration
	Steer Verb = "steer" // move their rollouts, disable and enable them
	Edit  Verb = "edit"  // apply and delete them
	Enrol Verb = "enrol" // let nodes in, and cut them off
	Debug Verb = "debug" // look into the control plane itself; only where all namespaces are meant
)

// Role is a set of verbs.
type Role string

// The roles, each with all that the one before has.
const (
	Viewer   Role = "viewer"
	Operator Role = "operator"
	Admin    Role = "admin"
)

// Everywhere stands for all namespaces.
const Everywhere = "*"

func (r Role) verbs() []Verb {
	switch r {
	case Viewer:
		return []Verb{List, Read}
	case Operator:
		return append(Viewer.verbs(), Steer)
	case Admin:
		return append(Operator.verbs(), Edit, Enrol, Debug)
	}
	return nil
}

// ErrRefused is somebody's word that a token is no good.
var ErrRefused = errors.New("the token is refused")

// Account is a user of a cluster, as its API server says.
type Account struct {
	User, UID string
	Groups    []string
	Extra     map[string][]string
}

// Grant is an entry of `access:` in the operator's file: a role in namespaces, for
// whoever shows the one thing that is named.
type Grant struct {
	// Name is for people: it stands in the log of changes.
	Name string `yaml:"name"`
	// TokenSHA256 is the SHA-256 of a bearer token, in hex. The token itself stands
	// nowhere.
	TokenSHA256 string `yaml:"tokenSHA256"`
	// Certificate is a name in a client certificate: a URI, a DNS name or an email
	// address. The subject counts for nothing.
	Certificate string `yaml:"certificate"`
	// User and Group are a cluster's, of a token that its API server has reviewed.
	User  string `yaml:"user"`
	Group string `yaml:"group"` // likewise
	// Role is viewer, operator or admin.
	Role Role `yaml:"role"`
	// Namespaces are those in which it counts; Everywhere is all of them.
	Namespaces []string `yaml:"namespaces"`
}

var (
	namespace = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	digest    = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// Check tells what is wrong with a grant; fields are those of the entry.
func (g *Grant) Check() []chandler.Problem {
	var problems []chandler.Problem
	bad := func(code chandler.Code, field, hint, format string, args ...any) {
		problems = append(problems, *chandler.Problemf(code, field, hint, format, args...))
	}
	if strings.TrimSpace(g.Name) == "" {
		bad(chandler.CodeSpecRequired, "name", "write a name; it is what the log of changes says", "name is required")
	}
	shown := 0
	for _, s := range []string{g.TokenSHA256, g.Certificate, g.User, g.Group} {
		if s != "" {
			shown++
		}
	}
	if shown != 1 {
		bad(chandler.CodeSpecRequired, "", "write one entry for each", "one of tokenSHA256, certificate, user and group is required, not %d of them", shown)
	}
	empty := sha256.Sum256(nil)
	switch {
	case g.TokenSHA256 != "" && !digest.MatchString(g.TokenSHA256):
		bad(chandler.CodeSpecValue, "tokenSHA256", `write what this prints: printf %s "$TOKEN" | sha256sum`, "tokenSHA256 is not 64 hex digits in lower case")
	case g.TokenSHA256 == hex.EncodeToString(empty[:]):
		bad(chandler.CodeSpecValue, "tokenSHA256", "make a token, for example with: openssl rand -hex 32", "tokenSHA256 is that of no text at all")
	}
	if g.Role.verbs() == nil {
		bad(chandler.CodeSpecEnum, "role", "write viewer, operator or admin", "role %s is unknown", chandler.Quote(string(g.Role)))
	}
	if len(g.Namespaces) == 0 {
		bad(chandler.CodeSpecRequired, "namespaces", `write the namespaces, or ["*"] for all`, "namespaces is required")
	}
	for i, n := range g.Namespaces {
		if n != Everywhere && !namespace.MatchString(n) {
			bad(chandler.CodeSpecValue, fmt.Sprintf("namespaces[%d]", i), `write a namespace's name, or "*"`, "namespace %s is not valid", chandler.Quote(n))
		}
	}
	return problems
}

// Grants are all that an operator gives out, or what somebody has of it.
type Grants []Grant

// Token gives the grants of a bearer token. How long it takes does not depend on
// how much of a token is right.
func (g Grants) Token(token string) Grants {
	sum := sha256.Sum256([]byte(token))
	shown := hex.EncodeToString(sum[:])
	return g.where(func(one *Grant) bool {
		return subtle.ConstantTimeCompare([]byte(one.TokenSHA256), []byte(shown)) == 1
	})
}

// Certificate gives the grants of the names in a certificate.
func (g Grants) Certificate(names []string) Grants {
	return g.where(func(one *Grant) bool { return one.Certificate != "" && slices.Contains(names, one.Certificate) })
}

// Account gives the grants of a cluster's user.
func (g Grants) Account(a *Account) Grants {
	return g.where(func(one *Grant) bool {
		return one.User != "" && one.User == a.User || one.Group != "" && slices.Contains(a.Groups, one.Group)
	})
}

func (g Grants) where(theirs func(*Grant) bool) Grants {
	var found Grants
	for i := range g {
		if theirs(&g[i]) {
			found = append(found, g[i])
		}
	}
	return found
}

// Allow tells whether a verb is allowed in a namespace, or Everywhere.
func (g Grants) Allow(v Verb, namespace string) bool {
	return slices.ContainsFunc(g, func(one Grant) bool {
		return slices.Contains(one.Role.verbs(), v) &&
			(slices.Contains(one.Namespaces, Everywhere) || v != Debug && slices.Contains(one.Namespaces, namespace))
	})
}

// Somewhere tells whether a verb is allowed in any namespace.
func (g Grants) Somewhere(v Verb) bool {
	return slices.ContainsFunc(g, func(one Grant) bool {
		return slices.ContainsFunc(one.Namespaces, func(n string) bool { return g.Allow(v, n) })
	})
}

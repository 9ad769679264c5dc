// Package attach knows where plugins stand in Envoy's configuration: which
// places of a filter chain belong to which phase, how the content of a slot is
// composed, and how a user's bootstrap, or a listener of another control plane, is
// edited so that its connection managers have slots.
//
// It is pure: it reads no file, starts no Envoy and remembers nothing. It does
// not decide which plugins a slot should hold; that is the agent's matter.
package attach

import "strings"

// Filter is a filter of a chain, as far as its place matters.
type Filter struct {
	Name string
	// TypeURL names the type of its configuration, with or without the part up
	// to the last slash.
	TypeURL string
}

// Places gives for each phase, in the order of chandler.Phases(), the index in
// chain before which its slot stands (BEHAVIOUR 6). The last filter of a chain
// is its terminal one, whatever its type; for an empty chain all places are 0.
func Places(chain []Filter) [4]int {
	if len(chain) == 0 {
		return [4]int{}
	}
	terminal := len(chain) - 1
	families := make([]family, terminal)
	for i := range families {
		families[i] = familyOf(chain[i].TypeURL)
	}
	behindLast := func(wanted family) int {
		for i := terminal - 1; i >= 0; i-- {
			if families[i]&wanted != 0 {
				return i + 1
			}
		}
		return 0
	}
	next := func(from int, wanted family) int {
		for i := from; i < terminal; i++ {
			if families[i]&wanted != 0 {
				return i
			}
		}
		return terminal
	}
	authn := next(0, authnFilter|authzFilter|statsFilter)
	authz := next(max(authn, behindLast(authnFilter)), authzFilter|statsFilter)
	stats := next(max(authz, behindLast(authnFilter|authzFilter)), statsFilter)
	return [4]int{authn, authz, stats, terminal}
}

// family is a set of phases whose work a filter does itself.
type family uint8

const (
	authnFilter family = 1 << iota
	authzFilter
	statsFilter
)

// familyOf tells a filter's family by its type: names of filters are free text.
// The package's own segment decides, so that every version of it counts.
func familyOf(typeURL string) family {
	name := typeName(typeURL)
	segments := strings.Split(name, ".")
	switch last := segments[len(segments)-1]; {
	case strings.HasSuffix(last, "Authn"):
		return authnFilter
	case strings.HasSuffix(last, "Authz"):
		return authzFilter
	}
	for _, segment := range segments[:len(segments)-1] {
		switch segment {
		case "jwt_authn", "oauth2", "basic_auth", "api_key_auth", "gcp_authn", "authn": // the last one is Istio's
			return authnFilter
		case "rbac", "ext_authz":
			return authzFilter
		case "grpc_stats", "stats", "stackdriver":
			return statsFilter
		}
	}
	return 0
}

// typeName is a type URL without the part up to its last slash.
func typeName(typeURL string) string {
	return typeURL[strings.LastIndexByte(typeURL, '/')+1:]
}

package rules

import (
	"crypto/subtle"
	"strings"
)

// Decision is what is to become of a request: [Pass], or a denial whose text is
// meant for the proxy's access log and never for the client.
type Decision string

const (
	// Pass lets the request go on.
	Pass Decision = ""
	// NoCredentials denies a request that brings no Basic credentials at all.
	NoCredentials Decision = "no Basic information found"
	// BadCredentials denies a request whose credentials a matching rule does not list.
	BadCredentials Decision = "invalid username and/or password"
)

// Rules is one accepted configuration. It does not change after [Parse], so any
// number of requests may be decided by it. The zero value guards nothing.
type Rules struct {
	realm    string
	byMethod map[string][]*rule // in the configuration's order
}

// Challenge is the value of the WWW-Authenticate header of a denial. The realm
// is not quoted.
func (r *Rules) Challenge() string { return "Basic realm=" + r.realm }

// Decide judges one request by its method, :authority, raw :path (the query
// included) and Authorization header, each empty when absent. Every rule that
// matches must be satisfied, the first that is not gives the answer; a request
// that no rule matches passes. All comparisons are case-sensitive.
func (r *Rules) Decide(method, authority, path, authorization string) Decision {
	host := withoutPort(authority)
	for _, rule := range r.byMethod[method] {
		if !rule.guards(host, path) {
			continue
		}
		if d := rule.admit(authorization); d != Pass {
			return d
		}
	}
	return Pass
}

// rule guards the paths that its path matcher accepts on the hosts that any of
// its host matchers accepts (no host matchers: on all hosts).
type rule struct {
	hosts       []matcher
	path        matcher
	credentials [][]byte // base64 of user:password, as it stands in the header
}

func (r *rule) guards(host, path string) bool {
	return r.onHost(host) && r.path.matches(path)
}

func (r *rule) onHost(host string) bool {
	for _, m := range r.hosts {
		if m.matches(host) {
			return true
		}
	}
	return len(r.hosts) == 0
}

// admit compares with every credential, also after one was equal, and each in
// constant time, so that the time of an answer says nothing about how much of a
// guess was right.
func (r *rule) admit(authorization string) Decision {
	given, ok := strings.CutPrefix(authorization, "Basic ")
	if !ok {
		return NoCredentials
	}
	equal := 0
	for _, c := range r.credentials {
		equal |= subtle.ConstantTimeCompare([]byte(given), c)
	}
	if equal == 0 {
		return BadCredentials
	}
	return Pass
}

// matcher compares a whole text, its beginning or its end.
type matcher struct {
	compare func(text, pattern string) bool
	pattern string
}

func (m matcher) matches(text string) bool { return m.compare(text, m.pattern) }

func equal(text, pattern string) bool { return text == pattern }

// hostMatcher reads a host pattern: a leading star matches any beginning, else a
// trailing star any end. A star elsewhere is a character like any other.
func hostMatcher(pattern string) matcher {
	if rest, ok := strings.CutPrefix(pattern, "*"); ok {
		return matcher{strings.HasSuffix, rest}
	}
	if rest, ok := strings.CutSuffix(pattern, "*"); ok {
		return matcher{strings.HasPrefix, rest}
	}
	return matcher{equal, pattern}
}

// withoutPort cuts the port off an authority. What follows the last colon is the
// port, whatever it is made of (a port that is no number must not be a way round
// a rule), unless the colon belongs to an IPv6 literal in brackets.
func withoutPort(authority string) string {
	colon := strings.LastIndexByte(authority, ':')
	if colon < 0 || colon < strings.LastIndexByte(authority, ']') {
		return authority
	}
	return authority[:colon]
}

package fetch

import (
	"net/http"
	"strings"
)

const (
	maxChallenges = 16
	maxParams     = 32
)

// challenge is one way in which a server lets itself be convinced (RFC 9110, 11.3).
type challenge struct {
	scheme string            // in lower case
	params map[string]string // by their names in lower case
}

// challengeOf chooses from an answer of 401 the way that is taken: a token, which
// keeps the password from the registry, rather than the password itself. Not ok:
// there is none that is known here.
func challengeOf(h http.Header) (c challenge, ok bool) {
	for _, line := range h.Values("WWW-Authenticate") {
		for _, found := range parseChallenges(line) {
			if found.scheme == "bearer" || (found.scheme == "basic" && !ok) {
				c, ok = found, true
			}
			if c.scheme == "bearer" {
				return c, true
			}
		}
	}
	return c, ok
}

// parseChallenges reads one WWW-Authenticate line, as far as it makes sense. Of a
// parameter that is there twice, which two readers would read in two ways, neither
// counts.
func parseChallenges(line string) []challenge {
	var all []challenge
	twice := map[string]bool{}
	for {
		line = strings.TrimLeft(line, " \t,")
		word := token(line)
		if word == "" {
			return all
		}
		line = strings.TrimLeft(line[len(word):], " \t")
		rest, isParam := strings.CutPrefix(line, "=")
		if !isParam {
			if len(all) == maxChallenges {
				return all
			}
			all = append(all, challenge{scheme: strings.ToLower(word), params: map[string]string{}})
			clear(twice)
			continue
		}
		value, after, ok := paramValue(strings.TrimLeft(rest, " \t"))
		if !ok {
			return all
		}
		line = after
		if len(all) == 0 {
			return nil // a parameter of nothing
		}
		params, name := all[len(all)-1].params, strings.ToLower(word)
		if _, had := params[name]; had {
			twice[name] = true
			delete(params, name)
		}
		if !twice[name] && len(params) < maxParams {
			params[name] = value
		}
	}
}

// paramValue reads a token or a quoted string. The equal signs that may end a
// token68 count as a value that is empty.
func paramValue(s string) (value, after string, ok bool) {
	if !strings.HasPrefix(s, `"`) {
		value = token(s)
		return value, strings.TrimLeft(s[len(value):], "="), true
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"':
			return b.String(), s[i+1:], true
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", "", false
}

// token gives the token (RFC 9110, 5.6.2), or the piece of a token68, that s begins
// with.
func token(s string) string {
	for i := range len(s) {
		c := s[i]
		alnum := c >= '0' && c <= '9' || c|0x20 >= 'a' && c|0x20 <= 'z'
		if !alnum && !strings.ContainsRune("!#$%&'*+-.^_`|~/:", rune(c)) {
			return s[:i]
		}
	}
	return s
}

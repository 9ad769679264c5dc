package chandler

import "strings"

// Origin is where a reference leads, as the rules of operators name it:
// registry/repository, or a url without its query.
func (r Reference) Origin() string {
	if r.Scheme == SchemeOCI {
		return r.Host + "/" + r.Repository
	}
	path, _, _ := strings.Cut(r.Path, "?")
	return string(r.Scheme) + "://" + r.Host + path
}

// MatchOrigin tells whether an origin is one of those that pattern stands for: * is
// any characters of one part, between slashes, and a part ** any number of parts,
// none included. What may be left out of a reference may be left out of a pattern.
func MatchOrigin(pattern, origin string) bool {
	return matchParts(strings.Split(CanonicalOrigin(pattern), "/"), strings.Split(origin, "/"))
}

// CanonicalOrigin gives a pattern without what may be left out, and docker's
// registry as references have it.
func CanonicalOrigin(pattern string) string {
	pattern = strings.TrimPrefix(pattern, "oci://")
	if rest, ok := strings.CutPrefix(pattern, "docker.io/"); ok {
		return DefaultRegistry + "/" + rest
	}
	return pattern
}

// maxDeep bounds the ** of a pattern, and with it the time to match it.
const maxDeep = 3

// WholeParts tells whether MatchOrigin takes pattern as whoever wrote it means it: no
// ** is a piece of a part, and there are at most three.
func WholeParts(pattern string) bool {
	for part := range strings.SplitSeq(pattern, "/") {
		if strings.Contains(part, "**") && part != "**" {
			return false
		}
	}
	return strings.Count(pattern, "**") <= maxDeep
}

func matchParts(pattern, name []string) bool {
	for len(pattern) > 0 && pattern[0] != "**" {
		if len(name) == 0 || !Glob(pattern[0], name[0]) {
			return false
		}
		pattern, name = pattern[1:], name[1:]
	}
	if len(pattern) == 0 {
		return len(name) == 0
	}
	for len(pattern) > 1 && pattern[1] == "**" {
		pattern = pattern[1:]
	}
	for i := range len(name) + 1 {
		if matchParts(pattern[1:], name[i:]) {
			return true
		}
	}
	return false
}

// Glob tells whether pattern stands for the whole of s: * is any characters.
func Glob(pattern, s string) bool {
	first, rest, star := strings.Cut(pattern, "*")
	if !star {
		return s == pattern
	}
	if !strings.HasPrefix(s, first) {
		return false
	}
	s = s[len(first):]
	for {
		part, after, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(s, part)
		}
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s, rest = s[i+len(part):], after
	}
}

package policy

import (
	"slices"
	"strings"

	"chandler.dev/chandler"
)

// matches tells whether one of the patterns is name's.
func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return glob(p, name) })
}

// glob matches the whole of s; * stands for any characters.
func glob(pattern, s string) bool {
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

// matchesOrigin tells whether one of the patterns is that of where a reference leads.
func matchesOrigin(patterns []string, r chandler.Reference) bool {
	name := strings.Split(origin(r), "/")
	return slices.ContainsFunc(patterns, func(p string) bool { return globParts(strings.Split(canonical(p), "/"), name) })
}

// origin is where a reference leads, as patterns are written: registry/repository, or
// a url without its query.
func origin(r chandler.Reference) string {
	if r.Scheme == chandler.SchemeOCI {
		return r.Host + "/" + r.Repository
	}
	path, _, _ := strings.Cut(r.Path, "?")
	return string(r.Scheme) + "://" + r.Host + path
}

// canonical gives a pattern without what may be left out, and docker's registry as
// references have it.
func canonical(pattern string) string {
	pattern = strings.TrimPrefix(pattern, "oci://")
	if rest, ok := strings.CutPrefix(pattern, "docker.io/"); ok {
		return chandler.DefaultRegistry + "/" + rest
	}
	return pattern
}

// globParts matches part by part; a part ** stands for any number of parts, none
// included.
func globParts(pattern, name []string) bool {
	for len(pattern) > 0 && pattern[0] != "**" {
		if len(name) == 0 || !glob(pattern[0], name[0]) {
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
		if globParts(pattern[1:], name[i:]) {
			return true
		}
	}
	return false
}

// checkOrigin tells what is wrong with a pattern of where modules come from. One that
// does not hold on to a host would allow whoever registers a name that fits.
func checkOrigin(pattern string) string {
	rest := canonical(pattern)
	for _, scheme := range []string{"https://", "http://"} {
		rest = strings.TrimPrefix(rest, scheme)
	}
	host, path, ok := strings.Cut(rest, "/")
	if strings.Contains(rest, "://") {
		return "write registry/repository, https://host/path or http://host/path"
	}
	if !ok || path == "" || host == "" {
		return "write a registry and a repository, such as registry.example/team/**"
	}
	if domain, any := strings.CutPrefix(host, "*."); any && strings.Contains(domain, ".") {
		host = domain
	}
	if strings.Contains(host, "*") {
		return "write the registry out; only its first label may be a *, before a domain of two labels or more"
	}
	if strings.ToLower(host) != host {
		return "write the registry in lower case"
	}
	if strings.Count(path, "**") > maxDeep {
		return "write fewer **"
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || strings.Contains(part, "**") && part != "**" {
			return "** stands for whole parts, between slashes, and no part is empty"
		}
	}
	return ""
}

// maxDeep bounds the ** of a pattern, and with it the time to match it.
const maxDeep = 3

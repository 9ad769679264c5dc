package policy

import (
	"slices"
	"strings"

	"chandler.dev/chandler"
)

// matches tells whether one of the patterns is name's.
func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return chandler.Glob(p, name) })
}

// matchesOrigin tells whether one of the patterns is that of where a reference leads.
func matchesOrigin(patterns []string, r chandler.Reference) bool {
	origin := r.Origin()
	return slices.ContainsFunc(patterns, func(p string) bool { return chandler.MatchOrigin(p, origin) })
}

// checkOrigin tells what is wrong with a pattern of where modules come from. One that
// does not hold on to a host would allow whoever registers a name that fits.
func checkOrigin(pattern string) string {
	rest := chandler.CanonicalOrigin(pattern)
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
	if !chandler.WholeParts(path) {
		return "** stands for whole parts, between slashes; write three at most"
	}
	if slices.Contains(strings.Split(path, "/"), "") {
		return "no part between slashes is empty"
	}
	return ""
}

package chandler_test

import (
	"testing"

	"chandler.dev/chandler"
)

func TestMatchOrigin(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, s string
		want       bool
	}{
		{"a", "a", true}, {"a", "ab", false}, {"*", "", true}, {"*", "ab", true}, {"a*", "ab", true}, {"a*", "ba", false},
		{"*b", "ab", true}, {"*b", "ba", false}, {"a*b*c", "aXbYc", true}, {"a*b*c", "acb", false}, {"a*a", "a", false}, {"**", "x", true},
	} {
		if got := chandler.Glob(c.pattern, c.s); got != c.want {
			t.Errorf("%s %s: %v", c.pattern, c.s, got)
		}
	}
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"h/**", "h/a", true}, {"h/**", "h/a/b", true}, {"h/*", "h/a/b", false}, {"h/**/x", "h/x", true}, {"h/**/x", "h/a/b/x", true},
		{"h/**/x", "h/a/b/y", false}, {"h/a", "h/a/b", false}, {"h/**/**/x", "h/a/x", true}, {"h/a-*", "h/a-b", true},
		{"oci://h/a", "h/a", true}, {"docker.io/library/*", chandler.DefaultRegistry + "/library/a", true}, {"h/\uFFFD", "h/\x8e", false},
	} {
		if got := chandler.MatchOrigin(c.pattern, c.name); got != c.want {
			t.Errorf("%s %s: %v", c.pattern, c.name, got)
		}
	}
}

package policy

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/proxywasm"
)

// Bytes is a size as people write it: "2.5MiB", or a number of bytes.
type Bytes int64

// UnmarshalText reads a size. The error is a *chandler.Problem.
func (b *Bytes) UnmarshalText(text []byte) error {
	for _, u := range []struct {
		name string
		n    float64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"", 1}} {
		number, ok := strings.CutSuffix(string(text), u.name)
		n, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
		if ok && err == nil && n > 0 && n*u.n < math.MaxInt64 {
			*b = Bytes(n * u.n)
			return nil
		}
	}
	return chandler.Problemf(chandler.CodeConfValue, "", "write for example 5MiB, or a number of bytes", "%s is not a size", chandler.Quote(string(text)))
}

// complaints gathers what is wrong with a rule.
type complaints []chandler.Problem

func (c *complaints) add(field, hint, format string, args ...any) {
	*c = append(*c, *chandler.Problemf(chandler.CodeConfValue, field, hint, format, args...))
}

// named checks a list that has to name something.
func (c *complaints) named(field string, names []string, required bool) {
	if len(names) == 0 && (required || names != nil) {
		c.add(field, "name one at least", "the list is empty")
	}
	for i, n := range names {
		if n == "" {
			c.add(fmt.Sprintf("%s[%d]", field, i), "write a name", "it is empty")
		}
	}
}

func (c *complaints) phases(field string, phases []PhaseName) {
	known := []PhaseName{"AUTHN", "AUTHZ", "STATS", "UNSPECIFIED"}
	for i, p := range phases {
		if !slices.Contains(known, p) {
			c.add(fmt.Sprintf("%s[%d]", field, i), "write one of AUTHN, AUTHZ, STATS, UNSPECIFIED", "phase %s is unknown", chandler.Quote(string(p)))
		}
	}
}

func (c *complaints) origins(patterns []string) {
	for i, p := range patterns {
		if hint := checkOrigin(p); hint != "" {
			c.add(fmt.Sprintf("repositories[%d]", i), hint, "%s is no pattern of a repository", chandler.Quote(p))
		}
	}
}

// Check tells what is wrong beyond the form.
func (s *Scope) Check() []chandler.Problem {
	var c complaints
	c.named("namespaces", s.Namespaces, false)
	return c
}

// Check tells what is wrong beyond the form.
func (p *Policy) Check() []chandler.Problem {
	var c complaints
	if !slices.Contains([]Reaction{"", Keep, Detach}, p.OnViolation) {
		c.add("onViolation", "write keep or detach", "%s is unknown", chandler.Quote(string(p.OnViolation)))
	}
	return c
}

// Check tells what is wrong beyond the form.
func (o *Origin) Check() []chandler.Problem {
	c := complaints(o.Scope.Check())
	c.named("repositories", o.Repositories, true)
	c.origins(o.Repositories)
	if !slices.Contains([]Requirement{RequireNothing, RequireDigest, RequireSignature, RequireEither}, o.Require) {
		c.add("require", "write digest, signature or digestOrSignature", "%s is unknown", chandler.Quote(string(o.Require)))
	}
	return c
}

// Check tells what is wrong beyond the form.
func (f *Folder) Check() []chandler.Problem {
	c := complaints(f.Scope.Check())
	c.named("roots", f.Roots, true)
	for i, r := range f.Roots {
		if r != "" && (!path.IsAbs(r) || path.Clean(r) != r) {
			c.add(fmt.Sprintf("roots[%d]", i), "write an absolute path, without .. and without a slash at its end", "%s is no folder", chandler.Quote(r))
		}
	}
	return c
}

// Check tells what is wrong beyond the form.
func (e *Environment) Check() []chandler.Problem {
	c := complaints(e.Scope.Check())
	c.named("names", e.Names, true)
	return c
}

// Check tells what is wrong beyond the form.
func (r *PhaseRule) Check() []chandler.Problem {
	c := complaints(r.Scope.Check())
	c.phases("allow", r.Allow)
	return c
}

// Check tells what is wrong beyond the form.
func (r *RootRule) Check() []chandler.Problem {
	var c complaints
	c.named("plugins", r.Plugins, true)
	return c
}

// Check tells what is wrong beyond the form.
func (l *Limit) Check() []chandler.Problem {
	c := complaints(l.Scope.Check())
	c.named("repositories", l.Repositories, false)
	c.origins(l.Repositories)
	if l.LoadTime < 0 {
		c.add("loadTime", "write a duration such as 2s", "%s is in the past", l.LoadTime)
	}
	if l.LoadTime == 0 && l.ModuleSize == 0 {
		c.add("", "write moduleSize or loadTime", "the limit limits nothing")
	}
	return c
}

// Check tells what is wrong beyond the form.
func (r *CapabilityRule) Check() []chandler.Problem {
	c := complaints(r.Scope.Check())
	c.named("plugins", r.Plugins, false)
	known := proxywasm.HostCalls()
	for _, list := range []struct {
		field string
		names []string
	}{{"allow", r.Allow}, {"deny", r.Deny}} {
		for i, pattern := range list.names {
			if !slices.ContainsFunc(known, func(name string) bool { return capable([]string{pattern}, name) }) {
				c.add(fmt.Sprintf("%s[%d]", list.field, i), "write the name of a function such as proxy_http_call, a pattern such as proxy_grpc_*, or wasi",
					"Envoy %s has no function %s", proxywasm.EnvoyVersion, chandler.Quote(pattern))
			}
		}
	}
	return c
}

// Check tells what is wrong beyond the form.
func (r *DenyRule) Check() []chandler.Problem {
	c := complaints(r.Scope.Check())
	if r.Phases != nil && len(r.Phases) == 0 {
		c.add("phases", "name one at least, or leave it out for all", "the list is empty")
	}
	c.phases("phases", r.Phases)
	return c
}

package chandler

import (
	"net/netip"
	"strconv"
	"strings"
)

const (
	maxRepository = 255
	maxTag        = 128
	maxHostName   = 253
)

// parseImage reads host/repository:tag@digest.
func parseImage(s string) (Reference, *Problem) {
	if i := strings.IndexAny(s, "?#"); i >= 0 {
		part := "query"
		if s[i] == '#' {
			part = "fragment"
		}
		return Reference{}, Problemf(CodeURLPart, "", "remove the "+s[i:i+1]+" and what follows it", "an oci url has no %s", part)
	}
	ref := Reference{Scheme: SchemeOCI, Host: DefaultRegistry}
	rest := s
	if first, after, ok := strings.Cut(s, "/"); ok {
		if strings.Contains(first, "@") {
			return Reference{}, userinfoProblem()
		}
		if first == "" || first == "localhost" || strings.ContainsAny(first, ".:[") {
			host, p := parseHost(first)
			if p != nil {
				return Reference{}, p
			}
			if host == "docker.io" {
				host = DefaultRegistry
			}
			ref.Host, rest = host, after
		}
	}
	name, digest, pinned := strings.Cut(rest, "@")
	if pinned {
		if !strings.Contains(digest, ":") && !strings.Contains(s, "/") {
			return Reference{}, userinfoProblem()
		}
		d, p := parseImageDigest(digest)
		if p != nil {
			return Reference{}, p
		}
		ref.Digest = d
	}
	name, tag, tagged := strings.Cut(name, ":")
	if tagged {
		if p := checkTag(tag); p != nil {
			return Reference{}, p
		}
		ref.Tag = tag
	}
	if ref.Host == DefaultRegistry && name != "" && !strings.Contains(name, "/") {
		name = "library/" + name
	}
	if p := checkRepository(name); p != nil {
		return Reference{}, p
	}
	ref.Repository = name
	return ref, nil
}

func parseImageDigest(s string) (ArtifactDigest, *Problem) {
	if d, ok := ParseDigest[ArtifactDigest](s); ok {
		return d, nil
	}
	const hint = "a digest is sha256: and 64 lower-case hex digits"
	switch algorithm, hex, ok := strings.Cut(s, ":"); {
	case !ok:
		return "", Problemf(CodeDigestSyntax, "", hint, "digest %s names no algorithm", Quote(s))
	case algorithm+":" != digestPrefix:
		return "", Problemf(CodeDigestSyntax, "", hint, "digest algorithm %s is not allowed", Quote(algorithm))
	case len(hex) != 64:
		return "", Problemf(CodeDigestSyntax, "", hint, "digest %s has %d hex digits, not 64", Quote(s), len(hex))
	}
	return "", Problemf(CodeDigestSyntax, "", hint, "digest %s has other than lower-case hex digits", Quote(s))
}

func checkTag(tag string) *Problem {
	const hint = "a tag has letters, digits, dots, dashes and underscores, and begins with none of . and -"
	switch {
	case tag == "":
		return Problemf(CodeRefSyntax, "", "write a tag after the colon, or leave the colon out", "tag is empty")
	case len(tag) > maxTag:
		return Problemf(CodeRefSyntax, "", "use a shorter tag", "tag %s has %d characters, limit %d", Quote(tag), len(tag), maxTag)
	}
	for i, r := range tag {
		if !isLower(r) && !isDigit(r) && (r < 'A' || r > 'Z') && r != '_' && (i == 0 || (r != '.' && r != '-')) {
			return Problemf(CodeRefSyntax, "", hint, "tag %s has a bad character %q at %d", Quote(tag), r, i)
		}
	}
	return nil
}

// checkRepository holds name against the distribution specification: parts of
// lower-case letters and digits, joined inside by . - _ and __.
func checkRepository(name string) *Problem {
	const hint = "write registry/repository:tag; a repository has lower-case letters, digits and, between them, . - _ and /"
	switch {
	case name == "":
		return Problemf(CodeRefSyntax, "", hint, "repository is missing")
	case len(name) > maxRepository:
		return Problemf(CodeRefSyntax, "", "use a shorter name", "repository %s has %d characters, limit %d", Quote(name), len(name), maxRepository)
	}
	inside := false // the last character was a letter or a digit
	for i, r := range name {
		switch {
		case isLower(r), isDigit(r):
			inside = true
			continue
		case r >= 'A' && r <= 'Z':
			return Problemf(CodeRefSyntax, "", "write it in lower case", "repository %s must be lower case; bad character %q at %d", Quote(name), r, i)
		case r == '/' && (i == 0 || i == len(name)-1 || name[i-1] == '/'):
			return Problemf(CodeRefSyntax, "", hint, "repository %s has an empty part at %d", Quote(name), i)
		case inside && (r == '.' || r == '_' || r == '-' || r == '/'):
		case r == '-' && strings.HasSuffix(name[:i], "-"):
		case r == '_' && strings.HasSuffix(name[:i], "_") && !strings.HasSuffix(name[:i], "__"):
		default:
			return Problemf(CodeRefSyntax, "", hint, "repository %s has a bad character %q at %d", Quote(name), r, i)
		}
		if i == len(name)-1 || (r != '/' && name[i+1] == '/') {
			return Problemf(CodeRefSyntax, "", hint, "repository %s has a bad character %q at %d", Quote(name), r, i)
		}
		inside = false
	}
	return nil
}

func isLower(r rune) bool { return r >= 'a' && r <= 'z' }
func isDigit(r rune) bool { return r >= '0' && r <= '9' }

// parseHost checks host or host:port and gives it in its canonical form.
func parseHost(s string) (string, *Problem) {
	bad := func(format string, args ...any) (string, *Problem) {
		return "", Problemf(CodeURLHost, "", "write a host name or an address, and a port from 1 to 65535 if there is one", format, args...)
	}
	host, port, hasPort := s, "", false
	if v6, ok := strings.CutPrefix(s, "["); ok {
		inside, after, ok := strings.Cut(v6, "]")
		if !ok || (after != "" && after[0] != ':') {
			return bad("host %s is not a valid IPv6 address in brackets", Quote(s))
		}
		addr, err := netip.ParseAddr(inside)
		if err != nil || !addr.Is6() {
			return bad("host %s is not a valid IPv6 address in brackets", Quote(s))
		}
		if addr.Zone() != "" {
			return bad("host %s has a zone", Quote(s))
		}
		if p := checkAddress(s, addr); p != nil {
			return "", p
		}
		host = "[" + addr.String() + "]"
		port, hasPort = strings.TrimPrefix(after, ":"), after != ""
	} else {
		host, port, hasPort = strings.Cut(s, ":")
		host = strings.ToLower(host)
		if p := checkHostName(host); p != nil {
			return "", p
		}
	}
	if !hasPort {
		return host, nil
	}
	n, err := strconv.ParseUint(port, 10, 64)
	switch {
	case err != nil && (port == "" || strings.Trim(port, "0123456789") != ""):
		return bad("port %s is not a number", Quote(port))
	case err != nil || n < 1 || n > 65535:
		return bad("port %s is out of range 1-65535", Quote(port))
	}
	return host + ":" + strconv.FormatUint(n, 10), nil
}

func checkHostName(host string) *Problem {
	bad := func(why string) *Problem {
		return Problemf(CodeURLHost, "", "write a host name or an address", "host %s %s", Quote(host), why)
	}
	switch {
	case host == "":
		return Problemf(CodeURLHost, "", "write a host name or an address", "host is missing")
	case len(host) > maxHostName:
		return bad("is longer than 253 characters")
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return bad("has a part that is empty, longer than 63 characters or begins or ends with a dash")
		}
		for _, r := range label {
			if !isLower(r) && !isDigit(r) && r != '-' && r != '_' {
				return bad("has a character that is not a letter, digit, dash or dot")
			}
		}
	}
	addr, numeric := NumericAddress(host)
	if !numeric {
		return nil
	}
	if !addr.IsValid() {
		return bad("is not a valid IPv4 address")
	}
	if p := checkAddress(host, addr); p != nil {
		return p
	}
	if addr.String() != host {
		return Problemf(CodeURLHost, "", "write "+addr.String(), "host %s is an address in an unusual form", Quote(host))
	}
	return nil
}

func checkAddress(written string, addr netip.Addr) *Problem {
	if why := DeniedAddress(addr); why != "" {
		return Problemf(CodeEgressDenied, "", "nothing is fetched from there", "host %s is %s (%s)", Quote(written), addr.Unmap(), why)
	}
	return nil
}

// NumericAddress reads an IPv4 address the way the oldest resolvers do: one to
// four numbers, decimal, octal with 0 or hexadecimal with 0x, the last filling
// what is left. So no address can be hidden behind another spelling. A host whose
// last part is a number is always an address, if perhaps not a valid one.
func NumericAddress(host string) (addr netip.Addr, numeric bool) {
	parts := strings.Split(host, ".")
	if _, ok := number(parts[len(parts)-1]); !ok {
		return netip.Addr{}, false
	}
	if len(parts) > 4 {
		return netip.Addr{}, true
	}
	var value uint64
	for i, part := range parts {
		n, ok := number(part)
		if !ok {
			return netip.Addr{}, true
		}
		bits := 8
		if i == len(parts)-1 {
			bits = 8 * (5 - len(parts))
		}
		if n >= 1<<bits {
			return netip.Addr{}, true
		}
		value = value<<bits | n
	}
	return netip.AddrFrom4([4]byte{byte(value >> 24), byte(value >> 16), byte(value >> 8), byte(value)}), true
}

// number reads one part of a numeric address. A number too large for an address
// is one all the same.
func number(s string) (uint64, bool) {
	base, digits := 10, s
	switch {
	case strings.HasPrefix(s, "0x"):
		base, digits = 16, s[2:]
		if digits == "" {
			return 0, true
		}
	case len(s) > 1 && s[0] == '0':
		base, digits = 8, s[1:]
	}
	n, err := strconv.ParseUint(digits, base, 64)
	if err != nil {
		return 1 << 62, digits != "" && strings.Trim(digits, "0123456789") == ""
	}
	return n, true
}

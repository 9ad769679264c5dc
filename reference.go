package chandler

import (
	"net/netip"
	"net/url"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Scheme is how a module is fetched.
type Scheme string

// The schemes of a plugin's URL.
const (
	SchemeOCI   Scheme = "oci"
	SchemeHTTP  Scheme = "http"
	SchemeHTTPS Scheme = "https"
	SchemeFile  Scheme = "file"
)

// MaxURL is the longest URL of a plugin, in bytes.
const MaxURL = 2048

// DefaultRegistry is the registry of an image that is written without one.
const DefaultRegistry = "index.docker.io"

// Reference is a plugin's URL, parsed.
type Reference struct {
	Scheme Scheme
	// Host is the registry or server in lower case, with its port if one was given.
	Host string
	// Repository and Tag are set for oci; Tag is empty when none was written.
	Repository string
	Tag        string
	// Digest is set for oci when the URL pins one; it wins over Tag.
	Digest ArtifactDigest
	// Path is the absolute path of a file URL; for http and https it is the path
	// with its query.
	Path string
}

// ParseReference reads a plugin's URL. Without a scheme it is an image
// reference, with the defaults that docker gives: a first part without dot, colon
// and other than "localhost" belongs to the repository, and a repository of one
// part at the default registry is in "library/".
//
// The Problem has no Field, and never shows user information or the values of a
// query. Its code is URLSyntax, URLScheme, URLPart, URLHost, EgressDenied,
// RefSyntax, DigestSyntax or FileDenied.
func ParseReference(raw string) (Reference, *Problem) {
	if p := checkURLText(raw); p != nil {
		return Reference{}, p
	}
	scheme, rest, p := splitScheme(raw)
	if p != nil {
		return Reference{}, p
	}
	if scheme == SchemeFile {
		return parseFile(rest)
	}
	if i := strings.IndexByte(raw, ' '); i >= 0 {
		return Reference{}, Problemf(CodeURLSyntax, "", "write a space of a path as %20", "url contains a space at %d", i)
	}
	if scheme == SchemeOCI {
		return parseImage(rest)
	}
	return parseHTTP(scheme, rest)
}

func checkURLText(raw string) *Problem {
	const hint = "write a url such as oci://registry.example/plugin:v1 or https://host/plugin.wasm"
	switch {
	case raw == "":
		return Problemf(CodeURLSyntax, "", hint, "url is required")
	case len(raw) > MaxURL:
		return Problemf(CodeURLSyntax, "", "use a shorter url", "url has %d bytes, limit %d", len(raw), MaxURL)
	case !utf8.ValidString(raw):
		return Problemf(CodeURLSyntax, "", hint, "url is not valid UTF-8")
	}
	if i := strings.IndexFunc(raw, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
		return Problemf(CodeURLSyntax, "", "remove the control character", "url contains byte 0x%02x at %d", raw[i], i)
	}
	return nil
}

// splitScheme cuts the scheme off; without one it is oci.
func splitScheme(raw string) (Scheme, string, *Problem) {
	name, rest, ok := strings.Cut(raw, ":")
	if !ok || !isScheme(name) {
		return SchemeOCI, raw, nil
	}
	scheme := Scheme(strings.ToLower(name))
	known := scheme == SchemeOCI || scheme == SchemeHTTP || scheme == SchemeHTTPS || scheme == SchemeFile
	if after, ok := strings.CutPrefix(rest, "//"); ok {
		if !known {
			return "", "", Problemf(CodeURLScheme, "", "use oci, https, http or file", "scheme %s is not allowed", Quote(name))
		}
		return scheme, after, nil
	}
	if digits := len(rest) - len(strings.TrimLeft(rest, "0123456789")); digits > 0 && (digits == len(rest) || rest[digits] == '/') {
		return SchemeOCI, raw, nil // a host with a port, or an image with a numeric tag
	}
	switch {
	case known:
		return "", "", Problemf(CodeURLSyntax, "", "write "+string(scheme)+"://", "%s is not followed by //", Quote(name+":"))
	case scheme == "data" || scheme == "javascript" || scheme == "unix" || scheme == "ftp" || scheme == "mailto" || scheme == "blob":
		return "", "", Problemf(CodeURLScheme, "", "use oci, https, http or file; an image of that name is written oci://"+DefaultRegistry+"/library/...",
			"scheme %s is not allowed", Quote(name))
	}
	return SchemeOCI, raw, nil
}

func isScheme(s string) bool {
	for i := range len(s) {
		c := s[i] | 0x20
		if (c < 'a' || c > 'z') && (i == 0 || !strings.ContainsRune("0123456789+-.", rune(s[i]))) {
			return false
		}
	}
	return s != ""
}

func parseFile(name string) (Reference, *Problem) {
	bad := func(format string, args ...any) (Reference, *Problem) {
		return Reference{}, Problemf(CodeFileDenied, "", "write an absolute path, such as file:///opt/plugins/x.wasm", format, args...)
	}
	switch {
	case !strings.HasPrefix(name, "/"):
		return bad("file path %s is relative", Quote(name))
	case strings.ContainsAny(name, "?#"):
		return Reference{}, Problemf(CodeURLPart, "", "remove what follows the path", "a file url has no query and no fragment")
	case strings.HasSuffix(name, "/"):
		return bad("file path %s names a directory", Quote(name))
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." || part == "." {
			return bad("file path %s contains %q", Quote(name), part)
		}
	}
	return Reference{Scheme: SchemeFile, Path: path.Clean(name)}, nil
}

func parseHTTP(scheme Scheme, rest string) (Reference, *Problem) {
	authority := rest
	if i := strings.IndexAny(rest, "/?#"); i >= 0 {
		authority = rest[:i]
	}
	if strings.Contains(authority, "@") {
		return Reference{}, userinfoProblem()
	}
	host, p := parseHost(authority)
	if p != nil {
		return Reference{}, p
	}
	if strings.Contains(rest, "#") {
		return Reference{}, Problemf(CodeURLPart, "", "remove the # and what follows it", "url has a fragment")
	}
	u, err := url.Parse("http://h" + rest[len(authority):])
	if err != nil {
		return Reference{}, Problemf(CodeURLSyntax, "", "write every % of a path as %25, or as % and two hex digits",
			"path of the url cannot be read")
	}
	target := u.EscapedPath()
	if target == "" {
		target = "/"
	}
	if u.RawQuery != "" {
		target += "?" + escapeQuery(u.RawQuery)
	}
	return Reference{Scheme: scheme, Host: host, Path: target}, nil
}

// escapeQuery escapes what may not stand in a request line and leaves all else.
func escapeQuery(q string) string {
	var b strings.Builder
	for i := range len(q) {
		if c := q[i]; c <= ' ' || c >= 0x7f || c == '"' || c == '<' || c == '>' {
			const hex = "0123456789ABCDEF"
			b.WriteString(string([]byte{'%', hex[c>>4], hex[c&15]}))
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func userinfoProblem() *Problem {
	return Problemf(CodeURLPart, "", "remove what stands before the @ and use imagePullSecret", "credentials in a url are not allowed")
}

// String gives the canonical URL, for instance
// "oci://registry.example/plugins/a:v1@sha256:...". It parses to the same
// reference. It may hold secrets in a query: see Redacted.
func (r Reference) String() string {
	var b strings.Builder
	b.WriteString(string(r.Scheme))
	b.WriteString("://")
	b.WriteString(r.Host)
	if r.Scheme != SchemeOCI {
		b.WriteString(r.Path)
		return b.String()
	}
	b.WriteByte('/')
	b.WriteString(r.Repository)
	if r.Tag != "" {
		b.WriteByte(':')
		b.WriteString(r.Tag)
	}
	if r.Digest != "" {
		b.WriteByte('@')
		b.WriteString(string(r.Digest))
	}
	return b.String()
}

// Redacted is String with the values of a query hidden, for logs and messages.
func (r Reference) Redacted() string {
	before, query, ok := strings.Cut(r.Path, "?")
	if !ok || r.Scheme == SchemeFile {
		return r.String()
	}
	var params []string
	for param := range strings.SplitSeq(query, "&") {
		if name, _, ok := strings.Cut(param, "="); ok {
			params = append(params, name+"=***")
		} else {
			params = append(params, "***")
		}
	}
	r.Path = before + "?" + strings.Join(params, "&")
	return r.String()
}

// CheckPin refuses a sha256 field (bare hex, or empty) that names another digest
// than the URL does, as RefConflict.
func (r Reference) CheckPin(sha256 string) *Problem {
	if sha256 == "" || r.Digest == "" || string(r.Digest) == digestPrefix+sha256 {
		return nil
	}
	return Problemf(CodeRefConflict, "", "keep one of the two", "url pins %s, sha256 says %s", r.Digest, Quote(sha256))
}

// DeniedAddress tells why nothing may ever be fetched from addr: link-local
// addresses and the few others where clouds serve the credentials of their
// machines, those that are no host's, and those in also. An IPv4 address inside of
// an IPv6 address (mapped, or of a translator) is judged too. Empty: it is not
// refused here.
func DeniedAddress(addr netip.Addr, also ...netip.Prefix) string {
	addr = addr.Unmap().WithZone("")
	if why := denied(addr, also); why != "" {
		return why
	}
	if inner, ok := embedded(addr); ok {
		return denied(inner, also)
	}
	return ""
}

func denied(addr netip.Addr, also []netip.Prefix) string {
	switch addr.String() {
	case "169.254.169.254", "fd00:ec2::254", // most clouds
		"fd20:ce::254",    // Google
		"100.100.100.200", // Alibaba
		"168.63.129.16",   // Azure
		"192.0.0.192":     // Oracle
		return "metadata"
	case "255.255.255.255":
		return "broadcast"
	}
	switch {
	case !addr.IsValid(), addr.IsUnspecified(), addr.Is4() && addr.As4()[0] == 0:
		return "no address of a host"
	case addr.IsLinkLocalUnicast():
		return "link-local"
	case addr.IsMulticast():
		return "multicast"
	}
	for _, network := range also {
		if network.Contains(addr) {
			return "of " + network.String() + ", which is denied"
		}
	}
	return ""
}

// embedded gives the IPv4 address that packets to an IPv6 address end up at: of
// NAT64 (RFC 6052), 6to4 (RFC 3056), and the old compatible form.
func embedded(addr netip.Addr) (netip.Addr, bool) {
	if !addr.Is6() || addr == netip.IPv6Loopback() {
		return netip.Addr{}, false
	}
	b := addr.As16()
	switch {
	case netip.MustParsePrefix("64:ff9b::/96").Contains(addr), netip.MustParsePrefix("::/96").Contains(addr):
		return netip.AddrFrom4([4]byte(b[12:])), true
	case netip.MustParsePrefix("2002::/16").Contains(addr):
		return netip.AddrFrom4([4]byte(b[2:])), true
	}
	return netip.Addr{}, false
}

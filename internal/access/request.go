package access

import (
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// Addressed tells whether the Host of a request means this server: this machine,
// the address that the connection was made to, or one of names. A page in a browser
// whose own name was turned to this machine sends that name. Ports count for
// nothing, as tunnels have their own.
func Addressed(host string, local netip.Addr, names []string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(strings.Trim(name, "[]"), "."))
	if addr, err := netip.ParseAddr(name); err == nil {
		addr = addr.Unmap()
		return addr.IsLoopback() || addr == local.Unmap() || slices.Contains(names, name)
	}
	return name == "localhost" || slices.ContainsFunc(names, func(n string) bool { return strings.EqualFold(n, name) })
}

// SameOrigin tells whether a request is no page's, or one of this very server's, by
// its headers Origin and Sec-Fetch-Site, which no page can forge.
func SameOrigin(host, origin, site string) bool {
	if site != "" && site != "same-origin" && site != "none" {
		return false
	}
	if origin == "" {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && u.Host != "" && strings.EqualFold(u.Host, host)
}

package fetch

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"syscall"

	"chandler.dev/chandler"
)

// egress is the rule on where requests may go: nowhere that
// chandler.DeniedAddress names, to none of the networks in deny, and not to what
// this program listens on itself.
//
// All that this package sends goes through one dialer, and the rule is applied to
// the very address that is about to be connected to, after the name was looked up.
// So it holds for registries, mirrors, token realms, redirects and HTTP servers
// alike, and a name that gives another address the second time it is looked up
// hides nothing.
//
// Behind a proxy it is the proxy that looks names up and connects: then the proxy's
// own address is held against the rule, and hosts that are written as addresses, in
// whatever form; what a name means there is for the proxy to judge.
type egress struct {
	deny []netip.Prefix
	own  func() []netip.AddrPort
}

func (cfg Config) egress() egress { return egress{cfg.Deny, cfg.Own} }

// judge refuses an address. what says how it came to be asked for.
func (e egress) judge(at netip.AddrPort, what string) error {
	addr := at.Addr()
	why := chandler.DeniedAddress(addr, e.deny...)
	if why == "" && e.isOwn(addr.Unmap().WithZone(""), at.Port()) {
		why = fmt.Sprintf("of this machine, whose port %d is chandler's own", at.Port())
	}
	if why != "" {
		return refuse(chandler.CodeEgressDenied, "nothing is fetched from there", "the host %s %s (%s)", what, addr, why)
	}
	return nil
}

func (e egress) isOwn(addr netip.Addr, port uint16) bool {
	if e.own == nil {
		return false
	}
	for _, own := range e.own() {
		at := own.Addr().Unmap().WithZone("")
		if own.Port() == port && (at == addr || at.IsUnspecified() && ofThisMachine(addr)) {
			return true
		}
	}
	return false
}

// ofThisMachine tells whether addr is one of this machine's, as far as it knows.
func ofThisMachine(addr netip.Addr) bool {
	if addr.IsLoopback() {
		return true
	}
	all, _ := net.InterfaceAddrs() // none are known then
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			if own, ok := netip.AddrFromSlice(n.IP); ok && own.Unmap() == addr {
				return true
			}
		}
	}
	return false
}

// literal judges a host that is written as an address.
func (e egress) literal(u *url.URL) error {
	addr, ok := hostAddress(u.Hostname())
	switch {
	case !ok:
		return nil // a name, judged when its address is known
	case !addr.IsValid():
		return refuse(chandler.CodeEgressDenied, "write a host name or an address", "the host %s is no valid address", chandler.Quote(u.Hostname()))
	}
	_, port, err := net.SplitHostPort(authority(u.Scheme, u.Host))
	n, atoi := strconv.ParseUint(port, 10, 16)
	if err != nil || atoi != nil {
		return refuse(chandler.CodeEgressDenied, "use a port from 1 to 65535", "the host %s has no valid port", chandler.Quote(u.Host))
	}
	return e.judge(netip.AddrPortFrom(addr, uint16(n)), "is")
}

// control is the dialer's last word before it connects. What is no address is
// refused: there is no other way out.
func (e egress) control(_, address string, _ syscall.RawConn) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return refuse(chandler.CodeEgressDenied, "use a registry or server that is reached by TCP", "%s is no address", chandler.Quote(address))
	}
	return e.judge(addr, "resolves to")
}

// dial connects. Each call looks names up by itself: a resolver shares one lookup
// among those who ask at a time, and those who come later would wait for a server
// that says nothing, although it has come back.
func (cfg Config) dial(ctx context.Context, network, address string) (net.Conn, error) {
	lookup := &net.Resolver{}
	if r := cfg.Resolver; r != nil {
		lookup = &net.Resolver{PreferGo: r.PreferGo, StrictErrors: r.StrictErrors, Dial: r.Dial}
	}
	dialer := net.Dialer{Timeout: cfg.IdleTimeout, Resolver: lookup, Control: cfg.egress().control}
	return dialer.DialContext(ctx, network, address)
}

package fetch

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"time"

	"chandler.dev/chandler"
)

// egress is the rule on where requests may go: nowhere that
// chandler.DeniedAddress names, and to none of these networks.
//
// All that this package sends goes through one dialer, and the rule is applied to
// the very address that is about to be connected to, after the name was looked up.
// So it holds for registries, token realms, redirects and HTTP servers alike, and a
// name that gives another address the second time it is looked up hides nothing.
//
// Behind a proxy it is the proxy that looks names up and connects: then the proxy's
// own address is held against the rule, and hosts that are written as addresses;
// what a name means there is for the proxy to judge.
type egress []netip.Prefix

// judge refuses an address. what says how it came to be asked for.
func (e egress) judge(addr netip.Addr, what string) error {
	if why := chandler.DeniedAddress(addr, e...); why != "" {
		return refuse(chandler.CodeEgressDenied, "nothing is fetched from there", "the host %s %s (%s)", what, addr, why)
	}
	return nil
}

// literal judges a host that is written as an address.
func (e egress) literal(host string) error {
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return nil // a name, judged when its address is known
	}
	return e.judge(addr, "is")
}

// control is the dialer's last word before it connects. What is no address is
// refused: there is no other way out.
func (e egress) control(_, address string, _ syscall.RawConn) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil {
		return refuse(chandler.CodeEgressDenied, "use a registry or server that is reached by TCP", "%s is no address", chandler.Quote(address))
	}
	return e.judge(addr.Addr(), "resolves to")
}

// dial connects. Each call looks names up by itself: a resolver shares one lookup
// among those who ask at a time, and those who come later would wait for a server
// that says nothing, although it has come back.
func (cfg Config) dial(ctx context.Context, network, address string) (net.Conn, error) {
	lookup := &net.Resolver{}
	if r := cfg.Resolver; r != nil {
		lookup = &net.Resolver{PreferGo: r.PreferGo, StrictErrors: r.StrictErrors, Dial: r.Dial}
	}
	dialer := net.Dialer{Timeout: cfg.IdleTimeout, Resolver: lookup, Control: egress(cfg.Deny).control}
	return dialer.DialContext(ctx, network, address)
}

// newTransport is the default way to the network. Looking a name up and connecting
// take IdleTimeout together at most.
func newTransport(cfg Config) *http.Transport {
	return &http.Transport{
		Proxy:                  cfg.Proxy,
		DialContext:            cfg.dial,
		TLSClientConfig:        cfg.TLS.Clone(),
		TLSHandshakeTimeout:    cfg.IdleTimeout,
		ForceAttemptHTTP2:      true,
		DisableCompression:     true,
		MaxResponseHeaderBytes: maxHeaderBytes,
		MaxIdleConns:           32,
		MaxIdleConnsPerHost:    4,
		IdleConnTimeout:        60 * time.Second,
		ExpectContinueTimeout:  time.Second,
	}
}

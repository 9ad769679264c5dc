package main

import (
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"

	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/fetch/hosts"
)

// fetchFlags are about where modules come from.
type fetchFlags struct {
	hosts    string
	insecure []string
	realms   []string
	own      *listeners // what this program listens on, as it comes to know
	strict   func() bool
}

func (f *fetchFlags) add(flags *pflag.FlagSet) {
	f.own = &listeners{}
	flags.StringVar(&f.hosts, "hosts-dir", "", "folder of HOST/hosts.toml files in containerd's form: mirrors, authorities and client certificates of registries; read again when they change")
	flags.StringArrayVar(&f.insecure, "insecure-registry", nil, "registry host[:port] that may be spoken to in plain HTTP, without credentials; may be given several times")
	flags.StringArrayVar(&f.realms, "token-realm", nil, "REGISTRY=HOST: token server of another domain that credentials for a registry host[:port] may go to; may be given several times")
}

// open gives the client by which modules are fetched: from nowhere that this
// program listens on.
func (f *fetchFlags) open(log *slog.Logger) (*fetch.Client, error) {
	cfg, err := f.config(log)
	if err != nil {
		return nil, err
	}
	return fetch.New(cfg), nil
}

func (f *fetchFlags) config(log *slog.Logger) (fetch.Config, error) {
	cfg := fetch.Config{
		Proxy:      http.ProxyFromEnvironment,
		Keychain:   fetch.DockerKeychain(),
		Insecure:   func(host string) bool { return slices.Contains(f.insecure, host) },
		TokenRealm: func(registry, realm string) bool { return slices.Contains(f.realms, registry+"="+realm) },
		Own:        f.own.addresses,
		Strict:     f.strict,
		Log:        log,
	}
	for _, r := range f.realms {
		if registry, realm, ok := strings.Cut(r, "="); !ok || registry == "" || realm == "" || r != strings.ToLower(r) || strings.ContainsAny(realm, ":/") {
			return cfg, usagef("--token-realm %s: write REGISTRY=HOST, both in lower case, such as registry.example=auth.example.net", r)
		}
	}
	if f.hosts != "" {
		d, err := hosts.Open(f.hosts, time.Now, log)
		if err != nil {
			return cfg, usagef("--hosts-dir: %v", err)
		}
		cfg.Hosts = d
	}
	return cfg, nil
}

// listeners are the addresses of some.
type listeners struct {
	mu  sync.Mutex
	all []netip.AddrPort
}

// add adds the addresses of listeners that are of TCP.
func (l *listeners) add(listeners ...net.Listener) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, listener := range listeners {
		if tcp, ok := listener.Addr().(*net.TCPAddr); ok {
			l.all = append(l.all, tcp.AddrPort())
		}
	}
}

func (l *listeners) addresses() []netip.AddrPort {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.all)
}

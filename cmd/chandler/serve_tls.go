package main

import (
	"log/slog"
	"net"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/credential"
	"chandler.dev/chandler/internal/identity"
)

// tlsFlags are the flags about the agents' port.
type tlsFlags struct {
	cert, key, clientCA string
	trustDomain         string
	labels              []string
}

func (f *tlsFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.cert, "tls-cert", "", "certificate of the agents' port with its chain, in PEM; read again when it changes")
	flags.StringVar(&f.key, "tls-key", "", "key of --tls-cert, in PEM")
	flags.StringVar(&f.clientCA, "client-ca", "", "authorities of agents' client certificates, in PEM")
	flags.StringVar(&f.trustDomain, "trust-domain", identity.DefaultTrustDomain, "trust domain of the names in agents' certificates")
	flags.StringSliceVar(&f.labels, "claimable-labels", nil, "keys of labels that an agent with a certificate may claim; any without this flag")
}

// port is how the agents' port is listened to, and who is believed there.
type port struct {
	listener net.Listener
	options  []grpc.ServerOption
	agents   control.Authenticator
}

// open listens. Without TLS it is for this machine only. reviewer may be nil: then
// no tokens are accepted.
func (f *tlsFlags) open(listen string, reviewer identity.Reviewer, metrics prometheus.Registerer, log *slog.Logger) (*port, error) {
	if (f.cert == "") != (f.key == "") {
		return nil, usagef("--tls-cert and --tls-key belong together")
	}
	if f.cert == "" && f.clientCA != "" {
		return nil, usagef("--client-ca needs --tls-cert and --tls-key: without TLS nobody shows a certificate")
	}
	p := &port{agents: control.Loopback{}}
	if f.cert != "" {
		if err := checkKeyFile("--tls-key", f.key); err != nil {
			return nil, err
		}
		server, err := credential.NewServer(credential.Files{
			Cert: f.cert, Key: f.key, CA: f.clientCA, RequireClient: f.clientCA != "" && reviewer == nil, Log: log,
		})
		if err != nil {
			return nil, misconfigured(chandler.CodeConfTLS, "--tls-cert", "give a certificate, its key and authorities in PEM that belong together", err)
		}
		p.options = []grpc.ServerOption{grpc.Creds(server)}
		collectors := server.Collectors()
		if f.clientCA != "" || reviewer != nil {
			id := identity.New(identity.Config{TrustDomain: f.trustDomain, Reviewer: reviewer, Verify: server.Verify, Labels: f.labels, Log: log})
			p.agents = id
			collectors = slices.Concat(collectors, id.Collectors())
		}
		for _, c := range collectors {
			if err := metrics.Register(c); err != nil {
				return nil, err
			}
		}
	}
	var err error
	if p.listener, err = net.Listen("tcp", listen); err != nil {
		return nil, misconfigured(chandler.CodeConfListen, "--listen", "give an address that is free", err)
	}
	if err := f.fits(p); err != nil {
		p.listener.Close()
		return nil, err
	}
	return p, nil
}

// fits refuses an address that others can reach where nobody could tell who they
// are.
func (f *tlsFlags) fits(p *port) error {
	addr, ok := p.listener.Addr().(*net.TCPAddr)
	if ok && addr.IP.IsLoopback() {
		return nil
	}
	switch p.agents.(type) {
	case control.Loopback:
	default:
		return nil
	}
	if f.cert == "" {
		return usagef("--listen %s can be reached from other machines, where plain text is not safe: give --tls-cert, --tls-key and --client-ca, or listen on 127.0.0.1", p.listener.Addr())
	}
	return usagef("--listen %s can be reached from other machines, and agents there could not show who they are: give --client-ca", p.listener.Addr())
}

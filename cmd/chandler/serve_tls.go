package main

import (
	"log/slog"
	"net"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/pflag"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/credential"
	"chandler.dev/chandler/internal/enrol"
	"chandler.dev/chandler/internal/identity"
)

// maxAnonymous is more than a machine has to say to be enrolled, in bytes.
const maxAnonymous = 256 << 10

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
	tls      *credential.Server // nil: there is none
	agents   control.Authenticator
	// roll and enrolment are nil where nobody is enrolled.
	roll      *enrol.Roll
	enrolment *enrol.Service
}

// open listens. Without TLS it is for this machine only. reviewer may be nil: then
// no tokens are accepted; and so may enrols: then nobody is enrolled.
func (f *tlsFlags) open(listen string, reviewer identity.Reviewer, enrols *enrolment, metrics prometheus.Registerer, log *slog.Logger) (*port, error) {
	if (f.cert == "") != (f.key == "") {
		return nil, usagef("--tls-cert and --tls-key belong together")
	}
	if f.cert == "" && f.clientCA != "" {
		return nil, usagef("--client-ca needs --tls-cert and --tls-key: without TLS nobody shows a certificate")
	}
	p := &port{agents: control.Loopback{}}
	if f.cert != "" {
		if err := f.secure(p, reviewer, enrols, metrics, log); err != nil {
			return nil, err
		}
	}
	var err error
	if path, ok := strings.CutPrefix(listen, unixScheme); ok {
		p.listener, err = listenUnix(path)
	} else {
		p.listener, err = net.Listen("tcp", listen)
	}
	if err != nil {
		return nil, misconfigured(chandler.CodeConfListen, "--listen", "give an address that is free", err)
	}
	if err := f.fits(p); err != nil {
		p.listener.Close()
		return nil, err
	}
	return p, nil
}

// secure says how TLS is spoken on the port, and who is believed then.
func (f *tlsFlags) secure(p *port, reviewer identity.Reviewer, enrols *enrolment, metrics prometheus.Registerer, log *slog.Logger) error {
	files := credential.Files{Cert: f.cert, Key: f.key, CA: f.clientCA, AlsoCA: enrols.authority(), Log: log}
	switch {
	case reviewer != nil: // who has a token needs no certificate
	case enrols != nil:
		files.Anonymous = maxAnonymous // who has none yet gets one
	default:
		files.RequireClient = f.clientCA != ""
	}
	if err := checkKeyFile("--tls-key", f.key); err != nil {
		return err
	}
	server, err := credential.NewServer(files)
	if err != nil {
		return misconfigured(chandler.CodeConfTLS, "--tls-cert", "give a certificate, its key and authorities in PEM that belong together", err)
	}
	p.tls = server
	collectors := server.Collectors()
	var roll identity.Roll
	if enrols != nil {
		if p.roll, p.enrolment, err = enrols.open(server, f.trustDomain, log); err != nil {
			return err
		}
		roll = p.roll
	}
	if f.clientCA != "" || reviewer != nil || roll != nil {
		id := identity.New(identity.Config{
			TrustDomain: f.trustDomain, Reviewer: reviewer, Verify: server.Verify, Labels: f.labels,
			Authority: credential.NewAuthorities(log).Verify, Roll: roll, Log: log,
		})
		p.agents = id
		collectors = slices.Concat(collectors, id.Collectors())
	}
	for _, c := range collectors {
		if err := metrics.Register(c); err != nil {
			return err
		}
	}
	return nil
}

// fits refuses an address that others can reach where nobody could tell who they
// are.
func (f *tlsFlags) fits(p *port) error {
	switch addr := p.listener.Addr().(type) {
	case *net.UnixAddr:
		return nil
	case *net.TCPAddr:
		if addr.IP.IsLoopback() {
			return nil
		}
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

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/credential"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/enrol"
	"chandler.dev/chandler/internal/web"
)

// enrolFlags are the flags about machines that get their certificates from here.
type enrolFlags struct {
	cert, key, serverCA string
	life                time.Duration
}

func (f *enrolFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.cert, "enrol-ca-cert", "", "authority that signs the certificates of machines which are enrolled with a token (chandler node token create), in PEM; read again when it changes")
	flags.StringVar(&f.key, "enrol-ca-key", "", "key of --enrol-ca-cert, in PEM")
	flags.StringVar(&f.serverCA, "enrol-server-ca", "", "authorities of --tls-cert, in PEM, which enrolled machines are told; by default what is in that file beside the certificate")
	flags.DurationVar(&f.life, "enrol-certificate-ttl", enrol.DefaultLife, "how long a certificate of a machine is good; machines renew them when two thirds of it are over")
}

// check refuses flags that do not go together.
func (f *enrolFlags) check(all *serveFlags) error {
	switch {
	case (f.cert == "") != (f.key == ""):
		return usagef("--enrol-ca-cert and --enrol-ca-key belong together")
	case f.cert == "" && f.serverCA != "":
		return usagef("--enrol-server-ca needs --enrol-ca-cert and --enrol-ca-key")
	case f.cert == "":
		return nil
	case all.tls.cert == "":
		return usagef("--enrol-ca-cert needs --tls-cert and --tls-key: nobody is enrolled without TLS")
	case all.kube.replicas.advertise != "":
		return usagef("--enrol-ca-cert is for one control plane: replicas (--advertise) do not share the roll of enrolled machines")
	case f.life < enrol.MinLife:
		return usagef("--enrol-certificate-ttl: %v is too short, at least %v", f.life, enrol.MinLife)
	}
	return nil
}

// enrolment is how machines are enrolled.
type enrolment struct {
	enrolFlags
	dir string
}

// in gives the way with the roll in a directory; nil when nobody is enrolled.
func (f *enrolFlags) in(dir string) *enrolment {
	if f.cert == "" {
		return nil
	}
	return &enrolment{*f, dir}
}

// authority is the file of who signs; empty when nobody does.
func (e *enrolment) authority() string {
	if e == nil {
		return ""
	}
	return e.cert
}

// open reads the roll, for a port.
func (e *enrolment) open(server *credential.Server, trustDomain string, log *slog.Logger) (*enrol.Roll, *enrol.Service, error) {
	issuer, err := credential.NewIssuer(e.cert, e.key, nil, log)
	if err != nil {
		return nil, nil, fmt.Errorf("--enrol-ca-cert: %w", err)
	}
	bundle, err := server.Bundle(e.serverCA)
	if err != nil {
		return nil, nil, fmt.Errorf("--enrol-server-ca: %w", err)
	}
	if bundle.Anchor() == nil {
		if e.serverCA != "" {
			return nil, nil, usagef("--enrol-server-ca: the certificate in --tls-cert is of none of its authorities")
		}
		log.Warn("machines that enrol need --tls-ca: the authority of --tls-cert is not known; give --enrol-server-ca")
	}
	roll, err := enrol.Open(enrol.RollConfig{
		FS: durable.OS(), Dir: e.dir, TrustDomain: trustDomain, Issuer: issuer, Life: e.life, Anchor: bundle.Anchor, Cut: server.Cut, Log: log,
	})
	if err != nil {
		return nil, nil, err
	}
	return roll, enrol.NewService(roll, bundle.PEM), nil
}

const unixScheme = "unix://"

// listenUnix makes a Unix socket for this user alone, in a directory for this user
// alone. One that nobody answers at is replaced.
func listenUnix(path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if !filepath.IsAbs(path) {
		return nil, usagef("%s is no path from the root", chandler.Quote(path))
	}
	if err := durable.Mkdir(durable.OS(), dir); err != nil {
		return nil, err
	}
	if st, err := os.Stat(dir); err != nil {
		return nil, err
	} else if st.Mode().Perm()&0o077 != 0 {
		return nil, usagef("others may enter %s (mode %#o): a socket belongs in a directory of mode 0700", chandler.Quote(dir), st.Mode().Perm())
	}
	if err := web.VacateSocket(path); err != nil {
		return nil, err
	}
	lis, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, lis.Close())
	}
	return lis, nil
}

package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/spf13/pflag"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/credential"
	"chandler.dev/chandler/internal/web"
)

// adminFlags are the flags about the admin port and its socket.
type adminFlags struct {
	listen, socket      string
	cert, key, clientCA string
	hosts               []string
	debug               bool
}

// noSocket is the value of --admin-socket for none.
const noSocket = "-"

func (f *adminFlags) add(flags *pflag.FlagSet) {
	flags.StringVar(&f.listen, "admin", defaultServer, "address for commands, health and metrics; beyond this machine it answers only health and metrics without --admin-tls-cert")
	flags.StringVar(&f.socket, "admin-socket", "", "Unix socket at which this user and root may do all; admin.sock in --data by default, - for none")
	flags.StringVar(&f.cert, "admin-tls-cert", "", "certificate of --admin with its chain, in PEM; read again when it changes")
	flags.StringVar(&f.key, "admin-tls-key", "", "key of --admin-tls-cert, in PEM")
	flags.StringVar(&f.clientCA, "admin-client-ca", "", "authorities of the client certificates of those who use --admin, in PEM")
	flags.StringSliceVar(&f.hosts, "admin-host", nil, "names of this server in requests to --admin, beside localhost and its address")
	flags.BoolVar(&f.debug, "debug", false, "show profiles of this process at /debug/pprof/ of --admin, to admins of all namespaces")
}

// doors are where the admin port is to be reached.
type doors struct {
	listeners []net.Listener
	// leave takes the word back that was left for commands of this user.
	leave func()
}

// open listens, and completes what is shown with who may see it.
func (f *adminFlags) open(e *env, data string, shown *web.Config, log *slog.Logger) (*doors, error) {
	config, err := f.tls(shown, log)
	if err != nil {
		return nil, err
	}
	shown.UID, shown.Hosts, shown.Debug, shown.Log = os.Getuid(), f.hosts, f.debug, log
	d := &doors{leave: func() {}}
	tcp, err := web.ListenTCP(f.listen, config)
	if err != nil {
		return nil, misconfigured(chandler.CodeConfListen, "--admin", "give an address that is free", err)
	}
	d.listeners = append(d.listeners, tcp)
	at, ok := tcp.Addr().(*net.TCPAddr)
	if config == nil && ok && !at.IP.IsLoopback() {
		log.Info("the admin port has no TLS: to other machines it answers health and metrics only", "address", at.String())
	}
	if f.socket == noSocket {
		return d, nil
	}
	path := f.socket
	if path == "" {
		path = filepath.Join(data, "admin.sock")
	}
	if path, err = filepath.Abs(path); err != nil {
		return nil, errors.Join(err, d.close())
	}
	unix, err := web.ListenSocket(path)
	switch {
	case err != nil && f.socket != "":
		return nil, errors.Join(fmt.Errorf("--admin-socket: %w", err), d.close())
	case err != nil: // a full disk, for instance: agents are to be served all the same
		log.Error("there is no socket for commands: they need a token or a certificate to change anything", "error", err)
		return d, nil
	}
	d.listeners = append(d.listeners, unix)
	if ok && config == nil {
		if d.leave, err = e.leaveWord(at, path); err != nil {
			log.Info("commands have to be told the socket", "say", "--server unix://"+path, "reason", err)
		}
	}
	return d, nil
}

// tls is how the port is spoken to; nil: in the open.
func (f *adminFlags) tls(shown *web.Config, log *slog.Logger) (*tls.Config, error) {
	switch {
	case (f.cert == "") != (f.key == ""):
		return nil, usagef("--admin-tls-cert and --admin-tls-key belong together")
	case f.cert == "" && f.clientCA != "":
		return nil, usagef("--admin-client-ca needs --admin-tls-cert and --admin-tls-key: without TLS nobody shows a certificate")
	case f.cert == "":
		return nil, nil
	}
	if err := checkKeyFile("--admin-tls-key", f.key); err != nil {
		return nil, err
	}
	server, err := credential.NewServer(credential.Files{Cert: f.cert, Key: f.key, CA: f.clientCA, Log: log})
	if err != nil {
		return nil, misconfigured(chandler.CodeConfTLS, "--admin-tls-cert", "give a certificate, its key and authorities in PEM that belong together", err)
	}
	if f.clientCA != "" {
		shown.Verify = server.Verify
	}
	return server.HTTP(), nil
}

func (d *doors) close() error {
	d.leave()
	var errs []error
	for _, lis := range d.listeners {
		errs = append(errs, lis.Close())
	}
	return errors.Join(errs...)
}

func (d *doors) serve(ctx context.Context, h http.Handler, log *slog.Logger) error {
	defer d.leave()
	return web.Serve(ctx, h, log, d.listeners...)
}

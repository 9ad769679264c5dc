package main

import (
	"errors"
	"flag"
	"net"
	"path/filepath"
	"strings"

	"chandler.dev/chandler/internal/agent"
	"chandler.dev/chandler/internal/credential"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/enrol"
)

// tlsFlags adds the flags about the way to the control plane.
func tlsFlags(flags *flag.FlagSet) *credential.Files {
	f := &credential.Files{}
	flags.StringVar(&f.CA, "tls-ca", "", "authorities of the control plane's certificate, in PEM; without it the control plane is spoken to in plain text")
	flags.StringVar(&f.Cert, "tls-cert", "", "certificate that says who this proxy is, with its chain, in PEM; read again when it changes")
	flags.StringVar(&f.Key, "tls-key", "", "key of --tls-cert, in PEM")
	flags.StringVar(&f.ServerName, "tls-server-name", "", "name in the control plane's certificate, when it is not the one in --control")
	flags.StringVar(&f.Token, "token-file", "", "file with a token that says who this proxy is; read again when it changes")
	return f
}

// secure says how the control plane is dialled. Files are read when it is: a proxy
// serves with what it has, whatever its credentials are.
func secure(cfg *agent.Config, f credential.Files, enrolToken string) error {
	switch {
	case enrolToken != "" && (f.Cert != "" || f.Token != ""):
		return errors.New("--enrol-token-file is for nodes that have neither --tls-cert nor --token-file")
	case enrolToken != "":
		f = enrols(cfg, f, enrolToken)
	case (f.Cert == "") != (f.Key == ""):
		return errors.New("--tls-cert and --tls-key belong together")
	case f.CA == "" && (f.Cert != "" || f.Token != "" || f.ServerName != ""):
		return errors.New("--tls-cert, --tls-server-name and --token-file need --tls-ca: nothing is shown to a control plane that is not known")
	case f.CA == "":
		return nil
	}
	f.Log = cfg.Log
	client := credential.NewClient(f)
	cfg.DialOptions = client.DialOptions()
	cfg.Collectors = client.Collectors()
	return nil
}

// enrols has the node enrolled beside Envoy's work, and gives the files of its
// identity.
func enrols(cfg *agent.Config, f credential.Files, token string) credential.Files {
	keeper := enrol.NewKeeper(enrol.KeeperConfig{
		FS: durable.OS(), Dir: filepath.Join(cfg.Data, "identity"), TokenFile: token, Targets: cfg.Control,
		CA: f.CA, ServerName: f.ServerName, Node: cfg.Node, Log: cfg.Log,
	})
	cfg.Beside = keeper.Run
	return keeper.Files()
}

// warn tells of what is allowed and not safe.
func warn(cfg *agent.Config) {
	for _, addr := range cfg.Control {
		if cfg.DialOptions == nil && !onThisMachine(addr) {
			cfg.Log.Warn("the control plane is spoken to in plain text: whoever is on the way decides what Envoy runs; give --tls-ca", "address", addr)
		}
	}
}

// onThisMachine tells whether an address is surely of this machine.
func onThisMachine(addr string) bool {
	if strings.HasPrefix(addr, "unix:") {
		return true
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		host = addr
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

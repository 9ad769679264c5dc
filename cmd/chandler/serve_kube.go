package main

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/credential"
	"chandler.dev/chandler/internal/identity"
	"chandler.dev/chandler/internal/source/kube"
)

// kubeFlags are the flags about Kubernetes.
type kubeFlags struct {
	on                  bool
	kubeconfig, context string
	ownUnlabelled       bool
	replicas            replicaFlags
}

// replicaFlags are about control planes of one cluster among themselves.
type replicaFlags struct {
	advertise, lease, account string
	peers                     []string
	token, ca, serverName     string
}

func (f *kubeFlags) add(flags *pflag.FlagSet) {
	flags.BoolVar(&f.on, "kube", false, "take plugins from Kubernetes, and keep records and status there")
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "file that says how to reach the API server; by default the pod's service account, or what kubectl uses")
	flags.StringVar(&f.context, "context", "", "context of the kubeconfig file")
	flags.BoolVar(&f.ownUnlabelled, "own-unlabelled", false, "look after plugins without the label istio.io/rev even where Istio is found")
	r := &f.replicas
	flags.StringVar(&r.advertise, "advertise", "", "address of the agents' port as other replicas reach it; with it several control planes of one cluster elect a leader")
	flags.StringVar(&r.lease, "lease", "chandler-system/chandler", "namespace/name of the Lease by which replicas elect their leader")
	flags.StringSliceVar(&r.peers, "peers", nil, "host:port of other replicas that may have a module; a name stands for all its addresses")
	flags.StringVar(&r.account, "replica-account", "chandler-system/chandler", "namespace/name of the service account that replicas show to each other")
	flags.StringVar(&r.token, "replica-token", "", "file of the token to show to other replicas, read again when it changes")
	flags.StringVar(&r.ca, "replica-ca", "", "authorities of other replicas' certificates, in PEM")
	flags.StringVar(&r.serverName, "replica-server-name", "", "name in other replicas' certificates, when it is not the address")
}

// cluster is what a control plane gets from Kubernetes.
type cluster struct {
	client  *kube.Client
	source  *kube.Source
	records *kube.Records
	tokens  *kube.Tokens
	admins  *kube.Admins
}

// connect reads the configuration; it asks the API server for nothing yet.
func (f *kubeFlags) connect(log *slog.Logger) (*cluster, error) {
	kube.LogTo(log)
	client, err := kube.Connect(f.kubeconfig, f.context, "chandler/"+version)
	if err != nil {
		return nil, err
	}
	tokens, err := client.Tokens(kube.TokensConfig{Log: log})
	if err != nil {
		return nil, err
	}
	admins, err := client.Admins()
	if err != nil {
		return nil, err
	}
	return &cluster{
		client: client, records: kube.NewRecords(client, log), tokens: tokens, admins: admins,
		source: &kube.Source{Client: client, OwnUnlabelled: f.ownUnlabelled, Log: log},
	}, nil
}

// join makes cfg one of several replicas, when an address to advertise is given.
func (f *replicaFlags) join(cfg *control.Config, c *cluster, log *slog.Logger) error {
	if f.advertise == "" {
		return nil
	}
	namespace, name, ok := strings.Cut(f.lease, "/")
	if !ok {
		return usagef("--lease: %s is not namespace/name", chandler.Quote(f.lease))
	}
	account, accountName, ok := strings.Cut(f.account, "/")
	if !ok {
		return usagef("--replica-account: %s is not namespace/name", chandler.Quote(f.account))
	}
	cfg.Election = &kube.Election{Client: c.client, Namespace: namespace, Name: name, Address: f.advertise}
	dial := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	if f.ca != "" {
		dial = credential.NewClient(credential.Files{CA: f.ca, Token: f.token, ServerName: f.serverName, Log: log}).DialOptions()
	}
	cfg.Peers = &control.Peers{
		Dial:      func(address string) (*grpc.ClientConn, error) { return grpc.NewClient(address, dial...) },
		Addresses: f.addresses,
		Admit:     admitReplica(cfg.Authenticator, account, accountName),
		Heard:     c.client.Heard,
	}
	return nil
}

// addresses looks the names of the other replicas up.
func (f *replicaFlags) addresses(ctx context.Context) []string {
	var all []string
	for _, peer := range f.peers {
		host, port, err := net.SplitHostPort(peer)
		if err != nil {
			continue // said at the start
		}
		found, err := net.DefaultResolver.LookupHost(ctx, host)
		if err != nil {
			continue // nobody is there now
		}
		for _, address := range found {
			all = append(all, net.JoinHostPort(address, port))
		}
	}
	return slices.DeleteFunc(all, func(a string) bool { return a == f.advertise })
}

// admitReplica admits who shows the service account of replicas; where agents
// show nothing, whoever is on this machine.
func admitReplica(agents control.Authenticator, namespace, account string) func(context.Context) error {
	if id, ok := agents.(*identity.Authenticator); ok {
		return func(ctx context.Context) error { return id.Admit(ctx, namespace, account) }
	}
	return func(ctx context.Context) error {
		_, err := control.Loopback{}.Authenticate(ctx, chandler.Node{})
		return err
	}
}

// check refuses flags that do not go together.
func (f *kubeFlags) check(plugins string) error {
	switch {
	case f.on && plugins != "":
		return usagef("--kube and --plugins are two places for plugins; give one")
	case !f.on && (f.kubeconfig != "" || f.context != "" || f.ownUnlabelled || f.replicas.advertise != ""):
		return usagef("--kubeconfig, --context, --own-unlabelled and --advertise need --kube")
	case f.replicas.token != "" && f.replicas.ca == "":
		return usagef("--replica-token needs --replica-ca: a token is shown over TLS only")
	}
	for _, peer := range f.replicas.peers {
		if _, _, err := net.SplitHostPort(peer); err != nil {
			return usagef("--peers: %v", err)
		}
	}
	return nil
}

// readOnly is the answer to edits.
const readOnly = "plugins are objects of the cluster: use kubectl apply and kubectl delete"

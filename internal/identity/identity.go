// Package identity says who an agent is, by what it shows: a client certificate,
// or a bearer token that somebody else reviews. Namespace and service account come
// from there and never from what the agent claims; a claim that contradicts is
// refused in words.
//
// It knows neither Kubernetes nor files, and who may have what is decided
// elsewhere, by the node that comes out of here.
package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
)

// DefaultTrustDomain is the one that Kubernetes and Istio begin with.
const DefaultTrustDomain = "cluster.local"

// maxToken bounds what is given to a reviewer, in bytes.
const maxToken = 16 << 10

// Identity is who somebody is, as the credential says.
type Identity struct {
	// Name is for people: a SPIFFE id, a DNS name, a user's name.
	Name      string
	Namespace string
	// ServiceAccount is empty for machines.
	ServiceAccount string
	// Node is the only node name that may be claimed; empty: any of the namespace.
	Node string
	// Labels are the node's, and all of them, when Known; else the claim's are
	// taken as far as Config.Labels allows.
	Labels map[string]string
	Known  bool
}

// Reviewer says whose a bearer token is.
type Reviewer interface {
	// Review gives an error that wraps ErrRefused when the token is nobody's, and
	// any other when that cannot be found out now.
	Review(ctx context.Context, token string) (Identity, error)
}

// ErrRefused is a reviewer's word that a token is no good.
var ErrRefused = errors.New("the token is refused")

// Config says what is believed. Its zero value believes certificates of
// DefaultTrustDomain.
type Config struct {
	// TrustDomain is that of the SPIFFE ids and DNS names which are for agents;
	// DefaultTrustDomain when empty.
	TrustDomain string
	// Reviewer reviews bearer tokens; nil: none are looked at.
	Reviewer Reviewer
	// Verify verifies a client's chain by the authorities that are trusted now; nil:
	// what the handshake found is good until a certificate expires.
	Verify func(chain []*x509.Certificate) error
	// Labels are the keys of labels that an agent may claim whose labels nobody
	// else knows; nil: any.
	Labels []string
	// Now is the clock, time.Now when nil.
	Now func() time.Time
	Log *slog.Logger
}

// Authenticator believes credentials, and nothing on plain connections.
type Authenticator struct {
	cfg     Config
	refused *prometheus.CounterVec

	mu     sync.Mutex
	logged time.Time
	quiet  int // refusals since that were not logged
}

// New gives an authenticator.
func New(cfg Config) *Authenticator {
	if cfg.TrustDomain == "" {
		cfg.TrustDomain = DefaultTrustDomain
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Authenticator{cfg: cfg, refused: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "chandler_agents_refused_total", Help: "Times that somebody on the agents' port could not show who they are, by gRPC code.",
	}, []string{"code"})}
}

// Collectors are its metrics.
func (a *Authenticator) Collectors() []prometheus.Collector {
	return []prometheus.Collector{a.refused}
}

// Authenticate gives the node that the claim is about, with namespace, name and
// labels as the credential of the call allows. The error is a gRPC status:
// Unauthenticated without a good credential, PermissionDenied when the claim is
// about somebody else, Unavailable when nobody can tell now.
func (a *Authenticator) Authenticate(ctx context.Context, claimed chandler.Node) (chandler.Node, error) {
	ids, err := a.identities(ctx)
	if err == nil {
		var n chandler.Node
		if n, err = a.node(ids, claimed); err == nil {
			return n, nil
		}
	}
	a.note(ctx, claimed, err)
	return chandler.Node{}, err
}

// Admit lets a service account pass: another replica of the control plane, which
// is no node. The error is as of Authenticate.
func (a *Authenticator) Admit(ctx context.Context, namespace, serviceAccount string) error {
	ids, err := a.identities(ctx)
	if err == nil && !slices.ContainsFunc(ids, func(id Identity) bool {
		return serviceAccount != "" && id.Namespace == namespace && id.ServiceAccount == serviceAccount
	}) {
		err = status.Errorf(codes.PermissionDenied, "%s is no replica of this control plane", called(ids))
	}
	if err != nil {
		a.note(ctx, chandler.Node{Namespace: namespace, Name: serviceAccount}, err)
	}
	return err
}

// identities are what the call's credential allows: a token, if one is shown, else
// the certificate.
func (a *Authenticator) identities(ctx context.Context) ([]Identity, error) {
	p, _ := peer.FromContext(ctx)
	if p == nil {
		return nil, status.Error(codes.Unauthenticated, "peer is not known")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return nil, status.Error(codes.Unauthenticated, "without TLS nobody can show who they are")
	}
	if shown := metadata.ValueFromIncomingContext(ctx, "authorization"); len(shown) > 0 && a.cfg.Reviewer != nil {
		id, err := a.review(ctx, shown)
		return []Identity{id}, err
	}
	if len(info.State.VerifiedChains) == 0 {
		return nil, status.Error(codes.Unauthenticated, a.wants())
	}
	return a.certificate(info.State.VerifiedChains[0])
}

func (a *Authenticator) wants() string {
	if a.cfg.Reviewer == nil {
		return "a client certificate is wanted: give the agent --tls-cert and --tls-key"
	}
	return "a token or a client certificate is wanted: give the agent --token-file, or --tls-cert and --tls-key"
}

func (a *Authenticator) review(ctx context.Context, shown []string) (Identity, error) {
	scheme, token, _ := strings.Cut(shown[0], " ")
	if len(shown) > 1 || !strings.EqualFold(scheme, "bearer") || token == "" || len(token) > maxToken {
		return Identity{}, status.Error(codes.Unauthenticated, "what is shown is no bearer token")
	}
	id, err := a.cfg.Reviewer.Review(ctx, token)
	switch {
	case errors.Is(err, ErrRefused):
		return Identity{}, status.Error(codes.Unauthenticated, chandler.Printable(err.Error(), 512))
	case err != nil:
		a.cfg.Log.Warn("a token cannot be reviewed now", "error", err)
		return Identity{}, status.Error(codes.Unavailable, "nobody can say now whose the token is")
	}
	return id, nil
}

// certificate reads a verified chain. That it is good was found at the handshake;
// a connection may outlive it.
func (a *Authenticator) certificate(chain []*x509.Certificate) ([]Identity, error) {
	for _, c := range chain {
		if a.cfg.Now().After(c.NotAfter) {
			return nil, status.Errorf(codes.Unauthenticated, "the certificate expired at %s", c.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	if a.cfg.Verify != nil {
		if err := a.cfg.Verify(chain); err != nil {
			return nil, status.Errorf(codes.Unauthenticated, "the certificate is not trusted: %s", chandler.Printable(err.Error(), 256))
		}
	}
	ids, why := names(chain[0], a.cfg.TrustDomain)
	if len(ids) == 0 {
		return nil, status.Error(codes.Unauthenticated, why)
	}
	return ids, nil
}

// node joins a claim with whom it may be about.
func (a *Authenticator) node(ids []Identity, claimed chandler.Node) (chandler.Node, error) {
	deny := func(format string, args ...any) (chandler.Node, error) {
		return chandler.Node{}, status.Errorf(codes.PermissionDenied, format, args...)
	}
	at := slices.IndexFunc(ids, func(id Identity) bool {
		return id.Namespace == claimed.Namespace && (id.Node == "" || id.Node == claimed.Name)
	})
	if at < 0 {
		return deny("%s may not act as node %s", called(ids), chandler.Quote(claimed.ID()))
	}
	id := ids[at]
	for _, key := range slices.Sorted(maps.Keys(claimed.Labels)) {
		value, there := id.Labels[key]
		switch {
		case id.Known && (!there || value != claimed.Labels[key]):
			return deny("%s may not claim the label %s: it is not on the pod", called(ids[at:at+1]), chandler.Quote(key+"="+claimed.Labels[key]))
		case !id.Known && a.cfg.Labels != nil && !slices.Contains(a.cfg.Labels, key):
			return deny("%s may not claim the label %s", called(ids[at:at+1]), chandler.Quote(key))
		}
	}
	if id.Known {
		claimed.Labels = id.Labels
	}
	return claimed, nil
}

// called names whom a credential is of, for people.
func called(ids []Identity) string {
	const most = 3
	var b strings.Builder
	for i, id := range ids {
		switch {
		case i == most:
			b.WriteString(" and others")
			return b.String()
		case i > 0:
			b.WriteString(", ")
		}
		b.WriteString(chandler.Printable(id.Name, 256))
	}
	return b.String()
}

// note counts a refusal, and logs one a second at most.
func (a *Authenticator) note(ctx context.Context, claimed chandler.Node, err error) {
	a.refused.WithLabelValues(status.Code(err).String()).Inc()
	now := a.cfg.Now()
	a.mu.Lock()
	if now.Sub(a.logged) < time.Second {
		a.quiet++
		a.mu.Unlock()
		return
	}
	quiet := a.quiet
	a.logged, a.quiet = now, 0
	a.mu.Unlock()
	address := ""
	if p, ok := peer.FromContext(ctx); ok {
		address = p.Addr.String()
	}
	a.cfg.Log.Warn("an agent is refused", "address", address, "claims", chandler.Printable(claimed.ID(), 256), "reason", status.Convert(err).Message(), "not_logged_before", quiet)
}

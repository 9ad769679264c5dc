// Package identity says who an agent is, by what it shows: a client certificate,
// or a bearer token that somebody else reviews. Namespace and service account come
// from there and never from what the agent claims; a claim that contradicts is
// refused in words. What a certificate means is said by its name, by the operator's
// rules, or by the roll of the nodes that were enrolled.
//
// It knows neither Kubernetes nor files, and who may have what is decided
// elsewhere, by the node that comes out of here.
package identity

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/wire"
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
	// Where says where Labels are, for people; "on the pod" when empty.
	Where string
	// Until is when that ends, by what is known now; zero: with the certificate.
	Until time.Time

	rule *ruling // whose word it is; nil: that of the name
}

// Reviewer says whose a bearer token is.
type Reviewer interface {
	// Review gives an error that wraps ErrRefused when the token is nobody's, and
	// any other when that cannot be found out now.
	Review(ctx context.Context, token string) (Identity, error)
}

// Roll knows the nodes that were enrolled here.
type Roll interface {
	// Enrolled tells whose a certificate is, by its chain as the handshake verified
	// it. It is not ours when somebody else signed it. The error is for one that was
	// revoked, or that is of no node on the roll.
	Enrolled(chain []*x509.Certificate) (id Identity, ours bool, err error)
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
	// else knows; nil: any. Rules have their own.
	Labels []string
	// Rules say what certificates mean; without any it is their names. See SetRules.
	Rules []Rule
	// Authority verifies a chain by the authorities in a file, for rules that name
	// one; nil: such rules are for nobody.
	Authority func(file string, chain []*x509.Certificate) error
	// Roll is asked first about every certificate; nil: nobody was enrolled.
	Roll Roll
	// Now is the clock, time.Now when nil.
	Now func() time.Time
	Log *slog.Logger
}

// Authenticator believes credentials, and nothing on plain connections.
type Authenticator struct {
	cfg     Config
	rules   atomic.Pointer[[]*ruling] // without any: names
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
	a := &Authenticator{cfg: cfg, refused: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "chandler_agents_refused_total", Help: "Times that somebody on the agents' port could not show who they are, by gRPC code.",
	}, []string{"code"})}
	for _, code := range []codes.Code{codes.Unauthenticated, codes.PermissionDenied} {
		a.refused.WithLabelValues(code.String()) // there from the start
	}
	a.SetRules(cfg.Rules)
	return a
}

// SetRules puts other rules in place of those before, for whoever is looked at from
// now on. One with which something is wrong (see Rule.Check) is for nobody, and does
// not bring the names back.
func (a *Authenticator) SetRules(rules []Rule) {
	rulings := make([]*ruling, 0, len(rules))
	for i := range rules {
		if r, ok := rules[i].compile(); ok {
			rulings = append(rulings, r)
		} else {
			rulings = append(rulings, &ruling{certificate: nobody, namespace: nobody})
		}
	}
	a.rules.Store(&rulings)
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
	ids, err := a.identities(ctx, a.agents)
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
	ids, err := a.identities(ctx, a.named)
	if err == nil && !slices.ContainsFunc(ids, func(id Identity) bool {
		return serviceAccount != "" && id.Namespace == namespace && id.ServiceAccount == serviceAccount
	}) {
		err = wire.Refusal(codes.PermissionDenied, chandler.CodeXDSIdentity, "%s is no replica of this control plane", called(ids))
	}
	if err != nil {
		a.note(ctx, chandler.Node{Namespace: namespace, Name: serviceAccount}, err)
	}
	return err
}

// identities are what the call's credential allows: a token, if one is shown, else
// the certificate, whose chain meaning reads.
func (a *Authenticator) identities(ctx context.Context, meaning func(chain []*x509.Certificate) ([]Identity, error)) ([]Identity, error) {
	p, _ := peer.FromContext(ctx)
	if p == nil {
		return nil, unauthenticated("peer is not known")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return nil, unauthenticated("without TLS nobody can show who they are")
	}
	if shown := metadata.ValueFromIncomingContext(ctx, "authorization"); len(shown) > 0 && a.cfg.Reviewer != nil {
		id, err := a.review(ctx, shown)
		return []Identity{id}, err
	}
	if len(info.State.VerifiedChains) == 0 {
		return nil, unauthenticated("%s", a.wants())
	}
	return meaning(info.State.VerifiedChains[0])
}

func unauthenticated(format string, args ...any) error {
	return wire.Refusal(codes.Unauthenticated, chandler.CodeXDSIdentity, format, args...)
}

func denied(format string, args ...any) error {
	return wire.Refusal(codes.PermissionDenied, chandler.CodeXDSIdentity, format, args...)
}

func (a *Authenticator) wants() string {
	wants, give := "a client certificate is wanted", "--tls-cert and --tls-key"
	if a.cfg.Reviewer != nil {
		wants, give = "a token or a client certificate is wanted", "--token-file, or "+give
	}
	if a.cfg.Roll != nil {
		give += ", or --enrol-token-file"
	}
	return wants + ": give the agent " + give
}

func (a *Authenticator) review(ctx context.Context, shown []string) (Identity, error) {
	scheme, token, _ := strings.Cut(shown[0], " ")
	if len(shown) > 1 || !strings.EqualFold(scheme, "bearer") || token == "" || len(token) > maxToken {
		return Identity{}, unauthenticated("what is shown is no bearer token")
	}
	id, err := a.cfg.Reviewer.Review(ctx, token)
	switch {
	case errors.Is(err, ErrRefused):
		return Identity{}, unauthenticated("%s", chandler.Printable(err.Error(), 512))
	case err != nil:
		a.cfg.Log.Warn("a token cannot be reviewed now", "error", err)
		return Identity{}, status.Error(codes.Unavailable, "nobody can say now whose the token is")
	}
	return id, nil
}

// agents reads a verified chain as an agent's: by the roll, by the rules if there are
// any, else by its names.
func (a *Authenticator) agents(chain []*x509.Certificate) ([]Identity, error) {
	if a.cfg.Roll != nil {
		if id, ours, err := a.cfg.Roll.Enrolled(chain); err != nil {
			return nil, denied("%s", chandler.Printable(err.Error(), 512))
		} else if ours && !id.Until.IsZero() && a.cfg.Now().After(id.Until) {
			return nil, unauthenticated("the certificate expired at %s", id.Until.UTC().Format(time.RFC3339))
		} else if ours {
			return []Identity{id}, nil
		}
	}
	rules := *a.rules.Load()
	if len(rules) == 0 {
		return a.named(chain)
	}
	if err := a.valid(chain); err != nil {
		return nil, err
	}
	var ids []Identity
	for _, r := range rules {
		if r.ca == "" || a.cfg.Authority != nil && a.cfg.Authority(r.ca, chain) == nil {
			ids = append(ids, r.whose(chain[0])...)
		}
	}
	if len(ids) == 0 {
		return nil, denied("no rule is for a certificate of %s", owner(chain[0]))
	}
	return ids, nil
}

// owner names a certificate by what stands in it, for people.
func owner(c *x509.Certificate) string {
	var names []Identity
	for _, u := range c.URIs {
		names = append(names, Identity{Name: u.String()})
	}
	for _, name := range c.DNSNames {
		names = append(names, Identity{Name: name})
	}
	if len(names) == 0 {
		return "nobody"
	}
	return called(names)
}

// named reads a verified chain by the names in the certificate.
func (a *Authenticator) named(chain []*x509.Certificate) ([]Identity, error) {
	if err := a.valid(chain); err != nil {
		return nil, err
	}
	ids, why := names(chain[0], a.cfg.TrustDomain)
	if len(ids) == 0 {
		return nil, unauthenticated("%s", why)
	}
	return ids, nil
}

// valid looks at a chain again. That it is good was found at the handshake; a
// connection may outlive it.
func (a *Authenticator) valid(chain []*x509.Certificate) error {
	for _, c := range chain {
		if a.cfg.Now().After(c.NotAfter) {
			return unauthenticated("the certificate expired at %s", c.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	if a.cfg.Verify != nil {
		if err := a.cfg.Verify(chain); err != nil {
			return unauthenticated("the certificate is not trusted: %s", chandler.Printable(err.Error(), 256))
		}
	}
	return nil
}

// node joins a claim with whom it may be about. Where several identities cover the
// node one of them must allow all of its labels.
func (a *Authenticator) node(ids []Identity, claimed chandler.Node) (chandler.Node, error) {
	var why error
	for i := range ids {
		if !ids[i].covers(claimed) {
			continue
		}
		err := a.labels(&ids[i], claimed)
		if err == nil {
			return a.take(&ids[i], claimed), nil
		}
		why = cmp.Or(why, err)
	}
	return chandler.Node{}, cmp.Or(why, denied("%s may not act as node %s", called(ids), chandler.Quote(claimed.ID())))
}

// take gives the node with its labels: those that are known of it, or else those that it
// claimed and, of the found ones, those that it might have claimed.
func (a *Authenticator) take(id *Identity, claimed chandler.Node) chandler.Node {
	if id.Known {
		claimed.Labels, claimed.Found = id.Labels, nil
		return claimed
	}
	return claimed.Take(func(key, value string) bool {
		one := claimed
		one.Labels = map[string]string{key: value}
		return a.labels(id, one) == nil
	})
}

// labels tells why somebody may not claim the labels of a node.
func (a *Authenticator) labels(id *Identity, claimed chandler.Node) error {
	for _, key := range slices.Sorted(maps.Keys(claimed.Labels)) {
		value, label := claimed.Labels[key], chandler.Quote(key+"="+claimed.Labels[key])
		known, there := id.Labels[key]
		switch {
		case id.Known && (!there || value != known):
			return denied("%s may not claim the label %s: it is not %s", called([]Identity{*id}), label, cmp.Or(id.Where, "on the pod"))
		case id.Known:
		case id.rule != nil && !id.rule.allows(key, value):
			return denied("%s may not claim the label %s", called([]Identity{*id}), label)
		case id.rule == nil && a.cfg.Labels != nil && !slices.Contains(a.cfg.Labels, key):
			return denied("%s may not claim the label %s", called([]Identity{*id}), chandler.Quote(key))
		}
	}
	return nil
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

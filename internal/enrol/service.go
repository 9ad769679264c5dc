package enrol

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"maps"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/wire"
)

// Limits of what anybody may ask. One address, or for renewals one key, may ask a
// hundred times at once, then five times a second, and all of them together ten times
// as often.
const (
	maxCSR    = 8 << 10
	burst     = 100
	perSecond = 5
	together  = 10
	maxPeers  = 1000 // that are counted each for itself
)

// Service is what machines speak to, on the agents' port. Of all services there it
// alone answers who has no credential yet.
type Service struct {
	chandlerv1.UnimplementedEnrolmentServer
	roll        *Roll
	authorities func() ([]byte, error)

	mu    sync.Mutex
	all   bucket
	peers map[string]*bucket // by address or key
}

// NewService gives the service for a roll. authorities gives those of the server's
// own certificate, in PEM.
func NewService(roll *Roll, authorities func() ([]byte, error)) *Service {
	return &Service{roll: roll, authorities: authorities, peers: map[string]*bucket{}}
}

// Register puts the service on a gRPC server.
func (s *Service) Register(r grpc.ServiceRegistrar) { chandlerv1.RegisterEnrolmentServer(r, s) }

// Authorities implements the service.
func (s *Service) Authorities(ctx context.Context, _ *chandlerv1.AuthoritiesRequest) (*chandlerv1.AuthoritiesResponse, error) {
	if err := s.admit(ctx); err != nil {
		return nil, err
	}
	return &chandlerv1.AuthoritiesResponse{Authorities: s.known()}, nil
}

// known are the authorities; none when they cannot be read, which is logged.
func (s *Service) known() []byte {
	b, err := s.authorities()
	if err != nil {
		return nil
	}
	return b
}

// Enrol implements the service.
func (s *Service) Enrol(ctx context.Context, m *chandlerv1.EnrolRequest) (*chandlerv1.EnrolResponse, error) {
	if err := s.admit(ctx); err != nil {
		return nil, err
	}
	req := request{node: chandler.Node{Namespace: m.GetNamespace(), Name: m.GetName()}}
	var err error
	if req.token, err = ParseToken(m.GetToken()); err != nil {
		return nil, denied(codes.Unauthenticated, "%s", err)
	}
	for _, name := range []string{m.GetNamespace(), m.GetName()} {
		if !fits(name) {
			return nil, denied(codes.InvalidArgument, "%s", unfit("node", name).Error())
		}
	}
	if req.key, req.hash, err = requested(m.GetCsr()); err != nil {
		return nil, err
	}
	chain, err := s.roll.enrol(req)
	if err != nil {
		return nil, err
	}
	return &chandlerv1.EnrolResponse{Certificate: chain, Authorities: s.known()}, nil
}

// Renew implements the service.
func (s *Service) Renew(ctx context.Context, _ *chandlerv1.RenewRequest) (*chandlerv1.RenewResponse, error) {
	_, info, err := secured(ctx)
	if err != nil {
		return nil, err
	}
	if len(info.State.VerifiedChains) == 0 || !s.roll.cfg.Issuer.Signed(info.State.VerifiedChains[0]) {
		return nil, denied(codes.Unauthenticated, "a certificate from here is wanted")
	}
	leaf := info.State.VerifiedChains[0][0]
	hash := hashOf(leaf)
	if err := s.count(string(hash[:])); err != nil {
		return nil, err
	}
	chain, err := s.roll.renew(leaf)
	if err != nil {
		return nil, err
	}
	return &chandlerv1.RenewResponse{Certificate: chain, Authorities: s.known()}, nil
}

// requested reads the key of a certificate request, and that who asks has it.
func requested(csr []byte) (key any, hash keyHash, err error) {
	if len(csr) > maxCSR {
		return nil, hash, wire.Refusal(codes.ResourceExhausted, chandler.CodeXDSLimit, "a certificate request of %d bytes, limit %d", len(csr), maxCSR)
	}
	r, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, hash, denied(codes.InvalidArgument, "what should be a certificate request is none")
	}
	switch k := r.PublicKey.(type) {
	case ed25519.PublicKey:
	case *ecdsa.PublicKey:
		if k.Curve == elliptic.P224() {
			return nil, hash, denied(codes.InvalidArgument, "the key is too short")
		}
	default: // also RSA, whose keys may be any size
		return nil, hash, denied(codes.InvalidArgument, "the key must be for ECDSA or Ed25519")
	}
	if r.CheckSignature() != nil {
		return nil, hash, denied(codes.InvalidArgument, "the certificate request is not signed with its key")
	}
	return r.PublicKey, sha256.Sum256(r.RawSubjectPublicKeyInfo), nil
}

// admit lets a call of anybody pass that comes over TLS and not too often.
func (s *Service) admit(ctx context.Context) error {
	p, _, err := secured(ctx)
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(p.Addr.String())
	if err != nil {
		host = p.Addr.String()
	}
	return s.count(host)
}

func secured(ctx context.Context) (*peer.Peer, credentials.TLSInfo, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, credentials.TLSInfo{}, denied(codes.Unauthenticated, "peer is not known")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return nil, info, denied(codes.Unauthenticated, "nobody is enrolled without TLS")
	}
	return p, info, nil
}

// count counts a request, and refuses one too many.
func (s *Service) count(who string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.roll.cfg.Now()
	b := s.peers[who]
	if b == nil {
		if len(s.peers) >= maxPeers {
			maps.DeleteFunc(s.peers, func(_ string, idle *bucket) bool { return idle.left(now, 1) == 0 })
		}
		for other := range s.peers {
			if len(s.peers) < maxPeers {
				break
			}
			delete(s.peers, other)
		}
		b = &bucket{}
		s.peers[who] = b
	}
	if b.take(now, 1) && s.all.take(now, together) {
		return nil
	}
	return wire.Refusal(codes.ResourceExhausted, chandler.CodeXDSLimit, "too many requests for certificates; try again in some seconds")
}

// bucket counts what was taken, which is given back with time. The zero value is full.
type bucket struct {
	used float64
	at   time.Time
}

func (b *bucket) left(now time.Time, times float64) float64 {
	return max(0, b.used-max(0, now.Sub(b.at).Seconds())*perSecond*times)
}

// take takes one, if there is one, of times as many as an address has.
func (b *bucket) take(now time.Time, times float64) bool {
	used := b.left(now, times)
	b.used, b.at = used, now
	if used+1 > burst*times {
		return false
	}
	b.used++
	return true
}

// Package credential is how the agents' port is spoken to in safety: TLS 1.3 with
// certificates, keys and authorities in files, and bearer tokens that never leave
// without TLS. Files are looked at when a connection is made (or a token sent) and
// read again when they have changed, so that nothing is restarted for a new
// certificate; files that cannot be used leave those before in use.
//
// It says nothing of who may do what: see package identity.
package credential

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// How long a refused client is listened to that does not close when it has heard why, and
// for how many bytes.
const (
	lastWordsTime = 3 * time.Second
	maxLastWords  = 64 << 10
)

// Files says where certificates, keys (all in PEM) and tokens are. Empty: none.
type Files struct {
	// Cert and Key are one's own, the certificate with its chain.
	Cert, Key string
	// CA are the authorities that the other side's certificate may be of, and so are
	// those in AlsoCA.
	CA, AlsoCA string
	// Token is a bearer token to show; for clients.
	Token string
	// ServerName is the name in the server's certificate, when it is not the one
	// that is dialled; for clients.
	ServerName string
	// RequireClient refuses clients without a certificate already in the handshake;
	// for servers.
	RequireClient bool
	// Anonymous, unless zero, is how many bytes a client without a certificate may send
	// on one connection, which is then closed: it has little to say, and what it does
	// say is kept until it is complete. For servers.
	Anonymous int64
	// Missing, when set, says why the files are not there yet; nil when they are. For
	// clients.
	Missing func() error

	// Now is the clock, time.Now when nil.
	Now func() time.Time
	Log *slog.Logger
}

// set is what both sides have.
type set struct {
	Files
	pair  *files[*tls.Certificate] // nil: none
	pool  *files[*x509.CertPool]   // nil: none
	token *files[string]           // nil: none
}

func newSet(f Files) set {
	if f.Now == nil {
		f.Now = time.Now
	}
	if f.Log == nil {
		f.Log = slog.New(slog.DiscardHandler)
	}
	s := set{Files: f}
	if f.Cert != "" {
		s.pair = &files[*tls.Certificate]{paths: []string{f.Cert, f.Key}, parse: parsePair(f.Cert, f.Key), now: f.Now, told: told(f.Log, "certificate")}
	}
	if paths := slices.DeleteFunc([]string{f.CA, f.AlsoCA}, func(path string) bool { return path == "" }); len(paths) > 0 {
		s.pool = &files[*x509.CertPool]{paths: paths, parse: parsePool(paths...), now: f.Now, told: told(f.Log, "authorities")}
	}
	if f.Token != "" {
		s.token = &files[string]{paths: []string{f.Token}, parse: parseToken(f.Token), now: f.Now, told: told(f.Log, "token")}
	}
	return s
}

func told(log *slog.Logger, what string) func(error) {
	return func(err error) {
		if err != nil {
			log.Warn("new credentials cannot be used; those before stay, if there are any", "of", what, "error", err)
			return
		}
		log.Info("credentials can be used again", "of", what)
	}
}

// stale tells why newest files are not in use.
func (s *set) stale() error {
	var errs []error
	if s.pair != nil {
		errs = append(errs, s.pair.stale())
	}
	if s.pool != nil {
		errs = append(errs, s.pool.stale())
	}
	if s.token != nil {
		errs = append(errs, s.token.stale())
	}
	return errors.Join(errs...)
}

// collectors are metrics, which look at the files when they are asked.
func (s *set) collectors() []prometheus.Collector {
	return []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "chandler_tls_files_stale", Help: "1 when certificate, key, authorities or token in the files cannot be used and those before are.",
		}, func() float64 {
			if s.stale() != nil {
				return 1
			}
			return 0
		}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "chandler_tls_certificate_not_after_seconds", Help: "When the own certificate in use expires, in seconds since 1970; 0 without one.",
		}, func() float64 {
			if s.pair == nil {
				return 0
			}
			pair, err := s.pair.get()
			if err != nil {
				return 0
			}
			return float64(pair.Leaf.NotAfter.Unix())
		}),
	}
}

// Server is the server's side, as gRPC wants it.
type Server struct {
	set
	failed prometheus.Counter

	mu     sync.Mutex
	terms  *terms                       // of the last connection
	open   map[*connection]struct{}     // of clients with a certificate
	proofs map[*x509.Certificate]*proof // of clients' certificates, while one has a connection open
}

// proof is by which authorities a certificate was found good at a handshake, and from when
// until when it is, with its chain.
type proof struct {
	roots       *x509.CertPool
	from, until time.Time
	connections int
}

// NewServer reads the files, which must be usable now.
func NewServer(f Files) (*Server, error) {
	s := &Server{set: newSet(f), open: map[*connection]struct{}{}, proofs: map[*x509.Certificate]*proof{}, failed: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "chandler_tls_handshakes_failed_total", Help: "Connections to the agents' port that ended before TLS was agreed on.",
	})}
	if s.pair == nil {
		return nil, errors.New("a server needs a certificate")
	}
	return s, s.stale()
}

// Collectors are the server's metrics.
func (s *Server) Collectors() []prometheus.Collector { return append(s.collectors(), s.failed) }

// Verify verifies a client's chain, the client's own certificate first, by the
// authorities that are trusted now: a connection may outlive them.
func (s *Server) Verify(chain []*x509.Certificate) error {
	if s.pool == nil || len(chain) == 0 {
		return errors.New("no authority of clients is trusted")
	}
	roots, err := s.pool.get()
	if err != nil {
		return err
	}
	now := s.Now()
	s.mu.Lock()
	p := s.proofs[chain[0]]
	proven := p != nil && (p.roots == roots || p.roots.Equal(roots)) && !now.Before(p.from) && !now.After(p.until)
	s.mu.Unlock()
	if proven { // to verify costs as much as a handshake
		return nil
	}
	return verify(chain, roots, now)
}

// config is for one connection.
func (s *Server) config() (*tls.Config, error) {
	pair, err := s.pair.get()
	if err != nil {
		return nil, err
	}
	// Without tickets every connection shows its certificate to the authorities
	// that are trusted now.
	c := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{*pair}, SessionTicketsDisabled: true, Time: s.Now}
	if s.pool == nil {
		return c, nil
	}
	c.ClientAuth = tls.VerifyClientCertIfGiven
	if s.RequireClient {
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	c.ClientCAs, err = s.pool.get()
	return c, err
}

// terms are what connections are made by while certificate and authorities are the same.
// They share it: to hold a configuration of its own would cost each some 700 bytes.
type terms struct {
	leaf  *x509.Certificate
	roots *x509.CertPool
	credentials.TransportCredentials
}

// current gives the terms of a connection that is made now.
func (s *Server) current() (*terms, error) {
	config, err := s.config()
	if err != nil {
		return nil, err
	}
	leaf := config.Certificates[0].Leaf
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.terms; t == nil || t.leaf != leaf || t.roots != config.ClientCAs {
		s.terms = &terms{leaf, config.ClientCAs, credentials.NewTLS(config)}
	}
	return s.terms, nil
}

// ServerHandshake implements credentials.TransportCredentials.
func (s *Server) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	terms, err := s.current()
	if err != nil {
		raw.Close()
		return nil, nil, err
	}
	last := &lastWords{}
	if half, ok := raw.(halfCloser); ok {
		last.halfCloser, raw = half, last
	}
	conn, auth, err := terms.ServerHandshake(raw)
	last.agreed.Store(err == nil)
	if err != nil {
		s.failed.Inc()
		s.Log.Debug("no TLS with a client", "address", raw.RemoteAddr(), "error", err)
		return conn, auth, err
	}
	return s.track(conn, auth, terms.roots), auth, nil
}

// connection is one of a client with a certificate, while it is open.
type connection struct {
	net.Conn
	server *Server
	leaf   *x509.Certificate
}

func (s *Server) track(conn net.Conn, auth credentials.AuthInfo, roots *x509.CertPool) net.Conn {
	info, ok := auth.(credentials.TLSInfo)
	switch {
	case !ok:
		return conn
	case len(info.State.PeerCertificates) == 0 && s.Anonymous > 0:
		return &anonymous{Conn: conn, left: s.Anonymous}
	case len(info.State.PeerCertificates) == 0:
		return conn
	}
	c := &connection{conn, s, info.State.PeerCertificates[0]}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[c] = struct{}{}
	if len(info.State.VerifiedChains) > 0 {
		s.proven(c.leaf, info.State.VerifiedChains[0], roots)
	}
	return c
}

// proven remembers what a handshake has found. Clients with one certificate share what is
// known of it.
func (s *Server) proven(leaf *x509.Certificate, chain []*x509.Certificate, roots *x509.CertPool) {
	p := s.proofs[leaf]
	if p == nil {
		p = &proof{}
		s.proofs[leaf] = p
	}
	p.connections++
	p.roots, p.from, p.until = roots, leaf.NotBefore, leaf.NotAfter
	for _, c := range chain {
		if c.NotBefore.After(p.from) {
			p.from = c.NotBefore
		}
		if c.NotAfter.Before(p.until) {
			p.until = c.NotAfter
		}
	}
}

func (c *connection) Close() error {
	s := c.server
	s.mu.Lock()
	if _, open := s.open[c]; open {
		delete(s.open, c)
		if p := s.proofs[c.leaf]; p != nil {
			if p.connections--; p.connections == 0 {
				delete(s.proofs, c.leaf)
			}
		}
	}
	s.mu.Unlock()
	return c.Conn.Close()
}

// anonymous is a connection of a client without a certificate. It is read by one
// goroutine.
type anonymous struct {
	net.Conn
	left int64
}

func (c *anonymous) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.New("a client without a certificate says too much")
	}
	n, err := c.Conn.Read(b[:min(int64(len(b)), c.left)])
	c.left -= int64(n)
	return n, err
}

// Cut closes the connections that were made with certificates of which who is true,
// with all that goes on over them, and tells how many they were. One whose handshake
// is not over is not among them: what comes over it is judged when it comes, after
// whatever made the caller cut.
func (s *Server) Cut(who func(*x509.Certificate) bool) int {
	s.mu.Lock()
	var found []*connection
	for c := range s.open {
		if who(c.leaf) {
			found = append(found, c)
		}
	}
	s.mu.Unlock()
	for _, c := range found {
		_ = c.Close() // whoever serves it notices
	}
	return len(found)
}

// lastWords is a connection that is closed in a way that lets a refused client
// hear why. In TLS 1.3 the client believes that all is well and goes on speaking;
// to close a connection on which it has been spoken to resets it, and the alert is
// lost.
type lastWords struct {
	halfCloser
	agreed atomic.Bool
}

// halfCloser is a connection that can be closed for writing alone, as TCP's.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

func (c *lastWords) Close() error {
	if !c.agreed.Load() && c.CloseWrite() == nil && c.SetReadDeadline(time.Now().Add(lastWordsTime)) == nil {
		_, _ = io.CopyN(io.Discard, c.halfCloser, maxLastWords)
	}
	return c.halfCloser.Close()
}

// ClientHandshake implements credentials.TransportCredentials.
func (s *Server) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are a server's credentials")
}

// Info implements credentials.TransportCredentials.
func (s *Server) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials. Nothing in it changes.
func (s *Server) Clone() credentials.TransportCredentials { return s }

// OverrideServerName implements credentials.TransportCredentials.
func (s *Server) OverrideServerName(string) error { return errors.New("not for servers") }

// Client is the client's side.
type Client struct{ set }

// NewClient reads nothing yet: files that are missing are an error of each
// connection, not of the program, which has other things to do.
func NewClient(f Files) *Client { return &Client{newSet(f)} }

// Collectors are the client's metrics.
func (c *Client) Collectors() []prometheus.Collector { return c.collectors() }

// DialOptions say how to dial: with TLS, and with the token if there is one.
func (c *Client) DialOptions() []grpc.DialOption {
	options := []grpc.DialOption{grpc.WithTransportCredentials(clientTLS{c})}
	if c.token != nil {
		options = append(options, grpc.WithPerRPCCredentials(bearer{c.token}))
	}
	return options
}

func (c *Client) config() (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS13, Time: c.Now}
	var err error
	if c.Missing != nil {
		if err = c.Missing(); err != nil {
			return nil, err
		}
	}
	if c.pool != nil {
		if config.RootCAs, err = c.pool.get(); err != nil {
			return nil, err
		}
	}
	if c.pair != nil {
		pair, err := c.pair.get()
		if err != nil {
			return nil, err
		}
		// Shown whatever authorities the server names: a refusal with its reason is
		// better than a certificate that is silently left out.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair, nil }
	}
	return config, nil
}

type clientTLS struct{ c *Client }

func (t clientTLS) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	config, err := t.c.config()
	if err != nil {
		raw.Close()
		return nil, nil, err
	}
	if t.c.ServerName != "" {
		authority = t.c.ServerName
	}
	return credentials.NewTLS(config).ClientHandshake(ctx, authority, raw)
}

func (t clientTLS) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are a client's credentials")
}

func (t clientTLS) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

func (t clientTLS) Clone() credentials.TransportCredentials { return t }

func (t clientTLS) OverrideServerName(string) error {
	return errors.New("the server's name is given beforehand")
}

// bearer shows a token.
type bearer struct{ token *files[string] }

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := b.token.get()
	if err != nil {
		return nil, fmt.Errorf("no token to show: %w", err)
	}
	return map[string]string{"authorization": "Bearer " + token}, nil
}

func (b bearer) RequireTransportSecurity() bool { return true }

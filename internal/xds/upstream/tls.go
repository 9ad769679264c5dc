package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler/internal/attach"
)

// secure is how TLS is spoken, with its certificates and authorities where they are.
type secure struct {
	sni      string
	hostSNI  bool   // the endpoint's own name goes before sni
	hostname string // for gRPC's library: the certificate must be for it
	sniName  bool   // the certificate must be for the name that is asked for
	hosts    []string
	next     []string
	min, max uint16

	pairs       []pair
	pairSecrets []secretSource
	validation  *tlsv3.CertificateValidationContext // nil: none of its own
	path        string                              // its place
	validSecret *secretSource
	ca          source // for gRPC's library, instead of a validation context
	system      bool   // likewise, the machine's authorities
	find        Find   // has secrets; nil: only files do

	warnings []string
}

// pair is a certificate with its chain, and its key.
type pair struct{ chain, key source }

// readTLS reads an UpstreamTlsContext of a bootstrap.
func readTLS(part attach.Part) (*secure, error) {
	var context tlsv3.UpstreamTlsContext
	if err := decode(part, &context); err != nil {
		return nil, err
	}
	return newSecure(&context, part.Path, nil)
}

// newSecure reads an UpstreamTlsContext.
func newSecure(context *tlsv3.UpstreamTlsContext, path string, find Find) (*secure, error) {
	if err := only(context, path, "common_tls_context", "sni", "auto_host_sni", "auto_sni_san_validation", "allow_renegotiation",
		"max_session_keys", "enforce_rsa_key_usage"); err != nil {
		return nil, err
	}
	common, path := context.GetCommonTlsContext(), path+".common_tls_context"
	if err := only(common, path, "tls_params", "tls_certificates", "tls_certificate_sds_secret_configs", "validation_context",
		"validation_context_sds_secret_config", "combined_validation_context", "alpn_protocols", "key_log"); err != nil {
		return nil, err
	}
	s := &secure{sni: context.GetSni(), hostSNI: context.GetAutoHostSni(), sniName: context.GetAutoSniSanValidation(), next: common.GetAlpnProtocols(), find: find}
	if len(s.next) == 0 {
		s.next = []string{"h2"}
	}
	if err := s.versions(common.GetTlsParams(), path+".tls_params"); err != nil {
		return nil, err
	}
	if err := s.ownCertificates(common, path); err != nil {
		return nil, err
	}
	if err := s.readValidation(common, path); err != nil {
		return nil, err
	}
	return s, nil
}

// tlsVersions are Envoy's names of them; 0: whatever is usual.
var tlsVersions = map[tlsv3.TlsParameters_TlsProtocol]uint16{
	tlsv3.TlsParameters_TLS_AUTO: 0,
	tlsv3.TlsParameters_TLSv1_0:  tls.VersionTLS10,
	tlsv3.TlsParameters_TLSv1_1:  tls.VersionTLS11,
	tlsv3.TlsParameters_TLSv1_2:  tls.VersionTLS12,
	tlsv3.TlsParameters_TLSv1_3:  tls.VersionTLS13,
}

func (s *secure) versions(p *tlsv3.TlsParameters, path string) error {
	if err := only(p, path, "tls_minimum_protocol_version", "tls_maximum_protocol_version", "cipher_suites", "ecdh_curves", "signature_algorithms"); err != nil {
		return err
	}
	if len(p.GetCipherSuites())+len(p.GetEcdhCurves())+len(p.GetSignatureAlgorithms()) > 0 {
		s.warnings = append(s.warnings, path+" names ciphers, curves or signatures: towards this control plane the agent's own are used")
	}
	var knownMin, knownMax bool
	s.min, knownMin = tlsVersions[p.GetTlsMinimumProtocolVersion()]
	s.max, knownMax = tlsVersions[p.GetTlsMaximumProtocolVersion()]
	if s.min == 0 {
		s.min = tls.VersionTLS12
	}
	if !knownMin || !knownMax || s.max != 0 && s.max < s.min {
		return problem(path, "use TLSv1_2 and TLSv1_3", "there is no version of TLS between these two")
	}
	return nil
}

// ownCertificates reads what is shown to the control plane.
func (s *secure) ownCertificates(c *tlsv3.CommonTlsContext, path string) error {
	for i, t := range c.GetTlsCertificates() {
		p, err := readPair(t, fmt.Sprintf("%s.tls_certificates[%d]", path, i))
		if err != nil {
			return err
		}
		s.pairs = append(s.pairs, p)
	}
	for i, config := range c.GetTlsCertificateSdsSecretConfigs() {
		file, err := readSecretSource(config, fmt.Sprintf("%s.tls_certificate_sds_secret_configs[%d]", path, i), s.find)
		if err != nil {
			return err
		}
		s.pairSecrets = append(s.pairSecrets, file)
	}
	return nil
}

func readPair(t *tlsv3.TlsCertificate, path string) (pair, error) {
	if err := only(t, path, "certificate_chain", "private_key", "watched_directory"); err != nil {
		return pair{}, err
	}
	p := pair{source{t.GetCertificateChain(), path + ".certificate_chain"}, source{t.GetPrivateKey(), path + ".private_key"}}
	if err := checkData(p.chain.data, p.chain.path); err != nil {
		return pair{}, err
	}
	return p, checkData(p.key.data, p.key.path)
}

// readValidation reads what the control plane's certificate must be.
func (s *secure) readValidation(c *tlsv3.CommonTlsContext, path string) error {
	config := c.GetValidationContextSdsSecretConfig()
	s.validation, s.path = c.GetValidationContext(), path+".validation_context"
	if combined := c.GetCombinedValidationContext(); combined != nil {
		path += ".combined_validation_context"
		if err := only(combined, path, "default_validation_context", "validation_context_sds_secret_config"); err != nil {
			return err
		}
		config = combined.GetValidationContextSdsSecretConfig()
		s.validation, s.path = combined.GetDefaultValidationContext(), path+".default_validation_context"
	}
	r, err := readRules(s.validation, s.path)
	if err != nil {
		return err
	}
	if config != nil {
		file, err := readSecretSource(config, path+".validation_context_sds_secret_config", s.find)
		s.validSecret = &file
		return err // the rules are whole only together with what is in the file
	}
	trusts := s.validation.GetTrustedCa() != nil || s.validation.GetSystemRootCerts() != nil
	if !trusts && (s.sniName || len(r.names) > 0) {
		return noAuthority(s.path)
	}
	if r.untrusted || !trusts && len(r.hashes)+len(r.keys) == 0 {
		s.warnings = append(s.warnings, s.path+" lets any certificate pass: whoever is in between can play the control plane")
	}
	return nil
}

// ofHTTP reads what the cluster's HTTP settings say of names.
func (s *secure) ofHTTP(part attach.Part, authority string) error {
	if part.JSON == nil {
		return nil
	}
	var options corev3.UpstreamHttpProtocolOptions
	if err := decode(part, &options); err != nil {
		return err
	}
	return s.names(&options, part.Path, authority)
}

// names reads what HTTP settings say of names.
func (s *secure) names(options *corev3.UpstreamHttpProtocolOptions, path, authority string) error {
	if err := only(options, path, "auto_sni", "auto_san_validation"); err != nil {
		return err
	}
	host := authority
	if name, _, err := net.SplitHostPort(authority); err == nil {
		host = name
	}
	if options.GetAutoSni() && net.ParseIP(host) == nil {
		s.sni, s.hostSNI = host, false
	}
	if options.GetAutoSanValidation() {
		s.hosts = []string{host}
	}
	return nil
}

// secrets are all that come by the discovery protocol.
func (s *secure) secrets() []secretSource {
	if s.validSecret == nil {
		return s.pairSecrets
	}
	return append(slices.Clone(s.pairSecrets), *s.validSecret)
}

// material is what one connection needs.
type material struct {
	certificates []tls.Certificate
	rules        *rules
}

// load reads all files.
func (s *secure) load() (*material, error) {
	m := &material{}
	pairs := s.pairs
	for _, file := range s.pairSecrets {
		secret, err := file.load()
		if err != nil {
			return nil, err
		}
		if secret.GetTlsCertificate() == nil {
			return nil, fmt.Errorf("%s: %w", file, errNoSecret)
		}
		p, err := readPair(secret.GetTlsCertificate(), "tls_certificate")
		if err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		pairs = append(pairs[:len(pairs):len(pairs)], p)
	}
	for _, p := range pairs {
		chain, err := p.chain.read()
		if err != nil {
			return nil, err
		}
		key, err := p.key.read()
		if err != nil {
			return nil, err
		}
		c, err := tls.X509KeyPair(chain, key)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.chain.path, err)
		}
		m.certificates = append(m.certificates, c)
	}
	var err error
	m.rules, err = s.loadRules()
	return m, err
}

func (s *secure) loadRules() (*rules, error) {
	validation, path := s.validation, s.path
	if s.validSecret != nil {
		secret, err := s.validSecret.load()
		if err != nil {
			return nil, err
		}
		if secret.GetValidationContext() == nil {
			return nil, fmt.Errorf("%s: %w", s.validSecret, errNoSecret)
		}
		whole := &tlsv3.CertificateValidationContext{}
		if validation != nil {
			whole = proto.CloneOf(validation)
		}
		proto.Merge(whole, secret.GetValidationContext()) // as Envoy does
		validation, path = whole, s.validSecret.String()+": validation_context"
	}
	r, err := readRules(validation, path)
	if err != nil {
		return nil, err
	}
	ca := source{validation.GetTrustedCa(), path + ".trusted_ca"}
	if s.ca.data != nil {
		ca = s.ca
	}
	switch {
	case ca.data != nil:
		text, err := ca.read()
		if err != nil {
			return nil, err
		}
		if r.roots, err = readPool(text); err != nil {
			return nil, fmt.Errorf("%s: %w", ca.path, err)
		}
	case s.system || validation.GetSystemRootCerts() != nil:
		if r.roots, err = x509.SystemCertPool(); err != nil {
			return nil, err
		}
	}
	if r.roots == nil && (s.sniName || len(s.hosts)+len(r.names) > 0) {
		return nil, noAuthority(path)
	}
	r.hostname, r.hosts = s.hostname, s.hosts
	return r, nil
}

// hostnameKey is where an address has its endpoint's name.
type hostnameKey struct{}

// handshaker speaks TLS as a client, with the files as they are when a connection is
// made; files that cannot be used, for instance half written ones, leave those before
// in use.
type handshaker struct {
	*secure
	now func() time.Time
	log *slog.Logger

	mu   sync.Mutex
	last *material // that could be used
}

func (h *handshaker) material() (*material, error) {
	m, err := h.load()
	h.mu.Lock()
	defer h.mu.Unlock()
	if err == nil {
		h.last = m
		return m, nil
	}
	if h.last == nil {
		return nil, fmt.Errorf("no TLS with the control plane: %w", err)
	}
	h.log.Warn("new credentials for the control plane cannot be used; those before stay", "error", err)
	return h.last, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (h *handshaker) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	hostname, _ := credentials.ClientHandshakeInfoFromContext(ctx).Attributes.Value(hostnameKey{}).(string)
	conn, err := h.handshake(ctx, hostname, raw)
	if err != nil {
		return nil, nil, err
	}
	return conn, credentials.TLSInfo{
		State:          conn.ConnectionState(),
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
	}, nil
}

// handshake speaks TLS with an endpoint that may have a name. After an error raw is closed.
func (h *handshaker) handshake(ctx context.Context, hostname string, raw net.Conn) (*tls.Conn, error) {
	m, err := h.material()
	if err != nil {
		raw.Close()
		return nil, err
	}
	sni := h.sni
	if h.hostSNI && hostname != "" {
		sni = hostname
	}
	verify := *m.rules
	if h.sniName && sni != "" { // instead of the other names
		verify.names, verify.hosts = nil, []string{sni}
	}
	conn := tls.Client(raw, &tls.Config{
		ServerName: sni, MinVersion: h.min, MaxVersion: h.max, NextProtos: h.next, Time: h.now,
		// Shown whatever authorities the server names: a refusal with its reason is
		// better than a certificate that is silently left out.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if len(m.certificates) == 0 {
				return &tls.Certificate{}, nil
			}
			return &m.certificates[0], nil
		},
		// Go's own judgement is by the name that is dialled; the rules' is in its place.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			return verify.verify(state.PeerCertificates, h.now())
		},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// ServerHandshake implements credentials.TransportCredentials.
func (h *handshaker) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these are a client's credentials")
}

// Info implements credentials.TransportCredentials.
func (h *handshaker) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}

// Clone implements credentials.TransportCredentials. It is not changed by anybody.
func (h *handshaker) Clone() credentials.TransportCredentials { return h }

// OverrideServerName implements credentials.TransportCredentials.
func (h *handshaker) OverrideServerName(string) error {
	return errors.New("the server's name is the bootstrap's")
}

package upstream

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/types/known/emptypb"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
	"chandler.dev/chandler/internal/testenv/authority"
	"chandler.dev/chandler/internal/testenv/leaks"
	"chandler.dev/chandler/internal/testenv/ports"
)

func TestMain(m *testing.M) { leaks.Main(m) }

// bound is how long anything is waited for.
const bound = time.Minute

// peerOf is what a server saw of a call.
type peerOf struct {
	metadata metadata.MD
	client   string // the first DNS name of the client's certificate
	asked    string // the name that TLS asked for
}

// server is a control plane that answers every call with nothing.
type server struct {
	addr string
	*grpc.Server

	mu    sync.Mutex
	calls []peerOf
}

func serve(t *testing.T, lis net.Listener, config *tls.Config) *server {
	t.Helper()
	s := &server{addr: lis.Addr().String()}
	options := []grpc.ServerOption{grpc.UnknownServiceHandler(s.answer)}
	if config != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(config)))
	}
	s.Server = grpc.NewServer(options...)
	done := make(chan error, 1)
	go func() { done <- s.Serve(lis) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Error(err)
		}
	})
	return s
}

func (s *server) answer(_ any, stream grpc.ServerStream) error {
	var p peerOf
	p.metadata, _ = metadata.FromIncomingContext(stream.Context())
	if from, ok := peer.FromContext(stream.Context()); ok {
		if info, ok := from.AuthInfo.(credentials.TLSInfo); ok {
			p.asked = info.State.ServerName
			if len(info.State.PeerCertificates) > 0 {
				p.client = info.State.PeerCertificates[0].DNSNames[0]
			}
		}
	}
	s.mu.Lock()
	s.calls = append(s.calls, p)
	s.mu.Unlock()
	if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
		return err
	}
	return stream.SendMsg(&emptypb.Empty{})
}

func (s *server) last() peerOf {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[len(s.calls)-1]
}

func (s *server) asked() string {
	return s.last().asked
}

func listen(t *testing.T, network, addr string) net.Listener {
	t.Helper()
	lis, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return lis
}

// secureServer speaks TLS with a certificate of the authority for the leaf.
func secureServer(t *testing.T, a *authority.Authority, leaf authority.Leaf, change func(*tls.Config)) (*server, authority.Pair) {
	t.Helper()
	p := a.Issue(leaf)
	c, err := tls.LoadX509KeyPair(p.Cert, p.Key)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{c}, MinVersion: tls.VersionTLS12}
	if change != nil {
		change(config)
	}
	return serve(t, listen(t, "tcp", "127.0.0.1:0"), config), p
}

// bootstrap is one that takes from a cluster, with more of the cluster and service in
// YAML; endpoints are addresses, or paths of sockets.
func bootstrap(cluster, service string, endpoints ...string) string {
	var list []string
	for _, e := range endpoints {
		address := fmt.Sprintf("pipe: {path: %q}", e)
		if host, port, err := net.SplitHostPort(e); err == nil {
			address = fmt.Sprintf("socket_address: {address: %q, port_value: %s}", host, port)
		}
		list = append(list, fmt.Sprintf("{endpoint: {hostname: endpoint.example, address: {%s}}}", address))
	}
	return fmt.Sprintf(`
dynamic_resources:
  ads_config:
    api_type: DELTA_GRPC
    grpc_services: [{envoy_grpc: {cluster_name: control-plane}%s}]
  lds_config: {ads: {}}
static_resources:
  clusters:
  - name: control-plane
    connect_timeout: 60s
    load_assignment: {endpoints: [{lb_endpoints: [%s]}]}
%s`, service, strings.Join(list, ", "), cluster)
}

// context is a transport socket with TLS.
func tlsOf(fields string) string {
	return fmt.Sprintf(`    transport_socket:
      name: tls
      typed_config: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, %s}
`, fields)
}

// validation is tlsOf with a validation context.
func validation(fields string) string {
	return tlsOf("common_tls_context: {validation_context: {" + fields + "}}")
}

func plane(t *testing.T, text string) attach.ControlPlane {
	t.Helper()
	config, err := attach.MergeConfig("e.yaml", []byte(text), "")
	if err != nil {
		t.Fatal(err)
	}
	d, err := attach.Derive(config, attach.DeriveConfig{UpstreamSocket: "/up"})
	if err != nil {
		t.Fatal(err)
	}
	return d.ControlPlanes[0]
}

func dial(t *testing.T, text string) *Conn {
	t.Helper()
	c, err := New(plane(t, text), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// call says one thing, and does not wait for a server that cannot be reached.
func call(t *testing.T, c *Conn) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	if err := c.Invoke(ctx, "/some.Service/Method", &emptypb.Empty{}, &emptypb.Empty{}); err != nil {
		return errors.New(strings.ReplaceAll(err.Error(), `\"`, `"`)) // gRPC quotes what it quotes
	}
	return nil
}

// again calls until the connection is made anew.
func again(t *testing.T, c *Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bound)
	defer cancel()
	for {
		err := c.Invoke(ctx, "/some.Service/Method", &emptypb.Empty{}, &emptypb.Empty{}, grpc.WaitForReady(true))
		if err == nil {
			return
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// hashes are those of a certificate and of its key, as Envoy writes them.
func hashes(t *testing.T, file string) (whole, key string) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	a, b := sha256.Sum256(c.Raw), sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(a[:]), base64.StdEncoding.EncodeToString(b[:])
}

// A control plane's certificate is judged as Envoy does: by its authority and the names
// that the file asks for, and not by the name that is dialled.
func TestVerification(t *testing.T) {
	t.Parallel()
	ours, other := authority.New(t), authority.New(t)
	leaf := authority.Leaf{DNS: []string{"control.example", "*.wild.example"}, URI: "spiffe://cluster/ns/a/sa/control", IP: "10.0.0.1"}
	good, p := secureServer(t, ours, leaf, nil)
	hash, key := hashes(t, p.Cert)
	wrongHash, wrongKey := hashes(t, ours.File)
	ca, otherCA := fmt.Sprintf("trusted_ca: {filename: %q}", ours.File), fmt.Sprintf("trusted_ca: {filename: %q}", other.File)
	typed := func(kind, matcher string) string {
		return fmt.Sprintf("%s, match_typed_subject_alt_names: [{san_type: DNS, matcher: {exact: nobody}}, {san_type: %s, matcher: {%s}}]", ca, kind, matcher)
	}
	for name, c := range map[string]struct {
		socket string
		refuse string // words of the refusal
	}{
		"authority":              {validation(ca), ""},
		"another authority":      {validation(otherCA), "not trusted"},
		"nothing":                {validation(""), ""},
		"inline":                 {validation(fmt.Sprintf("trusted_ca: {inline_bytes: %s}", base64.StdEncoding.EncodeToString(read(t, ours.File)))), ""},
		"dns":                    {validation(typed("DNS", "exact: control.example")), ""},
		"dns in capitals":        {validation(typed("DNS", "exact: CONTROL.example")), ""},
		"dns wildcard":           {validation(typed("DNS", "exact: a.wild.example")), ""},
		"dns below a wildcard":   {validation(typed("DNS", "exact: a.b.wild.example")), "none of that"},
		"another dns":            {validation(typed("DNS", "exact: control")), `"control.example, *.wild.example, spiffe://cluster/ns/a/sa/control, 10.0.0.1"`},
		"dns for a uri":          {validation(typed("URI", "exact: control.example")), "none of that"},
		"uri":                    {validation(typed("URI", "prefix: \"spiffe://cluster/\"")), ""},
		"another uri":            {validation(typed("URI", "prefix: \"spiffe://clusters/\"")), "none of that"},
		"suffix":                 {validation(typed("URI", "suffix: CONTROL, ignore_case: true")), ""},
		"case":                   {validation(typed("URI", "suffix: CONTROL")), "none of that"},
		"contains":               {validation(typed("URI", "contains: /sa/")), ""},
		"regex":                  {validation(typed("DNS", "safe_regex: {regex: \"con.*example\"}")), ""},
		"regex of a part":        {validation(typed("DNS", "safe_regex: {regex: \"con.*exam\"}")), "none of that"},
		"ip":                     {validation(typed("IP_ADDRESS", "exact: 10.0.0.1")), ""},
		"the ip that is dialled": {validation(typed("IP_ADDRESS", "exact: 127.0.0.1")), "none of that"},
		"untyped":                {validation(ca + `, match_subject_alt_names: [{exact: "spiffe://cluster/ns/a/sa/control"}]`), ""},
		"untyped other":          {validation(ca + ", match_subject_alt_names: [{exact: nobody}]"), "none of that"},
		"untrusted":              {validation(otherCA + ", trust_chain_verification: ACCEPT_UNTRUSTED"), ""},
		"untrusted by name":      {validation(otherCA + ", trust_chain_verification: ACCEPT_UNTRUSTED, match_subject_alt_names: [{exact: nobody}]"), "none of that"},
		"hash":                   {validation("verify_certificate_hash: [" + hash + "]"), ""},
		"hash with colons":       {validation("verify_certificate_hash: [\"" + hash[:2] + ":" + hash[2:] + "\"]"), ""},
		"another hash":           {validation(ca + ", verify_certificate_hash: [" + wrongHash + "]"), "hashes"},
		"key":                    {validation("verify_certificate_hash: [" + wrongHash + "], verify_certificate_spki: [" + key + "]"), ""},
		"another key":            {validation("verify_certificate_spki: [" + wrongKey + "]"), "hashes"},
		"sni":                    {tlsOf("sni: a.wild.example, auto_sni_san_validation: true, common_tls_context: {validation_context: {" + typed("DNS", "exact: x") + "}}"), ""},
		"another sni":            {tlsOf("sni: other.example, auto_sni_san_validation: true, common_tls_context: {validation_context: {" + typed("DNS", "exact: control.example") + "}}"), "not for"},
		"combined":               {tlsOf(fmt.Sprintf("common_tls_context: {combined_validation_context: {default_validation_context: {match_subject_alt_names: [{exact: control.example}]}, validation_context_sds_secret_config: {name: ca, sds_config: {path: %q}}}}", secrets(t, "ca", "validation_context: {"+ca+"}"))), ""},
		"combined other":         {tlsOf(fmt.Sprintf("common_tls_context: {combined_validation_context: {default_validation_context: {match_subject_alt_names: [{exact: nobody}]}, validation_context_sds_secret_config: {name: ca, sds_config: {path: %q}}}}", secrets(t, "ca", "validation_context: {"+ca+"}"))), "none of that"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := call(t, dial(t, bootstrap(c.socket, "", good.addr)))
			if c.refuse == "" && err != nil || c.refuse != "" && (err == nil || !strings.Contains(err.Error(), c.refuse)) {
				t.Errorf("got %v, want %q", err, c.refuse)
			}
		})
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// secrets writes a file with a secret, as the discovery protocol gives it.
func secrets(t *testing.T, name, fields string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "secrets.yaml")
	text := fmt.Sprintf("resources: [{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret, name: %s, %s}]", name, fields)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestServersThatAreNotTaken(t *testing.T) {
	t.Parallel()
	a := authority.New(t)
	ca := fmt.Sprintf("trusted_ca: {filename: %q}", a.File)
	expired, _ := secureServer(t, a, authority.Leaf{NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}, nil)
	if err := call(t, dial(t, bootstrap(validation(ca), "", expired.addr))); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired: %v", err)
	}
	older, _ := secureServer(t, a, authority.Leaf{}, func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 })
	newest := tlsOf("common_tls_context: {tls_params: {tls_minimum_protocol_version: TLSv1_3}, validation_context: {" + ca + "}}")
	if err := call(t, dial(t, bootstrap(newest, "", older.addr))); err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("TLS 1.2: %v", err)
	}
	if err := call(t, dial(t, bootstrap(validation(ca), "", older.addr))); err != nil {
		t.Errorf("TLS 1.2 where it is allowed: %v", err)
	}
	plain := serve(t, listen(t, "tcp", "127.0.0.1:0"), nil)
	if err := call(t, dial(t, bootstrap(validation(ca), "", plain.addr))); err == nil {
		t.Error("a server without TLS is taken")
	}
}

// TLS asks for the name that Envoy would ask for.
func TestServerName(t *testing.T) {
	t.Parallel()
	a := authority.New(t)
	s, _ := secureServer(t, a, authority.Leaf{DNS: []string{"auto.example"}}, nil)
	common := fmt.Sprintf("common_tls_context: {validation_context: {trusted_ca: {filename: %q}}}", a.File)
	auto := `    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        upstream_http_protocol_options: {auto_sni: true, auto_san_validation: true}
`
	for name, c := range map[string]struct{ cluster, service, want string }{
		"none":      {tlsOf(common), "", ""},
		"sni":       {tlsOf("sni: some.example, " + common), "", "some.example"},
		"host":      {tlsOf("sni: some.example, auto_host_sni: true, " + common), "", "endpoint.example"},
		"authority": {tlsOf("sni: some.example, "+common) + auto, "", "auto.example"},
	} {
		text := strings.Replace(bootstrap(c.cluster, c.service, s.addr), "cluster_name: control-plane}", "cluster_name: control-plane, authority: \"auto.example:1\"}", 1)
		if err := call(t, dial(t, text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := s.asked(); got != c.want {
			t.Errorf("%s: asked for %q, want %q", name, got, c.want)
		}
	}
	text := bootstrap(tlsOf(common)+auto, "", s.addr) // the authority is the cluster's name
	if err := call(t, dial(t, text)); err == nil || !strings.Contains(err.Error(), `not for "control-plane"`) {
		t.Errorf("another authority: %v", err)
	}
}

// Certificates are those of the files when a connection is made, wherever they are
// named; files that cannot be used leave those before in use.
func TestRotation(t *testing.T) {
	t.Parallel()
	ours := authority.New(t)
	client := ours.Issue(authority.Leaf{DNS: []string{"first"}})
	inFiles := fmt.Sprintf("certificate_chain: {filename: %q}, private_key: {filename: %q}", client.Cert, client.Key)
	ca := fmt.Sprintf("trusted_ca: {filename: %q}", ours.File)
	roots, err := readPool(read(t, ours.File))
	if err != nil {
		t.Fatal(err)
	}
	mutual := func(c *tls.Config) { c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, roots }
	sds := fmt.Sprintf("tls_certificate_sds_secret_configs: [{name: own, sds_config: {path_config_source: {path: %q}}}], validation_context_sds_secret_config: {name: ca, sds_config: {path_config_source: {path: %q}}}",
		secrets(t, "own", "tls_certificate: {"+inFiles+"}"), secrets(t, "ca", "validation_context: {"+ca+"}"))
	p := ours.Issue(authority.Leaf{DNS: []string{"server"}})
	c, err := tls.LoadX509KeyPair(p.Cert, p.Key)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{c}, MinVersion: tls.VersionTLS13}
	mutual(config)
	socket := filepath.Join(t.TempDir(), "s")
	s := serve(t, listen(t, "unix", socket), config)
	conns := []*Conn{
		dial(t, bootstrap(tlsOf("common_tls_context: {tls_certificates: [{"+inFiles+"}], validation_context: {"+ca+"}}"), "", socket)),
		dial(t, bootstrap(tlsOf("common_tls_context: {"+sds+"}"), "", socket)),
	}
	anonymous := dial(t, bootstrap(validation(ca), "", socket))
	if err := call(t, anonymous); err == nil {
		t.Error("a server takes a client without the certificate that it asks for")
	}
	seen := func(s *server, want string) {
		t.Helper()
		for i, c := range conns {
			again(t, c)
			if got := s.last().client; got != want {
				t.Errorf("connection %d shows the certificate of %q, want %q", i, got, want)
			}
		}
	}
	restart := func() *server {
		s.Stop()
		s = serve(t, listen(t, "unix", socket), config)
		return s
	}
	seen(s, "first")
	ours.Renew(client, authority.Leaf{DNS: []string{"second"}})
	seen(s, "first") // a connection that is made stays
	seen(restart(), "second")
	if err := os.WriteFile(client.Cert, []byte("half a certif"), 0o600); err != nil {
		t.Fatal(err)
	}
	seen(restart(), "second")
	ours.Renew(client, authority.Leaf{DNS: []string{"third"}})
	seen(restart(), "third")
}

// What is wrong with files is told by the connection, and looked at again.
func TestFilesThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	a := authority.New(t)
	s, _ := secureServer(t, a, authority.Leaf{}, nil)
	dir := t.TempDir()
	late := filepath.Join(dir, "late.pem")
	c := dial(t, bootstrap(validation(fmt.Sprintf("trusted_ca: {filename: %q}", late)), "", s.addr))
	if err := call(t, c); err == nil || !strings.Contains(err.Error(), "late.pem") {
		t.Errorf("a missing file: %v", err)
	}
	if err := os.WriteFile(late, read(t, a.File), 0o600); err != nil {
		t.Fatal(err)
	}
	again(t, c)
	named := func(fields string) string {
		return tlsOf(fmt.Sprintf("common_tls_context: {validation_context_sds_secret_config: {name: ca, sds_config: {path: %q}}}", fields))
	}
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for want, socket := range map[string]string{
		"larger than":                validation(fmt.Sprintf("trusted_ca: {filename: %q}", large)),
		"not a file":                 validation(fmt.Sprintf("trusted_ca: {filename: %q}", dir)),
		"no certificate":             validation("trusted_ca: {inline_string: x}"),
		"has no secret":              named(secrets(t, "other", "validation_context: {}")),
		"another kind":               named(secrets(t, "ca", "tls_certificate: {}")),
		"validation_context.crl":     named(secrets(t, "ca", "validation_context: {crl: {filename: x}}")),
		"without an authority":       named(secrets(t, "ca", "validation_context: {match_subject_alt_names: [{exact: x}]}")),
		"tls_certificates[0].cert":   tlsOf("common_tls_context: {tls_certificates: [{certificate_chain: {inline_string: x}, private_key: {inline_string: z}}]}"),
		"large is larger":            named(large),
		"unknown field \"surprise\"": named(secrets(t, "ca", "validation_context: {surprise: 1}")),
		"private_key has no text":    tlsOf("common_tls_context: {tls_certificates: [{certificate_chain: {inline_string: x}}]}"),
	} {
		if err := call(t, dial(t, bootstrap(socket, "", s.addr))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// Endpoints are tried in turn, and a service's metadata and authority are told.
func TestEndpointsAndMetadata(t *testing.T) {
	t.Parallel()
	closed, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "s")
	onPipe, onName := serve(t, listen(t, "unix", socket), nil), serve(t, listen(t, "tcp", "127.0.0.1:0"), nil)
	_, port, _ := net.SplitHostPort(onName.addr)
	service := `, initial_metadata: [{key: X-Tenant, value: "100%% one"}, {key: x-raw-bin, raw_value: AAE=}]`
	for s, endpoints := range map[*server][]string{
		onPipe: {closed, socket},
		onName: {closed, "localhost:" + port},
	} {
		c := dial(t, bootstrap("", service, endpoints...))
		if err := call(t, c); err != nil {
			t.Fatalf("%v: %v", endpoints, err)
		}
		got := s.last().metadata
		for key, want := range map[string]string{":authority": "control-plane", "x-tenant": "100% one", "x-raw-bin": "\x00\x01"} {
			if v := got.Get(key); len(v) != 1 || v[0] != want {
				t.Errorf("%s: %q, want %q", key, v, want)
			}
		}
		stream, err := c.NewStream(t.Context(), &grpc.StreamDesc{ServerStreams: true}, "/some.Service/Stream")
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(stream.SendMsg(&emptypb.Empty{}), stream.CloseSend(), stream.RecvMsg(&emptypb.Empty{})); err != nil {
			t.Fatal(err)
		}
		if v := s.last().metadata.Get("x-tenant"); len(v) != 1 {
			t.Errorf("a stream tells %q", v)
		}
	}
	if err := call(t, dial(t, bootstrap("", "", closed))); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("nobody there: %v", err)
	}
}

// google is a bootstrap with a google_grpc service.
func google(target, fields string) string {
	return fmt.Sprintf("dynamic_resources: {lds_config: {api_config_source: {api_type: GRPC, grpc_services: [{google_grpc: {target_uri: %q, %s}}]}}}", target, fields)
}

// gRPC's own library asks for the name that is dialled, and shows a token of a file, as
// it is when a call is made.
func TestGoogle(t *testing.T) {
	t.Parallel()
	a := authority.New(t)
	s, _ := secureServer(t, a, authority.Leaf{IP: "127.0.0.1", DNS: []string{"control.example"}}, nil)
	other, _ := secureServer(t, a, authority.Leaf{DNS: []string{"control.example"}}, nil)
	tokenFile := filepath.Join(t.TempDir(), "token")
	writeToken := func(text string) {
		if err := os.WriteFile(tokenFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ssl := fmt.Sprintf("channel_credentials: {ssl_credentials: {root_certs: {filename: %q}}}", a.File)
	plugin := fmt.Sprintf(`call_credentials: [{from_plugin: {name: envoy.grpc_credentials.file_based_metadata, typed_config: {"@type": type.googleapis.com/envoy.config.grpc_credential.v3.FileBasedMetadataConfig, secret_data: {filename: %q}, header_prefix: "Bearer "}}}]`, tokenFile)
	c := dial(t, google(s.addr, ssl+", "+plugin))
	if err := call(t, c); err == nil || !strings.Contains(err.Error(), "no token") {
		t.Errorf("without a token: %v", err)
	}
	for _, text := range []string{"one", "two"} {
		writeToken(text + "\n")
		if err := call(t, c); err != nil {
			t.Fatal(err)
		}
		if got := s.last().metadata; got.Get("authorization")[0] != "Bearer "+text || got.Get(":authority")[0] != s.addr {
			t.Errorf("it is told %v", got)
		}
	}
	writeToken("secret\nx")
	if err := call(t, c); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("two lines: %v", err)
	}
	if err := call(t, dial(t, google("dns:///"+other.addr, ssl))); err == nil || !strings.Contains(err.Error(), "somebody else") {
		t.Errorf("another name: %v", err)
	}
	named := dial(t, google(other.addr, ssl+`, channel_args: {args: {grpc.ssl_target_name_override: {string_value: control.example}}}, call_credentials: [{access_token: three}]`))
	if err := call(t, named); err != nil {
		t.Error(err)
	}
	if got := other.last().metadata.Get("authorization"); got[0] != "Bearer three" || other.asked() != "control.example" {
		t.Errorf("it is told %q, and asked for %q", got, other.asked())
	}
	socket := filepath.Join(t.TempDir(), "s")
	local := serve(t, listen(t, "unix", socket), nil)
	writeToken("four")
	if err := call(t, dial(t, google("unix://"+socket, plugin))); err != nil || local.last().metadata.Get("authorization")[0] != "Bearer four" {
		t.Errorf("over a socket: %v", err)
	}
}

func TestPings(t *testing.T) {
	t.Parallel()
	of := func(seconds int) string {
		return fmt.Sprintf("    http2_protocol_options: {connection_keepalive: {interval: %ds, timeout: 5s}}\n", seconds)
	}
	for text, want := range map[string]time.Duration{
		bootstrap("", "", "127.0.0.1:1"):     0,
		bootstrap(of(1), "", "127.0.0.1:1"):  MinPing,
		bootstrap(of(30), "", "127.0.0.1:1"): 30 * time.Second,
		google("a", "channel_args: {args: {grpc.keepalive_time_ms: {int_value: 10}, grpc.keepalive_timeout_ms: {int_value: 5000}}}"): MinPing,
	} {
		p, err := readPlan(plane(t, text))
		if err != nil || p.ping.Time != want || want > 0 && p.ping.Timeout != 5*time.Second {
			t.Errorf("%v, %v; want one every %v", p.ping, err, want)
		}
	}
}

func TestTargets(t *testing.T) {
	t.Parallel()
	for uri, want := range map[string]attach.Endpoint{
		"a.example:1":        {Network: "tcp", Address: "a.example:1"},
		"a.example":          {Network: "tcp", Address: "a.example:443"},
		"dns:///a.example:1": {Network: "tcp", Address: "a.example:1"},
		"dns:a.example":      {Network: "tcp", Address: "a.example:443"},
		"ipv4:10.0.0.1:1":    {Network: "tcp", Address: "10.0.0.1:1"},
		"ipv6:[::1]:1":       {Network: "tcp", Address: "[::1]:1"},
		"[::1]":              {Network: "tcp", Address: "[::1]:443"},
		"unix:///run/s":      {Network: "unix", Address: "/run/s"},
		"unix:/run/s":        {Network: "unix", Address: "/run/s"},
		"unix:here/s":        {Network: "unix", Address: "here/s"},
		"xds:///a.example":   {},
		"dns://8.8.8.8/a:1":  {},
	} {
		got, err := target(uri, "f")
		if got != want || (err != nil) != (want.Network == "") {
			t.Errorf("%s: %v, %v", uri, got, err)
		}
	}
}

// What the agent cannot do is refused with the field that asks for it.
func TestRefuses(t *testing.T) {
	t.Parallel()
	const typed = "static_resources.clusters[0].transport_socket.typed_config"
	const common = typed + ".common_tls_context"
	const service = "dynamic_resources.lds_config.api_config_source.grpc_services[0].google_grpc"
	in := func(fields string) string {
		return bootstrap(tlsOf("common_tls_context: {"+fields+"}"), "", "127.0.0.1:1")
	}
	context := func(fields string) string { return in("validation_context: {" + fields + "}") }
	for text, field := range map[string]string{
		bootstrap(tlsOf("surprise: 1"), "", "127.0.0.1:1"):                                                       typed,
		bootstrap(tlsOf("auto_sni_san_validation: true"), "", "127.0.0.1:1"):                                     common + ".validation_context",
		in("custom_handshaker: {name: x}"):                                                                       common + ".custom_handshaker",
		in("tls_certificate_provider_instance: {instance_name: x}"):                                              common + ".tls_certificate_provider_instance",
		in("tls_certificates: [{pkcs12: {filename: x}}]"):                                                        common + ".tls_certificates[0].pkcs12",
		in("tls_certificates: [{private_key: {environment_variable: X}}]"):                                       common + ".tls_certificates[0].private_key.environment_variable",
		in("tls_certificate_sds_secret_configs: [{name: x, sds_config: {ads: {}}}]"):                             common + ".tls_certificate_sds_secret_configs[0].sds_config",
		in("validation_context_sds_secret_config: {name: x, sds_config: {api_config_source: {api_type: GRPC}}}"): common + ".validation_context_sds_secret_config.sds_config",
		in("tls_params: {tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_2}"):         common + ".tls_params",
		in("tls_params: {tls_minimum_protocol_version: 9}"):                                                      common + ".tls_params",
		in("tls_params: {compliance_policies: [FIPS_202205]}"):                                                   common + ".tls_params.compliance_policies",
		context("crl: {filename: x}"):                                                                            common + ".validation_context.crl",
		context("allow_expired_certificate: true"):                                                               common + ".validation_context.allow_expired_certificate",
		context("match_subject_alt_names: [{exact: x}]"):                                                         common + ".validation_context",
		context("match_typed_subject_alt_names: [{san_type: OTHER_NAME, matcher: {exact: x}}]"):                  common + ".validation_context.match_typed_subject_alt_names[0].san_type",
		context("match_typed_subject_alt_names: [{san_type: DNS, matcher: {safe_regex: {regex: \"(\"}}}]"):       common + ".validation_context.match_typed_subject_alt_names[0].matcher.safe_regex.regex",
		context("match_typed_subject_alt_names: [{san_type: DNS}]"):                                              common + ".validation_context.match_typed_subject_alt_names[0].matcher",
		context("verify_certificate_hash: [abc]"):                                                                common + ".validation_context.verify_certificate_hash[0]",
		context("verify_certificate_spki: [abc]"):                                                                common + ".validation_context.verify_certificate_spki[0]",
		context("trusted_ca: {environment_variable: X}"):                                                         common + ".validation_context.trusted_ca.environment_variable",
		bootstrap("", `, initial_metadata: [{key: a, value: "%HOSTNAME%"}]`, "127.0.0.1:1"):                      "dynamic_resources.ads_config.grpc_services[0].initial_metadata[0].value",
		google("xds:///a", ""): service + ".target_uri",
		google("a", "channel_credentials: {google_default: {}}"):                                                            service + ".channel_credentials",
		google("a", "call_credentials: [{access_token: x}]"):                                                                service + ".call_credentials[0]",
		google("a", "channel_credentials: {ssl_credentials: {}}, call_credentials: [{sts_service: {}}]"):                    service + ".call_credentials[0]",
		google("a", "channel_credentials: {ssl_credentials: {}}, call_credentials: [{from_plugin: {name: x}}]"):             service + ".call_credentials[0].from_plugin",
		google("a", "channel_credentials: {ssl_credentials: {}}, call_credentials: [{access_token: x}, {access_token: z}]"): service + ".call_credentials",
		google("a", "call_credentials_plugin: [{\"@type\": type.googleapis.com/google.protobuf.Empty, value: {}}]"):         service + ".call_credentials_plugin",
	} {
		_, err := New(plane(t, text), Options{})
		var p *chandler.Problem
		if !errors.As(err, &p) || p.Code != chandler.CodeEnvoyConfig || p.Field != field {
			t.Errorf("got %v, want a problem at %s", err, field)
		}
	}
}

func TestWarnings(t *testing.T) {
	t.Parallel()
	for socket, want := range map[string]string{
		tlsOf(""):      "any certificate pass",
		validation(""): "any certificate pass",
		validation("trusted_ca: {filename: x}, trust_chain_verification: ACCEPT_UNTRUSTED"):                              "any certificate pass",
		tlsOf("common_tls_context: {tls_params: {cipher_suites: [A]}, validation_context: {trusted_ca: {filename: x}}}"): "agent's own",
		validation("trusted_ca: {filename: x}"):                                                                          "",
		"":                                                                                                               "",
	} {
		got := strings.Join(dial(t, bootstrap(socket, "", "127.0.0.1:1")).Warnings, "\n")
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: warned of %q, want %q", socket, got, want)
		}
	}
}

package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	grpccredentialv3 "github.com/envoyproxy/go-control-plane/envoy/config/grpc_credential/v3"
	"google.golang.org/protobuf/reflect/protoreflect"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// google reads a service that Envoy would reach with gRPC's own library.
func (p *plan) google(g *corev3.GrpcService_GoogleGrpc, path string) error {
	if err := only(g, path, "target_uri", "stat_prefix", "channel_credentials", "call_credentials", "credentials_factory_name",
		"channel_args", "per_stream_buffer_limit_bytes"); err != nil {
		return err
	}
	endpoint, err := target(g.GetTargetUri(), path+".target_uri")
	if err != nil {
		return err
	}
	p.endpoints = []attach.Endpoint{endpoint}
	host := endpoint.Address
	if p.authority = endpoint.Address; endpoint.Network == "unix" {
		p.authority, host = "localhost", "localhost"
	} else if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	args := g.GetChannelArgs().GetArgs()
	if a := args["grpc.default_authority"].GetStringValue(); a != "" {
		p.authority = a
	}
	if name := args["grpc.ssl_target_name_override"].GetStringValue(); name != "" {
		host = name
	}
	milliseconds := func(name string) time.Duration { return time.Duration(args[name].GetIntValue()) * time.Millisecond }
	if interval := milliseconds("grpc.keepalive_time_ms"); interval > 0 {
		p.pingEvery(interval, milliseconds("grpc.keepalive_timeout_ms"))
	}
	if err := p.channel(g.GetChannelCredentials(), path+".channel_credentials", host); err != nil {
		return err
	}
	return p.calls(g.GetCallCredentials(), path+".call_credentials", endpoint)
}

// target reads the names that gRPC's library takes.
func target(uri, path string) (attach.Endpoint, error) {
	scheme, rest, found := strings.Cut(uri, ":")
	switch {
	case found && scheme == "unix":
		return attach.Endpoint{Network: "unix", Address: strings.TrimPrefix(rest, "//")}, nil
	case found && (scheme == "dns" || scheme == "ipv4" || scheme == "ipv6"):
		uri = strings.TrimPrefix(rest, "///")
	}
	if strings.Contains(uri, "/") {
		return attach.Endpoint{}, problem(path, "write it as HOST:PORT", "the agent cannot find the target %s", chandler.Quote(uri))
	}
	if _, _, err := net.SplitHostPort(uri); err != nil {
		uri = net.JoinHostPort(strings.Trim(uri, "[]"), "443")
	}
	return attach.Endpoint{Network: "tcp", Address: uri}, nil
}

// channel reads how the connection itself is made safe.
func (p *plan) channel(c *corev3.GrpcService_GoogleGrpc_ChannelCredentials, path, host string) error {
	switch c.GetCredentialSpecifier().(type) {
	case nil, *corev3.GrpcService_GoogleGrpc_ChannelCredentials_LocalCredentials:
		return nil
	case *corev3.GrpcService_GoogleGrpc_ChannelCredentials_SslCredentials:
	default:
		return problem(path, "use ssl_credentials", "the agent has no credentials of this kind")
	}
	ssl, path := c.GetSslCredentials(), path+".ssl_credentials"
	s := &secure{sni: host, hostname: host, next: []string{"h2"}, ca: source{data: ssl.GetRootCerts(), path: path + ".root_certs"}, system: ssl.GetRootCerts() == nil}
	for _, d := range []struct {
		data *corev3.DataSource
		name string
	}{{ssl.GetRootCerts(), "root_certs"}, {ssl.GetPrivateKey(), "private_key"}, {ssl.GetCertChain(), "cert_chain"}} {
		if err := checkData(d.data, path+"."+d.name); err != nil {
			return err
		}
	}
	if net.ParseIP(host) != nil {
		s.sni = ""
	}
	if ssl.GetCertChain() != nil || ssl.GetPrivateKey() != nil {
		s.pairs = []pair{{chain: source{data: ssl.GetCertChain(), path: path + ".cert_chain"}, key: source{data: ssl.GetPrivateKey(), path: path + ".private_key"}}}
	}
	p.tls = s
	return nil
}

// token is what is shown with every call.
type token struct {
	header, prefix string
	text           string // itself, or else it is in
	data           source
	plain          bool // it may go over a connection that is not encrypted
}

// calls reads what is shown with every call.
func (p *plan) calls(list []*corev3.GrpcService_GoogleGrpc_CallCredentials, path string, endpoint attach.Endpoint) error {
	if len(list) > 1 {
		return problem(path, "give one", "the agent can show one credential, not %d", len(list))
	}
	for i, c := range list {
		path := fmt.Sprintf("%s[%d]", path, i)
		t := &token{header: "authorization", plain: endpoint.Network == "unix"}
		switch c.GetCredentialSpecifier().(type) {
		case *corev3.GrpcService_GoogleGrpc_CallCredentials_AccessToken:
			t.prefix, t.text = "Bearer ", c.GetAccessToken()
		case *corev3.GrpcService_GoogleGrpc_CallCredentials_FromPlugin:
			if err := t.plugin(c.GetFromPlugin(), path+".from_plugin"); err != nil {
				return err
			}
		default:
			return problem(path, "use access_token, or from_plugin with envoy.grpc_credentials.file_based_metadata", "the agent has no credentials of this kind")
		}
		if p.tls == nil && !t.plain {
			return problem(path, "add channel_credentials.ssl_credentials", "a credential must not go over a connection that is not encrypted")
		}
		p.token = t
	}
	return nil
}

func (t *token) plugin(plugin *corev3.GrpcService_GoogleGrpc_CallCredentials_MetadataCredentialsFromPlugin, path string) error {
	var file grpccredentialv3.FileBasedMetadataConfig
	if err := plugin.GetTypedConfig().UnmarshalTo(&file); err != nil {
		return problem(path, "use envoy.grpc_credentials.file_based_metadata", "the agent does not know the plugin %s", chandler.Quote(plugin.GetName()))
	}
	t.data = source{data: file.GetSecretData(), path: path + ".typed_config.secret_data"}
	if t.prefix = file.GetHeaderPrefix(); file.GetHeaderKey() != "" {
		t.header = strings.ToLower(file.GetHeaderKey())
	}
	return checkData(t.data.data, t.data.path)
}

// GetRequestMetadata implements credentials.PerRPCCredentials. No error tells anything
// of the token.
func (t *token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	text := t.text
	if t.data.data != nil {
		b, err := t.data.read()
		if err != nil {
			return nil, fmt.Errorf("no token to show: %w", err)
		}
		text = strings.TrimSpace(string(b))
	}
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r >= 0x7f }) {
		return nil, errors.New("no token to show: it is empty, or of more than one line")
	}
	return map[string]string{t.header: t.prefix + text}, nil
}

// RequireTransportSecurity implements credentials.PerRPCCredentials.
func (t *token) RequireTransportSecurity() bool { return !t.plain }

// only refuses a message that has fields set beside those.
func only(m protoreflect.ProtoMessage, path string, known ...protoreflect.Name) error {
	set := map[protoreflect.Name]bool{}
	for _, name := range known {
		set[name] = true
	}
	var found protoreflect.Name
	if len(m.ProtoReflect().GetUnknown()) > 0 {
		return problem(path, "leave out what is newer, if it can be reached without", "there are fields that the agent does not know")
	}
	m.ProtoReflect().Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		if !set[f.Name()] && (found == "" || f.Name() < found) {
			found = f.Name()
		}
		return true
	})
	if found == "" {
		return nil
	}
	return problem(path+"."+string(found), "leave it out, if the control plane can be reached without", "the agent cannot do what this field asks for")
}

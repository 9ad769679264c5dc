package attach

import (
	"bytes"
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler"
)

// ControlPlane is one that a bootstrap takes from: a cluster that dynamic_resources
// names, or the target of a google_grpc service.
type ControlPlane struct {
	// Cluster is the cluster's name, empty for a google_grpc service.
	Cluster string
	// Socket is the Unix socket where Envoy now says what is meant for it.
	Socket string
	// Service is the envoy.config.core.v3.GrpcService by which it is named.
	Service Part
	// Endpoints are the cluster's, in the order in which they are to be tried.
	Endpoints []Endpoint
	// ConnectTimeout is the cluster's; 0: it has none.
	ConnectTimeout time.Duration
	// TLS is the envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext of the
	// cluster; nothing without TLS.
	TLS Part
	// Keepalive is the envoy.config.core.v3.KeepaliveSettings of the cluster.
	Keepalive Part
	// HTTP is its envoy.config.core.v3.UpstreamHttpProtocolOptions.
	HTTP Part
}

// Endpoint is an address to dial: of network "tcp" with a name or an address of a host,
// or "unix".
type Endpoint struct {
	Network, Address string
	// Hostname is the name that the file gives it beside its address, if any.
	Hostname string
}

// Part is a message of a configuration, in the JSON form of protocol buffers and with
// its path there; for one that is absent JSON is nil.
type Part struct {
	Path string
	JSON []byte
}

// JSON gives a text in YAML or JSON that holds a message as Envoy would read it, in the
// JSON form of protocol buffers. Errors are *chandler.Problem.
func JSON(text []byte) ([]byte, error) {
	root, isJSON, err := parse(text)
	if err != nil {
		return nil, err
	}
	return (&Config{json: isJSON}).part(root, "").JSON, nil
}

// Types of transport sockets that are known.
const (
	tlsType       = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
	rawBufferType = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
	rawBufferName = "envoy.transport_sockets.raw_buffer"
	httpOptions   = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
)

const notBetweenHint = "let it come from a gRPC control plane, over ADS or a service of its own, in a static cluster"

// diversion finds the control planes of a bootstrap and turns what leads to them to the
// agent.
type diversion struct {
	*Config
	sockets string
	static  []item // clusters
	found   []ControlPlane
}

// divert puts the agent between Envoy and the control planes that it takes from. The
// clusters keep their names, so that config sources anywhere else need no change.
func (d *Derived) divert(root *yaml.Node, dc DeriveConfig) error {
	const path = "dynamic_resources"
	dynamic, err := message(root, "", path)
	if err != nil || dynamic == nil || len(dynamic.Content) == 0 {
		return err
	}
	if dc.UpstreamSocket == "" {
		return problem(path, "run this Envoy with static listeners and clusters",
			"the Envoy has a control plane of its own; the agent cannot stand in its stream yet")
	}
	v := &diversion{Config: &Config{json: d.json}, sockets: dc.UpstreamSocket}
	static, err := ensure(root, "", "static_resources")
	if err != nil {
		return err
	}
	if v.static, err = messages(static, "static_resources", "clusters"); err != nil {
		return err
	}
	if locator, err := field(dynamic, path, "lds_resources_locator"); err != nil {
		return err
	} else if locator != nil {
		return problem(sub(path, "lds_resources_locator"), "use lds_config alone", "listeners by a locator cannot be given plugins")
	}
	ads, err := message(dynamic, path, "ads_config")
	if err != nil {
		return err
	}
	if ads != nil {
		if err := v.service(item{ads, sub(path, "ads_config")}); err != nil {
			return err
		}
	}
	for _, name := range []string{"lds_config", "cds_config"} {
		source, err := message(dynamic, path, name)
		if err != nil {
			return err
		}
		if source == nil {
			continue
		}
		if name == "lds_config" {
			d.UpstreamListeners = true
			if d.ListenersTimeout, err = fetchTimeout(item{source, sub(path, name)}); err != nil {
				return err
			}
		}
		if err := v.source(item{source, sub(path, name)}, ads != nil, name == "cds_config"); err != nil {
			return err
		}
	}
	d.ControlPlanes = v.found
	return nil
}

// fetchTimeout reads how long Envoy waits for the first answer of a config source; 0: for
// ever.
func fetchTimeout(source item) (time.Duration, error) {
	const name = "initial_fetch_timeout"
	if given, err := field(source.Node, source.path, name); err != nil || given == nil {
		return envoysFetchTimeout, err
	}
	return duration(source, name)
}

// envoysFetchTimeout is what Envoy takes for one that is not given.
const envoysFetchTimeout = 15 * time.Second

// source reads where one type comes from. Clusters from a file are no matter of the
// agent's.
func (v *diversion) source(s item, ads, fileAllowed bool) error {
	api, err := message(s.Node, s.path, "api_config_source")
	if err != nil {
		return err
	}
	if api != nil {
		return v.service(item{api, sub(s.path, "api_config_source")})
	}
	for _, name := range []string{"path", "path_config_source"} {
		file, err := field(s.Node, s.path, name)
		switch {
		case err != nil:
			return err
		case file != nil && fileAllowed:
			return nil
		case file != nil:
			return problem(sub(s.path, name), "write the listeners into static_resources, or let a control plane serve them",
				"listeners from a file of their own cannot be given plugins")
		}
	}
	aggregated, err := message(s.Node, s.path, "ads")
	switch {
	case err != nil:
		return err
	case aggregated == nil:
		return problem(s.path, notBetweenHint, "it names no source that the agent can stand before")
	case !ads:
		return problem(sub(s.path, "ads"), "add dynamic_resources.ads_config", "it comes over ADS, and there is no ads_config")
	}
	return nil
}

// service reads an ApiConfigSource, and turns its one service to the agent.
func (v *diversion) service(api item) error {
	kind, err := scalarText(api.Node, api.path, "api_type")
	if err != nil {
		return err
	}
	if !slices.Contains([]string{"GRPC", "2", "DELTA_GRPC", "3"}, kind) {
		return problem(sub(api.path, "api_type"), "use GRPC or DELTA_GRPC", "the agent cannot stand before a control plane of API type %s", chandler.Quote(kind))
	}
	services, err := messages(api.Node, api.path, "grpc_services")
	if err != nil {
		return err
	}
	if len(services) != 1 {
		return problem(sub(api.path, "grpc_services"), "name one; its cluster may have several endpoints", "the agent stands before exactly one service, not %d", len(services))
	}
	s := services[0]
	part := v.part(s.Node, s.path)
	google, err := message(s.Node, s.path, "google_grpc")
	if err != nil {
		return err
	}
	if google != nil {
		return v.google(item{google, sub(s.path, "google_grpc")}, part)
	}
	envoy, err := message(s.Node, s.path, "envoy_grpc")
	if err != nil {
		return err
	}
	if envoy == nil {
		return problem(s.path, "use envoy_grpc or google_grpc", "the service has no target")
	}
	path := sub(s.path, "envoy_grpc")
	name, err := scalarText(envoy, path, "cluster_name")
	if err != nil {
		return err
	}
	if err := hasten(envoy, path); err != nil {
		return err
	}
	for _, known := range v.found {
		if known.Cluster != name {
			continue
		}
		if !bytes.Equal(known.Service.JSON, part.JSON) {
			return problem(s.path, "write the two services alike", "the cluster %s is named with other settings at %s", chandler.Quote(name), known.Service.Path)
		}
		return nil
	}
	for _, c := range v.static {
		found, err := scalarText(c.Node, c.path, "name")
		if err != nil {
			return err
		}
		if found == name && name != "" {
			return v.cluster(c, name, part)
		}
	}
	return problem(sub(path, "cluster_name"), "add it to static_resources.clusters", "there is no static cluster %s", chandler.Quote(name))
}

// hasten has Envoy come back soon to an agent that is started anew: it would leave it alone
// for up to half a minute. An upstream is left alone as long as the agent finds right.
func hasten(envoy *yaml.Node, path string) error {
	own, err := message(envoy, path, "retry_policy")
	if err != nil || own != nil {
		return err
	}
	return set(envoy, path, "retry_policy", fromObject(agentRetry()))
}

// add notes a control plane, and gives it its socket.
func (v *diversion) add(c ControlPlane) string {
	c.Socket = v.sockets
	if n := len(v.found); n > 0 {
		c.Socket += "-" + strconv.Itoa(n+1)
	}
	v.found = append(v.found, c)
	return c.Socket
}

// google turns a google_grpc service to the agent, to whom nothing is to be proven.
func (v *diversion) google(g item, part Part) error {
	target, err := scalarText(g.Node, g.path, "target_uri")
	if err != nil {
		return err
	}
	if target == "" {
		return problem(sub(g.path, "target_uri"), "", "the service has no target")
	}
	socket := ""
	for _, known := range v.found {
		if bytes.Equal(known.Service.JSON, part.JSON) {
			socket = known.Socket
		}
	}
	if socket == "" {
		socket = v.add(ControlPlane{Service: part})
	}
	for _, name := range []string{"channel_credentials", "channel_credentials_plugin", "call_credentials", "call_credentials_plugin", "credentials_factory_name"} {
		if err := remove(g.Node, g.path, name); err != nil {
			return err
		}
	}
	return set(g.Node, g.path, "target_uri", newString("unix:"+socket))
}

// cluster reads a control plane's cluster, and turns it to the agent.
func (v *diversion) cluster(c item, name string, service Part) error {
	cp := ControlPlane{Cluster: name, Service: service}
	if custom, err := field(c.Node, c.path, "cluster_type"); err != nil {
		return err
	} else if custom != nil {
		return problem(sub(c.path, "cluster_type"), "use type: STATIC, STRICT_DNS or LOGICAL_DNS", "the agent cannot find the endpoints of a cluster of this kind")
	}
	kind, err := scalarText(c.Node, c.path, "type")
	if err != nil {
		return err
	}
	if !slices.Contains([]string{"", "STATIC", "0", "STRICT_DNS", "1", "LOGICAL_DNS", "2"}, kind) {
		return problem(sub(c.path, "type"), "use STATIC, STRICT_DNS or LOGICAL_DNS", "the agent cannot find the endpoints of a cluster of type %s", chandler.Quote(kind))
	}
	if cp.Endpoints, err = endpoints(c); err != nil {
		return err
	}
	if cp.ConnectTimeout, err = duration(c, "connect_timeout"); err != nil {
		return err
	}
	if cp.TLS, err = v.transportSocket(c); err != nil {
		return err
	}
	if err := v.protocol(c, &cp); err != nil {
		return err
	}
	return retarget(c, name, v.add(cp))
}

// retarget gives a cluster one endpoint, a socket of the agent's, and takes away how
// the endpoints before were reached and watched.
func retarget(c item, name, socket string) error {
	for _, gone := range []string{"transport_socket", "transport_socket_matches", "upstream_bind_config", "health_checks", "outlier_detection"} {
		if err := remove(c.Node, c.path, gone); err != nil {
			return err
		}
	}
	if err := set(c.Node, c.path, "type", newString("STATIC")); err != nil {
		return err
	}
	return set(c.Node, c.path, "load_assignment", fromObject(pipeTo(name, socket)))
}

// endpoints gives those of a cluster, by priority.
func endpoints(c item) ([]Endpoint, error) {
	path := sub(c.path, "load_assignment")
	assignment, err := message(c.Node, c.path, "load_assignment")
	if err != nil {
		return nil, err
	}
	if assignment == nil {
		assignment = newMapping()
	}
	localities, err := messages(assignment, path, "endpoints")
	if err != nil {
		return nil, err
	}
	priorities := map[string]uint32{}
	for _, l := range localities {
		if priorities[l.path], err = number(l.Node, l.path, "priority"); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(localities, func(a, b item) int { return cmp.Compare(priorities[a.path], priorities[b.path]) })
	var all []Endpoint
	for _, l := range localities {
		list, err := messages(l.Node, l.path, "lb_endpoints")
		if err != nil {
			return nil, err
		}
		for _, lb := range list {
			e, err := endpoint(lb)
			if err != nil {
				return nil, err
			}
			all = append(all, e)
		}
	}
	if len(all) == 0 {
		return nil, problem(path, "give it endpoints", "the cluster has no endpoints of its own")
	}
	return all, nil
}

// endpoint reads an LbEndpoint.
func endpoint(lb item) (Endpoint, error) {
	path := sub(lb.path, "endpoint")
	inner, err := message(lb.Node, lb.path, "endpoint")
	if err != nil {
		return Endpoint{}, err
	}
	if inner == nil {
		return Endpoint{}, problem(path, "write the endpoint out", "the endpoint has no address")
	}
	var e Endpoint
	if e.Hostname, err = scalarText(inner, path, "hostname"); err != nil {
		return e, err
	}
	l := item{inner, path}
	socket, at, err := socketAddress(l)
	if err != nil {
		return e, err
	}
	if socket == nil {
		e.Network = "unix"
		if e.Address, err = fullAddress(l); err == nil && e.Address == "" {
			err = problem(sub(path, "address"), "use socket_address or pipe", "the agent cannot reach an address of this kind")
		}
		return e, err
	}
	host, err := scalarText(socket, at, "address")
	if err != nil {
		return e, err
	}
	port, err := number(socket, at, "port_value")
	if err == nil && (host == "" || port == 0) {
		err = problem(at, "give it an address and a port_value", "the endpoint has no address to dial")
	}
	e.Network, e.Address = "tcp", net.JoinHostPort(host, strconv.FormatUint(uint64(port), 10))
	return e, err
}

// transportSocket gives a cluster's TLS, nothing when it has none. Others cannot be
// taken over.
func (v *diversion) transportSocket(c item) (Part, error) {
	if matches, err := field(c.Node, c.path, "transport_socket_matches"); err != nil {
		return Part{}, err
	} else if matches != nil {
		return Part{}, problem(sub(c.path, "transport_socket_matches"), "use transport_socket", "the agent cannot choose among transport sockets")
	}
	path := sub(c.path, "transport_socket")
	socket, err := message(c.Node, c.path, "transport_socket")
	if err != nil || socket == nil {
		return Part{}, err
	}
	name, err := scalarText(socket, path, "name")
	if err != nil {
		return Part{}, err
	}
	body, kind, err := typedBody(socket, path, "typed_config")
	switch {
	case err != nil:
		return Part{}, err
	case kind == tlsType && body.Node != nil:
		return v.part(body.Node, body.path), nil
	case kind == rawBufferType, kind == "" && name == rawBufferName:
		return Part{}, nil
	}
	return Part{}, problem(path, "use envoy.transport_sockets.tls, or none", "the agent cannot speak through the transport socket %s", chandler.Quote(cmp.Or(kind, name)))
}

// typedBody is the message in an Any, also inside a TypedStruct, without its type.
func typedBody(m *yaml.Node, path, name string) (item, string, error) {
	typed, err := message(m, path, name)
	if err != nil || typed == nil {
		return item{}, "", err
	}
	body, kind, err := unwrap(item{typed, sub(path, name)})
	if err != nil || body.Node == nil || !has(body.Node, "@type") {
		return body, kind, err
	}
	plain := &yaml.Node{Kind: yaml.MappingNode, Tag: body.Tag}
	for i := 0; i+1 < len(body.Content); i += 2 {
		if body.Content[i].Value != "@type" {
			plain.Content = append(plain.Content, body.Content[i], body.Content[i+1])
		}
	}
	return item{plain, body.path}, kind, nil
}

// protocol reads what decides how the connection is kept alive and which name TLS asks
// for, in both of the places where a cluster can have it.
func (v *diversion) protocol(c item, cp *ControlPlane) error {
	at := c
	options, err := message(c.Node, c.path, "typed_extension_protocol_options")
	if err != nil {
		return err
	}
	if options != nil {
		body, kind, err := typedBody(options, sub(c.path, "typed_extension_protocol_options"), httpOptions)
		if err != nil {
			return err
		}
		if kind == httpOptions && body.Node != nil {
			at = body
		}
	}
	http, err := message(at.Node, at.path, "upstream_http_protocol_options")
	if err != nil {
		return err
	}
	if http != nil {
		cp.HTTP = v.part(http, sub(at.path, "upstream_http_protocol_options"))
	}
	for _, name := range []string{"explicit_http_config", "http2_protocol_options", "connection_keepalive"} {
		inner, err := message(at.Node, at.path, name)
		switch {
		case err != nil:
			return err
		case inner != nil:
			at = item{inner, sub(at.path, name)}
		case name != "explicit_http_config":
			return nil
		}
	}
	cp.Keepalive = v.part(at.Node, at.path)
	return nil
}

// duration reads one as protocol buffers write it; an absent one is 0.
func duration(m item, name string) (time.Duration, error) {
	text, err := scalarText(m.Node, m.path, name)
	if err != nil || text == "" {
		return 0, err
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 || !strings.HasSuffix(text, "s") {
		return 0, problem(sub(m.path, name), "write it as 1.5s", "%s is no duration", chandler.Quote(text))
	}
	return d, nil
}

// part gives a tree in JSON, with its scalars as Envoy reads them.
func (c *Config) part(n *yaml.Node, path string) Part {
	n = clone(n)
	if !c.json {
		plainYAML(n)
	}
	var b bytes.Buffer
	renderJSON(&b, n)
	return Part{Path: path, JSON: b.Bytes()}
}

func clone(n *yaml.Node) *yaml.Node {
	c := *n
	c.Content = make([]*yaml.Node, len(n.Content))
	for i := range n.Content {
		c.Content[i] = clone(n.Content[i])
	}
	return &c
}

// plainYAML makes of every plain scalar what Envoy's reader of YAML makes of it: null,
// a truth, a whole number, or else a text.
func plainYAML(n *yaml.Node) {
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			continue // a key is always a text
		}
		plainYAML(c)
	}
	if n.Kind != yaml.ScalarNode || n.Style&yaml.DoubleQuotedStyle != 0 || isNull(n) {
		return
	}
	switch strings.ToLower(n.Value) {
	case "true", "yes", "on", "y":
		n.Value = "true"
		return
	case "false", "no", "off", "n":
		n.Value = "false"
		return
	}
	if i, err := strconv.ParseInt(n.Value, 0, 64); err == nil && int64(int32(i)) == i && !strings.Contains(n.Value, "_") {
		n.Value = fmt.Sprint(i)
		return
	}
	n.Style |= yaml.DoubleQuotedStyle
}

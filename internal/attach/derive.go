package attach

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	yaml "go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
)

// ExtensionConfigType is the type URL of the resources that slots are filled by.
const ExtensionConfigType = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"

// DeriveConfig says what a derived bootstrap is derived for.
type DeriveConfig struct {
	// NodeID and Cluster are written where the user's file has no node id or
	// cluster, and never change what is there. Empty: nothing is written, for
	// instance because the command line gives them.
	NodeID, Cluster string
	// ADSSocket is the Unix socket where the agent serves slots.
	ADSSocket string
	// UpstreamSocket is the Unix socket where the agent takes what Envoy says to the
	// control plane of its own; for a second one "-2" is added, and so on. Empty: an
	// Envoy that has one is refused.
	UpstreamSocket string
	// ListenersFile is where Envoy will read Derived.Listeners from: a path
	// without its extension, to which Derived.Extension is added.
	ListenersFile string
	// AdminSocket is the Unix socket for Envoy's admin interface where the user's
	// file has none.
	AdminSocket string
	// AdminMode is the mode of that socket; 0: as Envoy makes it.
	AdminMode uint32
	// ListenersVersion is the version_info of the listeners file; empty: a hash
	// of its content.
	ListenersVersion string
	// NoSharedSlots is set for an Envoy that lacks the filter which shared slots
	// need (before 1.39): there every HTTP plugin has a slot of its own.
	NoSharedSlots bool
	// Waypoint: the proxy is one, in whose listeners no plugins run.
	Waypoint bool
}

// Derived is a bootstrap with slots, in two files.
type Derived struct {
	// Bootstrap is the file for Envoy's --config-path, Listeners the one for
	// DeriveConfig.ListenersFile. Both are of the syntax that Extension says.
	Bootstrap, Listeners []byte
	// Extension is ".yaml" or, when the user's file was JSON, ".json".
	Extension string
	// ListenersFile is the path that Bootstrap names for Listeners.
	ListenersFile string
	// ListenersVersion is the version_info in Listeners.
	ListenersVersion string
	// ListenerNames are the names in Listeners, in the order of the user's file.
	ListenerNames []string
	// Slots are all the shared slots that the listeners use, distinct and in
	// order.
	Slots []Slot
	// Sites are where slots of one plugin can enter, distinct and in order; see
	// ListenersWith.
	Sites []Site
	// Layout are the listeners with their places, in the order of the user's file.
	Layout []Listener
	// Admin is where Envoy's admin interface listens.
	Admin Admin
	// AgentCluster is the name of the cluster that was added for the agent; empty: slots
	// come over the ADS stream of one of ControlPlanes.
	AgentCluster string
	// ControlPlanes are those that the user's file takes from, which Envoy now
	// reaches through the agent only.
	ControlPlanes []ControlPlane
	// UpstreamListeners: listeners come from one of ControlPlanes. Then there is no
	// listeners file, those that the file has stay in it and run no plugins, and
	// PlaceSlots is for what comes.
	UpstreamListeners bool
	// ListenersTimeout is how long Envoy waits for the first of these before it goes on
	// without any; 0: it never does.
	ListenersTimeout time.Duration
	// Warnings are sentences for a person.
	Warnings []string

	// templates are the user's listeners, named but without slots.
	templates []item
	shared    bool
	waypoint  bool
	json      bool
}

// Admin is an address to dial.
type Admin struct {
	// Network is "tcp" or "unix"; Address is what net.Dial wants with it. An
	// address that listens on all interfaces is given as a loopback one. Port 0
	// stays 0: only --admin-address-path tells what it became.
	Network, Address string
}

// agentCluster is the name of the cluster through which Envoy reaches its agent,
// unless the user's file has one of that name.
const agentCluster = "chandler_agent"

const listenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"

// Derive edits an Envoy configuration so that every HTTP connection manager of
// its listeners has the slots of its mode and port: the listeners move to a file
// that Envoy watches, and slots come over ADS from the agent. Where the user's file
// takes listeners, or ADS, from a control plane, that stays so, through the agent. All
// else stays as it is, extensions that nobody here knows included. What cannot be edited
// with certainty is refused. Errors are *chandler.Problem, with the path of the field in
// the user's configuration; config itself is not changed.
func Derive(config *Config, dc DeriveConfig) (Derived, error) {
	root, err := (&resolver{open: map[*yaml.Node]bool{}}).resolve(config.root)
	if err != nil {
		return Derived{}, err
	}
	d := Derived{Extension: ".yaml", json: config.json, shared: !dc.NoSharedSlots, waypoint: dc.Waypoint}
	if config.json {
		d.Extension = ".json"
	}
	for _, step := range []func(*yaml.Node, DeriveConfig) error{
		d.divert, d.takeListeners, d.addSlots, d.addDynamic, addNode, d.addAdmin, d.readListeners,
	} {
		if err := step(root, dc); err != nil {
			return Derived{}, err
		}
	}
	d.Bootstrap, err = render(root, config.json)
	return d, err
}

// PlaceSlots puts slots into a listener of one of the control planes; see the function
// of that name.
func (d *Derived) PlaceSlots(listener *anypb.Any, own []Slot) (Placed, error) {
	placed, err := PlaceSlots(listener, own, !d.shared)
	if err == nil && d.waypoint {
		placed.Resource, placed.Warnings = listener, nil
		placed.Layout.Slots, placed.Layout.Sites, placed.Layout.Counted = nil, nil, nil
		err = chandler.Problemf(chandler.CodeUnsupportedTarget, "", chandler.HintUnsupportedTarget, "the proxy is a waypoint, which runs no plugins")
	}
	return placed, err
}

// takeListeners takes all listeners out of root, except those of the API, which
// Envoy accepts nowhere else. Beside listeners of a control plane they stay: Envoy has
// one source of listeners.
func (d *Derived) takeListeners(root *yaml.Node, dc DeriveConfig) error {
	const path = "static_resources"
	static, err := ensure(root, "", path)
	if err != nil {
		return err
	}
	all, err := messages(static, path, "listeners")
	if err != nil {
		return err
	}
	if d.UpstreamListeners {
		if len(all) > 0 {
			d.warn("%s of the file must stay without plugins: the others come from a control plane", chandler.Count(len(all), "listener", "listeners"))
		}
		return nil
	}
	d.ListenersFile = dc.ListenersFile + d.Extension
	if d.ListenerNames, err = nameListeners(all); err != nil {
		return err
	}
	var kept []*yaml.Node
	for _, l := range all {
		if api, err := field(l.Node, l.path, "api_listener"); err != nil {
			return err
		} else if api != nil {
			kept = append(kept, l.Node)
			d.warn("%s is an API listener: it stays as it is and runs no plugins", l.path)
			continue
		}
		d.templates = append(d.templates, l)
	}
	if len(kept) > 0 {
		return set(static, path, "listeners", newSequence(kept...))
	}
	return remove(static, path, "listeners")
}

// readListeners learns what the listeners hold, and gives their file as it is
// without slots of one plugin.
func (d *Derived) readListeners(_ *yaml.Node, dc DeriveConfig) error {
	if d.UpstreamListeners {
		return nil
	}
	e, listeners, err := d.edit(nil)
	if err != nil {
		return err
	}
	d.Warnings = append(d.Warnings, e.warnings...)
	d.Slots = slices.SortedFunc(maps.Keys(e.slots), Slot.Compare)
	d.Sites = slices.SortedFunc(maps.Keys(e.sites), Site.Compare)
	d.Layout = e.layout
	if !slices.ContainsFunc(d.Sites, func(s Site) bool { return !s.Network }) && len(d.Slots) == 0 {
		d.warn("no listener has an HTTP connection manager: no HTTP plugin can run here")
	}
	d.Listeners, d.ListenersVersion, err = renderListeners(listeners, dc.ListenersVersion, d.json)
	return err
}

// ListenersWith gives the content and the version of the listeners file in which
// the slots of one plugin in own stand, at their sites and in their order there.
func (d *Derived) ListenersWith(own []Slot) (text []byte, version string, err error) {
	_, listeners, err := d.edit(own)
	if err != nil {
		return nil, "", err
	}
	return renderListeners(listeners, "", d.json)
}

// NoListeners is a listeners file for an Envoy that must not listen yet.
func (d *Derived) NoListeners() []byte { return []byte(`{"version_info": "none", "resources": []}`) }

// OwnSlots gives the slots of one plugin that stand in a listeners file, each
// once, in an order that ListenersWith takes to the same file.
func OwnSlots(text []byte) ([]Slot, error) {
	root, _, err := parse(text)
	if err != nil {
		return nil, err
	}
	var own []Slot
	var walk func(*yaml.Node)
	walk = func(n *yaml.Node) {
		for i, c := range n.Content {
			if n.Kind == yaml.MappingNode && i%2 == 1 && n.Content[i-1].Value == "name" {
				if slot, ok := ParseSlot(c.Value); ok && !slot.Shared() && !slices.Contains(own, slot) {
					own = append(own, slot)
				}
			}
			walk(c)
		}
	}
	walk(root)
	return own, nil
}

// edit puts slots into copies of the user's listeners.
func (d *Derived) edit(own []Slot) (*editor, []*yaml.Node, error) {
	e := &editor{plan: newPlan(d.shared, own)}
	var listeners []*yaml.Node
	for _, template := range d.templates {
		l, err := (&resolver{open: map[*yaml.Node]bool{}}).resolve(template.Node)
		if err != nil {
			return nil, nil, err
		}
		if err := e.listener(item{l, template.path}); err != nil {
			return nil, nil, err
		}
		listeners = append(listeners, l)
	}
	return e, listeners, nil
}

// nameListeners gives every listener without a name one that stays the same as
// long as its address and its place do: of two unnamed listeners Envoy would
// lose one, and an unnamed one is replaced whenever the file is written.
func nameListeners(all []item) ([]string, error) {
	taken := map[string]bool{}
	names := make([]string, len(all))
	for i, l := range all {
		var err error
		if names[i], err = scalarText(l.Node, l.path, "name"); err != nil {
			return nil, err
		}
		if names[i] != "" && taken[names[i]] {
			return nil, problem(sub(l.path, "name"), "give every listener a name of its own", "another listener is called %s too", chandler.Quote(names[i]))
		}
		taken[names[i]] = true
	}
	var moved []string
	for i, l := range all {
		if has(l.Node, "api_listener") || has(l.Node, camel("api_listener")) {
			continue
		}
		if names[i] == "" {
			address, err := listenerAddress(l)
			if err != nil {
				return nil, err
			}
			names[i] = fmt.Sprintf("chandler-%s-%d", address, i)
			for taken[names[i]] {
				names[i] += "x"
			}
			taken[names[i]] = true
			if err := set(l.Node, l.path, "name", newString(names[i])); err != nil {
				return nil, err
			}
		}
		moved = append(moved, names[i])
	}
	return moved, nil
}

// renderListeners writes the file that Envoy reads its listeners from, in the
// form of a response of the discovery protocol. Its version, unless given, is a
// hash of its content.
func renderListeners(listeners []*yaml.Node, given string, asJSON bool) (text []byte, version string, err error) {
	for _, l := range listeners {
		l.Content = append([]*yaml.Node{newKey("@type"), newString(listenerType)}, l.Content...)
	}
	resources := newSequence(listeners...)
	if version = given; version == "" {
		text, err := render(resources, asJSON)
		if err != nil {
			return nil, "", err
		}
		sum := sha256.Sum256(text)
		version = hex.EncodeToString(sum[:8])
	}
	file := newMapping()
	file.Content = []*yaml.Node{newKey("version_info"), newString(version), newKey("resources"), resources}
	text, err = render(file, asJSON)
	return text, version, err
}

// addSlots has Envoy ask the agent for slots, over ADS. Where that is a control plane's,
// the agent is at its other end already.
func (d *Derived) addSlots(root *yaml.Node, dc DeriveConfig) error {
	const path = "dynamic_resources"
	dynamic, err := ensure(root, "", path)
	if err != nil {
		return err
	}
	ads, err := message(dynamic, path, "ads_config")
	if err != nil || ads != nil {
		return err
	}
	if err := d.addCluster(root, dc); err != nil {
		return err
	}
	return set(dynamic, path, "ads_config", fromObject(agentSource(d.AgentCluster)))
}

// addCluster adds the cluster whose one endpoint is the agent's socket.
func (d *Derived) addCluster(root *yaml.Node, dc DeriveConfig) error {
	const path = "static_resources"
	static, err := ensure(root, "", path)
	if err != nil {
		return err
	}
	clusters, err := messages(static, path, "clusters")
	if err != nil {
		return err
	}
	taken := map[string]bool{}
	nodes := make([]*yaml.Node, len(clusters))
	for i, c := range clusters {
		name, err := scalarText(c.Node, c.path, "name")
		if err != nil {
			return err
		}
		taken[name], nodes[i] = true, c.Node
	}
	d.AgentCluster = agentCluster
	for n := 2; taken[d.AgentCluster]; n++ {
		d.AgentCluster = fmt.Sprintf("%s_%d", agentCluster, n)
	}
	cluster := fromObject(object{
		"name":            d.AgentCluster,
		"type":            "STATIC",
		"connect_timeout": "1s",
		"load_assignment": pipeTo(d.AgentCluster, dc.ADSSocket),
		"typed_extension_protocol_options": object{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": object{
			"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
			"explicit_http_config": object{"http2_protocol_options": object{}},
		}},
	})
	return set(static, path, "clusters", newSequence(append(nodes, cluster)...))
}

// pipeTo is the load assignment of a cluster with one endpoint, a socket.
func pipeTo(cluster, socket string) object {
	endpoint := object{"endpoint": object{"address": object{"pipe": object{"path": socket}}}}
	return object{"cluster_name": cluster, "endpoints": []object{{"lb_endpoints": []object{endpoint}}}}
}

// addDynamic tells Envoy to read its listeners from the file, unless they come from a
// control plane.
func (d *Derived) addDynamic(root *yaml.Node, _ DeriveConfig) error {
	const path = "dynamic_resources"
	if d.UpstreamListeners {
		return nil
	}
	dynamic, err := ensure(root, "", path)
	if err != nil {
		return err
	}
	return set(dynamic, path, "lds_config", fromObject(object{
		"resource_api_version": "V3",
		"path_config_source":   object{"path": d.ListenersFile},
	}))
}

// How soon Envoy tries again: an agent that restarts is to be found at once.
const (
	agentBackOff    = 50 * time.Millisecond
	agentBackOffMax = 500 * time.Millisecond
)

// agentSource asks the agent: the node only in the first message, as it is 61 KB.
func agentSource(cluster string) object {
	return object{
		"api_type":                       "DELTA_GRPC",
		"transport_api_version":          "V3",
		"set_node_on_first_message_only": true,
		"grpc_services": []object{{"envoy_grpc": object{
			"cluster_name": cluster,
			"retry_policy": agentRetry(),
		}}},
	}
}

func agentRetry() object {
	seconds := func(d time.Duration) string { return fmt.Sprintf("%.3fs", d.Seconds()) }
	return object{"retry_back_off": object{"base_interval": seconds(agentBackOff), "max_interval": seconds(agentBackOffMax)}}
}

// addNode writes node id and cluster where there are none: without them Envoy
// has no stream.
func addNode(root *yaml.Node, dc DeriveConfig) error {
	for _, f := range []struct{ name, value string }{{"id", dc.NodeID}, {"cluster", dc.Cluster}} {
		if f.value == "" {
			continue
		}
		node, err := ensure(root, "", "node")
		if err != nil {
			return err
		}
		own, err := scalarText(node, "node", f.name)
		if err != nil {
			return err
		}
		if own == "" {
			if err := set(node, "node", f.name, newString(f.value)); err != nil {
				return err
			}
		}
	}
	return nil
}

// addAdmin finds out where the admin interface listens, and gives it a socket
// when it does not.
func (d *Derived) addAdmin(root *yaml.Node, dc DeriveConfig) error {
	admin, err := ensure(root, "", "admin")
	if err != nil {
		return err
	}
	address, err := message(admin, "admin", "address")
	if err != nil {
		return err
	}
	if address == nil {
		d.Admin = Admin{"unix", dc.AdminSocket}
		pipe := object{"path": dc.AdminSocket}
		if dc.AdminMode != 0 {
			pipe["mode"] = dc.AdminMode
		}
		return set(admin, "admin", "address", fromObject(object{"pipe": pipe}))
	}
	const path = "admin.address"
	pipe, err := message(address, path, "pipe")
	if err != nil {
		return err
	}
	if pipe != nil {
		d.Admin.Network = "unix"
		d.Admin.Address, err = scalarText(pipe, path+".pipe", "path")
		return err
	}
	socket, err := message(address, path, "socket_address")
	if err != nil {
		return err
	}
	if socket == nil {
		return problem(path, "use socket_address or pipe, or leave the address out", "the agent cannot reach an admin interface of this kind")
	}
	host, err := scalarText(socket, path+".socket_address", "address")
	if err != nil {
		return err
	}
	port, err := number(socket, path+".socket_address", "port_value")
	if err != nil {
		return err
	}
	d.Admin = Admin{"tcp", net.JoinHostPort(dialable(host), fmt.Sprint(port))}
	return nil
}

// dialable is a listening address as one to dial.
func dialable(host string) string {
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		if strings.Contains(host, ":") {
			return "::1"
		}
		return "127.0.0.1"
	}
	return host
}

func (d *Derived) warn(format string, args ...any) {
	d.Warnings = append(d.Warnings, fmt.Sprintf(format, args...))
}

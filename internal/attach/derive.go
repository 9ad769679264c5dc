package attach

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	yaml "go.yaml.in/yaml/v3"

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
	// ListenersFile is where Envoy will read Derived.Listeners from: a path
	// without its extension, to which Derived.Extension is added.
	ListenersFile string
	// AdminSocket is the Unix socket for Envoy's admin interface where the user's
	// file has none.
	AdminSocket string
	// ListenersVersion is the version_info of the listeners file; empty: a hash
	// of its content.
	ListenersVersion string
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
	// Slots are all the slots that the listeners use, distinct and in order.
	Slots []Slot
	// Admin is where Envoy's admin interface listens.
	Admin Admin
	// AgentCluster is the name of the cluster that was added for the agent.
	AgentCluster string
	// Warnings are sentences for a person.
	Warnings []string
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
// that Envoy watches, and slots come over ADS from the agent. All else stays as
// it is, extensions that nobody here knows included. What cannot be edited with
// certainty is refused. Errors are *chandler.Problem, with the path of the field
// in the user's configuration; config itself is not changed.
func Derive(config *Config, dc DeriveConfig) (Derived, error) {
	root, err := (&resolver{open: map[*yaml.Node]bool{}}).resolve(config.root)
	if err != nil {
		return Derived{}, err
	}
	d := Derived{Extension: ".yaml"}
	if config.json {
		d.Extension = ".json"
	}
	d.ListenersFile = dc.ListenersFile + d.Extension
	listeners, err := d.takeListeners(root)
	if err != nil {
		return Derived{}, err
	}
	for _, step := range []func(*yaml.Node, DeriveConfig) error{d.addCluster, d.addDynamic, addNode, d.addAdmin} {
		if err := step(root, dc); err != nil {
			return Derived{}, err
		}
	}
	if err := d.renderListeners(listeners, dc.ListenersVersion, config.json); err != nil {
		return Derived{}, err
	}
	d.Bootstrap, err = render(root, config.json)
	return d, err
}

// takeListeners gives the slots to all listeners and takes them out of root,
// except those of the API, which Envoy accepts nowhere else.
func (d *Derived) takeListeners(root *yaml.Node) ([]*yaml.Node, error) {
	const path = "static_resources"
	static, err := ensure(root, "", path)
	if err != nil {
		return nil, err
	}
	all, err := messages(static, path, "listeners")
	if err != nil {
		return nil, err
	}
	e := editor{slots: map[Slot]bool{}}
	var moved, kept []*yaml.Node
	for _, l := range all {
		if api, err := field(l.Node, l.path, "api_listener"); err != nil {
			return nil, err
		} else if api != nil {
			kept = append(kept, l.Node)
			d.warn("%s is an API listener: it stays as it is and runs no plugins", l.path)
			continue
		}
		if err := e.listener(l); err != nil {
			return nil, err
		}
		moved = append(moved, l.Node)
	}
	if d.ListenerNames, err = nameListeners(all); err != nil {
		return nil, err
	}
	if len(kept) > 0 {
		err = set(static, path, "listeners", newSequence(kept...))
	} else {
		err = remove(static, path, "listeners")
	}
	d.Warnings = append(d.Warnings, e.warnings...)
	d.Slots = slices.SortedFunc(maps.Keys(e.slots), Slot.Compare)
	if len(d.Slots) == 0 {
		d.warn("no listener has an HTTP connection manager: no HTTP plugin can run here")
	}
	return moved, err
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
// form of a response of the discovery protocol.
func (d *Derived) renderListeners(listeners []*yaml.Node, version string, asJSON bool) error {
	for _, l := range listeners {
		l.Content = append([]*yaml.Node{newKey("@type"), newString(listenerType)}, l.Content...)
	}
	resources := newSequence(listeners...)
	if version == "" {
		text, err := render(resources, asJSON)
		if err != nil {
			return err
		}
		sum := sha256.Sum256(text)
		version = hex.EncodeToString(sum[:8])
	}
	d.ListenersVersion = version
	file := newMapping()
	file.Content = []*yaml.Node{newKey("version_info"), newString(version), newKey("resources"), resources}
	var err error
	d.Listeners, err = render(file, asJSON)
	return err
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
	endpoint := object{"endpoint": object{"address": object{"pipe": object{"path": dc.ADSSocket}}}}
	cluster := fromObject(object{
		"name":            d.AgentCluster,
		"type":            "STATIC",
		"connect_timeout": "1s",
		"load_assignment": object{
			"cluster_name": d.AgentCluster,
			"endpoints":    []object{{"lb_endpoints": []object{endpoint}}},
		},
		"typed_extension_protocol_options": object{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": object{
			"@type":                "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
			"explicit_http_config": object{"http2_protocol_options": object{}},
		}},
	})
	return set(static, path, "clusters", newSequence(append(nodes, cluster)...))
}

// addDynamic tells Envoy to read its listeners from the file and to ask the
// agent for slots: the node only in the first message, as it is 61 KB, and with
// a short back-off, so that an agent that restarts is found at once.
func (d *Derived) addDynamic(root *yaml.Node, dc DeriveConfig) error {
	const path = "dynamic_resources"
	own, err := message(root, "", path)
	if err != nil {
		return err
	}
	if own != nil && len(own.Content) > 0 {
		return problem(path, "run this Envoy with static listeners and clusters",
			"the Envoy has a control plane of its own; the agent cannot stand in its stream yet")
	}
	return set(root, "", path, fromObject(object{
		"lds_config": object{
			"resource_api_version": "V3",
			"path_config_source":   object{"path": d.ListenersFile},
		},
		"ads_config": object{
			"api_type":                       "DELTA_GRPC",
			"transport_api_version":          "V3",
			"set_node_on_first_message_only": true,
			"grpc_services": []object{{"envoy_grpc": object{
				"cluster_name": d.AgentCluster,
				"retry_policy": object{"retry_back_off": object{"base_interval": "0.050s", "max_interval": "0.500s"}},
			}}},
		},
	}))
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
		return set(admin, "admin", "address", fromObject(object{"pipe": object{"path": dc.AdminSocket}}))
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

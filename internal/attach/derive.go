package attach

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

// Derive edits an Envoy configuration so that every HTTP connection manager of
// its listeners has the slots of its mode and port: the listeners move to a file
// that Envoy watches, and slots come over ADS from the agent. All else stays as
// it is, extensions that nobody here knows included. What cannot be edited with
// certainty is refused. Errors are *chandler.Problem, with the path of the field
// in the user's configuration.
func Derive(config *Config, dc DeriveConfig) (Derived, error) { return Derived{}, nil }

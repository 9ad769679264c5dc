package attach

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
)

// Member is a plugin in a slot, with what only this machine knows of it.
type Member struct {
	Attachment *chandler.Attachment
	// ModulePath is where the module's bytes are on local disk; unused for Lua
	// and for stand-ins.
	ModulePath string
	// Env gives the values of variables that are copied from the host; those it
	// lacks are left out.
	Env map[string]string
	// StandIn replaces the program: a denial, or nothing at all. A Program.Deny
	// without a stand-in is a denial too.
	StandIn chandler.StandIn
}

// Compose gives the content of a slot: an extension of the slot's name that
// holds the members' filters in the order of Attachment.CompareOrder, whatever
// the order they come in. The same members give the same bytes. A slot without
// members is a filter chain without filters, which does nothing.
func Compose(slot Slot, members []Member) *corev3.TypedExtensionConfig { return nil }

// Body is config as the body of an xDS resource, in its deterministic bytes.
func Body(config *corev3.TypedExtensionConfig) *anypb.Any { return nil }

// Version is a hash of config's deterministic bytes, the resource's version on
// the stream.
func Version(config *corev3.TypedExtensionConfig) string { return "" }

// PluginOfNack finds the plugin that Envoy's refusal of a composition is about:
// Envoy names a plugin that does not load, or the path of a file that is
// missing. For other refusals, such as of a Lua script, it names neither.
func PluginOfNack(message string, members []Member) (chandler.Key, bool) {
	return chandler.Key{}, false
}

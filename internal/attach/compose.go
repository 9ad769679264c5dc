package attach

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filterchainv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/filter_chain/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	wasmfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	networkwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"chandler.dev/chandler"
)

// wasmRuntime is V8: the only one that Envoy's official builds have.
const wasmRuntime = "envoy.wasm.runtime.v8"

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
// members is a filter chain without filters, which does nothing; a slot of one
// plugin is that plugin's filter itself or, without a member, one that does
// nothing.
//
// A filter, a plugin and its VM are named by the plugin's key and by nothing
// else, so that what does not change keeps its state when a neighbour does.
func Compose(slot Slot, members []Member) *corev3.TypedExtensionConfig {
	if !slot.Shared() {
		return &corev3.TypedExtensionConfig{Name: slot.Name(), TypedConfig: only(slot, members)}
	}
	members = slices.Clone(members)
	slices.SortFunc(members, func(a, b Member) int { return a.Attachment.CompareOrder(b.Attachment) })
	chain := &filterchainv3.FilterChainConfig{}
	for _, m := range members {
		filter := Alone(m)
		if filter == nil {
			continue
		}
		if chain.DefaultFilterChain == nil {
			chain.DefaultFilterChain = &filterchainv3.FilterChain{}
		}
		chain.DefaultFilterChain.Filters = append(chain.DefaultFilterChain.Filters, filter)
	}
	return &corev3.TypedExtensionConfig{Name: slot.Name(), TypedConfig: packed(chain)}
}

// only is the filter in a slot of one plugin.
func only(slot Slot, members []Member) *anypb.Any {
	for _, m := range members {
		if filter := m.filter(); filter != nil {
			return filter
		}
	}
	return inPlace(slot.Network, false)
}

// inPlace is the filter that stands where a program does not: a denial, or one that
// does nothing.
func inPlace(network, deny bool) *anypb.Any {
	switch {
	case network:
		return networkRBAC(deny)
	case deny:
		return denyAll()
	}
	return &anypb.Any{TypeUrl: typeURLPrefix + rbacType} // without rules it does nothing
}

// Alone gives a plugin by itself, under the name that it has in slots; nil when it
// is left out.
func Alone(m Member) *corev3.TypedExtensionConfig {
	config := m.filter()
	if config == nil {
		return nil
	}
	return &corev3.TypedExtensionConfig{Name: m.Attachment.Key.String(), TypedConfig: config}
}

// Body is config as the body of an xDS resource, in its deterministic bytes.
func Body(config *corev3.TypedExtensionConfig) *anypb.Any { return packed(config) }

// Version is a hash of config's deterministic bytes, the resource's version on
// the stream.
func Version(config *corev3.TypedExtensionConfig) string {
	sum := sha256.Sum256(packed(config).Value)
	return hex.EncodeToString(sum[:])
}

// runsWasm tells whether the member is a module, not something in its place.
func (m Member) runsWasm() bool {
	program := m.Attachment.Program
	return m.StandIn == chandler.StandInNone && !program.Deny && program.Lua == nil
}

// filter is what stands for the member in the chain; nil: nothing.
func (m Member) filter() *anypb.Any {
	program := m.Attachment.Program
	switch {
	case m.StandIn == chandler.StandInPass:
		return nil
	case m.StandIn == chandler.StandInDeny, program.Deny:
		return inPlace(m.Attachment.Type == chandler.Network, true)
	case program.Lua != nil:
		return packed(&luav3.Lua{DefaultSourceCode: &corev3.DataSource{
			Specifier: &corev3.DataSource_InlineString{InlineString: text(program.Lua.InlineCode)},
		}})
	}
	if m.Attachment.Type == chandler.Network {
		return packed(&networkwasmv3.Wasm{Config: m.plugin()})
	}
	return packed(&wasmfilterv3.Wasm{Config: m.plugin()})
}

// denyAll answers 403: an RBAC filter with rules that allow what a policy
// matches, and no policy. It is given as its bytes (field 1, of no length),
// because the message's Go package brings the types of all routes into the
// agent.
func denyAll() *anypb.Any {
	return &anypb.Any{TypeUrl: typeURLPrefix + rbacType, Value: []byte{1<<3 | 2, 0}}
}

// networkRBAC closes every connection that sends something, or does nothing.
func networkRBAC(deny bool) *anypb.Any {
	const prefix = "chandler" // of its statistics: field 3, which must not be empty
	value := append([]byte{3<<3 | 2, byte(len(prefix))}, prefix...)
	if deny {
		value = append([]byte{1<<3 | 2, 0}, value...)
	}
	return &anypb.Any{TypeUrl: typeURLPrefix + networkRBACType, Value: value}
}

const (
	rbacType        = "envoy.extensions.filters.http.rbac.v3.RBAC"
	wasmType        = "envoy.extensions.filters.http.wasm.v3.Wasm"
	luaType         = "envoy.extensions.filters.http.lua.v3.Lua"
	networkRBACType = "envoy.extensions.filters.network.rbac.v3.RBAC"
	networkWasmType = "envoy.extensions.filters.network.wasm.v3.Wasm"
	wasmLogType     = "envoy.extensions.access_loggers.wasm.v3.WasmAccessLog"
)

func (m Member) plugin() *wasmv3.PluginConfig {
	a := m.Attachment
	plugin := &wasmv3.PluginConfig{
		Name:          a.Key.String(),
		RootId:        a.RootID,
		FailurePolicy: failurePolicy(a.FailStrategy),
		Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
			VmId:    vmID(a),
			Runtime: wasmRuntime,
			Code: &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{Local: &corev3.DataSource{
				Specifier: &corev3.DataSource_Filename{Filename: text(m.ModulePath)},
			}}},
			EnvironmentVariables: m.environment(),
		}},
	}
	if a.Config != nil {
		plugin.Configuration = packed(wrapperspb.String(text(string(a.Config))))
	}
	if plugin.FailurePolicy == wasmv3.FailurePolicy_FAIL_RELOAD {
		plugin.ReloadConfig = reload(a.FailStrategy)
	}
	if len(a.Capabilities) > 0 {
		allowed := make(map[string]*wasmv3.SanitizationConfig, len(a.Capabilities))
		for _, name := range a.Capabilities {
			allowed[name] = &wasmv3.SanitizationConfig{}
		}
		//lint:ignore SA1019 The field's successor is unknown to Envoy 1.39, which would pass by it in silence.
		plugin.CapabilityRestrictionConfig = &wasmv3.CapabilityRestrictionConfig{AllowedCapabilities: allowed}
	}
	return plugin
}

// vmID names a plugin's VM. What it may call is part of the name: Envoy 1.36 goes on
// with a VM of the same name as that was made, whatever it is told of capabilities.
func vmID(a *chandler.Attachment) string {
	if len(a.Capabilities) == 0 {
		return a.Key.String()
	}
	sum := sha256.Sum256([]byte(strings.Join(slices.Sorted(slices.Values(a.Capabilities)), "\n")))
	return a.Key.String() + "#" + hex.EncodeToString(sum[:8])
}

// environment gives the VM's variables as values: what is copied from the host
// is read by the agent, as Envoy may have been started with another environment.
func (m Member) environment() *wasmv3.EnvironmentVariables {
	values := map[string]string{}
	for _, v := range m.Attachment.Env {
		if !v.Host {
			values[v.Name] = text(v.Value)
		} else if value, ok := m.Env[v.Name]; ok {
			values[v.Name] = text(value)
		}
	}
	if len(values) == 0 {
		return nil
	}
	return &wasmv3.EnvironmentVariables{KeyValues: values}
}

// failurePolicy is FAIL_RELOAD for FAIL_CLOSE too: requests are refused while the VM is
// dead under both, but under Envoy's FAIL_CLOSED it stays dead until something is
// pushed, and nothing tells which plugin's it is. Reloads are counted by plugin.
func failurePolicy(s chandler.FailStrategy) wasmv3.FailurePolicy {
	if s == chandler.FailOpen {
		return wasmv3.FailurePolicy_FAIL_OPEN
	}
	return wasmv3.FailurePolicy_FAIL_RELOAD
}

// closedFor is how long a VM that was made anew under FAIL_CLOSE is not made anew again.
const closedFor = time.Minute

// reload says how often a VM is made anew, at most: under FAIL_RELOAD by Envoy's own
// back-off, which is a second.
func reload(s chandler.FailStrategy) *wasmv3.ReloadConfig {
	if s == chandler.FailReload {
		return &wasmv3.ReloadConfig{}
	}
	return &wasmv3.ReloadConfig{Backoff: &corev3.BackoffStrategy{BaseInterval: durationpb.New(closedFor), MaxInterval: durationpb.New(2 * closedFor)}}
}

// text makes a string fit for a message, which holds only UTF-8: a variable of
// the host may hold any bytes.
func text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// packed is m as an Any in deterministic bytes. Marshalling fails only for text
// that is not UTF-8, which nothing here lets through; a filter that is silently
// left out would be worse than a panic.
func packed(m proto.Message) *anypb.Any {
	name := string(m.ProtoReflect().Descriptor().FullName())
	bytes, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("attach: a %s cannot be packed: %v", name, err))
	}
	return &anypb.Any{TypeUrl: typeURLPrefix + name, Value: bytes}
}

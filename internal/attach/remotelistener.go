package attach

import (
	"bytes"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
)

// Remote is a resource of another control plane in which Wasm modules are elsewhere: an
// extension config, or a listener with Wasm filters in it.
type Remote struct {
	// Wasm are its filters whose modules are elsewhere, in the order in which they stand.
	Wasm []*RemoteWasm
	// with gives the resource with other configurations of these filters, in that order.
	with func(configs []*anypb.Any) *anypb.Any
}

// ReadRemote reads an extension config as ReadRemoteWasm does, and of a listener the Wasm
// filters that stand in its filter chains and in their connection managers, upgrades
// included. It gives nil for a resource that has none whose code is remote: that is handed
// on as it is. So is one that cannot be read, for which the error, a *chandler.Problem,
// says why: Envoy will refuse it.
//
// A connection manager in a TypedStruct is not looked into, nor are filters inside of other
// filters, but for ExtensionWithMatcher.
func ReadRemote(resource *anypb.Any) (*Remote, error) {
	if typeName(resource.GetTypeUrl()) == typeName(listenerType) {
		return readListenerWasm(resource)
	}
	r, err := ReadRemoteWasm(resource)
	if r == nil {
		return nil, err
	}
	return &Remote{Wasm: []*RemoteWasm{r}, with: func(configs []*anypb.Any) *anypb.Any { return r.with(configs[0]) }}, nil
}

// Local gives the resource with modules in files of this machine, a path for each filter of
// Wasm. Where one is empty, or none are given, there is what stands in for the filter. All
// else is as in RemoteWasm.Local and RemoteWasm.StandIn.
func (r *Remote) Local(paths []string) *anypb.Any {
	configs := make([]*anypb.Any, len(r.Wasm))
	for i, w := range r.Wasm {
		if len(paths) == 0 || paths[i] == "" {
			configs[i] = w.standIn()
			continue
		}
		configs[i] = w.form.local(text(paths[i]))
	}
	return r.with(configs)
}

// Discreet gives the resource with empty pull secrets in the place of its own, as
// RemoteWasm.Discreet does.
func (r *Remote) Discreet() *anypb.Any {
	configs := make([]*anypb.Any, len(r.Wasm))
	for i, w := range r.Wasm {
		configs[i] = w.form.discreet()
	}
	return r.with(configs)
}

// Secret tells whether there is a pull secret in the resource.
func (r *Remote) Secret() bool {
	for _, w := range r.Wasm {
		if w.PullSecret != nil {
			return true
		}
	}
	return false
}

// wasmInListener is what every listener with a Wasm filter has in it.
var wasmInListener = []byte("wasm.v3.Wasm")

func readListenerWasm(listener *anypb.Any) (*Remote, error) {
	if !bytes.Contains(listener.GetValue(), wasmInListener) {
		return nil, nil
	}
	r := &Remote{}
	var found []*RemoteWasm // one for each filter that may be Wasm, nil for one that is not remote
	_, err := listenerWasm(func(typed *anypb.Any, at *place) (*anypb.Any, error) {
		w, err := readRemoteFilter(typed, at)
		if found = append(found, w); w != nil {
			r.Wasm = append(r.Wasm, w)
		}
		return typed, err
	}).listener(listener.GetValue())
	if err != nil || len(r.Wasm) == 0 {
		return nil, err
	}
	r.with = func(configs []*anypb.Any) *anypb.Any {
		i := 0
		edited, err := listenerWasm(func(typed *anypb.Any, _ *place) (*anypb.Any, error) {
			if i++; found[i-1] == nil {
				return typed, nil
			}
			typed, configs = configs[0], configs[1:]
			return typed, nil
		}).listener(listener.GetValue())
		if err != nil {
			panic("attach: a listener that was read cannot be read: " + err.Error())
		}
		return &anypb.Any{TypeUrl: listener.GetTypeUrl(), Value: edited}
	}
	return r, nil
}

// readRemoteFilter reads a filter's configuration as ReadRemoteWasm does that of an
// extension config.
func readRemoteFilter(typed *anypb.Any, at *place) (*RemoteWasm, error) {
	form, kind, err := wasmFormOf(typed)
	if err != nil {
		return nil, at.problem("", chandler.Printable(err.Error(), 256))
	}
	if form == nil {
		return nil, nil
	}
	return remoteOf(form, kind)
}

// listenerWasm goes over the filters of a listener that may be Wasm, and puts what it gives
// in the place of their configurations.
type listenerWasm func(typed *anypb.Any, at *place) (*anypb.Any, error)

// edits are what becomes of fields that hold messages, by their numbers.
type edits map[protowire.Number]edit

type edit struct {
	name   string
	isList bool
	do     func(b []byte, at *place) ([]byte, error)
}

func (e edits) apply(b []byte, at *place) ([]byte, error) {
	seen := map[protowire.Number]int{}
	return rewrite(b, at, func(s *scanner, out []byte) ([]byte, error) {
		field, ok := e[s.num]
		if !ok {
			return s.keep(out), nil
		}
		var content []byte
		at := s.at.field(field.name)
		if field.isList {
			at = s.at.item(field.name, seen[s.num])
			seen[s.num]++
			content = s.bytes(field.name)
		} else {
			content = s.one(field.name)
		}
		if s.err != nil {
			return nil, s.err
		}
		edited, err := field.do(content, at)
		return s.replace(out, edited), err
	})
}

func (visit listenerWasm) listener(b []byte) ([]byte, error) {
	return edits{listenerChains: {"filter_chains", true, visit.chain}, listenerDefaultChain: {"default_filter_chain", false, visit.chain}}.apply(b, nil)
}

func (visit listenerWasm) chain(b []byte, at *place) ([]byte, error) {
	return edits{chainFilters: {"filters", true, visit.filter}}.apply(b, at)
}

// filter is one of a chain or of a connection manager: both hold their configuration in the
// same field.
func (visit listenerWasm) filter(b []byte, at *place) ([]byte, error) {
	return edits{filterTyped: {"typed_config", false, visit.config}}.apply(b, at)
}

func (visit listenerWasm) config(b []byte, at *place) ([]byte, error) {
	kind, _, err := typeAndValue(b, at)
	if err != nil {
		return nil, err
	}
	switch typeName(kind) {
	case hcmType:
		return edits{anyValue: {"value", false, visit.manager}}.apply(b, at)
	case matcherType:
		inner := edits{extensionTyped: {"typed_config", false, visit.wasm}}
		matcher := edits{matcherInner: {"extension_config", false, inner.apply}}
		return edits{anyValue: {"value", false, matcher.apply}}.apply(b, at)
	}
	return visit.wasm(b, at)
}

func (visit listenerWasm) manager(b []byte, at *place) ([]byte, error) {
	upgrade := edits{upgradeFilters: {"filters", true, visit.filter}}
	return edits{managerFilters: {"http_filters", true, visit.filter}, managerUpgrades: {"upgrade_configs", true, upgrade.apply}}.apply(b, at)
}

// wasm is a configuration that may be Wasm's.
func (visit listenerWasm) wasm(b []byte, at *place) ([]byte, error) {
	typed := &anypb.Any{}
	if err := proto.Unmarshal(b, typed); err != nil {
		return nil, at.problem("", "the configuration cannot be read")
	}
	switch typeName(typed.GetTypeUrl()) {
	case wasmType, networkWasmType, udpaTypedStruct, xdsTypedStruct:
	default:
		return b, nil
	}
	other, err := visit(typed, at)
	if err != nil || other == typed {
		return b, err
	}
	return packed(other).Value, nil
}

// RefusesModule tells whether Envoy refuses the listener of that name for a module in it. It
// tells of each refused listener in a line, after its name.
func RefusesModule(words, name string) bool {
	if _, after, ok := strings.Cut(words, name+": "); ok {
		words, _, _ = strings.Cut(after, "\n")
	}
	return strings.Contains(words, nackedPlugin) || strings.Contains(words, nackedPath)
}

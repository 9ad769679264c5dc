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
// extension config, or a listener with Wasm filters or access logs in it.
type Remote struct {
	// Wasm are those whose modules are elsewhere, in the order in which they stand.
	Wasm []*RemoteWasm
	// with gives the resource with other configurations of these filters, in that order.
	with func(configs []*anypb.Any) *anypb.Any
}

// ReadRemote reads an extension config as ReadRemoteWasm does, and of a listener the Wasm
// filters that stand in its filter chains and in their connection managers, upgrades
// included, and the access logs of all these. It gives nil for a resource that has none whose
// code is remote: that is handed on as it is. So is one that cannot be read, for which the
// error, a *chandler.Problem, says why: Envoy will refuse it.
//
// A connection manager in a TypedStruct is not looked into, nor are filters inside of other
// filters, but for ExtensionWithMatcher: see WasmElsewhere.
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
// Wasm. Where one is empty, or none are given, there is what stands in for the filter; an
// access log is left out. All else is as in RemoteWasm.Local and RemoteWasm.StandIn.
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

// wasmInListener is what every listener with Wasm in it has in it.
var wasmInListener = []byte("wasm.v3.Wasm")

func readListenerWasm(listener *anypb.Any) (*Remote, error) {
	if !bytes.Contains(listener.GetValue(), wasmInListener) {
		return nil, nil
	}
	r := &Remote{}
	var found []*RemoteWasm // one for each that is Wasm, nil for one that is not remote
	_, err := wasmWalk{visit: func(form wasmForm, kind string, _ *place) (*anypb.Any, bool, error) {
		w, err := remoteOf(form, kind)
		if found = append(found, w); w != nil {
			r.Wasm = append(r.Wasm, w)
		}
		return nil, false, err
	}}.listener(listener.GetValue())
	if err != nil || len(r.Wasm) == 0 {
		return nil, err
	}
	r.with = func(configs []*anypb.Any) *anypb.Any {
		i := 0
		edited, err := wasmWalk{visit: func(wasmForm, string, *place) (config *anypb.Any, edit bool, err error) {
			if i++; found[i-1] == nil {
				return nil, false, nil
			}
			config, configs = configs[0], configs[1:]
			return config, true, nil
		}}.listener(listener.GetValue())
		if err != nil {
			panic("attach: a listener that was read cannot be read: " + err.Error())
		}
		return &anypb.Any{TypeUrl: listener.GetTypeUrl(), Value: edited}
	}
	return r, nil
}

// WasmElsewhere names the fields of an extension config or a listener in which Wasm stands
// that ReadRemote does not look at. If its module is remote, Envoy is to fetch it itself. Of a
// cluster, of which nothing is made local, it names the filters whose modules are remote, too.
func WasmElsewhere(resource *anypb.Any) (fields []string) {
	b := resource.GetValue()
	if !bytes.Contains(b, wasmInListener) {
		return nil
	}
	beyond := func(at *place) { fields = append(fields, at.String()) }
	walk := wasmWalk{beyond: beyond, visit: func(wasmForm, string, *place) (*anypb.Any, bool, error) { return nil, false, nil }}
	switch typeName(resource.GetTypeUrl()) {
	case typeName(listenerType):
		_, _ = walk.listener(b) // what cannot be read Envoy refuses
	case typeName(clusterType):
		walk.visit = func(form wasmForm, _ string, at *place) (*anypb.Any, bool, error) {
			if remote, err := form.remote(); remote != nil && err == nil {
				beyond(at)
			}
			return nil, false, nil
		}
		_, _ = walk.cluster(b)
	default:
		_, _ = walk.over(b, nil, edits{extensionTyped: {"typed_config", false, walk.filterWasm}})
	}
	return fields
}

// wasmWalk goes over what is Wasm in a listener.
type wasmWalk struct {
	// visit gives what comes in the place of a configuration, if that is to be edited; nil:
	// what holds it goes, if it is one of a list.
	visit func(form wasmForm, kind string, at *place) (config *anypb.Any, edit bool, err error)
	// beyond is told where else there is Wasm; nil: nobody is.
	beyond func(at *place)
}

// edits are what becomes of fields that hold messages, by their numbers.
type edits map[protowire.Number]edit

type edit struct {
	name   string
	isList bool
	do     func(b []byte, at *place) ([]byte, error)
}

// over edits fields of a message, and passes the others.
func (w wasmWalk) over(b []byte, at *place, fields edits) ([]byte, error) {
	seen := map[protowire.Number]int{}
	return rewrite(b, at, func(s *scanner, out []byte) ([]byte, error) {
		field, ok := fields[s.num]
		if !ok {
			return s.keep(out), w.pass(s.raw, s.at)
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
		if edited == nil && field.isList {
			return out, err
		}
		return s.replace(out, edited), err
	})
}

// pass tells of Wasm in what is not looked into.
func (w wasmWalk) pass(b []byte, at *place) error {
	if w.beyond != nil && bytes.Contains(b, wasmInListener) {
		w.beyond(at)
	}
	return nil
}

func (w wasmWalk) listener(b []byte) ([]byte, error) {
	return w.over(b, nil, edits{listenerChains: {"filter_chains", true, w.chain}, listenerDefaultChain: {"default_filter_chain", false, w.chain},
		listenerLogs: {"access_log", true, w.log}})
}

// The fields of a cluster in which filters stand.
const (
	clusterOptions, clusterFilters                   protowire.Number = 36, 40
	optionsValue, optionsFilters, clusterFilterTyped protowire.Number = 2, 6, 2
)

// cluster goes over filters of connections, and the HTTP filters among the protocol options.
func (w wasmWalk) cluster(b []byte) ([]byte, error) {
	filter := func(b []byte, at *place) ([]byte, error) {
		return w.over(b, at, edits{clusterFilterTyped: {"typed_config", false, w.filterWasm}})
	}
	http := func(b []byte, at *place) ([]byte, error) {
		return w.over(b, at, edits{optionsFilters: {"http_filters", true, w.filter}})
	}
	options := func(b []byte, _ *place) ([]byte, error) { // an entry of a map, in which they have a name
		at := (*place)(nil).field("typed_extension_protocol_options")
		return w.over(b, at, edits{optionsValue: {httpOptions, false, func(b []byte, at *place) ([]byte, error) {
			if kind, _, err := typeAndValue(b, at); err != nil || typeName(kind) != httpOptions {
				return b, w.pass(b, at)
			}
			return w.over(b, at, edits{anyValue: {"value", false, http}})
		}}})
	}
	return w.over(b, nil, edits{clusterFilters: {"filters", true, filter}, clusterOptions: {"typed_extension_protocol_options", true, options}})
}

func (w wasmWalk) chain(b []byte, at *place) ([]byte, error) {
	return w.over(b, at, edits{chainFilters: {"filters", true, w.filter}})
}

// filter is one of a chain or of a connection manager: both hold their configuration in the
// same field.
func (w wasmWalk) filter(b []byte, at *place) ([]byte, error) {
	types := func(b []byte, _ *place) ([]byte, error) { return b, nil }
	discovery := func(b []byte, at *place) ([]byte, error) {
		return w.over(b, at, edits{discoveryTypes: {"type_urls", true, types}})
	}
	return w.over(b, at, edits{filterTyped: {"typed_config", false, w.config}, filterDiscovery: {"config_discovery", false, discovery}})
}

// log is an access log, which holds its configuration in the same field, too.
func (w wasmWalk) log(b []byte, at *place) ([]byte, error) {
	gone := false
	kept, err := w.over(b, at, edits{filterTyped: {"typed_config", false, func(b []byte, at *place) ([]byte, error) {
		edited, err := w.wasm(b, at, wasmLogType)
		gone = edited == nil
		return edited, err
	}}})
	if gone {
		return nil, err
	}
	return kept, err
}

func (w wasmWalk) config(b []byte, at *place) ([]byte, error) {
	kind, _, err := typeAndValue(b, at)
	if err != nil {
		return nil, err
	}
	of := func(fields edits) edits {
		return edits{anyValue: {"value", false, func(b []byte, at *place) ([]byte, error) { return w.over(b, at, fields) }}}
	}
	switch typeName(kind) {
	case hcmType:
		upgrade := func(b []byte, at *place) ([]byte, error) {
			return w.over(b, at, edits{upgradeFilters: {"filters", true, w.filter}})
		}
		return w.over(b, at, of(edits{managerFilters: {"http_filters", true, w.filter}, managerUpgrades: {"upgrade_configs", true, upgrade},
			managerLogs: {"access_log", true, w.log}}))
	case tcpProxyType:
		return w.over(b, at, of(edits{tcpProxyLogs: {"access_log", true, w.log}}))
	case matcherType:
		inner := func(b []byte, at *place) ([]byte, error) {
			return w.over(b, at, edits{extensionTyped: {"typed_config", false, w.filterWasm}})
		}
		return w.over(b, at, of(edits{matcherInner: {"extension_config", false, inner}}))
	}
	return w.filterWasm(b, at)
}

// filterWasm is a configuration that may be that of a Wasm filter.
func (w wasmWalk) filterWasm(b []byte, at *place) ([]byte, error) {
	return w.wasm(b, at, wasmType, networkWasmType)
}

// wasm is a configuration that may be of one of those types, or hold one.
func (w wasmWalk) wasm(b []byte, at *place, kinds ...string) ([]byte, error) {
	if !bytes.Contains(b, wasmInListener) {
		return b, nil
	}
	typed := &anypb.Any{}
	if err := proto.Unmarshal(b, typed); err != nil {
		return nil, at.problem("", "the configuration cannot be read")
	}
	form, kind, err := wasmFormOf(typed, kinds...)
	if err != nil {
		return nil, at.problem("", chandler.Printable(err.Error(), 256))
	}
	if form == nil {
		return b, w.pass(b, at)
	}
	config, edit, err := w.visit(form, kind, at)
	if err != nil || !edit {
		return b, err
	}
	if config == nil {
		return nil, nil
	}
	return packed(config).Value, nil
}

// RefusesModule tells whether Envoy refuses the listener of that name for a module in it. It
// tells of each refused listener in a line, after its name.
func RefusesModule(words, name string) bool {
	if _, after, ok := strings.Cut(words, name+": "); ok {
		words, _, _ = strings.Cut(after, "\n")
	}
	return strings.Contains(words, nackedPlugin) || strings.Contains(words, nackedPath)
}

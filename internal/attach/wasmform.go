package attach

import (
	"maps"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	wasmfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"chandler.dev/chandler"
)

// plainWasm is a Wasm filter's message. Those for HTTP, for connections and for access logs
// hold the plugin in the same field, so that one type reads all; what it does not know of
// one it keeps.
type plainWasm struct {
	typeURL string
	filter  *wasmfilterv3.Wasm
}

func readPlainWasm(typed *anypb.Any) (wasmForm, error) {
	filter := &wasmfilterv3.Wasm{}
	if err := proto.Unmarshal(typed.GetValue(), filter); err != nil {
		return nil, problem("typed_config", "", "the Wasm filter cannot be read: %s", chandler.Printable(err.Error(), 256))
	}
	return &plainWasm{typed.GetTypeUrl(), filter}, nil
}

func (w *plainWasm) remote() (*corev3.RemoteDataSource, error) {
	return w.filter.GetConfig().GetVmConfig().GetCode().GetRemote(), nil
}

func (w *plainWasm) variables() map[string]string {
	return w.filter.GetConfig().GetVmConfig().GetEnvironmentVariables().GetKeyValues()
}

func (w *plainWasm) failStrategy() chandler.FailStrategy {
	config := w.filter.GetConfig()
	//lint:ignore SA1019 Control planes still set it.
	return strategyOf(config.GetFailurePolicy(), config.GetFailOpen())
}

// strategyOf is the strategy that Envoy's policy or, without one, the older field means.
func strategyOf(policy wasmv3.FailurePolicy, failOpen bool) chandler.FailStrategy {
	switch {
	case policy == wasmv3.FailurePolicy_FAIL_OPEN, policy == wasmv3.FailurePolicy_UNSPECIFIED && failOpen:
		return chandler.FailOpen
	case policy == wasmv3.FailurePolicy_FAIL_RELOAD:
		return chandler.FailReload
	}
	return chandler.FailClose
}

func (w *plainWasm) local(path string) *anypb.Any {
	filter := w.withoutPrivate()
	filter.GetConfig().GetVmConfig().GetCode().Specifier = &corev3.AsyncDataSource_Local{Local: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}}
	return w.of(filter)
}

func (w *plainWasm) public() *anypb.Any { return w.of(w.withoutPrivate()) }

// of is another filter in the place of the one that was read.
func (w *plainWasm) of(filter *wasmfilterv3.Wasm) *anypb.Any {
	return &anypb.Any{TypeUrl: w.typeURL, Value: packed(filter).Value}
}

// withoutPrivate is the filter without private variables, and without an environment that
// is empty then.
func (w *plainWasm) withoutPrivate() *wasmfilterv3.Wasm {
	filter := proto.CloneOf(w.filter)
	vm := filter.GetConfig().GetVmConfig()
	if env := vm.GetEnvironmentVariables(); env != nil {
		before := len(env.KeyValues)
		maps.DeleteFunc(env.KeyValues, isPrivate)
		if len(env.KeyValues) < before && proto.Size(env) == 0 {
			vm.EnvironmentVariables = nil
		}
	}
	return filter
}

func (w *plainWasm) discreet() *anypb.Any {
	filter := proto.CloneOf(w.filter)
	values := filter.GetConfig().GetVmConfig().GetEnvironmentVariables().GetKeyValues()
	if _, ok := values[pullSecretEnv]; ok {
		values[pullSecretEnv] = ""
	}
	return w.of(filter)
}

// treeWasm is a Wasm filter in a TypedStruct, in which a field's name has two spellings.
type treeWasm struct {
	typed *anypb.Any
	tree  *structpb.Struct
}

func readTreeWasm(typed *anypb.Any, value []byte) (wasmForm, error) {
	tree := &structpb.Struct{}
	if err := proto.Unmarshal(value, tree); err != nil {
		return nil, problem("typed_config.value", "", "the struct cannot be read: %s", chandler.Printable(err.Error(), 256))
	}
	return &treeWasm{typed, tree}, nil
}

// member gives a field of a struct in the spelling that it has; nil without one.
func member(tree *structpb.Struct, name string) (key string, value *structpb.Value) {
	for _, key := range []string{name, camel(name)} {
		if value := tree.GetFields()[key]; value != nil {
			return key, value
		}
	}
	return name, nil
}

// inside follows names into a struct; nil where there is none of them.
func inside(tree *structpb.Struct, names ...string) *structpb.Struct {
	for _, name := range names {
		_, value := member(tree, name)
		tree = value.GetStructValue()
	}
	return tree
}

func (w *treeWasm) remote() (*corev3.RemoteDataSource, error) {
	remote := inside(w.tree, "config", "vm_config", "code", "remote")
	if remote == nil {
		return nil, nil
	}
	source := &corev3.RemoteDataSource{}
	text, err := protojson.Marshal(remote)
	if err == nil {
		err = protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(text, source)
	}
	if err != nil {
		return nil, problem(remotePath, "", "the source of the module cannot be read: %s", chandler.Printable(err.Error(), 256))
	}
	return source, nil
}

func (w *treeWasm) variables() map[string]string {
	variables := map[string]string{}
	for name, value := range inside(w.tree, "config", "vm_config", "environment_variables", "key_values").GetFields() {
		variables[name] = value.GetStringValue()
	}
	return variables
}

func (w *treeWasm) failStrategy() chandler.FailStrategy {
	config := inside(w.tree, "config")
	_, policy := member(config, "failure_policy")
	number := wasmv3.FailurePolicy(policy.GetNumberValue())
	if name := policy.GetStringValue(); name != "" {
		number = wasmv3.FailurePolicy(-1) // of a name that is not known
		if known, ok := wasmv3.FailurePolicy_value[strings.TrimSpace(name)]; ok {
			number = wasmv3.FailurePolicy(known)
		}
	}
	_, failOpen := member(config, "fail_open")
	return strategyOf(number, failOpen.GetBoolValue())
}

func (w *treeWasm) local(path string) *anypb.Any {
	tree := w.withoutPrivate()
	code := inside(tree, "config", "vm_config", "code")
	key, _ := member(code, "remote")
	delete(code.Fields, key)
	code.Fields["local"] = structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{"filename": structpb.NewStringValue(path)}})
	return w.of(tree)
}

func (w *treeWasm) public() *anypb.Any { return w.of(w.withoutPrivate()) }

// of is another tree in the place of the one that was read.
func (w *treeWasm) of(tree *structpb.Struct) *anypb.Any {
	return &anypb.Any{TypeUrl: w.typed.GetTypeUrl(), Value: withValue(w.typed.GetValue(), packed(tree).Value)}
}

func (w *treeWasm) withoutPrivate() *structpb.Struct {
	tree := proto.CloneOf(w.tree)
	vm := inside(tree, "config", "vm_config")
	if key, value := member(vm, "environment_variables"); value != nil {
		dropPrivate(vm, key)
	}
	return tree
}

func (w *treeWasm) discreet() *anypb.Any {
	tree := proto.CloneOf(w.tree)
	values := inside(tree, "config", "vm_config", "environment_variables", "key_values").GetFields()
	if _, ok := values[pullSecretEnv]; ok {
		values[pullSecretEnv] = structpb.NewStringValue("")
	}
	return w.of(tree)
}

// dropPrivate takes private variables out of the environment that is a field of vm, and
// what is empty then.
func dropPrivate(vm *structpb.Struct, key string) {
	env := inside(vm, key)
	values, _ := member(env, "key_values")
	variables := inside(env, "key_values").GetFields()
	before := len(variables)
	maps.DeleteFunc(variables, func(name string, _ *structpb.Value) bool { return isPrivate(name, "") })
	if len(variables) == before || len(variables) > 0 {
		return
	}
	if delete(env.Fields, values); len(env.Fields) == 0 {
		delete(vm.Fields, key)
	}
}

package attach

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	matcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	xdstypev3 "github.com/cncf/xds/go/xds/type/v3"
	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	wasmlogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/wasm/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	wasmfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	networkwasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/wasm/v3"
	httpoptionsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"pgregory.net/rapid"

	"chandler.dev/chandler"
)

func remoteCode(url string) *corev3.AsyncDataSource {
	return &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Remote{Remote: &corev3.RemoteDataSource{
		HttpUri: &corev3.HttpUri{Uri: url, HttpUpstreamType: &corev3.HttpUri_Cluster{Cluster: "modules"}}, Sha256: strings.Repeat("0a", 32)}}}
}

func localCode(path string) *corev3.AsyncDataSource {
	return &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Local{Local: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: path}}}}
}

func pluginOf(code *corev3.AsyncDataSource) *wasmv3.PluginConfig {
	return &wasmv3.PluginConfig{Name: "own", Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{Code: code}}}
}

func httpWasm(code *corev3.AsyncDataSource) *wasmfilterv3.Wasm {
	return &wasmfilterv3.Wasm{Config: pluginOf(code)}
}

// everyPlace is a listener with Wasm wherever it is looked for; code gives that of each.
func everyPlace(code func() *corev3.AsyncDataSource) *anypb.Any {
	matched := httpFilterOf(&matchingv3.ExtensionWithMatcher{ExtensionConfig: &corev3.TypedExtensionConfig{Name: "m", TypedConfig: packed(httpWasm(code()))}})
	manager := &hcmv3.HttpConnectionManager{StatPrefix: "web",
		HttpFilters: []*hcmv3.HttpFilter{httpFilterOf(httpWasm(code())), matched, httpFilterOf(httpWasm(localCode("/theirs"))), router},
		UpgradeConfigs: []*hcmv3.HttpConnectionManager_UpgradeConfig{
			{UpgradeType: "websocket", Filters: []*hcmv3.HttpFilter{httpFilterOf(httpWasm(code())), router}}}}
	manager.AccessLog = []*accesslogv3.AccessLog{wasmLog(code()), {Name: "other"}}
	l := listenerWith(chainWith(typedFilter(packed(manager))))
	l.DefaultFilterChain = chainWith(typedFilter(packed(&networkwasmv3.Wasm{Config: pluginOf(code())})),
		typedFilter(packed(&tcpproxyv3.TcpProxy{AccessLog: []*accesslogv3.AccessLog{wasmLog(code())}})))
	l.AccessLog = []*accesslogv3.AccessLog{wasmLog(code()), wasmLog(localCode("/theirs"))}
	return packed(l)
}

func wasmLog(code *corev3.AsyncDataSource) *accesslogv3.AccessLog {
	return &accesslogv3.AccessLog{Name: "log", ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: packed(&wasmlogv3.WasmAccessLog{Config: pluginOf(code)})}}
}

// Wasm is found wherever it stands, with where its module is, and becomes local there.
func TestRemoteInListener(t *testing.T) {
	t.Parallel()
	n := 0
	listener := everyPlace(func() *corev3.AsyncDataSource { n++; return remoteCode(fmt.Sprintf("https://x.example/%d.wasm", n)) })
	// The matcher's is made first, and stands second; of a manager the log stands before upgrades,
	// of a listener before the default chain.
	order := []string{"2", "1", "4", "3", "7", "5", "6"}
	r, err := ReadRemote(listener)
	if err != nil || r == nil || len(r.Wasm) != len(order) {
		t.Fatalf("%+v, %v", r, err)
	}
	var paths []string
	for i, w := range r.Wasm {
		if w.Reference.String() != "https://x.example/"+order[i]+".wasm" || w.Cluster != "modules" || w.SHA256 != strings.Repeat("0a", 32) || w.Network != (i == 5) || w.Problem != nil {
			t.Errorf("the module at %d is %+v", i, w)
		}
		paths = append(paths, "/m/"+order[i])
	}
	n = 0
	want := everyPlace(func() *corev3.AsyncDataSource { n++; return localCode(fmt.Sprintf("/m/%d", n)) })
	local := r.Local(paths)
	if !bytes.Equal(local.Value, want.Value) || local.TypeUrl != listener.TypeUrl {
		t.Errorf("local:\n%s\nwant\n%s", shownJSON(t, local), shownJSON(t, want))
	}
	if again, err := ReadRemote(local); again != nil || err != nil {
		t.Errorf("it is still remote: %v, %v", again, err)
	}
	paths[0] = ""
	part := shownJSON(t, r.Local(paths))
	if strings.Contains(part, "/m/2") || strings.Count(part, "rbac.v3.RBAC") != 1 || !strings.Contains(part, "/m/7") {
		t.Errorf("with one that stands in: %s", part)
	}
	none := shownJSON(t, r.Local(nil))
	if strings.Contains(none, "x.example") || strings.Count(none, "rbac.v3.RBAC") != 4 {
		t.Errorf("all stood in for: %s", none)
	}
	if logs := strings.Count(none, "WasmAccessLog"); logs != 1 || !strings.Contains(none, `"other"`) { // and the one that is not remote
		t.Errorf("%d access logs, all but one of which would need a stand-in: %s", logs, none)
	}
}

// Wasm that is not looked at is told of by its place, and what is looked at, or only named as
// a type, is not.
func TestWasmElsewhere(t *testing.T) {
	t.Parallel()
	remote := packed(httpWasm(remoteCode("https://x.example/m.wasm")))
	inside := func(a *anypb.Any) *anypb.Any { // of a type that nobody here knows
		return &anypb.Any{TypeUrl: typeURLPrefix + "some.Filter", Value: packed(&corev3.TypedExtensionConfig{Name: "x", TypedConfig: a}).Value}
	}
	wrapped := packed(&xdstypev3.TypedStruct{TypeUrl: typeURLPrefix + hcmType, Value: &structpb.Struct{Fields: map[string]*structpb.Value{
		"http_filters": structpb.NewStringValue(remote.TypeUrl)}}})
	matched := packed(&matchingv3.ExtensionWithMatcher{ExtensionConfig: &corev3.TypedExtensionConfig{Name: "m", TypedConfig: remote},
		XdsMatcher: &matcherv3.Matcher{OnNoMatch: &matcherv3.Matcher_OnMatch{OnMatch: &matcherv3.Matcher_OnMatch_Action{Action: &xdscorev3.TypedExtensionConfig{Name: "a", TypedConfig: remote}}}}})
	discovered := &hcmv3.HttpFilter{Name: "d", ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{ConfigDiscovery: &corev3.ExtensionConfigSource{TypeUrls: []string{remote.TypeUrl}}}}
	defaulted := proto.CloneOf(discovered)
	defaulted.GetConfigDiscovery().DefaultConfig = remote
	const manager = "filter_chains[0].filters[0].typed_config.value"
	for want, l := range map[string]*listenerv3.Listener{
		"": listenerWith(chainWith(managerOf(discovered, httpFilterOf(httpWasm(remoteCode("https://x.example/m"))), router))),
		manager + ".http_filters[1].typed_config":       listenerWith(chainWith(managerOf(router, &hcmv3.HttpFilter{ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: inside(remote)}}))),
		"filter_chains[0].filters[0].typed_config":      listenerWith(chainWith(typedFilter(wrapped))),
		"filter_chains[0].filters[0].typed_config ":     listenerWith(chainWith(typedFilter(inside(remote)))),
		manager + ".http_filters[0].typed_config.value": listenerWith(chainWith(managerOf(&hcmv3.HttpFilter{ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: matched}}))),
		manager + ".http_filters[0].config_discovery":   listenerWith(chainWith(managerOf(defaulted))),
		"default_filter_chain.filters[0].typed_config":  {DefaultFilterChain: chainWith(typedFilter(inside(remote)))},
		"access_log[0].typed_config":                    {AccessLog: []*accesslogv3.AccessLog{{ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: inside(remote)}}}},
	} {
		if got := strings.Join(WasmElsewhere(packed(l)), " "); got != strings.TrimSpace(want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for want, typed := range map[string]*anypb.Any{"": remote, "typed_config": matched} {
		if got := strings.Join(WasmElsewhere(packed(&corev3.TypedExtensionConfig{Name: "e", TypedConfig: typed})), " "); got != want {
			t.Errorf("of an extension config %q, want %q", got, want)
		}
	}
}

// Of clusters that Wasm is told of whose module is remote, in both of the lists of filters
// that they have.
func TestWasmElsewhereInClusters(t *testing.T) {
	t.Parallel()
	remote, local := packed(httpWasm(remoteCode("https://x.example/m.wasm"))), packed(httpWasm(localCode("/m.wasm")))
	inside := &anypb.Any{TypeUrl: typeURLPrefix + "some.Filter", Value: packed(&corev3.TypedExtensionConfig{Name: "x", TypedConfig: remote}).Value}
	cluster := func(typed ...*anypb.Any) (filters, options *clusterv3.Cluster) {
		filters, http := &clusterv3.Cluster{Name: "c"}, &httpoptionsv3.HttpProtocolOptions{}
		for _, a := range typed {
			filters.Filters = append(filters.Filters, &clusterv3.Filter{Name: "f", TypedConfig: a})
			http.HttpFilters = append(http.HttpFilters, &hcmv3.HttpFilter{Name: "f", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: a}})
		}
		return filters, &clusterv3.Cluster{Name: "c", TypedExtensionProtocolOptions: map[string]*anypb.Any{httpOptions: packed(http)}}
	}
	for _, c := range []struct {
		typed []*anypb.Any
		want  []string
	}{
		{[]*anypb.Any{router.GetTypedConfig()}, nil},
		{[]*anypb.Any{local, router.GetTypedConfig()}, nil},
		{[]*anypb.Any{local, remote, inside}, []string{"[1].typed_config", "[2].typed_config"}},
		{[]*anypb.Any{{TypeUrl: remote.TypeUrl, Value: []byte("?")}}, nil}, // Envoy refuses it
	} {
		filters, options := cluster(c.typed...)
		for list, resource := range map[string]*clusterv3.Cluster{"filters": filters, "typed_extension_protocol_options." + httpOptions + ".value.http_filters": options} {
			var want []string
			for _, at := range c.want {
				want = append(want, list+at)
			}
			if got := WasmElsewhere(packed(resource)); !slices.Equal(got, want) {
				t.Errorf("%q, want %q", got, want)
			}
		}
	}
}

// Pull secrets leave a listener like an extension config.
func TestRemoteInListenerTellsNoSecret(t *testing.T) {
	t.Parallel()
	filter := httpWasm(remoteCode("oci://x.example/p:v1"))
	filter.Config.GetVmConfig().EnvironmentVariables = &wasmv3.EnvironmentVariables{KeyValues: map[string]string{"MINE": "1", pullSecretEnv: `{"auths":{}}`}}
	r, err := ReadRemote(packed(listenerWith(chainWith(managerOf(httpFilterOf(filter), router)))))
	if err != nil || r == nil || !r.Secret() || string(r.Wasm[0].PullSecret) != `{"auths":{}}` {
		t.Fatalf("%+v, %v", r, err)
	}
	if kept := r.Discreet().Value; bytes.Contains(kept, []byte("auths")) || !bytes.Contains(kept, []byte(pullSecretEnv)) {
		t.Errorf("what is kept: %q", kept)
	}
	if local := r.Local([]string{"/m"}).Value; bytes.Contains(local, []byte(privatePrefix)) || !bytes.Contains(local, []byte("MINE")) {
		t.Errorf("what Envoy gets: %q", local)
	}
}

// Listeners that cannot be read are left to Envoy, with the place; those with nothing
// remote as they are.
func TestRemoteInListenerRefuses(t *testing.T) {
	t.Parallel()
	broken := httpFilterOf(&wasmfilterv3.Wasm{})
	broken.GetTypedConfig().Value = []byte{0xff}
	good := packed(httpFilterOf(httpWasm(remoteCode("https://x.example/m")))).Value
	twice := protowire.AppendBytes(protowire.AppendTag(slices.Clone(good), filterTyped, protowire.BytesType), []byte{})
	field := func(num protowire.Number, content []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, num, protowire.BytesType), content)
	}
	manager := slices.Concat(field(anyType, []byte(typeURLPrefix+hcmType)), field(anyValue, field(managerFilters, twice)))
	for at, listener := range map[string]*anypb.Any{
		"filter_chains[0].filters[0].typed_config.value.http_filters[1].typed_config": packed(listenerWith(chainWith(managerOf(router, broken)))),
		"filter_chains[0].filters[0].typed_config.value.http_filters[0].typed_config ": {TypeUrl: listenerType,
			Value: field(listenerChains, field(chainFilters, field(filterTyped, manager)))},
	} {
		r, err := ReadRemote(listener)
		var p *chandler.Problem
		if r != nil || !errors.As(err, &p) || p.Field != strings.TrimSpace(at) || p.Message == "" {
			t.Errorf("%s: %v, %v", at, r, err)
		}
	}
	for name, listener := range map[string]*listenerv3.Listener{
		"no Wasm": listenerWith(chainWith(managerOf(router))), "local": listenerWith(chainWith(managerOf(httpFilterOf(httpWasm(localCode("/m"))), router))),
	} {
		if r, err := ReadRemote(packed(listener)); r != nil || err != nil {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
}

// planted puts remote Wasm into a listener by chance, n times.
func planted(t *rapid.T, l *listenerv3.Listener) (n int) {
	chains := l.FilterChains
	if l.DefaultFilterChain != nil {
		chains = append(slices.Clone(chains), l.DefaultFilterChain)
	}
	plant := func(filters []*hcmv3.HttpFilter) []*hcmv3.HttpFilter {
		filters = slices.DeleteFunc(filters, func(f *hcmv3.HttpFilter) bool { return typeName(f.GetTypedConfig().GetTypeUrl()) == wasmType })
		for range rapid.IntRange(0, 2).Draw(t, "planted") {
			n++
			at := rapid.IntRange(0, len(filters)).Draw(t, "at")
			filters = slices.Insert(filters, at, httpFilterOf(httpWasm(remoteCode("https://x.example/m.wasm"))))
		}
		return filters
	}
	for _, c := range chains {
		for _, f := range c.Filters {
			var m hcmv3.HttpConnectionManager
			if f.GetTypedConfig().UnmarshalTo(&m) == nil {
				m.HttpFilters = plant(m.HttpFilters)
				for _, u := range m.UpgradeConfigs {
					u.Filters = plant(u.Filters)
				}
				f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: packed(&m)}
			}
		}
		if rapid.Bool().Draw(t, "network") {
			n++
			c.Filters = slices.Insert(c.Filters, 0, typedFilter(packed(&networkwasmv3.Wasm{Config: pluginOf(remoteCode("https://x.example/m.wasm"))})))
		}
	}
	return n
}

// remoteAgain puts the code back to where it was, by Envoy's own messages.
func remoteAgain(t *rapid.T, listener *anypb.Any) []byte {
	var l listenerv3.Listener
	if err := listener.UnmarshalTo(&l); err != nil {
		t.Fatal(err)
	}
	again := func(typed *anypb.Any) {
		var h wasmfilterv3.Wasm
		var n networkwasmv3.Wasm
		switch {
		case typed.UnmarshalTo(&h) == nil:
			h.Config.GetVmConfig().Code = remoteCode("https://x.example/m.wasm")
			typed.Value = packed(&h).Value
		case typed.UnmarshalTo(&n) == nil:
			n.Config.GetVmConfig().Code = remoteCode("https://x.example/m.wasm")
			typed.Value = packed(&n).Value
		}
	}
	chains := l.FilterChains
	if l.DefaultFilterChain != nil {
		chains = append(slices.Clone(chains), l.DefaultFilterChain)
	}
	for _, c := range chains {
		for _, f := range c.Filters {
			var m hcmv3.HttpConnectionManager
			if f.GetTypedConfig().UnmarshalTo(&m) != nil {
				again(f.GetTypedConfig())
				continue
			}
			for _, f := range m.HttpFilters {
				again(f.GetTypedConfig())
			}
			for _, u := range m.UpgradeConfigs {
				for _, f := range u.Filters {
					again(f.GetTypedConfig())
				}
			}
			f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: packed(&m)}
		}
	}
	return packed(&l).Value
}

// Whatever the listener: all remote Wasm in it is found, nothing but its code changes, and
// what came is not written to.
func TestRemoteInListenerHolds(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		l := drawListener(t)
		n := planted(t, l)
		listener := packed(l)
		before := bytes.Clone(listener.Value)
		r, err := ReadRemote(listener)
		if err != nil || (r == nil) != (n == 0) || r != nil && len(r.Wasm) != n {
			t.Fatalf("%d are found as %+v, %v", n, r, err)
		}
		if r == nil {
			return
		}
		paths := slices.Repeat([]string{"/m"}, n)
		local := r.Local(paths)
		if !bytes.Equal(listener.Value, before) || !bytes.Equal(r.Local(paths).Value, local.Value) {
			t.Fatal("what came was written to, or what comes of it differs")
		}
		if got := remoteAgain(t, local); !bytes.Equal(got, before) {
			t.Fatalf("more than the code is other:\n%q\ncame\n%q", got, before)
		}
	})
}

// FuzzReadRemoteListener: any listener is left as it is, refused with a reason, or becomes
// one in which nothing is remote.
func FuzzReadRemoteListener(f *testing.F) {
	f.Add(everyPlace(func() *corev3.AsyncDataSource { return remoteCode("https://x.example/m.wasm") }).Value)
	f.Add(everyPlace(func() *corev3.AsyncDataSource { return localCode("/m.wasm") }).Value)
	f.Fuzz(func(t *testing.T, value []byte) {
		r, err := ReadRemote(&anypb.Any{TypeUrl: listenerType, Value: value})
		if err != nil {
			var p *chandler.Problem
			if !errors.As(err, &p) || p.Message == "" || r != nil {
				t.Fatalf("not named: %v", err)
			}
			return
		}
		if r == nil {
			return
		}
		for _, paths := range [][]string{nil, slices.Repeat([]string{"/m"}, len(r.Wasm))} {
			out := r.Local(paths)
			if again, err := ReadRemote(out); again != nil || err != nil {
				t.Fatalf("still remote: %v, %v", again, err)
			}
			var l listenerv3.Listener
			if proto.Unmarshal(value, &l) == nil && proto.Unmarshal(out.Value, &l) != nil {
				t.Fatalf("no listener any more: %q", out.Value)
			}
		}
	})
}

// What Envoy says of several listeners is told apart by their names.
func TestRefusesModule(t *testing.T) {
	t.Parallel()
	const words = "Error adding/updating listener(s) one: Unable to create Wasm plugin own\ntwo: cannot bind '0.0.0.0:80'\nthree: Invalid path: /gone\n"
	for name, want := range map[string]bool{"one": true, "two": false, "three": true} {
		if RefusesModule(words, name) != want {
			t.Errorf("%s is refused for a module: %v", name, !want)
		}
	}
}

package attach

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	filterchainv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/filter_chain/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	networkrbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
)

var testSlot = Slot{Phase: chandler.PhaseAuthn, Mode: chandler.ModeClient, Port: 8080}

// members are one plugin of every kind, in the order in which they must stand.
func members() []Member {
	first, second := int32(20), int32(10)
	at := time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)
	wasm := chandler.Program{Module: &chandler.Module{Digest: chandler.Digest[chandler.ModuleDigest]([]byte("m")), Size: 1}}
	attachment := func(name string, p chandler.Program, b chandler.Behaviour) *chandler.Attachment {
		b.Type, b.Phase = chandler.HTTP, chandler.PhaseAuthn
		return &chandler.Attachment{Key: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: name}, Created: at, Program: p, Behaviour: b}
	}
	full := attachment("full", wasm, chandler.Behaviour{
		Priority: &first, FailStrategy: chandler.FailReload, RootID: "root", Config: []byte(`{"a":1}`),
		Env: []chandler.EnvVar{{Name: "INLINE", Value: "v"}, {Name: "HOST", Host: true}, {Name: "ABSENT", Host: true}},
	})
	full.Capabilities = []string{"proxy_log", "proxy_get_property"}
	lua := attachment("lua", chandler.Program{Lua: &chandler.Lua{InlineCode: "function envoy_on_request(h) end"}}, chandler.Behaviour{})
	lua.Kind = chandler.KindTrafficExtension
	return []Member{
		{Attachment: full, ModulePath: "/store/full.wasm", Env: map[string]string{"HOST": "h\xff", "OTHER": "not asked for"}},
		{Attachment: attachment("open", wasm, chandler.Behaviour{Priority: &second, FailStrategy: chandler.FailOpen, Config: []byte{}}), ModulePath: "/store/open.wasm"},
		{Attachment: attachment("denied", wasm, chandler.Behaviour{}), StandIn: chandler.StandInDeny},
		{Attachment: attachment("deny", chandler.Program{Deny: true}, chandler.Behaviour{})},
		{Attachment: lua},
		{Attachment: attachment("none", wasm, chandler.Behaviour{FailStrategy: chandler.FailClose}), ModulePath: "/store/none.wasm"},
		{Attachment: attachment("passed", wasm, chandler.Behaviour{}), StandIn: chandler.StandInPass},
	}
}

func jsonOf(t *testing.T, m proto.Message) string {
	t.Helper()
	text, err := protojson.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer // protojson varies its white space on purpose
	if err := json.Indent(&b, text, "", "  "); err != nil {
		t.Fatal(err)
	}
	return b.String() + "\n"
}

func TestComposeGolden(t *testing.T) {
	t.Parallel()
	golden(t, "testdata/compose.golden", jsonOf(t, Compose(testSlot, members())))
}

// A slot of one plugin is the plugin's filter itself, or what stands for it.
func TestComposeOwnSlot(t *testing.T) {
	t.Parallel()
	var all strings.Builder
	for _, network := range []bool{false, true} {
		m := members()[5]
		a := *m.Attachment
		if network {
			a.Type = chandler.Network
		}
		m.Attachment = &a
		slot, ok := Site{chandler.ModeServer, 80, network}.Slot(&a)
		if !ok {
			t.Fatal("it has no slot")
		}
		for _, standIn := range []chandler.StandIn{chandler.StandInNone, chandler.StandInDeny, chandler.StandInPass} {
			m.StandIn = standIn
			all.WriteString(jsonOf(t, Compose(slot, []Member{m})))
		}
		m.StandIn = chandler.StandInPass
		if Version(Compose(slot, nil)) != Version(Compose(slot, []Member{m})) {
			t.Error("nobody and a plugin that is left out differ")
		}
	}
	golden(t, "testdata/own.golden", all.String())
}

func TestDenyAllIsTheMessage(t *testing.T) {
	t.Parallel()
	var got rbacfilterv3.RBAC
	want := &rbacfilterv3.RBAC{Rules: &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW}}
	if err := denyAll().UnmarshalTo(&got); err != nil || !proto.Equal(&got, want) {
		t.Errorf("it is %v (%v)", &got, err)
	}
	for deny, want := range map[bool]*networkrbacv3.RBAC{
		true:  {StatPrefix: "chandler", Rules: &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW}},
		false: {StatPrefix: "chandler"},
	} {
		var got networkrbacv3.RBAC
		if err := networkRBAC(deny).UnmarshalTo(&got); err != nil || !proto.Equal(&got, want) {
			t.Errorf("deny %v is %v (%v)", deny, &got, err)
		}
	}
}

func TestComposeIsDeterministic(t *testing.T) {
	t.Parallel()
	want := Compose(testSlot, members())
	for range 20 {
		shuffled := members()
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		got := Compose(testSlot, shuffled)
		if Version(got) != Version(want) || !bytes.Equal(Body(got).Value, Body(want).Value) {
			t.Fatal("the order of members changes the bytes")
		}
	}
}

func TestComposeEmptySlot(t *testing.T) {
	t.Parallel()
	for _, none := range [][]Member{nil, members()[6:]} {
		got := Compose(testSlot, none)
		var chain filterchainv3.FilterChainConfig
		if err := got.TypedConfig.UnmarshalTo(&chain); err != nil || chain.DefaultFilterChain != nil || got.Name != testSlot.Name() {
			t.Errorf("got %v, %v", got, err)
		}
	}
	if Version(Compose(testSlot, nil)) == Version(Compose(testSlot, members())) {
		t.Error("two contents have one version")
	}
}

func TestBodyIsTheResource(t *testing.T) {
	t.Parallel()
	config := Compose(testSlot, members())
	var got corev3.TypedExtensionConfig
	body := Body(config)
	if err := body.UnmarshalTo(&got); err != nil || !proto.Equal(&got, config) || body.TypeUrl != ExtensionConfigType {
		t.Errorf("%v, %s", err, body.TypeUrl)
	}
}

// A neighbour that comes must not change the bytes of those who stay.
func TestComposeKeepsNeighbours(t *testing.T) {
	t.Parallel()
	all := members()
	filters := func(m []Member) map[string]string {
		var chain filterchainv3.FilterChainConfig
		if err := Compose(testSlot, m).TypedConfig.UnmarshalTo(&chain); err != nil {
			t.Fatal(err)
		}
		found := map[string]string{}
		for _, f := range chain.DefaultFilterChain.Filters {
			found[f.Name] = string(f.TypedConfig.Value)
		}
		return found
	}
	before, after := filters(all[:1]), filters(all)
	for name, config := range before {
		if after[name] != config {
			t.Errorf("%s changed", name)
		}
	}
}

func TestPluginOfNack(t *testing.T) {
	t.Parallel()
	key := func(name string) chandler.Key {
		return chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: name}
	}
	all := members()
	for _, name := range []string{"full-2", "full.x"} {
		longer := *all[0].Attachment
		longer.Name = name
		all = append([]Member{{Attachment: &longer, ModulePath: all[0].ModulePath + "-2"}}, all...)
	}
	shared := all[len(all)-2]
	again := *shared.Attachment
	again.Name = "mate"
	all = append(all, Member{Attachment: &again, ModulePath: shared.ModulePath})
	for message, want := range map[string]string{
		"Unable to create Wasm plugin WasmPlugin/ns/full":                        "full",
		"Unable to create Wasm plugin WasmPlugin/ns/full-2":                      "full-2",
		"Unable to create Wasm plugin WasmPlugin/ns/full.x":                      "full.x",
		"Unable to create Wasm plugin WasmPlugin/ns/full.":                       "full",
		"slot: Unable to create Wasm plugin WasmPlugin/ns/open, and more":        "open",
		"Invalid path: /store/open.wasm":                                         "open",
		"Invalid path: /store/none.wasm":                                         "mate",
		"Unable to create Wasm plugin WasmPlugin/ns/other":                       "",
		"Invalid path: /store/other.wasm":                                        "",
		`script load error: [string "function envoy_on_request(h) e..."]:1: eof`: "",
		"": "",
	} {
		got, ok := PluginOfNack(message, all)
		if want == "" && ok || want != "" && (!ok || got != key(want)) {
			t.Errorf("%q: got %v, %v, want %q", message, got, ok, want)
		}
	}
	if !strings.HasPrefix(key("full").String(), "WasmPlugin/ns/") {
		t.Error("keys are written otherwise")
	}
}

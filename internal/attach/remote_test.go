package attach

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	wasmfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	wasmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	yaml "go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"chandler.dev/chandler"
)

func extensionConfig(t testing.TB, path string, file []byte) *anypb.Any {
	t.Helper()
	var tree any
	if err := yaml.Unmarshal(file, &tree); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	text, err := json.Marshal(tree)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	config := &corev3.TypedExtensionConfig{}
	if err := protojson.Unmarshal(text, config); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return packed(config)
}

// Each input is an extension config of another control plane; the golden file shows
// what is wanted, the resource with the module here, and what stands in for it.
func TestRemoteWasmGolden(t *testing.T) {
	t.Parallel()
	for _, path := range inputs(t, "remote") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			resource := extensionConfig(t, path, read(t, path))
			told := tellRemote(t, resource)
			golden(t, strings.TrimSuffix(path, filepath.Ext(path))+".golden", told)
			// The older TypedStruct is the same in all but its name.
			if older := asUDPA(t, resource); older != nil {
				r, err := ReadRemoteWasm(older)
				if err != nil {
					t.Fatal(err)
				}
				if r == nil {
					if !strings.HasPrefix(told, "as it is") {
						t.Error("udpa: not read")
					}
					return
				}
				newer, _ := ReadRemoteWasm(resource)
				if got, want := r.Local("/m"), asUDPA(t, newer.Local("/m")); !proto.Equal(got, want) {
					t.Errorf("udpa:\n%v, want\n%v", got, want)
				}
				if r.String() != newer.String() || r.FailStrategy != newer.FailStrategy || r.PullPolicy != newer.PullPolicy {
					t.Errorf("udpa: %+v, want %+v", r, newer)
				}
			}
		})
	}
}

// asUDPA gives a resource with its TypedStruct under the older name; nil without one.
func asUDPA(t *testing.T, resource *anypb.Any) *anypb.Any {
	t.Helper()
	config := &corev3.TypedExtensionConfig{}
	if err := resource.UnmarshalTo(config); err != nil {
		t.Fatal(err)
	}
	if typeName(config.TypedConfig.TypeUrl) != xdsTypedStruct {
		return nil
	}
	config.TypedConfig.TypeUrl = typeURLPrefix + udpaTypedStruct
	return packed(config)
}

func tellRemote(t *testing.T, resource *anypb.Any) string {
	t.Helper()
	before := bytes.Clone(resource.Value)
	r, err := ReadRemoteWasm(resource)
	if err != nil {
		t.Fatal(err)
	}
	if r == nil {
		return "as it is\n"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nnetwork %v\nurl %s\nsha256 %s\ntimeout %s\nretries %d %s %s\nsecret %s\npolicy %q\nversion %q\nstrategy %s\nproblem %s\n", r, r.Network, r.Reference,
		r.SHA256, r.Timeout, r.Retries, r.RetryBase, r.RetryMax, r.PullSecret, r.PullPolicy, r.ResourceVersion, r.FailStrategy, problemText(r.Problem))
	for _, shown := range []struct {
		title    string
		resource *anypb.Any
	}{{"local", r.Local("/store/m.wasm")}, {"stand-in", r.StandIn()}} {
		fmt.Fprintf(&b, "--- %s\n%s\n", shown.title, shownJSON(t, shown.resource))
		if again, err := ReadRemoteWasm(shown.resource); again != nil || err != nil {
			t.Errorf("%s is still remote: %v, %v", shown.title, again, err)
		}
	}
	if !bytes.Equal(resource.Value, before) {
		t.Error("what came was written to")
	}
	if !bytes.Equal(r.Local("/store/m.wasm").Value, r.Local("/store/m.wasm").Value) {
		t.Error("local: other bytes the second time")
	}
	return b.String()
}

func problemText(p *chandler.Problem) string {
	if p == nil {
		return "none"
	}
	return string(p.Code) + " " + p.Error()
}

func shownJSON(t *testing.T, resource *anypb.Any) string {
	t.Helper()
	text, err := protojson.Marshal(resource)
	if err != nil {
		t.Fatal(err)
	}
	var compact, b bytes.Buffer
	if err := errors.Join(json.Compact(&compact, text), json.Indent(&b, compact.Bytes(), "", "  ")); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// Fields that nobody here knows stay, at every depth.
func TestRemoteWasmKeepsUnknown(t *testing.T) {
	t.Parallel()
	unknown := protowire.AppendString(protowire.AppendTag(nil, 9000, protowire.BytesType), "kept")
	filter := &wasmfilterv3.Wasm{Config: &wasmv3.PluginConfig{Vm: &wasmv3.PluginConfig_VmConfig{VmConfig: &wasmv3.VmConfig{
		Code: &corev3.AsyncDataSource{Specifier: &corev3.AsyncDataSource_Remote{Remote: &corev3.RemoteDataSource{HttpUri: &corev3.HttpUri{Uri: "http://x.example/m.wasm"}}}},
	}}}}
	filter.ProtoReflect().SetUnknown(unknown)
	filter.Config.ProtoReflect().SetUnknown(unknown)
	filter.Config.GetVmConfig().ProtoReflect().SetUnknown(unknown)
	config := &corev3.TypedExtensionConfig{Name: "a", TypedConfig: packed(filter)}
	config.ProtoReflect().SetUnknown(unknown)
	r, err := ReadRemoteWasm(packed(config))
	if err != nil || r == nil {
		t.Fatal(r, err)
	}
	if n := bytes.Count(r.Local("/m").Value, unknown); n != 4 {
		t.Errorf("%d of 4 unknown fields are left", n)
	}
}

// What cannot be read is left to Envoy, with the reason.
func TestRemoteWasmRefuses(t *testing.T) {
	t.Parallel()
	broken := func(kind string, value []byte) *anypb.Any {
		return packed(&corev3.TypedExtensionConfig{Name: "a", TypedConfig: &anypb.Any{TypeUrl: typeURLPrefix + kind, Value: value}})
	}
	structOf := func(value string) []byte {
		b := protowire.AppendString(protowire.AppendTag(nil, anyType, protowire.BytesType), typeURLPrefix+wasmType)
		return protowire.AppendString(protowire.AppendTag(b, anyValue, protowire.BytesType), value)
	}
	for name, resource := range map[string]*anypb.Any{
		"config": {TypeUrl: ExtensionConfigType, Value: []byte{0xff}},
		"filter": broken(wasmType, []byte{0xff}),
		"struct": broken(udpaTypedStruct, []byte{0xff}),
		"tree":   broken(xdsTypedStruct, structOf("\xff")),
		"source": extensionConfig(t, "source", []byte(`{name: a, typed_config: {"@type": type.googleapis.com/xds.type.v3.TypedStruct,
			type_url: type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm, value: {config: {vm_config: {code: {remote: {http_uri: {timeout: soon}}}}}}}}`)),
	} {
		r, err := ReadRemoteWasm(resource)
		var p *chandler.Problem
		if r != nil || !errors.As(err, &p) || p.Code != chandler.CodeEnvoyConfig {
			t.Errorf("%s: %v, %v", name, r, err)
		}
	}
	if r, err := ReadRemoteWasm(packed(listenerWith())); r != nil || err != nil {
		t.Errorf("of another type: %v, %v", r, err)
	}
}

// No secret is told by what people print or log.
func TestRemoteWasmTellsNoSecret(t *testing.T) {
	t.Parallel()
	for _, file := range []string{"http.yaml", "http-private-only.yaml", "struct.yaml"} {
		path := filepath.Join("testdata", "remote", file)
		r, err := ReadRemoteWasm(extensionConfig(t, path, read(t, path)))
		if err != nil {
			t.Fatal(err)
		}
		if told := fmt.Sprintf("%v %+v %s", r, r, r); strings.Contains(told, "auths") || strings.Contains(told, "token=secret") {
			t.Errorf("%s: %s", file, told)
		}
		kept := r.Discreet()
		again, err := ReadRemoteWasm(kept)
		if err != nil || bytes.Contains(kept.Value, []byte("auths")) {
			t.Errorf("%s: what is kept: %v, %s", file, err, kept)
		}
		if missing := again.Problem != nil && again.Problem.Code == chandler.CodeSecretType; missing != (r.PullSecret != nil) || again.Reference != r.Reference {
			t.Errorf("%s: what is kept is read as %v, %v", file, again, again.Problem)
		}
		if bytes.Contains(r.Local("/m").Value, []byte(privatePrefix)) || bytes.Contains(r.StandIn().Value, []byte(privatePrefix)) {
			t.Errorf("%s: Envoy gets what is private", file)
		}
	}
}

// What is private leaves Wasm that is here already, too; what has nothing of that kind is
// not touched.
func TestPublicWasm(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]bool{"http.yaml": true, "struct.yaml": true, "struct-private-only.yaml": true, "local.yaml": false, "other.yaml": false} {
		path := filepath.Join("testdata", "remote", file)
		resource := extensionConfig(t, path, read(t, path))
		remote, _ := ReadRemoteWasm(resource)
		if remote != nil { // as if it had been sent so
			there := resource.Value
			resource = remote.Local("/here")
			if public, isWasm := Public(resource); public != nil || !isWasm {
				t.Errorf("%s: not as it is", file)
			}
			resource = &anypb.Any{TypeUrl: resource.TypeUrl, Value: there}
		}
		public, isWasm := Public(resource)
		if (public != nil) != want || isWasm != (file != "other.yaml") {
			t.Errorf("%s: %v, %v", file, public, isWasm)
		}
		if want && (bytes.Contains(public.Value, []byte(privatePrefix)) || !bytes.Contains(public.Value, []byte("example/"))) {
			t.Errorf("%s: %v", file, public)
		}
	}
	if public, isWasm := Public(&anypb.Any{TypeUrl: ExtensionConfigType, Value: []byte{0xff}}); public != nil || isWasm {
		t.Error("what cannot be read is Wasm")
	}
}

// FuzzReadRemoteWasm: any resource is left as it is, refused with a reason, or becomes
// one that is not remote and holds nothing private.
func FuzzReadRemoteWasm(f *testing.F) {
	files, err := filepath.Glob("testdata/remote/*.yaml")
	if err != nil || len(files) == 0 {
		f.Fatal("no seeds", err)
	}
	for _, path := range files {
		f.Add(extensionConfig(f, path, readSeed(f, path)).Value)
	}
	f.Fuzz(func(t *testing.T, value []byte) {
		r, err := ReadRemoteWasm(&anypb.Any{TypeUrl: ExtensionConfigType, Value: value})
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
		if r.Problem == nil && r.Reference.Scheme == "" {
			t.Fatalf("neither a module nor a reason: %v", r)
		}
		for _, resource := range []*anypb.Any{r.Local("/m"), r.StandIn()} {
			if again, err := ReadRemoteWasm(resource); again != nil || err != nil {
				t.Fatalf("still remote: %v, %v", again, err)
			}
		}
		again, err := ReadRemoteWasm(r.Discreet())
		if err != nil || again == nil || len(again.PullSecret) > 0 || again.Reference != r.Reference || again.SHA256 != r.SHA256 {
			t.Fatalf("kept as %v, %v", again, err)
		}
		if public, isWasm := Public(r.Local("/m")); public != nil || !isWasm {
			t.Fatal("something private is left")
		}
		if first, second := r.Local("/m"), r.Local("/m"); !bytes.Equal(first.Value, second.Value) {
			t.Fatal("other bytes the second time")
		}
	})
}

package peer

import (
	"flag"
	"fmt"
	"strings"
	"testing"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	httpwasm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	wasmextensions "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"istio.io/istio/pkg/util/sets"
	"istio.io/istio/pkg/wasm"
)

// artifactFlag is where the module lies that chandler's own benchmark of the same name
// pulls too.
var artifactFlag = flag.String("artifact", "", "artifact to pull, HOST/REPOSITORY:TAG")

// BenchmarkConvert is the way from what the control plane sent to what Envoy is sent.
// cached: one resource whose module is on disk. one and ten: so many plugins of one
// module, which is fetched from the registry, with a cache that is new.
func BenchmarkConvert(b *testing.B) {
	if *artifactFlag == "" {
		b.Fatal("name an artifact: make bench does")
	}
	b.Run("cached", func(b *testing.B) {
		cache := newCache(b)
		convert(b, cache, resources(b, 1))
		sent := resources(b, 1)
		b.ReportAllocs()
		for b.Loop() {
			convert(b, cache, []*anypb.Any{sent[0]}) // the slice is what it changes
		}
	})
	for _, cold := range []struct {
		name    string
		plugins int
	}{{"one", 1}, {"ten", 10}} {
		b.Run(cold.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				cache, sent := newCache(b), resources(b, cold.plugins)
				b.StartTimer()
				convert(b, cache, sent)
			}
		})
	}
}

func newCache(b *testing.B) wasm.Cache {
	registry, _, _ := strings.Cut(*artifactFlag, "/")
	cache := wasm.NewLocalFileCache(b.TempDir(), wasm.Options{
		PurgeInterval: wasm.DefaultPurgeInterval, ModuleExpiry: wasm.DefaultModuleExpiry,
		HTTPRequestTimeout: wasm.DefaultHTTPRequestTimeout, HTTPRequestMaxRetries: wasm.DefaultHTTPRequestMaxRetries,
		InsecureRegistries: sets.New(registry),
	})
	b.Cleanup(cache.Cleanup)
	return cache
}

// convert fails where Istio would put a filter that denies in the plugin's place.
func convert(b *testing.B, cache wasm.Cache, sent []*anypb.Any) {
	if err := wasm.MaybeConvertWasmExtensionConfig(sent, cache); err != nil {
		b.Fatal(err)
	}
	for _, r := range sent {
		if !strings.Contains(string(r.GetValue()), "envoy.extensions.filters.http.wasm.") {
			b.Fatal("a filter that denies came in place of a plugin")
		}
	}
}

// resources are plugins of one url, as Istio's control plane sends them.
func resources(b *testing.B, plugins int) []*anypb.Any {
	b.Helper()
	var all []*anypb.Any
	for i := range plugins {
		name := fmt.Sprint("edge.plugin-", i)
		config, err := anypb.New(wrapperspb.String(`{"n":0}`))
		if err != nil {
			b.Fatal(err)
		}
		filter, err := anypb.New(&httpwasm.Wasm{Config: &wasmextensions.PluginConfig{
			Name: name, Configuration: config, FailurePolicy: wasmextensions.FailurePolicy_FAIL_CLOSED,
			Vm: &wasmextensions.PluginConfig_VmConfig{VmConfig: &wasmextensions.VmConfig{
				Runtime: "envoy.wasm.runtime.v8",
				Code: &core.AsyncDataSource{Specifier: &core.AsyncDataSource_Remote{Remote: &core.RemoteDataSource{
					HttpUri: &core.HttpUri{
						Uri: "oci://" + *artifactFlag, Timeout: durationpb.New(30e9),
						HttpUpstreamType: &core.HttpUri_Cluster{Cluster: "_"},
					},
				}}},
			}},
		}})
		if err != nil {
			b.Fatal(err)
		}
		resource, err := anypb.New(&core.TypedExtensionConfig{Name: name, TypedConfig: filter})
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, resource)
	}
	return all
}

//go:build upstream

package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	wasmfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	wasm "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/registry"
	"chandler.dev/chandler/internal/testenv/upstream"
)

// istios is a filter by ECDS as istiod sends one for a WasmPlugin: the module is remote,
// and the pull secret in a variable that is for the agent alone.
func istios(t *testing.T, url, secret, tag string) upstream.Resources {
	t.Helper()
	configuration, err := anypb.New(wrapperspb.String(fmt.Sprintf(`{"tag":%q}`, tag)))
	if err != nil {
		t.Fatal(err)
	}
	return upstream.Resources{upstream.Extension("theirs.plugin", &wasmfilter.Wasm{Config: &wasm.PluginConfig{
		Name: "theirs.plugin", Configuration: configuration,
		Vm: &wasm.PluginConfig_VmConfig{VmConfig: &wasm.VmConfig{
			Runtime: "envoy.wasm.runtime.v8",
			Code: &core.AsyncDataSource{Specifier: &core.AsyncDataSource_Remote{Remote: &core.RemoteDataSource{HttpUri: &core.HttpUri{
				Uri: url, Timeout: durationpb.New(30 * time.Second), HttpUpstreamType: &core.HttpUri_Cluster{Cluster: "_"}}}}},
			EnvironmentVariables: &wasm.EnvironmentVariables{KeyValues: map[string]string{
				"ISTIO_META_WASM_IMAGE_PULL_SECRET": secret, "ISTIO_META_WASM_PLUGIN_RESOURCE_VERSION": tag}},
		}},
	}})}
}

// A remote module of the control plane's own, from a registry that wants a secret, is made
// local: it serves beside chandler's plugins, Envoy does not learn the secret, what cannot
// be had changes nothing, and it is all there when everybody else is away.
func TestUpstreamRemoteWasm(t *testing.T) {
	variants(t, func(t *testing.T, v upstream.Variant) {
		const password = "correct-horse-battery"
		private, err := registry.Start(registry.Config{Username: "puller", Password: password, Token: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(private.Close)
		w := newWorld(t)
		client := fetch.New(fetch.Config{Dir: t.TempDir()})
		t.Cleanup(client.Close)
		ref := private.Addr + "/theirs/append:v1"
		opts := fetch.PushOptions{Layout: fetch.LayoutCompat, Credentials: fetch.NewCredentials(private.Addr, "puller", password)}
		if _, err := client.Push(t.Context(), ref, module.Append(), opts); err != nil {
			t.Fatal(err)
		}
		secret := fmt.Sprintf(`{"auths":{%q:{"username":"puller","password":%q}}}`, private.Addr, password)
		u, port := w.under(v), freePort(t)
		inPlace := func(filter upstream.Resources) {
			u.set(filter, upstream.Resources{v.Listener("guarded", loopback(port), "r",
				v.Discovered("theirs.plugin", "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"))})
		}
		inPlace(istios(t, "oci://"+ref, secret, "theirs"))
		b := u.agent(node{name: "a"})
		w.apply(plugin("p", w.push("append:v2", module.Append(module.WithSection("build", []byte("2")))), tag("ours"), "phase: AUTHN"))
		sees(t, port, "theirs", "ours")

		l := startLoad(port, 2, 1, matching("theirs ours|later ours"))
		inPlace(istios(t, "oci://"+private.Addr+"/theirs/append:none", secret, "never"))
		u.marked()
		eventually(t, 20*time.Second, "that it is asked for in vain is told", func() (bool, string) {
			log := b.tail()
			return strings.Contains(log, "resource=theirs.plugin of=1 code=NotFound"), log
		})
		sees(t, port, "theirs", "ours")
		inPlace(istios(t, "oci://"+ref, secret, "later"))
		sees(t, port, "later", "ours")
		unharmed(t, l)
		dump := string(b.ask(t, "/config_dump?include_eds"))
		for _, text := range []string{password, "ISTIO_META_"} {
			if strings.Contains(dump, text) {
				t.Errorf("Envoy has %q", text)
			}
		}
		if strings.Contains(b.tail(), password) {
			t.Error("the password is in the agent's log")
		}
		keptBy(t, filepath.Join(b.dir, "data"), "c")

		u.Stop()
		if err := w.control.stop(); err != nil {
			t.Fatal(err)
		}
		private.Close()
		w.registry.Close()
		envoy := b.envoy(t)
		b.kill(t)
		if err := syscall.Kill(envoy, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		stopped(t, envoy)
		b.restart()
		opens(t, port, "later,ours")
		b.awaitReady()
		u.Start()
		inPlace(istios(t, "oci://"+ref, secret, "later"))
		u.marked()
		if a := get(t, port, "/"); a.code != http.StatusOK || strings.Join(appended(a), " ") != "later ours" {
			t.Errorf("with the control plane back: status %d, tags %v", a.code, appended(a))
		}
	})
}

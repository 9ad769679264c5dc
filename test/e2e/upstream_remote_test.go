//go:build upstream

package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	accesslog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	wasmlog "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/wasm/v3"
	upstreamcodec "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/upstream_codec/v3"
	wasmfilter "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/wasm/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	httpoptions "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	wasm "github.com/envoyproxy/go-control-plane/envoy/extensions/wasm/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/fetch"
	"chandler.dev/chandler/internal/testenv/module"
	"chandler.dev/chandler/internal/testenv/registry"
	"chandler.dev/chandler/internal/testenv/upstream"
)

// tagged is the configuration of a module that leaves a tag.
func tagged(t *testing.T, tag string) *anypb.Any {
	t.Helper()
	configuration, err := anypb.New(wrapperspb.String(fmt.Sprintf(`{"tag":%q}`, tag)))
	if err != nil {
		t.Fatal(err)
	}
	return configuration
}

// istios is a filter by ECDS as istiod sends one for a WasmPlugin: the module is remote,
// and the pull secret in a variable that is for the agent alone.
func istios(t *testing.T, url, secret, tag string) upstream.Resources {
	t.Helper()
	return upstream.Resources{upstream.Extension("theirs.plugin", &wasmfilter.Wasm{Config: &wasm.PluginConfig{
		Name: "theirs.plugin", Configuration: tagged(t, tag),
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
		b.keeps(t, `"later"`)

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

// gateways is a filter as Envoy Gateway puts one into its listeners: its module is at a
// server that is found by a cluster of the control plane's alone.
func gateways(t *testing.T, path string, content []byte, tag string) *hcm.HttpFilter {
	t.Helper()
	config, err := anypb.New(&wasmfilter.Wasm{Config: &wasm.PluginConfig{
		Name: "theirs", Configuration: tagged(t, tag),
		Vm: &wasm.PluginConfig_VmConfig{VmConfig: &wasm.VmConfig{
			Runtime: "envoy.wasm.runtime.v8",
			Code: &core.AsyncDataSource{Specifier: &core.AsyncDataSource_Remote{Remote: &core.RemoteDataSource{
				HttpUri: &core.HttpUri{Uri: "http://modules.internal" + path, Timeout: durationpb.New(10 * time.Second), HttpUpstreamType: &core.HttpUri_Cluster{Cluster: "modules"}},
				Sha256:  chandler.Digest[chandler.ModuleDigest](content).Hex()}}},
		}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return &hcm.HttpFilter{Name: "theirs", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: config}}
}

// keeps waits until there is a text in what is kept of what Envoy took.
func (b *beneath) keeps(t *testing.T, text string) {
	t.Helper()
	eventually(t, 20*time.Second, text+" is on disk", func() (bool, string) {
		return bytes.Contains(bytes.Join(keptViews(filepath.Join(b.dir, "data")), nil), []byte(text)), "it is not"
	})
}

// listenerChanges counts what became of listeners, drains and removals among it.
func (b *beneath) listenerChanges(t *testing.T) string {
	t.Helper()
	return string(b.ask(t, "/stats?filter=listener_manager.listener_(added|modified|removed|stopped)$"))
}

// serveModules serves a module at /append.wasm, counting how often, and another at /bad.wasm.
func serveModules(t *testing.T, content, bad []byte) (*httptest.Server, *atomic.Int32) {
	var asked atomic.Int32
	modules := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, req *http.Request) {
		switch req.URL.Path {
		case "/append.wasm":
			asked.Add(1)
			_, _ = rw.Write(content)
		case "/bad.wasm":
			_, _ = rw.Write(bad)
		default:
			rw.WriteHeader(http.StatusNotFound)
		}
	}))
	t.Cleanup(modules.Close)
	return modules, &asked
}

// Wasm that stands in a listener of the control plane's is made local, too: Envoy has no
// such listener before its module is on disk, one that cannot be had or that Envoy refuses
// leaves the listener as it is, with chandler's plugins in it, and holds nothing else up;
// and it is all there when everybody else is away.
func TestUpstreamRemoteListener(t *testing.T) {
	variants(t, func(t *testing.T, v upstream.Variant) {
		content, bad := module.Append(), module.RefuseConfigure("the moon is wrong")
		modules, asked := serveModules(t, content, bad)
		w := newWorld(t)
		u, port := w.under(v), freePort(t)
		tcp := u.tcp(t, "tcp", freePort(t), echoServer(t)) // nothing holds this one back
		inPlace := func(filter *hcm.HttpFilter) {
			u.set(tcp, upstream.Resources{v.Cluster("modules"), upstream.Backend("modules", modules.Listener.Addr().String()),
				v.Listener("guarded", loopback(port), "r", filter)})
		}
		inPlace(gateways(t, "/append.wasm", content, "theirs"))
		b := u.agent(node{name: "a"})
		w.apply(plugin("p", w.push("append:v2", module.Append(module.WithSection("build", []byte("2")))), tag("ours"), "phase: AUTHN"))
		sees(t, port, "theirs", "ours")

		l := startLoad(port, 2, 1, matching("theirs ours|later ours"))
		inPlace(gateways(t, "/none.wasm", []byte("none"), "never"))
		u.marked()
		told := func(what, words string) {
			t.Helper()
			eventually(t, 20*time.Second, what, func() (bool, string) {
				log := b.tail()
				return strings.Contains(log, words), log
			})
		}
		told("that it is asked for in vain is told", "resource=guarded of=1 code=NotFound")
		sees(t, port, "theirs", "ours")
		inPlace(gateways(t, "/bad.wasm", bad, "bad"))
		refusing := fmt.Sprint(u.version)
		eventually(t, 20*time.Second, "the control plane hears why", func() (bool, string) {
			words := u.Nacked(upstream.Listeners, refusing)
			return strings.Contains(words, "Unable to create Wasm plugin theirs"), words
		})
		u.marked()
		sees(t, port, "theirs", "ours")
		inPlace(gateways(t, "/append.wasm", content, "later"))
		sees(t, port, "later", "ours")
		l.closed.Store(0) // a listener took the place of another, by the control plane's will
		harmless(t, l)
		if n := asked.Load(); n != 1 {
			t.Errorf("one module was asked for %d times", n)
		}
		if dump := string(b.ask(t, "/config_dump?resource=dynamic_listeners")); strings.Contains(dump, "modules.internal") {
			t.Error("Envoy is to fetch a module itself")
		}
		keptBy(t, filepath.Join(b.dir, "data"), "c")
		b.keeps(t, `"later"`)
		eventually(t, 20*time.Second, "what the listener means is on disk", func() (bool, string) {
			text, err := os.ReadFile(filepath.Join(b.dir, "data", "remote-listeners-1"))
			return bytes.Contains(text, []byte(`"name":"guarded"`)), fmt.Sprint(err)
		})

		// Another agent changes nothing about what Envoy has.
		envoy, changes := b.envoy(t), b.listenerChanges(t)
		l = startLoad(port, 2, 1, matching("later ours"))
		b.kill(t)
		b.restart()
		b.awaitReady()
		if now := b.listenerChanges(t); b.envoy(t) != envoy || now != changes {
			t.Errorf("for another agent the listeners changed: %s, before %s", now, changes)
		}
		unharmed(t, l)

		u.Stop()
		if err := w.control.stop(); err != nil {
			t.Fatal(err)
		}
		modules.Close()
		w.registry.Close()
		b.kill(t)
		if err := syscall.Kill(envoy, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		stopped(t, envoy)
		b.restart()
		opens(t, port, "later,ours")
		b.awaitReady()
		u.Start()
		inPlace(gateways(t, "/append.wasm", content, "later"))
		u.marked()
		if a := get(t, port, "/"); a.code != http.StatusOK || strings.Join(appended(a), " ") != "later ours" {
			t.Errorf("with the control plane back: status %d, tags %v", a.code, appended(a))
		}
	})
}

// logged is a listener with an access log whose module is remote.
func (u *ownPlane) logged(t *testing.T, port int, path string, content []byte) upstream.Resources {
	t.Helper()
	filter := &wasmfilter.Wasm{}
	if err := gateways(t, path, content, "log").GetTypedConfig().UnmarshalTo(filter); err != nil {
		t.Fatal(err)
	}
	config, err := anypb.New(&wasmlog.WasmAccessLog{Config: filter.GetConfig()})
	if err != nil {
		t.Fatal(err)
	}
	l := u.variant.Listener("logged", loopback(port), "r")
	l.AccessLog = []*accesslog.AccessLog{{Name: "theirs", ConfigType: &accesslog.AccessLog_TypedConfig{TypedConfig: config}}}
	return upstream.Resources{l}
}

// A cluster with a filter whose module is remote passes as it is: Envoy fetches the module,
// and that is told of for as long as the cluster is there.
func TestUpstreamRemoteInCluster(t *testing.T) {
	t.Parallel()
	v := upstream.Variant{Delta: true}
	content := module.Append()
	modules, asked := serveModules(t, content, nil)
	w := newWorld(t)
	u := w.under(v)
	codec, err := anypb.New(&upstreamcodec.UpstreamCodec{})
	if err != nil {
		t.Fatal(err)
	}
	options, err := anypb.New(&httpoptions.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpoptions.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &httpoptions.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &httpoptions.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{}}},
		HttpFilters: []*hcm.HttpFilter{gateways(t, "/append.wasm", content, "theirs"), {Name: "codec", ConfigType: &hcm.HttpFilter_TypedConfig{TypedConfig: codec}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	guarded := v.Cluster("guarded")
	guarded.TypedExtensionProtocolOptions = map[string]*anypb.Any{"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}
	there := upstream.Resources{v.Cluster("modules"), upstream.Backend("modules", modules.Listener.Addr().String())}
	u.set(there, upstream.Resources{guarded, upstream.Backend("guarded", w.upstream.Listener.Addr().String())})
	b := u.agent(node{name: "a"})
	told := func(want bool) {
		t.Helper()
		eventually(t, 20*time.Second, "the status tells of it, or not any more", func() (bool, string) {
			list := b.told(t).Modules
			return len(list) == 1 == want && (!want || list[0].Elsewhere && list[0].Name == "guarded" && strings.HasSuffix(list[0].Problem.Field, "http_filters[0].typed_config")), fmt.Sprintf("%+v", list)
		})
	}
	told(true)
	eventually(t, 20*time.Second, "Envoy fetches the module itself", func() (bool, string) { return asked.Load() > 0, b.tail() })
	if log := b.tail(); !strings.Contains(log, "resource=guarded") {
		t.Errorf("the log does not tell of it:\n%s", log)
	}
	u.set(there)
	told(false)
}

// A remote module of an access log is made local as well. One that cannot be had, of a
// listener that Envoy has not yet, is left out: nothing could stand in for it. What Envoy
// refuses it does not take, and the control plane hears why.
func TestUpstreamRemoteAccessLog(t *testing.T) {
	t.Parallel()
	v := upstream.Variant{Delta: true}
	content, bad := module.Append(), module.RefuseConfigure("the moon is wrong")
	modules, _ := serveModules(t, content, bad)
	w := newWorld(t)
	u, port := w.under(v), freePort(t)
	inPlace := func(listener upstream.Resources) {
		u.set(upstream.Resources{v.Cluster("modules"), upstream.Backend("modules", modules.Listener.Addr().String())}, listener)
	}
	inPlace(u.logged(t, port, "/none.wasm", content))
	b := u.agent(node{name: "a"})
	opens(t, port, "")
	listeners := func() string { return string(b.ask(t, "/config_dump?resource=dynamic_listeners")) }
	if dump := listeners(); strings.Contains(dump, "WasmAccessLog") {
		t.Errorf("Envoy has a log without a module:\n%s", dump)
	}
	inPlace(u.logged(t, port, "/append.wasm", content))
	eventually(t, 20*time.Second, "Envoy has the log", func() (bool, string) {
		dump := listeners()
		return strings.Contains(dump, "WasmAccessLog") && strings.Contains(dump, filepath.Join(b.dir, "data", "modules")), dump
	})
	if dump := listeners(); strings.Contains(dump, "modules.internal") {
		t.Error("Envoy is to fetch a module itself")
	}
	inPlace(u.logged(t, port, "/bad.wasm", bad))
	refusing := fmt.Sprint(u.version)
	eventually(t, 20*time.Second, "the control plane hears why", func() (bool, string) {
		words := u.Nacked(upstream.Listeners, refusing)
		return strings.Contains(words, "Unable to create Wasm"), words
	})
	u.marked()
	w.apply(plugin("p", w.push("append:v2", module.Append(module.WithSection("build", []byte("2")))), tag("ours")))
	sees(t, port, "ours")
}

package attach

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/module"
)

var upstreamConfig = func() DeriveConfig {
	dc := testConfig
	dc.UpstreamSocket = "/run/agent/upstream.sock"
	return dc
}()

func TestDeriveUpstreamGolden(t *testing.T) {
	t.Parallel()
	for _, path := range inputs(t, "upstream") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			d, err := derive(t, path, upstreamConfig)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			fmt.Fprintf(&b, "# listeners from upstream: %v; file %q\n", d.UpstreamListeners, d.ListenersFile)
			for _, c := range d.ControlPlanes {
				fmt.Fprintf(&b, "# control plane %q at %s: %v within %v\n", c.Cluster, c.Socket, c.Endpoints, c.ConnectTimeout)
				for what, part := range map[string]Part{"service": c.Service, "tls": c.TLS, "keepalive": c.Keepalive, "http": c.HTTP} {
					if (part.JSON == nil) != (part.Path == "") || part.JSON != nil && !json.Valid(part.JSON) {
						t.Errorf("%s is %s at %q", what, part.JSON, part.Path)
					}
				}
				fmt.Fprintf(&b, "#   service %s: %s\n#   tls %s: %s\n#   keepalive %s: %s\n", c.Service.Path, c.Service.JSON, c.TLS.Path, c.TLS.JSON, c.Keepalive.Path, c.Keepalive.JSON)
			}
			for _, w := range d.Warnings {
				fmt.Fprintf(&b, "# warning %s\n", w)
			}
			fmt.Fprintf(&b, "# bootstrap\n%s# listeners\n%s", d.Bootstrap, d.Listeners)
			golden(t, strings.TrimSuffix(path, filepath.Ext(path))+".golden", b.String())
		})
	}
}

func TestDeriveUpstreamRefuses(t *testing.T) {
	t.Parallel()
	for _, path := range inputs(t, "upstream-refused") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			_, err := derive(t, path, upstreamConfig)
			var p *chandler.Problem
			if !errors.As(err, &p) || p.Code != chandler.CodeEnvoyConfig || p.Field == "" {
				t.Fatalf("want a problem of code EnvoyConfig at a field, got %v", err)
			}
			golden(t, strings.TrimSuffix(path, ".yaml")+".golden", p.Error()+"\n")
		})
	}
}

// Envoy takes what is derived, the slots of its listeners included.
func TestEnvoyAcceptsUpstream(t *testing.T) {
	t.Parallel()
	envoy := module.Envoy(t)
	for _, path := range inputs(t, "upstream") {
		dir := t.TempDir()
		d, err := derive(t, path, DeriveConfig{
			ADSSocket: filepath.Join(dir, "ads"), UpstreamSocket: filepath.Join(dir, "up"),
			ListenersFile: filepath.Join(dir, "listeners"), AdminSocket: filepath.Join(dir, "admin"),
		})
		if err != nil {
			t.Fatal(err)
		}
		files := map[string][]byte{"bootstrap" + d.Extension: d.Bootstrap}
		if !d.UpstreamListeners {
			files["whole"+d.Extension] = joined(t, d)
			if err := os.WriteFile(d.ListenersFile, d.Listeners, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for name, text := range files {
			file := filepath.Join(dir, name)
			if err := os.WriteFile(file, text, 0o600); err != nil {
				t.Fatal(err)
			}
			if ok, log := validate(t, envoy, file); !ok {
				t.Errorf("Envoy refuses %s derived from %s: %s", name, path, log)
			}
		}
	}
}

// What --config-yaml adds is a part of the whole, as if all were in one file.
func TestDeriveUpstreamMerged(t *testing.T) {
	t.Parallel()
	whole := string(read(t, "testdata/upstream/envoy-gateway.yaml"))
	file, override, _ := strings.Cut(whole, "dynamic_resources:")
	override = "dynamic_resources:" + override
	want, err := derive(t, "testdata/upstream/envoy-gateway.yaml", upstreamConfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, given := range [][2]string{{file, override}, {"", whole}, {whole, "dynamic_resources: {lds_config: {initial_fetch_timeout: 0s}}"}} {
		config, err := MergeConfig("e.yaml", []byte(given[0]), given[1])
		if err != nil {
			t.Fatal(err)
		}
		got, err := Derive(config, upstreamConfig)
		if err != nil || string(got.Bootstrap) != string(want.Bootstrap) || !reflect.DeepEqual(got.ControlPlanes, want.ControlPlanes) {
			t.Errorf("it differs (%v):\n%s\n%+v", err, got.Bootstrap, got.ControlPlanes)
		}
	}
	// A service is appended, so that there are two.
	config, err := MergeConfig("e.yaml", []byte(whole), "dynamic_resources: {ads_config: {grpc_services: [{envoy_grpc: {cluster_name: second}}]}}")
	if err != nil {
		t.Fatal(err)
	}
	var p *chandler.Problem
	if _, err := Derive(config, upstreamConfig); !errors.As(err, &p) || p.Field != "dynamic_resources.ads_config.grpc_services" {
		t.Errorf("two services: %v", err)
	}
}

// How long Envoy waits for its first listeners is in the source of these alone.
func TestListenersTimeout(t *testing.T) {
	t.Parallel()
	whole := read(t, "testdata/upstream/envoy-gateway.yaml")
	for lds, want := range map[string]time.Duration{
		"initial_fetch_timeout: 0s": 0, "initial_fetch_timeout: 5s": 5 * time.Second, "initialFetchTimeout: 0.250s": 250 * time.Millisecond,
		"initial_fetch_timeout: null": 15 * time.Second, "": 15 * time.Second,
	} {
		text := strings.Replace(string(whole), "lds_config:\n    ads: {}\n    initial_fetch_timeout: 0s", "lds_config:\n    ads: {}\n    "+lds, 1)
		config, err := MergeConfig("e.yaml", []byte(text), "")
		if err != nil {
			t.Fatal(err)
		}
		if d, err := Derive(config, upstreamConfig); err != nil || d.ListenersTimeout != want {
			t.Errorf("%q: %v, %v, want %v", lds, d.ListenersTimeout, err, want)
		}
	}
	config, err := MergeConfig("e.yaml", whole, "dynamic_resources: {lds_config: {initial_fetch_timeout: soon}}")
	if err != nil {
		t.Fatal(err)
	}
	var p *chandler.Problem
	if _, err := Derive(config, upstreamConfig); !errors.As(err, &p) || p.Field != "dynamic_resources.lds_config.initial_fetch_timeout" {
		t.Errorf("%v", err)
	}
}

// A listener of the control plane gets the slots that one of the file gets: over ADS, which
// is the control plane's own, or else the agent's.
func TestSlotsOfUpstreamListeners(t *testing.T) {
	t.Parallel()
	for file, byADS := range map[string]bool{"testdata/upstream/routes.yaml": true, "testdata/upstream/separate.yaml": false} {
		d, err := derive(t, file, upstreamConfig)
		if err != nil {
			t.Fatal(err)
		}
		placed, err := d.PlaceSlots(packed(listenerWith(chainWith(managerOf(router)))), nil)
		if err != nil || len(placed.Layout.Slots) != 4 {
			t.Fatalf("%v, %v", placed.Layout, err)
		}
		if own := d.AgentCluster == ""; own != byADS || strings.Contains(string(d.Bootstrap), agentCluster) == byADS {
			t.Errorf("%s: slots over the control plane's own ADS: %v", file, own)
		}
		for _, s := range everySlot {
			text, err := render(slotFilter(s), true)
			if err != nil {
				t.Fatal(err)
			}
			var tree, wire hcmv3.HttpFilter
			if err := errors.Join(protojson.Unmarshal(text, &tree), proto.Unmarshal(wireSlot(s), &wire)); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(&wire, &tree) {
				t.Errorf("as protobuf: %v\nas a tree: %v", &wire, &tree)
			}
		}
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"a": 1.50, "b": "x"}`:                       `{"a":1.50,"b":"x"}`,
		"a: yes\nb: \"yes\"\nc: 0x10\nd: 1.5\ne:":     `{"a":true,"b":"yes","c":16,"d":"1.5","e":null}`,
		"a: &x [STATIC, 9999999999]\nyes: *x\nz: 1_0": `{"a":["STATIC","9999999999"],"yes":["STATIC","9999999999"],"z":"1_0"}`,
	} {
		if got, err := JSON([]byte(text)); err != nil || string(got) != want {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
	var p *chandler.Problem
	if _, err := JSON([]byte("[")); !errors.As(err, &p) {
		t.Errorf("no problem: %v", err)
	}
}

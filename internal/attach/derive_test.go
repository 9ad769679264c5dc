package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/module"
)

var testConfig = DeriveConfig{
	NodeID:        "node-1",
	Cluster:       "chandler",
	ADSSocket:     "/run/agent/ads.sock",
	ListenersFile: "/run/agent/listeners",
	AdminSocket:   "/run/agent/admin.sock",
}

func derive(t *testing.T, path string, dc DeriveConfig) (Derived, error) {
	t.Helper()
	config, err := MergeConfig(path, read(t, path), "")
	if err != nil {
		return Derived{}, err
	}
	return Derive(config, dc)
}

func TestDeriveGolden(t *testing.T) {
	t.Parallel()
	for _, path := range inputs(t, "derive") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			d, err := derive(t, path, testConfig)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			fmt.Fprintf(&b, "# admin %s %s\n# agent cluster %s\n# listeners %q version %s in %s\n", d.Admin.Network, d.Admin.Address,
				d.AgentCluster, d.ListenerNames, d.ListenersVersion, d.ListenersFile)
			for _, s := range d.Slots {
				fmt.Fprintf(&b, "# slot %s\n", s.Name())
			}
			for _, w := range d.Warnings {
				fmt.Fprintf(&b, "# warning %s\n", w)
			}
			fmt.Fprintf(&b, "# bootstrap\n%s# listeners\n%s", d.Bootstrap, d.Listeners)
			golden(t, strings.TrimSuffix(path, filepath.Ext(path))+".golden", b.String())
		})
	}
}

// everywhere are slots of two plugins at every site, the later phase first.
func everywhere(d Derived) []Slot {
	var own []Slot
	for _, site := range d.Sites {
		for _, p := range []struct {
			name  string
			phase chandler.Phase
		}{{"later", chandler.PhaseStats}, {"first", chandler.PhaseAuthn}} {
			own = append(own, Slot{Phase: p.phase, Mode: site.Mode, Port: site.Port, Network: site.Network,
				Plugin: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: p.name}})
		}
	}
	return own
}

// The listeners with slots of one plugin each: of NETWORK plugins only, and of
// HTTP plugins too for an Envoy without shared slots.
func TestListenersWithGolden(t *testing.T) {
	t.Parallel()
	for _, path := range inputs(t, "derive") {
		for _, older := range []bool{false, true} {
			dc := testConfig
			dc.NoSharedSlots = older
			d, err := derive(t, path, dc)
			if err != nil {
				t.Fatal(err)
			}
			text, version, err := d.ListenersWith(everywhere(d))
			if err != nil {
				t.Fatal(err)
			}
			again, sameVersion, _ := d.ListenersWith(everywhere(d))
			if string(again) != string(text) || sameVersion != version {
				t.Errorf("%s: it differs from one time to the next", path)
			}
			if none, version, _ := d.ListenersWith(nil); string(none) != string(d.Listeners) || version != d.ListenersVersion {
				t.Errorf("%s: without slots it is not what Derive gave", path)
			}
			own, err := OwnSlots(text)
			if err != nil || len(own) != len(everywhere(d)) {
				t.Errorf("%s: %d of %d slots are read from the file (%v)", path, len(own), len(everywhere(d)), err)
			}
			if again, _, _ := d.ListenersWith(own); string(again) != string(text) {
				t.Errorf("%s: the slots read from the file make another one", path)
			}
			name := "own-"
			if older {
				name = "older-"
			}
			base := strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))
			golden(t, filepath.Join("testdata", "listeners", name+base+".golden"), string(text))
		}
	}
}

func TestDeriveRefuses(t *testing.T) {
	t.Parallel()
	for _, path := range inputs(t, "refused") {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			_, err := derive(t, path, testConfig)
			var p *chandler.Problem
			if !errors.As(err, &p) || p.Code != chandler.CodeEnvoyConfig {
				t.Fatalf("want a problem of code EnvoyConfig, got %v", err)
			}
			golden(t, strings.TrimSuffix(path, ".yaml")+".golden", p.Error()+"\n")
		})
	}
}

// Envoy itself must accept what is derived from what it accepts: the bootstrap,
// and the listeners put back where they came from.
func TestEnvoyAcceptsDerived(t *testing.T) {
	t.Parallel()
	envoy := module.Envoy(t)
	var accepted []string
	for _, path := range inputs(t, "derive") {
		base := filepath.Base(path)
		if ok, log := validate(t, envoy, path); !ok {
			if !slices.Contains([]string{"unknown.yaml", "aliases.yaml", "api.yaml"}, base) {
				t.Errorf("Envoy refuses %s: %s", base, log)
			}
			continue
		}
		accepted = append(accepted, base)
		dir := t.TempDir()
		dc := DeriveConfig{NodeID: "n", Cluster: "c", ADSSocket: filepath.Join(dir, "ads"), ListenersFile: filepath.Join(dir, "listeners"), AdminSocket: filepath.Join(dir, "admin")}
		d, err := derive(t, path, dc)
		if err != nil {
			t.Fatal(err)
		}
		bootstrap, whole := filepath.Join(dir, "bootstrap"+d.Extension), filepath.Join(dir, "whole"+d.Extension)
		if err := errors.Join(
			os.WriteFile(d.ListenersFile, d.Listeners, 0o600),
			os.WriteFile(bootstrap, d.Bootstrap, 0o600),
			os.WriteFile(whole, joined(t, d), 0o600),
		); err != nil {
			t.Fatal(err)
		}
		own := d
		if own.Listeners, _, err = d.ListenersWith(everywhere(d)); err != nil {
			t.Fatal(err)
		}
		withOwn := filepath.Join(dir, "own"+d.Extension)
		if err := os.WriteFile(withOwn, joined(t, own), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, file := range []string{bootstrap, whole, withOwn} {
			if ok, log := validate(t, envoy, file); !ok {
				t.Errorf("Envoy accepts %s and refuses %s derived from it: %s", base, filepath.Base(file), log)
			}
		}
	}
	t.Logf("accepted: %v", accepted)
}

// joined puts the derived listeners back into the bootstrap.
func joined(t *testing.T, d Derived) []byte {
	t.Helper()
	boot, asJSON, err := parse(d.Bootstrap)
	file, _, err2 := parse(d.Listeners)
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	listeners, err := messages(file, "", "resources")
	if err != nil {
		t.Fatal(err)
	}
	list := newSequence()
	for _, l := range listeners {
		if err := remove(l.Node, "", "@type"); err != nil {
			t.Fatal(err)
		}
		list.Content = append(list.Content, l.Node)
	}
	static, err := ensure(boot, "", "static_resources")
	if err != nil {
		t.Fatal(err)
	}
	if api, err := fieldOf(yaml.SequenceNode, static, "", "listeners"); err != nil {
		t.Fatal(err)
	} else if api != nil {
		list.Content = append(list.Content, api.Content...)
	}
	if err := set(static, "", "listeners", list); err != nil {
		t.Fatal(err)
	}
	text, err := render(boot, asJSON)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func validate(t *testing.T, envoy, file string) (bool, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, envoy, "--mode", "validate", "-c", file, "--use-dynamic-base-id", "--concurrency", "1", "-l", "error",
		"--service-node", "n", "--service-cluster", "c")
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		t.Fatalf("run Envoy: %v", err)
	}
	return err == nil, string(out)
}

func TestDeriveLeavesConfigAlone(t *testing.T) {
	t.Parallel()
	config, err := MergeConfig("e.yaml", read(t, "testdata/derive/gateway.yaml"), "")
	if err != nil {
		t.Fatal(err)
	}
	first, err := Derive(config, testConfig)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Derive(config, testConfig)
	if err != nil || string(first.Bootstrap) != string(second.Bootstrap) || string(first.Listeners) != string(second.Listeners) {
		t.Fatalf("a second derivation differs (%v)", err)
	}
}

func TestFortyManagersShareSlots(t *testing.T) {
	t.Parallel()
	manager := object{"name": "http", "typed_config": object{"@type": typeURLPrefix + hcmType, "http_filters": []object{{"name": "router"}}}}
	var chains []object
	for range 40 {
		chains = append(chains, object{"filters": []object{manager}})
	}
	text, err := json.Marshal(object{"static_resources": object{"listeners": []object{{
		"name": "l", "address": object{"socket_address": object{"address": "127.0.0.1", "port_value": 80}}, "filter_chains": chains,
	}}}})
	if err != nil {
		t.Fatal(err)
	}
	config, err := MergeConfig("e.json", text, "")
	if err != nil {
		t.Fatal(err)
	}
	d, err := Derive(config, testConfig)
	if err != nil {
		t.Fatal(err)
	}
	if len(d.Slots) != 4 {
		t.Errorf("slots: %v", d.Slots)
	}
	if n := strings.Count(string(d.Listeners), `"chandler/authn/client/80"`); n != 40 {
		t.Errorf("%d managers have the slot", n)
	}
}

func TestAdminAddress(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]Admin{
		`{}`: {"unix", "/run/agent/admin.sock"},
		`admin: {address: {socket_address: {address: 127.0.0.1, port_value: 9901}}}`: {"tcp", "127.0.0.1:9901"},
		`admin: {address: {socket_address: {address: 0.0.0.0, port_value: 0}}}`:      {"tcp", "127.0.0.1:0"},
		`admin: {address: {socketAddress: {address: "::", portValue: 9901}}}`:        {"tcp", "[::1]:9901"},
		`admin: {address: {pipe: {path: /run/envoy.sock}}}`:                          {"unix", "/run/envoy.sock"},
	} {
		config, err := MergeConfig("e.yaml", []byte(text), "")
		if err != nil {
			t.Fatal(err)
		}
		if d, err := Derive(config, testConfig); err != nil || d.Admin != want {
			t.Errorf("%s: %v, %v", text, d.Admin, err)
		}
	}
}

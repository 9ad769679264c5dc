package attach

import (
	"reflect"
	"testing"

	"chandler.dev/chandler"
)

// What is known of listeners: their addresses, places in order, and under which names
// Envoy counts.
func TestLayout(t *testing.T) {
	t.Parallel()
	const text = `
static_resources:
  listeners:
  - name: in
    address: {socket_address: {address: "::1", port_value: 8080}}
    traffic_direction: INBOUND
    filter_chains:
    - filter_chain_match: {destination_port: 9090}
      filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
        statPrefix: "a://b:c", http_filters: [{name: router}]}}]
    - filters: [{name: hcm, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager,
        stat_prefix: x, http_filters: [{name: router}]}}]
  - address: {pipe: {path: /run/x.sock}}
    filter_chains: [{filters: [{name: tcp}]}]
`
	config, err := MergeConfig("e.yaml", []byte(text), "")
	if err != nil {
		t.Fatal(err)
	}
	slots := func(mode chandler.Mode, ports ...uint32) (list []Slot) {
		for _, port := range ports {
			for _, phase := range chandler.Phases() {
				list = append(list, Slot{Phase: phase, Mode: mode, Port: port})
			}
		}
		return list
	}
	d, err := Derive(config, testConfig)
	if err != nil {
		t.Fatal(err)
	}
	const server, client = chandler.ModeServer, chandler.ModeClient
	want := []Listener{
		{Name: "in", Address: "[::1]:8080", Mode: server, Port: 8080, Slots: slots(server, 9090, 8080), Sites: []Site{{server, 9090, true}, {server, 8080, true}},
			Counted: []Counted{{"a_b_c", server, 9090}, {"x", server, 8080}}},
		{Name: d.ListenerNames[1], Address: "/run/x.sock", Mode: client, Sites: []Site{{client, 0, true}}},
	}
	if !reflect.DeepEqual(d.Layout, want) {
		t.Errorf("layout\n%+v, want\n%+v", d.Layout, want)
	}
	// Network filters come first, each chain's own in their order.
	key := chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: "n"}
	network := Slot{Phase: chandler.PhaseStats, Mode: server, Port: 9090, Network: true, Plugin: key}
	elsewhere := Slot{Mode: client, Port: 0, Network: true, Plugin: key}
	order := append([]Slot{network}, append(slots(server, 8080), slots(server, 9090)...)...)
	if got := d.Layout[0].InOrder([]Slot{elsewhere, network}); !reflect.DeepEqual(got, order) {
		t.Errorf("in order %v\nwant %v", got, order)
	}
}

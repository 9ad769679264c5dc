package deltaclient

import (
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/test/bufconn"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/refusal"
)

// What was not asked for is refused as a whole, and nothing of it is handed on.
func TestRefuse_B102(t *testing.T) {
	s, l := listen(t)
	updates := make(chan Update, 10)
	run(t, Config{Handle: func(u Update) error { updates <- u; return nil }}, map[string]*bufconn.Listener{"one": l})
	p := await(t, s.streams)
	recv(t, p)
	for _, spoil := range []func(*discoveryv3.DeltaDiscoveryResponse){
		func(r *discoveryv3.DeltaDiscoveryResponse) {
			r.TypeUrl = "type.googleapis.com/envoy.config.listener.v3.Listener"
		},
		func(r *discoveryv3.DeltaDiscoveryResponse) {
			r.Resources[0].Resource.TypeUrl = "type.googleapis.com/google.protobuf.Any"
		},
		func(r *discoveryv3.DeltaDiscoveryResponse) { r.Resources[0].Resource = nil },
		func(r *discoveryv3.DeltaDiscoveryResponse) {
			r.Resources[0].Resource.TypeUrl = strings.Repeat("\x1b", 1<<20)
		},
	} {
		r := response("n", "a", "1")
		spoil(r)
		seen := refusal.Begin(t)
		send(t, p, r)
		nack := recv(t, p).GetErrorDetail().GetMessage()
		code, text, _ := strings.Cut(nack, ": ")
		if code != "XDSResource" {
			t.Fatalf("NACK: %.200q", nack)
		}
		seen.Saw(chandler.Code(code), text)
	}
	send(t, p, response("good", "a", "2"))
	if u := await(t, updates); u.Changed[0].Version != "2" {
		t.Errorf("handed on: %+v", u)
	}
}

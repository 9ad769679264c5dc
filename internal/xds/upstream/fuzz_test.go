package upstream

import (
	"errors"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/attach"
)

// FuzzPlan: any messages are refused with a field, or say where to connect.
func FuzzPlan(f *testing.F) {
	f.Add(`{"envoy_grpc":{"cluster_name":"c"},"initial_metadata":[{"key":"a","value":"b%%"}]}`,
		`{"sni":"a","common_tls_context":{"validation_context":{"trusted_ca":{"filename":"x"},"match_typed_subject_alt_names":[{"san_type":"DNS","matcher":{"exact":"a"}}]}}}`,
		`{"interval":"1s"}`, `{"auto_sni":true,"auto_san_validation":true}`)
	f.Add(`{"google_grpc":{"target_uri":"dns:///a:1","channel_credentials":{"ssl_credentials":{}},"call_credentials":[{"access_token":"x"}]}}`, `{}`, `{}`, `{}`)
	f.Add(`{}`, `{"common_tls_context":{"combined_validation_context":{},"tls_certificates":[{}],"tls_params":{"tls_minimum_protocol_version":-1}}}`, `{"interval":"-1s"}`, `{}`)
	f.Fuzz(func(t *testing.T, service, tls, keepalive, http string) {
		part := func(path, text string) attach.Part { return attach.Part{Path: path, JSON: []byte(text)} }
		p, err := readPlan(attach.ControlPlane{
			Cluster: "c", Endpoints: []attach.Endpoint{{Network: "tcp", Address: "a:1"}},
			Service: part("service", service), TLS: part("tls", tls), Keepalive: part("keepalive", keepalive), HTTP: part("http", http),
		})
		var said *chandler.Problem
		switch {
		case err == nil && (len(p.endpoints) == 0 || p.authority == "" || p.ping.Time != 0 && p.ping.Time < MinPing || len(p.headers)%2 != 0):
			t.Errorf("%+v", p)
		case err != nil && (!errors.As(err, &said) || said.Field == "" || len(said.Error()) > 4<<10 || strings.ContainsFunc(said.Message, func(r rune) bool { return r < ' ' })):
			t.Errorf("not named: %v", err)
		}
	})
}

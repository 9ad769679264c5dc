package agent

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	row "chandler.dev/chandler/internal/testenv/refusal"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/deltaclient"
)

// refuseAssigned has a control plane send what it must not beside a plugin that is
// good: that one is taken, and of the other nothing gets further, to Envoy least of
// all.
func refuseAssigned(t *testing.T, code chandler.Code, spoil func(*chandlerv1.Attachment)) {
	t.Helper()
	a := bareAgent(t)
	sent := func(name string, change func(*chandlerv1.Attachment)) deltaclient.Resource {
		v := version(name)
		v.Release = chandler.ReleaseID(digestOf(name).Hex())
		m := wire.AttachmentToProto(&v.Attachment)
		change(m)
		body, err := proto.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return deltaclient.Resource{Name: v.Key.String(), Version: wire.Version(body), Body: body}
	}
	u := deltaclient.Update{Changed: []deltaclient.Resource{sent("bad", spoil), sent("good", func(*chandlerv1.Attachment) {})}}
	seen := row.Begin(t)
	err := a.assigned(t.Context(), u)
	var p *chandler.Problem
	if !errors.As(err, &p) || p.Code != code {
		t.Fatalf("got %v, want %s", err, code)
	}
	seen.Saw(p.Code, err.Error())
	msg := <-a.inbox
	if ev := msg.event.(Assigned); len(ev.Changed) != 1 || ev.Changed[0].Name != "good" || len(ev.Removed) != 0 {
		t.Errorf("taken: %+v", ev)
	}
	a.step(t.Context(), msg)
	if _, known := (*a.known.Load())["WasmPlugin/ns/bad"]; known || a.state.plugins[chandler.Key{Kind: "WasmPlugin", Namespace: "ns", Name: "bad"}] != nil {
		t.Error("it is known, and would not be sent again")
	}
	a.loader.wait()
	a.releaseAll()
}

func TestRefuse_B102(t *testing.T) {
	refuseAssigned(t, chandler.CodeXDSResource, func(m *chandlerv1.Attachment) { m.Type = 77 })
	refuseAssigned(t, chandler.CodeXDSResource, func(m *chandlerv1.Attachment) { m.Plugin.Name = "a/../b" })
}

func TestRefuse_B103(t *testing.T) {
	for _, path := range []string{"/opt/../etc/shadow", "etc/shadow"} {
		refuseAssigned(t, chandler.CodeXDSPathEscape, func(m *chandlerv1.Attachment) {
			m.Code = &chandlerv1.Attachment_File{File: &chandlerv1.LocalFile{Path: path}}
		})
	}
}

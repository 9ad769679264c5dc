package wire

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/testenv/refusal"
)

// goodAttachment is an attachment as a control plane sends it.
func goodAttachment() *chandlerv1.Attachment {
	return &chandlerv1.Attachment{
		Plugin: &chandlerv1.PluginRef{Kind: "WasmPlugin", Namespace: "ns", Name: "n", Uid: "u"},
		Code:   &chandlerv1.Attachment_Module{Module: &chandlerv1.Module{Digest: string(chandler.Digest[chandler.ModuleDigest]([]byte("x"))), Size: 1}},
		Type:   chandlerv1.FilterType_FILTER_TYPE_HTTP,
	}
}

func marshal(t *testing.T, m proto.Message) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func refuseBody(t *testing.T, body []byte, code chandler.Code, text string) {
	t.Helper()
	seen := refusal.Begin(t)
	_, err := UnmarshalAttachment(body)
	var p *chandler.Problem
	if !errors.As(err, &p) || p.Code != code || p.Hint == "" || !strings.Contains(p.Message, text) {
		t.Fatalf("got %v, want %s: %s", err, code, text)
	}
	// The words of the protobuf library differ from build to build, on purpose.
	seen.Saw(p.Code, strings.ReplaceAll(p.Error(), "\u00a0", " "))
}

func TestRefuse_B102(t *testing.T) {
	good := marshal(t, goodAttachment())
	// 20,000 groups in each other, in a field that nobody knows.
	deep := bytes.Repeat(protowire.AppendTag(nil, 1000, protowire.StartGroupType), 20_000)
	deep = append(deep, bytes.Repeat(protowire.AppendTag(nil, 1000, protowire.EndGroupType), 20_000)...)
	for _, c := range []struct {
		body []byte
		text string
	}{
		{[]byte("\xff"), "cannot parse"},
		{good[:len(good)-1], "cannot parse"},
		{append(bytes.Clone(good), deep...), "cannot parse"},
		{protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 7), "plugin"}, // a known field of another kind
		{[]byte("listener"), ""},
		{nil, "plugin"},
	} {
		refuseBody(t, c.body, chandler.CodeXDSResource, c.text)
	}
	for _, spoil := range []func(*chandlerv1.Attachment){
		func(m *chandlerv1.Attachment) { m.Type = 77 },
		func(m *chandlerv1.Attachment) { m.Code = nil },
		func(m *chandlerv1.Attachment) { m.GetModule().Digest = "sha256:../../etc/passwd" },
		func(m *chandlerv1.Attachment) { m.Plugin.Name = strings.Repeat("a", 1<<20) },
		func(m *chandlerv1.Attachment) { m.Configuration = make([]byte, MaxConfig+1) },
	} {
		m := goodAttachment()
		spoil(m)
		refuseBody(t, marshal(t, m), chandler.CodeXDSResource, "")
	}
	// What is only unknown is a newer control plane's.
	unknown := protowire.AppendBytes(protowire.AppendTag(bytes.Clone(good), 1000, protowire.BytesType), []byte("later"))
	if _, err := UnmarshalAttachment(unknown); err != nil {
		t.Errorf("an unknown field: %v", err)
	}
}

func TestRefuse_B103(t *testing.T) {
	for _, path := range []string{
		"x.wasm", "../x.wasm", "/opt/../etc/shadow", "/opt/./x", "/opt//x", "/opt/", "/", "", "/opt/x\x00.wasm", "/opt/\x1b[31m",
	} {
		m := goodAttachment()
		m.Code = &chandlerv1.Attachment_File{File: &chandlerv1.LocalFile{Path: path}}
		refuseBody(t, marshal(t, m), chandler.CodeXDSPathEscape, "")
	}
}

package wire

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

func before(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "before", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// later adds what a later program may say beside: a number, a text and a message of
// fields that are not known here.
func later(b []byte) []byte {
	b = bytes.Clone(b)
	b = protowire.AppendTag(b, 2001, protowire.VarintType)
	b = protowire.AppendVarint(b, 7)
	b = protowire.AppendTag(b, 2002, protowire.BytesType)
	return protowire.AppendBytes(b, []byte("a later word"))
}

// What is recorded of the messages of before.
func attachmentOfBefore() chandler.Attachment {
	priority := int32(-7)
	d := chandler.Digest[chandler.ModuleDigest]([]byte("m"))
	return chandler.Attachment{
		Key: chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "ns", Name: "a"},
		UID: "u", Generation: 3, Release: chandler.ReleaseID(d.Hex()), Sequence: 5,
		Program: chandler.Program{Module: &chandler.Module{Digest: d, Size: 4, Origins: []string{"oci://r.example/a@" + string(d)}}},
		Behaviour: chandler.Behaviour{
			Type: chandler.HTTP, Phase: chandler.PhaseAuthn, Priority: &priority, FailStrategy: chandler.FailOpen, RootID: "r",
			Match: []chandler.Match{{Mode: chandler.ModeServer, Ports: []uint32{80, 8080}}}, Config: []byte(`{"a":1}`),
			Env: []chandler.EnvVar{{Name: "A", Value: "b"}, {Name: "C", Host: true}},
		},
		Created: time.Unix(1_700_000_000, 0).UTC(), FirstAttach: chandler.FirstAttachDeny, Strict: true, FetchDeadline: time.Minute,
		Capabilities: []string{"proxy_log"}, Standby: []chandler.Module{{Digest: d, Size: 4}}, Requires: []string{chandler.FeatureHTTP},
	}
}

func reportOfBefore() Report {
	a := attachmentOfBefore()
	return Report{
		Node: &chandler.Node{Namespace: "ns", Name: "gw", Labels: map[string]string{"app": "x"}}, Sequence: 7, Full: true,
		States: []chandler.AttachmentState{{
			Key: a.Key, UID: "u", Generation: 3, Release: a.Release, Sequence: 5, State: chandler.StateRejected, InForce: a.Release,
			StandIn: chandler.StandInDeny, Reason: chandler.CodeRejected, Message: "realm is no string", Attempt: 2,
			NextTry: time.Unix(1_700_000_100, 0).UTC(), Since: time.Unix(1_700_000_000, 0).UTC(), Rejections: 4, VMTraps: 1,
		}},
	}
}

// Messages that a control plane or an agent of before has sent mean what they meant.
// What is sent today is the same to the byte, so that one of before reads it, and so
// that a control plane that is replaced sends nothing to agents that are up to date:
// the version is the hash of the bytes.
func TestFault_F78_MessagesOfBefore(t *testing.T) {
	t.Parallel()
	body := before(t, "attachment.pb")
	got, err := UnmarshalAttachment(body)
	if want := attachmentOfBefore(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v\nwant %+v", got, err, want)
	}
	sent, version, err := MarshalAttachment(&got)
	if err != nil || !bytes.Equal(sent.GetValue(), body) || version != string(before(t, "attachment.version")) {
		t.Errorf("today's bytes differ: %x\nof before:           %x\n%v", sent.GetValue(), body, err)
	}

	var m chandlerv1.ReportRequest
	if err := proto.Unmarshal(before(t, "report.pb"), &m); err != nil {
		t.Fatal(err)
	}
	report, err := ReportFromProto(&m)
	if want := reportOfBefore(); err != nil || !reflect.DeepEqual(report, want) {
		t.Errorf("read %+v, %v\nwant %+v", report, err, want)
	}
	written, err := proto.MarshalOptions{Deterministic: true}.Marshal(ReportToProto(report))
	if err != nil || !bytes.Equal(written, before(t, "report.pb")) {
		t.Errorf("today's report differs: %x, %v", written, err)
	}
}

// What a later one says beside is passed over.
func TestFault_F78_MessagesOfLater(t *testing.T) {
	t.Parallel()
	got, err := UnmarshalAttachment(later(before(t, "attachment.pb")))
	want := attachmentOfBefore()
	want.InPart = true
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v", got, err)
	}
	m := AttachmentToProto(&want)
	m.Match[0].ProtoReflect().SetUnknown(later(nil))
	if body, err := proto.Marshal(m); err != nil {
		t.Fatal(err)
	} else if got, err := UnmarshalAttachment(body); err != nil || !got.InPart {
		t.Errorf("with more deep in it: %+v, %v", got, err)
	}
	var r chandlerv1.ReportRequest
	if err := proto.Unmarshal(later(before(t, "report.pb")), &r); err != nil {
		t.Fatal(err)
	}
	if report, err := ReportFromProto(&r); err != nil || !reflect.DeepEqual(report, reportOfBefore()) {
		t.Errorf("read %+v, %v", report, err)
	}
}

// What of a later one cannot be read at all, as its code or a value of a list is of a
// kind that is not known here, is refused by the name of what it requires: so much of it
// is given. Without such a name it is no attachment.
func TestFault_F78_AttachmentOfLater(t *testing.T) {
	t.Parallel()
	whole := attachmentOfBefore()
	for what, change := range map[string]func(*chandlerv1.Attachment){
		"code":          func(m *chandlerv1.Attachment) { m.Code = nil },
		"filter type":   func(m *chandlerv1.Attachment) { m.Type = 99 },
		"phase":         func(m *chandlerv1.Attachment) { m.Phase = 99 },
		"fail strategy": func(m *chandlerv1.Attachment) { m.FailStrategy = 99 },
		"mode":          func(m *chandlerv1.Attachment) { m.Match = []*chandlerv1.Match{{Mode: 99}} },
	} {
		m := AttachmentToProto(&whole)
		change(m)
		if _, err := AttachmentFromProto(m); err == nil {
			t.Errorf("another %s is taken", what)
		}
		m.Requires = []string{chandler.FeatureHTTP, "telepathy"}
		got, err := AttachmentFromProto(m)
		if err != nil || got.Key != whole.Key || got.UID != whole.UID || got.Sequence != whole.Sequence || got.Release != whole.Release ||
			!slices.Equal(got.Requires, m.Requires) || got.Program != (chandler.Program{}) || !reflect.DeepEqual(got.Behaviour, chandler.Behaviour{}) {
			t.Errorf("another %s gives %+v, %v", what, got, err)
		}
	}
	m := AttachmentToProto(&whole)
	m.Release, m.Requires = "none", []string{"telepathy"}
	if _, err := AttachmentFromProto(m); err == nil {
		t.Error("one that is of no release is taken")
	}
}

// Of a later agent's report, too: what it can do and why something is wrong may have
// names that are not known here. A state may not: what it means nobody could tell.
func TestFault_F78_ReportOfLater(t *testing.T) {
	t.Parallel()
	want := reportOfBefore()
	want.Node.Features = []string{"telepathy"}
	want.States[0].Reason = "MoonInTheWrongPhase"
	m := ReportToProto(want)
	if got, err := ReportFromProto(m); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, %v", got, err)
	}
	m.States[0].State = 99
	if _, err := ReportFromProto(m); err == nil {
		t.Error("a state that nobody knows is taken")
	}
}

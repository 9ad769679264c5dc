package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"pgregory.net/rapid"

	"chandler.dev/chandler"
	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
)

// The round trips share these generators and therefore run one after another:
// rapid fills in a generator's name on first use without a lock.
var (
	genName = rapid.StringMatching(`[a-z][a-z0-9.-]{0,20}`)
	genText = rapid.StringMatching(`[ -~äöü]{0,40}`)
	genTime = rapid.Custom(func(t *rapid.T) time.Time {
		if rapid.Bool().Draw(t, "zero") {
			return time.Time{}
		}
		return time.Unix(rapid.Int64Range(0, 1<<33).Draw(t, "s"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")).UTC()
	})
	genKey = rapid.Custom(func(t *rapid.T) chandler.Key {
		return chandler.Key{
			Kind:      rapid.SampledFrom([]string{chandler.KindWasmPlugin, chandler.KindTrafficExtension}).Draw(t, "kind"),
			Namespace: genName.Draw(t, "namespace"),
			Name:      genName.Draw(t, "name"),
		}
	})
	genRelease = rapid.Custom(func(t *rapid.T) chandler.ReleaseID {
		return chandler.ReleaseID(genDigest.Draw(t, "release").Hex())
	})
	genDigest = rapid.Custom(func(t *rapid.T) chandler.ModuleDigest {
		return chandler.Digest[chandler.ModuleDigest]([]byte{rapid.Byte().Draw(t, "digest")})
	})
	genModule = rapid.Custom(func(t *rapid.T) chandler.Module {
		return chandler.Module{
			Digest:  genDigest.Draw(t, "digest"),
			Size:    rapid.Int64Min(0).Draw(t, "size"),
			Origins: listOf(genText).Draw(t, "origins"),
		}
	})
	genProgram = rapid.Custom(func(t *rapid.T) chandler.Program {
		switch rapid.IntRange(0, 3).Draw(t, "program") {
		case 0:
			m := genModule.Draw(t, "module")
			return chandler.Program{Module: &m}
		case 1:
			return chandler.Program{File: &chandler.LocalFile{Path: "/" + genName.Draw(t, "path"), Digest: genDigest.Draw(t, "pin")}}
		case 2:
			return chandler.Program{Lua: &chandler.Lua{InlineCode: genText.Draw(t, "code")}}
		}
		return chandler.Program{Deny: true}
	})
	genBehaviour = rapid.Custom(func(t *rapid.T) chandler.Behaviour {
		b := chandler.Behaviour{
			Type:         rapid.SampledFrom([]chandler.FilterType{chandler.HTTP, chandler.Network}).Draw(t, "type"),
			Phase:        rapid.SampledFrom(chandler.Phases()).Draw(t, "phase"),
			Priority:     rapid.Ptr(rapid.Int32(), true).Draw(t, "priority"),
			FailStrategy: rapid.SampledFrom([]chandler.FailStrategy{"", chandler.FailClose, chandler.FailOpen, chandler.FailReload}).Draw(t, "fail"),
			RootID:       rapid.OneOf(rapid.Just(""), genName).Draw(t, "root"),
			Config:       rapid.SampledFrom([][]byte{nil, {}, []byte(`{"a":1}`)}).Draw(t, "config"),
		}
		for range rapid.IntRange(0, 3).Draw(t, "matches") {
			b.Match = append(b.Match, chandler.Match{
				Mode:  rapid.SampledFrom([]chandler.Mode{chandler.ModeAny, chandler.ModeClient, chandler.ModeServer}).Draw(t, "mode"),
				Ports: listOf(rapid.Uint32Range(1, 65535)).Draw(t, "ports"),
			})
		}
		for range rapid.IntRange(0, 3).Draw(t, "envs") {
			e := chandler.EnvVar{Name: genName.Draw(t, "name"), Host: rapid.Bool().Draw(t, "host")}
			if !e.Host {
				e.Value = genText.Draw(t, "value")
			}
			b.Env = append(b.Env, e)
		}
		return b
	})
	genAttachment = rapid.Custom(func(t *rapid.T) chandler.Attachment {
		return chandler.Attachment{
			Key:           genKey.Draw(t, "key"),
			UID:           genName.Draw(t, "uid"),
			Generation:    rapid.Int64().Draw(t, "generation"),
			Release:       genRelease.Draw(t, "release"),
			Sequence:      rapid.Uint64().Draw(t, "sequence"),
			Program:       genProgram.Draw(t, "program"),
			Behaviour:     genBehaviour.Draw(t, "behaviour"),
			Created:       genTime.Draw(t, "created"),
			FirstAttach:   rapid.SampledFrom([]chandler.FirstAttach{chandler.FirstAttachHold, chandler.FirstAttachDeny}).Draw(t, "first"),
			Strict:        rapid.Bool().Draw(t, "strict"),
			FetchDeadline: time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "deadline")),
			Capabilities:  listOf(genName).Draw(t, "capabilities"),
			Standby:       listOf(genModule).Draw(t, "standby"),
			Requires:      listOf(genName).Draw(t, "requires"),
		}
	})
	genNode = rapid.Custom(func(t *rapid.T) chandler.Node {
		n := chandler.Node{
			Name: genName.Draw(t, "name"), Namespace: genName.Draw(t, "namespace"),
			AgentVersion: genName.Draw(t, "agent"), EnvoyVersion: rapid.OneOf(rapid.Just(""), genName).Draw(t, "envoy"),
			Features: listOf(genName).Draw(t, "features"),
		}
		if labels := rapid.MapOfN(genName, rapid.OneOf(rapid.Just(""), genName), 0, 4).Draw(t, "labels"); len(labels) > 0 {
			n.Labels = labels
			n.Found = rapid.SampledFrom([]map[string]string{nil, labels}).Draw(t, "found")
		}
		return n
	})
	genState = rapid.Custom(func(t *rapid.T) chandler.AttachmentState {
		return chandler.AttachmentState{
			Key: genKey.Draw(t, "key"), UID: genName.Draw(t, "uid"), Generation: rapid.Int64().Draw(t, "generation"),
			Release: genRelease.Draw(t, "release"), Sequence: rapid.Uint64().Draw(t, "sequence"),
			State: rapid.SampledFrom([]chandler.State{
				chandler.StatePending, chandler.StateFetching, chandler.StateReady, chandler.StateInForce,
				chandler.StateRejected, chandler.StateFailed, chandler.StateUnmatched,
			}).Draw(t, "state"),
			InForce: rapid.OneOf(rapid.Just(chandler.ReleaseID("")), genRelease).Draw(t, "inforce"),
			StandIn: rapid.SampledFrom([]chandler.StandIn{chandler.StandInNone, chandler.StandInPass, chandler.StandInDeny}).Draw(t, "standin"),
			Reason:  rapid.SampledFrom([]chandler.Code{"", chandler.CodeRejected, chandler.CodeFetchFailed}).Draw(t, "reason"),
			Message: strings.TrimSpace(genText.Draw(t, "message")),
			Attempt: rapid.Uint32().Draw(t, "attempt"), NextTry: genTime.Draw(t, "next"), Since: genTime.Draw(t, "since"),
			Rejections: rapid.Uint64().Draw(t, "rejections"), VMTraps: rapid.Uint64().Draw(t, "traps"),
		}
	})
)

// listOf gives nil rather than an empty list: the wire knows no difference.
func listOf[T any](g *rapid.Generator[T]) *rapid.Generator[[]T] {
	return rapid.Custom(func(t *rapid.T) []T {
		if l := rapid.SliceOfN(g, 0, 3).Draw(t, "list"); len(l) > 0 {
			return l
		}
		return nil
	})
}

func TestAttachmentRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := genAttachment.Draw(t, "attachment")
		body, version, err := MarshalAttachment(&want)
		if err != nil {
			t.Fatal(err)
		}
		again, version2, err := MarshalAttachment(&want)
		if err != nil || !bytes.Equal(body.GetValue(), again.GetValue()) || version != version2 {
			t.Fatalf("marshalled twice, two results (%v)", err)
		}
		if body.GetTypeUrl() != AttachmentTypeURL || body.GetTypeUrl() != "type.googleapis.com/"+string((&chandlerv1.Attachment{}).ProtoReflect().Descriptor().FullName()) {
			t.Fatalf("type URL %s", body.GetTypeUrl())
		}
		got, err := UnmarshalAttachment(body.GetValue())
		if err != nil {
			t.Fatal(err)
		}
		if g, w := mustJSON(t, got), mustJSON(t, want); g != w {
			t.Fatalf("came back as\n%s, sent\n%s", g, w)
		}
		if (got.Config == nil) != (want.Config == nil) {
			t.Fatal("no configuration and an empty one are not the same")
		}
	})
}

func TestNodeRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := genNode.Draw(t, "node")
		xds, err := NodeFromXDS(remarshal(t, NodeToXDS(want)))
		if err != nil {
			t.Fatal(err)
		}
		own, err := NodeFromProto(remarshal(t, NodeToProto(want)))
		if err != nil {
			t.Fatal(err)
		}
		w := mustJSON(t, want)
		if g := mustJSON(t, xds); g != w {
			t.Fatalf("over xDS %s, sent %s", g, w)
		}
		if g := mustJSON(t, own); g != w {
			t.Fatalf("over Report %s, sent %s", g, w)
		}
		if NodeToXDS(want).GetId() != want.ID() {
			t.Fatal("node id")
		}
	})
}

func TestReportRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		node := genNode.Draw(t, "node")
		want := Report{
			Sequence: rapid.Uint64().Draw(t, "sequence"),
			Full:     rapid.Bool().Draw(t, "full"),
			States:   listOf(genState).Draw(t, "states"),
			Removed:  listOf(genKey).Draw(t, "removed"),
			Facts:    genFacts.Draw(t, "facts"),
			Traffic:  genTraffic.Draw(t, "traffic"),
		}
		if rapid.Bool().Draw(t, "with node") {
			want.Node = &node
		}
		got, err := ReportFromProto(remarshal(t, ReportToProto(want)))
		if err != nil {
			t.Fatal(err)
		}
		if g, w := mustJSON(t, got), mustJSON(t, want); g != w {
			t.Fatalf("came back as\n%s, sent\n%s", g, w)
		}
		relayed := Relayed{Node: node, Connected: true, States: want.States, Facts: want.Facts, Traffic: want.Traffic}
		back, err := RelayFromProto(remarshal(t, RelayToProto(relayed)))
		if err != nil {
			t.Fatal(err)
		}
		if g, w := mustJSON(t, back), mustJSON(t, relayed); g != w {
			t.Fatalf("relayed as\n%s, sent\n%s", g, w)
		}
	})
}

// Whatever bytes come, they are refused with a code, or are an attachment that is the
// same when it travels on.
func FuzzUnmarshalAttachment(f *testing.F) {
	body, _, err := MarshalAttachment(&chandler.Attachment{
		Key:       chandler.Key{Kind: "WasmPlugin", Namespace: "a", Name: "b"},
		Program:   chandler.Program{Lua: &chandler.Lua{InlineCode: "x"}},
		Behaviour: chandler.Behaviour{Type: chandler.HTTP},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body.GetValue())
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := UnmarshalAttachment(b)
		if err != nil {
			var p *chandler.Problem
			if !errors.As(err, &p) || p.Code == "" || len(p.Error()) > 8<<10 {
				t.Fatalf("not named: %v", err)
			}
			return
		}
		body, _, err := MarshalAttachment(&a)
		if err != nil {
			t.Fatal(err)
		}
		again, err := UnmarshalAttachment(body.GetValue())
		if err != nil {
			t.Fatal(err)
		}
		sameJSON(t, a, again)
	})
}

func TestAttachmentsThatAreRefused(t *testing.T) {
	t.Parallel()
	digest := string(chandler.Digest[chandler.ModuleDigest]([]byte("x")))
	good := func() *chandlerv1.Attachment {
		return &chandlerv1.Attachment{
			Plugin: &chandlerv1.PluginRef{Kind: "WasmPlugin", Namespace: "ns", Name: "n", Uid: "u"},
			Code:   &chandlerv1.Attachment_Module{Module: &chandlerv1.Module{Digest: digest, Size: 1}},
			Type:   chandlerv1.FilterType_FILTER_TYPE_HTTP,
		}
	}
	if _, err := AttachmentFromProto(good()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*chandlerv1.Attachment){
		"no plugin":        func(m *chandlerv1.Attachment) { m.Plugin = nil },
		"name with slash":  func(m *chandlerv1.Attachment) { m.Plugin.Name = "a/b" },
		"name of 1 MiB":    func(m *chandlerv1.Attachment) { m.Plugin.Name = strings.Repeat("a", 1<<20) },
		"control in name":  func(m *chandlerv1.Attachment) { m.Plugin.Name = "a\x1b[31m" },
		"release":          func(m *chandlerv1.Attachment) { m.Release = "latest" },
		"no code":          func(m *chandlerv1.Attachment) { m.Code = nil },
		"short digest":     func(m *chandlerv1.Attachment) { m.GetModule().Digest = digest[:20] },
		"size":             func(m *chandlerv1.Attachment) { m.GetModule().Size = 1 << 63 },
		"type unspecified": func(m *chandlerv1.Attachment) { m.Type = 0 },
		"type unknown":     func(m *chandlerv1.Attachment) { m.Type = 77 },
		"phase unknown":    func(m *chandlerv1.Attachment) { m.Phase = 77 },
		"fail unknown":     func(m *chandlerv1.Attachment) { m.FailStrategy = 77 },
		"first unknown":    func(m *chandlerv1.Attachment) { m.FirstAttach = 77 },
		"mode unknown":     func(m *chandlerv1.Attachment) { m.Match = []*chandlerv1.Match{{Mode: 77}} },
		"relative path": func(m *chandlerv1.Attachment) {
			m.Code = &chandlerv1.Attachment_File{File: &chandlerv1.LocalFile{Path: "x.wasm"}}
		},
		"too many env":   func(m *chandlerv1.Attachment) { m.Env = make([]*chandlerv1.EnvVar, maxList+1) },
		"big config":     func(m *chandlerv1.Attachment) { m.Configuration = make([]byte, MaxConfig+1) },
		"standby digest": func(m *chandlerv1.Attachment) { m.Standby = []*chandlerv1.Module{{Digest: "md5:0"}} },
		"creation time": func(m *chandlerv1.Attachment) {
			m.Order = &chandlerv1.Order{Created: &timestamppb.Timestamp{Nanos: -1}}
		},
		"feature unnamed": func(m *chandlerv1.Attachment) { m.Requires = []string{""} },
	} {
		m := good()
		spoil(m)
		if _, err := AttachmentFromProto(m); err == nil {
			t.Errorf("%s: accepted", name)
		} else if len(err.Error()) > 2<<10 {
			t.Errorf("%s: error of %d bytes", name, len(err.Error()))
		}
	}
}

func TestNodesThatAreRefused(t *testing.T) {
	t.Parallel()
	good := chandler.Node{Name: "a", Namespace: "b"}
	for name, n := range map[string]*corev3.Node{
		"no node":          nil,
		"no id":            {},
		"another client":   {Id: "sidecar~10.0.0.1"},
		"no name":          NodeToXDS(chandler.Node{Namespace: "b"}),
		"no namespace":     NodeToXDS(chandler.Node{Name: "a"}),
		"slash":            NodeToXDS(chandler.Node{Name: "a/b", Namespace: "c"}),
		"long":             NodeToXDS(chandler.Node{Name: strings.Repeat("a", MaxName+1), Namespace: "c"}),
		"long found label": NodeToXDS(chandler.Node{Name: "a", Namespace: "b", Found: map[string]string{"k": strings.Repeat("a", MaxName+1)}}),
		"long label":       NodeToXDS(chandler.Node{Name: "a", Namespace: "b", Labels: map[string]string{"k": strings.Repeat("a", MaxName+1)}}),
	} {
		if _, err := NodeFromXDS(n); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	other := NodeToXDS(good)
	other.Id = "b/other"
	if _, err := NodeFromXDS(other); err == nil {
		t.Error("an id that disagrees with name and namespace was accepted")
	}
}

func TestMessagesOfReportsAreMadeFitToBeShown(t *testing.T) {
	t.Parallel()
	m := StateToProto(chandler.AttachmentState{Key: chandler.Key{Kind: "WasmPlugin", Namespace: "a", Name: "b"}, State: chandler.StateRejected})
	m.Message = "\x1b[31mred\x00\xff " + strings.Repeat("ä\xff", 1<<17)
	s, err := StateFromProto(m)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Message) > MaxMessage || strings.ContainsAny(s.Message, "\x1b\x00") || !utf8.ValidString(s.Message) {
		t.Errorf("message of %d bytes: %.60q", len(s.Message), s.Message)
	}
	if again := printable(s.Message); again != s.Message {
		t.Error("a message changes when it travels twice")
	}
	m.Reason = "not a code"
	if _, err := StateFromProto(m); err == nil {
		t.Error("a reason that is no code was accepted")
	}
	m.Reason, m.State = "", 0
	if _, err := StateFromProto(m); err == nil {
		t.Error("a state without a state was accepted")
	}
	if _, err := ReportFromProto(&chandlerv1.ReportRequest{States: make([]*chandlerv1.AttachmentState, MaxStates+1)}); err == nil {
		t.Error("a report without end was accepted")
	}
}

func TestStatusNamesTenFailuresAtMost(t *testing.T) {
	t.Parallel()
	s := chandler.Status{Desired: 30}
	for i := range 30 {
		p := chandler.ProxyStatus{Node: "n", AttachmentState: chandler.AttachmentState{State: chandler.StateInForce}}
		if i%2 == 0 {
			p.State = chandler.StateRejected
		}
		s.Proxies = append(s.Proxies, p)
	}
	if m := StatusToProto(&s, false); len(m.GetFailures()) != chandler.MaxFailures || len(m.GetProxies()) != 0 {
		t.Errorf("%d failures, %d proxies", len(m.GetFailures()), len(m.GetProxies()))
	}
	if m := StatusToProto(&s, true); len(m.GetProxies()) != 30 {
		t.Errorf("%d proxies", len(m.GetProxies()))
	}
}

func remarshal[M proto.Message](t *rapid.T, m M) M {
	b, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	fresh := m.ProtoReflect().New().Interface().(M)
	if err := proto.Unmarshal(b, fresh); err != nil {
		t.Fatal(err)
	}
	return fresh
}

func mustJSON(t *rapid.T, v any) string {
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

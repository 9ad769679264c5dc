//go:build upgrade

package e2e

import (
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	chandlerv1 "chandler.dev/chandler/api/chandler/v1"
	"chandler.dev/chandler/internal/testenv/module"
)

// A control plane and an agent of every version, with all that passes between them as a
// later version of either might say it: every message, and every message in it, has
// fields that nobody knows. Plugins come and change, and the status is true. One that
// needs what only that later version can do is refused by that name, and told so, and
// that even if it cannot be read; the version before stays, and other plugins change.
func TestSkewLater(t *testing.T) {
	t.Parallel()
	for _, b := range append(releases(t), current()) {
		t.Run(b.version, func(t *testing.T) {
			t.Parallel()
			w := controlled(t, b)
			tp := newTap(t, w.listen)
			tp.changeReport = func(m *chandlerv1.ReportRequest) { saysMore(m.ProtoReflect()) }
			tp.changeAnswer = func(m *chandlerv1.ReportResponse) { saysMore(m.ProtoReflect()) }
			tp.changeUpdate = func(m *discoveryv3.DeltaDiscoveryResponse) { laterUpdate(t, m) }
			port := freePort(t)
			w.agent(node{name: "a", binary: b.agent, flags: []string{"--control", tp.addr}}, w.gateway(listener{port: port, name: "in"}))
			url := w.push("append:v1", module.Append())
			w.apply(plugin("p", url, tag("one")) + "---\n" + script("l", luaTag("lua"), "phase: AUTHN"))
			w.apply(plugin("p", url, tag("two")))
			sees(t, port, "lua", "two")
			w.runs("a", b.version)

			w.submit(plugin("p", url, tag("telepathy")))
			w.describesProxy("p", "a", "Failed", "FeatureNotSupported", `"telepathy"`)
			sees(t, port, "lua", "two")
			w.submit(plugin("p", url, tag("clairvoyance")))
			if b.version == current().version { // those before passed it over, and their log had why
				w.describesProxy("p", "a", "Failed", "FeatureNotSupported", `"clairvoyance"`)
			}
			w.apply(script("l", luaTag("script"), "phase: AUTHN"))
			sees(t, port, "script", "two")
			w.apply(plugin("p", url, tag("three")))
			sees(t, port, "script", "three")
		})
	}
}

// laterUpdate has attachments say more. Those with one word need a feature by that name,
// and those with another one have a value, too, that nobody knows.
func laterUpdate(t *testing.T, m *discoveryv3.DeltaDiscoveryResponse) {
	for _, r := range m.Resources {
		var a chandlerv1.Attachment
		if err := proto.Unmarshal(r.Resource.Value, &a); err != nil {
			t.Errorf("no attachment: %v", err)
			return
		}
		for _, word := range []string{"telepathy", "clairvoyance"} {
			if strings.Contains(string(a.Configuration), word) {
				a.Requires = append(a.Requires, word)
			}
		}
		if strings.Contains(string(a.Configuration), "clairvoyance") {
			a.Phase = 99
		}
		saysMore(a.ProtoReflect())
		b, err := proto.Marshal(&a)
		if err != nil {
			t.Error(err)
			return
		}
		r.Resource.Value = b
	}
}

// saysMore adds fields that are not known, a number and a text, to a message and to all
// messages in it.
func saysMore(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsMap() || f.Message() == nil || strings.HasPrefix(string(f.Message().FullName()), "google."):
		case f.IsList():
			for i := range v.List().Len() {
				saysMore(v.List().Get(i).Message())
			}
		default:
			saysMore(v.Message())
		}
		return true
	})
	more := protowire.AppendVarint(protowire.AppendTag(m.GetUnknown(), 2001, protowire.VarintType), 7)
	m.SetUnknown(protowire.AppendString(protowire.AppendTag(more, 2002, protowire.BytesType), "a later word"))
}

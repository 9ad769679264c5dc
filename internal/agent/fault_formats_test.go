package agent

import (
	"bytes"
	"os"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/deltaclient"
)

// What an agent of before wrote (the file was recorded with one) is read as what it
// meant, and what is written today is the same to the byte, so that the agent of
// before reads it when this one is taken back.
func TestFault_F78_LastGoodOfBefore(t *testing.T) {
	t.Parallel()
	recorded, err := os.ReadFile("testdata/format-1/lastgood")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(lastGoodPath(dir), recorded, 0o600); err != nil {
		t.Fatal(err)
	}
	got, ok, err := loadLastGood(durable.OS(), dir)
	if err != nil || !ok || !reflect.DeepEqual(SaveLastGood(got), someLastGood(t)) {
		t.Fatalf("read: %+v, %v, %v", got, ok, err)
	}
	if err := saveLastGood(durable.OS(), dir, SaveLastGood(got)); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(lastGoodPath(dir))
	if err != nil || !bytes.Equal(written, recorded) {
		t.Errorf("written:\n%s\nrecorded:\n%s\nerror %v", written, recorded, err)
	}
}

// What a later agent adds within the format is passed over, and all else is taken. But
// these are other versions than the control plane's then, which sends them again to an
// agent that has all of them.
func TestFault_F78_LastGoodOfLater(t *testing.T) {
	t.Parallel()
	recorded, err := os.ReadFile("testdata/format-1/lastgood")
	if err != nil {
		t.Fatal(err)
	}
	want := someLastGood(t)
	for _, list := range [][]Version{want.Versions, want.Denied} {
		for i := range list {
			list[i].Version += "~"
		}
	}
	for _, more := range [][2]string{{`{"Kind":`, `{"Colour":{"deep":[1]},"Kind":`}, {`{"format":1`, `{"later":true,"format":1`}} {
		dir := t.TempDir()
		text := strings.ReplaceAll(string(recorded), more[0], more[1])
		if err := os.WriteFile(lastGoodPath(dir), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 { // what is written then is known to be in part, too
			got, ok, err := loadLastGood(durable.OS(), dir)
			if err != nil || !ok || !reflect.DeepEqual(SaveLastGood(got), want) {
				t.Errorf("read: %+v, %v, %v", got, ok, err)
			}
			if err := saveLastGood(durable.OS(), dir, SaveLastGood(got)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// An attachment that needs what this agent cannot do is refused by that name; the
// version that was in force stays so.
func TestFault_F78_FeatureOfLater(t *testing.T) {
	p, before := serving(t), version("a")
	p.assign(before)
	p.loaded(before)
	p.ackAll()
	p.want(authn, "a")
	later := version("a2", func(v *Version) { v.Requires = []string{chandler.FeatureHTTP, "telepathy"} })
	p.assign(later)
	st := p.wantState(later, chandler.StateFailed, string(before.Release), chandler.StandInNone, chandler.CodeFeatureNotSupported)
	if !strings.Contains(st.Message, `"telepathy"`) || strings.Contains(st.Message, `"http"`) {
		t.Errorf("reported as %q", st.Message)
	}
	p.want(authn, "a")
}

// So is one of which nothing but that can be read. It is in the place of the version
// that was in force, which stays there, and stands for nothing where there was none;
// one that can be read is another version, of the same sequence, and is taken.
func TestFault_F78_UnreadableOfLater(t *testing.T) {
	p, before := serving(t), version("a")
	p.assign(before)
	p.loaded(before)
	p.ackAll()
	opaque := func(v *Version) {
		v.Program, v.Behaviour, v.Requires = chandler.Program{}, chandler.Behaviour{}, []string{"telepathy"}
	}
	later, fresh := version("a2", opaque), version("b", opaque)
	p.assign(later, fresh)
	p.want(authn, "a")
	p.wantState(later, chandler.StateFailed, string(before.Release), chandler.StandInNone, chandler.CodeFeatureNotSupported)
	if st := p.wantState(fresh, chandler.StateFailed, "", chandler.StandInNone, chandler.CodeFeatureNotSupported); !strings.Contains(st.Message, `"telepathy"`) {
		t.Errorf("reported as %q", st.Message)
	}
	read := version("a2", func(v *Version) { v.Version = "the whole of it" })
	p.assign(read)
	p.loaded(read)
	p.ackAll()
	p.want(authn, "a2")
}

// What is said in part is another version than the whole of it, so that an agent that
// understands more has not got it.
func TestFault_F78_AssignedInPart(t *testing.T) {
	t.Parallel()
	a, v := bareAgent(t), version("a")
	v.Release = chandler.ReleaseID(digestOf("a").Hex())
	body, xds, err := wire.MarshalAttachment(&v.Attachment)
	if err != nil {
		t.Fatal(err)
	}
	more := protowire.AppendVarint(protowire.AppendTag(body.Value, 2001, protowire.VarintType), 7)
	for _, c := range []struct {
		body []byte
		want string
	}{{body.Value, xds}, {more, xds + "~"}} {
		if err := a.assigned(t.Context(), deltaclient.Update{Changed: []deltaclient.Resource{{Name: v.Key.String(), Version: xds, Body: c.body}}}); err != nil {
			t.Fatal(err)
		}
		if got := (<-a.inbox).event.(Assigned).Changed[0].Version; got != c.want {
			t.Errorf("it is version %q, want %q", got, c.want)
		}
	}
}

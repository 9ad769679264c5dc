package agent

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/durable"
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

// What a later agent adds within the format is passed over, and all else is taken.
func TestFault_F78_LastGoodOfLater(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	recorded, err := os.ReadFile("testdata/format-1/lastgood")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(recorded), `{"Kind":`, `{"Colour":{"deep":[1]},"Kind":`)
	text = strings.Replace(text, `{"format":1`, `{"later":true,"format":1`, 1)
	if err := os.WriteFile(filepath.Join(dir, "lastgood"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	got, ok, err := loadLastGood(durable.OS(), dir)
	if err != nil || !ok || !reflect.DeepEqual(SaveLastGood(got), someLastGood(t)) {
		t.Errorf("read: %+v, %v, %v", got, ok, err)
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
// an agent that can read it takes it, although it had that version.
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
	read := version("a2")
	p.assign(read)
	p.loaded(read)
	p.ackAll()
	p.want(authn, "a2")
}

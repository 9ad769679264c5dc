package main

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"unicode"

	"chandler.dev/chandler/test/testrun"
)

// told is what "go test -json" says of one test that saw these codes.
func told(test, action string, codes ...string) string {
	var b strings.Builder
	event := func(action, key, value string) {
		fmt.Fprintf(&b, "{\"Action\":%q,\"Package\":\"p\",\"Test\":%q,\"Key\":%q,\"Value\":%q}\n", action, test, key, value)
	}
	event("run", "", "")
	for _, code := range codes {
		event("attr", "refusal", code)
	}
	event("attr", "refusal-memory", "3145728")
	event("attr", "refusal-time", "1.5ms")
	event(action, "", "")
	return b.String()
}

func TestReport(t *testing.T) {
	t.Parallel()
	list := []row{
		{number: 1, what: "bad", code: "SpecShape", also: []string{"SpecValue"}, why: "reason"},
		{number: 2, what: "good", code: "accepted"},
	}
	good := told("TestRefuse_B02", "pass", "accepted")
	for name, c := range map[string]struct {
		input string
		ok    bool
		want  string
	}{
		"all":           {told("TestRefuse_B1_Words", "pass", "SpecShape", "SpecValue", "SpecShape") + good, true, "B1 bad refused SpecShape SpecValue 3 3.0 MiB 1.5ms reason"},
		"an outcome":    {told("TestRefuse_B1", "pass", "SpecShape") + good, true, "B2 good accepted accepted 1 3.0 MiB"},
		"no test":       {good, false, "B1 bad NO TEST - 0"},
		"failed":        {told("TestRefuse_B1", "fail", "SpecShape") + good, false, "B1: p.TestRefuse_B1 failed"},
		"other code":    {told("TestRefuse_B1", "pass", "SpecShape", "URLHost") + good, false, "B1: a case ended with URLHost"},
		"only the also": {told("TestRefuse_B1", "pass", "SpecValue") + good, false, "B1: no case ended with SpecShape"},
		"accepted":      {told("TestRefuse_B1", "pass", "accepted") + good, false, "B1 bad NOT refused accepted"},
		"refused":       {told("TestRefuse_B1", "pass", "SpecShape") + told("TestRefuse_B2", "pass", "SpecShape"), false, "B2 good NOT as wanted SpecShape"},
		"silent":        {told("TestRefuse_B1", "pass") + good, false, "B1: p.TestRefuse_B1 says of no case"},
		"two rows":      {told("TestRefuse_B1_B2", "pass", "SpecShape", "accepted", "SpecValue"), true, "B1 bad refused SpecShape SpecValue 2"},
		"neither's":     {told("TestRefuse_B1_B2", "pass", "SpecShape", "accepted", "URLHost"), false, "B2: a case ended with URLHost"},
		"unknown row":   {told("TestRefuse_B1", "pass", "SpecShape") + good + told("TestRefuse_B999", "pass", "X"), false, "B999 (tests name it, the list does not) NOT refused X"},
		"broken":        {told("TestRefuse_B1", "pass", "SpecShape") + good + `{"Action":"fail","Package":"q"}`, false, "could not be tested: q"},
	} {
		run, err := testrun.Read(strings.NewReader(c.input), "TestRefuse_")
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var out bytes.Buffer
		if ok := report(&out, list, run); ok != c.ok || !strings.Contains(strings.Join(strings.Fields(out.String()), " "), c.want) {
			t.Errorf("%s: %t, and nothing tells %q:\n%s", name, ok, c.want, out.String())
		}
	}
}

func TestStale(t *testing.T) {
	t.Parallel()
	run := &testrun.Run{Tests: map[string]bool{"chandler.dev/chandler/internal/x.TestRefuse_B1": true, "chandler.dev/chandler.TestRefuse_B2_Words": true}}
	got, err := stale(fstest.MapFS{"B1.x.txt": {}, "B1_sub.x.txt": {}, "B1.y.txt": {}, "B2.chandler.txt": {}, "B2_Words.chandler.txt": {}, "B3.x.txt": {}}, run)
	if want := []string{"B1.y.txt", "B2.chandler.txt", "B3.x.txt"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q %v", got, err)
	}
}

// The list is in order, without doubles, and whatever differs from the row's own
// code has its reason.
func TestList(t *testing.T) {
	t.Parallel()
	last := 0
	for _, r := range rows {
		if r.number <= last || r.what == "" || r.code == "" || len(r.also) > 0 && r.why == "" {
			t.Errorf("row %d after %d: %+v", r.number, last, r)
		}
		last = r.number
		if lower := unicode.IsLower(rune(r.code[0])); lower != r.accepted() {
			t.Errorf("row %d: is %q a code?", r.number, r.code)
		}
	}
}

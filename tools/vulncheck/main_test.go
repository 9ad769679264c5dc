package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const said = `{"config":{"db":"file:///db","go_version":"go1.26.11","db_last_modified":"2026-11-05T00:00:00Z"}}
{"osv":{"id":"GO-1","summary":"one"}}
{"osv":{"id":"GO-2","summary":"two"}}
{"finding":{"osv":"GO-1","fixed_version":"v1.1.0","trace":[{"module":"m","version":"v1.0.0"}]}}
{"finding":{"osv":"GO-1","fixed_version":"v1.1.0","trace":[{"module":"m","version":"v1.0.0","package":"m/p","function":"F"}]}}
{"finding":{"osv":"GO-2","fixed_version":"v2.0.0","trace":[{"module":"n","version":"v1.0.0"}]}}`

func TestJudge(t *testing.T) {
	t.Parallel()
	s, err := read(strings.NewReader(said))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		excepted map[string]string
		err      string
		says     string
	}{
		{nil, "1 to see to", "m@v1.0.0: m/p.F is called; fixed in v1.1.0"},
		{map[string]string{"GO-1": "not with our input"}, "", "GO-1 excepted: not with our input"},
		{map[string]string{"GO-1": "not with our input", "GO-2": "not with our input"}, "1 to see to", "GO-2 is excepted and not called"},
	} {
		var w strings.Builder
		err := s.judge(&w, test.excepted)
		if (err == nil) != (test.err == "") || err != nil && err.Error() != test.err || !strings.Contains(w.String(), test.says) ||
			!strings.Contains(w.String(), "1 called, 1 more") {
			t.Errorf("%v: %v\n%s", test.excepted, err, &w)
		}
	}
	for _, text := range []string{"", "{", `{"progress":{}}`} {
		if _, err := read(strings.NewReader(text)); err == nil {
			t.Errorf("%q is taken for a scan", text)
		}
	}
}

func TestExceptionsNeedAReason(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "except")
	for text, ok := range map[string]bool{"# none\n\n": true, "GO-1 it is not reached": true, "GO-1": false, "GO-1 why": false} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := exceptions(file); (err == nil) != ok {
			t.Errorf("%q: %v", text, err)
		}
	}
}

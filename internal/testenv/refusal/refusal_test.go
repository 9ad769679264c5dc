package refusal

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestDiffer(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ want, got, differ string }{
		{"a\nb\n", "a\nc\nb\n", "+ c\n"},
		{"a\nb\n", "b\n", "- a\n"},
		{"a\nb\n", "b\na\n", "the same lines in another order, or another number of times"},
	} {
		if got := differ(c.want, c.got); got != c.differ {
			t.Errorf("%q and %q: %q", c.want, c.got, got)
		}
	}
}

func TestPorts(t *testing.T) {
	t.Parallel()
	const text = `"http://127.0.0.1:40123/x": [::1]:1 and localhost:22, not 127.0.0.12 nor a:1`
	if got := ports.ReplaceAllString(text, "$1:PORT"); got != `"http://127.0.0.1:PORT/x": [::1]:PORT and localhost:PORT, not 127.0.0.12 nor a:1` {
		t.Error(got)
	}
}

// A test that is not named after an input has no cases and no golden file.
func TestOtherNames(t *testing.T) {
	t.Parallel()
	Begin(t).Saw("Code", "text")
	if _, known := tests.Load(t); known {
		t.Error("it counts")
	}
	name, err := (&test{T: t}).golden()
	if err != nil || !strings.HasSuffix(filepath.ToSlash(name), "/test/refusals/golden/TestOtherNames.refusal.txt") {
		t.Errorf("%s %v", name, err)
	}
}

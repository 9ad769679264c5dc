package licences

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/licensecheck"
)

// text is a licence as licensecheck knows it, without the signs of its patterns.
func text(t *testing.T, id string) string {
	t.Helper()
	for _, l := range licensecheck.BuiltinLicenses() {
		if l.ID != id || l.LRE == "" {
			continue
		}
		var words []string
		for _, line := range strings.Split(l.LRE, "\n") {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "((") || strings.HasPrefix(line, "))") || strings.HasPrefix(line, "//**") || line == "||" {
				continue
			}
			words = append(words, line)
		}
		return strings.Join(words, "\n")
	}
	t.Fatalf("licensecheck knows no %s", id)
	return ""
}

func apache(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestRead(t *testing.T) {
	t.Parallel()
	ours := apache(t)
	for name, c := range map[string]struct {
		files map[string]string
		spdx  string
		wrong string
	}{
		"allowed":             {files: map[string]string{"LICENSE": ours}, spdx: "Apache-2.0"},
		"under another name":  {files: map[string]string{"COPYING.txt": ours}, spdx: "Apache-2.0"},
		"below, of a package": {files: map[string]string{"LICENSE": ours, "in/it/LICENSE": text(t, "ISC")}, spdx: "Apache-2.0 AND ISC"},
		"of another package":  {files: map[string]string{"LICENSE": ours, "out/LICENSE": text(t, "GPL-3.0")}, spdx: "Apache-2.0"},
		"forbidden":           {files: map[string]string{"LICENSE": text(t, "GPL-3.0")}, wrong: "GPL-3.0 is not among the licences that are allowed"},
		"forbidden below":     {files: map[string]string{"LICENSE": ours, "in/LICENSE": text(t, "AGPL-3.0")}, wrong: "in/LICENSE: AGPL-3.0"},
		"unknown":             {files: map[string]string{"LICENSE": "Do as you like, but only on Tuesdays."}, wrong: "0 % of it"},
		"none":                {files: map[string]string{"README": ours, "licence.go": "package x", "LICENSE.docs": ours}, wrong: "there is no licence in it"},
	} {
		in := fstest.MapFS{"in/it/x.go": {}}
		for path, text := range c.files {
			in[path] = &fstest.MapFile{Data: []byte(text)}
		}
		m, err := read(Module{Path: "a.example/m", Version: "v1.0.0"}, in, []string{".", "in", "in/it"})
		if c.wrong == "" && (err != nil || m.Expression() != c.spdx) {
			t.Errorf("%s: %v, %s", name, err, m.Expression())
		}
		if c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong) || !strings.Contains(err.Error(), "a.example/m v1.0.0")) {
			t.Errorf("%s: %v, want %q", name, err, c.wrong)
		}
	}
}

// A text stands in the notice once, with all that are under it; notices of others too.
func TestNotice(t *testing.T) {
	t.Parallel()
	one := Module{Path: "a.example/one", Version: "v1.0.0", SPDX: []string{"MIT"}, Texts: map[string][]byte{"LICENSE": []byte("words\r\n"), "NOTICE": []byte("made by A")}}
	two := Module{Path: "a.example/two", Version: "v2.0.0", SPDX: []string{"MIT"}, Texts: map[string][]byte{"LICENSE": []byte("words")}}
	got := string(Notice([]Module{one, two}))
	for want, n := range map[string]int{
		"\nwords\n": 1, "made by A": 1, "a.example/two v2.0.0: MIT\n": 1, "a.example/one v1.0.0, LICENSE\na.example/two v2.0.0, LICENSE\n\nwords\n": 1,
	} {
		if strings.Count(got, want) != n {
			t.Errorf("%q is %d times in\n%s", want, strings.Count(got, want), got)
		}
	}
}

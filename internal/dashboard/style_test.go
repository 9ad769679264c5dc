package dashboard

import (
	"fmt"
	"io/fs"
	"math"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/source"
)

var token = regexp.MustCompile(`--([a-z-]+): #([0-9a-f]{6});`)

// tokensOf gives the colours of a part of the style sheet.
func tokensOf(text string) map[string]string {
	all := map[string]string{}
	for _, m := range token.FindAllStringSubmatch(text, -1) {
		all[m[1]] = m[2]
	}
	return all
}

// luminance is as WCAG 2 has it.
func luminance(hex string) float64 {
	part := func(i int) float64 {
		n, _ := strconv.ParseUint(hex[i:i+2], 16, 8)
		c := float64(n) / 255
		if c <= 0.04045 {
			return c / 12.92
		}
		return math.Pow((c+0.055)/1.055, 2.4)
	}
	return 0.2126*part(0) + 0.7152*part(2) + 0.0722*part(4)
}

func contrast(a, b string) float64 {
	x, y := luminance(a), luminance(b)
	return (max(x, y) + 0.05) / (min(x, y) + 0.05)
}

// TestContrast: words have a contrast of 4.5 to what they stand on, and pictures of 3,
// light and dark.
func TestContrast(t *testing.T) {
	t.Parallel()
	b, err := fs.ReadFile(files, "assets/style.css")
	if err != nil {
		t.Fatal(err)
	}
	head, rest, _ := strings.Cut(string(b), "@media (prefers-color-scheme: dark)")
	dark, rest, _ := strings.Cut(rest, "\n}\n")
	if m := regexp.MustCompile(`#[0-9a-fA-F]{3,8}\b|rgba?\(`).FindString(rest); m != "" {
		t.Errorf("%s: a colour that is no token", m)
	}
	for scheme, tokens := range map[string]map[string]string{"light": tokensOf(head), "dark": tokensOf(dark)} {
		if len(tokens) < 20 {
			t.Fatalf("%s has %d colours", scheme, len(tokens))
		}
		for least, pairs := range map[float64][]string{
			4.5: {
				"ink paper", "ink raised", "ink fresh", "ink alarm", "ink caution", "ink added", "ink removed", "soft paper", "soft raised", "soft alarm", "soft caution", "soft fresh",
				"link paper", "link raised", "link alarm", "force paper", "force raised", "way paper", "way raised", "rejected paper", "rejected raised", "failed paper", "failed raised",
				"out paper", "out raised", "on-button button", "on-button grave", "button paper", "button raised", "grave paper", "grave raised", "paper ink",
			},
			3: {
				"focus paper", "force-fill paper", "force-fill raised", "other paper", "other raised", "way paper", "rejected paper", "rejected alarm", "failed alarm", "unmatched paper", "away paper", "away raised", "unmatched raised",
			},
		} {
			for _, pair := range pairs {
				on, under, _ := strings.Cut(pair, " ")
				if tokens[on] == "" || tokens[under] == "" {
					t.Errorf("%s: no colour %s", scheme, pair)
				} else if c := contrast(tokens[on], tokens[under]); c < least {
					t.Errorf("%s: %s has a contrast of %.2f, want %.1f", scheme, pair, c, least)
				}
			}
		}
	}
}

// TestMarksDiffer: no mark is told from another by its colour alone.
func TestMarksDiffer(t *testing.T) {
	t.Parallel()
	shapes, spelt, words := map[string]mark{}, map[string]mark{}, map[string]mark{}
	for _, l := range legends() {
		for of, seen := range map[string]map[string]mark{l.mark.shape(0, 0): shapes, l.Letter: spelt, l.Word: words} {
			if other, ok := seen[of]; ok || of == "" {
				t.Errorf("%d and %d are both %q", other, l.mark, of)
			}
			seen[of] = l.mark
		}
	}
	for _, l := range legends() {
		if string(letters[l.mark]) != l.Letter {
			t.Errorf("%s is %q and %q", l.Word, letters[l.mark], l.Letter)
		}
	}
	if len(legends()) != int(marks)-1 || len(letters) != int(marks) {
		t.Errorf("%d marks are described, of %d", len(legends()), marks-1)
	}
}

// TestStripHeight: all columns have room beside each other, whatever their sizes.
func TestStripHeight(t *testing.T) {
	t.Parallel()
	for _, sizes := range [][]int{nil, {0}, {1}, {1000}, {600, 300, 100}, {20_000}, {5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5}, {1, 20_000, 3}} {
		down, across := stripHeight(sizes), 0
		for _, n := range sizes {
			across += (n+down-1)/down + 1
		}
		if down < minDown || across > maxAcross {
			t.Errorf("%v: %d down, %d across", sizes, down, across)
		}
	}
}

func TestCompare(t *testing.T) {
	t.Parallel()
	write := func(lines []diffLine) string {
		var b strings.Builder
		for _, l := range lines {
			fmt.Fprintf(&b, "%s%s|", l.Sign, l.Text)
		}
		return b.String()
	}
	for _, c := range []struct{ before, after, want string }{
		{"", "", ""},
		{"", "a\n", "+a|"},
		{"a\n", "", "-a|"},
		{"a\nb\nc\n", "a\nx\nc\n", "a|-b|+x|c|"},
		{"1\n2\n3\n4\n5\n6\n7\n8\nx\n", "1\n2\n3\n4\n5\n6\n7\n8\ny\n", "…|6|7|8|-x|+y|"},
		{"0\na\n1\n2\n3\n4\n5\n6\n7\n8\nx\n", "0\nb\n1\n2\n3\n4\n5\n6\n7\n8\ny\n", "0|-a|+b|1|2|3|…|6|7|8|-x|+y|"},
		{"a\nb\n", "a\nb", ""},
		{"-- a\n", "-- b\n", "--- a|+-- b|"},
	} {
		lines, cut := compare(c.before, c.after)
		if got := write(lines); got != c.want || cut {
			t.Errorf("%q, %q: %s, want %s", c.before, c.after, got, c.want)
		}
	}
	if lines, cut := compare(strings.Repeat("x\n", 2*maxDiffLines), ""); !cut || len(lines) != maxDiffLines {
		t.Errorf("%d lines of a long difference", len(lines))
	}
	long := strings.Repeat("x\n", 2*maxDiffLines)
	if lines, cut := compare(long, long+"y\n"); cut || write(lines) != "…|x|x|x|+y|" {
		t.Errorf("at the end of long texts: %s", write(lines))
	}
}

func TestLegible(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		config string
		places [][]string
		want   string
		hid    bool
	}{
		{`{"b":1.10,"a":"<x>"}`, nil, "{\n  \"a\": \"<x>\",\n  \"b\": 1.10\n}\n", false},
		{`{"a":[{"k":"secret"},{"k":"secret"}]}`, [][]string{{"a", "1", "k"}, {"a", "0", "k"}}, "{\n  \"a\": [\n    {\n      \"k\": \"(hidden)\"\n    },\n    {\n      \"k\": \"(hidden)\"\n    }\n  ]\n}\n", true},
		{`{"a":"secret"}`, [][]string{{}}, "\"(hidden)\"\n", true},
		{`secret`, nil, concealed, true},
		{`{"a":"seen"}`, [][]string{{"b"}, {"a", "x"}, {"9"}}, "", true},
	} {
		got, hid := legible([]byte(c.config), c.places)
		if hid != c.hid || strings.Contains(got, "secret") || c.want != "" && got != c.want {
			t.Errorf("%s: %q %t", c.config, got, hid)
		}
	}
	if got, hid := legible(nil, [][]string{{}}); got != "" || hid {
		t.Errorf("no configuration: %q", got)
	}
}

// TestMarks: a mark claims nothing that a proxy does not say itself.
func TestMarks(t *testing.T) {
	t.Parallel()
	key := chandler.Key{Kind: chandler.KindWasmPlugin, Namespace: "n", Name: "a"}
	p := &plugin{ObjectView: &control.ObjectView{Object: source.Object{Key: key}, Status: chandler.Status{Release: &chandler.Release{ID: "new"}}}}
	plain := &proxy{}
	bypassing := &proxy{ProxyView: control.ProxyView{Facts: &chandler.Facts{Bypassed: []chandler.Bypass{{Key: key}}}}}
	line := func(state chandler.State, inForce chandler.ReleaseID, reason chandler.Code, away bool) *chandler.ProxyStatus {
		return &chandler.ProxyStatus{Connected: !away, AttachmentState: chandler.AttachmentState{Key: key, State: state, Release: "new", InForce: inForce, Reason: reason}}
	}
	for _, c := range []struct {
		name     string
		line     *chandler.ProxyStatus
		on       *proxy
		disabled bool
		want     mark
	}{
		{"nothing", nil, plain, false, notSelected},
		{"in force", line(chandler.StateInForce, "new", "", false), plain, false, inForce},
		{"the one before", line(chandler.StateInForce, "old", "", false), plain, false, inForceOther},
		{"the one before, and the new one is fetched", line(chandler.StateFetching, "old", "", false), plain, false, onItsWay},
		{"ready", line(chandler.StateReady, "", "", false), plain, false, onItsWay},
		{"no Envoy", line(chandler.StateInForce, "new", chandler.CodeEnvoyDown, false), plain, false, failed},
		{"faults", line(chandler.StateInForce, "new", chandler.CodeVMTrap, false), plain, false, faulting},
		{"refused", line(chandler.StateRejected, "old", "X", false), plain, false, rejected},
		{"failed", line(chandler.StateFailed, "", "X", false), plain, false, failed},
		{"no listener", line(chandler.StateUnmatched, "", "", false), plain, false, unmatched},
		{"away", line(chandler.StateInForce, "new", "", true), plain, false, away},
		{"disabled and gone", nil, plain, true, takenOut},
		{"disabled and empty", line(chandler.StatePending, "", "", false), plain, true, takenOut},
		{"disabled and still there", line(chandler.StateInForce, "new", "", false), plain, true, onItsWay},
		{"disabled and away", line(chandler.StateInForce, "new", "", true), plain, true, away},
		{"bypassed", line(chandler.StatePending, "", "", false), bypassing, false, takenOut},
	} {
		if got := markOf(p, c.line, c.on, c.disabled); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got.legend().Word, c.want.legend().Word)
		}
	}
}

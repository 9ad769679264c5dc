package dashboard

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
)

// maxDiffLines bounds what is shown of a difference.
const maxDiffLines = 600

// diffLine is a line of two texts: of both, or with "-" of the first alone, with "+" of
// the second. One with "…" stands for some that are the same.
type diffLine struct{ Sign, Text string }

// compare gives what differs between two texts, with some lines around it.
func compare(before, after string) (lines []diffLine, cut bool) {
	unified := diff.Diff("", ended(before), "", ended(after))
	for n, line := range strings.SplitAfter(string(unified), "\n") {
		switch {
		case n < diffHead || line == "":
			continue
		case len(lines) == maxDiffLines:
			return lines, true
		case !strings.HasPrefix(line, "@@"):
			lines = append(lines, diffLine{strings.TrimSpace(line[:1]), strings.TrimSuffix(line[1:], "\n")})
		case len(lines) > 0 || !strings.HasPrefix(line, "@@ -1,") && !strings.HasPrefix(line, "@@ -0,"):
			lines = append(lines, diffLine{"…", ""})
		}
	}
	return lines, false
}

// diffHead is how many lines of a unified diff name its files.
const diffHead = 3

// ended has a text end its last line, which counts for nothing.
func ended(text string) []byte {
	if text != "" && !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return []byte(text)
}

// concealed stands for a value that nobody is shown.
const concealed = "(hidden)"

// legible writes a configuration for people, with what stands at places hidden: of two
// that differ there alone, nothing differs. What cannot be read is hidden whole.
func legible(config []byte, places [][]string) (text string, hid bool) {
	if config == nil {
		return "", false
	}
	d := json.NewDecoder(bytes.NewReader(config))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return concealed, true
	}
	for _, at := range places {
		v, hid = conceal(v, at), true
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if e.Encode(v) != nil {
		return concealed, true
	}
	return b.String(), hid
}

// conceal replaces what stands at a place.
func conceal(v any, at []string) any {
	if len(at) == 0 {
		return concealed
	}
	switch v := v.(type) {
	case map[string]any:
		if below, ok := v[at[0]]; ok {
			v[at[0]] = conceal(below, at[1:])
		}
	case []any:
		if i, err := strconv.Atoi(at[0]); err == nil && i >= 0 && i < len(v) {
			v[i] = conceal(v[i], at[1:])
		}
	}
	return v
}

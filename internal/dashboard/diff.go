package dashboard

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
)

// maxCompared bounds the lines of each text that is compared; of longer ones only the
// beginning is.
const maxCompared = 600

// diffLine is a line of two texts: of both, or with "-" of the first alone, with "+" of
// the second.
type diffLine struct{ Sign, Text string }

// compare gives the lines of two texts, as the longest common subsequence has them.
func compare(before, after string) (lines []diffLine, cut bool) {
	a, b := split(before), split(after)
	if len(a) > maxCompared || len(b) > maxCompared {
		a, b, cut = a[:min(len(a), maxCompared)], b[:min(len(b), maxCompared)], true
	}
	common := make([][]int, len(a)+1) // of what is behind
	for i := range common {
		common[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			lines = append(lines, diffLine{"", a[i]})
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && common[i+1][j] >= common[i][j+1]:
			lines = append(lines, diffLine{"-", a[i]})
			i++
		default:
			lines = append(lines, diffLine{"+", b[j]})
			j++
		}
	}
	return lines, cut
}

func split(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
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

// differing leaves of a comparison what differs, with some lines around it.
func differing(lines []diffLine, around int) []diffLine {
	keep := make([]bool, len(lines))
	for i, l := range lines {
		if l.Sign == "" {
			continue
		}
		for n := max(0, i-around); n < min(len(lines), i+around+1); n++ {
			keep[n] = true
		}
	}
	var out []diffLine
	for i, l := range lines {
		switch {
		case keep[i]:
			out = append(out, l)
		case i > 0 && keep[i-1] || i == 0 && slices.Contains(keep, true):
			out = append(out, diffLine{"…", ""})
		}
	}
	return out
}

package table_test

import (
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

	"chandler.dev/chandler/bench/table"
)

func run() table.Run {
	return table.Run{
		Title:   "Figures <of a run>",
		Machine: table.Machine{CPU: "a processor", Cores: 2, System: "linux/amd64", Go: "go1.26"},
		Figures: []table.Figure{
			table.Figure{Name: "change", Unit: "ms", Measured: 24.04, Target: "Envoy + 10 ms"}.Limited(29.31).Against(110),
			table.Figure{Name: "failed", Unit: "requests"}.Limited(0),
			table.Figure{Name: "memory", Unit: "MB", Measured: 31}.Limited(30),
			{Name: "throughput", Unit: "/s", Measured: 41234.56},
		},
	}
}

// Whoever reads the table sees what was reached, against what, and how the peer does.
func TestText(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	if err := run().Text(&b); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"change":     {"24.0 ms", "<= 29.3 ms (Envoy + 10 ms)", "ok", "110 ms", "0.22"},
		"failed":     {"0 requests", "<= 0 requests", "ok"},
		"memory":     {"31 MB", "<= 30 MB", "MISSED"},
		"throughput": {"41235 /s"},
	} {
		line := ""
		for l := range strings.Lines(b.String()) {
			if strings.HasPrefix(l, name) {
				line = l
			}
		}
		for _, text := range want {
			if !strings.Contains(line, text) {
				t.Errorf("%q is not in the line of %s: %s", text, name, line)
			}
		}
	}
}

// What programs read is what was measured.
func TestJSON(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	if err := run().JSON(&b); err != nil {
		t.Fatal(err)
	}
	var back table.Run
	if err := json.Unmarshal([]byte(b.String()), &back); err != nil {
		t.Fatal(err)
	}
	first := back.Figures[0]
	if first.Measured != 24.04 || *first.Limit != 29.31 || *first.Peer != 110 || back.Figures[3].Limit != nil {
		t.Errorf("it came back as %+v", back.Figures)
	}
}

// The plot is well formed, says every figure that has a target, and tells those that
// are missed from the others.
func TestSVG(t *testing.T) {
	t.Parallel()
	var b strings.Builder
	if err := run().SVG(&b); err != nil {
		t.Fatal(err)
	}
	dec := xml.NewDecoder(strings.NewReader(b.String()))
	for {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for _, text := range []string{">change<", ">failed<", ">memory<", "Figures &lt;of a run&gt;"} {
		if !strings.Contains(b.String(), text) {
			t.Errorf("%q is not in the plot", text)
		}
	}
	if n := strings.Count(b.String(), "#c0392b"); n != 1 {
		t.Errorf("%d figures are drawn as missed, not 1", n)
	}
	if strings.Contains(b.String(), "throughput") {
		t.Error("a figure without a target is in the plot")
	}
}

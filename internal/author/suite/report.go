package suite

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"time"
)

// Text is how people read a result: a line, and below it what is wrong. Paint colours a
// word by the verdict; trace adds what the plugin did.
func (r *Result) Text(paint func(Verdict, string) string, trace bool) string {
	var b strings.Builder
	word := map[Verdict]string{Passed: "ok", Failed: "FAIL", Skipped: "skip", Broken: "BROKEN"}[r.Verdict]
	fmt.Fprintf(&b, "%s%s %s", paint(r.Verdict, word), strings.Repeat(" ", max(0, 6-len(word))), r.Name)
	var took, left []string
	for _, run := range r.Runs {
		if run.Verdict == Skipped {
			left = append(left, fmt.Sprintf("not on %s: %s", run.Engine, run.Reason))
		} else {
			took = append(took, fmt.Sprintf("%s %s", run.Engine, Rounded(run.Time)))
		}
	}
	fmt.Fprintf(&b, "  (%s)\n", strings.Join(append(took, left...), "; "))
	for i := range r.Runs {
		run := &r.Runs[i]
		if run.Verdict == Broken {
			fmt.Fprintf(&b, "       %s: could not be run: %s\n", run.Engine, run.Reason)
		}
		for j := range run.Failures {
			b.WriteString(run.Failures[j].text(string(run.Engine), "want", "got"))
		}
		if trace && run.Verdict != Skipped {
			for _, line := range run.Trace {
				fmt.Fprintf(&b, "       %s | %s\n", run.Engine, line)
			}
		}
	}
	for i := range r.Differences {
		b.WriteString(r.Differences[i].text("the engines differ", string(r.Runs[0].Engine), string(r.Runs[1].Engine)))
	}
	return b.String()
}

// text is a failure below its case's line.
func (f *Failure) text(who, want, got string) string {
	where := who + ": "
	if f.Step > 1 {
		where += fmt.Sprintf("step %d: ", f.Step)
	}
	width := max(len(want), len(got))
	indented := func(s string) string { return strings.ReplaceAll(s, "\n", "\n"+strings.Repeat(" ", 11+width)) }
	return fmt.Sprintf("       %s%s\n         %*s: %s\n         %*s: %s\n", where, f.What, width, want, indented(f.Want), width, got, indented(f.Got))
}

// Rounded is a duration for people.
func Rounded(d time.Duration) time.Duration {
	switch {
	case d > time.Second:
		return d.Round(10 * time.Millisecond)
	case d > time.Millisecond:
		return d.Round(100 * time.Microsecond)
	}
	return d.Round(time.Microsecond)
}

// Summary counts results.
type Summary struct {
	Passed, Failed, Skipped, Broken int
	// Unlike are those of which the engines gave different things.
	Unlike int
}

// Summarise counts.
func Summarise(results []Result) (s Summary) {
	for i := range results {
		switch results[i].Verdict {
		case Passed:
			s.Passed++
		case Failed:
			s.Failed++
		case Skipped:
			s.Skipped++
		case Broken:
			s.Broken++
		}
		if len(results[i].Differences) > 0 {
			s.Unlike++
		}
	}
	return s
}

func (s Summary) String() string {
	parts := []string{fmt.Sprintf("%d passed", s.Passed)}
	for _, p := range []struct {
		n    int
		word string
	}{{s.Failed, "failed"}, {s.Broken, "could not be run"}, {s.Skipped, "skipped"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.word))
		}
	}
	text := strings.Join(parts, ", ")
	if s.Unlike > 0 {
		text += fmt.Sprintf("; the engines differ in %d", s.Unlike)
	}
	return text
}

type junitSuite struct {
	XMLName  xml.Name    `xml:"testsuite"`
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Errors   int         `xml:"errors,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Time     string      `xml:"time,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Name    string       `xml:"name,attr"`
	Class   string       `xml:"classname,attr"`
	Time    string       `xml:"time,attr"`
	Failure *junitResult `xml:"failure,omitempty"`
	Error   *junitResult `xml:"error,omitempty"`
	Skipped *junitResult `xml:"skipped,omitempty"`
}

type junitResult struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// JUnit writes results as CI systems read them: a test case each.
func JUnit(w io.Writer, name string, results []Result) error {
	s := Summarise(results)
	out := junitSuite{Name: name, Tests: len(results), Failures: s.Failed, Errors: s.Broken, Skipped: s.Skipped}
	var all time.Duration
	for i := range results {
		r := &results[i]
		var took time.Duration
		for _, run := range r.Runs {
			took += run.Time
		}
		all += took
		c := junitCase{Name: r.Name, Class: name, Time: seconds(took)}
		first, below, _ := strings.Cut(r.Text(func(_ Verdict, s string) string { return s }, false), "\n")
		said := &junitResult{Message: first, Text: below}
		switch r.Verdict {
		case Failed:
			c.Failure = said
		case Broken:
			c.Error = said
		case Skipped:
			c.Skipped = said
		}
		out.Cases = append(out.Cases, c)
	}
	out.Time = seconds(all)
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(out); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.6f", d.Seconds()) }

package main

import (
	"encoding/xml"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// result is a run whose figures grow as its agents do, but for one.
func result(agents int) Result {
	n := float64(agents)
	return Result{
		Agents: agents, Connected: n / 1000, Empty: 50, Full: 50 + n/20, Idle: 0.01, Yard: 9,
		All:  Change{Told: agents, P50: n / 20, P99: n / 15, Last: n / 10, CPU: n / 20_000},
		Told: Change{Told: agents, P50: n / 30, P99: n / 20, Last: n / 15, CPU: n / 40_000},
	}
}

// The table has each target beside what was measured.
func TestTable(t *testing.T) {
	t.Parallel()
	run := told{Runs: []Result{result(1000), result(10_000)}}.table()
	limits := map[string]float64{}
	for _, f := range run.Figures {
		if f.Limit != nil {
			limits[f.Name] = *f.Limit
		}
	}
	for name, limit := range map[string]float64{
		"1000 agents: a change, last told": 60, "1000 agents: memory": 120, "10000 agents: all connected": 20, "10000 agents: memory": 600,
		"10000 agents: idle": 5, "10000 agents: a change, 99 of 100 told": 800, "10000 agents: a change, CPU": 0.6,
	} {
		if limits[name] != limit {
			t.Errorf("%s: target %v, want %v", name, limits[name], limit)
		}
	}
	var b strings.Builder
	if err := run.Text(&b); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"10 x that of 1000 agents", "50.0 KB an agent", "<= 600 MB", "25 us an agent, where a bare write to a connection takes 9", "25 us a sign of life"} {
		if !strings.Contains(b.String(), s) {
			t.Errorf("%q is not in\n%s", s, b.String())
		}
	}
}

// The plot can be drawn, names its lines, and has every point inside.
func TestPlot(t *testing.T) {
	t.Parallel()
	tls := result(10_000)
	tls.TLS = true
	var b strings.Builder
	if err := (told{Runs: []Result{result(100), result(1000), result(10_000), tls}}).curves().SVG(&b); err != nil {
		t.Fatal(err)
	}
	points := 0
	for d := xml.NewDecoder(strings.NewReader(b.String())); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		e, ok := token.(xml.StartElement)
		if !ok || e.Name.Local != "circle" {
			continue
		}
		points++
		for _, a := range e.Attr {
			v, _ := strconv.ParseFloat(a.Value, 64)
			if a.Name.Local == "cx" && (v < left || v > width-right) || a.Name.Local == "cy" && (v < top || v > height-bottom) {
				t.Errorf("a point lies outside, at %s=%s", a.Name.Local, a.Value)
			}
		}
	}
	if points != 12 { // of TLS there is nothing to compare with
		t.Errorf("%d points", points)
	}
	if !strings.Contains(b.String(), "CPU of a change") {
		t.Error("lines have no names")
	}
	if strings.Contains(b.String(), "%!") {
		t.Errorf("what cannot be formatted is in it:\n%s", b.String())
	}
	if err := (told{}).curves().SVG(io.Discard); err != nil {
		t.Errorf("of nothing: %v", err)
	}
}

// Who has no room for so many agents is told what to do.
func TestRoom(t *testing.T) {
	t.Parallel()
	if err := roomFor(1); err != nil {
		t.Errorf("for one: %v", err)
	}
	if err := roomFor(1 << 30); err == nil || !strings.Contains(err.Error(), "ulimit") {
		t.Errorf("for a milliard: %v", err)
	}
}

// What is read of a process is of that one.
func TestReadings(t *testing.T) {
	t.Parallel()
	before, err := cpu(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for began := time.Now(); time.Since(began) < time.Minute; {
		if after, err := cpu(os.Getpid()); err != nil || after > before {
			break
		}
	}
	if after, err := cpu(os.Getpid()); err != nil || after <= before {
		t.Errorf("%v after %v, %v", after, before, err)
	}
	now, most, err := memory(os.Getpid())
	if err != nil || now < 1 || most < now {
		t.Errorf("%v MB, at most %v, %v", now, most, err)
	}
	if sizes, err := resident(os.Getpid()); err != nil || sizes["RssFile"] < 1 || sizes["RssFile"] >= sizes["VmRSS"] {
		t.Errorf("of the program's file %v, %v", sizes, err)
	}
}

// A collector's goal is taken apart as it was put together, and stands in the table.
func TestMakeup(t *testing.T) {
	t.Parallel()
	const heap, stacks, share = 30e6, 6e6, 0.5
	used, garbage := shares(heap+share*(heap+stacks), stacks, share)
	if used != heap+stacks || garbage != share*used {
		t.Errorf("%v in use, %v garbage", used, garbage)
	}
	if used, garbage := shares(4e6, 9e6, 1); used != 9e6 || garbage != 4e6 {
		t.Errorf("of hardly any heap: %v in use, %v garbage", used, garbage)
	}
	r := result(1000)
	r.Parts, r.Storm = Makeup{Program: 55, InUse: 36, Garbage: 18}, &Storm{Seconds: 60, Most: 121}
	var b strings.Builder
	if err := (told{Runs: []Result{r}}).table().Text(&b); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(b.String(), "55 MB are pages of the program's file, 36 in use, up to 18 garbage"); n != 1 {
		t.Errorf("it is said %d times in\n%s", n, b.String())
	}
}

// The yardstick is what a write takes: something, and no second.
func TestYardstick(t *testing.T) {
	t.Parallel()
	if took, err := yardstick(t.Context(), time.Millisecond); err != nil || took <= 0 || took > time.Second {
		t.Errorf("%v, %v", took, err)
	}
}

// Delays are told as shares of all.
func TestShares(t *testing.T) {
	t.Parallel()
	var delays []time.Duration
	for i := range 200 {
		delays = append(delays, time.Duration(i+1)*time.Millisecond)
	}
	for share, want := range map[float64]time.Duration{0.5: 100 * time.Millisecond, 0.99: 198 * time.Millisecond, 1: 200 * time.Millisecond} {
		if got := at(delays, share); got != want {
			t.Errorf("%v: %v, want %v", share, got, want)
		}
	}
	if at(nil, 1) != 0 || median(nil) != 0 {
		t.Error("of nothing there is something")
	}
}

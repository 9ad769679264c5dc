package main

import (
	"regexp"
	"strings"
	"testing"

	"chandler.dev/chandler/bench/table"
)

const printed = `goos: linux
BenchmarkConfigChange
    bench_test.go:10: something that was logged
BenchmarkConfigChange-2   	      50	  51000000 ns/op	        14.20 envoy-ms	        23.40 chandler-ms	        60.00 vetted-ms	  1024 B/op	  12 allocs/op
BenchmarkManagers/managers=1/plugins=1-2  	 20	 1 ns/op	 12.5 change-ms
PASS
`

// Values are found by what benchmarks call them, whatever the number of cores.
func TestRead(t *testing.T) {
	t.Parallel()
	v := values{}
	if n := v.read("", printed); n != 20 {
		t.Errorf("the last one ran %d times, not 20", n)
	}
	all := values{"ConfigChange/envoy-ms": 14.2, "ConfigChange/allocs/op": 12, "Managers/managers=1/plugins=1/change-ms": 12.5}
	for name, want := range all {
		if v[name] != want {
			t.Errorf("%s is %v, not %v", name, v[name], want)
		}
	}
}

// A limit that depends on the run is reckoned from that run, and what was not measured
// has no line.
func TestFigures(t *testing.T) {
	t.Parallel()
	v := values{}
	v.read("", printed)
	figures := v.figures()
	find := func(name string) (found table.Figure) {
		for _, f := range figures {
			if strings.HasPrefix(f.Name, name) {
				return f
			}
		}
		t.Fatalf("no line %q", name)
		return found
	}
	if f := find("configuration changed, to enforced"); *f.Limit != 24.2 || !f.Reached() || !f.Recorded {
		t.Errorf("the limit is %v, reached %v", *f.Limit, f.Reached())
	}
	if f := find("configuration changed, tried first"); *f.Limit != 48.4 || f.Reached() {
		t.Errorf("with a trial the limit is %v, reached %v", *f.Limit, f.Reached())
	}
	if len(figures) != 3 {
		t.Errorf("%d lines of 3 values that have one: %v", len(figures), figures)
	}
}

// Both sides of a comparison are held against each other within the run.
func TestPeer(t *testing.T) {
	t.Parallel()
	v := values{}
	v.read("", "BenchmarkConvert/ten-2 20 20000000 ns/op 1000 B/op 3 allocs/op\n")
	v.read("peer/", "BenchmarkConvert/ten-2 20 60000000 ns/op 4000 B/op 9 allocs/op\n")
	for _, f := range v.figures() {
		if strings.HasPrefix(f.Name, "ten plugins") {
			if ratio, ok := f.Ratio(); !ok || f.Recorded || ratio < 0.33 || ratio > 0.34 {
				t.Errorf("the ratio is %v, recorded %v", ratio, f.Recorded)
			}
			return
		}
	}
	t.Error("there is no line of it")
}

// A pattern finds its benchmark and no other.
func TestAnchored(t *testing.T) {
	t.Parallel()
	parts := strings.Split(anchored("Managers/managers=1"), "/")
	if len(parts) != 2 || !regexp.MustCompile(parts[0]).MatchString("BenchmarkManagers") || regexp.MustCompile(parts[1]).MatchString("managers=10") {
		t.Errorf("it is %v", parts)
	}
}

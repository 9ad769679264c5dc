package main

import (
	"regexp"
	"strconv"
	"strings"
)

// values are what benchmarks reported, by prefix, benchmark and unit:
// "ConfigChange/envoy-ms".
type values map[string]float64

// cores is how the go command ends a benchmark's name, where there is more than one.
var cores = regexp.MustCompile(`-\d+$`)

// read takes in what a test binary printed, in Go's benchmark format, and gives how
// often the last benchmark in it ran.
func (v values) read(prefix, text string) (n int) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		times, err := strconv.Atoi(fields[1])
		if err != nil {
			continue
		}
		n = times
		name := prefix + cores.ReplaceAllString(strings.TrimPrefix(fields[0], "Benchmark"), "")
		for i := 2; i+1 < len(fields); i += 2 {
			if value, err := strconv.ParseFloat(fields[i], 64); err == nil {
				v[name+"/"+fields[i+1]] = value
			}
		}
	}
	return n
}

// samples are the values as a run keeps them.
func (v values) samples() map[string][]float64 {
	all := map[string][]float64{}
	for name, value := range v {
		all[name] = []float64{value}
	}
	return all
}

// Package catalogue holds the metrics of a program against Prometheus' conventions and
// against the page that lists them, a section for each program, which it can write. It
// is for tests.
package catalogue

import (
	"cmp"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
)

// Metric is a family of series.
type Metric struct {
	Name   string
	Type   string // "counter", "gauge", "histogram"
	Labels []string
	Help   string
}

// process are metrics that every Go program has; they are not ours.
var process = regexp.MustCompile(`^(go|process|promhttp)_`)

// Of gives the metrics of a registry by name, without those of every Go program. Each
// has to have a series, so that who looks for one finds a zero and not nothing; and
// promlint has to have nothing against it, unless its name is not ours to choose.
func Of(t testing.TB, reg *prometheus.Registry, foreign func(name string) bool) []Metric {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	families = slices.DeleteFunc(families, func(f *dto.MetricFamily) bool { return process.MatchString(f.GetName()) })
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if !foreign(p.Metric) {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
	var all []Metric
	gathered := map[string]bool{}
	for _, f := range families {
		labels := map[string]bool{}
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				labels[l.GetName()] = true
			}
		}
		gathered[f.GetName()] = true
		all = append(all, Metric{Name: f.GetName(), Type: strings.ToLower(f.GetType().String()), Labels: slices.Sorted(maps.Keys(labels)), Help: f.GetHelp()})
	}
	for _, name := range described(reg) {
		if !gathered[name] && !process.MatchString(name) {
			t.Errorf("%s is registered and has no series", name)
		}
	}
	slices.SortFunc(all, func(a, b Metric) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

var fqName = regexp.MustCompile(`fqName: "([^"]+)"`)

// described gives the names of all metrics that are registered.
func described(reg *prometheus.Registry) (names []string) {
	descs := make(chan *prometheus.Desc)
	go func() { defer close(descs); reg.Describe(descs) }()
	for d := range descs {
		names = append(names, fqName.FindStringSubmatch(d.String())[1])
	}
	return names
}

// Hold compares a program's section of a page with its metrics. With update it is
// written anew.
func Hold(t testing.TB, page, program string, metrics []Metric, update bool) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	begin, rest, ok := strings.Cut(string(text), mark(program))
	_, end, ended := strings.Cut(rest, endMark)
	if !ok || !ended {
		t.Fatalf("%s has no section %s ... %s", page, mark(program), endMark)
	}
	var b strings.Builder
	b.WriteString("\n| metric | type | labels | meaning |\n|---|---|---|---|\n")
	for _, m := range metrics {
		labels := ""
		if len(m.Labels) > 0 {
			labels = "`" + strings.Join(m.Labels, "`, `") + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", m.Name, m.Type, labels, strings.ReplaceAll(m.Help, "|", `\|`))
	}
	want := begin + mark(program) + b.String() + endMark + end
	switch {
	case want == string(text):
	case update:
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("%s does not list the metrics of %s as they are: run this test with -update\n%s", page, program, b.String())
	}
}

const endMark = "<!-- end -->"

func mark(program string) string { return "<!-- metrics of " + program + " -->" }

var row = regexp.MustCompile("(?m)^\\| `([a-z0-9_]+)` \\| ([a-z]+) \\| ([^|]*) \\|")

// Read gives the metrics that a page lists, by name. That these are all there are is
// what Hold holds.
func Read(t testing.TB, page string) map[string]Metric {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]Metric{}
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		metric := Metric{Name: m[1], Type: m[2]}
		for l := range strings.SplitSeq(m[3], ", ") {
			if l = strings.Trim(l, "`"); l != "" {
				metric.Labels = append(metric.Labels, l)
			}
		}
		all[metric.Name] = metric
	}
	return all
}

package deploy_test

import (
	"encoding/json"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler/internal/testenv/catalogue"
)

const (
	rulesFile = "prometheus/chandler.rules.yaml"
	testsFile = "prometheus/chandler_test.yaml"
	dashFile  = "grafana/chandler.json"
	metrics   = "../docs/metrics.md"
	guide     = "../docs/operating.md"
)

// alertRule is an alert or a record.
type alertRule struct {
	Record, Alert, Expr string
	Labels, Annotations map[string]string
}

func rules(t *testing.T) (all []alertRule) {
	t.Helper()
	var file struct {
		Groups []struct {
			Name  string
			Rules []alertRule
		}
	}
	load(t, rulesFile, yaml.Unmarshal, &file)
	for _, g := range file.Groups {
		all = append(all, g.Rules...)
	}
	if len(all) < 20 {
		t.Fatalf("%d rules", len(all))
	}
	return all
}

func load(t *testing.T, file string, decode func([]byte, any) error, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := decode(text, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

var metricName = regexp.MustCompile(`[a-z]+:[a-z0-9_:]+|\b(?:chandler|istio|pilot)_[a-z0-9_]+`)

// exist complains of metrics that nobody has, and of labels that they do not have.
func exist(t *testing.T, where, expr string, known map[string]catalogue.Metric, records map[string]bool) {
	t.Helper()
	for _, name := range metricName.FindAllString(expr, -1) {
		base := name
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if cut := strings.TrimSuffix(name, suffix); known[cut].Type == "histogram" {
				base = cut
			}
		}
		if _, ok := known[base]; !ok && !records[name] {
			t.Errorf("%s: there is no metric %s", where, name)
		}
	}
	for _, m := range selector.FindAllStringSubmatch(expr, -1) {
		metric, ok := known[strings.TrimSuffix(m[1], "_bucket")]
		if !ok {
			continue // a record
		}
		for _, l := range labelName.FindAllStringSubmatch(m[2], -1) {
			if !slices.Contains(append([]string{"job", "instance", "le"}, metric.Labels...), l[1]) {
				t.Errorf("%s: %s has no label %s", where, m[1], l[1])
			}
		}
	}
}

var (
	selector  = regexp.MustCompile(`\b([a-z_]+)\{([^}]*)\}`)
	labelName = regexp.MustCompile(`([a-z_]+)\s*(?:=~|!~|!=|=)\s*"`)
)

// Every metric in the rules exists, every alert says what is the matter and what follows,
// is held by promtool's tests to fire, and has its place in the guide.
func TestRules(t *testing.T) {
	t.Parallel()
	known, records := catalogue.Read(t, metrics), map[string]bool{}
	var tests struct {
		Tests []struct {
			Alerts []struct {
				Name   string `yaml:"alertname"`
				Expect []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	load(t, testsFile, yaml.Unmarshal, &tests)
	fires, quiet := map[string]bool{}, map[string]bool{}
	for _, test := range tests.Tests {
		for _, a := range test.Alerts {
			fires[a.Name] = fires[a.Name] || len(a.Expect) > 0
			quiet[a.Name] = quiet[a.Name] || len(a.Expect) == 0
		}
	}
	told, err := os.ReadFile(guide)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rules(t) {
		where := r.Record + r.Alert
		exist(t, where, r.Expr, known, records)
		if r.Record != "" {
			records[r.Record] = true
			continue
		}
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" || !slices.Contains([]string{"critical", "warning"}, r.Labels["severity"]) {
			t.Errorf("%s lacks a summary, a description or a severity", where)
		}
		if !fires[r.Alert] || !quiet[r.Alert] {
			t.Errorf("%s: %s does not hold when it fires, and when it does not", where, testsFile)
		}
		if !strings.Contains(string(told), "`"+r.Alert+"`") {
			t.Errorf("%s is not in %s", where, guide)
		}
	}
}

// board is as much of a dashboard as is looked at here.
type board struct {
	UID, Title    string
	SchemaVersion int
	Panels        []boardPanel
	Templating    struct {
		List []struct{ Name, Type, Query string }
	}
	Annotations struct {
		List []struct{ Expr string }
	}
}

type boardPanel struct {
	ID                int
	Type, Title, Expr string
	Datasource        struct{ Type, UID string }
	GridPos           struct{ X, Y, W, H int }
	Targets           []struct{ Expr, RefID string }
	Panels            []any
}

var variable = regexp.MustCompile(`\$\{?([a-z_]+)\}?`)

// The dashboard is one that Grafana can show: panels with an id of their own that lie
// beside each other, queries of metrics that exist, variables that are defined.
func TestGrafana(t *testing.T) {
	t.Parallel()
	var b board
	load(t, dashFile, json.Unmarshal, &b)
	known, records := catalogue.Read(t, metrics), map[string]bool{}
	for _, r := range rules(t) {
		records[r.Record] = r.Record != ""
	}
	variables := map[string]bool{"__rate_interval": true}
	for _, v := range b.Templating.List {
		variables[v.Name] = true
		exist(t, "variable "+v.Name, v.Query, known, records)
	}
	if b.UID == "" || b.Title == "" || b.SchemaVersion < 30 || !variables["datasource"] || len(b.Panels) < 10 {
		t.Errorf("%s %q, schema %d, %d panels, variables %v", b.UID, b.Title, b.SchemaVersion, len(b.Panels), slices.Sorted(maps.Keys(variables)))
	}
	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range b.Panels {
		if ids[p.ID] || p.ID == 0 {
			t.Errorf("%q: id %d is not its own", p.Title, p.ID)
		}
		ids[p.ID] = true
		g := p.GridPos
		if g.W <= 0 || g.H <= 0 || g.X < 0 || g.X+g.W > 24 {
			t.Errorf("%q does not fit: %+v", p.Title, g)
		}
		for x := g.X; x < g.X+g.W; x++ {
			for y := g.Y; y < g.Y+g.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" {
					t.Fatalf("%q lies over %q", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if !slices.Contains([]string{"stat", "timeseries", "table", "state-timeline"}, p.Type) || p.Datasource.UID != "${datasource}" || len(p.Targets) == 0 {
			t.Errorf("%q: type %q, data source %q, %d queries", p.Title, p.Type, p.Datasource.UID, len(p.Targets))
		}
		refs := map[string]bool{}
		for _, q := range p.Targets {
			if q.Expr == "" || q.RefID == "" || refs[q.RefID] {
				t.Errorf("%q: query %q %q", p.Title, q.RefID, q.Expr)
			}
			refs[q.RefID] = true
			exist(t, p.Title, q.Expr, known, records)
			for _, v := range variable.FindAllStringSubmatch(q.Expr, -1) {
				if !variables[v[1]] {
					t.Errorf("%q: there is no variable $%s", p.Title, v[1])
				}
			}
		}
	}
}

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"text/tabwriter"

	"chandler.dev/chandler/internal/author/suite"
)

// benchTests measures the cases that have a request, engine by engine.
func (e *env) benchTests(ctx context.Context, tests []suite.Test, f *testFlags) error {
	var all []suite.Measure
	for _, engine := range f.engines {
		measures, err := suite.Bench(ctx, tests, engine)
		if err != nil {
			return err
		}
		all = append(all, measures...)
	}
	if f.output == "json" {
		enc := json.NewEncoder(e.stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(map[string]any{"measures": all})
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "CASE\tENGINE\tLOAD\tREQUEST\tCALLBACKS\tA CALLBACK\tMEMORY A STREAM")
	for _, m := range all {
		memory := "-"
		if m.Memory != nil {
			memory = fmt.Sprintf("%d B", *m.Memory)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", m.Name, m.Engine, suite.Rounded(m.Load), suite.Rounded(m.Request), m.Callbacks, suite.Rounded(m.Callback), memory)
	}
	return w.Flush()
}

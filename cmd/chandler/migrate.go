package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"chandler.dev/chandler/internal/migrate"
)

func migrateCommand(e *env) *cobra.Command {
	var from, output string
	var files []string
	cmd := &cobra.Command{
		Use:   "migrate --from istio|envoyfilter -f FILE|-",
		Short: "Translate Istio's Wasm resources",
		Long: `Translate what Istio was told about Wasm into resources for chandler.

The resources are written to standard output; where they behave otherwise than
before, and what cannot be carried over, to standard error. Nothing is changed
anywhere. Resources get the label istio.io/rev: chandler, by which istiod leaves
them alone. A resource of which a part cannot be carried over is not written at
all, and the exit code is then 3.`,
		Example: `  kubectl get wasmplugins -A -o yaml | chandler migrate --from istio -f - > plugins.yaml
  kubectl get envoyfilters -A -o yaml | chandler migrate --from envoyfilter -f - > plugins.yaml`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			switch migrate.From(from) {
			case migrate.FromIstio, migrate.FromEnvoyFilter:
			case "":
				return usagef("migrate needs --from: istio or envoyfilter")
			default:
				return usagef("--from %s: one of istio, envoyfilter", from)
			}
			if output != "text" && output != "json" {
				return usagef("-o %s: one of text, json", output)
			}
			if len(files) == 0 {
				return usagef("migrate needs -f FILE, or -f - for standard input")
			}
			manifest, err := e.read(files)
			if err != nil {
				return err
			}
			return e.migrated(migrate.Translate(migrate.From(from), manifest, e.namespace), output)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "what the input was written for: istio (WasmPlugin, TrafficExtension) or envoyfilter")
	cmd.Flags().StringArrayVarP(&files, "filename", "f", nil, "file, folder, or - for standard input; may be given several times")
	cmd.Flags().StringVarP(&e.namespace, "namespace", "n", "", "namespace of documents that name none")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json: how the differences are written to standard error")
	return cmd
}

// migrated writes a translation.
func (e *env) migrated(r migrate.Result, output string) error {
	if _, err := e.stdout.Write(r.Manifest); err != nil {
		return err
	}
	if output == "json" {
		notes := r.Notes
		if notes == nil {
			notes = []migrate.Note{}
		}
		enc := json.NewEncoder(e.stderr)
		enc.SetIndent("", "  ")
		if err := enc.Encode(map[string]any{"notes": notes}); err != nil {
			return err
		}
	} else {
		fmt.Fprint(e.stderr, migrate.Text(r.Notes))
	}
	switch {
	case len(r.Notes) == 0:
		return &exitError{code: exitFailed, text: "there is no object in it"}
	case !r.Complete():
		if output == "json" {
			return &exitError{code: exitUnhealthy} // standard error stays one JSON document
		}
		return &exitError{code: exitUnhealthy, text: "not everything was carried over"}
	}
	return nil
}

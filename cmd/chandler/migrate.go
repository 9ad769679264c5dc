package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/migrate"
	"chandler.dev/chandler/internal/source/kube"
)

func migrateCommand(e *env) *cobra.Command {
	var from, output string
	var files []string
	cmd := &cobra.Command{
		Use:   "migrate --from istio|envoyfilter -f FILE|-",
		Short: "Translate Istio's Wasm resources",
		Long: `Translate what Istio was told about Wasm into resources for chandler: what is in
files, or with -A or -n what is in the cluster, but for what is labelled as
chandler's already.

The resources are written to standard output; where they behave otherwise than
before, and what cannot be carried over, to standard error. Nothing is changed
anywhere. Resources get the label istio.io/rev: chandler, by which istiod leaves
them alone. A resource of which a part cannot be carried over is not written at
all, and the exit code is then 3.`,
		Example: `  chandler migrate --from istio -A > plugins.yaml
  chandler migrate --from envoyfilter -f filters.yaml > plugins.yaml`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
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
				return e.migrateCluster(cmd.Context(), migrate.From(from), output)
			}
			if e.all || e.kubeconfig != "" || e.context != "" {
				return usagef("-f names files, and -A, --kubeconfig and --context a cluster; say one of them")
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
	cmd.Flags().StringVarP(&e.namespace, "namespace", "n", "", "namespace in the cluster, or of documents in files that name none")
	cmd.Flags().BoolVarP(&e.all, "all-namespaces", "A", false, "what is in all namespaces of the cluster")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json: how the differences are written to standard error")
	e.clusterFlags(cmd, "")
	e.timeoutFlag(cmd)
	return cmd
}

// migrateCluster translates what is in a cluster.
func (e *env) migrateCluster(ctx context.Context, from migrate.From, output string) error {
	if !e.all && e.namespace == "" && !e.clustered() {
		return usagef("migrate needs -f FILE, or -f - for standard input, or -A or -n NAMESPACE for what is in the cluster")
	}
	client, err := e.cluster()
	if err != nil {
		return err
	}
	namespace := ""
	if !e.all {
		namespace = cmp.Or(e.namespace, client.Namespace())
	}
	kinds := []string{chandler.KindWasmPlugin, chandler.KindTrafficExtension}
	needed := kinds // one of them
	if from == migrate.FromEnvoyFilter {
		// Of the plugins the names matter: what is made must not take the place of one.
		kinds = []string{kube.KindEnvoyFilter, chandler.KindWasmPlugin}
		needed = kinds[:1]
	}
	ctx, cancel := context.WithTimeout(ctx, e.timeout)
	defer cancel()
	manifest, undefined, err := client.Written(ctx, namespace, kinds...)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return e.noAnswer()
	case err != nil:
		return err
	case !slices.ContainsFunc(needed, func(kind string) bool { return !slices.Contains(undefined, kind) }):
		return fmt.Errorf("the cluster does not define %s; is it the right one (--context)?", strings.Join(needed, " or "))
	case len(undefined) > 0 && output == "text":
		fmt.Fprintf(e.stderr, "The cluster does not define %s.\n", undefined[0])
	}
	r := migrate.Translate(from, manifest, "")
	for i := range r.Notes {
		r.Notes[i].Line = 0 // nobody sees the text
	}
	return e.migrated(r, output)
}

// migrated writes a translation.
func (e *env) migrated(r migrate.Result, output string) error {
	if _, err := e.exact.Write(r.Manifest); err != nil {
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
		return &exitError{code: exitFailed, text: "there is nothing to translate"}
	case !r.Complete():
		if output == "json" {
			return &exitError{code: exitUnhealthy} // standard error stays one JSON document
		}
		return &exitError{code: exitUnhealthy, text: "not everything was carried over"}
	}
	return nil
}

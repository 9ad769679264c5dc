package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"chandler.dev/chandler/internal/chart"
)

func installCommand(e *env) *cobra.Command {
	var files []string
	o := chart.Options{}
	if version != "dev" {
		o.AppVersion = version
	}
	cmd := &cobra.Command{
		Use:   "install",
		Short: "Print the manifests of a control plane on Kubernetes",
		Long: `Print the manifests that run the control plane on Kubernetes: those that Helm
would install from the chart deploy/helm/chandler, rendered by Helm's library.
Nothing is sent anywhere; the notes go to standard error. The image's tag is this
program's version, unless --set image.tag says otherwise.

No cluster is looked at, so crds.mode=auto means here that the definitions of
WasmPlugin and TrafficExtension are in. Apply with --server-side, which refuses to
take over those of another owner; where Istio's are, say --set crds.mode=never.`,
		Example: `  chandler install --set image.repository=registry.example/chandler | kubectl apply --server-side -f -`,
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			for _, name := range files {
				text, err := e.read([]string{name})
				if err != nil {
					return err
				}
				o.Values = append(o.Values, text)
			}
			manifests, notes, err := chart.Render(o)
			if err != nil {
				return err
			}
			if _, err := e.exact.Write(manifests); err != nil {
				return err
			}
			_, err = fmt.Fprint(e.stderr, notes)
			return err
		},
	}
	cmd.Flags().StringVar(&o.Release, "name", "chandler", "name of the release")
	cmd.Flags().StringVarP(&o.Namespace, "namespace", "n", "chandler-system", "namespace of the control plane; it must exist when the manifests are applied")
	cmd.Flags().StringArrayVarP(&files, "values", "f", nil, "file of values, or - for standard input; may be given several times, a later one wins")
	cmd.Flags().StringArrayVar(&o.Set, "set", nil, "NAME=VALUE as Helm reads it; may be given several times, and wins over files")
	return cmd
}

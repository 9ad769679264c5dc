package main

import (
	"github.com/spf13/cobra"

	"chandler.dev/chandler/internal/wasmhost"
)

// judgeArgs make this program the host in which a plugin is tried.
func judgeArgs() []string { return []string{"internal", "judge"} }

// internalCommand is what the program calls itself with. A child of that kind has no
// environment, no network and nobody to talk to: what it says is a verdict.
func internalCommand(e *env) *cobra.Command {
	internal := &cobra.Command{Use: "internal", Hidden: true, Args: noArgs}
	internal.AddCommand(&cobra.Command{
		Use: "judge [FILE]", Short: "Start the plugin that FILE describes, and say what there is against it", Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			file := ""
			if len(args) > 0 {
				file = args[0]
			}
			return wasmhost.Serve(cmd.Context(), file, e.stdout)
		},
	})
	return internal
}

package main

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/author/build"
	"chandler.dev/chandler/internal/author/scaffold"
)

// newCommand begins a plugin.
func newCommand(e *env) *cobra.Command {
	var lang, dir string
	cmd := &cobra.Command{
		Use:   "new NAME --lang go|rust|c|cpp|assemblyscript",
		Short: "Begin a plugin: a folder that builds",
		Long: `Write a folder with a small plugin that does something real: it adds a header to
responses, takes the header from its configuration, and refuses a configuration that
is wrong. With it come the schema of the configuration, tests, and a README with the
next commands. Nothing is ever written over.`,
		Example: `  chandler new add-header --lang go
  cd add-header && chandler build && chandler test`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("new needs one name, such as: chandler new add-header --lang go")
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			if lang == "" {
				return usagef("new needs --lang: go, rust, c, cpp or assemblyscript")
			}
			l, err := build.ParseLanguage(lang)
			if err != nil {
				return usagef("--lang: %v", err)
			}
			name := args[0]
			if p := scaffold.CheckName(name); p != nil {
				return usagef("%v", p)
			}
			if dir == "" {
				dir = name
			}
			files, err := scaffold.Write(dir, name, l)
			if err != nil {
				return err
			}
			for _, file := range files {
				fmt.Fprintln(e.stdout, filepath.Join(dir, filepath.FromSlash(file)))
			}
			t := build.ToolchainOf(l)
			fmt.Fprintf(e.stderr, "\nA plugin in %s. Building it takes %s:\n  %s\nThen:\n", l, t.Needs, strings.Join(t.Install, "\n  "))
			if dir != "." {
				fmt.Fprintf(e.stderr, "  cd %s\n", chandler.Printable(dir, 256))
			}
			fmt.Fprint(e.stderr, "  chandler build\n  chandler test --engine both\n")
			return nil
		},
	}
	cmd.Flags().StringVar(&lang, "lang", "", "language: go, rust, c, cpp, assemblyscript")
	cmd.Flags().StringVar(&dir, "dir", "", "folder to write to, not there yet or empty; NAME if not given")
	return cmd
}

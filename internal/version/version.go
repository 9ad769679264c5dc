// Package version words what a program says of its build. It is set by nothing: the
// linker sets the variables of the programs.
package version

import (
	"fmt"
	"runtime"
)

// Line is what a program says when it is asked for its version: the name and the
// version first, for scripts, then the commit, where the build was told one, the Go
// release and the platform.
func Line(program, version, commit string) string {
	if commit != "" {
		commit = "commit " + commit + ", "
	}
	return fmt.Sprintf("%s %s (%s%s, %s/%s)", program, version, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

//go:build race

package e2e

// buildFlags of the commands under test: they too run with the race detector
// when the tests do.
var buildFlags = []string{"-race"}

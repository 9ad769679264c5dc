//go:build !race

package e2e

// buildFlags of the commands under test.
var buildFlags []string

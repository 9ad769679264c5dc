//go:build race

package e2e

// raced: the race detector is in every program.
const raced = true

// buildFlags of the commands under test, as "make build" has them, and with the race
// detector when the tests run with it.
var buildFlags = []string{"-tags", "grpcnotrace", "-race"}

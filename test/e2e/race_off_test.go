//go:build !race

package e2e

// raced: the race detector is in every program.
const raced = false

// buildFlags of the commands under test, as "make build" has them.
var buildFlags = []string{"-tags", "grpcnotrace"}

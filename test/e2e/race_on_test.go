//go:build race

package e2e

import "time"

// atOnce is within what time an order to take a plugin out is to take effect: two seconds,
// and several times that with the race detector in every program.
const atOnce = 10 * time.Second

// buildFlags of the commands under test, as "make build" has them, and with the race
// detector when the tests run with it.
var buildFlags = []string{"-tags", "grpcnotrace", "-race"}

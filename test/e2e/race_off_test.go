//go:build !race

package e2e

import "time"

// atOnce is within what time an order to take a plugin out is to take effect.
const atOnce = 2 * time.Second

// buildFlags of the commands under test, as "make build" has them.
var buildFlags = []string{"-tags", "grpcnotrace"}

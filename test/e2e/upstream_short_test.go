//go:build !upstream

package e2e

import "chandler.dev/chandler/internal/testenv/upstream"

// walked are the control planes that TestUpstreamWalk stands under: the kind that there is
// most of. "make e2e-upstream" has all of them, and more tests.
var walked = []upstream.Variant{{Delta: true}}

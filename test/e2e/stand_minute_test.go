//go:build faults

package e2e

import "time"

// standStill is long enough for the control plane to have given the agent up, and
// for every wait of the agent to be over when it goes on.
const standStill = time.Minute

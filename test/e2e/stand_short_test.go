//go:build !faults

package e2e

// standStill is how long an agent stands still at least.
const standStill = 0

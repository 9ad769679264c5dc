//go:build !race

package control_test

// crowdSize is how many agents, and resources, make a crowd.
const crowdSize = 10_000

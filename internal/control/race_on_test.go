//go:build race

package control_test

// crowdSize is less where the race detector multiplies memory and time.
const crowdSize = 500

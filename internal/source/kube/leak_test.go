package kube

import (
	"testing"

	"chandler.dev/chandler/internal/testenv/leaks"
)

// With the tag kube that is also so of what talks to a real API server.
func TestMain(m *testing.M) { leaks.Main(m) }

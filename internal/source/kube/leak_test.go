package kube

import (
	"testing"

	"go.uber.org/goleak"
)

// With the tag kube that is also so of what talks to a real API server.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

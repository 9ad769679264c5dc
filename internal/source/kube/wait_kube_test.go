//go:build kube

package kube_test

import (
	"testing"
	"time"
)

// eventually waits until something is so, for as long as a busy machine may need.
func eventually(t *testing.T, so func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !so(); {
		if time.Now().After(end) {
			t.Fatal("it does not come")
		}
		time.Sleep(20 * time.Millisecond)
	}
}

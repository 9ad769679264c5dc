//go:build kube

package kube_test

import (
	"testing"
	"time"

	testkube "chandler.dev/chandler/internal/testenv/kube"
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

// defined waits until our kinds (plural names) can be used.
func defined(t *testing.T, c *testkube.Cluster, kinds ...string) {
	t.Helper()
	for _, kind := range kinds {
		kubectl(t, c, "", "wait", "--for=condition=Established", "crd/"+kind+".extensions.istio.io")
	}
	if err := c.Served(t.Context(), kinds...); err != nil {
		t.Fatal(err)
	}
}

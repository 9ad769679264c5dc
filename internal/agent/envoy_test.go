package agent

import (
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/module"
)

func TestProbeEnvoy(t *testing.T) {
	envoy := module.Envoy(t)
	t.Chdir(filepath.Dir(envoy))
	for _, path := range []string{envoy, "./" + filepath.Base(envoy)} {
		bin, err := probeEnvoy(t.Context(), path)
		if err != nil || bin.path != envoy || bin.version != "1.40.0" || !bin.slots || !strings.HasPrefix(bin.digest, "sha256:") {
			t.Errorf("%s: %+v, %v", path, bin, err)
		}
	}
	if _, err := probeEnvoy(t.Context(), "no-such-envoy"); err == nil || !strings.Contains(err.Error(), "--envoy") {
		t.Errorf("without a binary: %v", err)
	}
	if _, err := probeEnvoy(t.Context(), "/bin/echo"); err == nil || !strings.Contains(err.Error(), "no Envoy version") {
		t.Errorf("another binary: %v", err)
	}
}

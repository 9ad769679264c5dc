package agent

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	"chandler.dev/chandler/internal/testenv/executable"
	"chandler.dev/chandler/internal/testenv/module"
)

func canceled(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	cancel()
	return ctx
}

func TestProbeEnvoy(t *testing.T) {
	envoy := module.Envoy(t)
	memory := filepath.Join(t.TempDir(), "probe.json")
	t.Chdir(filepath.Dir(envoy))
	for _, path := range []string{envoy, "./" + filepath.Base(envoy)} {
		bin, err := probeEnvoy(t.Context(), path, memory)
		if err != nil || bin.path != envoy || bin.Version != "1.40.0" || !bin.Slots || !strings.HasPrefix(bin.Digest, "sha256:") {
			t.Errorf("%s: %+v, %v", path, bin, err)
		}
	}
	// What is remembered is of that file: another one in its place is asked anew.
	other := filepath.Join(t.TempDir(), "envoy")
	executable.Write(t, other, "#!/bin/sh\necho x/9.9.9/x\n")
	first, err := probeEnvoy(t.Context(), other, memory)
	if err != nil || first.Version != "9.9.9" {
		t.Fatalf("%+v, %v", first, err)
	}
	if again, err := probeEnvoy(canceled(t.Context()), other, memory); err != nil || again != first {
		t.Errorf("it was run again: %+v, %v", again, err)
	}
	executable.Write(t, other, "#!/bin/sh\necho xx/9.9.10/x\n")
	if next, err := probeEnvoy(t.Context(), other, memory); err != nil || next.Version != "9.9.10" || next.Digest == first.Digest {
		t.Errorf("another file: %+v, %v", next, err)
	}
	if _, err := probeEnvoy(t.Context(), "no-such-envoy", memory); err == nil || !strings.Contains(err.Error(), "--envoy") {
		t.Errorf("without a binary: %v", err)
	}
	if _, err := probeEnvoy(t.Context(), "/bin/echo", memory); err == nil || !strings.Contains(err.Error(), "no Envoy version") {
		t.Errorf("another binary: %v", err)
	}
}

package fetch

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
)

// The credentials are those of that directory's file and of nothing else.
func TestDockerConfig(t *testing.T) {
	elsewhere, dir := t.TempDir(), t.TempDir()
	write := func(dir, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// {"auth": base64 of user:password}
	write(elsewhere, `{"auths": {"r.example": {"auth": "b3RoZXI6b3RoZXI="}}}`)
	t.Setenv("DOCKER_CONFIG", elsewhere)
	t.Setenv("HOME", elsewhere)
	resolve := func(registry string) authn.AuthConfig {
		t.Helper()
		target, err := name.NewRegistry(registry)
		if err != nil {
			t.Fatal(err)
		}
		auth, err := DockerConfig(dir).Resolve(target.Repo("a", "b"))
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := auth.Authorization()
		if err != nil {
			t.Fatal(err)
		}
		return *cfg
	}
	if got := resolve("r.example"); got != (authn.AuthConfig{}) {
		t.Errorf("without a file: %q", got.Username)
	}
	write(dir, `{"auths": {"r.example": {"auth": "bm9kZTpzZWNyZXQ="}, "https://index.docker.io/v1/": {"auth": "aHViOmh1Yg=="}}}`)
	for registry, user := range map[string]string{"r.example": "node", "index.docker.io": "hub", "other.example": ""} {
		if got := resolve(registry); got.Username != user {
			t.Errorf("%s gets %q, want %q", registry, got.Username, user)
		}
	}
	write(dir, `{"auths": {`)
	target, err := name.NewRegistry("r.example")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := DockerConfig(dir).Resolve(target); err == nil {
		t.Error("a file that cannot be read is no credentials at all")
	}
}

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"chandler.dev/chandler/internal/testenv/module"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"chandler-agent": main, envoyName: main})
}

// TestScript runs testdata/script/*.txtar: the command as it is called, also under the
// name envoy. The real Envoy is at $ENVOY.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("ENVOY", module.Envoy(t))
			env.Setenv("HOME", env.WorkDir)
			// Where the name envoy stands for the agent alone.
			own, err := exec.LookPath(envoyName)
			if err != nil {
				return err
			}
			only := filepath.Join(env.WorkDir, "only")
			if err := os.Mkdir(only, 0o755); err != nil {
				return err
			}
			env.Setenv("ONLY", only)
			return os.Symlink(own, filepath.Join(only, envoyName))
		},
	})
}

package version

import (
	"runtime"
	"testing"
)

func TestLine(t *testing.T) {
	t.Parallel()
	of := runtime.Version() + ", " + runtime.GOOS + "/" + runtime.GOARCH + ")"
	for got, want := range map[string]string{
		Line("chandler", "0.3.0", "d216a14"): "chandler 0.3.0 (commit d216a14, " + of,
		Line("bookinfo", "dev", ""):          "bookinfo dev (" + of,
	} {
		if got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

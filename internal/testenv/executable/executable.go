// Package executable writes programs that tests run at once.
package executable

import (
	"os"
	"syscall"
	"testing"
)

// Write makes path a program of this text. No child begins while the file is open for
// writing: one would hold it open until it is a program of its own, and until then the
// kernel refuses to run the script ("text file busy", execve(2), ETXTBSY).
func Write(t testing.TB, path, text string) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	if err := os.WriteFile(path, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
}

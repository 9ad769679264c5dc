// Package leaks fails a package's tests that leave goroutines behind. It is goleak's
// VerifyTestMain for machines that stall: what ends by itself has a minute for it, where
// goleak waits for less than half a second.
package leaks

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

// patience is for goroutines whose end was begun.
const patience = time.Minute

// Main runs the tests and ends the process; it is for a package's TestMain.
func Main(m goleak.TestingM) { goleak.VerifyTestMain(patient{m}) }

// patient are tests that are over when their goroutines are.
type patient struct{ tests goleak.TestingM }

// Run runs them.
func (p patient) Run() int {
	code := p.tests.Run()
	if code == 0 {
		_ = find() // VerifyTestMain looks once more, and tells
	}
	return code
}

// Check fails a test that leaves goroutines behind. It is called before anything is started.
func Check(t testing.TB) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() {
		if err := find(before); err != nil {
			t.Error(err)
		}
	})
}

// find tells what is left after a minute at most.
func find(options ...goleak.Option) error {
	err := goleak.Find(options...)
	for began := time.Now(); err != nil && time.Since(began) < patience; {
		err = goleak.Find(options...)
	}
	return err
}

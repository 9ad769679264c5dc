// Package leaks fails a package's tests that leave goroutines behind. It is goleak's
// VerifyTestMain for machines that stall: what ends by itself has a minute for it, where
// goleak waits for less than half a second.
package leaks

import (
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
	for began := time.Now(); code == 0 && goleak.Find() != nil && time.Since(began) < patience; {
	}
	return code
}

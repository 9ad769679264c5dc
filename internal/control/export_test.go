package control

import (
	"time"

	"chandler.dev/chandler"
)

// AskTraffic is what whoever leads does.
func (c *Control) AskTraffic(interval time.Duration, who func(chandler.Node) bool) {
	c.fleet.ask(interval, who)
}

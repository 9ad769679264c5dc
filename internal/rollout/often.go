package rollout

import (
	"time"

	"chandler.dev/chandler"
)

// How often a rollout that is under way is looked at, and how often its proxies say what
// they answer: a fraction of the plan's interval, within bounds.
const (
	MaxLook    = time.Second
	MaxTraffic = 5 * time.Second

	minLook    = 200 * time.Millisecond
	minTraffic = 500 * time.Millisecond
	fraction   = 8
)

// Foreword is how long a rollout waits before its first step for proxies to say what
// they answered before it.
const Foreword = 3 * time.Second

// LookEvery is between two calls of Next.
func LookEvery(plan *chandler.RolloutPlan) time.Duration {
	return min(MaxLook, max(minLook, plan.Interval/fraction))
}

// TrafficEvery is between two words of a proxy on what it answers.
func TrafficEvery(plan *chandler.RolloutPlan) time.Duration {
	return min(MaxTraffic, max(minTraffic, plan.Interval/fraction))
}

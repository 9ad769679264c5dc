package agent

import (
	"log/slog"
	"maps"
	"slices"

	"chandler.dev/chandler"
)

// failures are the plugins that the log says are not in force, and why. The control plane
// hears of each as well; whoever is on the machine reads the log. What Envoy refuses, and what
// somebody bypassed, has lines of its own.
type failures map[chandler.Key]failing

type failing struct {
	reason  chandler.Code
	standIn chandler.StandIn
}

// tell logs what has begun to fail, for another reason or with another outcome for requests,
// and what is in force again. A try that fails as the one before did is no news.
func (f failures) tell(log *slog.Logger, report map[chandler.Key]chandler.AttachmentState) {
	for _, key := range slices.SortedFunc(maps.Keys(report), chandler.Key.Compare) {
		st := report[key]
		before, failed := f[key]
		switch now := (failing{st.Reason, st.StandIn}); {
		case st.State == chandler.StateInForce:
			if failed {
				log.Info("a plugin is in force again", "plugin", key.String(), "release", st.InForce.Short())
			}
			delete(f, key)
		case st.State != chandler.StateFailed || st.Reason == chandler.CodeBypassed || st.Reason == chandler.CodeEnvoyDown || now == before:
		default:
			f[key] = now
			log.Warn("a plugin cannot be put in force", "plugin", key.String(), "release", st.Release.Short(), "instead", instead(&st), "reason", st.Reason, "message", st.Message)
		}
	}
	maps.DeleteFunc(f, func(key chandler.Key, _ failing) bool {
		_, assigned := report[key]
		return !assigned
	})
}

// instead says what decides requests in place of a release that cannot be had.
func instead(st *chandler.AttachmentState) string {
	switch {
	case st.InForce != "":
		return "release " + st.InForce.Short()
	case st.StandIn == chandler.StandInDeny:
		return "requests are refused"
	case st.StandIn == chandler.StandInPass:
		return "it is left out"
	}
	return "traffic goes on as before"
}

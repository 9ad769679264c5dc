package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"chandler.dev/chandler"
)

// A listener may wait for what is not the agent's, for instance routes that its control
// plane does not send. Envoy knows for what: while listeners are not active it is asked now
// and then.

const (
	waitsPatience = 2 * time.Second // before it is asked, and between
	maxWaits      = 3               // listeners that are named, and what each waits for
)

// waits is what Envoy was asked last about its listeners.
type waits struct {
	at   time.Time
	said string
}

// ask has the state told what listeners wait for, when that is due and news.
func (w *waits) ask(ctx context.Context, a *Agent, since time.Time) {
	if now := time.Now(); now.Sub(since) < waitsPatience || now.Sub(w.at) < waitsPatience {
		return
	}
	poll, cancel := context.WithTimeout(ctx, waitsPatience)
	defer cancel()
	said, err := a.envoyAdmin.waits(poll)
	w.at = time.Now()
	if err == nil && said != w.said {
		w.said = said
		a.send(ctx, message{event: Waiting{For: said}})
	}
}

// waits tells in a sentence what listeners wait for; empty: nothing that Envoy names.
func (c *adminClient) waits(ctx context.Context) (string, error) {
	text, err := c.get(ctx, "/init_dump?mask=listener")
	if err != nil {
		return "", err
	}
	return readWaits(text)
}

// readWaits reads Envoy's dump of what is not initialized.
func readWaits(text []byte) (string, error) {
	var dump struct {
		Managers []struct {
			Name    string   `json:"name"`
			Targets []string `json:"target_names"`
		} `json:"unready_targets_dumps"`
	}
	if len(strings.TrimSpace(string(text))) == 0 {
		return "", nil
	}
	if err := json.Unmarshal(text, &dump); err != nil {
		return "", fmt.Errorf("envoy admin /init_dump: %w", err)
	}
	var all []string
	for _, m := range dump.Managers {
		if len(m.Targets) == 0 {
			continue
		}
		var targets []string
		for _, t := range m.Targets {
			targets = append(targets, chandler.Quote(strings.TrimPrefix(strings.TrimPrefix(t, "shared "), "target ")))
		}
		all = append(all, "the listener "+chandler.Quote(listenerOf(m.Name))+" waits for "+enumerate(targets, ", "))
	}
	return enumerate(all, "; "), nil
}

// listenerOf is the listener whose parts a manager of Envoy's brings up.
func listenerOf(manager string) string {
	const before = "Listener-local-init-manager "
	_, name, ok := strings.Cut(manager, before)
	if !ok {
		return manager
	}
	if i := strings.LastIndexByte(name, ' '); i > 0 { // behind it is a hash
		name = name[:i]
	}
	return name
}

// enumerate joins the first of a list, and says how many more there are.
func enumerate(list []string, between string) string {
	if n := len(list); n > maxWaits {
		list = append(list[:maxWaits:maxWaits], fmt.Sprintf("and %d more", n-maxWaits))
	}
	return strings.Join(list, between)
}

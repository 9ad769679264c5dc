package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"chandler.dev/chandler/internal/control"
	"chandler.dev/chandler/internal/source/kube"
)

// rememberGone is how long the digests of a resource that was deleted are kept for
// one that comes back: long enough for a restore from a backup, and for GitOps that
// deletes and creates.
const rememberGone = 24 * time.Hour

// errNotOurs is when another replica writes statuses, or nobody knows enough yet.
var errNotOurs = errors.New("this replica does not lead, or has not heard all agents yet")

// statuses keeps the statuses of a cluster's plugins, while this replica leads.
func (c *cluster) statuses(plane *control.Control, log *slog.Logger) *kube.StatusWriter {
	host, err := os.Hostname() // the pod's name
	if err != nil {
		log.Debug("Events do not name this machine", "error", err)
	}
	return kube.NewStatusWriter(kube.StatusConfig{
		Client: c.client, Instance: host, Log: log, Changed: plane.Changed,
		Objects: func(ctx context.Context) ([]control.ObjectView, error) {
			if !plane.Authoritative() {
				return nil, errNotOurs
			}
			return plane.Objects(ctx)
		},
	})
}

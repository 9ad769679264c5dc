package kube

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"chandler.dev/chandler"
)

// grantHint is what to do where a right is lacking.
const grantHint = "grant it to the control plane's service account, as the chart's roles do"

// lacksRight tells whether the API server did not do something because we may not
// ask for it. What may not be done by anybody (a quota is used up, a namespace is
// going) is forbidden by the same code and in other words.
func lacksRight(err error) bool {
	return apierrors.IsForbidden(err) && strings.Contains(err.Error(), `" cannot `)
}

// explained is err, or, where a right is lacking, a Problem that says what to do.
func explained(err error) error {
	if lacksRight(err) {
		return chandler.Problemf(chandler.CodeInternal, "", grantHint, "%s", chandler.Printable(err.Error(), 1024))
	}
	return err
}

// outage tells once that something does not answer, or that a right to it is
// lacking, and once that it is over.
type outage struct {
	log  *slog.Logger
	what string

	mu   sync.Mutex
	said string
}

func (o *outage) note(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	var status apierrors.APIStatus
	why := ""
	switch {
	case errors.As(err, &status):
		why = "an answer of " + string(status.Status().Reason)
	case err != nil:
		why = "no answer"
	}
	if why == o.said {
		return
	}
	o.said = why
	switch {
	case err == nil:
		o.log.Info("the API server answers again", "for", o.what)
	case lacksRight(err):
		o.log.Warn("a right is lacking; what is known stays", "for", o.what, "error", explained(err))
	default:
		o.log.Warn("the API server cannot be asked; what is known stays", "for", o.what, "error", err)
	}
}

// access tells of outages of a resource that is listed and watched. The right to
// watch has an outage of its own: without it lists go on, and changes come late.
type access struct{ lists, watches outage }

func newAccess(log *slog.Logger, what string) *access {
	return &access{lists: outage{log: log, what: what}, watches: outage{log: log, what: "changes of " + what}}
}

func (a *access) listed(ctx context.Context, err error) {
	if !apierrors.IsNotFound(err) { // of what is not defined there is nothing to lack
		a.lists.note(ctx, err)
	}
}

func (a *access) watched(ctx context.Context, err error) {
	switch {
	case apierrors.IsNotFound(err), apierrors.IsResourceExpired(err), apierrors.IsGone(err), apierrors.IsInvalid(err):
		// A list is next, which says what is so.
	case apierrors.IsForbidden(err):
		a.watches.note(ctx, err)
	case err == nil:
		a.watches.note(ctx, nil)
		a.lists.note(ctx, nil) // some begin with all there is
	default:
		a.lists.note(ctx, err)
	}
}

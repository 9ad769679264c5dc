package kube

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"chandler.dev/chandler"
)

var (
	plugins = schema.GroupResource{Group: "extensions.istio.io", Resource: "wasmplugins"}
	noRight = apierrors.NewForbidden(plugins, "", fmt.Errorf(`%s "x" cannot watch resource "wasmplugins" in API group "extensions.istio.io" at the cluster scope`, "User"))
	noQuota = apierrors.NewForbidden(plugins, "p", errors.New("exceeded quota: small"))
	errAway = errors.New("connection refused")
)

// A line when it begins, with what to do, and one when it is over; lists that go on
// without the right to watch are no end of it.
func TestAccess(t *testing.T) {
	var log bytes.Buffer
	a := newAccess(slog.New(slog.NewTextHandler(&log, nil)), "wasmplugins")
	says := func(when string, texts ...string) {
		t.Helper()
		lines := strings.Count(log.String(), "\n")
		if lines != min(len(texts), 1) {
			t.Errorf("%s: %d lines:\n%s", when, lines, log.String())
		}
		for _, text := range texts {
			if !strings.Contains(log.String(), text) {
				t.Errorf("%s: no %q in %s", when, text, log.String())
			}
		}
		log.Reset()
	}
	ctx := t.Context()
	a.watched(ctx, nil)
	says("it is watched")
	a.watched(ctx, noRight)
	says("no right to watch", "a right is lacking", "cannot watch", grantHint)
	for range 3 {
		a.listed(ctx, nil)
		a.watched(ctx, noRight)
	}
	says("lists go on")
	a.listed(ctx, errAway)
	a.watched(ctx, errAway)
	says("an outage", "cannot be asked")
	a.listed(ctx, nil)
	says("lists are back", "answers again")
	a.watched(ctx, nil)
	says("the right is there", "answers again", "changes of wasmplugins")
}

// Not all that is forbidden is a matter of rights.
func TestExplained(t *testing.T) {
	var p *chandler.Problem
	if err := explained(noRight); !errors.As(err, &p) || p.Hint != grantHint || !strings.Contains(p.Message, "cannot watch resource") {
		t.Errorf("a right is lacking: %v", err)
	}
	for _, err := range []error{nil, noQuota, errAway} {
		if got := explained(err); got != err {
			t.Errorf("%v is explained as %v", err, got)
		}
	}
}

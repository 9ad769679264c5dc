package kube

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"chandler.dev/chandler"
)

const (
	// maxNote bounds an Event's note, in bytes; the API server refuses more than 1024.
	maxNote = 1000
	// maxEvents bounds those that wait; what does not fit is dropped, since the
	// status says the same.
	maxEvents = 256
	// eventEvery is the least time between two Events of this control plane, after
	// the first eventBurst.
	eventEvery = 100 * time.Millisecond
	eventBurst = 50
)

// announcer writes Events, one after the other. It needs create of events of group
// events.k8s.io, where plugins are.
type announcer struct {
	client   *Client
	instance string
	log      *slog.Logger
	queue    chan *eventsv1.Event
	count    atomic.Int64 // tells Events of the same moment apart
}

func newAnnouncer(c *Client, instance string, log *slog.Logger) *announcer {
	return &announcer{client: c, instance: instance, log: log, queue: make(chan *eventsv1.Event, maxEvents)}
}

// announce has a turn written, if there is room.
func (a *announcer) announce(k chandler.Key, uid string, t turn, now time.Time) {
	e := &eventsv1.Event{
		EventTime:           metav1.NewMicroTime(now),
		ReportingController: "chandler.dev/chandler",
		ReportingInstance:   a.instance,
		Action:              "Judge",
		Reason:              string(t.reason),
		Type:                corev1.EventTypeNormal,
		Note:                chandler.Printable(t.note, maxNote-len("... (1000000 bytes)")),
		Regarding: corev1.ObjectReference{
			APIVersion: pluginVersion, Kind: k.Kind, Namespace: k.Namespace, Name: k.Name, UID: types.UID(uid),
		},
	}
	if t.warning {
		e.Type = corev1.EventTypeWarning
	}
	e.Namespace, e.Name = k.Namespace, fmt.Sprintf("%s.%x", objectName(k, "event"), now.UnixNano()+a.count.Add(1))
	select {
	case a.queue <- e:
	default:
		a.log.Debug("an Event is dropped, too many wait", "plugin", k.String(), "reason", t.reason)
	}
}

// run writes Events until ctx ends. One that cannot be written is not tried again.
func (a *announcer) run(ctx context.Context) {
	free := time.Now().Add(-eventBurst * eventEvery)
	for {
		var e *eventsv1.Event
		select {
		case <-ctx.Done():
			return
		case e = <-a.queue:
		}
		if earliest := time.Now().Add(-eventBurst * eventEvery); free.Before(earliest) {
			free = earliest
		}
		free = free.Add(eventEvery)
		if wait := time.Until(free); wait > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		_, err := a.client.core.EventsV1().Events(e.Namespace).Create(call, e, metav1.CreateOptions{})
		cancel()
		if err != nil && ctx.Err() == nil {
			a.log.Warn("an Event cannot be written", "namespace", e.Namespace, "plugin", e.Regarding.Name, "reason", e.Reason, "error", explained(err))
		}
	}
}

package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/wire"
	"chandler.dev/chandler/internal/xds/deltaclient"
)

// followControl keeps the stream to a control plane until ctx ends.
func (a *Agent) followControl(ctx context.Context) error {
	client := deltaclient.New(deltaclient.Config{
		Targets: a.cfg.Control,
		Dial:    a.cfg.DialOptions,
		Node:    wire.NodeToXDS(a.cfg.Node),
		TypeURL: wire.AttachmentTypeURL,
		Known:   func() map[string]string { return *a.known.Load() },
		Handle:  func(u deltaclient.Update) error { return a.assigned(ctx, u) },
		Session: func(ctx context.Context, conn *grpc.ClientConn) {
			a.loader.conn.Store(conn)
			defer a.loader.conn.CompareAndSwap(conn, nil)
			a.report(ctx, conn)
		},
		Connected: func(up bool, target string, err error) {
			a.connection(up, target, err)
			if up {
				a.metrics.connected.Set(1)
				a.log.Info("connected to control plane", "address", target)
			} else {
				a.metrics.connected.Set(0)
			}
		},
		Log: a.log,
	})
	return client.Run(ctx)
}

// connection notes how the connection to the control plane is.
func (a *Agent) connection(up bool, target string, err error) {
	st := &ControlStatus{Connected: up, Address: target}
	if before := a.control.Load(); before != nil && before.Connected == up {
		st.Since = before.Since
	} else {
		st.Since = time.Now()
	}
	if err != nil {
		st.Error = chandler.Printable(err.Error(), reasonLimit) + hint(err)
	}
	a.control.Store(st)
}

// hint says what an error means of which only its words are known.
func hint(err error) string {
	switch text := err.Error(); {
	case strings.Contains(text, "reading server preface: EOF"):
		return "; it may want TLS: give --tls-ca"
	case strings.Contains(text, "does not look like a TLS handshake"):
		return "; it does not speak TLS: give it --tls-cert"
	}
	return ""
}

// report keeps the report stream of a connection; the connection's end is its
// end too.
func (a *Agent) report(ctx context.Context, conn *grpc.ClientConn) {
	for ctx.Err() == nil {
		if err := a.reporter.run(ctx, conn); ctx.Err() == nil {
			a.log.Warn("report stream ended", "error", err)
			outlived(conn, err, a.log)
		}
		select {
		case <-ctx.Done():
		case <-time.After(reportRetry):
		}
	}
}

// outlived closes a connection that has outlived what was shown for it: what is in
// the files by now is shown for the next one.
func outlived(conn *grpc.ClientConn, err error, log *slog.Logger) {
	if status.Code(err) == codes.Unauthenticated {
		log.Warn("the control plane no longer believes who this is; it is called anew", "error", err)
		_ = conn.Close() // perhaps it is
	}
}

// reportRetry is how soon a broken report stream is opened again.
const reportRetry = time.Second

// assigned takes an update in. What cannot be read is refused by name and the
// rest is taken: one plugin must not hold up the others.
func (a *Agent) assigned(ctx context.Context, u deltaclient.Update) error {
	var ev Assigned
	var errs []error
	for _, r := range u.Changed {
		att, err := wire.UnmarshalAttachment(r.Body)
		if err != nil {
			a.metrics.conversions.WithLabelValues(conversionUnmarshalFailure).Inc()
			err = fmt.Errorf("%s: %w", chandler.Quote(r.Name), err)
			a.log.Error("the control plane sends what no control plane may", "error", err)
			errs = append(errs, err)
			continue
		}
		v := Version{Attachment: att, Version: r.Version, From: u.From}
		if att.InPart {
			v.Version = inPart(v.Version)
		}
		ev.Changed = append(ev.Changed, v)
	}
	for _, name := range u.Removed {
		if key, ok := chandler.ParseKey(name); ok {
			ev.Removed = append(ev.Removed, key)
		}
	}
	if !a.send(ctx, message{event: ev}) {
		return ctx.Err()
	}
	return errors.Join(errs...)
}

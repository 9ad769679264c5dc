package dashboard

import (
	"fmt"
	"net/http"
	"time"

	"chandler.dev/chandler/internal/access"
)

const (
	// maxStreams bounds how many pages follow at a time; more of them say that they do
	// not.
	maxStreams = 64
	// streamEnds is when a page has to ask anew, and show who it is.
	streamEnds = 10 * time.Minute
	heartbeat  = 15 * time.Second
	writeLimit = 10 * time.Second
)

// live tells a page which version of the fleet there is, at first and whenever there
// is another; the page then asks for itself again. So a stream shows nothing that
// somebody might not see, and costs what a version costs, however many follow.
func (d *dashboard) live(w http.ResponseWriter, r *http.Request) {
	viewer := d.cfg.Viewer(r.Context())
	if !viewer.Somewhere(access.List) {
		http.Error(w, "show who you are", http.StatusUnauthorized)
		return
	}
	select {
	case d.streams <- struct{}{}:
		defer func() { <-d.streams }()
	default:
		w.Header().Set("Retry-After", "30")
		http.Error(w, fmt.Sprintf("%d pages follow already", maxStreams), http.StatusServiceUnavailable)
		return
	}
	out := http.NewResponseController(w)
	_ = out.SetReadDeadline(time.Time{}) // the server's is for requests; some writers have none
	w.Header().Set("Content-Type", "text/event-stream")
	ends := time.NewTimer(streamEnds)
	defer ends.Stop()
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	ctx := r.Context()
	say := func(text string) bool {
		_ = out.SetWriteDeadline(time.Now().Add(writeLimit))
		_, err := w.Write([]byte(text))
		return err == nil && out.Flush() == nil
	}
	said := ""
	for {
		s, err := d.board.look(ctx)
		if err != nil {
			return // the browser comes again
		}
		if s.version != said && !say("event: version\ndata: "+s.version+"\n\n") {
			return
		}
		said = s.version
		select {
		case <-s.changed:
			err = rest(ctx, d.board.due(s))
		case <-s.more:
			err = rest(ctx, d.board.due(s))
		case <-beat.C:
			if !say(": still here\n\n") {
				return
			}
		case <-ends.C:
			return
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

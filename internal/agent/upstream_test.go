package agent

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"
)

// The log tells once that there is no stream to Envoy's control plane, also where there
// has been none, and once that there is one again.
func TestUpstreamLinkTells(t *testing.T) {
	t.Parallel()
	away := errors.New("connection refused")
	for name, c := range map[string]struct {
		words []error // nil: a stream is there
		want  []string
	}{
		"there":               {[]error{nil, nil}, []string{"connected"}},
		"away from the start": {[]error{away, away}, []string{"no stream"}},
		"comes later":         {[]error{away, away, nil}, []string{"no stream", "connected"}},
		"away for a moment":   {[]error{nil, away, nil}, []string{"connected", "no stream", "connected"}},
	} {
		var out bytes.Buffer
		l := newUpstreamLink(slog.New(slog.NewTextHandler(&out, nil)))
		for _, err := range c.words {
			l.word("/m", err)
		}
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		if len(lines) != len(c.want) {
			t.Errorf("%s: %q", name, lines)
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(lines[i], want) {
				t.Errorf("%s: line %d is %q", name, i, lines[i])
			}
		}
		if st := l.status("x"); st.Connected != (c.words[len(c.words)-1] == nil) {
			t.Errorf("%s: status %+v", name, st)
		}
	}
}

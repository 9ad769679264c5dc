package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"chandler.dev/chandler"
)

// probeTime bounds one request.
const probeTime = 5 * time.Second

// probe has a live Envoy, which is thrown away afterwards, load the plugin, and asks
// it what is to be asked.
func (s *Sandbox) probe(ctx context.Context, c Case) (*chandler.Problem, error) {
	limited, cancel := context.WithTimeout(ctx, s.cfg.Time)
	defer cancel()
	l, err := s.launch(limited, c)
	if err != nil {
		return nil, err
	}
	defer l.close()
	problem, err := l.judge(limited, c.Member, s.version)
	if err == nil && problem == nil {
		err = l.watched(limited, func(ctx context.Context) error {
			problem = l.ask(ctx, c.Probes, s.version)
			return ctx.Err()
		})
	}
	switch {
	case err == nil:
		return problem, nil
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case errors.Is(err, errMemory):
		return s.cfg.tooLarge("Envoy " + s.version), nil
	case limited.Err() != nil:
		return s.cfg.tooLong("Envoy " + s.version), nil
	}
	<-l.ended
	if crashed(l.end) {
		return crash("Envoy "+s.version, l.end), nil
	}
	return nil, fmt.Errorf("sandbox: Envoy %s gave no verdict: %w", s.version, err)
}

// ask makes the requests one after the other, and gives the first whose answer is
// not as it is to be.
func (l *live) ask(ctx context.Context, probes []chandler.Probe, version string) *chandler.Problem {
	transport := &http.Transport{
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 64 << 10,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", l.path("in.sock"))
		},
	}
	defer transport.CloseIdleConnections()
	for i := range probes {
		p := &probes[i]
		want := wanted(p)
		status, passed, err := l.request(ctx, transport, p)
		if ctx.Err() != nil {
			return nil // the caller says why
		}
		seen := fmt.Sprintf("Envoy %s answered %d", version, status)
		switch {
		case err != nil:
			seen = fmt.Sprintf("Envoy %s gave no answer: %s", version, chandler.Printable(err.Error(), 256))
		case passed:
			seen += ", it was allowed"
		default:
			seen += ", it was denied"
		}
		if err == nil && (p.Allowed != nil && *p.Allowed == passed || p.Allowed == nil && p.Status == status) {
			continue
		}
		return chandler.Problemf(chandler.CodeProbeFailed, fmt.Sprintf("metadata.annotations[%q]", chandler.AnnotationProbe),
			"correct the plugin, its configuration (pluginName among it) or the probe",
			"probe %d: %s %s %s; %s", i+1, p.Method, chandler.Quote(p.Path), want, seen)
	}
	return nil
}

func wanted(p *chandler.Probe) string {
	switch {
	case p.Allowed == nil:
		return fmt.Sprintf("is to be answered %d", p.Status)
	case *p.Allowed:
		return "is to be allowed"
	}
	return "is to be denied"
}

// request asks once. passed tells whether the request came through the plugin.
func (l *live) request(ctx context.Context, transport http.RoundTripper, p *chandler.Probe) (status int, passed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, p.Method, "http://probe"+p.Path, nil)
	if err != nil {
		return 0, false, err
	}
	for name, value := range p.Headers {
		if name == ":authority" {
			req.Host = value
			continue
		}
		req.Header.Set(name, value)
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return 0, false, err
	}
	defer res.Body.Close()
	return res.StatusCode, res.Header.Get(passedHeader) == l.passed, nil
}

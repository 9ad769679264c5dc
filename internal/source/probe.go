package source

import (
	"net/http"
	"regexp"
	"strings"

	"chandler.dev/chandler"
)

// Limits of the annotation chandler.dev/probe.
const (
	maxProbeText    = 8 << 10 // bytes
	maxProbes       = 8
	maxProbeHeaders = 32
	maxProbePath    = 2048 // bytes
	maxHeader       = 1024 // bytes of a name or value
)

var (
	probeMethod = regexp.MustCompile(`^[A-Z][A-Z-]{0,15}$`)
	headerName  = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")
)

// decodeProbes reads the annotation chandler.dev/probe: a request with what is to come
// of it, or a list of such. It is held as strictly as the resource itself, and
// mistakes are told of the annotation, with the place in it.
func decodeProbes(j *judge, p *chandler.Plugin) {
	written, ok := p.Annotations[chandler.AnnotationProbe]
	if !ok {
		return
	}
	at := (&path{}).field("metadata").field("annotations").field(chandler.AnnotationProbe)
	if len(written) > maxProbeText {
		j.problem(chandler.CodeSpecValue, at, "ask less", "%s has %d bytes, limit %d", chandler.AnnotationProbe, len(written), maxProbeText)
		return
	}
	if p.Type == chandler.Network {
		j.problem(chandler.CodeSpecValue, at, "leave it out", "probes are HTTP requests; the plugin is of type NETWORK")
		return
	}
	inner := &judge{}
	if root := grow(chunk{[]byte(written), 1}, inner); root != nil {
		p.Probes = probes(inner, root)
	}
	for _, problem := range inner.all() {
		if problem.Field != "" {
			problem.Message = problem.Field + ": " + problem.Message
		}
		j.tell(at, &problem)
	}
}

func probes(j *judge, root *node) []chandler.Probe {
	if root.kind != list {
		return []chandler.Probe{decodeProbe(j, root, &path{})}
	}
	if n := len(root.items); n == 0 || n > maxProbes {
		j.problem(chandler.CodeSpecValue, nil, "write from one to eight", "%s", chandler.Count(n, "probe", "probes"))
		return nil
	}
	var all []chandler.Probe
	for i, n := range root.items {
		all = append(all, decodeProbe(j, n, (&path{}).item(i)))
	}
	return all
}

func decodeProbe(j *judge, n *node, at *path) chandler.Probe {
	p := chandler.Probe{Method: http.MethodGet, Path: "/"}
	r := j.record(n, at, nil, "request", "expect")
	if r.node == nil {
		return p
	}
	request, requestAt := r.field("request")
	if request == nil {
		r.problem(chandler.CodeSpecRequired, requestAt, `write {"method": "GET", "path": "/"}`, "request is required")
	}
	q := r.record(request, requestAt, nil, "method", "path", "headers")
	if method, ok := q.text("method"); ok {
		if p.Method = method; !probeMethod.MatchString(method) || method == http.MethodConnect {
			r.problem(chandler.CodeSpecValue, q.at.field("method"), "write GET, POST or another method", "method %s cannot be asked with", chandler.Quote(method))
		}
	}
	if path, ok := q.text("path"); ok {
		if p.Path = path; len(path) > maxProbePath || !strings.HasPrefix(path, "/") || strings.ContainsFunc(path, func(c rune) bool { return c <= ' ' || c >= 0x7f || c == '#' }) {
			r.problem(chandler.CodeSpecValue, q.at.field("path"), "write what follows the host in a URL, escaped", "path %s is none", chandler.Quote(path))
		}
	}
	decodeProbeHeaders(q, &p)
	decodeExpect(r, &p)
	return p
}

func decodeProbeHeaders(q record, p *chandler.Probe) {
	at := q.at.field("headers")
	headers := q.stringMap("headers")
	if len(headers) > maxProbeHeaders {
		q.problem(chandler.CodeSpecValue, at, "send fewer", "%d headers, limit %d", len(headers), maxProbeHeaders)
		return
	}
	for name, value := range headers {
		switch {
		case name != ":authority" && !headerName.MatchString(name), len(name) > maxHeader:
			q.problem(chandler.CodeSpecValue, at, "write a header's name, or :authority", "%s is no name of a header", chandler.Quote(name))
		case len(value) > maxHeader || strings.ContainsFunc(value, func(c rune) bool { return c < ' ' || c >= 0x7f }):
			q.problem(chandler.CodeSpecValue, at.field(name), "write printable ASCII, at most 1024 bytes", "%s is no value of a header", chandler.Quote(value))
		}
	}
	p.Headers = headers
}

func decodeExpect(r record, p *chandler.Probe) {
	expect, at := r.field("expect")
	const hint = `write {"status": 401}, {"allowed": true} or {"allowed": false}`
	if expect == nil {
		r.problem(chandler.CodeSpecRequired, at, hint, "expect is required")
		return
	}
	e := r.record(expect, at, nil, "status", "allowed")
	if e.node == nil {
		return
	}
	if status, ok := e.integer("status", chandler.CodeSpecValue, 200, 599); ok {
		p.Status = int(status)
	}
	allowed, allowedAt := e.field("allowed")
	if allowed != nil && allowed.kind != boolean {
		r.wrongKind(allowed, allowedAt, boolean)
	} else if allowed != nil {
		yes := allowed.text == "true"
		p.Allowed = &yes
	}
	if status := e.node.get("status"); (status == nil) == (allowed == nil) {
		r.problem(chandler.CodeSpecShape, at, hint, "one of status and allowed is to be expected")
	}
}

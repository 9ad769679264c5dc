package suite

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/strict"
)

const (
	// maxFile is how large a file of tests may be, and maxBody one that it names.
	maxFile = 4 << 20
	maxBody = 16 << 20
	// What a file may hold.
	maxCases, maxSteps, maxTicks = 10_000, 1_000, 1_000
)

// Load reads a file of tests with all that it names. The error is a *strict.Error.
func Load(path string) (*File, error) {
	b, err := strict.ReadFile(path, maxFile)
	if err != nil {
		return nil, strict.Unreadable(path, err)
	}
	f, mistakes := decode(b, func(name string) ([]byte, error) {
		if !filepath.IsAbs(name) {
			name = filepath.Join(filepath.Dir(path), name)
		}
		return strict.ReadFile(name, maxBody)
	})
	if len(mistakes) > 0 {
		return nil, &strict.Error{Path: path, Mistakes: mistakes}
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, strict.Unreadable(path, err)
	}
	f.settle(dir)
	return f, nil
}

// decode reads a file of tests; what it names is read with read.
func decode(b []byte, read func(string) ([]byte, error)) (*File, []strict.Mistake) {
	f := &File{}
	mistakes := strict.Decode(b, f, read)
	if len(mistakes) == 0 && len(f.Cases)+len(f.Configure) == 0 { // a file without a value is not checked
		mistakes = []strict.Mistake{{Problem: f.Check()[0]}}
	}
	return f, mistakes
}

// settle fills in what follows from the folder that a file is in.
func (f *File) settle(dir string) {
	name := filepath.Base(dir)
	if f.Plugin.Name == "" {
		f.Plugin.Name = name
	}
	if f.Module == "" {
		f.Module = name + ".wasm"
	}
	if !filepath.IsAbs(f.Module) {
		f.Module = filepath.Join(dir, f.Module)
	}
}

// problems gathers what is wrong with a value.
type problems []chandler.Problem

func (p *problems) add(field, hint, format string, args ...any) {
	*p = append(*p, *chandler.Problemf(chandler.CodeConfValue, field, hint, format, args...))
}

// file reads what a field names, which excludes another field.
func (p *problems) file(read func(string) ([]byte, error), field, name, other string, both bool) []byte {
	switch {
	case name == "":
		return nil
	case both:
		p.add(field, "say one of them", "%s is there as well", other)
		return nil
	}
	b, err := read(name)
	if err != nil {
		p.add(field, "", "%s cannot be read: %v", chandler.Quote(name), err)
	}
	return b
}

// Check says what is wrong with the file as a whole.
func (f *File) Check() []chandler.Problem {
	var p problems
	if n := len(f.Cases) + len(f.Configure); n == 0 || n > maxCases {
		p.add("", "write configure: or cases:, see docs/authoring/test-file.md", "there are %d cases", n)
	}
	seen := map[string]bool{}
	unique := func(field, name string) {
		if seen[name] {
			p.add(field, "name each differently", "there is another %s", chandler.Quote(name))
		}
		seen[name] = true
	}
	for i := range f.Configure {
		unique(fmt.Sprintf("configure[%d].name", i), configurePrefix+f.Configure[i].Name)
	}
	for i := range f.Cases {
		unique(fmt.Sprintf("cases[%d].name", i), f.Cases[i].Name)
	}
	return p
}

// Load reads the plugin's files and says what is wrong.
func (s *Plugin) Load(read func(string) ([]byte, error)) []chandler.Problem {
	return s.load(read)
}

// load reads the file that the configuration is in.
func (s *Settings) load(read func(string) ([]byte, error)) []chandler.Problem {
	var p problems
	if b := p.file(read, "configFile", s.ConfigFile, "config", s.Config != nil); s.ConfigFile != "" {
		s.configBytes = b
		if b == nil {
			s.configBytes = []byte{}
		}
	} else if s.Config != nil {
		s.configBytes = append([]byte{}, text(s.Config)...)
	}
	return p
}

func (s *Scope) check() []chandler.Problem {
	var p problems
	for e := range s.Skip {
		if !slices.Contains(e.words(), e) {
			p.add("skip."+string(e), "one of fast, envoy", "%s is no engine", chandler.Quote(string(e)))
		}
	}
	return p
}

func (p *problems) name(name string) {
	if name == "" {
		p.add("name", "say in some words what it is about", "there is no name")
	} else if !chandler.IsPlain(name) || len(name) > 200 {
		p.add("name", "", "a name is of at most 200 characters that are to be seen")
	}
}

// Load reads the configuration's file and says what is wrong.
func (c *Configure) Load(read func(string) ([]byte, error)) []chandler.Problem {
	p := problems(append(c.load(read), c.check()...))
	p.name(c.Name)
	if c.Accepted == (c.Refused != nil) {
		p.add("", "write accepted: true, or refused: REGEX", "it has to say whether the plugin takes the configuration")
	}
	return p
}

// Load reads the case's files and says what is wrong.
func (c *Case) Load(read func(string) ([]byte, error)) []chandler.Problem {
	p := problems(append(c.load(read), c.check()...))
	p.name(c.Name)
	switch alone := c.Step.written(); {
	case len(c.Steps) > maxSteps:
		p.add("steps", "", "there are %d steps; at most %d", len(c.Steps), maxSteps)
	case alone && c.Steps != nil:
		p.add("steps", "move them into a step", "beside steps the case has a request, ticks or expectations of its own")
	case !alone && len(c.Steps) == 0:
		p.add("", "write request: or steps:", "the case does nothing")
	case alone:
		p = append(p, c.Step.problems()...)
	}
	return p
}

func (s *Step) written() bool {
	return s.Ticks != 0 || s.Request != nil || s.Upstream != nil || s.Calls != nil || s.Properties != nil || !s.Expect.empty()
}

// Check says what is wrong with a step.
func (s *Step) Check() []chandler.Problem { return s.problems() }

func (s *Step) problems() []chandler.Problem {
	var p problems
	switch {
	case s.Ticks < 0 || s.Ticks > maxTicks:
		p.add("ticks", "", "from 0 to %d", maxTicks)
	case s.Request == nil && s.Ticks == 0:
		p.add("", "write request:, or ticks:", "the step does nothing")
	case s.Request == nil && s.Expect.response():
		p.add("expect", "write request:", "without a request there is no response")
	case s.Request == nil && s.Upstream != nil:
		p.add("upstream", "write request:", "without a request the upstream is not asked")
	}
	return p
}

// empty tells whether nothing is expected that is not expected of every step.
func (e *Expect) empty() bool {
	return !e.response() && e.Calls == nil && e.Logs == nil && e.Metrics == nil && !e.Trap.Expected
}

// response tells whether something is expected of a response.
func (e *Expect) response() bool {
	return e.Status != 0 || e.Headers != nil || e.Only != nil || e.Body != nil || e.Trailers != nil ||
		e.Upstream != nil || e.Details != nil || e.Reset || e.Cut
}

// Check says what is wrong with what is expected.
func (e *Expect) Check() []chandler.Problem {
	var p problems
	if e.Reset && (e.Status != 0 || e.Headers != nil || e.Body != nil) {
		p.add("reset", "", "a stream that is reset has no response")
	}
	if e.Status != 0 {
		p.status(e.Status)
	}
	return p
}

func (p *problems) status(n int) {
	if n < 200 || n > 599 {
		p.add("status", "from 200 to 599", "%d is no status of a response", n)
	}
}

// load reads the body's file and says what is wrong.
func (c *Content) load(read func(string) ([]byte, error)) []chandler.Problem {
	var p problems
	c.body = p.file(read, "bodyFile", c.BodyFile, "body", c.Body != nil)
	if c.Body != nil {
		c.body = text(c.Body)
	}
	if c.Chunks.Count < 0 || slices.ContainsFunc(c.Chunks.Sizes, func(n int) bool { return n <= 0 }) {
		p.add("chunks", "write a number of pieces, or a list of their sizes", "no piece has less than a byte")
	}
	p = append(p, c.Trailers.problems("trailers")...)
	return p
}

func (h Headers) problems(field string) []chandler.Problem {
	var p problems
	for name, values := range h {
		if hint, pseudo := map[string]string{":method": "method", ":path": "path", ":authority": "authority", "host": "authority", ":scheme": "scheme", ":status": "status"}[strings.ToLower(name)]; pseudo {
			p.add(field+"."+name, "write "+hint+": beside headers", "it is no header")
			continue
		}
		switch strings.ToLower(name) {
		case "content-length", "transfer-encoding", "connection":
			p.add(field+"."+name, "write chunked: to say how the body is sent", "the engine sets it")
		}
		if !token(name) || slices.ContainsFunc(values, func(v strict.Text) bool { return strings.ContainsAny(string(v), "\r\n\x00") }) {
			p.add(field+"."+name, "", "no header can be like this")
		}
	}
	return p
}

// token tells whether a name can be that of a header.
func token(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r)
	})
}

// Load reads the request's file and says what is wrong.
func (r *Request) Load(read func(string) ([]byte, error)) []chandler.Problem {
	p := problems(append(r.load(read), r.Headers.problems("headers")...))
	if r.Method != "" && !token(r.Method) {
		p.add("method", "", "%s is no method", chandler.Quote(r.Method))
	}
	if r.Path != "" && (!strings.HasPrefix(r.Path, "/") && r.Path != "*" || strings.ContainsFunc(r.Path, func(c rune) bool { return c <= ' ' || c == 0x7f })) {
		p.add("path", "write it as it is sent, percent-encoded", "%s is no path", chandler.Quote(r.Path))
	}
	if strings.ContainsFunc(r.Authority, func(c rune) bool { return c <= ' ' || c == 0x7f }) {
		p.add("authority", "", "%s is no host", chandler.Quote(r.Authority))
	}
	if r.Scheme != "" && r.Scheme != "http" && r.Scheme != "https" {
		p.add("scheme", "one of http, https", "%s is not known here", chandler.Quote(r.Scheme))
	}
	return p
}

// Load reads the answer's file and says what is wrong.
func (u *Upstream) Load(read func(string) ([]byte, error)) []chandler.Problem {
	p := problems(append(u.load(read), u.Headers.problems("headers")...))
	if u.Status != 0 {
		p.status(u.Status)
	}
	return p
}

// Check says what is wrong with an answer.
func (a *Answer) Check() []chandler.Problem {
	p := problems(a.Headers.problems("headers"))
	if a.Cluster == "" {
		p.add("cluster", "write the name that the plugin calls", "there is none")
	}
	if a.Status != 0 {
		p.status(a.Status)
	}
	if a.Fails && (a.Status != 0 || a.Body != nil || a.Headers != nil) {
		p.add("fails", "", "a call that fails has no answer")
	}
	if a.Times < 0 || a.Delay < 0 {
		p.add("", "", "times and delay are not less than nothing")
	}
	return p
}

// Check says what is wrong with an expected call.
func (c *Called) Check() []chandler.Problem {
	var p problems
	if c.Cluster == "" {
		p.add("cluster", "write the name that the plugin calls", "there is none")
	}
	if c.Times < 0 {
		p.add("times", "", "not less than nothing")
	}
	return p
}

// Load reads the file with the body.
func (m *BodyMatch) Load(read func(string) ([]byte, error)) []chandler.Problem {
	var p problems
	m.file = p.file(read, "file", m.File, "is", m.Is != nil)
	return p
}

// Check says what is wrong with what is expected of a line.
func (m *LogMatch) Check() []chandler.Problem {
	var p problems
	if m.Contains == nil && m.Matches == nil {
		p.add("", "write contains: or matches:", "it is of any line")
	}
	return p
}

// Check says what is wrong with what is expected of a text.
func (m *Match) Check() []chandler.Problem {
	var p problems
	if m.Absent == (m.Is != nil || m.Contains != nil || m.Matches != nil) {
		p.add("", "write a value, {contains: ...}, {matches: ...} or {absent: true}", "it has to say what is expected")
	}
	return p
}

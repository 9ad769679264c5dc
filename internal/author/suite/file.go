// Package suite is the declarative tests of a plugin: the file that they stand in
// (chandler.test.yaml), what it expects of an engine's outcomes, and the runner that
// has every case run and says what differs.
//
// It knows engines by their seam (package exchange) only.
package suite

import (
	"time"

	yaml "go.yaml.in/yaml/v3"

	"chandler.dev/chandler/internal/strict"
)

// FileName is what the file is called unless somebody says otherwise.
const FileName = "chandler.test.yaml"

// The tags of a field: yaml is its key, doc explains it, in the schema and in the
// reference (docs/authoring/test-file.md).

// File is a file of tests.
type File struct {
	Module    string      `yaml:"module" doc:"Path of the module, from the file's folder. Default: the folder's name with .wasm, which is what chandler build writes."`
	Plugin    Plugin      `yaml:"plugin" doc:"How the plugin is set up."`
	Now       *Time       `yaml:"now" doc:"The clock that the plugin sees stands still at this time. Cases with a clock run on the fast engine only: Envoy has none but the machine's."`
	Limits    Limits      `yaml:"limits" doc:"What the plugin may take."`
	Defaults  Defaults    `yaml:"defaults" doc:"What all requests and answers have unless they say otherwise."`
	Configure []Configure `yaml:"configure" doc:"Configurations, and whether the plugin takes them."`
	Cases     []Case      `yaml:"cases" doc:"Requests, and what is to become of them. Each case has a VM of its own."`
}

// Plugin is how the plugin is set up.
type Plugin struct {
	Name     string `yaml:"name" doc:"Its name. Default: the folder's."`
	VMID     string `yaml:"vmID" doc:"The id of its VM. Default: the name. Engines may add to it, to keep cases apart."`
	Settings `yaml:",inline"`
}

// Settings are what a case may say otherwise than the file.
type Settings struct {
	Config       *strict.JSON           `yaml:"config" doc:"The configuration: an object, which the plugin gets as JSON, or text, which it gets as it is. Without it there is none, which is not the same as {} or empty text."`
	ConfigFile   string                 `yaml:"configFile" doc:"A file with the configuration instead."`
	VMConfig     *strict.JSON           `yaml:"vmConfig" doc:"The configuration of the VM, likewise."`
	RootID       *string                `yaml:"rootID" doc:"The root id, for plugins that ask for one."`
	Env          map[string]strict.Text `yaml:"env" doc:"Environment variables."`
	FailStrategy FailStrategy           `yaml:"failStrategy" doc:"FAIL_CLOSE (the default) or FAIL_OPEN: what becomes of requests when the plugin traps."`
	Clusters     []string               `yaml:"clusters" doc:"Clusters that call-outs may go to, beside those that calls name."`

	configBytes []byte // what Config or ConfigFile give; nil: none
}

// Limits are what a plugin may take.
type Limits struct {
	Memory   Size          `yaml:"memory" doc:"Its memory, such as 64MiB. Envoy does not bound it. Default: 128MiB."`
	Deadline time.Duration `yaml:"deadline" doc:"How long one callback may take, such as 100ms. Envoy does not bound it: a case in which a callback comes to no end is given up there after some seconds. Default: 5s."`
}

// Defaults are what requests and answers have unless they say otherwise.
type Defaults struct {
	Request  Request  `yaml:"request" doc:"For requests. Headers are merged by name."`
	Upstream Upstream `yaml:"upstream" doc:"For the upstream's answers. Headers are merged by name."`
}

// Scope is where something runs.
type Scope struct {
	Engines []EngineName          `yaml:"engines" doc:"The only engines that it runs on: fast, envoy. Default: all."`
	Skip    map[EngineName]string `yaml:"skip" doc:"Engines that it does not run on, each with the reason, such as {envoy: the clock cannot be set}."`
}

// Configure is a configuration, and whether the plugin takes it.
type Configure struct {
	Name     string `yaml:"name" doc:"What it is about. Required."`
	Settings `yaml:",inline"`
	Scope    `yaml:",inline"`
	Now      *Time    `yaml:"now" doc:"The clock, as for the file."`
	Accepted bool     `yaml:"accepted" doc:"true: the plugin takes it. Either this or refused."`
	Refused  *Pattern `yaml:"refused" doc:"The plugin refuses it, and a line that it logs, or the host's reason, matches this regular expression."`
	Logs     *Logs    `yaml:"logs" doc:"What it logs meanwhile."`
}

// Case is a plugin's life: one step, or several on one VM.
type Case struct {
	Name     string `yaml:"name" doc:"What it is about. Required, and different from the others."`
	Settings `yaml:",inline"`
	Scope    `yaml:",inline"`
	Now      *Time `yaml:"now" doc:"The clock, as for the file."`
	Step     `yaml:",inline"`
	Steps    []Step `yaml:"steps" doc:"Several steps one after the other on the same VM, instead of the one that stands in the case itself."`
}

// Step is a request with what stands around it, and what is to become of it.
type Step struct {
	Ticks      int                    `yaml:"ticks" doc:"How many ticks of the plugin's timer pass, at least, before the request."`
	Request    *Request               `yaml:"request" doc:"The request. Short: its path, or method and path, such as POST /login. A step may have only ticks."`
	Upstream   *Upstream              `yaml:"upstream" doc:"What the upstream answers once it has the whole request. Short: its status. Default: 200 with nothing in it."`
	Calls      []Answer               `yaml:"calls" doc:"What call-outs get: each the first of these that fits it and is not used up. A call that none fits fails."`
	Properties map[string]strict.Text `yaml:"properties" doc:"Properties for the plugin to read, by their paths with dots. Envoy has its own: only the fast engine can set them."`
	Expect     Expect                 `yaml:"expect" doc:"What is to come of it. Short: the status."`
}

// Content is the body of a message.
type Content struct {
	Body     *strict.JSON `yaml:"body" doc:"The body: text as it is; an object or a list is sent as JSON."`
	BodyFile string       `yaml:"bodyFile" doc:"A file with the body instead."`
	Chunks   Chunks       `yaml:"chunks" doc:"How the body arrives: a number of equal pieces, or a list of their sizes in bytes; what is left over comes last. Default: in one piece."`
	Chunked  *bool        `yaml:"chunked" doc:"true: the length is not said beforehand (no content-length)."`
	Trailers Headers      `yaml:"trailers" doc:"Trailers; they make the message chunked."`

	body []byte // what Body or BodyFile give
}

// Request is what a client sends.
type Request struct {
	Method    string  `yaml:"method" doc:"Default: GET, or POST with a body."`
	Authority string  `yaml:"authority" doc:"The host, with or without a port. Default: test.example."`
	Path      string  `yaml:"path" doc:"The path with its query. Default: /."`
	Scheme    string  `yaml:"scheme" doc:"http (the default) or https."`
	Headers   Headers `yaml:"headers" doc:"Headers: a value or a list of values each."`
	Content   `yaml:",inline"`
}

// Upstream is what the upstream answers.
type Upstream struct {
	Status  int     `yaml:"status" doc:"Default: 200."`
	Headers Headers `yaml:"headers" doc:"Headers: a value or a list of values each."`
	Content `yaml:",inline"`
}

// Answer is what a call-out gets.
type Answer struct {
	Cluster string        `yaml:"cluster" doc:"The cluster that is called. Required."`
	Method  string        `yaml:"method" doc:"Only calls with this method."`
	Path    string        `yaml:"path" doc:"Only calls of this path; * stands for anything."`
	Status  int           `yaml:"status" doc:"Default: 200."`
	Headers Headers       `yaml:"headers" doc:"Headers: a value or a list of values each."`
	Body    *strict.JSON  `yaml:"body" doc:"The body, as of a request."`
	Delay   time.Duration `yaml:"delay" doc:"How long the answer takes, such as 50ms."`
	Fails   bool          `yaml:"fails" doc:"true: there is no answer, and the plugin hears of a failure."`
	Times   int           `yaml:"times" doc:"How often it is given. Default: without end."`
}

// Expect is what is to come of a step. What is not said is not looked at, but for
// traps, resets and bodies that are cut, none of which there may be unless they are
// expected.
type Expect struct {
	Status   int               `yaml:"status" doc:"The status that the client gets."`
	Headers  map[string]Match  `yaml:"headers" doc:"The response's headers by name: a value, a list of values, or {is, contains, matches, absent}."`
	Only     []string          `yaml:"onlyHeaders" doc:"The response has no other headers than these (content-length and date apart)."`
	Body     *BodyMatch        `yaml:"body" doc:"The response's body: the text itself, or {is, contains, matches, json, file}."`
	Trailers map[string]Match  `yaml:"trailers" doc:"The response's trailers, as headers."`
	Upstream *Reached          `yaml:"upstream" doc:"The request as the upstream got it: reached, notReached, or {method, path, authority, headers, onlyHeaders, body, trailers}, which says that it was."`
	Calls    *[]Called         `yaml:"calls" doc:"The call-outs that were made, these and no others, in this order; [] for none."`
	Logs     *Logs             `yaml:"logs" doc:"What the plugin logged: lines that must be there, or {has, absent}."`
	Metrics  map[string]Amount `yaml:"metrics" doc:"Metrics that the plugin defined, by name: a number, or a comparison such as \">= 2\"."`
	Details  *Match            `yaml:"details" doc:"The response code details of a response that the plugin made; blanks count as underscores, which is how Envoy writes them."`
	Trap     Trap              `yaml:"trap" doc:"true: the VM fails; or a regular expression that says how. Default: false."`
	Reset    bool              `yaml:"reset" doc:"true: the client gets no response, its stream is reset. Default: false."`
	Cut      bool              `yaml:"cut" doc:"true: the response's body is not as long as its content-length says, as when a plugin rewrites a body and leaves the header. Default: false."`
}

// Match is what is expected of a text.
type Match struct {
	Is       Values   `yaml:"is" doc:"Exactly this; of a header with several values, a list."`
	Contains Values   `yaml:"contains" doc:"This is in it; of a list, each."`
	Matches  *Pattern `yaml:"matches" doc:"This regular expression (RE2) matches somewhere in it."`
	Absent   bool     `yaml:"absent" doc:"true: it is not there."`
}

// BodyMatch is what is expected of a body.
type BodyMatch struct {
	Is       *strict.Text `yaml:"is" doc:"Exactly this; \"\" for no body."`
	Contains Values       `yaml:"contains" doc:"This is in it; of a list, each."`
	Matches  *Pattern     `yaml:"matches" doc:"This regular expression (RE2) matches somewhere in it."`
	JSON     *strict.JSON `yaml:"json" doc:"It is JSON, and means this: the order of names and blanks do not count."`
	File     string       `yaml:"file" doc:"Exactly what is in this file."`

	file []byte // its content
}

// Reached is what is expected of the request at the upstream.
type Reached struct {
	Word      ReachedWord      `yaml:"-"`
	Method    string           `yaml:"method" doc:"Its method."`
	Path      *Match           `yaml:"path" doc:"Its path: text, or {is, contains, matches}."`
	Authority *Match           `yaml:"authority" doc:"Its host, likewise."`
	Headers   map[string]Match `yaml:"headers" doc:"Its headers, as of a response."`
	Only      []string         `yaml:"onlyHeaders" doc:"It has no other headers than these (content-length and those that begin with a colon apart)."`
	Body      *BodyMatch       `yaml:"body" doc:"Its body, as of a response."`
	Trailers  map[string]Match `yaml:"trailers" doc:"Its trailers."`
}

// Called is what is expected of a call-out.
type Called struct {
	Cluster   string           `yaml:"cluster" doc:"The cluster. Required."`
	Method    string           `yaml:"method" doc:"Its method."`
	Path      *Match           `yaml:"path" doc:"Its path: text, or {is, contains, matches}."`
	Authority *Match           `yaml:"authority" doc:"Its host, likewise."`
	Headers   map[string]Match `yaml:"headers" doc:"Its headers, as of a response."`
	Body      *BodyMatch       `yaml:"body" doc:"Its body, as of a response."`
	Times     int              `yaml:"times" doc:"So many such calls one after the other. Default: 1."`
}

// Logs are what is expected of a plugin's log.
type Logs struct {
	Has    []LogMatch `yaml:"has" doc:"For each of these there is a line."`
	Absent []LogMatch `yaml:"absent" doc:"For none of these there is one."`
}

// LogMatch is what is expected of a line.
type LogMatch struct {
	Contains Values   `yaml:"contains" doc:"This is in it; of a list, each."`
	Matches  *Pattern `yaml:"matches" doc:"This regular expression (RE2) matches somewhere in it."`
	Level    LogLevel `yaml:"level" doc:"Its level: trace, debug, info, warn, error or critical."`
}

// What may be written in a short form.

// Form implements strict.Former.
func (r *Request) Form(kind yaml.Kind) any {
	switch kind {
	case yaml.ScalarNode:
		return (*requestLine)(r)
	case yaml.MappingNode:
		type object Request
		return (*object)(r)
	}
	return nil
}

// Form implements strict.Former.
func (u *Upstream) Form(kind yaml.Kind) any {
	switch kind {
	case yaml.ScalarNode:
		return &u.Status
	case yaml.MappingNode:
		type object Upstream
		return (*object)(u)
	}
	return nil
}

// Form implements strict.Former.
func (e *Expect) Form(kind yaml.Kind) any {
	switch kind {
	case yaml.ScalarNode:
		return &e.Status
	case yaml.MappingNode:
		type object Expect
		return (*object)(e)
	}
	return nil
}

// Form implements strict.Former.
func (m *Match) Form(kind yaml.Kind) any {
	if kind == yaml.MappingNode {
		type object Match
		return (*object)(m)
	}
	return m.Is.Form(kind)
}

// Form implements strict.Former.
func (m *BodyMatch) Form(kind yaml.Kind) any {
	switch kind {
	case yaml.ScalarNode:
		m.Is = new(strict.Text)
		return m.Is
	case yaml.MappingNode:
		type object BodyMatch
		return (*object)(m)
	}
	return nil
}

// Form implements strict.Former.
func (r *Reached) Form(kind yaml.Kind) any {
	switch kind {
	case yaml.ScalarNode:
		return &r.Word
	case yaml.MappingNode:
		type object Reached
		return (*object)(r)
	}
	return nil
}

// Form implements strict.Former.
func (l *Logs) Form(kind yaml.Kind) any {
	switch kind {
	case yaml.ScalarNode:
		l.Has = make([]LogMatch, 1)
		return &l.Has[0]
	case yaml.SequenceNode:
		return &l.Has
	case yaml.MappingNode:
		type object Logs
		return (*object)(l)
	}
	return nil
}

// Form implements strict.Former.
func (m *LogMatch) Form(kind yaml.Kind) any {
	switch kind {
	case yaml.ScalarNode:
		return m.Contains.Form(kind)
	case yaml.MappingNode:
		type object LogMatch
		return (*object)(m)
	}
	return nil
}

// Headers are fields by name.
type Headers map[string]Values

// Values are one or several texts.
type Values []strict.Text

// Form implements strict.Former.
func (v *Values) Form(kind yaml.Kind) any {
	switch kind {
	case yaml.ScalarNode:
		*v = make(Values, 1)
		return &(*v)[0]
	case yaml.SequenceNode:
		return (*[]strict.Text)(v)
	}
	return nil
}

// Chunks are how a body is cut.
type Chunks struct {
	Count int
	Sizes []int
}

// Form implements strict.Former.
func (c *Chunks) Form(kind yaml.Kind) any {
	switch kind {
	case yaml.ScalarNode:
		return &c.Count
	case yaml.SequenceNode:
		return &c.Sizes
	}
	return nil
}

// Trap is whether the VM is to fail, and how.
type Trap struct {
	Expected bool
	How      *Pattern
}

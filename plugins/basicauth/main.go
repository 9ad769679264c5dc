// Command basicauth is a Proxy-Wasm plugin that asks for HTTP Basic credentials.
// It is the thin shell: it hands Envoy's configuration and request headers to
// package rules and carries out what that decides. Built for wasip1 it is a
// module for a proxy; as an ordinary program it does nothing.
package main

import (
	"errors"

	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm"
	"github.com/proxy-wasm/proxy-wasm-go-sdk/proxywasm/types"

	"chandler.dev/chandler/plugins/basicauth/rules"
)

// A proxy never calls main: it initialises the module and then calls its exports.
func main() {}

func init() { proxywasm.SetVMContext(&vm{}) }

type vm struct{ types.DefaultVMContext }

func (*vm) NewPluginContext(uint32) types.PluginContext {
	return &plugin{rules: &rules.Rules{}}
}

// plugin is one configured use of the module; a VM may hold several.
type plugin struct {
	types.DefaultPluginContext
	rules *rules.Rules
}

// OnPluginStart replaces the rules by those of the new configuration. One that
// is refused changes nothing and leaves its reason in the proxy's log.
func (p *plugin) OnPluginStart(size int) types.OnPluginStartStatus {
	r, err := configured(size)
	if err != nil {
		proxywasm.LogError("basicauth: configuration refused: " + err.Error())
		return types.OnPluginStartStatusFailed
	}
	p.rules = r
	return types.OnPluginStartStatusOK
}

func configured(size int) (*rules.Rules, error) {
	if size == 0 { // then some hosts answer "not found" to the question for it
		return rules.Parse(nil)
	}
	configuration, err := proxywasm.GetPluginConfiguration()
	if err != nil {
		return nil, err
	}
	return rules.Parse(configuration)
}

func (p *plugin) NewHttpContext(uint32) types.HttpContext {
	return &request{rules: p.rules}
}

// request is judged by the rules in force when it began.
type request struct {
	types.DefaultHttpContext
	rules *rules.Rules
}

func (r *request) OnHttpRequestHeaders(int, bool) types.Action {
	var read reader
	decision := r.rules.Decide(read.header(":method"), read.header(":authority"), read.header(":path"), read.header("authorization"))
	switch {
	case read.err != nil: // never let pass what could not be judged
		return answer(500, "request headers cannot be read: "+read.err.Error(), nil)
	case decision != rules.Pass:
		return answer(401, string(decision), [][2]string{{"WWW-Authenticate", r.rules.Challenge()}})
	}
	return types.ActionContinue
}

// reader reads headers and keeps the first error. An absent header is empty.
type reader struct{ err error }

func (r *reader) header(name string) string {
	value, err := proxywasm.GetHttpRequestHeader(name)
	if err != nil && !errors.Is(err, types.ErrorStatusNotFound) && r.err == nil {
		r.err = err
	}
	return value
}

// answer replies in the upstream's stead, with an empty body. The details are
// for the access log. The request stays paused even if the reply fails.
func answer(status uint32, details string, headers [][2]string) types.Action {
	if err := localResponse(status, details, headers); err != nil {
		proxywasm.LogError("basicauth: no answer sent: " + err.Error())
	}
	return types.ActionPause
}

package sandbox_test

import (
	"strings"
	"testing"
	"time"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/sandbox"
	"chandler.dev/chandler/internal/testenv/module"
)

// A probe is asked of a live Envoy: what is to be denied is, and what is to be
// allowed comes through.
func TestProbe(t *testing.T) {
	t.Parallel()
	s, endless := open(t, sandbox.Config{}), open(t, sandbox.Config{Time: 10 * time.Second})
	yes, no := true, false
	ask := func(p chandler.Probe) chandler.Probe {
		p.Method, p.Path = "GET", "/productpage?a=b"
		return p
	}
	probed := func(c sandbox.Case, probes ...chandler.Probe) sandbox.Case {
		c.Probes = probes
		return c
	}
	adds, deny := plugin(t, module.Append(), "a"), plugin(t, module.Deny(403), "")
	script := luaCase(t, `function envoy_on_request(h)
		if h:headers():get("x-who") ~= "me" then h:respond({[":status"] = "401"}, "") end
	end`)
	for name, c := range map[string]struct {
		sandbox.Case
		code chandler.Code
		text string
	}{
		"allowed":             {probed(adds, ask(chandler.Probe{Allowed: &yes}), ask(chandler.Probe{Status: 200})), "", ""},
		"denied":              {probed(deny, ask(chandler.Probe{Status: 403}), ask(chandler.Probe{Allowed: &no})), "", ""},
		"a hole":              {probed(adds, ask(chandler.Probe{Status: 401})), chandler.CodeProbeFailed, `probe 1: GET "/productpage?a=b" is to be answered 401; Envoy ` + s.Version() + ` answered 200, it was allowed`},
		"a hole, second":      {probed(adds, ask(chandler.Probe{Allowed: &yes}), ask(chandler.Probe{Allowed: &no})), chandler.CodeProbeFailed, "probe 2: "},
		"denies too much":     {probed(deny, ask(chandler.Probe{Allowed: &yes})), chandler.CodeProbeFailed, "is to be allowed; Envoy " + s.Version() + " answered 403, it was denied"},
		"traps":               {probed(plugin(t, module.TrapRequest(), ""), ask(chandler.Probe{Allowed: &yes})), chandler.CodeProbeFailed, "answered 503, it was denied"},
		"does not load":       {probed(plugin(t, module.RefuseConfigure("no thanks"), ""), ask(chandler.Probe{Allowed: &yes})), chandler.CodeWasmConfigure, "refuses it: no thanks"},
		"comes to no end":     {probed(plugin(t, module.LoopConfigure(), ""), ask(chandler.Probe{Allowed: &yes})), chandler.CodeWasmTimeout, "within 10s"},
		"Lua, denied":         {probed(script, ask(chandler.Probe{Status: 401}), ask(chandler.Probe{Allowed: &yes, Headers: map[string]string{"x-who": "me"}})), "", ""},
		"Lua, does not parse": {probed(luaCase(t, "function function"), ask(chandler.Probe{Allowed: &yes})), chandler.CodeLuaSyntax, "script load error"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			judge := s
			if c.code == chandler.CodeWasmTimeout {
				judge = endless
			}
			p, err := judge.Judge(t.Context(), c.Case)
			if err != nil || code(p) != c.code || p != nil && !strings.Contains(p.Message, c.text) {
				t.Errorf("it says %+v, %v", p, err)
			}
		})
	}
}

func luaCase(t *testing.T, text string) sandbox.Case {
	c := plugin(t, nil, "")
	c.Attachment.Program = chandler.Program{Lua: &chandler.Lua{InlineCode: text}}
	return c
}

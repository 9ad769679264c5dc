// Package argocd_test runs the health check as Argo CD does: a Lua function body
// with the resource in obj, and a table as its answer.
package argocd_test

import (
	"os"
	"strings"
	"testing"

	lua "github.com/yuin/gopher-lua"
	yaml "go.yaml.in/yaml/v3"
)

// checks gives the scripts of both kinds.
func checks(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("health.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var patch struct{ Data map[string]string }
	if err := yaml.Unmarshal(text, &patch); err != nil {
		t.Fatal(err)
	}
	scripts := map[string]string{}
	for key, script := range patch.Data {
		kind, ok := strings.CutPrefix(key, "resource.customizations.health.extensions.istio.io_")
		if !ok {
			t.Errorf("Argo CD does not read %s", key)
		}
		scripts[kind] = script
	}
	if len(scripts) != 2 || scripts["WasmPlugin"] == "" || scripts["TrafficExtension"] == "" {
		t.Fatalf("scripts of %d kinds", len(scripts))
	}
	return scripts
}

// judge runs a script on an object and gives status and message.
func judge(t *testing.T, script, object string) (status, message string) {
	t.Helper()
	var obj any
	if err := yaml.Unmarshal([]byte(object), &obj); err != nil {
		t.Fatal(err)
	}
	// What Argo CD opens for a script; there is no os and no io.
	l := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer l.Close()
	for name, open := range map[string]lua.LGFunction{lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable, lua.StringLibName: lua.OpenString} {
		if err := l.CallByParam(lua.P{Fn: l.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			t.Fatal(err)
		}
	}
	l.SetGlobal("obj", value(l, obj))
	if err := l.DoString(script); err != nil {
		t.Fatal(err)
	}
	answer, ok := l.Get(-1).(*lua.LTable)
	if !ok {
		t.Fatalf("the script gives %s", l.Get(-1).Type())
	}
	return answer.RawGetString("status").String(), answer.RawGetString("message").String()
}

func value(l *lua.LState, v any) lua.LValue {
	switch v := v.(type) {
	case map[string]any:
		table := l.NewTable()
		for name, item := range v {
			table.RawSetString(name, value(l, item))
		}
		return table
	case []any:
		table := l.NewTable()
		for _, item := range v {
			table.Append(value(l, item))
		}
		return table
	case string:
		return lua.LString(v)
	case int:
		return lua.LNumber(v)
	case bool:
		return lua.LBool(v)
	}
	return lua.LNil
}

func TestHealth(t *testing.T) {
	const ours = "metadata: {name: a, generation: 3, labels: {istio.io/rev: chandler}}\n"
	ready := func(status, reason, observed string) string {
		return ours + "status: {observedGeneration: " + observed + ", conditions: [{type: Accepted, status: 'True', reason: Accepted, observedGeneration: 1}, {type: Ready, status: '" +
			status + "', reason: " + reason + ", message: why, observedGeneration: " + observed + "}]}\n"
	}
	for _, c := range []struct{ name, object, status, message string }{
		{"in force", ready("True", "Ready", "3"), "Healthy", "why"},
		{"in force, generation as text", ready("True", "Ready", "'3'"), "Healthy", "why"},
		{"on its way", ready("False", "Progressing", "3"), "Progressing", "why"},
		{"in steps", ready("False", "RolloutProgressing", "3"), "Progressing", "why"},
		{"a rollout that waits", ready("False", "RolloutPaused", "3"), "Suspended", "why"},
		{"pinned", ready("False", "Pinned", "3"), "Suspended", "why"},
		{"taken back", ready("False", "RolloutFailed", "3"), "Degraded", "why"},
		{"being resolved", ready("False", "Resolving", "3"), "Progressing", "why"},
		{"no such tag", ready("False", "NotFound", "3"), "Degraded", "NotFound: why"},
		{"Envoy refuses it", ready("False", "Rejected", "3"), "Degraded", "Rejected: why"},
		{"faults while serving", ready("False", "VMTrap", "3"), "Degraded", "VMTrap: why"},
		{"no proxy", ready("Unknown", "NoProxies", "3"), "Progressing", "why"},
		{"the generation before was in force", ready("True", "Ready", "2"), "Progressing", "the change"},
		{"the generation before failed", ready("False", "NotFound", "2"), "Progressing", "the change"},
		{"no status yet", ours, "Progressing", "not looked at it"},
		{"no conditions yet", ours + "status: {observedGeneration: 3}\n", "Progressing", "not looked at it"},
		{"istiod's, unlabelled", "metadata: {name: a, generation: 1}\n", "Healthy", "Istio"},
		{"istiod's, of a revision", "metadata: {name: a, generation: 1, labels: {istio.io/rev: canary}}\n", "Healthy", "Istio"},
		{"unlabelled and ours", strings.Replace(ready("False", "NotFound", "3"), ", labels: {istio.io/rev: chandler}", "", 1), "Degraded", "NotFound"},
	} {
		for kind, script := range checks(t) {
			status, message := judge(t, script, c.object)
			if status != c.status || !strings.Contains(message, c.message) {
				t.Errorf("%s, %s: %s %q, want %s %q", kind, c.name, status, message, c.status, c.message)
			}
		}
	}
	// Where chandler runs alone.
	alone := strings.Replace(checks(t)["WasmPlugin"], "local unlabelled = false", "local unlabelled = true", 1)
	if status, _ := judge(t, alone, "metadata: {name: a, generation: 1}\n"); status != "Progressing" {
		t.Errorf("unlabelled where chandler is alone: %s", status)
	}
}

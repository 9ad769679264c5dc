package control_test

import (
	"strings"
	"testing"

	"chandler.dev/chandler"
	"chandler.dev/chandler/internal/testenv/module"
)

// A waypoint gets nothing, and the status of who means it says so, with the field; what is
// found on a proxy that nobody bounds counts as what it claims.
func TestWaypointsGetNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.set("auth:v1", module.Append())
	r.apply("by-selector", "oci://reg.example/auth:v1", func(p *chandler.Plugin) { p.Selector = map[string]string{"app": "w"} })
	r.apply("by-target", "oci://reg.example/auth:v1", func(p *chandler.Plugin) {
		p.TargetRefs = []chandler.TargetRef{{Group: "gateway.networking.k8s.io", Kind: "Gateway", Name: "w"}}
	})
	w := r.join(chandler.Node{Namespace: "istio-system", Name: "w-1", Found: map[string]string{
		"app": "w", "gateway.networking.k8s.io/gateway-name": "w", "gateway.istio.io/managed": "istio.io-mesh-controller"}})
	for name, field := range map[string]string{"by-selector": "spec.selector", "by-target": "spec.targetRefs[0]"} {
		r.await(name, chandler.ConditionProgrammed, "False UnsupportedTarget")
		s := r.status(name)
		if len(s.Warnings) != 1 || s.Warnings[0].Field != field || !strings.Contains(s.Warnings[0].Message, "istio-system/w-1 is a waypoint") {
			t.Errorf("%s: %+v", name, s.Warnings)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.attached) > 0 {
		t.Errorf("it has %v", w.attached)
	}
}

package kube

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"chandler.dev/chandler"
)

// A single change is told at once, and a burst as one, in time.
func TestBursts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newReader(Source{})
		began := time.Now()
		s.changed()
		if !s.await(t.Context()) || time.Since(began) > 5*time.Millisecond {
			t.Errorf("a change is told after %s", time.Since(began))
		}
		stop := make(chan struct{})
		go func() {
			for {
				s.changed()
				select {
				case <-stop:
					return
				case <-time.After(time.Millisecond):
				}
			}
		}()
		synctest.Wait()
		for range 3 {
			began = time.Now()
			if !s.await(t.Context()) || time.Since(began) < maxSettling-settled || time.Since(began) > maxSettling+settled {
				t.Errorf("of changes without end, something is told after %s", time.Since(began))
			}
		}
		close(stop)
	})
}

func resource(uid string, generation int64, spec map[string]any) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": chandler.APIVersion, "kind": chandler.KindWasmPlugin,
		"metadata": map[string]any{"name": "p", "namespace": "ns", "uid": uid, "generation": generation, "resourceVersion": "7", "managedFields": []any{}},
		"spec":     spec, "status": map[string]any{"nobody": "reads it"},
	}}
}

// What an object says is judged as in a file, beside the last valid text.
func TestJudge(t *testing.T) {
	t.Parallel()
	good := judge(chandler.KindWasmPlugin, resource("u", 1, map[string]any{"url": "reg.example/p:v1", "pluginConfig": map[string]any{"n": int64(1) << 60}}), nil)
	if o := good.object; len(o.Problems) > 0 || len(o.Warnings) > 0 || o.Plugin == nil || o.Plugin.UID != "u" || o.Plugin.Generation != 1 ||
		string(o.Plugin.Wasm.Config) != `{"n":1152921504606846976}` || !strings.Contains(string(o.Manifest), "\nspec:\n") || strings.Contains(string(o.Manifest), "status") {
		t.Errorf("%+v", o)
	}
	again := resource("u", 1, map[string]any{"url": "reg.example/p:v1", "pluginConfig": map[string]any{"n": int64(1) << 60}})
	again.Object["status"] = map[string]any{"conditions": []any{}}
	again.SetResourceVersion("8")
	if judge(chandler.KindWasmPlugin, again, good) != good {
		t.Error("another status is another object")
	}
	bad := judge(chandler.KindWasmPlugin, resource("u", 2, map[string]any{"url": "reg.example/p:v1", "pluginNme": "x"}), good)
	if o := bad.object; len(o.Problems) != 1 || o.Problems[0].Field != "spec.pluginNme" || o.Generation != 2 || o.Plugin != good.object.Plugin {
		t.Errorf("a misspelt field: %+v", o)
	}
	several := judge(chandler.KindWasmPlugin, resource("u", 2, map[string]any{"url": []any{int64(1)}, "pluginNme": "x", "phase": int64(7)}), good)
	if o := several.object; len(o.Problems) != 3 {
		t.Errorf("three mistakes: %v", o.Problems)
	}
	other := judge(chandler.KindWasmPlugin, resource("v", 1, map[string]any{}), good)
	if o := other.object; len(o.Problems) == 0 || o.Plugin != nil {
		t.Errorf("another of the same name has the plugin of the first: %+v", o)
	}
	huge := judge(chandler.KindWasmPlugin, resource("u", 3, map[string]any{"url": "reg.example/p:v1", "pluginConfig": map[string]any{"x": strings.Repeat("x", 300<<10)}}), bad)
	if o := huge.object; len(o.Problems) != 1 || o.Plugin != good.object.Plugin || len(fmt.Sprint(o.Problems)) > 1024 {
		t.Errorf("300 KiB: %d problems, %+v", len(o.Problems), o.Plugin)
	}
}

//go:build kube

package kube_test

import (
	"bytes"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"chandler.dev/chandler/internal/source"
	"chandler.dev/chandler/internal/source/kube"
	testkube "chandler.dev/chandler/internal/testenv/kube"
)

// road leads to an API server and can be cut.
type road struct {
	listener net.Listener
	to       string
	wg       sync.WaitGroup

	mu    sync.Mutex
	shut  bool
	conns map[net.Conn]bool
}

func newRoad(t *testing.T, to string) *road {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &road{listener: l, to: to, conns: map[net.Conn]bool{}}
	r.wg.Go(r.accept)
	t.Cleanup(func() {
		l.Close()
		r.cut(true)
		r.wg.Wait()
	})
	return r
}

func (r *road) accept() {
	for {
		in, err := r.listener.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", r.to)
		r.mu.Lock()
		if r.shut || err != nil {
			in.Close()
			if err == nil {
				out.Close()
			}
			r.mu.Unlock()
			continue
		}
		r.conns[in], r.conns[out] = true, true
		r.mu.Unlock()
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			r.wg.Go(func() {
				_, _ = io.Copy(pair[0], pair[1])
				pair[0].Close()
			})
		}
	}
}

// cut ends all that goes on, and lets nothing through until it is called with false.
func (r *road) cut(shut bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shut = shut
	for c := range r.conns {
		c.Close()
	}
	clear(r.conns)
}

// clientOver is a client of the admin that takes a road.
func clientOver(t *testing.T, c *testkube.Cluster, r *road) *kube.Client {
	t.Helper()
	b, err := os.ReadFile(c.Admin)
	if err != nil {
		t.Fatal(err)
	}
	file := t.TempDir() + "/kubeconfig"
	if err := os.WriteFile(file, bytes.ReplaceAll(b, []byte(c.Addr), []byte(r.listener.Addr().String())), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := kube.Connect(file, "", "test")
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// A watch that is too old to go on from, as after a compaction, costs one list and
// leads to one snapshot, of now. And an object that no schema has judged is refused
// by itself. While etcd stands still, what is known stays.
func TestFault_F46_F48_F51_WhatTheServerDoes(t *testing.T) {
	c := testkube.Start(t, tools)
	kubectl(t, c, "", "create", "namespace", "ns")
	kubectl(t, c, "", "apply", "-f", crds+"wasmplugins.yaml", "-f", crds+"trafficextensions.yaml")
	defined(t, c, "wasmplugins", "trafficextensions")
	apply(t, c, wasm("ns", "a", url)+wasm("ns", "b", url))
	r := newRoad(t, c.Addr)
	w := watchPlugins(t, clientOver(t, c, r), kube.Source{})
	w.await("ns/a:1 ns/b:1")
	old := kubectl(t, c, "", "get", "wasmplugins", "-A", "-o", "jsonpath={.items[1].metadata.resourceVersion}")

	r.cut(true)
	kubectl(t, c, "", "delete", "wasmplugin", "-n", "ns", "a")
	apply(t, c, wasm("ns", "b", url, "priority: 2")+wasm("ns", "c", url))
	if err := c.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := c.APIServer.Stop(); err != nil { // it still knows what was compacted
		t.Fatal(err)
	}
	if err := c.APIServer.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	path := "/apis/extensions.istio.io/v1alpha1/wasmplugins?watch=1&timeoutSeconds=5&resourceVersion=" + old
	if out, _ := c.Kubectl(t.Context(), "", "get", "--raw", path); !strings.Contains(out, "too old resource version") {
		t.Errorf("a watch from %s is not too old: %s", old, out)
	}
	n := len(w.all())
	r.cut(false)
	w.await("ns/b:2 ns/c:1")
	w.never(n, "back in time", func(s source.Snapshot) bool { return shown(s) != "ns/b:2 ns/c:1" })
	if len(w.all()) != n+1 {
		t.Errorf("%d snapshots of one list", len(w.all())-n)
	}

	kubectl(t, c, "", "patch", "crd", "wasmplugins.extensions.istio.io", "--type=json", "-p",
		`[{"op":"replace","path":"/spec/versions/0/schema/openAPIV3Schema","value":{"type":"object","x-kubernetes-preserve-unknown-fields":true}}]`)
	odd := strings.Replace(wasm("ns", "odd", "[1, 2]", "phase: 7"), "---\n", "", 1)
	eventually(t, func() bool {
		_, err := c.Kubectl(t.Context(), odd, "create", "--validate=false", "-f", "-")
		return err == nil
	})
	large := wasm("ns", "large", url, "pluginConfig: {x: "+strings.Repeat("x", 600<<10)+"}")
	kubectl(t, c, large, "create", "--validate=false", "-f", "-")
	kubectl(t, c, "{apiVersion: extensions.istio.io/v1alpha1, kind: WasmPlugin, metadata: {name: none, namespace: ns}}", "create", "--validate=false", "-f", "-")
	apply(t, c, wasm("ns", "c", url, "priority: 2"))
	s := w.await("ns/b:2 ns/c:2 ns/large! ns/none! ns/odd!")
	for _, o := range s.Objects[2:] {
		for _, p := range o.Problems {
			if len(p.Error()) > 1024 {
				t.Errorf("%s: a message of %d bytes", o.Name, len(p.Error()))
			}
		}
	}
	if got := len(s.Objects[4].Problems); got != 2 {
		t.Errorf("of a resource with two mistakes, %d are told: %v", got, s.Objects[4].Problems)
	}

	n = len(w.all())
	if err := c.Etcd.Pause(); err != nil {
		t.Fatal(err)
	}
	if out, err := c.Kubectl(t.Context(), "", "annotate", "wasmplugin", "-n", "ns", "c", "note=x", "--request-timeout=3s"); err == nil {
		t.Errorf("etcd stands still, and yet: %s", out)
	}
	w.never(n, "while etcd stands still", func(source.Snapshot) bool { return true })
	if err := c.Etcd.Resume(); err != nil {
		t.Fatal(err)
	}
	if err := c.APIServer.Ready(t.Context()); err != nil {
		t.Fatal(err)
	}
	kubectl(t, c, "", "delete", "wasmplugin", "-n", "ns", "large", "none", "odd")
	w.await("ns/b:2 ns/c:2")
}
